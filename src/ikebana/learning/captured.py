"""On CUDA a step's kernels are recorded once and then played as one: what each of them waits for otherwise is Python.

A fine-tuning step of a small network is some thousand kernels of a few microseconds. Launched one by one they kept an H200 busy
for a seventh of the step's time.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ikebana import progress
from ikebana.learning.device import Setting

# What torch warns of while its own function for this records: nothing that a user could do anything about.
HARMLESS = "Attempting to run cuBLAS, but there was no current CUDA context"


class Captured:
    """A network and its way back, for the steps to come in which the same weights learn; batches of another size than most go
    through the network itself, and so do all where it cannot be recorded."""

    def __init__(self, network: nn.Module, batch: int, setting: Setting):
        """
        network  on its device, told which weights learn, and set to training
        batch    photos in most batches
        """
        self.network, self.batch, self.setting = network, batch, setting
        self.ready = False  # from the first batch of that size on, wherever in an epoch a run goes on
        self.whole: Callable[[Tensor], Tensor] = network

    def __call__(self, inputs: Tensor) -> Tensor:
        """What the network says of a batch, within the autocast of the step."""
        if len(inputs) != self.batch:
            return self.network(inputs)
        if not self.ready:
            self._record(inputs)
            self.ready = True
        return self.whole(inputs)

    def _record(self, inputs: Tensor) -> None:
        """To record a step is to make some: what they change beside gradients is put back."""
        gc.collect()  # an earlier recording is in a circle with its network, and holds the memory of a step until then
        before = [each.clone() for each in self.network.buffers()]
        try:
            self.whole = self._recorded(inputs)
        except RuntimeError as error:
            # A layer asks the device something on its way, or the memory does not hold a recording.
            progress.say(f"steps are launched one by one: {str(error).strip().splitlines()[0]}")
            self.whole = self.network
        with torch.no_grad():
            for now, then in zip(self.network.buffers(), before, strict=True):
                now.copy_(then)

    def _recorded(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """
        raises  RuntimeError if it cannot be
        """
        where, form = inputs.device, self.setting.number_format
        here = torch.cuda.current_stream(where) if inputs.is_cuda else None  # to be back on it if recording fails
        with (
            torch.cuda.stream(here),
            torch.random.fork_rng(devices=[where] if inputs.is_cuda else []),
            # Weights in half precision are not kept from one forward pass to the next: a recording would keep those of today.
            torch.autocast(where.type, self.setting.dtype, form != "float32", cache_enabled=False),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", HARMLESS)
            arguments = (inputs.clone(),)
            whole: Any = torch.cuda.make_graphed_callables(_Whole(self.network), arguments, allow_unused_input=True)
            return whole


class _Whole(nn.Module):
    """The network as a part: recording gives a module another `forward`, and the network is to keep its own."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)
