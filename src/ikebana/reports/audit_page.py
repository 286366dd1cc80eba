"""The audit page."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikebana.auditing.findings import Finding
from ikebana.data.dataset import SPLITS, STATUS_USED, Dataset
from ikebana.data.decoding import decode
from ikebana.data.verified_array import Pixels
from ikebana.errors import UnreadablePhoto
from ikebana.recipe import Resize
from ikebana.reports import audit_charts, audit_table, pages
from ikebana.reports.thumbnails import restore_aspect_ratio

# With about 11 kB each, the page stays below 7 MB.
MAX_PICTURES = 400
# Findings of one kind that are shown with photos, and further ones in a table.
MAX_CARDS_PER_KIND = 60
# Notes with more cards are folded at first.
MAX_OPEN_CARDS = 12
MAX_ROWS_PER_KIND = 2000
MAX_PHOTOS_PER_CARD = 4
SAMPLES_PER_CLASS, MAX_SAMPLED_CLASSES = 8, 12
MAX_BARS = 60
# Longer side of the photo of a finding, which can be enlarged.
CARD_PIXELS = 224
# Their evidence is a score that means nothing but an order.
RANKED_KINDS = ("outlier",)


@dataclass(frozen=True)
class KindDescription:
    """Title and explanation of a kind of finding."""

    title: str
    meaning: str


KIND_DESCRIPTIONS = {
    "cannot_split": KindDescription("Cannot be split", "As they are, fit would refuse to train on these photos."),
    "class_without_training_photos": KindDescription(
        "No training photos", "These classes have test or validation photos but none to train on."
    ),
    "ambiguous_folders": KindDescription(
        "Ambiguous folders", "These folders are read as classes, and may be something else."
    ),
    "leakage": KindDescription(
        "Leakage between splits", "The same photo is in several splits: test accuracy on leaked photos is inflated."
    ),
    "exact_duplicate_conflicting_label": KindDescription(
        "Identical files, different labels", "The same file appears under several labels."
    ),
    "near_duplicate_conflicting_label": KindDescription(
        "Near-duplicates, different labels", "Almost the same photo appears under several labels."
    ),
    "suspect_label": KindDescription(
        "Suspect labels",
        "The model suggests another label. The percentage is the probability that the given label is wrong. "
        "Without one, it is small or not known. Highest first.",
    ),
    "shortcut": KindDescription(
        "Shortcuts",
        "Something other than its subject identifies a class. A network may learn that instead.",
    ),
    "unreadable": KindDescription("Skipped files", "These files cannot be used for training or testing."),
    "exact_duplicate": KindDescription("Identical files", "The same file more than once, under one label."),
    "near_duplicate": KindDescription(
        "Near-duplicates", "Almost the same photo more than once: resized, cropped, rotated or saved again."
    ),
    "outlier": KindDescription(
        "Outliers", "Unlike all other photos, so perhaps of another subject. The most unusual first."
    ),
    "blurry": KindDescription("Blurry", "Nothing in these photos is in focus."),
    "dark": KindDescription("Dark", "Even the brightest parts of these photos are dark."),
    "bright": KindDescription("Bright", "Even the darkest parts of these photos are bright."),
    "blank": KindDescription("Blank", "These photos show nothing."),
    "low_resolution": KindDescription("Low resolution", "These photos must be enlarged to more than twice their size."),
    "odd_aspect_ratio": KindDescription(
        "Unusual aspect ratios", "Very wide or very tall photos: a square shows only a part, or distorts them."
    ),
    "similar_class_names": KindDescription(
        "Similar class names",
        "Class names that differ only in case, spaces, punctuation or Unicode form usually mean the same class.",
    ),
    "class_imbalance": KindDescription("Class imbalance", "The classes differ a lot in size."),
    "small_class": KindDescription("Small classes", "Too few photos for a meaningful score of the class."),
    "empty_class": KindDescription("Empty classes", "Class folders without a usable photo."),
}
SEVERITY_TITLES = {"error": "errors", "warning": "to review", "note": "for information"}


@dataclass(frozen=True)
class Picture:
    """A photo on the page.

    Attributes:
        source: a data URI; empty if there is no picture or the page has too many.
        row: in the table of all used photos; None if the page has no table or the photo is not used.
    """

    path: str
    label: str
    split: str
    source: str
    row: int | None = None


@dataclass(frozen=True)
class Card:
    """A finding on the page; `hidden_paths` are the photos that are not shown."""

    finding: Finding
    pictures: list[Picture]
    hidden_paths: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """All findings of a kind.

    Attributes:
        advice: empty if the findings differ in it.
        listed: findings without a card.
        omitted_count: number of findings that are not on the page.
        is_ranked: whether cards show the rank of a finding instead of its evidence.
        is_folded: whether the reader has to open it.
    """

    kind: str
    title: str
    meaning: str
    severity: str
    advice: str
    cards: list[Card]
    listed: list[Finding]
    omitted_count: int
    count: int
    photos: int
    is_ranked: bool
    is_folded: bool


def write(
    file: Path,
    dataset: Dataset,
    findings: Sequence[Finding],
    pixels: Pixels,
    resize: Resize,
    *,
    has_given_split: bool = False,
) -> None:
    """Write the page of an audit.

    Args:
        findings: of any kind, most severe first.
        pixels: uint8 [rows of the dataset, image_size, image_size, 3].
        resize: how the photos became square.
        has_given_split: whether the photos came with a split, which a cleaned table then keeps.
    Raises:
        MachineError: the file cannot be written.
    """
    pages.write_page(file, render(dataset, findings, pixels, resize, has_given_split=has_given_split))


def render(
    dataset: Dataset,
    findings: Sequence[Finding],
    pixels: Pixels,
    resize: Resize,
    *,
    has_given_split: bool = False,
) -> str:
    """Render the page as text, see `write`."""
    table = audit_table.make_review_table(dataset, has_given_split)
    thumbnails = _Thumbnails(dataset, pixels, resize, is_reviewed=table is not None)
    sections = [_make_section(kind, of_kind, thumbnails) for kind, of_kind in _group_by_kind(findings)]
    counts = dataset.count_photos()
    totals = {name: sum(of_class.values()) for name, of_class in counts.items()}
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    severities = [
        (severity, title, sum(finding.severity == severity for finding in findings))
        for severity, title in SEVERITY_TITLES.items()
    ]
    name = Path(dataset.source).name or dataset.source
    return pages.render(
        "audit.html.jinja",
        name=name,
        source="" if dataset.source.strip("/") == name else dataset.source,
        dataset=dataset,
        used=dataset.used_photos.height,
        skipped=dataset.set_aside_photos.height,
        split_counts={split: sum(of_class[split] for of_class in counts.values()) for split in SPLITS},
        severities=severities,
        words=SEVERITY_TITLES,
        sections=sections,
        first_reviewed=_find_first_reviewed(sections),
        bars=[(name, totals[name], counts[name]) for name in ordered[:MAX_BARS]],
        bars_left_out=len(ordered) - MAX_BARS,
        most=max(totals.values(), default=1) or 1,
        sizes=audit_charts.layout_sizes(dataset.used_photos),
        aspects=audit_charts.layout_aspects(dataset.used_photos),
        plot=audit_charts.PLOT_SIZE,
        samples=[(name, totals[name], thumbnails.sample(name)) for name in dataset.classes[:MAX_SAMPLED_CLASSES]],
        samples_left_out=len(dataset.classes) - MAX_SAMPLED_CLASSES,
        table=audit_table.to_json(table),
        can_write=not dataset.archive_prefix and dataset.locations is None,
        command=audit_table.suggest_command(dataset, findings),
    )


def _find_first_reviewed(sections: Iterable[Section]) -> str:
    """Return the first kind whose photos have buttons; "" if there is none."""
    for section in sections:
        if any(picture.row is not None for card in section.cards for picture in card.pictures):
            return section.kind
    return ""


def _group_by_kind(findings: Iterable[Finding]) -> list[tuple[str, list[Finding]]]:
    """Group by kind, the kind with the most severe finding first.

    Kinds of equal severity are in the order of KIND_DESCRIPTIONS.
    """
    groups: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        groups[finding.kind].append(finding)
    severities, kinds = list(SEVERITY_TITLES), list(KIND_DESCRIPTIONS)

    def rank(kind: str) -> tuple[int, int]:
        worst = min(severities.index(finding.severity) for finding in groups[kind])
        return worst, kinds.index(kind) if kind in kinds else len(kinds)

    return [(kind, groups[kind]) for kind in sorted(groups, key=rank)]


def _make_section(kind: str, findings: list[Finding], thumbnails: "_Thumbnails") -> Section:
    description = KIND_DESCRIPTIONS.get(kind, KindDescription(kind.replace("_", " ").capitalize(), ""))
    advices = {finding.advice for finding in findings}
    # Findings without photos, such as those of a class, get cards. Photos that cannot be shown get
    # table rows.
    paths = [path for finding in findings for path in finding.paths]
    card_count = MAX_CARDS_PER_KIND if not paths or any(thumbnails.has(path) for path in paths) else 0
    cards = [_make_card(finding, thumbnails) for finding in findings[:card_count]]
    rest = findings[card_count:]
    severity = min((finding.severity for finding in findings), key=list(SEVERITY_TITLES).index)
    return Section(
        kind=kind,
        title=description.title,
        meaning=description.meaning,
        severity=severity,
        advice=advices.pop() if len(advices) == 1 else "",
        cards=cards,
        listed=rest[:MAX_ROWS_PER_KIND],
        omitted_count=max(0, len(rest) - MAX_ROWS_PER_KIND),
        count=len(findings),
        photos=len(set(paths)),
        is_ranked=kind in RANKED_KINDS,
        is_folded=severity == "note" and len(cards) > MAX_OPEN_CARDS,
    )


def _make_card(finding: Finding, thumbnails: "_Thumbnails") -> Card:
    has_unusual_shape = finding.kind == "odd_aspect_ratio"
    pictures = [thumbnails.make(path, has_unusual_shape) for path in finding.paths[:MAX_PHOTOS_PER_CARD]]
    return Card(finding, pictures, finding.paths[MAX_PHOTOS_PER_CARD:])


class _Thumbnails:
    """Thumbnails of photos, up to the page's limit."""

    def __init__(self, dataset: Dataset, pixels: Pixels, resize: Resize, is_reviewed: bool):
        self.dataset = dataset
        columns = dataset.photos.select("path", "label", "split", "status", "width", "height")
        rows = list(enumerate(columns.iter_rows(named=True)))
        # If a path occurs both used and unused, the used row comes last and wins.
        rows.sort(key=lambda item: item[1]["status"] == STATUS_USED)
        self.rows = {row["path"]: (number, row) for number, row in rows}
        self.pixels = pixels
        self.resize: Resize = resize
        self.classes: dict[str, list[str]] = {name: [] for name in dataset.classes}
        for path, (_, row) in self.rows.items():
            if row["status"] == STATUS_USED:
                self.classes[row["label"]].append(path)
        self.remaining = MAX_PICTURES
        used = dataset.used_photos["path"] if is_reviewed else []
        self.table_rows = {path: number for number, path in enumerate(used)}

    def has(self, path: str) -> bool:
        return path in self.rows and self.rows[path][1]["status"] == STATUS_USED

    def sample(self, name: str) -> list[Picture]:
        """Return evenly spaced photos of a class; they do not count towards the limit."""
        paths = self.classes[name]
        places = np.unique(np.linspace(0, len(paths) - 1, SAMPLES_PER_CLASS).astype(int)) if paths else []
        return [self._render(paths[int(place)], pages.THUMBNAIL_PIXELS) for place in places]

    def make(self, path: str, has_unusual_shape: bool) -> Picture:
        if self.has(path) and self.remaining > 0:
            self.remaining -= 1
            return self._render(path, CARD_PIXELS, has_unusual_shape)
        row = self.rows[path][1] if path in self.rows else {}
        return Picture(path, row.get("label") or "", row.get("split") or "", "", self.table_rows.get(path))

    def _render(self, path: str, longer_side: int, has_unusual_shape: bool = False) -> Picture:
        number, row = self.rows[path]
        photo = self._read_whole(path, row) if has_unusual_shape and self.resize == "crop" else None
        if photo is None:
            photo = restore_aspect_ratio(self.pixels[number], row["width"], row["height"], self.resize)
        source = pages.to_data_uri(photo, longer_side)
        return Picture(path, row["label"], row["split"] or "", source, self.table_rows.get(path))

    def _read_whole(self, path: str, row: Mapping[str, Any]) -> np.ndarray | None:
        """Read the whole photo again, because its square is cropped; None if that fails."""
        try:
            square = decode(self.dataset.locate(path).read(), len(self.pixels[0]), "squash").pixels
        except (OSError, UnreadablePhoto):
            return None
        return restore_aspect_ratio(square, row["width"], row["height"], "squash")
