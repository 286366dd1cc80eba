"""How weights move: AdamW against its definition, the schedule and the running mean by their laws."""

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


def test_adamw_is_that_of_its_paper_at_the_rates_of_its_schedule():
    ours, theirs, steps = weights(), [each.detach().double() for each in weights()], 12
    tuning = recipe.AdamW(weight_decay=0.05, layer_decay=1.0, warmup_fraction=0.25, label_smoothing=0.0, ema_decay=0.9)
    mine = AdamW([ParameterGroup(ours[:2], 1e-2, has_weight_decay=True), ParameterGroup(ours[2:], 3e-2)], tuning, steps)
    beta_1, beta_2 = optimisers.ADAM_BETAS
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in theirs]
    for step in range(1, steps + 1):
        factor = schedule.compute_learning_rate_factor(step, steps, tuning.warmup_fraction)
        for number, (one, other, (mean, square)) in enumerate(zip(ours, theirs, moments, strict=True)):
            gradient = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + number))
            one.grad = gradient.clone()
            rate, decay = (1e-2, 0.05) if number < 2 else (3e-2, 0.0)
            # Algorithm 2 of Loshchilov and Hutter 2019, whose decay is a fraction of the learning rate here.
            mean.copy_(beta_1 * mean + (1 - beta_1) * gradient)
            square.copy_(beta_2 * square + (1 - beta_2) * gradient.double() ** 2)
            move = (mean / (1 - beta_1**step)) / ((square / (1 - beta_2**step)).sqrt() + optimisers.ADAM_EPSILON)
            other.sub_(rate * factor * (move + decay * other))
        mine.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-7)


def layered(count=2):
    """Weights of convolutions as the networks hold them, whose checkpoint has another order in memory."""
    numbers = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(6, 4, 3, 3, generator=numbers).to(memory_format=torch.channels_last))
        for _ in range(count)
    ]


@pytest.mark.parametrize("weights", [weights, layered])
def test_its_state_is_all_that_it_needs_to_go_on(weights):
    whole, parted = weights(), weights()
    one, other = (
        AdamW([ParameterGroup(whole, 1e-2, True)], STEADY, 6),
        AdamW([ParameterGroup(parted, 1e-2, True)], STEADY, 6),
    )
    for step in range(6):
        if step == 3:  # another one takes over from the tensors alone
            heir = AdamW([ParameterGroup(parted, 1e-2, True)], STEADY, 6)
            heir.restore({name: value.clone().contiguous() for name, value in other.to_tensors().items()})
            other = heir
        for each in (*whole, *parted):
            each.grad = torch.sin(each.detach() + step)
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


def test_a_state_of_other_weights_is_refused():
    three, two = weights(3), weights(2)
    for each in (*three, *two):
        each.grad = torch.ones_like(each)
    of_three, of_two = (AdamW([ParameterGroup(each, 1e-2, True)], STEADY, 5) for each in (three, two))
    of_three.step()
    state = of_three.to_tensors()
    with pytest.raises(KeyError, match="another network"):
        of_two.restore(state)
    with pytest.raises(RuntimeError, match="another network"):
        AdamW([ParameterGroup(weights(3, size=1), 1e-2, True)], STEADY, 5).restore(state)
    del state["00001.exp_avg"]
    with pytest.raises(KeyError):
        of_three.restore(state)


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
    mean = ema.make_ema(network, decay=0.9)
    network.weight.data.fill_(5.0)
    network.load_state_dict(network.state_dict() | {"num_batches_tracked": torch.tensor(7)})
    followed = mean.module.get_parameter("weight")
    mean.update(network, step=2)
    assert 1.0 < float(followed.detach()[0]) <= 5.0  # early on a mean of few follows quickly
    for made in range(2, 400):
        mean.update(network, step=made + 1)
    torch.testing.assert_close(followed, network.weight)
    assert mean.module.num_batches_tracked == 7
    network.weight.data.fill_(6.0)
    mean.update(network, step=401)
    torch.testing.assert_close(followed.detach(), torch.full((3,), 5.1))


def test_the_mean_after_some_steps_weighs_each_by_the_closed_formula():
    network, decay = nn.BatchNorm1d(3).double(), 0.6
    mean, expected = ema.make_ema(network, decay), torch.ones(3, dtype=torch.float64)
    statistics = torch.zeros(3, dtype=torch.float64)
    for made in range(1, 30):
        network.weight.data.fill_(float(made) ** 2)
        network.get_buffer("running_mean").fill_(float(made))
        mean.update(network, step=made + 1)
        kept = min(decay, made / (made + 9))
        expected = kept * expected + (1 - kept) * made**2
        statistics = kept * statistics + (1 - kept) * made
    torch.testing.assert_close(mean.module.get_parameter("weight").detach(), expected)
    torch.testing.assert_close(mean.module.get_buffer("running_mean"), statistics)
