"""Calls in the kernel of a real notebook: one line of progress, HTML, nothing on standard error."""

import json
import logging

import pytest
from support.images import two_classes, write_files

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'ikebana[dev]'")
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'ikebana[dev]'")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'ikebana[dev]'")

pytestmark = pytest.mark.slow

REPORT_STAGES = """
import time
from ikebana.system import progress
with progress.stage("read <b>photos</b>", 4) as bar:
    for _ in range(4):
        time.sleep(0.3)
        bar.advance(1, accuracy=0.5)
progress.message("a message")
with progress.stage("train", 0) as bar:
    bar.advance(1)
"""


@pytest.fixture(scope="module")
def run_cells(tmp_path_factory):
    """A function that runs cells in one new kernel, and returns the outputs of each."""

    def run(*cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        with pytest.MonkeyPatch.context() as patch:
            # A user's own settings of IPython and Jupyter are not part of the test.
            for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR"):
                patch.setenv(name, str(tmp_path_factory.mktemp("jupyter")))
            client = nbclient.NotebookClient(notebook, timeout=300, allow_errors=True, kernel_name="python3")
            client.log.setLevel(logging.CRITICAL)
            client.execute()
        return [cell.outputs for cell in notebook.cells]

    return run


def streams(outputs):
    """The texts that a cell printed."""
    return "".join(output.text for output in outputs if output.output_type == "stream")


def errors(outputs):
    return ["\n".join(output.traceback) for output in outputs if output.output_type == "error"]


@pytest.fixture(scope="module")
def outputs(run_cells):
    """The outputs of cells that report progress in each mode."""
    return run_cells(
        REPORT_STAGES,
        "progress.warn('the disk is <i>almost</i> full')",
        "with progress.stage('short', 1) as bar: bar.advance(1)",
        "import ikebana; ikebana.progress('off')\n" + REPORT_STAGES,
        "ikebana.progress('json')\n" + REPORT_STAGES,
        "ikebana.progress('bar')\n" + REPORT_STAGES + "raise ValueError",
    )


def test_progress_is_one_line_that_ends_with_the_time(outputs):
    (line,) = outputs[0]
    assert line.output_type == "display_data"
    assert line.data["text/plain"].startswith("done in ")
    assert "done in" in line.data["text/html"]


def test_a_warning_is_shown_and_escaped(outputs):
    (warning,) = outputs[1]
    assert "the disk is &lt;i&gt;almost&lt;/i&gt; full" in warning.data["text/html"]


def test_a_short_call_shows_no_line(outputs):
    assert outputs[2] == []


def test_off_shows_nothing_and_json_prints_events(outputs):
    assert outputs[3] == []
    events = [json.loads(line) for line in streams(outputs[4]).splitlines()]
    assert [event["event"] for event in events][:2] == ["stage", "progress"]


def test_bar_is_the_line_again_and_says_that_the_cell_was_stopped(outputs):
    line, error = outputs[5]
    assert line.data["text/plain"].startswith("stopped after ")
    assert error.ename == "ValueError"


def test_the_line_shows_the_stage_its_share_and_the_scores(run_cells):
    shown = """
from ikebana.system import notebook_progress
drawn = []
class Line(notebook_progress.CellLine):
    def show(self, markup, text, **options):
        drawn.append((str(markup), text))
notebook_progress.NotebookReporter.line = Line()
"""
    (result,) = run_cells(shown + REPORT_STAGES + "\nimport json; print(json.dumps(drawn))")
    drawn = json.loads(streams(result))
    assert drawn[2][1] == "read <b>photos</b>: 50%   accuracy 0.500"
    assert "read &lt;b&gt;photos&lt;/b&gt;" in drawn[2][0]
    assert '<progress max="1" value="0.500"' in drawn[2][0]
    assert "left" in drawn[4][1] or "100%" in drawn[4][1]
    assert drawn[-1][1] == "train: 1"


def test_a_run_is_shown_once_and_nothing_is_printed(run_cells, paper_run, tmp_path_factory):
    place = tmp_path_factory.mktemp("notebook")
    write_files(place / "photos", two_classes(10))
    options = "image_size=48, batch_size=16, epochs=1, precision='float32'"
    fitted, mistakes, figure, audited, short = run_cells(
        f"import ikebana\nikebana.fit({str(place / 'photos')!r}, 'baseline', run={str(place / 'run')!r}, {options})",
        f"run = ikebana.open_run({str(paper_run.folder)!r})\nrun.mistakes",
        "run.plot.confusion()",
        f"ikebana.audit({str(place / 'photos')!r})",
        "import sys; sorted(dir(run)), 'matplotlib.pyplot' in sys.modules",
    )
    everything = [*fitted, *mistakes, *figure, *audited, *short]
    assert errors(everything) == []
    assert streams(everything) == ""
    assert sum("accuracy" in str(output.data.get("text/html")) for output in fitted) == 1
    assert "<img" in mistakes[-1].data["text/html"]
    assert figure[-1].data["image/png"]
    assert "test photos" not in audited[0].data["text/plain"]
    assert "'mistakes'" in short[-1].data["text/plain"]
    assert "False" in short[-1].data["text/plain"]
