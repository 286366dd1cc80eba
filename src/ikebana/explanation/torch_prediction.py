"""Probabilities of a torch network for arrays of photos, as fast as inference gets."""

import numpy as np
import torch

from ikebana.explanation.masking import Predict
from ikebana.learning import examples, fast
from ikebana.learning.models.networks import CalibratedNetwork
from ikebana.system.resources import memory_errors


def make_predict(network: CalibratedNetwork) -> Predict:
    """Return a function from photos, uint8 [photos, side, side, 3], to probabilities.

    Its layers are fused where that is faster. The fused copy is made at the first call, because it is
    compared with the network on the photos of that call.
    """
    device = next(network.parameters()).device
    copies: list[CalibratedNetwork] = []

    @memory_errors()
    @torch.inference_mode()
    def predict(photos: np.ndarray) -> np.ndarray:
        if not copies:
            unlabelled = examples.make_unlabelled(photos, np.arange(len(photos)))
            fused = fast.fuse_layers(network.network, unlabelled)
            copies.append(CalibratedNetwork(fused, network.temperature).eval())
        inputs = torch.from_numpy(np.require(photos, requirements="W")).to(device).permute(0, 3, 1, 2)
        return copies[0](inputs)[0].float().cpu().numpy()

    return predict
