"""What must stay quick and light: each question is asked of a fresh process."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "polars", "PIL", "matplotlib", "sklearn", "rich"}


def loaded_by(code):
    """The top-level modules that a fresh interpreter has loaded after running this code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_ikebana_loads_nothing_heavy():
    assert not loaded_by("import ikebana; dir(ikebana)") & HEAVY


def test_asking_for_help_loads_neither_torch_nor_numpy():
    code = "from ikebana.cli import main\ntry: main(['fit', '--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code) & {"torch", "numpy", "polars", "PIL"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "room",
    ["data.sources", "data.pixel_cache", "evaluation.metrics", "reports.run_figures", "runs.run", "serving.server"],
)
def test_photos_trust_report_and_runs_do_without_torch(room):
    assert "torch" not in loaded_by(f"import ikebana.{room}")


def test_the_page_of_an_audit_needs_no_matplotlib():
    assert "matplotlib" not in loaded_by("import ikebana.reports.audit_page, ikebana.reports.run_pictures")


@pytest.mark.slow
def test_every_public_name_is_there_and_explains_itself():
    code = (
        "import ikebana\nfor name in ikebana.__all__: assert getattr(ikebana, name).__doc__ or name == 'RECIPES', name"
    )
    loaded_by(code)


def test_a_name_that_does_not_exist_is_refused_as_python_does():
    code = "import ikebana; ikebana.frobnicate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'frobnicate'" in done.stderr


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "cyclopts":  # the first thing that the command line loads, and takes its time for
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from ikebana.__main__ import main
main()
"""


def test_ctrl_c_is_a_quiet_end_even_while_the_command_is_loading():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
