"""Calls from Python print nothing and leave the process as it was."""

import json
import logging
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from support import global_state
from support.images import draw_image, encode_image
from support.server import BrightestChannelClassifier, run_server
from support.training import have_same_weights

import ikebana
from ikebana.demo_data import paper_flowers
from ikebana.serving import connections, server
from ikebana.serving.background import BackgroundServer
from ikebana.serving.limits import Limits
from ikebana.system import progress

# Makes each call in turn, and writes {call: differences}. The state differs from the defaults where possible.
CALLS = """
import json, os, sys, warnings
from pathlib import Path

from support import global_state

global_state.import_libraries()

import numpy as np, torch
torch.manual_seed(7)
torch.set_num_threads(1)
torch.backends.cudnn.benchmark = True
warnings.simplefilter("always")

import ikebana

photos, place, recipe = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
options = json.loads(sys.argv[4])
calls = {
    "audit": lambda: ikebana.audit(photos, out=place / "audit"),
    "fit": lambda: ikebana.fit(photos, recipe, run=place / "run", **options),
    "export": lambda: ikebana.export(place / "run", place / "model.onnx"),
    "export int8": lambda: ikebana.export(place / "run", place / "int8.onnx", int8=True),
    "predict with a run": lambda: ikebana.predict(place / "run", photos),
    "predict": lambda: ikebana.predict(place / "model.onnx", photos, out=place / "predictions.csv"),
    "resume": lambda: ikebana.resume(place / "run"),
    "doctor": ikebana.doctor,
    "cache": lambda: ikebana.cache(clear=True),
}
differences = {}
for name, call in calls.items():
    before = global_state.take_snapshot()
    try:
        call()
    except ikebana.ModelError as error:
        assert name == "export int8", error  # a network this small may lose too much accuracy
    differences[name] = global_state.find_differences(before, global_state.take_snapshot())
(place / "differences.json").write_text(json.dumps(differences))
"""
BASELINE = {"image_size": 46, "batch_size": 16, "epochs": 1, "precision": "float32"}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "options"), [("baseline", BASELINE), ("quick", {})])
def test_calls_print_nothing_and_change_nothing_of_the_process(recipe, options, drawn, tmp_path, shared_cache):
    script = [sys.executable, "-c", CALLS, str(drawn(10)), str(tmp_path), recipe, json.dumps(options)]
    done = subprocess.run(script, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    differences = json.loads((tmp_path / "differences.json").read_text("utf-8"))
    assert len(differences) == 9
    assert not {name: lines for name, lines in differences.items() if lines}


# --- messages ---


@pytest.fixture
def photos(drawn):
    return drawn(10)


@pytest.fixture
def library_mode():
    """Undo afterwards what `ikebana.progress` sets within the test."""
    previous = progress.set_reporter(progress.LoggingReporter())
    yield
    progress.set_reporter(previous)


def test_messages_arrive_in_logging_and_nothing_is_printed(caplog, capsys):
    with caplog.at_level(logging.INFO, "ikebana"), progress.stage("paint", 3) as bar:
        bar.advance(3)
        progress.message("\n3 petals painted\x1b[2J")
        progress.warn("the paint is wet")
        progress.event("painted", petals=3)
    records = [(record.name, record.levelname, record.getMessage(), record.module) for record in caplog.records]
    assert records == [
        ("ikebana", "INFO", "3 petals painted\\x1b[2J", "test_quiet"),
        ("ikebana", "WARNING", "the paint is wet", "test_quiet"),
    ]
    assert capsys.readouterr() == ("", "")


def test_without_handlers_not_even_a_warning_is_printed():
    code = "from ikebana.system import progress; progress.warn('the paint is wet')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_program_that_configures_logging_sees_the_messages():
    code = "import logging; logging.basicConfig(level=logging.INFO); import ikebana; ikebana.cache(clear=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "INFO:ikebana:freed 0.0 MB\n")


@pytest.mark.usefixtures("library_mode")
def test_a_mode_applies_to_every_thread_and_a_block_to_its_own(capsys):
    ikebana.progress("bar")
    with progress.use_reporter(progress.SilentReporter()):
        thread = threading.Thread(target=progress.message, args=("from a thread",))
        thread.start()
        thread.join()
        progress.message("from the block")
    assert capsys.readouterr().err == "from a thread\n"
    ikebana.progress("json")
    progress.message("an event")
    assert json.loads(capsys.readouterr().out) == {"event": "message", "text": "an event"}
    ikebana.progress("off")
    progress.message("unheard")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("library_mode")
def test_an_audit_shows_bars_or_events_if_asked(photos, capsys, monkeypatch):
    from ikebana.data import sources

    unopened = sources.read(photos)
    ikebana.progress("bar")
    _read(unopened)
    assert "read photos: " in capsys.readouterr().err
    ikebana.progress("json")
    _read(unopened)
    assert {json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()} >= {"stage", "stage_end"}


def _read(dataset):
    from ikebana.commands import cache
    from ikebana.data.pixel_cache import open_pixel_cache

    cache.cache(clear=True)
    open_pixel_cache(dataset, 32, "squash")


@pytest.mark.parametrize("mode", ["bars", "", None, 1])
def test_a_mode_that_does_not_exist_is_refused_with_those_that_do(mode):
    with pytest.raises(ikebana.RecipeError, match="there is no progress mode") as error:
        ikebana.progress(mode)
    assert 'ikebana.progress("off")' in str(error.value)


def test_the_command_line_reports_on_the_terminal_and_not_in_the_log_too(capsys, caplog):
    from ikebana import cli

    with caplog.at_level(logging.INFO), pytest.raises(SystemExit):
        cli.main(["cache", "--clear"])
    out, err = capsys.readouterr()
    assert "safe to clear at any time" in out
    assert err == "freed 0.0 MB\n"
    assert not caplog.records
    progress.message("afterwards")
    assert capsys.readouterr() == ("", "")


def test_the_function_and_the_module_named_progress_are_distinct():
    code = "import ikebana.system.progress, ikebana.cli; ikebana.progress('off')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_is_that_of_the_package():
    from importlib import metadata

    assert ikebana.__version__ == metadata.version("ikebana")
    assert "__version__" in dir(ikebana)


# --- the state of the process ---


def test_blocks_restore_what_was_set_and_may_be_nested(monkeypatch):
    import threadpoolctl  # noqa: F401 -- sets a variable when it is imported, as does the next one
    import torch
    import torch._inductor.config  # imported by `use_deterministic_algorithms`

    from ikebana.learning import device, process_state

    monkeypatch.delenv(process_state.CUBLAS_VARIABLE, raising=False)
    monkeypatch.setattr(process_state.torch.backends.cudnn, "benchmark", True)
    before = global_state.take_snapshot()
    with process_state.preserve_process_state():
        device.configure(threads=before["threads"] + 1, device="cuda")
        assert torch.get_num_threads() == before["threads"] + 1
        with suppress(KeyboardInterrupt), process_state.preserve_process_state():
            torch.manual_seed(1)
            device.configure(threads=1)
            raise KeyboardInterrupt
        assert torch.get_num_threads() == before["threads"] + 1
        assert torch.are_deterministic_algorithms_enabled()
        assert process_state._allocator.keeps_large_blocks == process_state._has_glibc()
    assert not global_state.find_differences(before, global_state.take_snapshot())
    assert not process_state._allocator.keeps_large_blocks


def test_building_a_network_draws_nothing_from_the_programs_random_generator():
    import torch

    from ikebana.learning.models import networks
    from ikebana.recipes import get_recipe

    recipe = get_recipe("baseline", image_size=46)
    torch.manual_seed(3)
    first = networks.build_network(recipe, 2)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert have_same_weights(first, networks.build_network(recipe, 2))


def test_pillows_warnings_are_ignored_only_while_a_photo_is_decoded():
    import warnings

    from ikebana.data import decoding, pillow_output

    before = list(warnings.filters)
    with pillow_output.silence_pillow(), pillow_output.silence_pillow():
        assert warnings.filters.count(pillow_output.PILLOW_FILTER) == 1
    assert warnings.filters == before
    with pytest.raises(ikebana.UnreadablePhoto):
        decoding.decode(b"no photo", 32)
    assert warnings.filters == before


def test_heif_is_decoded_without_being_registered_with_pillow():
    pytest.importorskip("pillow_heif", reason="pillow_heif is not installed")
    code = """
import sys
from PIL import Image
from ikebana.data import decoding
assert decoding.decode(sys.stdin.buffer.read(), 32).width == 48
assert "HEIF" not in Image.OPEN and "HEIF" not in Image.SAVE
"""
    subprocess.run([sys.executable, "-c", code], input=encode_image(draw_image(), "HEIF"), check=True)


def test_onnxruntime_is_imported_without_a_trace_in_the_environment():
    code = """
import os
os.environ.pop("ORT_DISABLE_TELEMETRY", None)
from ikebana.inference.runtime import import_onnxruntime
import_onnxruntime()
assert "ORT_DISABLE_TELEMETRY" not in os.environ
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_server_leaves_the_loggers_and_signal_handlers_as_they_were():
    before = global_state.take_snapshot()
    with run_server() as served:
        assert served.post().status_code == 200
    assert not global_state.find_differences(before, global_state.take_snapshot())


def test_background_servers_restore_them_in_any_order():
    before = global_state.take_snapshot()
    servers = []
    for _ in range(3):
        classifier = BrightestChannelClassifier()
        classifier.gate.set()
        listener = connections.bind_socket("127.0.0.1", 0)
        servers.append(BackgroundServer(server.build(classifier, Limits()), Limits(), listener))
    for index in (0, 2, 1):
        assert httpx.get(f"{servers[index].url}/readyz").status_code == 200
        servers[index].stop()
    assert not global_state.find_differences(before, global_state.take_snapshot())


def test_training_uses_the_settings_of_its_plan_and_restores_those_of_the_caller(tmp_path, monkeypatch, ikebana_cache):
    """The settings of a surrounding call must not end with an inner call."""
    import torch

    from ikebana.learning import device
    from ikebana.learning.training.trainer import Trainer

    paper_flowers.draw_collection(tmp_path / "photos", photos_per_kind=6)
    real, threads = Trainer.step, []

    def step(*arguments):
        threads.append(torch.get_num_threads())
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(device, "_count_threads", lambda: (1, "one for this test"))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ikebana.fit(tmp_path / "photos", "baseline", run=tmp_path / "run", image_size=46, epochs=1, precision="float32")
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
