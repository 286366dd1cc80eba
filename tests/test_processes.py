"""Training shared by several processes equals that of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import shared_training
from support.shared_training import CASES, EMPTY_SHARES, INTERRUPTED_CASE

from ikebana.learning.training import checkpoint

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parent


def run_torchrun(processes: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a Python script in several processes with one thread each."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [*launcher, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def run_trainings(processes: int, task: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return run_torchrun(processes, TESTS / "support" / "shared_training.py", task, folder)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder with the results of all cases in two processes."""
    folder = tmp_path_factory.mktemp("two")
    done = run_trainings(2, "all", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def three_processes(tmp_path_factory):
    """The results of three processes, of which one has an empty share in some steps."""
    folder = tmp_path_factory.mktemp("three")
    done = run_trainings(3, "empty", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same_training(case, folder, name):
    weights, epochs = shared_training.train(*case)
    shared = load_file(folder / f"{name} weights.safetensors")
    assert shared.keys() == weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(shared[key], value, rtol=0, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
    shared_scores = load_file(folder / f"{name} scores.safetensors")
    for key, value in shared_training.get_scores(epochs).items():
        # Logits of validation photos are float32.
        tolerance = 1e-6 if key == "val_loss" else 1e-12
        torch.testing.assert_close(shared_scores[key], value, rtol=tolerance, atol=tolerance, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_weights_of_one_in_float64(name, two_processes):
    assert_same_training(CASES[name], two_processes, name)


def compute_relative_distance(gradients, expected):
    assert gradients.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    return torch.stack([(gradients[key] - gradient).norm() for key, gradient in expected.items()]).norm() / norm


@pytest.mark.parametrize("name", ["baseline", "augmented", "good"])
def test_the_first_gradient_of_two_processes_is_that_of_one_in_float32(name, two_processes):
    expected = shared_training.compute_first_gradient(*CASES[name])
    shared = load_file(two_processes / f"{name} gradient.safetensors")
    assert compute_relative_distance(shared, expected) <= 1e-6


def test_the_first_gradient_with_trained_batchnorm_is_as_exact_as_that_of_one_process(two_processes):
    # torch's own is 1e-5 from float64, so two float32 gradients cannot agree better.
    exact = shared_training.compute_first_gradient(*CASES["finetuned"], torch.float64)
    alone = shared_training.compute_first_gradient(*CASES["finetuned"])
    shared = load_file(two_processes / "finetuned gradient.safetensors")
    assert compute_relative_distance(shared, exact) <= compute_relative_distance(alone, exact)


@pytest.mark.parametrize("name", EMPTY_SHARES)
def test_processes_with_empty_shares_train_the_weights_of_one(name, three_processes):
    assert_same_training(EMPTY_SHARES[name], three_processes, name)


def test_a_worker_that_is_interrupted_while_validating_costs_no_step(tmp_path):
    done = run_trainings(2, "interrupted", tmp_path)
    assert done.returncode != 0
    # The leader learns of it by a note or, if torchrun is faster, by SIGTERM.
    state = checkpoint.load(tmp_path / "checkpoint")
    assert len(state.epochs) == 1
    assert state.get_tensors("epoch_progress.")["photos_seen"] == CASES[INTERRUPTED_CASE][1]


@pytest.mark.parametrize("name", CASES)
def test_a_training_that_was_killed_resumes_in_one_process_to_the_same_weights(name, tmp_path):
    done = run_trainings(2, name, tmp_path)
    assert done.returncode != 0
    assert (tmp_path / "checkpoint").exists(), done.stderr
    assert len(checkpoint.load(tmp_path / "checkpoint").epochs) == 2
    expected, _ = shared_training.train(*CASES[name])
    weights, epochs = shared_training.train(*CASES[name], tmp_path / "checkpoint")
    assert len(epochs) == CASES[name][0].gradient_method.epochs
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-12)
