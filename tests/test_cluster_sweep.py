"""A sweep on a Ray cluster trains the runs that a sweep on one machine trains."""

import json
import os
import re
import subprocess
import sys

import pytest

import ikebana
from ikebana.errors import UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from support.ray_cluster import RayCluster  # noqa: E402
from support.runs import write_run  # noqa: E402

from ikebana.cluster import training_tasks  # noqa: E402
from ikebana.cluster.sweep import sweep  # noqa: E402
from ikebana.commands.sweep import PlannedRun  # noqa: E402

pytestmark = pytest.mark.slow

SMALL_OPTIONS = {"image_size": 46, "batch_size": 16, "epochs": 1, "precision": "float32"}
FLAGS = ["--image-size", "46", "--batch-size", "16", "--epochs", "1", "--precision", "float32"]


def test_a_sweep_on_a_cluster_resumes_and_gives_the_scores_of_one_machine(paper_photos, tmp_path):
    cluster = RayCluster(tmp_path / "ray.log")
    command = [sys.executable, "-m", "ikebana", "sweep", paper_photos, "--recipes", "baseline", "--seeds", "2"]
    command += [*FLAGS, "--backend", "ray", "--out", "cluster"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    try:
        cluster.add_node("second")
        finished = []
        for _ in range(2):
            done = subprocess.run(
                list(map(str, command)),
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            # Run folders as a sweep on one machine prints them: as the user gave them.
            names = re.findall(r"^run \d of 2: .*  (\S+)$", done.stderr, re.MULTILINE)
            assert sorted(names) == [f"cluster/baseline-split0-seed{seed}" for seed in (0, 1)]
            assert done.stdout == "cluster\n"
            runs = (tmp_path / "cluster").glob("*/evaluation.json")
            finished.append(sorted(file.stat().st_mtime_ns for file in runs))
        assert len(finished[0]) == 2
        assert finished[0] == finished[1]
    finally:
        cluster.close()
    values = json.loads((tmp_path / "cluster" / "sweep.json").read_text("utf-8"))
    local = ikebana.sweep(paper_photos, ["baseline"], seeds=2, out=tmp_path / "local", **SMALL_OPTIONS)
    assert values["failures"] == {}
    assert values["accuracies"] == local.to_json()["accuracies"]


def test_the_time_of_a_run_is_that_of_its_node_without_the_wait_for_one(tmp_path, monkeypatch):
    run = write_run(tmp_path / "quick")
    monkeypatch.setattr(training_tasks.ray, "get", lambda reference: (None, 5.25))
    task = training_tasks.TrainingTask(PlannedRun("quick", run.recipe))
    ended = training_tasks._receive("reference", task, tmp_path)
    assert ended == (task.planned, run, 5.25)


@pytest.mark.parametrize("option", [{"watch": True}, {"log": ["mlflow"]}, {"minutes": 5}])
def test_options_that_need_runs_on_this_machine_are_refused(option):
    with pytest.raises(UsageError, match="needs runs on this machine"):
        sweep("photos", ["baseline"], **option)
