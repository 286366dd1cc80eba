"""Selection of device, threads and allocator, each with its reason.

The allocator matters as much as the arithmetic: glibc returns large blocks to the system after each
use. The page faults of mapping them again took half of a training step here, so `keep_large_blocks`
stops that. The precision is selected in `precision`.
"""

import functools
import gc
import json
import os
import platform
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ikebana.errors import MachineError
from ikebana.learning import fast
from ikebana.learning.process_state import CUBLAS_VARIABLE, keep_large_blocks
from ikebana.system import progress
from ikebana.system.contention import estimate_competing_processors
from ikebana.system.launch import count_local_processes, read_launch
from ikebana.system.threads import count_threads
from ikebana.system.versions import find_versions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# The note on reproducibility in `environment.json`.
REPRODUCIBILITY_NOTE = (
    "the same photos and recipe.json give identical bits on this processor with the same number of threads and these "
    "libraries; elsewhere sums run in another order, so last digits differ and, after many steps, the score slightly"
)


@dataclass(frozen=True)
class DeviceSettings:
    """Device, precision, threads and allocator of this process.

    Attributes:
        device: cpu, cuda or mps.
        precision: of the training step, float32 or bfloat16.
        reasons: why device, precision, threads and allocator were chosen.
        seconds_per_photo: measured time of a training step or forward pass; None if not measured.
        measurement_id: cache file that a later, faster measurement may correct; "" if none may.
    """

    device: str
    precision: str
    threads: int
    allocator: str
    reasons: dict[str, str] = field(default_factory=dict)
    seconds_per_photo: float | None = None
    measurement_id: str = ""

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def inference_batch_size(self) -> int:
        """Photos per forward pass outside training.

        A CPU gets few: their feature maps stay in its cache, and no gigabyte is mapped first.
        """
        return 16 if self.device == "cpu" else 64

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast a forward pass to the precision; weights and gradients stay float32."""
        return torch.autocast(self.device, self.dtype, enabled=self.precision != "float32")


def configure(threads: int | None = None, device: str | None = None) -> DeviceSettings:
    """Configure device, threads and allocator of this process, within `preserve_process_state`.

    The precision is float32 until `select_precision` measures it.

    Args:
        threads: the number a resumed run began with.
        device: the device a resumed run began with, or the user chose; auto for a GPU if there is one.
    Raises:
        MachineError: torch cannot use the chosen device.
    """
    if threads is not None and device is not None:
        name, device_reason = device, "as when the run began"
    else:
        name, device_reason = _require_device(device or "auto")
    if name == "cuda":
        _make_cuda_deterministic()
    if threads is not None:
        count, threads_reason = threads, "as when the run began"
    else:
        count, threads_reason = _leave_busy_processors(*_count_threads())
    torch.set_num_threads(count)
    allocator, allocator_reason = keep_large_blocks()
    reasons = {
        "device": device_reason,
        "threads": threads_reason,
        "allocator": allocator_reason,
        "precision": "not measured yet",
    }
    if not fast.is_enabled():
        reasons["fast paths"] = f"disabled by {fast.VARIABLE}=off"
    return DeviceSettings(name, "float32", count, allocator, reasons)


def _make_cuda_deterministic() -> None:
    """Make CUDA compute float32 exactly and deterministically; torch warns where it cannot."""
    # No TF32: the score must be that of the exported model.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # cuBLAS reads it at its first product.
    os.environ.setdefault(CUBLAS_VARIABLE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # No result depends on uninitialised memory; filling it costs some hundred kernels per step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[assignment]
    # CUDA graphs are captured on a separate stream.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)


def _require_device(name: str) -> tuple[str, str]:
    """Return the device and the reason; MachineError if torch cannot use it."""
    if name == "auto":
        return _select_device()
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not is_available.get(name, False):
        raise MachineError(f"torch cannot use the device {name!r} here", advice="--device cpu, or --device auto")
    return name, "as the user chose"


def _select_device() -> tuple[str, str]:
    if torch.cuda.is_available():
        return "cuda", f"found a GPU: {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "found an Apple GPU"
    return "cpu", "found no GPU that PyTorch can use"


def get_free_gpu_bytes() -> int:
    """Count the free bytes of the CUDA device's own memory."""
    gc.collect()  # the captured graph of a trial and its network form a reference cycle
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@functools.cache  # after `configure`, torch.get_num_threads returns the number set there
def _count_threads() -> tuple[int, str]:
    """Count the processors that this process and its container may use; return the reason too."""
    allowed = count_threads()
    quota = _read_container_quota()
    physical = min(allowed, torch.get_num_threads())
    if quota is not None and quota < physical:
        return max(1, int(quota)), f"the container's quota is {quota:g} of {allowed} processors"
    local_size = count_local_processes()
    if local_size > 1 and "OMP_NUM_THREADS" not in os.environ:
        return max(1, physical // local_size), f"{local_size} processes share {physical} processors"
    if os.environ.get("OMP_NUM_THREADS") == str(physical):
        return physical, f"set by OMP_NUM_THREADS; {allowed} processors available"
    return physical, f"{allowed} processors available; a second thread per physical core would not be faster"


def _leave_busy_processors(count: int, reason: str) -> tuple[int, str]:
    """Do without the threads whose processors other processes use: all threads would wait for them."""
    if "OMP_NUM_THREADS" in os.environ or count == 1:
        return count, reason
    spare = count_threads() - count
    busy = estimate_competing_processors() - spare
    left = max(1, round(count - busy))
    if left >= count:
        return count, reason
    progress.message(
        f"other processes are using the processors: {left} of {count} threads are used "
        f"(to use all of them: OMP_NUM_THREADS={count})"
    )
    return left, f"{reason}; other processes use about {busy:.1f} of them"


def _read_container_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def cpu_has_bfloat16() -> bool:
    """Check for native bfloat16; a trial with emulated bfloat16 would take very long."""
    flags = _read_processor_flags()
    has_instructions = bool({"avx512_bf16", "amx_bf16", "bf16"} & flags) or (
        not flags and platform.machine() in ("arm64", "aarch64")
    )
    return has_instructions and can_convolve_bfloat16()


def can_convolve_bfloat16() -> bool:
    """Check whether oneDNN can compute in bfloat16, natively or emulated; below AVX-512 it raises."""
    return not torch.backends.mkldnn.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def describe_processor() -> str:
    """Return the processor's name and its instruction sets that matter here."""
    name = platform.processor() or platform.machine()
    for line in _read_cpuinfo():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    flags = sorted({"amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16"} & _read_processor_flags())
    return f"{name} ({', '.join(flags)})" if flags else name


@functools.cache
def _read_processor_flags() -> frozenset[str]:
    """Read the processor's feature flags from /proc/cpuinfo; empty if there is no such file."""
    for line in _read_cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _read_cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def load_settings(file: Path) -> DeviceSettings | None:
    """Load and apply the settings a run began with; others would change its result.

    Args:
        file: the run's `environment.json`.
    Returns:
        None if the file is missing or damaged, or this machine lacks the device.
    """
    try:
        values = json.loads(file.read_text("utf-8"))
        saved = {saved_field.name: values[saved_field.name] for saved_field in fields(DeviceSettings)}
    except (OSError, ValueError, KeyError, TypeError):  # interrupted before the file was written
        return None
    if saved["precision"] not in DTYPES or saved["device"] not in ("cpu", _select_device()[0]):
        return None
    if saved["device"] == "cpu" and saved["precision"] == "bfloat16" and not can_convolve_bfloat16():
        return None
    configure(saved["threads"], saved["device"])
    return DeviceSettings(**saved)


def collect_environment(settings: DeviceSettings) -> dict[str, Any]:
    """Describe machine, settings and libraries of a run, for `environment.json`."""
    libraries = ("torch", "timm", "numpy", "scipy", "pillow", "polars", "scikit-learn", "safetensors")
    return {
        **find_versions(["ikebana"]),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": describe_processor(),
        "accelerator": torch.cuda.get_device_name() if settings.device == "cuda" else None,
        **asdict(settings),
        **({} if fast.is_enabled() else {"fast_paths": "off"}),
        "processes": read_launch().size,
        "libraries": find_versions(libraries),
        "reproducibility": REPRODUCIBILITY_NOTE,
    }
