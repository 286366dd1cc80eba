"""Predictions on a Ray cluster of two nodes are those of one process, whatever happens to the nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import ikebana

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from support.ray_cluster import RayCluster  # noqa: E402

pytestmark = pytest.mark.slow

# The rounding of probabilities, and the difference between numbers of threads.
TOLERANCE = 2e-6
PHOTOS, SHARD_PHOTOS = 160, 8
TIMEOUT_SECONDS = 240


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = RayCluster(tmp_path_factory.mktemp("cluster") / "ray.log")
    cluster.add_node("second")
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def photos(good_photos, tmp_path_factory):
    """Many photos, of which two cannot be used."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    folder.mkdir()
    for number in range(PHOTOS):
        os.link(good_photos[number % len(good_photos)], folder / f"{number:03}.jpg")
    for name, content in (("007.jpg", b"no photo"), ("013.jpg", b"")):
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def one_table(paper_model, photos, tmp_path_factory):
    file = tmp_path_factory.mktemp("one") / "one.parquet"
    ikebana.predict(paper_model, photos, file)
    return pl.read_parquet(file)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "shards"


def start_predict(cluster, model, photos, out, *flags):
    arguments = [model, photos, "--out", f"{out}/", "--backend", "ray", *flags]
    command = [sys.executable, "-m", "ikebana", "predict", *map(str, arguments)]
    environment = {**os.environ, "RAY_ADDRESS": cluster if isinstance(cluster, str) else cluster.address}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


def finish(process, status=0):
    """Wait for the command; return what it wrote to standard error."""
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    # Ray and its workers print nothing.
    assert output == ("" if status else f"{process.args[process.args.index('--out') + 1]}\n")
    assert "(raylet)" not in errors
    return errors


def run_script(cluster, script, argument):
    """Run Python code in a process that finds the cluster."""
    return subprocess.run(
        [sys.executable, "-c", script, argument],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_SECONDS,
    )


def wait_for_shards(process, out, count):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(list(out.glob("part-*"))) < count:
        assert process.poll() is None, f"the command has ended: {process.communicate()}"
        assert time.monotonic() < deadline, "no shards"
        time.sleep(0.02)


def read_shards(out):
    assert json.loads((out / "_SUCCESS.json").read_text("utf-8"))["shards"] == len(list(out.glob("part-*")))
    return pl.read_parquet(sorted(out.glob("part-*.parquet")))


def assert_same_rows(table, expected):
    assert_frame_equal(table, expected, check_exact=False, abs_tol=TOLERANCE, rel_tol=0)


def describe_shards(out):
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in out.glob("part-*.parquet")}


# --- the same rows ---


def test_the_cluster_gives_the_rows_of_one_process_in_order(cluster, paper_model, photos, out, one_table):
    process = start_predict(cluster, paper_model, photos, out, "--shard-photos", SHARD_PHOTOS)
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert (process.returncode, output) == (0, f"{out}/\n")
    assert_same_rows(read_shards(out), one_table)
    assert f"{PHOTOS}/{PHOTOS} photos" in errors
    # Only ikebana's own lines: Ray and its workers print nothing.
    lines = [line for line in errors.splitlines() if "ray" in line.lower() or "pid=" in line]
    assert lines == [f"Ray cluster {cluster.address}: 2 nodes, 2 CPUs"]


def test_a_node_killed_at_a_third_costs_no_row(cluster, paper_model, photos, out, one_table):
    process = start_predict(cluster, paper_model, photos, out, "--shard-photos", SHARD_PHOTOS)
    wait_for_shards(process, out, PHOTOS // SHARD_PHOTOS // 3)
    cluster.kill_node("second")
    try:
        finish(process)
    finally:
        cluster.add_node("second")
    assert_same_rows(read_shards(out), one_table)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_and_repeated_predicts_only_the_rest(
    cluster, paper_model, photos, out, one_table, number
):
    process = start_predict(cluster, paper_model, photos, out, "--shard-photos", SHARD_PHOTOS)
    wait_for_shards(process, out, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number], errors
    if number != signal.SIGKILL:
        assert "interrupted; nothing was lost" in errors
        assert "Traceback" not in errors
    before = describe_shards(out)
    assert not (out / "_SUCCESS.json").exists()
    finish(start_predict(cluster, paper_model, photos, out))
    assert before.items() <= describe_shards(out).items()
    assert_same_rows(read_shards(out), one_table)


def test_two_drivers_on_one_folder_give_one_result(cluster, paper_model, photos, out, one_table):
    processes = [start_predict(cluster, paper_model, photos, out, "--shard-photos", SHARD_PHOTOS * 2) for _ in range(2)]
    for process in processes:
        finish(process)
    assert_same_rows(read_shards(out), one_table)


# --- photos and nodes that fail ---


def test_a_photo_that_kills_its_process_has_a_row_with_a_status(cluster, paper_model, good_photos, tmp_path, out):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        shutil.copy(good_photos[number], folder / f"{number}.jpg")
    ikebana.predict(paper_model, folder, tmp_path / "one.parquet")
    expected = pl.read_parquet(tmp_path / "one.parquet")
    (folder / "4.jpg").rename(folder / "kills.jpg")
    finish(start_predict(cluster, paper_model, folder, out, "--shard-photos", 6))
    table = read_shards(out)
    assert table["path"].to_list() == [f"{folder}/{name}.jpg" for name in (0, 1, 2, 3, 5, "kills")]
    assert table["status"][-1] == "the process crashed while decoding this photo"
    assert table["label"][-1] is None
    intact = ~pl.col("path").str.ends_with("4.jpg")
    assert_same_rows(table[:-1], expected.filter(intact))


def test_a_shard_that_exists_is_done_although_its_task_never_ends(cluster, paper_model, good_photos, tmp_path, out):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("0", "hangs"):
        shutil.copy(good_photos[0], folder / f"{name}.jpg")
    plan = ikebana.plan_shards(paper_model, folder, out, shard_photos=1)
    process = start_predict(cluster, paper_model, folder, out)
    wait_for_shards(process, out, 1)
    # As a node does that was cut off from Ray, but not from the files.
    ikebana.predict_shard(plan, 1)
    finish(process)
    assert read_shards(out)["status"].to_list() == ["ok", "ok"]


def test_a_full_disk_is_an_error_and_the_command_can_be_repeated(cluster, paper_model, photos, small_disk, one_table):
    place, remount = small_disk
    out = place / "shards"
    ikebana.plan_shards(paper_model, photos, out, shard_photos=SHARD_PHOTOS)
    (place / "filler").write_bytes(bytes(2**20))
    assert remount(f"size={2**20 + 4096 * 24}")
    assert "the disk is full" in finish(start_predict(cluster, paper_model, photos, out), status=1)
    assert remount("size=1g")
    finish(start_predict(cluster, paper_model, photos, out))
    assert_same_rows(read_shards(out), one_table)


# --- refusals ---


def test_a_node_with_another_version_is_refused_by_name(cluster, paper_model, photos, out):
    cluster.add_node("third", IKEBANA_TEST_VERSION="9.9.9")
    try:
        errors = finish(start_predict(cluster, paper_model, photos, out), status=1)
    finally:
        cluster.kill_node("third")
    assert "node third" in errors
    assert f"ikebana 9.9.9 instead of {ikebana.__version__}" in errors
    assert "node first" not in errors
    assert not list(out.glob("part-*"))


def test_without_a_cluster_the_command_says_how_to_start_one(paper_model, photos, out):
    errors = finish(start_predict("127.0.0.1:9", paper_model, photos, out), status=1)
    assert "no Ray cluster found" in errors
    assert "RAY_ADDRESS=127.0.0.1:9" in errors
    assert "ray start --head" in errors
    assert not out.exists()
    assert "Ray Client" in finish(start_predict("ray://127.0.0.1:9", paper_model, photos, out), status=2)


def test_a_run_is_refused_because_it_cannot_be_sent(paper_run, photos, out):
    errors = finish(start_predict("127.0.0.1:9", paper_run.folder, photos, out), status=1)
    assert "ikebana export" in errors


def test_a_table_is_refused(paper_model, photos, tmp_path):
    command = [sys.executable, "-m", "ikebana", "predict", paper_model, photos, "--backend", "ray", "--out"]
    process = subprocess.run(
        [*command, tmp_path / "one.csv"], capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
    )
    assert process.returncode == 2
    assert "--backend needs a folder for shards" in process.stderr


def test_a_share_is_refused_because_the_cluster_divides_the_shards(paper_model, photos, out):
    errors = finish(start_predict("127.0.0.1:9", paper_model, photos, out, "--shard", "1/2"), status=2)
    assert "--backend ray without --shard" in errors


CHECK_NODES = """
import sys

from ikebana.cluster import nodes
from ikebana.cluster.connection import connect

with connect():
    listed = nodes.list_nodes()
    print("listed", flush=True)
    sys.stdin.readline()
    current = nodes.list_nodes()
    # Ray lists a dead node as alive for some seconds.
    both = list({node.node_id: node for node in (*listed, *current)}.values())
    nodes.list_nodes = lambda: both
    print(sum(node.name.startswith("fourth") for node in nodes.list_nodes()))
    nodes.check_nodes(lambda: [])
"""


def test_a_node_that_left_and_returned_is_not_refused(cluster):
    cluster.add_node("fourth")
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", CHECK_NODES],
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "listed\n"
    finally:
        cluster.kill_node("fourth")
    cluster.add_node("fourth")
    try:
        output, errors = process.communicate("\n", timeout=TIMEOUT_SECONDS)
    finally:
        cluster.kill_node("fourth")
    assert (process.returncode, output) == (0, "2\n"), errors


# Shards of a file each, in the folder of the first argument; a script adds `compute`.
FILE_JOB = """
import itertools
import sys
import time
from pathlib import Path

from ikebana.cluster import shard_driver
from ikebana.cluster.connection import connect


class FileJob:
    resources, try_photos, crash_advice, noun = {"num_cpus": 1}, None, "", "shard"

    def __init__(self, compute):
        self.compute = compute

    def get_arguments(self, number):
        return sys.argv[1], number

    def count_photos(self, number):
        return 1

    def is_done(self, number):
        return (Path(sys.argv[1]) / f"done-{number}").exists()

    def get_place(self, number):
        return sys.argv[1]
"""

LOSE_NODE = """
def compute(place, number, _):
    started = Path(place) / f"started-{number}"
    if number == 0 and not started.exists():
        started.touch()
        time.sleep(3600)
    (Path(place) / f"done-{number}").touch()


with connect():
    known, calls = shard_driver.list_nodes(), itertools.count()
    lost = known[0]._replace(node_id="lost")
    shard_driver.list_nodes = lambda: known if next(calls) else [*known, lost]
    shard_driver.WATCH_SECONDS, shard_driver.MIN_SLOW_SECONDS = 1.0, 3600.0
    done = []
    shard_driver.run_shards(FileJob(compute), range(6), done.append)
    print(len(done))
"""


SLOW_SHARDS = """
def compute(place, number, _):
    (Path(place) / f"started-{number}-{time.monotonic_ns()}").touch()
    time.sleep(4)
    (Path(place) / f"done-{number}").touch()


with connect():
    # A node of an earlier test may leave meanwhile, and its tasks would be repeated.
    nodes = shard_driver.list_nodes()
    shard_driver.list_nodes = lambda: nodes
    shard_driver.WATCH_SECONDS, shard_driver.MIN_SLOW_SECONDS = 0.2, 0.5
    shard_driver.run_shards(FileJob(compute), range(2), lambda _: None)
    print(len(list(Path(sys.argv[1]).glob("started-*"))))
"""


def test_no_shard_is_computed_twice_because_all_are_slow(cluster, tmp_path):
    process = run_script(cluster, FILE_JOB + SLOW_SHARDS, tmp_path)
    assert (process.returncode, process.stdout) == (0, "2\n"), process.stderr
    assert "takes long" not in process.stderr


def test_a_task_that_never_ends_is_repeated_once_a_node_has_left(cluster, tmp_path):
    process = run_script(cluster, FILE_JOB + LOSE_NODE, tmp_path)
    assert (process.returncode, process.stdout) == (0, "6\n"), process.stderr


# --- from Python ---

CONNECT = """
import sys
sys.path.insert(0, sys.argv[1])
from support import global_state

import ray

from ikebana.cluster.connection import connect

before = global_state.describe_python()
with connect():
    assert ray.is_initialized()
    inside = global_state.find_differences(before, global_state.describe_python())
assert not ray.is_initialized()
print([*inside, *global_state.find_differences(before, global_state.describe_python())])
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
with connect():
    assert ray.is_initialized()
assert ray.is_initialized()
"""


def test_a_connection_changes_nothing_of_the_process_and_leaves_the_callers_open(cluster):
    process = run_script(cluster, CONNECT, Path(__file__).parent)
    assert (process.returncode, process.stdout) == (0, "[]\n"), process.stderr
