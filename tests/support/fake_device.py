"""A torch device written in Python, as strict about its memory as a GPU.

Its tensors are in host memory, each in a wrapper. As on CUDA, an operator fails if it gets tensors of both
the device and the host. As on MPS, there is no float64. numpy cannot read the tensors, and the device has
its own random generator.

A process can register one such device, permanently. Call `install` in a separate process, before ikebana is imported.
"""

from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import _pytree, backend_registration
from torch.utils._python_dispatch import return_and_correct_aliasing

NAME = "fake"
# The only operators that may take tensors of both the device and the host.
COPY_OPERATORS = frozenset(("copy_", "_to_copy", "_has_compatible_shallow_copy_type"))
# Names of the operators that have run on the device.
used_operators = set()
# Operator libraries: torch unregisters their operators when they are deleted.
_libraries = []


class DeviceTensor(Tensor):
    """A tensor on the device."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host):
        if on_host.dtype == torch.float64:
            raise TypeError(f"the device {NAME} has no float64")
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset(), "dtype": on_host.dtype}
        wrapper = Tensor._make_wrapper_subclass(cls, on_host.shape, device=torch.device(NAME, 0), **layout)
        wrapper.on_host = on_host
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run_operator(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents=None):
        return f"{NAME}: {self.on_host!r}"


def _run_operator(func, args, kwargs):
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, DeviceTensor) for tensor in tensors)
    host_tensors = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.ndim]
    if on_device and host_tensors and name not in COPY_OPERATORS:
        raise RuntimeError(f"{func}: a tensor of the host, {tuple(host_tensors[0].shape)}, among those of the device")
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "copy_":
        on_device = isinstance(args[0], DeviceTensor)
    host_args = _pytree.tree_map_only(DeviceTensor, lambda tensor: tensor.on_host, (args, kwargs))
    with rng.use(on_device and torch.Tag.nondeterministic_seeded in func.tags):
        result = func(*host_args[0], **host_args[1])
    if not on_device:
        return result
    used_operators.add(name)
    return return_and_correct_aliasing(func, args, kwargs, _pytree.tree_map_only(Tensor, DeviceTensor, result))


class DeviceRng:
    """The random generator of the device."""

    def __init__(self):
        self.state = torch.Generator().manual_seed(0).get_state()

    @contextmanager
    def use(self, on_device: bool):
        """Let torch use this generator within the block, if on the device."""
        if not on_device:
            yield
            return
        host_state = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(host_state)


rng = DeviceRng()


class DeviceModule(backend_registration._DummyBackendModule):
    """The module in which torch looks up a device's functions."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]

    def manual_seed_all(self, seed):
        rng.state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self):
        return rng.state.clone()

    def set_rng_state(self, state):
        rng.state = state.clone()


class Generator(torch.Generator):
    """A random generator that uses the host if the device is requested.

    A generator for a device needs C++. timm's EMA makes one, and uses it for bfloat16 weights only.
    """

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu" if torch.device(device).type == NAME else device)  # type: ignore[call-arg]


def install() -> None:
    """Register the device in this process, and have ikebana select it."""
    torch.Generator = Generator
    # inference_mode fails on a wrapper: torch 2.14 makes a plain tensor of `.data`.
    torch.inference_mode = torch.no_grad
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=DeviceModule())
    autocast = torch.library.Library("_", "IMPL")
    autocast.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    factories = torch.library.Library("aten", "IMPL")
    factories.impl("empty.memory_format", _empty, "PrivateUse1")
    factories.impl("empty_strided", _empty_strided, "PrivateUse1")
    _libraries.extend((autocast, factories))

    from ikebana.learning import device

    device._select_device = lambda: (NAME, "the tests need it")


def _empty(size, *, dtype=None, memory_format=None, **_):
    return DeviceTensor(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, *, dtype=None, **_):
    return DeviceTensor(torch.empty_strided(size, stride, dtype=dtype))
