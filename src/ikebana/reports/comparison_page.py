"""The page of a comparison: accuracies, differences, and the photos on which the runs differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from ikebana.data import decoding
from ikebana.errors import RunError, UnreadablePhoto
from ikebana.evaluation.comparison import Comparison, Difference
from ikebana.evaluation.comparison_text import describe_need, format_p_value, format_points, summarise
from ikebana.reports import pages
from ikebana.runs.comparable import ComparableRun
from ikebana.runs.run import Run

# With about 8 kB each, the page stays below 2 MB.
MAX_PHOTOS = 180
MAX_PHOTOS_PER_GROUP = 60
PARTIAL_TITLE = "Only some runs differ"
Contestants = Mapping[str, Sequence[ComparableRun]]


@dataclass(frozen=True)
class Answer:
    """What the runs of one contestant answered for a photo.

    Attributes:
        label: the class that most of its runs predict.
        share: of its runs that are right.
        runs: number of its runs.
    """

    contestant: str
    label: str
    share: float
    runs: int

    @property
    def verdict(self) -> str:
        """Return right, wrong or mixed, as text for people and as a style."""
        return "right" if self.share == 1 else "wrong" if self.share == 0 else "mixed"


@dataclass(frozen=True)
class DifferingPhoto:
    """A photo that the contestants do not all answer alike."""

    path: str
    label: str
    sha256: str
    answers: tuple[Answer, ...]
    source: str = ""


@dataclass(frozen=True)
class PhotoGroup:
    """Photos with the same pattern of right and wrong answers; the first ones have pictures."""

    title: str
    count: int
    photos: tuple[DifferingPhoto, ...]


@dataclass(frozen=True)
class Interval:
    """An interval on a scale of the page, in percent of its width."""

    start: float
    width: float
    value: float


def write_comparison_page(file: Path, comparison: Comparison, contestants: Contestants) -> None:
    """Write the page.

    Args:
        contestants: the runs by contestant, which have the thumbnails.
    Raises:
        MachineError: the file cannot be written.
    """
    pages.write_page(file, render_comparison(comparison, contestants))


def render_comparison(comparison: Comparison, contestants: Contestants) -> str:
    """Render the page as text, see `write_comparison_page`."""
    groups = group_differing_photos(contestants)
    accuracies = [bound for contestant in comparison.contestants for bound in contestant.accuracy_interval]
    bounds = [abs(bound) for pair in comparison.pairs for bound in pair.difference.interval]
    return pages.render(
        "compare.html.jinja",
        comparison=comparison,
        headline=summarise(comparison),
        rows=[
            (contestant, _place(contestant.accuracy_interval, contestant.accuracy, min(accuracies), max(accuracies)))
            for contestant in sorted(comparison.contestants, key=lambda contestant: -contestant.accuracy)
        ],
        pairs=[(pair, _place_difference(pair.difference, max(bounds))) for pair in comparison.pairs],
        split_pairs=[pair for pair in comparison.pairs if pair.by_split],
        run_count=sum(len(contestant.runs) for contestant in comparison.contestants),
        curves=_draw_curves(contestants),
        groups=groups,
        differing_count=sum(group.count for group in groups),
        format_points=format_points,
        format_p_value=format_p_value,
        describe_need=describe_need,
    )


def _draw_curves(contestants: Contestants) -> Markup | None:
    """Draw the curves of each first run that has more than one epoch."""
    runs = {name: _read_epochs(members[0].run) for name, members in contestants.items()}
    trained = {name: epochs for name, epochs in runs.items() if len(epochs) > 1}
    if not trained:
        return None
    # matplotlib takes half a second to load.
    from ikebana.reports import curves, sheet

    return Markup(sheet.to_svg(curves.make_overlaid_curves(trained), f"Curves of {', '.join(trained)}"))


def _read_epochs(run: Run) -> list[dict[str, Any]]:
    """Read the epochs of a run; empty if they cannot be read."""
    try:
        return run.history.to_dicts()
    except RunError:
        return []


def _place(interval: tuple[float, float], value: float, lowest: float, highest: float) -> Interval:
    scale = 100 / max(highest - lowest, 1e-9)
    return Interval(scale * (interval[0] - lowest), scale * (interval[1] - interval[0]), scale * (value - lowest))


def _place_difference(difference: Difference, largest: float) -> Interval:
    """Place a difference on a scale with 0 in the middle."""
    return _place(difference.interval, difference.value, -largest, largest)


def group_differing_photos(contestants: Contestants) -> list[PhotoGroup]:
    """Group the photos on which contestants differ, the most telling group first.

    Photos of several splits are shown once per split, each with the contestants that have it.
    """
    photos = [photo for split in _list_splits(contestants) for photo in _find_differing(split)]
    unordered: dict[str, list[DifferingPhoto]] = {}
    for photo in sorted(photos, key=_rank):
        unordered.setdefault(_title(photo, len(contestants)), []).append(photo)
    # Of several contestants, a rare pattern says more than what only the worst one gets wrong.
    direction = -1 if len(contestants) == 2 else 1
    groups = dict(sorted(unordered.items(), key=lambda item: (item[0] == PARTIAL_TITLE, direction * len(item[1]))))
    runs = [comparable for members in contestants.values() for comparable in members]
    room, shown = MAX_PHOTOS, []
    for title, members in groups.items():
        count = min(room, MAX_PHOTOS_PER_GROUP, len(members))
        room -= count
        pictured = tuple(_add_picture(photo, runs) for photo in members[:count])
        shown.append(PhotoGroup(title, len(members), pictured))
    return shown


def _list_splits(contestants: Contestants) -> list[dict[str, list[ComparableRun]]]:
    by_test: dict[str, dict[str, list[ComparableRun]]] = {}
    for name, members in contestants.items():
        for comparable in members:
            by_test.setdefault(comparable.test_id, {}).setdefault(name, []).append(comparable)
    return [named for named in by_test.values() if len(named) > 1]


def _find_differing(split: Mapping[str, Sequence[ComparableRun]]) -> list[DifferingPhoto]:
    """Find the photos of one split that some contestants get right more often."""
    photos = next(iter(split.values()))[0].photos.select("path", "label", "sha256")
    predicted = {
        name: pl.DataFrame({str(row): comparable.photos["predicted"] for row, comparable in enumerate(members)}).rows()
        for name, members in split.items()
    }
    differing = []
    for row, (path, label, sha256) in enumerate(photos.iter_rows()):
        answers = tuple(_summarise_answers(name, rows[row], label) for name, rows in predicted.items())
        if len({answer.share for answer in answers}) > 1:
            differing.append(DifferingPhoto(path, label, sha256, answers))
    return differing


def _summarise_answers(name: str, labels: Sequence[str], truth: str) -> Answer:
    # The first of equally frequent ones.
    most_frequent = max(labels, key=labels.count)
    return Answer(name, most_frequent, labels.count(truth) / len(labels), len(labels))


def _rank(photo: DifferingPhoto) -> tuple[Any, ...]:
    """Sort by how far the contestants are apart, then by how many are right."""
    shares = [answer.share for answer in photo.answers]
    return -(max(shares) - min(shares)), -np.mean(shares), [-share for share in shares], photo.label, photo.path


def _title(photo: DifferingPhoto, contestants: int) -> str:
    shares = [answer.share for answer in photo.answers]
    right = [answer.contestant for answer in photo.answers if answer.share == max(shares)]
    wrong = [answer.contestant for answer in photo.answers if answer.share == min(shares)]
    if max(shares) - min(shares) < 1:
        return PARTIAL_TITLE
    if contestants == 2 or len(right) == 1:
        return f"Only {right[0]} is right"
    if len(wrong) == 1:
        return f"Only {wrong[0]} is wrong"
    return "Several are right, several are wrong"


def _add_picture(photo: DifferingPhoto, runs: Sequence[ComparableRun]) -> DifferingPhoto:
    """Add the thumbnail of the first run that has one."""
    for comparable in runs:
        file = comparable.run.folder / "thumbnails" / f"{photo.sha256}.jpg"
        try:
            source = pages.to_data_uri(decoding.decode_full_size(decoding.read_bytes(file)))
        except (OSError, UnreadablePhoto):
            continue
        return DifferingPhoto(photo.path, photo.label, photo.sha256, photo.answers, source)
    return photo
