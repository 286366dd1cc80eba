"""An audit on a Ray cluster of two nodes is that of one machine, whatever happens to the nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

import ikebana
from ikebana.auditing import dataset_checks
from ikebana.data import pixel_cache, sources
from ikebana.data.dataset import STATUS_USED
from ikebana.data.locations import Location
from ikebana.errors import MachineError

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from support.images import encode_photo, write_files  # noqa: E402
from support.ray_cluster import RayCluster  # noqa: E402

from ikebana.cluster import jobs, node_checks, nodes  # noqa: E402
from ikebana.cluster.crash_search import STATUS_CRASHED  # noqa: E402

pytestmark = pytest.mark.slow

PHOTOS, PART_PHOTOS = 48, 4
IMAGE_SIZE, RESIZE = 32, "squash"
TIMEOUT_SECONDS = 240

# The command, in float32: which precision is faster would depend on the load.
AUDIT = f"""
import sys
from ikebana import recipes
from ikebana.commands import audit
audit.RECIPES = {{"quick": recipes.with_options(recipes.RECIPES["quick"], precision="float32")}}
if "ray" in sys.argv:
    from ikebana.cluster import cache_tasks
    cache_tasks.MIN_PART_PHOTOS = {PART_PHOTOS}
from ikebana.cli import main
main(["audit", *sys.argv[1:]])
"""

# Only its first step.
DECODE = f"""
import sys
from ikebana import recipes
from ikebana.cluster.connection import connect
from ikebana.data import sources
from ikebana.errors import IkebanaError
from ikebana.system import progress
dataset = sources.read(sys.argv[1])
recipe = recipes.with_options(recipes.RECIPES["baseline"], image_size={IMAGE_SIZE})
progress.set_reporter(progress.TerminalReporter())
try:
    with connect():
        from ikebana.cluster import cache_tasks
        cache_tasks.MIN_PART_PHOTOS = cache_tasks.MAX_PART_PHOTOS = {PART_PHOTOS}
        cache_tasks.ClusterCaches().decode(dataset, recipe)
except IkebanaError as error:
    sys.exit(str(error))
"""

# `tests/test_crash_search.py` tries the numbers of crashes; each starts a process.
FEW_CRASHES = """
from ikebana.cluster import crash_search
crash_search.MAX_CRASHES = crash_search.MAX_PHOTO_CRASHES = 1
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A file that lets tasks go on which read `hangs*.jpg`."""
    return tmp_path_factory.mktemp("release") / "release"


@pytest.fixture(scope="module")
def cluster(release, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("scratch")))
        patch.setenv("IKEBANA_TEST_RELEASE", str(release))
        cluster = RayCluster(tmp_path_factory.mktemp("cluster") / "ray.log")
    cluster.add_node("second")
    yield cluster
    cluster.close()


@pytest.fixture
def photos(tmp_path, release):
    """Photos of two classes, of which one cannot be used and one is not read before it is released."""
    release.unlink(missing_ok=True)
    files = {f"{'ab'[number % 2]}/{number:03}.jpg": encode_photo(number) for number in range(PHOTOS)}
    return write_files(tmp_path / "photos", files | {"b/007.jpg": b"no photo", "b/hangs.jpg": encode_photo(PHOTOS)})


def start(script, *arguments, cluster=None):
    address = {} if cluster is None else {"RAY_ADDRESS": cluster if isinstance(cluster, str) else cluster.address}
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def finish(process, status=0):
    """Wait for a script; return what it wrote to standard error."""
    output, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == status, errors
    assert (output, "Traceback" in errors, "(raylet)" in errors) == ("", False, False)
    return errors


def wait_for_parts(process, cache, count):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(describe_parts(cache)) < count:
        assert process.poll() is None, f"the command has ended: {process.communicate()}"
        assert time.monotonic() < deadline, "no parts"
        time.sleep(0.02)


def describe_parts(cache):
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in cache.glob("pixels/*.parts/index/part-*")}


def read_files(cache):
    """Read the files of all caches but those of speeds."""
    files = {file.relative_to(cache): file for kind in ("pixels", "features") for file in (cache / kind).rglob("*")}
    return {name: file.read_bytes() for name, file in files.items() if file.is_file()}


def decode_here(folder, cache):
    """Decode photos in this process, into another cache; return its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        pixel_cache.open_pixel_cache(sources.read(folder), IMAGE_SIZE, RESIZE)
    return read_files(cache)


# --- the same result ---


def test_the_findings_and_caches_are_those_of_one_machine(cluster, drawn, tmp_path, monkeypatch, ikebana_cache):
    photos = tmp_path / "photos"
    shutil.copytree(drawn(12), photos)
    original = min(photos.glob("*/*.jpg"))
    ImageOps.mirror(Image.open(original)).save(original.with_name("mirrored.jpg"), quality=90)
    errors = finish(start(AUDIT, photos, "--out", tmp_path / "cluster", "--backend", "ray", cluster=cluster))
    for stage in ("read photos", "find duplicates", "extract features"):
        assert stage in errors
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    finish(start(AUDIT, photos, "--out", tmp_path / "here"))
    audits = [json.loads((tmp_path / name / "audit.json").read_text("utf-8")) for name in ("cluster", "here")]
    assert {"near_duplicate", "suspect_label"} <= {finding["kind"] for finding in audits[0]["findings"]}
    assert audits[0] == audits[1]
    assert read_files(ikebana_cache) == read_files(tmp_path / "cache")


# --- interruptions ---


def test_a_node_killed_while_it_decodes_costs_no_photo(cluster, photos, tmp_path, ikebana_cache, release):
    process = start(DECODE, photos, cluster=cluster)
    wait_for_parts(process, ikebana_cache, 3)
    cluster.kill_node("second")
    try:
        release.touch()
        finish(process)
    finally:
        cluster.add_node("second")
    assert read_files(ikebana_cache) == decode_here(photos, tmp_path / "cache")


def test_a_killed_driver_that_is_repeated_decodes_only_the_rest(cluster, photos, tmp_path, ikebana_cache, release):
    process = start(DECODE, photos, cluster=cluster)
    # All but the one that is not released.
    wait_for_parts(process, ikebana_cache, PHOTOS // PART_PHOTOS - 1)
    process.kill()
    process.communicate(timeout=TIMEOUT_SECONDS)
    before = describe_parts(ikebana_cache)
    process = start(DECODE, photos, cluster=cluster)
    time.sleep(1)
    assert before.items() <= describe_parts(ikebana_cache).items()
    release.touch()
    assert "parts were computed earlier" in finish(process)
    assert read_files(ikebana_cache) == decode_here(photos, tmp_path / "cache")


def test_an_interrupted_audit_says_that_nothing_was_lost(cluster, photos, ikebana_cache):
    process = start(AUDIT, photos, "--backend", "ray", cluster=cluster)
    wait_for_parts(process, ikebana_cache, 3)
    process.send_signal(signal.SIGINT)
    assert "interrupted; nothing was lost" in finish(process, status=130)
    assert len(describe_parts(ikebana_cache)) >= 3


def test_two_drivers_leave_one_cache(cluster, photos, tmp_path, ikebana_cache, release):
    release.touch()
    processes = [start(DECODE, photos, cluster=cluster) for _ in range(2)]
    for process in processes:
        finish(process)
    assert read_files(ikebana_cache) == decode_here(photos, tmp_path / "cache")


# --- photos and nodes that fail ---


def test_a_photo_that_kills_its_decoder_is_set_aside_and_the_rest_is_as_usual(cluster, photos, tmp_path, release):
    release.touch()
    dataset, cache = pixel_cache.open_pixel_cache(sources.read(photos), IMAGE_SIZE, RESIZE)
    path = "a/020.jpg"
    row = dataset.photos["path"].to_list().index(path)
    # It sorts where the other was.
    (photos / path).rename(photos / "a" / "kills.jpg")
    finish(start(FEW_CRASHES + DECODE, photos, cluster=cluster))
    after, rebuilt = pixel_cache.open_pixel_cache(sources.read(photos), IMAGE_SIZE, RESIZE)
    (crashed,) = after.photos.filter(path="a/kills.jpg").rows(named=True)
    assert (crashed["status"], crashed["sha256"]) == (STATUS_CRASHED, None)
    usual = [number for number in range(dataset.photos.height) if number != row]
    others = after.photos["path"].to_list()
    others.remove("a/kills.jpg")
    assert others == dataset.photos["path"][usual].to_list()
    rows = [after.photos["path"].to_list().index(other) for other in others]
    assert after.photos["status"][rows].to_list() == dataset.photos["status"][usual].to_list()
    is_used = (dataset.photos["status"][usual] == STATUS_USED).to_numpy()
    assert np.array_equal(rebuilt.pixels[np.array(rows)[is_used]], cache.pixels[np.array(usual)[is_used]])
    findings = dataset_checks.check_dataset(sources.assign_classes(after, ()))
    assert ("a/kills.jpg", STATUS_CRASHED) in [
        (finding.paths[0], finding.evidence) for finding in findings if finding.kind == "unreadable"
    ]


def test_a_node_with_another_version_is_refused_by_name(cluster, photos, ikebana_cache):
    cluster.add_node("third", IKEBANA_TEST_VERSION="9.9.9")
    try:
        errors = finish(start(DECODE, photos, cluster=cluster), status=1)
    finally:
        cluster.kill_node("third")
    assert "node third" in errors
    assert f"ikebana 9.9.9 instead of {ikebana.__version__}" in errors
    assert "IKEBANA_CACHE=DIR on a disk that all nodes share" in errors
    assert "node first" not in errors
    assert not list(ikebana_cache.rglob("*.parts"))


def test_a_node_without_the_photos_or_the_cache_reports_both(tmp_path):
    location = Location(str(tmp_path / "missing.jpg"))
    problems = node_checks.inspect_node(
        {**jobs.describe_all_versions(), "pillow": "1.0"},
        (location.address, *(getattr(location, name) for name in ("offset", "length", "row", "size", "stamp"))),
        str(tmp_path / "cache" / "mark"),
    )
    assert [any(word in problem for problem in problems) for word in ("pillow", "missing.jpg", "cache is not")] == [
        True
    ] * 3
    assert len(problems) == 3


def test_a_marked_folder_that_can_be_written_has_no_problems(tmp_path):
    with node_checks.mark_folder(tmp_path / "new") as mark:
        assert node_checks.inspect_folder(mark) == []
    assert node_checks.inspect_folder(mark)
    assert list((tmp_path / "new").iterdir()) == []


def test_after_an_error_a_marked_folder_is_removed_if_it_is_new_and_empty(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    for folder in (old, tmp_path / "new"):
        with pytest.raises(MachineError), node_checks.mark_folder(folder):
            raise MachineError("a node differs")
    assert list(tmp_path.iterdir()) == [old]


def test_without_a_cluster_the_command_says_how_to_start_one(photos, ikebana_cache):
    errors = finish(start(AUDIT, photos, "--backend", "ray", cluster="127.0.0.1:9"), status=1)
    assert "no Ray cluster found" in errors
    assert "ray start --head" in errors
    assert not list(ikebana_cache.iterdir())


@pytest.mark.parametrize(
    ("sizes", "cpus"), [([8, 8, 8], 8), ([2, 64, 64], 64), ([4, 8], 4), ([3, 5], 3), ([1, 1], 1), ([16], 16)]
)
def test_large_tasks_use_whole_nodes_unless_many_cpus_would_be_idle(monkeypatch, sizes, cpus):
    listed = [nodes.Node(str(number), str(number), size) for number, size in enumerate(sizes)]
    monkeypatch.setattr(nodes, "list_nodes", lambda: listed)
    assert nodes.choose_cpus() == cpus
