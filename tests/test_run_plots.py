"""The charts of a run: matplotlib figures of the run's own numbers."""

import io
import shutil

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ikebana.errors import RunError
from ikebana.reports.sheet import SheetFigure
from ikebana.runs.run import Run

CHARTS = ("classes", "curves", "confusion", "confused_pairs", "reliability", "risk_coverage")


def read_texts(figure):
    """List all texts of a chart."""
    (sheet,) = figure.axes
    return [text.get_text() for text in sheet.texts]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_a_figure_that_a_notebook_shows_without_pyplot(chart, paper_run):
    figure = getattr(paper_run.plot, chart)()
    assert isinstance(figure, SheetFigure)
    data, size = figure._repr_png_()
    picture = Image.open(io.BytesIO(data))
    # Sharp on a screen of 1.5 pixels per CSS pixel and more.
    assert picture.width >= 1.5 * size["width"]
    assert picture.width / picture.height == pytest.approx(size["width"] / size["height"], rel=0.01)


def test_the_charts_show_the_numbers_of_the_run(paper_run):
    evaluation = paper_run.evaluation
    right = np.trace(np.array(evaluation.confusion))
    assert any(f"{right} of {evaluation.n}" in text for text in read_texts(paper_run.plot.confusion()))
    used = paper_run.dataset.filter(status="used")
    bars = read_texts(paper_run.plot.classes())
    for split, count in used["split"].value_counts().iter_rows():
        assert f"{split} {count}" in bars
    last = paper_run.history["val_accuracy"][-1]
    assert any(f"{last:.1%}" in text for text in read_texts(paper_run.plot.curves()))
    assert any(f"{evaluation.n} photos" in text for text in read_texts(paper_run.plot.reliability()))


def test_what_a_run_lacks_is_refused_with_a_command(paper_run):
    with pytest.raises(RunError, match="no learning curves") as refusal:
        paper_run.plot.learning_curves()
    assert "ikebana audit PHOTOS --advise" in (refusal.value.advice or "")
    with pytest.raises(RunError, match="no robustness") as refusal:
        paper_run.plot.robustness()
    assert refusal.value.advice == f"ikebana fit --resume {paper_run.folder} --robustness"
    for network in (0, 2):
        with pytest.raises(RunError, match=f"there is no network {network}"):
            paper_run.plot.curves(network)


def test_an_unfinished_run_has_curves_but_no_confusion_matrix(paper_run, tmp_path):
    shutil.copytree(paper_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json"))
    unfinished = Run(tmp_path / "run")
    assert isinstance(unfinished.plot.curves(), Figure)
    with pytest.raises(RunError, match="has not finished"):
        unfinished.plot.confusion()


def test_the_list_of_charts_is_short_and_complete(paper_run):
    assert set(dir(paper_run.plot)) == {*CHARTS, "learning_curves", "robustness"}
    for chart in CHARTS:
        assert f".{chart}()" in repr(paper_run.plot)
