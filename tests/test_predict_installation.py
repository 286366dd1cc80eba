"""The small installation for prediction: an empty environment with requirements-predict.lock."""

import os
import re
import subprocess
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import ikebana

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements-predict.lock"
# Megabytes; 431 were measured, and PyTorch alone takes more.
MAX_INSTALLED_MEGABYTES = 500
NO_REGISTRY = re.compile(r"No matching distribution|Could not find a version|connection|timed out", re.IGNORECASE)


def test_the_small_installation_is_part_of_the_complete_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert set(project["dependency-groups"]["predict"]) <= set(project["project"]["dependencies"])
    pins = set((ROOT / "requirements.lock").read_text("utf-8").split("\n"))
    assert set(LOCK.read_text("utf-8").split("\n")) <= pins


@dataclass(frozen=True)
class Environment:
    """A virtual environment, whose programs see nothing of this one."""

    folder: Path

    def run(self, program, *arguments, **options):
        command = [self.folder / ("Scripts" if os.name == "nt" else "bin") / program, *map(str, arguments)]
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, **options)


@pytest.fixture(scope="module")
def small_installation(tmp_path_factory):
    """An environment as docs/many-photos.md installs it."""
    environment = Environment(tmp_path_factory.mktemp("small") / "environment")
    venv.create(environment.folder, with_pip=True)
    for arguments in (("-r", LOCK), ("--no-deps", ROOT)):
        installed = environment.run("python", "-m", "pip", "install", *arguments)
        if installed.returncode and NO_REGISTRY.search(installed.stderr):
            pytest.skip("there is no package registry here")
        assert not installed.returncode, installed.stderr
    return environment


@pytest.mark.slow
def test_predict_writes_the_same_shards_and_tables(small_installation, paper_model, good_photos, tmp_path):
    photos, out, table = good_photos[0].parent, tmp_path / "shards", tmp_path / "joined.parquet"
    for arguments in (("--shard", "1/2", "--shard-photos", "4"), ("--join", table)):
        done = small_installation.run("ikebana", "predict", paper_model, photos, "--out", f"{out}/", *arguments)
        assert done.returncode == 0, done.stderr
    ikebana.predict(paper_model, photos, tmp_path / "one.parquet")
    assert_frame_equal(pl.read_parquet(table), pl.read_parquet(tmp_path / "one.parquet"), abs_tol=2e-6, rel_tol=0)


@pytest.mark.slow
def test_a_server_answers(small_installation, paper_model, good_photos):
    code = (
        "import sys, json, urllib.request, ikebana\n"
        "server = ikebana.serve(sys.argv[1], port=0, background=True)\n"
        "request = urllib.request.Request(f'{server.url}/predict', open(sys.argv[2], 'rb').read(), "
        "{'Content-Type': 'image/jpeg'})\n"
        "print(json.load(urllib.request.urlopen(request))['predictions'][0]['label'])\n"
        "server.stop()\n"
    )
    done = small_installation.run("python", "-c", code, paper_model, good_photos[0])
    assert done.stdout == f"{ikebana.load(paper_model).predict(good_photos[0]).label}\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["fit", "audit", "export", "predict", "doctor"])
def test_a_command_that_needs_more_says_how_to_get_it(small_installation, verb, paper_run, paper_photos, tmp_path):
    arguments = {
        "fit": [paper_photos],
        "audit": [paper_photos],
        "export": [paper_run.folder, "x.onnx"],
        "predict": [paper_run.folder, paper_photos],
        "doctor": [],
    }[verb]
    refused = small_installation.run("ikebana", verb, *arguments, cwd=tmp_path)
    assert refused.returncode == 1
    assert re.search(r"this needs \w+, which is not installed", refused.stderr), refused.stderr
    assert "pip install" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_the_installation_is_small(small_installation):
    files = [file for file in small_installation.folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < MAX_INSTALLED_MEGABYTES * 10**6
    assert not list(small_installation.folder.rglob("torch"))
