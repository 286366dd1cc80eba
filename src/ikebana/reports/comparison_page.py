"""The page of a comparison: accuracies, differences, and the photos on which the runs differ."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from ikebana.errors import RunError
from ikebana.evaluation.comparison import Comparison
from ikebana.evaluation.comparison_text import describe_need, format_p_value, format_points, summarise
from ikebana.reports import pages
from ikebana.reports.report_pictures import open_thumbnails
from ikebana.runs.comparable import ComparableRun, name_splits
from ikebana.runs.run import Run

# With about 8 kB each, the page stays below 2 MB.
MAX_PHOTOS = 180
MAX_PHOTOS_PER_GROUP = 60
# Steps of the ticks of a scale, as shares, and how many of them the bounds span at most.
TICK_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MAX_TICK_STEPS = 4
MIN_SPAN = 0.01
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
    # Empty if there is only one.
    split: str = ""
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


@dataclass(frozen=True)
class Scale:
    """A scale that all intervals of a table share.

    Attributes:
        ticks: places in percent of the width, and labels.
    """

    lowest: float
    highest: float
    ticks: tuple[tuple[float, str], ...]

    def place(self, interval: tuple[float, float], value: float) -> Interval:
        """Place an interval and the value in it."""
        start, end, middle = (self._place_one(bound) for bound in (*interval, value))
        return Interval(start, end - start, middle)

    def _place_one(self, value: float) -> float:
        return 100 * (value - self.lowest) / (self.highest - self.lowest)


def make_scale(bounds: Sequence[float], format_tick: str) -> Scale:
    """Make a scale from round number to round number that contains all bounds.

    Args:
        bounds: shares.
        format_tick: for the percentage of a tick, such as "{:.0f}%".
    """
    span = max(max(bounds) - min(bounds), MIN_SPAN)
    # The smallest step that needs few ticks.
    step = next(step for step in TICK_STEPS if span / step <= MAX_TICK_STEPS)
    first, last = math.floor(min(bounds) / step + 1e-9), math.ceil(max(bounds) / step - 1e-9)
    last = max(last, first + 1)
    ticks = range(first, last + 1)
    width = last - first
    labels = tuple((100 * (tick - first) / width, format_tick.format(100 * tick * step)) for tick in ticks)
    return Scale(first * step, last * step, labels)


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
    differences = [bound for pair in comparison.pairs for bound in pair.difference.interval]
    scale = make_scale(accuracies, "{:.0f}%")
    # 0 is on the scale, since it means no difference.
    difference_scale = make_scale([0.0, *differences], "{:+.0f}")
    return pages.render(
        "compare.html.jinja",
        comparison=comparison,
        headline=summarise(comparison),
        notes=[_to_sentence(note, contestants) for note in comparison.notes],
        rows=[
            (contestant, scale.place(contestant.accuracy_interval, contestant.accuracy))
            for contestant in sorted(comparison.contestants, key=lambda contestant: -contestant.accuracy)
        ],
        pairs=[
            (pair, difference_scale.place(pair.difference.interval, pair.difference.value)) for pair in comparison.pairs
        ],
        scale=scale,
        difference_scale=difference_scale,
        split_pairs=[pair for pair in comparison.pairs if pair.by_split],
        run_count=sum(len(contestant.runs) for contestant in comparison.contestants),
        curves=_draw_curves(contestants),
        groups=groups,
        differing_count=sum(group.count for group in groups),
        format_points=format_points,
        format_p_value=format_p_value,
        describe_need=describe_need,
    )


def _to_sentence(note: str, names: Container[str]) -> str:
    """Write a note as a sentence; the name of a run stays as it is."""
    is_name = note.partition(" ")[0] in names
    return (note if is_name else note[:1].upper() + note[1:]).rstrip(".") + "."


def _draw_curves(contestants: Contestants) -> dict[str, Markup]:
    """Draw loss and accuracy of each first run that has more than one epoch.

    Empty without such runs.
    """
    runs = {name: _read_epochs(members[0].run) for name, members in contestants.items()}
    trained = {name: epochs for name, epochs in runs.items() if len(epochs) > 1}
    if not trained:
        return {}
    # matplotlib takes half a second to load.
    from ikebana.reports import curves, sheet

    return {
        kind: Markup(
            sheet.to_svg(curves.make_overlaid_curves(trained, kind), f"Validation {kind} of {', '.join(trained)}")
        )
        for kind in curves.HEADINGS
    }


def _read_epochs(run: Run) -> list[dict[str, Any]]:
    """Read the epochs of a run; empty if they cannot be read."""
    try:
        return run.history.to_dicts()
    except RunError:
        return []


def group_differing_photos(contestants: Contestants) -> list[PhotoGroup]:
    """Group the photos on which contestants differ, the most telling group first.

    Photos of several splits are shown once per split, each with the contestants that have it.
    """
    splits = _list_splits(contestants)
    names = name_splits([next(iter(split.values()))[0] for split in splits]) if len(splits) > 1 else [""] * len(splits)
    photos = [photo for split, name in zip(splits, names, strict=True) for photo in _find_differing(split, name)]
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


def _find_differing(split: Mapping[str, Sequence[ComparableRun]], name: str) -> list[DifferingPhoto]:
    """Find the photos of one split that some contestants get right more often."""
    photos = next(iter(split.values()))[0].photos.select("path", "label", "sha256")
    predicted = {
        name: pl.DataFrame({str(row): comparable.photos["predicted"] for row, comparable in enumerate(members)}).rows()
        for name, members in split.items()
    }
    differing = []
    for row, (path, label, sha256) in enumerate(photos.iter_rows()):
        answers = tuple(_summarise_answers(own, rows[row], label) for own, rows in predicted.items())
        if len({answer.share for answer in answers}) > 1:
            differing.append(DifferingPhoto(path, label, sha256, answers, name))
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
        source = open_thumbnails(comparable.run).to_data_uri(photo.sha256, pages.THUMBNAIL_PIXELS)
        if source:
            return replace(photo, source=source)
    return photo
