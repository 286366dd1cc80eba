"""The audit page: one self-contained file, safe with any file names, of bounded size."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from ikebana.auditing.findings import Finding
from ikebana.data.dataset import SCHEMA, STATUS_USED, Dataset
from ikebana.reports import audit_charts, audit_page

SIDE = 40
HOSTILE = "a<b>&\"'/<script>alert(1)</script>.jpg"
VOID_TAGS = {"meta", "img", "br", "link", "rect", "line", "circle", "path", "input", "hr"}


def dataset(paths, classes=("a<b>&\"'", "plain"), status=STATUS_USED):
    """Make a dataset of these paths, with alternating classes."""
    rows = [
        {
            "path": path, "label": classes[place % len(classes)], "split": ("train", "validation", "test")[place % 3],
            "group": None, "status": status if place == 0 else STATUS_USED, "sha256": str(place), "bytes": 1000 + place,
            "width": 30 + place % 50, "height": 40,
        }
        for place, path in enumerate(paths)
    ]  # fmt: skip
    return Dataset("/photos/of <i>mine</i>", None, pl.DataFrame(rows, schema=SCHEMA), tuple(classes))  # pyright: ignore[reportArgumentType]


def render(findings, paths=None, **choices):
    paths = paths or [HOSTILE, *(f"plain/{place}.jpg" for place in range(30))]
    pixels = np.random.default_rng(0).integers(0, 256, (len(paths), SIDE, SIDE, 3), np.uint8)
    return audit_page.render(dataset(paths, **choices), findings, pixels, "squash")


class Reader(HTMLParser):
    """Parses the page as a browser does: text, attributes and balanced tags."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.words, self.attributes, self.tags, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID_TAGS:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


EVERY_KIND = [
    Finding(kind, severity, (HOSTILE, "plain/3.jpg"), f"evidence <i>of</i> {kind} & more", f"advice for {kind}", label, sure)
    for kind, severity, label, sure in [
        *((name, "note", None, None) for name in audit_page.KIND_DESCRIPTIONS),
        ("leakage", "error", None, None),
        ("suspect_label", "warning", "a<b>&\"'", 0.97),
        ("a_kind_of_tomorrow", "warning", None, None),
    ]
]  # fmt: skip


def test_the_page_has_the_text_and_the_photos_of_every_finding():
    read = Reader(render(EVERY_KIND))
    for finding in EVERY_KIND:
        assert finding.evidence in read.text
        assert finding.advice in read.text
    assert HOSTILE in read.text
    assert "A kind of tomorrow" in read.text
    assert read.open == []


def test_the_page_loads_nothing_from_elsewhere():
    text = render(EVERY_KIND)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text)
    assert not re.search(r"(?i)https?:|//[a-z0-9]|url\(|@import|<script|<link|<iframe", without_pictures)
    for tag, name, value in Reader(text).attributes:
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name)


def test_names_of_files_and_classes_are_escaped():
    hostile, harmless = Reader(render(EVERY_KIND)), [HOSTILE.replace("<", "(").replace(">", ")").replace("&", "+")]
    tame = Reader(render(
        [dataclasses.replace(finding, paths=(harmless[0], finding.paths[1]), evidence="evidence") for finding in EVERY_KIND],
        [harmless[0], *(f"plain/{place}.jpg" for place in range(30))],
    ))  # fmt: skip
    assert hostile.tags == tame.tags
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]


def test_every_picture_has_alternative_text():
    text = render(EVERY_KIND)
    assert re.findall("<img ", text)
    assert all(re.search(r' alt="[^"]+"', tag) for tag in re.findall(r"<img [^>]+>", text))
    assert all(re.search(r' role="img" aria-label="[^"]+"', tag) for tag in re.findall(r"<svg [^>]+>", text))


def test_each_kind_of_finding_is_in_the_contents_and_has_advice():
    text = render(EVERY_KIND)
    for kind in {finding.kind for finding in EVERY_KIND}:
        assert f'href="#{kind}"' in text
        assert f'id="{kind}"' in text
    assert text.count("What to do") >= len({finding.kind for finding in EVERY_KIND})


def test_the_most_severe_kinds_come_first():
    order = re.findall(r'<section id="(\w+)"', render(EVERY_KIND))
    assert order[0] == "leakage"
    assert order.index("suspect_label") < order.index("outlier")


def test_a_photo_that_was_set_aside_has_a_reason_and_no_picture():
    text = render([Finding("unreadable", "warning", (HOSTILE,), "cut short", "mend it")], status="cut short")
    section = text.split('<section id="unreadable">')[1].split("</section>")[0]
    assert "<img" not in section
    assert HOSTILE in Reader(section).text
    assert "cut short" in section


def test_the_page_of_ten_thousand_findings_has_a_bounded_size():
    paths = [f"plain/{place}.jpg" for place in range(3000)]
    findings = [
        Finding(kind, "note", (path,), f"{place} spreads", "look")
        for kind in ("outlier", "blurry", "dark", "low_resolution")
        for place, path in enumerate(paths)
    ]
    text = render(findings, paths)
    assert (
        text.count("data:image/jpeg")
        <= audit_page.MAX_PICTURES + audit_page.SAMPLES_PER_CLASS * audit_page.MAX_SAMPLED_CLASSES
    )
    assert "and 940 more" in text
    assert len(text) < 6e6


def test_an_audit_without_findings_still_shows_the_photos():
    read = Reader(render([]))
    assert "No problems were found" in read.text
    assert read.tags.count("img") == 2 * audit_page.SAMPLES_PER_CLASS


@pytest.mark.parametrize("counts", [{"a": 1}, {"a": 3, "b": 1, "c": 0}, {str(name): name + 1 for name in range(40)}])
def test_the_slices_of_the_pie_chart_add_up_to_all_photos(counts):
    slices = audit_charts.layout_pie(counts)
    assert sum(pie_slice.photos for pie_slice in slices) == sum(counts.values())
    assert sum(pie_slice.share for pie_slice in slices) == pytest.approx(1)
    assert len(slices) <= audit_charts.MAX_SLICES


def test_every_size_is_within_the_limits_of_its_chart():
    photos = pl.DataFrame({"width": [1, 300, 20000, 640], "height": [1, 200, 30, 480]})
    across, upward = audit_charts.PLOT_SIZE
    for spot in audit_charts.layout_sizes(photos).spots:
        assert 0 <= spot.x <= across
        assert 0 <= spot.y <= upward
    assert sum(int(words.rsplit(": ")[1].split()[0]) for *_, words in audit_charts.layout_aspects(photos).bars) == 4


def test_a_failed_write_leaves_no_partial_page(tmp_path):
    file = tmp_path / "new" / "index.html"
    paths = [f"plain/{place}.jpg" for place in range(4)]
    audit_page.write(file, dataset(paths), [], np.zeros((4, SIDE, SIDE, 3), np.uint8), "crop")
    assert file.read_text("utf-8").rstrip().endswith("</html>")
    assert [path.name for path in file.parent.iterdir()] == ["index.html"]
