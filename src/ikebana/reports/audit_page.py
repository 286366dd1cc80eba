"""The audit page: one self-contained HTML file that loads nothing from elsewhere."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ikebana.auditing.findings import Finding
from ikebana.data.dataset import SPLITS, STATUS_USED, Dataset
from ikebana.recipe import Resize
from ikebana.reports import audit_charts
from ikebana.reports.run_figures import restore_aspect_ratio
from ikebana.system.files import atomic_write

# With about 8 kB each, the page stays below 4 MB.
MAX_PICTURES = 400
# Findings of one kind that are shown with photos, and further ones in a table.
MAX_CARDS_PER_KIND = 60
MAX_ROWS_PER_KIND = 2000
MAX_PHOTOS_PER_CARD = 4
SAMPLES_PER_CLASS, MAX_SAMPLED_CLASSES = 6, 12
MAX_BARS = 60
# Longer side of a thumbnail.
THUMBNAIL_PIXELS = 168
JPEG_QUALITY = 80


@dataclass(frozen=True)
class KindDescription:
    """Title and explanation of a kind of finding."""

    title: str
    meaning: str


KIND_DESCRIPTIONS = {
    "cannot_split": KindDescription("No split", "As they are, fit would not train on these photos."),
    "class_without_training_photos": KindDescription(
        "Never learned", "Classes that are tested and that nothing is learned of."
    ),
    "leakage": KindDescription(
        "Leaks between parts", "The same photo lies in several parts: a score on it is memory, not skill."
    ),
    "exact_duplicate_conflicting_label": KindDescription(
        "One photo, two labels", "Files with the same bytes stand under different labels."
    ),
    "near_duplicate_conflicting_label": KindDescription(
        "Near-twins, two labels", "Almost the same photo stands under different labels."
    ),
    "suspect_label": KindDescription(
        "Doubtful labels", "What a network sees, and the photos most alike, speak for another label. Surest first."
    ),
    "shortcut": KindDescription(
        "Shortcuts",
        "A class gives itself away by something other than its subject. A network would learn that instead.",
    ),
    "unreadable": KindDescription("Set aside", "These files could not be used. Nothing was learned from them."),
    "exact_duplicate": KindDescription("Identical files", "The same bytes more than once, under one label."),
    "near_duplicate": KindDescription(
        "Near-twins", "Almost the same photo more than once: resized, cropped, turned or saved again."
    ),
    "outlier": KindDescription("Odd photos", "Unlike all others, so perhaps of another subject. Oddest first."),
    "blurry": KindDescription("Blurred", "Nothing in these photos is in focus."),
    "dark": KindDescription("Dark", "Hardly anything in these photos is light."),
    "bright": KindDescription("Bright", "Hardly anything in these photos is dark."),
    "blank": KindDescription("Blank", "One shade all over."),
    "low_resolution": KindDescription("Tiny", "So small that they must be enlarged a lot."),
    "odd_aspect_ratio": KindDescription(
        "Odd shapes", "Much longer than high, or higher than long: a square shows only a part."
    ),
    "similar_class_names": KindDescription(
        "Names alike", "Two classes whose names differ in capitals or blanks alone are one, more often than not."
    ),
    "class_imbalance": KindDescription("Imbalance", "The classes differ a lot in size."),
    "small_class": KindDescription("Small classes", "Too few photos to judge these classes by."),
    "empty_class": KindDescription("Empty classes", "Class folders without one usable photo."),
}
SEVERITY_TITLES = {"error": "must be mended", "warning": "look at it", "note": "good to know"}


@dataclass(frozen=True)
class Picture:
    """A photo on the page.

    Attributes:
        source: a data URI; empty if there is no picture or the page has too many.
    """

    path: str
    label: str
    split: str
    source: str


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


def write(file: Path, dataset: Dataset, findings: Sequence[Finding], pixels: np.ndarray, resize: Resize) -> None:
    """Write the page of an audit.

    Args:
        findings: of any kind, most severe first.
        pixels: uint8 [rows of the dataset, image_size, image_size, 3].
        resize: how the photos became square.
    Raises:
        MachineError: the file cannot be written.
    """
    with atomic_write(file) as partial_file:
        partial_file.write_text(render(dataset, findings, pixels, resize), "utf-8")


def render(dataset: Dataset, findings: Sequence[Finding], pixels: np.ndarray, resize: Resize) -> str:
    """Render the page as text, see `write`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    thumbnails = _Thumbnails(dataset, pixels, resize)
    sections = [_make_section(kind, of_kind, thumbnails) for kind, of_kind in _group_by_kind(findings)]
    # Names of files and classes are untrusted, so everything is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = dataset.count_photos()
    totals = {name: sum(of_class.values()) for name, of_class in counts.items()}
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    severities = [
        (severity, title, sum(finding.severity == severity for finding in findings))
        for severity, title in SEVERITY_TITLES.items()
    ]
    return environment.get_template("audit_page.html.jinja").render(
        name=Path(dataset.source).name or dataset.source,
        dataset=dataset,
        used=dataset.used_photos.height,
        aside=dataset.set_aside_photos.height,
        parts={split: sum(of_class[split] for of_class in counts.values()) for split in SPLITS},
        severities=severities,
        words=SEVERITY_TITLES,
        sections=sections,
        bars=[(name, totals[name], counts[name]) for name in ordered[:MAX_BARS]],
        bars_left_out=len(ordered) - MAX_BARS,
        most=max(totals.values(), default=1) or 1,
        pie=audit_charts.layout_pie(totals),
        sizes=audit_charts.layout_sizes(dataset.used_photos),
        aspects=audit_charts.layout_aspects(dataset.used_photos),
        plot=audit_charts.PLOT_SIZE,
        samples=[(name, totals[name], thumbnails.sample(name)) for name in dataset.classes[:MAX_SAMPLED_CLASSES]],
        samples_left_out=len(dataset.classes) - MAX_SAMPLED_CLASSES,
    )


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
    return Section(
        kind=kind,
        title=description.title,
        meaning=description.meaning,
        severity=min((finding.severity for finding in findings), key=list(SEVERITY_TITLES).index),
        advice=advices.pop() if len(advices) == 1 else "",
        cards=cards,
        listed=rest[:MAX_ROWS_PER_KIND],
        omitted_count=max(0, len(rest) - MAX_ROWS_PER_KIND),
        count=len(findings),
        photos=len(set(paths)),
    )


def _make_card(finding: Finding, thumbnails: "_Thumbnails") -> Card:
    pictures = [thumbnails.make(path) for path in finding.paths[:MAX_PHOTOS_PER_CARD]]
    return Card(finding, pictures, finding.paths[MAX_PHOTOS_PER_CARD:])


class _Thumbnails:
    """Thumbnails of photos, up to the page's limit."""

    def __init__(self, dataset: Dataset, pixels: np.ndarray, resize: Resize):
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

    def has(self, path: str) -> bool:
        return path in self.rows and self.rows[path][1]["status"] == STATUS_USED

    def sample(self, name: str) -> list[Picture]:
        """Return evenly spaced photos of a class; they do not count towards the limit."""
        paths = self.classes[name]
        places = np.unique(np.linspace(0, len(paths) - 1, SAMPLES_PER_CLASS).astype(int)) if paths else []
        return [self._render(paths[int(place)]) for place in places]

    def make(self, path: str) -> Picture:
        if self.has(path) and self.remaining > 0:
            self.remaining -= 1
            return self._render(path)
        row = self.rows[path][1] if path in self.rows else {}
        return Picture(path, row.get("label") or "", row.get("split") or "", "")

    def _render(self, path: str) -> Picture:
        number, row = self.rows[path]
        photo = restore_aspect_ratio(self.pixels[number], row["width"], row["height"], self.resize)
        return Picture(path, row["label"], row["split"] or "", _to_data_uri(photo))


def _to_data_uri(photo: np.ndarray) -> str:
    picture = Image.fromarray(photo)
    scale = THUMBNAIL_PIXELS / max(picture.size)
    if scale < 1:
        picture = picture.resize(
            (max(1, math.ceil(picture.width * scale)), max(1, math.ceil(picture.height * scale))),
            Image.Resampling.BILINEAR,
        )
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
