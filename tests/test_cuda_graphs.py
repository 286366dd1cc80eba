"""Capturing a CUDA graph has no side effects.

Only the warm-up passes of a capture run here, on CPU.
"""

import copy

import pytest
import torch
from torch import nn

from ikebana.learning.device import DeviceSettings
from ikebana.learning.fast.cuda_graphs import GraphedNetwork
from ikebana.system import progress

CPU_SETTINGS = DeviceSettings("cpu", "float32", 2, "system default")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).train()


@pytest.fixture
def captured(monkeypatch):
    """The batches that were captured, each after as many forward passes as torch makes."""
    batches = []

    def make(module, given, **_):
        batches.append(given[0])
        for _ in range(4):
            module(*given).sum()
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return batches


def copy_state(network):
    return [value.clone() for value in network.state_dict().values()]


def are_equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_captured_network_has_the_same_batchnorm_and_random_state(network, captured):
    plain, inputs = copy.deepcopy(network), torch.randn(8, 4)
    torch.manual_seed(1)
    expected = [plain(inputs) for _ in range(3)]
    torch.manual_seed(1)
    steps = GraphedNetwork(network, 8, CPU_SETTINGS)
    assert are_equal([steps(inputs) for _ in range(3)], expected)
    assert are_equal(copy_state(network), copy_state(plain))
    assert len(captured) == 1


@pytest.mark.slow
def test_the_first_full_batch_is_captured_and_other_sizes_run_without_the_graph(network, captured):
    steps = GraphedNetwork(network, 8, CPU_SETTINGS)
    for count in (3, 9):
        steps(torch.randn(count, 4))
    assert not captured
    for count in (8, 8, 2):
        steps(torch.randn(count, 4))
    assert [len(batch) for batch in captured] == [8]


def test_the_captured_batch_is_a_copy(network, captured):
    inputs = torch.randn(8, 4)
    GraphedNetwork(network, 8, CPU_SETTINGS)(inputs)
    assert captured[0].data_ptr() != inputs.data_ptr()


@pytest.mark.slow
def test_a_network_that_cannot_be_captured_runs_without_a_graph_and_warns_once(network, monkeypatch, capsys):
    def refuse(module, given, **_):
        module(*given)
        raise RuntimeError("operation not permitted when stream is capturing\ndetails")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    plain, inputs = copy.deepcopy(network), torch.randn(8, 4)
    torch.manual_seed(1)
    expected = [plain(inputs) for _ in range(2)]
    torch.manual_seed(1)
    steps = GraphedNetwork(network, 8, CPU_SETTINGS)
    with progress.use_reporter(progress.TerminalReporter()):
        outputs = [steps(inputs) for _ in range(2)]
    assert are_equal(outputs, expected)
    assert are_equal(copy_state(network), copy_state(plain))
    output = capsys.readouterr().err
    assert output == "CUDA graphs are not used: operation not permitted when stream is capturing\n"
