"""The audit page: one self-contained file, safe with any file names, of bounded size."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from support.html_reader import Reader

from ikebana.auditing.findings import Finding
from ikebana.data.dataset import SCHEMA, STATUS_USED, Dataset
from ikebana.reports import audit_charts, audit_page, audit_table

SIDE = 40
HOSTILE = "a<b>&\"'/<script>alert(1)</script>.jpg"


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
    return Dataset("/photos/of <i>mine</i>", Path("/photos"), pl.DataFrame(rows, schema=SCHEMA), tuple(classes))


def render(findings, paths=None, **choices):
    paths = paths or [HOSTILE, *(f"plain/{place}.jpg" for place in range(30))]
    pixels = np.random.default_rng(0).integers(0, 256, (len(paths), SIDE, SIDE, 3), np.uint8)
    return audit_page.render(dataset(paths, **choices), findings, pixels, "squash")


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
        assert finding.kind in audit_page.RANKED_KINDS or finding.evidence in read.text
        assert finding.advice in read.text
    assert HOSTILE in read.text
    assert "A kind of tomorrow" in read.text
    assert read.open == []


def test_the_page_loads_nothing_from_elsewhere():
    text = render(EVERY_KIND)
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "base64,", text)
    assert not re.search(r"(?i)https?:|//[a-z0-9]|\burl\(|@import|<script[^>]* src|<link|<iframe", without_pictures)
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
    assert order[:4] == ["classes", "sizes", "samples", "leakage"]
    assert order[-1] == "clean"
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
    assert len(text) < 6e6  # the limit with photos of 40 pixels


def test_an_audit_without_findings_still_shows_the_photos():
    read = Reader(render([]))
    assert "No problems were found" in read.text
    assert read.tags.count("img") == 2 * audit_page.SAMPLES_PER_CLASS


def test_a_suspect_label_is_stated_once():
    suspect = Finding("suspect_label", "warning", (HOSTILE,), "labelled a, looks like b", "look", "plain", 0.964)
    section = render([suspect]).split('<section id="suspect_label">')[1].split("</section>")[0]
    read = Reader(section)
    assert "a<b>&\"' → plain 96%" in read.text
    assert "looks like" not in read.text
    assert ("figure", "data-suggested", "plain") in read.attributes


def test_outliers_are_ranked_instead_of_scored():
    findings = [Finding("outlier", "note", (f"plain/{place}.jpg",), "outlier score 5.0", "look") for place in range(3)]
    text = Reader(render(findings)).text
    assert [f"number {place} of 3" in text for place in (1, 2, 3)] == [True] * 3
    assert "outlier score" not in text


def test_an_unusual_shape_is_shown_although_the_network_sees_a_square(tmp_path):
    (tmp_path / "plain").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((30, 300, 3), 90, np.uint8)).save(tmp_path / "plain" / name)
    photos = dataset([f"plain/{place}.png" for place in range(3)])
    wide = photos.photos.with_columns(width=pl.lit(300), height=pl.lit(30))
    photos = dataclasses.replace(photos, root=tmp_path, photos=wide)
    findings = [Finding("odd_aspect_ratio", "note", (f"plain/{place}.png",), "wide", "look") for place in (0, 2)]
    text = audit_page.render(photos, findings, np.zeros((3, SIDE, SIDE, 3), np.uint8), "crop")
    section = text.split('<section id="odd_aspect_ratio">')[1].split("</section>")[0]
    sources = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", section)
    sizes = [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources]
    # The second file is missing by now: its square is better than nothing.
    assert sizes == [(SIDE, SIDE // 10), (SIDE, SIDE)]


def test_each_colour_has_one_meaning():
    """Those of the splits are used for splits alone."""
    text = render(EVERY_KIND)
    uses = re.findall(r"\.([\w-]+)[^{}]*\{[^{}]*var\(--(?:train|validation|test|s1|s2|s5)\)", text.split("</style>")[0])
    assert set(uses) == {"train", "validation", "test"}
    assert not re.search(r"<(path|rect|circle)[^>]*var\(", text)


def test_the_table_of_the_page_has_every_photo_and_survives_hostile_names():
    text = render(EVERY_KIND)
    raw = text.split('<script type="application/json" id="table">')[1].split("</script>")[0]
    assert "<" not in raw
    table = json.loads(raw)
    assert table["root"] + table["rows"][0][0] == f"/photos/{HOSTILE}"
    assert len(table["rows"]) == 31
    assert table["columns"] == ["path", "label", "reason"]
    assert {row[1] for row in table["rows"]} == set(table["classes"])


def test_a_given_split_stays_in_the_table():
    paths = [HOSTILE, *(f"plain/{place}.jpg" for place in range(30))]
    table = audit_table.make_review_table(dataset(paths), has_given_split=True)
    assert table is not None
    assert table.columns == ["path", "label", "split", "reason"]
    assert [row[2] for row in table.rows[:3]] == ["train", "validation", "test"]


def test_photos_in_an_archive_get_no_table():
    photos = dataclasses.replace(dataset(["a.zip!plain/1.jpg", "a.zip!plain/2.jpg"]), archive_prefix="a.zip!")
    text = audit_page.render(photos, EVERY_KIND, np.zeros((2, SIDE, SIDE, 3), np.uint8), "crop")
    assert 'id="table"' not in text
    assert "Unpack it and audit the folder" in text


def test_the_suggested_command_names_only_kinds_that_were_found():
    photos = dataset(["plain/1.jpg", "plain/2.jpg"])
    duplicate = Finding("exact_duplicate", "note", ("plain/1.jpg", "plain/2.jpg"), "identical", "drop one")
    sure, unsure = (
        Finding("suspect_label", "note", ("plain/1.jpg",), "x", "y", "plain", share) for share in (0.99, 0.6)
    )
    command = "ikebana audit '/photos/of <i>mine</i>' --write cleaned.csv"
    assert audit_table.suggest_command(photos, [unsure]) == command
    assert audit_table.suggest_command(photos, [duplicate]) == f"{command} --drop exact_duplicate"
    assert audit_table.suggest_command(photos, [duplicate, sure]).endswith(" --relabel 'suspect_label>0.95'")


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
