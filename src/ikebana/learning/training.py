"""Network + pixels → a stream of Epochs. Training is a generator: the bar, the JSON stream and the checkpoint read the same."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana import progress
from ikebana.errors import RecipeError
from ikebana.learning import checkpoint
from ikebana.learning.augmentation import augmented
from ikebana.learning.checkpoint import Epoch
from ikebana.learning.device import Setting
from ikebana.learning.inference import Photos, logits_of, score
from ikebana.recipe import Recipe

RHO, EPSILON = 0.9, 1e-7  # Keras 3's defaults for RMSprop
TRIAL_STEPS = 2  # timed steps of a trial, after one that warms up


def train(
    network: nn.Module, recipe: Recipe, photos: Photos, validation: Photos, setting: Setting, kept: Path | None = None
) -> Iterator[Epoch]:
    """Train to the recipe's last epoch; each epoch is yielded once it is safe on disk.

    kept    the checkpoint's file. Where it exists the training goes on from there: its epochs are yielded again first, so
            the stream is the same whether or not it was interrupted, and on a CPU so are the weights, bit for bit
    raises  RecipeError if the loss is no number any more
    """
    network.to(setting.device)
    velocities = [torch.zeros_like(weight) for weight in network.parameters()]
    epochs = checkpoint.load(kept, network, velocities) if kept is not None and kept.exists() else []
    yield from epochs
    with progress.stage("train", (recipe.epochs - len(epochs)) * len(photos)) as bar:
        for number in range(len(epochs) + 1, recipe.epochs + 1):
            epoch = _epoch(number, network, velocities, recipe, photos, validation, setting, bar)
            epochs.append(epoch)
            if kept is not None:
                checkpoint.save(kept, network, velocities, epochs)
            yield epoch


def _epoch(
    number: int,
    network: nn.Module,
    velocities: list[Tensor],
    recipe: Recipe,
    photos: Photos,
    validation: Photos,
    setting: Setting,
    bar: progress.Bar,
) -> Epoch:
    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(_seed(recipe.seed, number))
    torch.manual_seed(_seed(recipe.seed, number))  # dropout draws from torch's own generator
    order = torch.randperm(len(photos), generator=generator).numpy()
    loss_sum = right = torch.zeros((), device=setting.device)
    network.train()
    for start in range(0, len(order), recipe.batch):
        chosen = order[start : start + recipe.batch]
        pixels, labels = photos.batch(chosen, setting.device)
        if recipe.augmentation is not None:
            pixels = augmented(pixels, recipe.augmentation, generator)
        loss, logits = step(network, velocities, pixels, labels, recipe.learning_rate, setting)
        loss_sum = loss_sum + loss * len(chosen)
        right = right + (logits.argmax(1) == labels).sum()
        seen = start + len(chosen)
        scores = {"loss": float(loss_sum) / seen, "accuracy": float(right) / seen}
        bar.advance(len(chosen), epoch=f"{number}/{recipe.epochs}", **scores)
    if not torch.isfinite(loss_sum):
        raise RecipeError(
            f"the loss is no number any more in epoch {number}",
            advice=f"a smaller --learning-rate (it is {recipe.learning_rate:g})",
        )
    train_loss, train_accuracy = float(loss_sum) / len(order), float(right) / len(order)
    val_loss, val_accuracy = score(logits_of(network, validation, setting, recipe.batch), validation.labels)
    if val_accuracy is not None:
        bar.advance(
            0, epoch=f"{number}/{recipe.epochs}", loss=train_loss, accuracy=train_accuracy, val_accuracy=val_accuracy
        )
    return Epoch(number, train_loss, train_accuracy, val_loss, val_accuracy, time.perf_counter() - begun)


def _seed(seed: int, epoch: int) -> int:
    """Each epoch draws from a stream of its own, so that a resumed one needs no saved random state."""
    return seed * 1_000_003 + epoch


def step(
    network: nn.Module, velocities: list[Tensor], pixels: Tensor, labels: Tensor, learning_rate: float, setting: Setting
) -> tuple[Tensor, Tensor]:
    """One step of gradient descent on one batch.

    returns  the batch's mean loss and its logits, both as they were before the step
    """
    with setting.autocast():
        logits = network(pixels)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # the loss is never taken in half precision
    loss = functional.cross_entropy(logits, labels)
    network.zero_grad(set_to_none=True)
    loss.backward()
    rmsprop_(list(zip(network.parameters(), velocities, strict=True)), learning_rate)
    return loss.detach(), logits.detach()


@torch.no_grad()
def rmsprop_(
    trained: list[tuple[nn.Parameter, Tensor]], learning_rate: float, rho: float = RHO, epsilon: float = EPSILON
) -> None:
    """RMSprop as Keras 3 defines it, in place: the epsilon stands inside the root, where torch's own has it outside.

    At a learning rate of 1e-5 the two differ in what they learn, since most velocities are small then.
    source  keras/src/optimizers/rmsprop.py, update_step
    """
    for weight, velocity in trained:
        if weight.grad is not None:
            velocity.mul_(rho).addcmul_(weight.grad, weight.grad, value=1 - rho)
            weight.addcdiv_(weight.grad, (velocity + epsilon).sqrt_(), value=-learning_rate)


def seconds_per_photo(network: nn.Module, recipe: Recipe, classes: int, setting: Setting) -> float:
    """Time a few training steps on random pixels, on a copy of the network: what a photo costs."""
    import copy

    trial = copy.deepcopy(network).to(setting.device).train()
    velocities = [torch.zeros_like(weight) for weight in trial.parameters()]
    generator = torch.Generator().manual_seed(0)
    shape = (recipe.batch, recipe.side, recipe.side, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2).to(setting.device)
    labels = torch.randint(0, classes, (recipe.batch,), generator=generator).to(setting.device)
    seconds = []
    for _ in range(1 + TRIAL_STEPS):
        begun = time.perf_counter()
        batch = pixels if recipe.augmentation is None else augmented(pixels, recipe.augmentation, generator)
        loss, _ = step(trial, velocities, batch, labels, recipe.learning_rate, setting)
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]) / recipe.batch
