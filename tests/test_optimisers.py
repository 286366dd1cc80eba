"""How weights move: AdamW against torch's own, the schedule and the running mean by their laws."""

import numpy as np
import pytest
import torch
from torch import nn

from ikebana import recipe
from ikebana.learning.training import ema, optimisers, schedule
from ikebana.learning.training.optimisers import AdamW, ParameterGroup

STEADY = recipe.AdamW(weight_decay=0.05, layer_decay=1.0, warmup_fraction=0.0, label_smoothing=0.0, ema_decay=0.9)


def weights(count=3, size=7):
    numbers = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=numbers)) for _ in range(count)]


def test_adamw_is_torchs_adamw_at_the_rates_of_its_schedule():
    ours, theirs, steps = weights(), weights(), 12
    tuning = recipe.AdamW(weight_decay=0.05, layer_decay=1.0, warmup_fraction=0.25, label_smoothing=0.0, ema_decay=0.9)
    mine = AdamW([ParameterGroup(ours[:2], 1e-2, has_weight_decay=True), ParameterGroup(ours[2:], 3e-2)], tuning, steps)
    groups = [
        {"params": theirs[:2], "lr": 1e-2, "weight_decay": 0.05},
        {"params": theirs[2:], "lr": 3e-2, "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, betas=optimisers.ADAM_BETAS, eps=optimisers.ADAM_EPSILON)
    full = [group["lr"] for group in peer.param_groups]
    for step in range(1, steps + 1):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + number))
            one.grad, other.grad = gradient.clone(), gradient.clone()
        for group, rate in zip(peer.param_groups, full, strict=True):
            group["lr"] = rate * schedule.compute_learning_rate_factor(step, steps, tuning.warmup_fraction)
        mine.step()
        peer.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_its_state_is_all_that_it_needs_to_go_on():
    whole, parted = weights(), weights()
    one, other = (
        AdamW([ParameterGroup(whole, 1e-2, True)], STEADY, 6),
        AdamW([ParameterGroup(parted, 1e-2, True)], STEADY, 6),
    )
    for step in range(6):
        if step == 3:  # another one takes over from the tensors alone
            heir = AdamW([ParameterGroup(parted, 1e-2, True)], STEADY, 6)
            for empty, full in zip(heir.state, other.state, strict=True):
                empty.copy_(full)
            other = heir
        for each in (*whole, *parted):
            each.grad = torch.full_like(each, 0.1 * (step + 1))
        one.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parted, strict=True))


def test_a_weight_without_a_gradient_stays_where_it_is():
    still, moved = weights(2)
    moved.grad = torch.ones_like(moved)
    before = still.detach().clone(), moved.detach().clone()
    AdamW([ParameterGroup([still, moved], 1e-2, True)], STEADY, 5).step()
    assert torch.equal(still, before[0])
    assert not torch.equal(moved, before[1])


@pytest.mark.parametrize("warm_up", [0.0, 0.1, 0.5])
def test_the_rate_rises_to_its_height_and_falls_to_nearly_nothing(warm_up):
    rates = np.array([schedule.compute_learning_rate_factor(step, 100, warm_up) for step in range(1, 101)])
    top = round(100 * warm_up)
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[max(top, 1) :]) < 0).all()
    assert rates.max() == pytest.approx(1, abs=0.01)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_no_step_is_made_for_nothing_however_few_there_are(steps):
    rates = [schedule.compute_learning_rate_factor(step, steps, 0.1) for step in range(1, steps + 1)]
    assert min(rates) > 0
    assert max(rates) > 0.5


def test_a_running_mean_comes_to_what_stays_the_same_and_follows_what_moves():
    network = nn.BatchNorm1d(3)
    mean = ema.ExponentialMovingAverage(network, decay=0.9)
    network.weight.data.fill_(5.0)
    network.load_state_dict(network.state_dict() | {"num_batches_tracked": torch.tensor(7)})
    followed = mean.network.get_parameter("weight")
    mean.update(step_count=1)
    assert 1.0 < float(followed.detach()[0]) <= 5.0  # early on a mean of few follows quickly
    for made in range(2, 400):
        mean.update(made)
    torch.testing.assert_close(followed, network.weight)
    assert mean.network.num_batches_tracked == 7
    network.weight.data.fill_(6.0)
    mean.update(step_count=400)
    torch.testing.assert_close(followed.detach(), torch.full((3,), 5.1))
