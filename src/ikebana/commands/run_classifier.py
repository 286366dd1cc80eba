"""The classifier of a run, which needs torch."""

from typing import TYPE_CHECKING

import numpy as np

from ikebana.inference.classifier import Classifier, ForwardResult
from ikebana.runs import neighbour_index
from ikebana.runs.run import Run
from ikebana.system.resources import memory_errors

if TYPE_CHECKING:
    from torch import nn

    from ikebana.learning.models.networks import CalibratedNetwork


def build_run_classifier(run: Run, model: "nn.Module | None" = None) -> "tuple[Classifier, CalibratedNetwork]":
    """Build a classifier from a run's own network, on the device that suits it.

    Args:
        model: the user's own module, if the run trained one.
    Raises:
        RunError: the run has no weights.
        RecipeError: the run trained a module that was not given.
    """
    import torch

    from ikebana.learning import device
    from ikebana.learning.models.assembly import load_trained_network

    calibration = run.calibration
    settings = device.configure()
    familiarity = run.familiarity
    network = load_trained_network(
        run.recipe, len(run.classes), run.weights, calibration.temperature, model, familiarity=familiarity
    )
    with memory_errors():
        network = network.to(settings.device)

    @memory_errors()
    @torch.inference_mode()
    def forward(photos: np.ndarray) -> ForwardResult:
        inputs = torch.from_numpy(photos).to(settings.device).permute(0, 3, 1, 2)
        return ForwardResult(*(output.cpu().numpy() for output in network(inputs)))

    classifier = Classifier(
        run.classes,
        run.recipe.image_size,
        run.recipe.resize,
        calibration.threshold,
        {},
        forward,
        candidate_rule=calibration.candidates,
        familiarity_threshold=familiarity and familiarity.threshold,
        familiarity_photos=familiarity and familiarity.known_photos,
        neighbour_index=neighbour_index.load(run),
    )
    return classifier, network
