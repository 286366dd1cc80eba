"""`ikebana fit` in several processes: one run, one output, and errors that end all."""

import contextlib
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from support.images import encode_photo

import ikebana
from ikebana.commands import fit as fit_command
from ikebana.errors import RecipeError, UsageError
from ikebana.learning import device
from ikebana.learning.features import feature_cache
from ikebana.system.launch import Launch, read_launch

OPTIONS = {"image_size": 48, "batch_size": 7, "epochs": 2, "precision": "float32"}
FLAGS = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
# Does something in the first steps of the process of rank 1, then goes on as the command does.
SPOILED = """
import os, signal, sys
from ikebana import cli
from ikebana.learning.training.trainer import Trainer
real, steps = Trainer.step, []
def step(*arguments):
    steps.append(1)
    if len(steps) == 3:
        {action}
    return real(*arguments)
if os.environ["RANK"] == "1":
    Trainer.step = step
cli.main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def run_alone(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", **OPTIONS)


def run_processes(*commands, code="import sys; from ikebana import cli; cli.main(sys.argv[1:])"):
    """Run the command line in several processes, as a launcher starts them.

    Args:
        commands: the arguments of each process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank, arguments in enumerate(commands):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": len(commands), "LOCAL_WORLD_SIZE": len(commands)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        started.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    with contextlib.ExitStack() as stack:
        for process in started:
            stack.callback(process.kill)
        outputs = [process.communicate(timeout=240) for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def assert_same_losses(run, other):
    """Compare the losses; RMSprop enlarges the last digits of weights in float32."""
    for name in ("train_loss", "val_loss"):
        assert run.history[name].to_list() == pytest.approx(other.history[name].to_list(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_two_processes_write_one_run_with_the_result_of_one(photos, run_alone, tmp_path):
    arguments = ["fit", photos, "--recipe", "baseline", *FLAGS, "--run", tmp_path / "run"]
    leader, worker = run_processes(arguments, arguments)
    assert (leader.returncode, worker.returncode) == (0, 0), leader.stderr + worker.stderr
    assert leader.stdout == f"{tmp_path / 'run'}\n"
    assert (worker.stdout, worker.stderr) == ("", "")
    assert "training is shared by 2 processes" in leader.stderr
    assert_same_losses(ikebana.open_run(tmp_path / "run"), run_alone)
    names = {path.name for path in run_alone.folder.iterdir()}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    environment = json.loads((tmp_path / "run" / "environment.json").read_text("utf-8"))
    assert environment["processes"] == 2


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_signal_to_one_process_ends_all_after_the_same_step_and_one_process_resumes(photos, run_alone, tmp_path):
    arguments = ["fit", photos, "--recipe", "baseline", *FLAGS, "--run", tmp_path / "run"]
    code = SPOILED.format(action="os.kill(os.getpid(), signal.SIGTERM)")
    leader, worker = run_processes(arguments, arguments, code=code)
    assert (leader.returncode, worker.returncode) == (143, 143), leader.stderr + worker.stderr
    assert "interrupted; nothing was lost. Resume with" in leader.stderr
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert saved["epoch_progress.photos_seen"] == 3 * OPTIONS["batch_size"]
    assert_same_losses(ikebana.resume(tmp_path / "run"), run_alone)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_killed_process_ends_the_others_with_an_error(photos, run_alone, tmp_path):
    arguments = ["fit", photos, "--recipe", "baseline", *FLAGS, "--run", tmp_path / "run"]
    code = SPOILED.format(action="os.kill(os.getpid(), signal.SIGKILL)")
    leader, worker = run_processes(arguments, arguments, code=code)
    assert (leader.returncode, worker.returncode) == (1, -9), leader.stderr
    assert "another process of this training has ended" in leader.stderr
    assert "Resume with" in leader.stderr
    assert "Traceback" not in leader.stderr
    resumed = run_processes(*2 * [["fit", "--resume", tmp_path / "run"]])
    assert [process.returncode for process in resumed] == [0, 0], resumed[0].stderr
    assert_same_losses(ikebana.open_run(tmp_path / "run"), run_alone)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_an_error_in_one_process_is_reported_and_ends_all(photos, tmp_path):
    arguments = ["fit", photos, "--recipe", "baseline", *FLAGS, "--run", tmp_path / "run"]
    code = SPOILED.format(action="from ikebana.errors import MachineError; raise MachineError('no room here')")
    leader, worker = run_processes(arguments, arguments, code=code)
    assert (leader.returncode, worker.returncode) == (1, 1)
    assert "process 1 of 2" in leader.stderr
    assert "no room here" in leader.stderr
    assert worker.stderr.startswith("process 1 of 2: MachineError: no room here")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_process_with_other_photos_is_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "changed")
    changed = next((tmp_path / "changed" / "iris").glob("*1.jpg"))
    changed.write_bytes(encode_photo(7))
    flags = ["--recipe", "baseline", *FLAGS, "--run", tmp_path / "run"]
    leader, worker = run_processes(["fit", photos, *flags], ["fit", tmp_path / "changed", *flags])
    assert (leader.returncode, worker.returncode) == (1, 1)
    assert f"not those of process 0: iris/{changed.name}" in leader.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_recipe_without_training_steps_is_refused(photos, tmp_path):
    leader, worker = run_processes(*2 * [["fit", photos, "--run", tmp_path / "run"]])
    assert (leader.returncode, worker.returncode) == (1, 1)
    assert "recipe quick has no training steps that 2 processes could share" in leader.stderr
    assert worker.stderr == ""


def test_a_process_without_variables_or_with_one_process_is_alone():
    assert read_launch({}) == read_launch({"WORLD_SIZE": "1"}) == Launch()
    assert Launch().is_leader


def test_the_variables_of_a_launcher_are_read():
    place = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    assert read_launch(place) == Launch(3, 4, 0, 1)
    assert read_launch(place | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}) == Launch(3, 4, 1, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "2"}, "RANK is 2, but there are 2 processes"),
        ({"RANK": ""}, "RANK is not set"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT are not set"),
    ],
)
def test_incomplete_or_invalid_variables_are_refused(changes, words):
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    with pytest.raises(UsageError, match=words):
        read_launch(place | changes)


def test_a_recipe_without_training_steps_is_refused_before_the_photos_are_listed(monkeypatch, tmp_path):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    # Without its decorators it does not wait for the other process.
    with pytest.raises(RecipeError, match="no training steps that 2 processes could share"):
        inspect.unwrap(fit_command.fit)(tmp_path / "no such folder")


def test_a_sweep_in_several_processes_is_refused(monkeypatch, photos):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="not shared by 2 processes"):
        ikebana.sweep(photos)


def test_doctor_reports_variables_that_a_training_refuses(monkeypatch):
    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 0.01)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    # It is counted once per process.
    device._count_threads.cache_clear()
    assert "MASTER_ADDR and MASTER_PORT are not set" in ikebana.doctor()["processes"]


def test_doctor_reports_a_rank_without_the_number_of_processes(monkeypatch):
    monkeypatch.setattr(feature_cache, "measure_seconds_per_photo", lambda *_, **__: 0.01)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "0")
    assert ikebana.doctor()["processes"] == "1: WORLD_SIZE is not set, so RANK is ignored"
