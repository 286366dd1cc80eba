"""AdamW compared with its definition; schedule and EMA by their laws."""

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


def test_adamw_follows_its_paper_at_the_rates_of_its_schedule():
    ours, theirs, steps = weights(), [weight.detach().double() for weight in weights()], 12
    tuning = recipe.AdamW(weight_decay=0.05, layer_decay=1.0, warmup_fraction=0.25, label_smoothing=0.0, ema_decay=0.9)
    mine = AdamW([ParameterGroup(ours[:2], 1e-2, has_weight_decay=True), ParameterGroup(ours[2:], 3e-2)], tuning, steps)
    beta_1, beta_2 = optimisers.ADAM_BETAS
    moments = [(torch.zeros_like(weight), torch.zeros_like(weight)) for weight in theirs]
    for step in range(1, steps + 1):
        factor = schedule.compute_learning_rate_factor(step, steps, tuning.warmup_fraction)
        for number, (ours_weight, reference_weight, (mean, square)) in enumerate(
            zip(ours, theirs, moments, strict=True)
        ):
            gradient = torch.randn(ours_weight.shape, generator=torch.Generator().manual_seed(10 * step + number))
            ours_weight.grad = gradient.clone()
            rate, decay = (1e-2, 0.05) if number < 2 else (3e-2, 0.0)
            # Algorithm 2 of Loshchilov and Hutter 2019, whose decay is a fraction of the learning rate here.
            mean.copy_(beta_1 * mean + (1 - beta_1) * gradient)
            square.copy_(beta_2 * square + (1 - beta_2) * gradient.double() ** 2)
            move = (mean / (1 - beta_1**step)) / ((square / (1 - beta_2**step)).sqrt() + optimisers.ADAM_EPSILON)
            reference_weight.sub_(rate * factor * (move + decay * reference_weight))
        mine.step()
        for ours_weight, reference_weight in zip(ours, theirs, strict=True):
            torch.testing.assert_close(ours_weight.double(), reference_weight, rtol=1e-5, atol=1e-7)


def layered(count=2):
    """Make channels-last convolution weights, whose checkpoint has another memory layout."""
    numbers = torch.Generator().manual_seed(0)
    return [
        nn.Parameter(torch.randn(6, 4, 3, 3, generator=numbers).to(memory_format=torch.channels_last))
        for _ in range(count)
    ]


@pytest.mark.parametrize("weights", [weights, layered])
def test_the_saved_state_is_enough_to_resume(weights):
    uninterrupted, resumed = weights(), weights()
    first, second = (
        AdamW([ParameterGroup(uninterrupted, 1e-2, True)], STEADY, 6),
        AdamW([ParameterGroup(resumed, 1e-2, True)], STEADY, 6),
    )
    for step in range(6):
        if step == 3:  # a new optimiser is restored from the tensors
            restored = AdamW([ParameterGroup(resumed, 1e-2, True)], STEADY, 6)
            restored.restore({name: value.clone().contiguous() for name, value in second.to_tensors().items()})
            second = restored
        for weight in (*uninterrupted, *resumed):
            weight.grad = torch.sin(weight.detach() + step)
        first.step()
        second.step()
    assert all(torch.equal(a, b) for a, b in zip(uninterrupted, resumed, strict=True))


def test_a_weight_without_a_gradient_is_not_changed():
    still, moved = weights(2)
    moved.grad = torch.ones_like(moved)
    before = still.detach().clone(), moved.detach().clone()
    AdamW([ParameterGroup([still, moved], 1e-2, True)], STEADY, 5).step()
    assert torch.equal(still, before[0])
    assert not torch.equal(moved, before[1])


def test_a_state_of_other_weights_is_refused():
    three, two = weights(3), weights(2)
    for weight in (*three, *two):
        weight.grad = torch.ones_like(weight)
    of_three, of_two = (AdamW([ParameterGroup(group, 1e-2, True)], STEADY, 5) for group in (three, two))
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
def test_the_learning_rate_rises_to_its_peak_and_falls_to_nearly_zero(warm_up):
    rates = np.array([schedule.compute_learning_rate_factor(step, 100, warm_up) for step in range(1, 101)])
    top = round(100 * warm_up)
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[max(top, 1) :]) < 0).all()
    assert rates.max() == pytest.approx(1, abs=0.01)
    assert 0 < rates[-1] < 0.001


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_no_step_has_a_learning_rate_of_zero(steps):
    rates = [schedule.compute_learning_rate_factor(step, steps, 0.1) for step in range(1, steps + 1)]
    assert min(rates) > 0
    assert max(rates) > 0.5


def test_the_ema_converges_to_constant_weights_and_follows_changing_ones():
    network = nn.BatchNorm1d(3)
    mean = ema.make_ema(network, decay=0.9)
    network.weight.data.fill_(5.0)
    network.load_state_dict(network.state_dict() | {"num_batches_tracked": torch.tensor(7)})
    followed = mean.module.get_parameter("weight")
    mean.update(network, step=2)
    assert 1.0 < float(followed.detach()[0]) <= 5.0  # early on, a mean of few values follows quickly
    for steps_done in range(2, 400):
        mean.update(network, step=steps_done + 1)
    torch.testing.assert_close(followed, network.weight)
    assert mean.module.num_batches_tracked == 7
    network.weight.data.fill_(6.0)
    mean.update(network, step=401)
    torch.testing.assert_close(followed.detach(), torch.full((3,), 5.1))


def test_the_ema_has_the_weights_of_its_closed_formula():
    network, decay = nn.BatchNorm1d(3).double(), 0.6
    mean, expected = ema.make_ema(network, decay), torch.ones(3, dtype=torch.float64)
    statistics = torch.zeros(3, dtype=torch.float64)
    for step in range(1, 30):
        network.weight.data.fill_(float(step) ** 2)
        network.get_buffer("running_mean").fill_(float(step))
        mean.update(network, step=step + 1)
        effective_decay = min(decay, step / (step + 9))
        expected = effective_decay * expected + (1 - effective_decay) * step**2
        statistics = effective_decay * statistics + (1 - effective_decay) * step
    torch.testing.assert_close(mean.module.get_parameter("weight").detach(), expected)
    torch.testing.assert_close(mean.module.get_buffer("running_mean"), statistics)
