"""What recording a step leaves behind: nothing. The recording itself is CUDA's; here it is only the passes that it makes."""

import copy

import pytest
import torch
from torch import nn

from ikebana.learning.device import DeviceSettings
from ikebana.learning.fast.cuda_graphs import GraphedNetwork
from ikebana.system import progress

HERE = DeviceSettings("cpu", "float32", 2, "system default")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2)).train()


@pytest.fixture
def recorded(monkeypatch):
    """The batches that were recorded; each is passed through the network as often as torch does."""
    batches = []

    def make(module, given, **_):
        batches.append(given[0])
        for _ in range(4):
            module(*given).sum()
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make)
    return batches


def states(network):
    return [each.clone() for each in network.state_dict().values()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_recorded_network_learns_from_the_same_norms_and_throws_the_same_dice(network, recorded):
    plain, inputs = copy.deepcopy(network), torch.randn(8, 4)
    torch.manual_seed(1)
    expected = [plain(inputs) for _ in range(3)]
    torch.manual_seed(1)
    steps = GraphedNetwork(network, 8, HERE)
    assert same([steps(inputs) for _ in range(3)], expected)
    assert same(states(network), states(plain))
    assert len(recorded) == 1


@pytest.mark.slow
def test_the_first_full_batch_is_recorded_wherever_it_comes_and_others_go_around(network, recorded):
    steps = GraphedNetwork(network, 8, HERE)
    for count in (3, 9):
        steps(torch.randn(count, 4))
    assert not recorded
    for count in (8, 8, 2):
        steps(torch.randn(count, 4))
    assert [len(each) for each in recorded] == [8]


def test_what_is_recorded_is_no_batch_that_somebody_else_may_change(network, recorded):
    inputs = torch.randn(8, 4)
    GraphedNetwork(network, 8, HERE)(inputs)
    assert recorded[0].data_ptr() != inputs.data_ptr()


@pytest.mark.slow
def test_what_cannot_be_recorded_goes_through_the_network_and_that_is_said_once(network, monkeypatch, capsys):
    def refuse(module, given, **_):
        module(*given)
        raise RuntimeError("operation not permitted when stream is capturing\nmore that nobody reads")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    plain, inputs = copy.deepcopy(network), torch.randn(8, 4)
    torch.manual_seed(1)
    expected = [plain(inputs) for _ in range(2)]
    torch.manual_seed(1)
    steps = GraphedNetwork(network, 8, HERE)
    with progress.use_reporter(progress.TerminalReporter()):
        found = [steps(inputs) for _ in range(2)]
    assert same(found, expected)
    assert same(states(network), states(plain))
    said = capsys.readouterr().err
    assert said == "CUDA graphs are not used: operation not permitted when stream is capturing\n"
