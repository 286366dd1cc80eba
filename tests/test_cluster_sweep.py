"""A sweep on a Ray cluster trains the runs that a sweep on one machine trains."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.stores import pack_samples, put_files, read_files

import ikebana
from ikebana import recipes
from ikebana.data import sources
from ikebana.errors import UsageError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from ray.exceptions import NodeDiedError, WorkerCrashedError  # noqa: E402
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


def test_a_run_whose_node_is_lost_waits_before_it_continues_and_ends_after_three_attempts(tmp_path, monkeypatch):
    crashes = [NodeDiedError("the node is gone"), WorkerCrashedError(), NodeDiedError("the node is gone")]

    def fail(reference):
        raise crashes[reference]

    monkeypatch.setattr(training_tasks.ray, "get", fail)
    task = training_tasks.TrainingTask(PlannedRun("quick", recipes.get_recipe("quick")))
    started = time.monotonic()
    assert training_tasks._receive(0, task, tmp_path) is None
    # Processes of a node that was only cut off may still write.
    assert task.not_before >= started + training_tasks.CUT_OFF_SECONDS
    assert training_tasks._receive(1, task, tmp_path) is None
    ended = training_tasks._receive(2, task, tmp_path)
    assert ended is not None
    assert str(ended.outcome).startswith("the process of this run ended 3 times")


@pytest.mark.parametrize("source", ["s3://garden", "shards/photos-*.tar", "folder", Path("folder")])
def test_nodes_get_the_photos_of_the_driver_wherever_they_are(source, s3, paper_photos, tmp_path, monkeypatch):
    (tmp_path / "folder").symlink_to(paper_photos)
    photos = read_files(paper_photos)
    put_files(s3[0], "garden", photos)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "photos-0.tar").write_bytes(pack_samples(photos))
    monkeypatch.chdir(tmp_path)
    driver, received = sources.read(source), []

    def check_nodes(inspect, *arguments):
        # The working directory of a node is another one.
        monkeypatch.chdir("/")
        assert arguments[1] is not None
        assert inspect(*arguments) == []

    def run_tasks(photos, *_):
        received.append(sources.read(photos))
        yield from ()

    monkeypatch.setattr(training_tasks, "check_nodes", check_nodes)
    monkeypatch.setattr(training_tasks, "_run_tasks", run_tasks)
    planned = PlannedRun("quick", recipes.get_recipe("quick"))
    assert list(training_tasks.train_runs(source, [planned], tmp_path / "sweep", "cpu")) == []
    assert len(driver.photos) == len(photos)
    assert received[0].photos["label"].to_list() == driver.photos["label"].to_list()


@pytest.mark.parametrize("option", [{"watch": True}, {"log": ["mlflow"]}, {"minutes": 5}])
def test_options_that_need_runs_on_this_machine_are_refused(option):
    with pytest.raises(UsageError, match="needs runs on this machine"):
        sweep("photos", ["baseline"], **option)
