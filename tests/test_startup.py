"""Start-up stays fast: each test runs a new process."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "polars", "PIL", "matplotlib", "sklearn", "rich"}


def list_loaded(code):
    """List the top-level modules that a new interpreter has loaded after running this code."""
    script = f"{code}\nimport json, sys; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_ikebana_loads_nothing_heavy():
    assert not list_loaded("import ikebana; dir(ikebana)") & HEAVY


def test_help_loads_neither_torch_nor_numpy():
    code = "from ikebana.cli import main\ntry: main(['fit', '--help'])\nexcept SystemExit: pass"
    assert not list_loaded(code) & {"torch", "numpy", "polars", "PIL"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "room",
    ["data.sources", "data.pixel_cache", "evaluation.metrics", "reports.run_figures", "runs.run", "serving.server"],
)
def test_data_auditing_reports_and_runs_do_not_import_torch(room):
    assert "torch" not in list_loaded(f"import ikebana.{room}")


def test_the_audit_page_does_not_import_matplotlib():
    assert "matplotlib" not in list_loaded("import ikebana.reports.audit_page, ikebana.reports.run_pictures")


@pytest.mark.slow
def test_every_public_name_exists_and_has_a_docstring():
    code = (
        "import ikebana\nfor name in ikebana.__all__: assert getattr(ikebana, name).__doc__ or name == 'RECIPES', name"
    )
    list_loaded(code)


def test_an_unknown_name_raises_attribute_error():
    code = "import ikebana; ikebana.frobnicate"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "has no attribute 'frobnicate'" in done.stderr


INTERRUPTED_WHILE_LOADING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "cyclopts":  # the first slow import of the command line
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from ikebana.__main__ import main
main()
"""


def test_ctrl_c_while_the_command_is_loading_exits_quietly():
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
