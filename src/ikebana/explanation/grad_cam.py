"""Heat maps of convolutional networks from one backward pass.

Each position of the last feature map gets its contribution to the class's logit to first order: the
sum over channels of gradient times activation. If global average pooling and a linear head follow,
this is exactly Grad-CAM. If the map is flattened, as in the tutorial's networks, Grad-CAM would
average the gradient over positions, and could show places that the network does not use.

Source: Selvaraju et al. 2017, arXiv:1610.02391; Draelos and Carin 2020, arXiv:2011.08891.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ikebana.learning.models import custom, networks
from ikebana.learning.models.networks import CalibratedNetwork
from ikebana.system.resources import memory_errors

# Photos per backward pass.
BATCH_PHOTOS = 8


@memory_errors()
def compute_maps(network: CalibratedNetwork, photos: np.ndarray, class_indices: np.ndarray) -> np.ndarray | None:
    """Compute a map per photo; of an ensemble, the mean of its networks' maps.

    Args:
        photos: uint8 [photos, side, side, 3].
        class_indices: int [photos], the class to explain per photo.
    Returns:
        float32 [photos, rows, columns], at least 0; None if a network is not convolutional.
    """
    maps = []
    for member in networks.get_members(network.network):
        member_maps = _compute_member(member, photos, class_indices)
        if member_maps is None:
            return None
        maps.append(_normalise(member_maps))
    rows, columns = maps[0].shape[1:]
    return np.mean([_resize(member_maps, rows, columns) for member_maps in maps], axis=0)


def _compute_member(member: nn.Module, photos: np.ndarray, class_indices: np.ndarray) -> np.ndarray | None:
    forward, flip_tta = _get_forward(member)
    parameter = next(member.parameters())
    # torch warns about arrays that cannot be written.
    pixels = torch.from_numpy(np.require(photos, requirements="W"))
    inputs = pixels.permute(0, 3, 1, 2).to(parameter.device, torch.float32)
    targets = torch.from_numpy(np.asarray(class_indices, np.int64)).to(parameter.device)
    layer = _find_layer(member, forward, inputs[:1])
    if layer is None:
        return None
    try:
        maps = _attribute(forward, layer, inputs, targets)
        if flip_tta:
            maps = (maps + _attribute(forward, layer, inputs.flip(3), targets).flip(2)) / 2
    except RuntimeError:
        # The user's module may detach its outputs or change activations in place.
        if not isinstance(member, custom.CustomNetwork):
            raise
        return None
    return maps.cpu().numpy()


def _get_forward(member: nn.Module) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Return the network without its mirrored second pass, and whether it has one."""
    if not hasattr(member, "backbone"):
        return member, False
    backbone, head = member.get_submodule("backbone"), member.get_submodule("head")
    normalise, layers = backbone.get_submodule("normalise"), backbone.get_submodule("network")
    return lambda photos: head(layers(normalise(photos))), bool(backbone.flip_tta)


def _find_layer(member: nn.Module, forward: Callable[[Tensor], Tensor], photo: Tensor) -> nn.Module | None:
    """Find the layer whose output is the last feature map.

    None if the last output with positions is no map of channels, rows and columns, as in a
    transformer: the maps before it say little about the class.
    """
    outputs: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record(module: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor):
            outputs.append((module, tuple(output.shape)))

    hooks = [module.register_forward_hook(record) for module in member.modules()]
    try:
        with torch.no_grad():
            forward(photo)
    finally:
        for hook in hooks:
            hook.remove()
    # [photos, positions, width] of a transformer, or [photos, channels, rows, columns] unless pooled to one.
    with_positions = [
        (module, shape) for module, shape in outputs if len(shape) == 3 or (len(shape) > 3 and max(shape[2:]) > 1)
    ]
    if not with_positions:
        return None
    last_shape = with_positions[-1][1]
    # Images are square, so maps are.
    if len(last_shape) != 4 or last_shape[2] != last_shape[3]:
        return None
    calls = Counter(id(module) for module, _ in outputs)
    # A module that is called several times has no output of its own.
    candidates = [module for module, shape in with_positions if shape == last_shape and calls[id(module)] == 1]
    return candidates[-1] if candidates else None


def _attribute(forward: Callable[[Tensor], Tensor], layer: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Sum gradient times activation over channels: float32 [photos, rows, columns], at least 0."""
    from captum.attr import LayerGradientXActivation

    method, maps = LayerGradientXActivation(forward, layer), []
    for start in range(0, len(inputs), BATCH_PHOTOS):
        batch = inputs[start : start + BATCH_PHOTOS].clone().requires_grad_()
        contributions = method.attribute(batch, target=targets[start : start + BATCH_PHOTOS])
        assert isinstance(contributions, Tensor)
        maps.append(contributions.detach().float().sum(1).relu())
    return torch.cat(maps)


def _normalise(maps: np.ndarray) -> np.ndarray:
    """Scale each map to a maximum of 1, unless it is 0 everywhere."""
    largest = maps.max((1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)


def _resize(maps: np.ndarray, rows: int, columns: int) -> np.ndarray:
    if maps.shape[1:] == (rows, columns):
        return maps
    resized = [Image.fromarray(values).resize((columns, rows), Image.Resampling.BILINEAR) for values in maps]
    return np.stack([np.asarray(values) for values in resized])
