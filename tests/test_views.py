"""What notebooks show for records: HTML that is well-formed, escaped and complete."""

import base64
import dataclasses
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from support.images import two_classes, write_files

from ikebana.auditing.findings import Finding
from ikebana.data import sources
from ikebana.evaluation.evaluation_view import MAX_SHOWN_CLASSES, describe_confusions
from ikebana.evaluation.metrics import evaluate
from ikebana.inference.prediction import to_prediction, unusable_prediction
from ikebana.reports import mistakes_view
from ikebana.runs.run import Run
from ikebana.system import notebook_html

SCRIPT, BROKEN_OUT = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg'


def parse(view):
    """Parse a view strictly: anything that is not escaped or closed raises ParseError."""
    return ElementTree.fromstring(view)


def read_table(view):
    """Read the texts of a view's only table, row by row."""
    (table,) = parse(view).iter("table")
    return [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]


def is_inert(view):
    """Whether a view holds none of the elements and attributes that hostile names try to add."""
    elements = list(parse(view).iter())
    return {element.tag for element in elements} <= {
        "div", "p", "b", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td", "span", "img",
    } and not any(name.startswith("on") for element in elements for name in element.attrib)  # fmt: skip


@pytest.fixture
def hostile_evaluation():
    """Scores of two classes whose names are HTML."""
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]])
    return evaluate(probabilities, np.array([0, 1, 1, 1]), (SCRIPT, BROKEN_OUT), note=f"<b>{SCRIPT}</b>")


def test_an_evaluation_is_a_table_of_its_classes(hostile_evaluation):
    header, *rows = read_table(hostile_evaluation._repr_html_())
    assert header == ["class", "precision", "recall", "F1", "test photos"]
    assert rows == [
        [name, f"{scores.precision:.2f}", f"{scores.recall:.2f}", f"{scores.f1:.2f}", str(scores.support)]
        for name, scores in hostile_evaluation.per_class.items()
    ]


def test_an_evaluation_shows_every_remark_once(hostile_evaluation):
    view = hostile_evaluation._repr_html_()
    text = "".join(parse(view).itertext())
    for line in hostile_evaluation.describe_lines():
        assert text.count(line) == 1
        assert line in repr(hostile_evaluation)
    assert is_inert(view)


def test_the_pairs_that_are_confused_most_come_first(hostile_evaluation):
    confused = dataclasses.replace(
        hostile_evaluation, classes=("a", "b", "c"), confusion=((5, 1, 0), (7, 5, 2), (0, 4, 5))
    )
    assert describe_confusions(confused) == "most often confused (true → predicted): b → a 7, c → b 4, b → c 2"
    perfect = dataclasses.replace(confused, confusion=((5, 0, 0), (0, 5, 0), (0, 0, 5)))
    assert describe_confusions(perfect) == ""


def test_of_many_classes_the_worst_are_shown():
    labels = np.arange(100)
    probabilities = np.full((100, 100), 0.001) + np.eye(100)[np.where(labels == 42, 7, labels)]
    evaluation = evaluate(probabilities / probabilities.sum(1, keepdims=True), labels, [f"class {n}" for n in labels])
    _, first, *rows = read_table(evaluation._repr_html_())
    assert first[0] == "class 42"
    assert len(rows) == MAX_SHOWN_CLASSES - 1


def test_numbers_are_aligned_to_the_right_and_texts_to_the_left():
    table = notebook_html.render_table(("name", "share", "count"), [("a", 0.5, 1234), (SCRIPT, 0.25, 7)])
    styles = [[cell.get("style", "") for cell in row] for row in parse(table).iter("tr")]
    for name, share, count in styles:
        assert "text-align:left" in name
        assert "text-align:right" in share
        assert "text-align:right" in count
    assert read_table(f"<div>{table}</div>")[1] == ["a", "0.50", "1,234"]


@pytest.mark.parametrize(
    ("prediction", "first_line"),
    [
        (to_prediction([0.1, 0.9], (BROKEN_OUT, SCRIPT), path=BROKEN_OUT), f"{SCRIPT} (90.0%)"),
        (to_prediction([0.4, 0.6], ("a", "b"), 0.7), "not sure"),
        (
            to_prediction([0.1, 0.9], ("a", "b"), familiarity=0.0, familiarity_threshold=0.1),
            "unknown: unlike the training photos, closest to b",
        ),
        (unusable_prediction(BROKEN_OUT, f"no photo: {SCRIPT}"), "not classified"),
    ],
)
def test_a_prediction_starts_with_its_answer(prediction, first_line):
    view = prediction._repr_html_()
    assert "".join(next(iter(parse(view))).itertext()) == first_line
    assert is_inert(view)


def test_a_prediction_shows_the_most_probable_classes_first():
    prediction = to_prediction([0.1, 0.6, 0.3], ("a", "b", "c"))
    assert [row[0] for row in read_table(prediction._repr_html_())] == ["class", "b", "c", "a"]
    widths = [float(width) for width in re.findall(r";width:([\d.]+)em", prediction._repr_html_())]
    assert widths == pytest.approx([8 * 0.6, 8 * 0.3, 8 * 0.1], abs=0.01)


def test_a_classifier_shows_its_classes_and_its_score(paper_classifier):
    rows = dict(read_table(paper_classifier._repr_html_()))
    assert rows["5 classes"] == ", ".join(paper_classifier.classes)
    assert rows["accuracy"].startswith(f"{paper_classifier.metadata['scores']['accuracy']:.3f} (")
    assert rows["not sure"] == "never"


@pytest.mark.parametrize(
    "metadata", [{}, {"scores": None}, {"scores": {"accuracy": SCRIPT}}, {"scores": {"accuracy": 0.5, "n": SCRIPT}}]
)
def test_the_metadata_of_a_file_need_not_be_as_expected(paper_classifier, metadata):
    hostile = dataclasses.replace(paper_classifier, classes=(SCRIPT, BROKEN_OUT), metadata=metadata)
    assert is_inert(hostile._repr_html_())


# --- runs ---


def test_a_run_shows_its_scores_once_and_an_unfinished_one_how_to_resume(paper_run, tmp_path):
    text = "".join(parse(paper_run._repr_html_()).itertext())
    assert text.count(paper_run.evaluation.describe_lines()[0]) == 1
    assert str(paper_run.folder) in text
    folder = tmp_path / BROKEN_OUT
    shutil.copytree(paper_run.folder, folder, ignore=shutil.ignore_patterns("evaluation.json"))
    view = Run(folder)._repr_html_()
    assert Run(folder).resume_command in "".join(parse(view).itertext())
    assert is_inert(view)


def test_the_predicted_class_is_the_most_probable_one(paper_run):
    table = paper_run.predictions
    probabilities = table.select(f"p:{name}" for name in paper_run.classes).to_numpy()
    assert table["predicted"].to_list() == [paper_run.classes[index] for index in probabilities.argmax(1)]
    assert table["confidence"].to_list() == probabilities.max(1).tolist()
    stored = pl.read_parquet(paper_run.folder / "predictions.parquet")
    assert table.drop("predicted", "confidence").equals(stored)


def test_mistakes_are_those_of_the_confusion_matrix(paper_run):
    frame = paper_run.mistakes.frame
    counts = frame.group_by("label", "predicted").len()
    confusion = np.zeros((5, 5), int)
    for label, predicted, count in counts.iter_rows():
        confusion[paper_run.classes.index(label), paper_run.classes.index(predicted)] = count
    expected = np.array(paper_run.evaluation.confusion)
    np.fill_diagonal(expected, 0)
    assert (confusion == expected).all()
    assert len(paper_run.mistakes) == len(frame) == expected.sum()
    assert frame["confidence"].is_sorted(descending=True)
    assert frame.columns == ["path", "label", "predicted", "confidence"]


@pytest.fixture
def run_of_mistakes(paper_run, tmp_path):
    """A run whose test photos are all misclassified, some with hostile paths."""
    folder = tmp_path / "run"
    shutil.copytree(paper_run.folder, folder)
    names = {label: paper_run.classes[n - 1] for n, label in enumerate(paper_run.classes)}
    tables = {name: pl.read_parquet(folder / name) for name in ("predictions.parquet", "dataset.parquet")}
    hostile = tables["predictions.parquet"].filter(split="test")["path"][0]
    for name, table in tables.items():
        table.with_columns(pl.col("path").replace(hostile, BROKEN_OUT)).write_parquet(folder / name)
    table = pl.read_parquet(folder / "predictions.parquet")
    answers = {f"p:{label}": (pl.col("label").replace_strict(names) == label).cast(pl.Float32) for label in names}
    table.with_columns(**answers).write_parquet(folder / "predictions.parquet")
    return Run(folder)


def test_each_mistake_is_shown_with_its_own_thumbnail(run_of_mistakes):
    view = run_of_mistakes.mistakes._repr_html_()
    frame = run_of_mistakes.mistakes.frame.head(mistakes_view.MAX_SHOWN_MISTAKES)
    hashes = dict(run_of_mistakes.dataset.filter(split="test").select("path", "sha256").iter_rows())
    pictures = list(parse(view).iter("img"))
    assert [picture.get("alt") for picture in pictures] == frame["path"].to_list()
    for picture in pictures:
        file = run_of_mistakes.folder / "thumbnails" / f"{hashes[picture.get('alt')]}.jpg"
        assert base64.b64decode((picture.get("src") or "").removeprefix("data:image/jpeg;base64,")) == file.read_bytes()
    assert BROKEN_OUT in frame["path"]
    assert is_inert(view)


def test_a_run_without_thumbnails_shows_its_mistakes_without_pictures(run_of_mistakes, monkeypatch):
    shutil.rmtree(run_of_mistakes.folder / "thumbnails")
    monkeypatch.setattr(mistakes_view, "MAX_SHOWN_MISTAKES", 2)
    view = run_of_mistakes.mistakes._repr_html_()
    assert len(read_table(view)) == 1 + 2
    assert f"and {len(run_of_mistakes.mistakes) - 2} less confident ones" in view
    assert not list(parse(view).iter("img"))


def test_a_run_without_mistakes_says_so(run_of_mistakes):
    table = pl.read_parquet(run_of_mistakes.folder / "predictions.parquet")
    answers = {f"p:{label}": (pl.col("label") == label).cast(pl.Float32) for label in run_of_mistakes.classes}
    table.with_columns(**answers).write_parquet(run_of_mistakes.folder / "predictions.parquet")
    view = run_of_mistakes.mistakes._repr_html_()
    assert "0 of 10 test photos misclassified" in view
    assert not list(parse(view).iter("table"))


def test_dir_of_a_run_lists_only_what_users_need_and_all_of_it_exists(paper_run):
    names = dir(paper_run)
    assert {"evaluation", "predictions", "mistakes", "history", "dataset", "folder", "recipe"} <= set(names)
    assert not [name for name in names if name.startswith("_")]
    for name in names:
        assert hasattr(paper_run, name)


# --- audits ---


def test_an_audit_has_one_row_per_kind_of_finding(tmp_path):
    from ikebana.commands.audit import CANNOT_SPLIT, Audit

    write_files(tmp_path / "photos", two_classes())
    findings = (
        Finding(CANNOT_SPLIT, "error", (), f"too few photos of {SCRIPT}", "add photos"),
        Finding("near_duplicate", "warning", ("a.jpg", BROKEN_OUT), "2 near-duplicates", "keep one"),
        Finding("near_duplicate", "warning", ("c.jpg", "d.jpg"), "2 near-duplicates", "keep one"),
    )
    result = Audit(sources.read(tmp_path / "photos"), findings)
    view = result._repr_html_()
    _, *rows = read_table(view)
    assert [row[:3] for row in rows] == [["cannot split", "error", "1"], ["near duplicate", "warning", "2"]]
    assert rows[1][3] == f"2 near-duplicates: a.jpg, {BROKEN_OUT}"
    assert f"fit would refuse: too few photos of {SCRIPT}" in "".join(parse(view).itertext())
    assert is_inert(view)


def test_an_audit_without_findings_says_so(tmp_path):
    from ikebana.commands.audit import Audit

    write_files(tmp_path / "photos", two_classes())
    assert "no problems" in Audit(sources.read(tmp_path / "photos"), ())._repr_html_()
