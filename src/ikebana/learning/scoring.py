"""Forward passes over examples: logits, probabilities, loss and accuracy."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ikebana.learning.device import DeviceSettings
from ikebana.learning.examples import Examples, SelectableExamples
from ikebana.learning.processes import ProcessGroup
from ikebana.system import progress


def iterate_batches(examples: Examples, settings: DeviceSettings, bar: progress.Bar | None = None) -> Iterator[Tensor]:
    """Yield the inputs of inference batches, in order; the bar advances after each."""
    for start in range(0, len(examples), settings.inference_batch_size):
        indices = np.arange(start, min(start + settings.inference_batch_size, len(examples)))
        inputs, _ = examples.get_batch(indices, settings.device)
        yield inputs
        if bar is not None:
            bar.advance(len(inputs))


@torch.inference_mode()
def compute_logits(
    network: nn.Module, examples: Examples, settings: DeviceSettings, bar: progress.Bar | None = None
) -> np.ndarray:
    """Run the network in evaluation mode: float32 logits [examples, classes]."""
    network.eval()
    logits = []
    for inputs in iterate_batches(examples, settings, bar):
        with settings.autocast():
            logits.append(network(inputs).float().cpu().numpy())
    return np.concatenate(logits) if logits else np.zeros((0, 1), np.float32)


def compute_shared_logits(
    network: nn.Module, examples: SelectableExamples, classes: int, settings: DeviceSettings, group: ProcessGroup
) -> np.ndarray:
    """Compute the logits of all examples, each process those of some whole batches.

    The batches are those of one process, so that the logits are too.

    Returns:
        float32 [examples, classes], in every process.
    """
    batches = -(-len(examples) // settings.inference_batch_size)
    rank, size = group.launch.rank, group.launch.size
    start, stop = (batches * number // size * settings.inference_batch_size for number in (rank, rank + 1))
    own_rows = np.arange(start, min(stop, len(examples)))
    logits = torch.zeros(len(examples), classes)
    if len(own_rows):
        logits[own_rows] = torch.from_numpy(compute_logits(network, examples.select(own_rows), settings))
    return group.sum_(logits).numpy()


def score(logits: np.ndarray, labels: np.ndarray) -> tuple[float | None, float | None]:
    """Compute mean cross-entropy and accuracy; None without photos."""
    if not len(labels):
        return None, None
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))
    return float(loss), float((logits.argmax(1) == labels).mean())


def predict_probabilities(
    network: nn.Module, examples: Examples, settings: DeviceSettings, bar: progress.Bar | None = None
) -> np.ndarray:
    """Predict probabilities: float32 [examples, classes].

    Always in float32, so that scores do not depend on the precision of training.
    """
    exact = replace(settings, precision="float32")
    return torch.softmax(torch.from_numpy(compute_logits(network, examples, exact, bar=bar)), 1).numpy()
