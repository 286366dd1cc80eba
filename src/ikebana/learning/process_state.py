"""State of the process that learning changes and a call restores.

Threads, random generators, CUDA's flags and the allocator belong to the program that calls ikebana.
Each command that learns or predicts with torch runs within `preserve_process_state`.
"""

import ctypes
import functools
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ikebana.system.contention import avoid_spinning
from ikebana.system.shared_state import SharedState

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_KEPT_BLOCK_BYTES = 2**30
# How far glibc raises its threshold by itself: DEFAULT_MMAP_THRESHOLD_MAX in mallopt(3).
DEFAULT_MAX_KEPT_BLOCK_BYTES = 4 * 2**20 * ctypes.sizeof(ctypes.c_long)
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
# torch's compiler sets it when it is imported, which deterministic algorithms and the exporter do.
INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

Restore = Callable[[], object]


class Allocator(SharedState):
    """glibc's allocator, whose thresholds hold for the whole process."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps_large_blocks = False

    def set_up(self) -> None:
        """Change nothing: `keep_large_blocks` sets the thresholds."""

    def restore(self) -> None:
        """Restore the thresholds if they were set."""
        if self.keeps_large_blocks:
            _set_thresholds(DEFAULT_MAX_KEPT_BLOCK_BYTES)
            self.keeps_large_blocks = False


_allocator = Allocator()


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore at the end what `device.configure`, seeding and training change.

    This is torch's number of threads, its random generators, its flags of determinism and TF32,
    variables of cuBLAS and of torch's compiler, and glibc's thresholds. Blocks may be nested. If two
    threads train at the same time, the last one to end decides. Within the block OpenMP's threads
    do not spin while other processes want the processors.
    glibc cannot report its thresholds, nor adjust them again once they were set. The outermost block
    therefore sets those that glibc's own adjustment reaches at most: 32 MiB, and twice that for trimming.
    """
    _import_tqdm_quietly()
    restore_functions = [
        _save_threads(),
        _save_rng_states(),
        _save_determinism(),
        _save_float32_precision(),
        _save_variable(CUBLAS_VARIABLE),
        _save_variable(INDUCTOR_VARIABLE),
    ]
    with _allocator.use(), avoid_spinning():
        try:
            yield
        finally:
            for restore in restore_functions:
                restore()


def _import_tqdm_quietly() -> None:
    """Import the progress bars of timm's hub without their warning about notebooks.

    In a notebook without ipywidgets, which nothing here needs, they warn on standard error.
    """
    if "IPython" in sys.modules and "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings(), suppress(ImportError):
            warnings.simplefilter("ignore")
            importlib.import_module("tqdm.auto")


def keep_large_blocks() -> tuple[str, str]:
    """Make glibc keep the large blocks that a training step frees, for the next step.

    Otherwise each step maps hundreds of megabytes again and pays a page fault per 4 KiB.

    Returns:
        The allocator's name and the reason.
    """
    if not _has_glibc():
        return "system default", f"the C library of {platform.system()} is not glibc"
    if not _set_thresholds(MAX_KEPT_BLOCK_BYTES):
        return "system default", "glibc refused the setting"
    _allocator.keeps_large_blocks = True
    return "glibc, freed blocks reused", "mapping new memory at every step would take as long as the arithmetic"


@functools.cache
def _has_glibc() -> bool:
    return sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _set_thresholds(kept_bytes: int) -> bool:
    """Set the size of blocks that glibc maps on their own, and what it keeps."""
    libc = ctypes.CDLL(None)
    trim_bytes = min(2 * kept_bytes, 2**31 - 1)
    return bool(libc.mallopt(M_MMAP_THRESHOLD, kept_bytes) and libc.mallopt(M_TRIM_THRESHOLD, trim_bytes))


def _save_threads() -> Restore:
    threads = torch.get_num_threads()
    return lambda: torch.set_num_threads(threads)


def _save_rng_states() -> Restore:
    """Save the states of torch's random generators, those of a GPU included."""
    cpu_state = torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps_state = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu_state)
        if gpu_states:
            torch.cuda.set_rng_state_all(gpu_states)
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)

    return restore


def _save_determinism() -> Restore:
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    fills_memory = memory.fill_uninitialized_memory
    flags = cudnn.deterministic, cudnn.benchmark
    mode = _get_deterministic_mode()
    warns_of_streams = getattr(torch._C, "_warn_on_accumulate_grad_stream_mismatch", lambda: True)()

    def restore() -> None:
        cudnn.deterministic, cudnn.benchmark = flags
        is_enabled, is_warn_only = mode
        # Only if needed: this imports torch's compiler.
        if mode != _get_deterministic_mode():
            torch.use_deterministic_algorithms(is_enabled, warn_only=is_warn_only)
        memory.fill_uninitialized_memory = fills_memory
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(warns_of_streams)

    return restore


def _get_deterministic_mode() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _save_float32_precision() -> Restore:
    """Save whether float32 may be computed as TF32, in torch's older and newer settings."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    older = [(module, _get_allow_tf32(module)) for module in (matmul, cudnn)]
    newer = [(module, module.fp32_precision) for module in (matmul, cudnn.conv, cudnn.rnn)]

    def restore() -> None:
        # In this order: the older settings change the newer ones too.
        for module, is_allowed in older:
            if is_allowed is not None:
                module.allow_tf32 = is_allowed
        for module, precision in newer:
            module.fp32_precision = precision

    return restore


def _get_allow_tf32(module: Any) -> bool | None:
    """Return the older setting; None if the program uses the newer one."""
    try:
        return module.allow_tf32
    except RuntimeError:
        return None


def _save_variable(name: str) -> Restore:
    value = os.environ.get(name)

    def restore() -> None:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

    return restore
