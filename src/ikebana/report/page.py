"""What an audit found, as one HTML file to look at: nothing in it is fetched from anywhere."""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ikebana.photos.audit import Finding
from ikebana.photos.dataset import PARTS, USED, Dataset
from ikebana.places import written
from ikebana.recipe import Fit
from ikebana.report import charts
from ikebana.report.draw import as_it_was

PICTURES = 400  # on a page: with about 8 kB each it stays below 4 MB
A_KIND = 60  # findings of one kind that are shown with their photos
TOGETHER = 4  # photos of one finding that are shown
LISTED = 2000  # further findings of one kind, in words
SAMPLES, SAMPLED_CLASSES = 6, 12
BARS = 60  # classes in the bar chart
THUMBNAIL = 168  # pixels of its longer side
QUALITY = 80  # of its JPEG


@dataclass(frozen=True)
class Kind:
    """How a kind of finding is introduced."""

    title: str
    meaning: str


KINDS = {
    "unsplit": Kind("No split", "As they are, fit would not train on these photos."),
    "untrained": Kind("Never learned", "Classes that are tested and that nothing is learned of."),
    "leak": Kind("Leaks between parts", "The same photo lies in several parts: a score on it is memory, not skill."),
    "identical_other_label": Kind("One photo, two labels", "Files with the same bytes stand under different labels."),
    "near_twin_other_label": Kind("Near-twins, two labels", "Almost the same photo stands under different labels."),
    "doubtful_label": Kind(
        "Doubtful labels", "What a network sees, and the photos most alike, speak for another label. Surest first."
    ),
    "shortcut": Kind(
        "Shortcuts",
        "A class gives itself away by something other than its subject. A network would learn that instead.",
    ),
    "unreadable": Kind("Set aside", "These files could not be used. Nothing was learned from them."),
    "identical": Kind("Identical files", "The same bytes more than once, under one label."),
    "near_twin": Kind("Near-twins", "Almost the same photo more than once: resized, cropped, turned or saved again."),
    "odd": Kind("Odd photos", "Unlike all others, so perhaps of another subject. Oddest first."),
    "blurred": Kind("Blurred", "Nothing in these photos is in focus."),
    "dark": Kind("Dark", "Hardly anything in these photos is light."),
    "bright": Kind("Bright", "Hardly anything in these photos is dark."),
    "blank": Kind("Blank", "One shade all over."),
    "tiny": Kind("Tiny", "So small that they must be enlarged a lot."),
    "aspect": Kind("Odd shapes", "Much longer than high, or higher than long: a square shows only a part."),
    "alike_names": Kind(
        "Names alike", "Two classes whose names differ in capitals or blanks alone are one, more often than not."
    ),
    "imbalance": Kind("Imbalance", "The classes differ a lot in size."),
    "few": Kind("Small classes", "Too few photos to judge these classes by."),
    "empty_class": Kind("Empty classes", "Class folders without one usable photo."),
}
SEVERITIES = {"error": "must be mended", "warning": "look at it", "note": "good to know"}


@dataclass(frozen=True)
class Picture:
    """A photo on the page."""

    path: str
    label: str
    part: str
    source: str  # a data URI; empty where there is nothing to show, or no room


@dataclass(frozen=True)
class Card:
    """A finding on the page."""

    finding: Finding
    pictures: list[Picture]
    more: tuple[str, ...]  # paths of photos that are not shown


@dataclass(frozen=True)
class Section:
    """All findings of a kind."""

    kind: str
    title: str
    meaning: str
    severity: str
    advice: str  # if it is the same for all; else it stands beside each
    cards: list[Card]
    listed: list[Finding]  # for which there was no room
    left_out: int
    count: int
    photos: int


def write(file: Path, dataset: Dataset, findings: Sequence[Finding], pixels: np.ndarray, fit: Fit) -> None:
    """The page of an audit.

    findings  of any kind, the gravest first
    pixels    uint8 [rows of the dataset, side, side, 3], and how they became square
    raises    MachineError if the file cannot be written
    """
    with written(file) as beside:
        beside.write_text(rendered(dataset, findings, pixels, fit), "utf-8")


def rendered(dataset: Dataset, findings: Sequence[Finding], pixels: np.ndarray, fit: Fit) -> str:
    """The same as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    album = _Album(dataset, pixels, fit)
    sections = [_section(kind, each, album) for kind, each in _by_kind(findings)]
    house = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # the names of files and classes are anybody's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = dataset.counts()
    totals = {name: sum(parts.values()) for name, parts in counts.items()}
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    return house.get_template("page.html.jinja").render(
        name=Path(dataset.source).name or dataset.source,
        dataset=dataset,
        used=dataset.used.height,
        aside=dataset.set_aside.height,
        parts={part: sum(each[part] for each in counts.values()) for part in PARTS},
        severities=[(each, words, sum(one.severity == each for one in findings)) for each, words in SEVERITIES.items()],
        words=SEVERITIES,
        sections=sections,
        bars=[(name, totals[name], counts[name]) for name in ordered[:BARS]],
        bars_left_out=len(ordered) - BARS,
        most=max(totals.values(), default=1) or 1,
        pie=charts.pie(totals),
        sizes=charts.sizes(dataset.used),
        aspects=charts.aspects(dataset.used),
        plot=charts.PLOT,
        samples=[(name, totals[name], album.samples(name)) for name in dataset.classes[:SAMPLED_CLASSES]],
        samples_left_out=len(dataset.classes) - SAMPLED_CLASSES,
    )


def _by_kind(findings: Iterable[Finding]) -> list[tuple[str, list[Finding]]]:
    """Kinds in the order in which they matter: by the gravest of their findings, then as KINDS has them."""
    found: dict[str, list[Finding]] = defaultdict(list)
    for each in findings:
        found[each.kind].append(each)
    severities, kinds = list(SEVERITIES), list(KINDS)

    def rank(kind: str) -> tuple[int, int]:
        gravest = min(severities.index(each.severity) for each in found[kind])
        return gravest, kinds.index(kind) if kind in kinds else len(kinds)

    return [(kind, found[kind]) for kind in sorted(found, key=rank)]


def _section(kind: str, findings: list[Finding], album: "_Album") -> Section:
    about = KINDS.get(kind, Kind(kind.replace("_", " ").capitalize(), ""))
    advices = {each.advice for each in findings}
    # What speaks of no photo, as of a class, gets room for its words; a photo that cannot be shown a line of a table.
    paths = [path for each in findings for path in each.paths]
    shown = A_KIND if not paths or any(album.has(path) for path in paths) else 0
    cards = [_card(each, album) for each in findings[:shown]]
    rest = findings[shown:]
    return Section(
        kind=kind,
        title=about.title,
        meaning=about.meaning,
        severity=min((each.severity for each in findings), key=list(SEVERITIES).index),
        advice=advices.pop() if len(advices) == 1 else "",
        cards=cards,
        listed=rest[:LISTED],
        left_out=max(0, len(rest) - LISTED),
        count=len(findings),
        photos=len(set(paths)),
    )


def _card(finding: Finding, album: "_Album") -> Card:
    shown = [album.picture(path) for path in finding.paths[:TOGETHER]]
    return Card(finding, shown, finding.paths[TOGETHER:])


class _Album:
    """Thumbnails of photos, until the page is full."""

    def __init__(self, dataset: Dataset, pixels: np.ndarray, fit: Fit):
        columns = dataset.photos.select("path", "label", "split", "status", "width", "height")
        rows = list(enumerate(columns.iter_rows(named=True)))
        # A path may stand there twice, used and set aside: the one that is used counts.
        rows.sort(key=lambda each: each[1]["status"] == USED)
        self.facts = {row["path"]: (number, row) for number, row in rows}
        self.pixels = pixels
        self.fit: Fit = fit
        self.classes: dict[str, list[str]] = {name: [] for name in dataset.classes}
        for path, (_, row) in self.facts.items():
            if row["status"] == USED:
                self.classes[row["label"]].append(path)
        self.room = PICTURES

    def has(self, path: str) -> bool:
        return path in self.facts and self.facts[path][1]["status"] == USED

    def samples(self, name: str) -> list[Picture]:
        """A few photos of a class, spread over it; they have room of their own."""
        paths = self.classes[name]
        places = np.unique(np.linspace(0, len(paths) - 1, SAMPLES).astype(int)) if paths else []
        return [self._shown(paths[int(place)]) for place in places]

    def picture(self, path: str) -> Picture:
        if self.has(path) and self.room > 0:
            self.room -= 1
            return self._shown(path)
        row = self.facts[path][1] if path in self.facts else {}
        return Picture(path, row.get("label") or "", row.get("split") or "", "")

    def _shown(self, path: str) -> Picture:
        number, row = self.facts[path]
        photo = as_it_was(self.pixels[number], row["width"], row["height"], self.fit)
        return Picture(path, row["label"], row["split"] or "", _data_uri(photo))


def _data_uri(photo: np.ndarray) -> str:
    picture = Image.fromarray(photo)
    scale = THUMBNAIL / max(picture.size)
    if scale < 1:
        picture = picture.resize(
            (max(1, math.ceil(picture.width * scale)), max(1, math.ceil(picture.height * scale))),
            Image.Resampling.BILINEAR,
        )
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
