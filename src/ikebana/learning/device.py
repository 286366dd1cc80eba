"""Device, number format, threads, allocator: each with the reason it was chosen.

On a CPU two things decide more than the arithmetic. Freshly mapped buffers: the C library gives large blocks back to the
system after each use and the page faults of getting them again took half of a training step here; `keep_large_blocks` ends
that. And the number format: bfloat16 is three times as fast on one processor and slower on the next, so it is measured, once
for each processor, network and version, and kept in the cache.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import json
import os
import platform
import sys
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ikebana import progress
from ikebana.errors import MachineError
from ikebana.learning.repeating import PROMISE
from ikebana.photos import kept
from ikebana.places import cache_folder, set_aside, written
from ikebana.recipe import Precision

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's names, from malloc.h
KEEP_BLOCKS_BELOW = 2**30  # bytes
RULES = 3  # raised when steps or looks take another time than before: what was measured is measured anew
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Setting:
    """How this machine is used."""

    device: str  # cpu, cuda or mps
    number_format: str  # of the training step: float32 or bfloat16
    threads: int
    allocator: str
    reasons: dict[str, str] = field(default_factory=dict)
    seconds_per_photo: float | None = None  # of a training step, as measured; None if nothing was measured
    measured_in: str = ""  # a file of the cache, by name, that a faster look may correct; none if nobody looks again

    @property
    def dtype(self) -> torch.dtype:
        return FORMATS[self.number_format]

    @property
    def at_a_time(self) -> int:
        """Photos that a network looks at together where nothing is learned. On a CPU few of them: their maps then stay in
        its cache, and a gigabyte of memory need not be had from the system first, page by page."""
        return 16 if self.device == "cpu" else 64

    def autocast(self) -> AbstractContextManager[Any]:
        """The number format, for a forward pass; weights and gradients stay float32."""
        return torch.autocast(self.device, self.dtype, enabled=self.number_format != "float32")


def prepare(threads: int | None = None, device: str | None = None) -> Setting:
    """The device, its threads and its allocator, set for this process; the number format is float32 until `measured`.

    threads, device  as a run began with, if it is gone on with
    """
    name, why = _device() if device is None else (device, "as the run began with")
    if name == "cuda":
        _repeatable_on_cuda()
    count, why_threads = _threads()
    if threads is not None:
        count, why_threads = threads, "as the run began with"
    torch.set_num_threads(count)
    allocator, why_allocator = keep_large_blocks()
    reasons = {"device": why, "threads": why_threads, "allocator": why_allocator, "number_format": "not measured yet"}
    return Setting(name, "float32", count, allocator, reasons)


def _repeatable_on_cuda() -> None:
    """float32 is to mean float32, since the score must be that of the file that ships; and the same run gives the same bits,
    as far as torch knows how: it warns where it does not. No result here depends on memory that nothing was written to, so it
    need not be filled first, as torch would do with each of some hundred outputs of a step."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[assignment]
    # Steps are recorded on a stream of their own.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)


def _device() -> tuple[str, str]:
    if torch.cuda.is_available():
        return "cuda", f"a GPU is there: {torch.cuda.get_device_name()}"
    if torch.backends.mps.is_available():
        return "mps", "Apple's GPU is there"
    return "cpu", "no GPU that torch can use was found"


def free_on_gpu() -> int:
    """Bytes that are left on the GPU in use, where it has memory of its own (CUDA)."""
    gc.collect()  # recorded steps of a trial are in a circle with its network
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@functools.cache  # torch's own number is what it was told last, once `prepare` has told it
def _threads() -> tuple[int, str]:
    """One thread a processor that this process may use; in a container that is fewer than the machine has."""
    allowed = kept.threads()
    quota = _container_quota()
    if quota is not None and quota < allowed:
        return max(1, int(quota)), f"this container may use {quota:g} of {allowed} processors"
    physical = min(allowed, torch.get_num_threads())
    return physical, f"{allowed} processors may be used; a second thread on one core does not help arithmetic"


def _container_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


@functools.cache
def keep_large_blocks() -> tuple[str, str]:
    """Tell glibc to keep the large blocks that a training step frees, for the next step.

    Without this each step maps hundreds of megabytes anew and pays a page fault for every 4 KiB of them.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return "as it comes", f"{platform.system()}'s own allocator is not glibc's"
    libc = ctypes.CDLL(None)
    taken = libc.mallopt(M_MMAP_THRESHOLD, KEEP_BLOCKS_BELOW) and libc.mallopt(
        M_TRIM_THRESHOLD, 2 * KEEP_BLOCKS_BELOW - 1
    )
    if not taken:
        return "as it comes", "glibc refused the setting"
    return "glibc, blocks kept", "page faults of freshly mapped buffers cost as much as the arithmetic"


def measured(setting: Setting, precision: Precision, network: str, trial: Callable[[Setting], float]) -> Setting:
    """The setting with the faster number format, found out by a short trial and kept for the next run.

    precision  float32 or bfloat16 are taken as asked; only 'auto' compares
    network    what is timed, in words: part of the key under which the result is kept
    trial      runs one training step in that setting: seconds a photo; MachineError where memory does not hold it
    raises     MachineError if memory holds it in no number format
    """
    formats = _formats(setting) if precision == "auto" else {precision: "asked for"}
    key = _key(setting, network)
    file = _file(hashlib.sha256(key.encode()).hexdigest()[:16])
    known, since = _known(file, key)
    missing = [name for name in formats if name not in known]
    refused: dict[str, MachineError] = {}
    if missing:
        with progress.stage("measure the speed", len(missing), "number formats") as bar:
            for name in missing:
                try:
                    known[name] = trial(replace(setting, number_format=name))
                except MachineError as error:
                    refused[name] = error
                bar.advance(1)
    if len(refused) == len(formats):
        raise next(iter(refused.values()))
    if missing:
        _keep(file, key, known, since)
    best = min((name for name in formats if name not in refused), key=lambda name: known[name])
    reason = formats[best]
    if len(formats) > 1:
        found = {name: f"{1 / known[name]:,.0f} photos/s" for name in formats if name not in refused}
        reason = "; ".join(f"{name} {found.get(name, 'needs more memory')}" for name in formats)
    reasons = {**setting.reasons, "number_format": reason}
    seconds = since.get(best, known[best])
    return replace(setting, number_format=best, reasons=reasons, seconds_per_photo=seconds, measured_in=file.stem)


def was_faster(setting: Setting, seconds: float) -> None:
    """Whoever was at it for long may have found it faster than the short trial did, while the machine was busy perhaps: that is
    what is said from then on. The number format stays the one that the trial chose, since the trial compared like with like.

    setting  as `measured` gave it, or in another number format
    seconds  a photo
    """
    if not setting.measured_in:
        return
    file = _file(setting.measured_in)
    key, known, since = _read(file)
    name = setting.number_format
    if key.startswith(_here(setting)) and seconds < since.get(name, known.get(name, 0.0)):
        with contextlib.suppress(MachineError):  # a run does not end because its speed cannot be written down
            _keep(file, key, known, {**since, name: seconds})


def speed(setting: Setting) -> float | None:
    """Seconds a photo, as far as is known by now; None if nothing was measured."""
    since = _read(_file(setting.measured_in))[2] if setting.measured_in else {}
    return since.get(setting.number_format, setting.seconds_per_photo)


def _file(name: str) -> Path:
    return cache_folder() / "measured" / f"{name}.json"


def _keep(file: Path, key: str, known: dict[str, float], since: dict[str, float]) -> None:
    """
    known  seconds a photo of each number format's trial
    since  the same where it was faster later
    """
    if file.is_dir():
        set_aside(file)
    values = {"key": key, "seconds_per_photo": known, "since": since}
    with written(file) as beside:
        beside.write_text(json.dumps({**values, "crc32": _checksum(values)}, indent=1), "utf-8")


def _formats(setting: Setting) -> dict[str, str]:
    """The number formats worth a trial on this device."""
    if setting.device == "mps":
        return {"float32": "bfloat16 is not dependable on MPS yet"}
    if setting.device == "cuda" and not torch.cuda.is_bf16_supported():
        return {"float32": "this GPU has no bfloat16"}
    if setting.device == "cpu" and not _cpu_has_bfloat16():
        return {"float32": "this processor has no bfloat16 arithmetic"}
    return dict.fromkeys(FORMATS, "measured")


def _cpu_has_bfloat16() -> bool:
    """Whether trying is worth it: where bfloat16 is emulated, one trial step would take many times as long."""
    flags = processor_flags()
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & flags) or (
        not flags and platform.machine() in ("arm64", "aarch64")
    )


def _key(setting: Setting, network: str) -> str:
    return _here(setting) + network


def _here(setting: Setting) -> str:
    """This machine, as far as speed depends on it."""
    accelerator = torch.cuda.get_device_name() if setting.device == "cuda" else processor()
    parts = (str(RULES), setting.device, accelerator, str(setting.threads), setting.allocator, torch.__version__, "")
    return " | ".join(parts)


def _known(file: Path, key: str) -> tuple[dict[str, float], dict[str, float]]:
    of, known, since = _read(file)
    return (known, since) if of == key else ({}, {})


def _read(file: Path) -> tuple[str, dict[str, float], dict[str, float]]:
    """What was measured, and the seconds a photo that `_keep` was given; nothing if the file is absent or damaged."""
    try:
        kept = json.loads(file.read_text("utf-8"))
        if kept.pop("crc32") != _checksum(kept):
            return "", {}, {}
        known, since = (
            {str(name): float(value) for name, value in kept[part].items()} for part in ("seconds_per_photo", "since")
        )
        return str(kept["key"]), known, since
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return "", {}, {}


def _checksum(values: dict[str, Any]) -> int:
    """So that a digit that has changed on the disk does not choose another number format."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


@functools.cache
def processor() -> str:
    """The processor's name and the instructions that matter here."""
    name = platform.processor() or platform.machine()
    for line in _cpuinfo():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    extras = sorted({"amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16"} & processor_flags())
    return f"{name} ({', '.join(extras)})" if extras else name


@functools.cache
def processor_flags() -> frozenset[str]:
    """What /proc/cpuinfo says the processor can do; empty where there is no such file."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def remembered(file: Path) -> Setting | None:
    """The setting that a run began with, from its `environment.json`: to go on in another would change its result.

    returns  None if there is no such file yet, or its device is gone; a processor is always there
    """
    try:
        values = json.loads(file.read_text("utf-8"))
        began = {each.name: values[each.name] for each in fields(Setting)}
    except (OSError, ValueError, KeyError, TypeError):  # the run was stopped before it was written
        return None
    if began["number_format"] not in FORMATS or began["device"] not in ("cpu", _device()[0]):
        return None
    prepare(began["threads"], began["device"])
    return Setting(**began)


def environment(setting: Setting) -> dict[str, Any]:
    """What a run ran on, and why it was used like that, for `environment.json`."""
    import importlib.metadata

    libraries = ("torch", "timm", "numpy", "scipy", "pillow", "polars", "scikit-learn", "safetensors")
    return {
        "ikebana": importlib.metadata.version("ikebana"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "accelerator": torch.cuda.get_device_name() if setting.device == "cuda" else None,
        **asdict(setting),
        "libraries": {name: importlib.metadata.version(name) for name in libraries},
        "repeatable": PROMISE,
    }
