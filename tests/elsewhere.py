"""A device that is none: as strict as a GPU about what lies on it, and no GPU is needed to see that nothing is left behind.

Its tensors lie in the host's memory, each in a wrapper. An operator that is given one of them and one of the host is refused,
as CUDA refuses it; so are numbers in double precision, as MPS refuses them; numpy sees none of it. Its dice are its own.

torch lets a process have one such device, for good: whoever calls `present` does so in a process of its own, before ikebana
is imported.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "elsewhere"
# Between a device and the host these alone may go.
CROSSING = frozenset(("copy_", "_to_copy", "_has_compatible_shallow_copy_type"))
used = set()  # names of the operators that have run there
_registered = []  # libraries of operators: what they register is gone with them


class Elsewhere(Tensor):
    """A tensor on that device."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host):
        if on_host.dtype == torch.float64:
            raise TypeError("there are no numbers in double precision elsewhere")
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset(), "dtype": on_host.dtype}
        there = Tensor._make_wrapper_subclass(cls, on_host.shape, device=torch.device(NAME, 0), **layout)
        there.on_host = on_host
        return there

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _ran(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None):
        return f"{NAME}: {self.on_host!r}"


def _ran(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = [each for each in _pytree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = any(isinstance(each, Elsewhere) for each in tensors)
    mixed = [each for each in tensors if not isinstance(each, Elsewhere) and each.ndim]
    if there and mixed and name not in CROSSING:
        raise RuntimeError(f"{func}: a tensor of the host, {tuple(mixed[0].shape)}, among those of the device")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        there = isinstance(args[0], Elsewhere)
    inside = _pytree.tree_map_only(Elsewhere, lambda each: each.on_host, (args, kwargs))
    with dice.thrown(there and torch.Tag.nondeterministic_seeded in func.tags):
        found = func(*inside[0], **inside[1])
    if not there:
        return found
    used.add(name)
    return return_and_correct_aliasing(func, args, kwargs, _pytree.tree_map_only(Tensor, Elsewhere, found))


class Dice:
    """The device's own, and what torch asks a device's module for."""

    def __init__(self):
        self.state = torch.Generator().manual_seed(0).get_state()

    @contextmanager
    def thrown(self, here: bool):
        """Within this block torch draws from these dice."""
        if not here:
            yield
            return
        before = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(before)


dice = Dice()


class Module(backend_registration._DummyBackendModule):
    """What torch asks of a device."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def manual_seed_all(self, seed):
        dice.state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self):
        return dice.state.clone()

    def set_rng_state(self, state):
        dice.state = state.clone()


def present() -> None:
    """Have the device in this process from now on, and ikebana take it."""
    torch.inference_mode = torch.no_grad  # a wrapper does not go through it: torch 2.14 makes a plain tensor of `.data`
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    through = torch.library.Library("_", "IMPL")
    through.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    made = torch.library.Library("aten", "IMPL")
    made.impl("empty.memory_format", _empty, "PrivateUse1")
    made.impl("empty_strided", _empty_strided, "PrivateUse1")
    _registered.extend((through, made))

    from ikebana.learning import device

    device._select_device = lambda: (NAME, "the tests want it")


def _empty(size, *, dtype=None, memory_format=None, **_):
    return Elsewhere(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, *, dtype=None, **_):
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))
