"""Shared fixtures: a separate cache, real photos, a trained run, a browser."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from support import images  # noqa: F401 -- registers HEIF with Pillow
from support.browser import CHROMIUM, serve_files
from support.stores import CREDENTIALS, serve_s3

# A shell that starts the tests in the background makes them ignore Ctrl-C, and their child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Parallel test workers with one thread per processor each would wait for one another at every step.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

REPOSITORY = Path(__file__).resolve().parents[1]

# A shared machine may delay any example. pytest's --durations shows slow tests.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

# Fixtures that train a network, start a browser or a server of S3, or read thousands of photos: all tests that use them are slow.
SLOW_FIXTURES = frozenset(("paper_run", "browser", "flowers", "s3"))


# Tests whose last digits depend on the processor.
NUMERICAL_MODULES = frozenset(
    f"test_{name}"
    for name in (
        "calibration", "depthwise", "feature_cache", "feature_rows", "fused_inference", "fused_training", "imbalance",
        "label_errors", "logistic_head", "optimisers", "pooling", "resize",
    )
)  # fmt: skip


def pytest_ignore_collect(collection_path, config):
    """Do not import modules whose tests are all slow: Keras, timm and torch.onnx take seconds."""
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    is_slow = re.search(r"^pytestmark = (\[\s*)?pytest\.mark\.slow", collection_path.read_text("utf-8"), re.MULTILINE)
    return True if is_slow else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that use a slow fixture and the numerical ones, before `-m` selects."""
    for item in items:
        if item.path.stem in NUMERICAL_MODULES:
            item.add_marker(pytest.mark.numerical)
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def ikebana_cache(tmp_path_factory, monkeypatch):
    """Give each test its own cache instead of that of the user."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IKEBANA_CACHE", str(place))
    return place


@pytest.fixture(autouse=True, scope="session")
def uncontended():
    """Ignore other processes, such as a second test worker, in speed measurements."""
    from ikebana.system.contention import WaitMeter

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaitMeter, "is_contended", False)
        yield


@pytest.fixture
def on_processor(monkeypatch):
    """Keep ikebana on the CPU within this test."""
    from ikebana.learning import device

    monkeypatch.setattr(device, "_select_device", lambda: ("cpu", "the tests want it"))


@pytest.fixture
def terminal() -> Iterator[None]:
    """Print messages and progress bars of Python calls, as the command line does."""
    from ikebana.system import progress

    with progress.use_reporter(progress.TerminalReporter()):
        yield


@pytest.fixture
def stages() -> Iterator[list[str]]:
    """Record the names of all stages that begin within the test, in order; print nothing."""
    from ikebana.system import progress

    begun: list[str] = []

    class Recorder(progress.SilentReporter):
        def open(self, name: str, total: int, unit: str) -> progress.Bar:
            begun.append(name)
            return super().open(name, total, unit)

    with progress.use_reporter(Recorder()):
        yield begun


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests of a module."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def fit_in_cache(cache, tmp_path_factory):
    """A function that trains a run with the module's cache, for fixtures of a module."""
    import ikebana

    def fit(photos, recipe=None, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("IKEBANA_CACHE", str(cache))
            return ikebana.fit(photos, recipe, run=tmp_path_factory.mktemp("runs") / "run", **options)

    return fit


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts an in-memory disk of a given size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*arguments):
        return subprocess.run(["mount", *arguments, str(place)], check=False, capture_output=True).returncode == 0

    if sys.platform != "linux" or os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=1g", "tmpfs"):
        pytest.skip("a small disk can only be mounted by root on Linux")
    yield place, lambda options: mount("-o", f"remount,{options}")
    subprocess.run(["umount", "-l", str(place)], check=False, capture_output=True)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Callable[[int], Path]:
    """A function that draws paper flowers, once per size, for tests that only read them."""
    from ikebana.demo_data import paper_flowers

    @functools.cache
    def draw_flowers(photos_per_kind: int) -> Path:
        folder = tmp_path_factory.mktemp("drawn") / "photos"
        paper_flowers.draw_collection(folder, photos_per_kind=photos_per_kind)
        return folder

    return draw_flowers


@pytest.fixture
def shared_cache(cache, monkeypatch, ikebana_cache):
    """Use the module's cache instead of one per test."""
    monkeypatch.setenv("IKEBANA_CACHE", str(cache))
    return cache


@pytest.fixture(scope="session")
def paper_run(tmp_path_factory):
    """A run of the tutorial's small network on 50 paper flowers."""
    import ikebana
    from ikebana.demo_data import paper_flowers

    place = tmp_path_factory.mktemp("paper")
    paper_flowers.draw_collection(place / "photos", photos_per_kind=10)
    choices = {"image_size": 48, "batch_size": 16, "epochs": 30, "precision": "float32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(place / "cache"))
        return ikebana.fit(place / "photos", "baseline", run=place / "run", **choices)


@pytest.fixture(scope="session")
def paper_photos(paper_run) -> Path:
    """The photos of `paper_run`, planted defects included."""
    return paper_run.folder.parent / "photos"


@pytest.fixture(scope="session")
def good_photos(paper_run, paper_photos) -> list[Path]:
    """The photos of `paper_run` that can be decoded."""
    return [paper_photos / path for path in paper_run.dataset.filter(status="used")["path"]]


@pytest.fixture(scope="session")
def paper_model(paper_run) -> Path:
    """The ONNX file exported from `paper_run`."""
    import ikebana

    file = paper_run.folder.parent / "paper.onnx"
    ikebana.export(paper_run, file)
    return file


@pytest.fixture(scope="session")
def paper_classifier(paper_model):
    """The classifier in `paper_model`."""
    from ikebana.inference.classifier import load

    return load(paper_model)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """A function that opens a page and detects errors in its scripts."""
    failed = []

    def open_page(url, **options):
        page = browser.new_page(**options)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(url)
        return page

    yield open_page
    assert not failed
    for context in browser.contexts:
        context.close()


@pytest.fixture(scope="module")
def folder(paper_run, paper_classifier, paper_model, tmp_path_factory):
    """The exported page of the paper flowers, with the threshold 0.5 for "not sure"."""
    from ikebana.commands import export
    from ikebana.evaluation.candidate_sets import CandidateRule

    place = tmp_path_factory.mktemp("web")

    def copy_model(run, file, **_):
        shutil.copy(paper_model, file)
        return dataclasses.replace(paper_classifier, threshold=0.5, candidate_rule=CandidateRule(0.9, 0.3, 0.6))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(place / "cache"))
        patch.setattr(export, "export", copy_model)  # tests/test_export.py tries the export itself
        export.export_web(paper_run, place / "flowers")
    return place / "flowers"


@pytest.fixture
def hosted(folder):
    """The address of `folder` on a file server."""
    from ikebana.exporting import web

    if json.loads((folder / "model.json").read_text("utf-8"))["runtime"]["place"] == web.RUNTIME_CDN_URL:
        pytest.skip("npm cannot give onnxruntime-web here")
    with serve_files(folder) as address:
        yield address


@pytest.fixture(scope="session")
def flowers() -> Path:
    """The 4,317 photos of Flowers Recognition, five class folders."""
    return _shared("data/flowers")


@pytest.fixture(scope="session")
def awkward() -> Path:
    """Real files that break image loaders."""
    return _shared("data/awkward")


def _shared(name: str) -> Path:
    place = Path(os.path.normpath(REPOSITORY / ".." / "shared" / name))
    if not place.exists():
        pytest.skip(f"{place} is not there: real photos are never part of the project")
    return place


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages and warnings of the test, in their order."""
    from ikebana.system import progress

    texts: list[str] = []

    class Recorder(progress.SilentReporter):
        def message(self, text):
            texts.append(text)

        warning = message

    with progress.use_reporter(Recorder()):
        yield texts


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of an S3 server, and its faults."""
    with serve_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The endpoint of an S3 server that ikebana finds by environment variables, and its faults."""
    from ikebana.data import stores

    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_server[0]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_filesystems", {})
    s3_server[1].reset()
    return s3_server


@pytest.fixture
def immediate_retries(monkeypatch):
    """Retry requests without a pause."""
    from ikebana.data import store_errors

    monkeypatch.setattr(store_errors, "RETRY_DELAYS_SECONDS", (0, 0, 0))
