"""CUDA graphs of training steps: all kernels of a step in one launch.

A fine-tuning step of a small network is some thousand kernels of a few microseconds. Launched one
by one from Python, they kept an H200 busy for a seventh of the step's time.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ikebana.errors import get_first_line
from ikebana.learning.device import DeviceSettings
from ikebana.system import progress

# torch's own graph capture triggers this warning; the user can do nothing about it.
IGNORED_WARNING = "Attempting to run cuBLAS, but there was no current CUDA context"


class GraphedNetwork:
    """A network whose forward and backward pass run as CUDA graphs.

    It is valid while the same weights are trainable. Batches of another size than most, and all
    batches if capture fails, run through the network itself.
    """

    def __init__(self, network: nn.Module, batch_size: int, settings: DeviceSettings):
        """Wrap the network; the first full batch captures the graphs.

        Args:
            network: on its device, in training mode, with `requires_grad` set.
            batch_size: photos in most batches.
        """
        self.network, self.batch_size, self.settings = network, batch_size, settings
        # Set by the first full batch, wherever in an epoch a resumed run starts.
        self.has_captured = False
        self.replay: Callable[[Tensor], Tensor] = network

    def __call__(self, inputs: Tensor) -> Tensor:
        """Compute the network's output within the autocast of the step."""
        if len(inputs) != self.batch_size:
            return self.network(inputs)
        if not self.has_captured:
            self._capture(inputs)
            self.has_captured = True
        return self.replay(inputs)

    def _capture(self, inputs: Tensor) -> None:
        """Capture the graphs; the passes made for that change buffers, which are restored."""
        # An earlier graph and its network form a reference cycle that holds GPU memory.
        gc.collect()
        before = [buffer.clone() for buffer in self.network.buffers()]
        try:
            self.replay = self._make_graphed(inputs)
        except RuntimeError as error:
            # A layer synchronises with the device, or memory does not hold the graphs.
            progress.warn(f"CUDA graphs are not used: {get_first_line(error)}")
            self.replay = self.network
        with torch.no_grad():
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)

    def _make_graphed(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """Capture the graphs with torch.

        Raises:
            RuntimeError: capture fails.
        """
        device, precision = inputs.device, self.settings.precision
        # Entering the current stream restores it if capture fails.
        stream = torch.cuda.current_stream(device) if inputs.is_cuda else None
        with (
            torch.cuda.stream(stream),
            torch.random.fork_rng(devices=[device] if inputs.is_cuda else []),
            # No cache of half-precision weights: a graph would replay those of its capture.
            torch.autocast(device.type, self.settings.dtype, precision != "float32", cache_enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", IGNORED_WARNING)
            arguments = (inputs.clone(),)
            graphed: Any = torch.cuda.make_graphed_callables(_Wrapper(self.network), arguments, allow_unused_input=True)
            return graphed


class _Wrapper(nn.Module):
    """A module around the network, whose own `forward` capture must not replace."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)
