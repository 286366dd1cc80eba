"""Selection of the faster precision by a short trial, whose result is cached.

bfloat16 is three times as fast on one processor and slower on the next. It is therefore measured
once per processor, network and version.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ikebana.errors import MachineError, RecipeError
from ikebana.learning import fast
from ikebana.learning.device import (
    DTYPES,
    DeviceSettings,
    can_convolve_bfloat16,
    cpu_has_bfloat16,
    describe_processor,
)
from ikebana.recipe import Precision
from ikebana.system import progress, progress_bars
from ikebana.system.cache_folder import cache_folder
from ikebana.system.contention import WaitMeter
from ikebana.system.files import atomic_write, discard

# Increase it when training steps or forward passes change their speed: that discards cached times.
MEASUREMENT_VERSION = 3
# A run this much faster than a trial shows that the trial competed with other processes.
MIN_SPEEDUP_TO_MEASURE_AGAIN = 1.25
# Trials of each precision while other processes compete for the processors; the fastest one counts.
CONTENDED_TRIALS = 3


def select_precision(
    settings: DeviceSettings, precision: Precision, network: str, trial: Callable[[DeviceSettings], float]
) -> DeviceSettings:
    """Select the faster precision by a short trial; the cache keeps the measurement.

    Args:
        precision: float32 and bfloat16 are taken as given; only 'auto' compares.
        network: description of what is timed, part of the cache key.
        trial: runs one training step and returns seconds per photo. It raises MachineError if it
            runs out of memory.
    Raises:
        MachineError: every precision runs out of memory.
        RecipeError: bfloat16 is asked for and this processor cannot compute convolutions in it.
    """
    if precision == "bfloat16" and settings.device == "cpu" and not can_convolve_bfloat16():
        raise RecipeError(
            "this processor cannot compute convolutions in bfloat16", advice="--precision float32 or --precision auto"
        )
    candidates = _list_candidate_precisions(settings) if precision == "auto" else {precision: "set by --precision"}
    key = _make_key(settings, network)
    file = _get_measurement_path(hashlib.sha256(key.encode()).hexdigest()[:16])
    measurements, corrections = _read_measurements(file, key)
    missing = [name for name in candidates if name not in measurements]
    failures: dict[str, MachineError] = {}
    if missing:
        measured, failures, is_contended = _measure_precisions(settings, missing, trial)
        measurements |= measured
        # A speed that was measured beside other processes holds for this run only.
        if measured and not is_contended:
            _write_measurements(file, key, measurements, corrections)
    if len(failures) == len(candidates):
        raise next(iter(failures.values()))
    best = min((name for name in candidates if name not in failures), key=lambda name: measurements[name])
    reason = candidates[best]
    if len(candidates) > 1:
        speeds = {
            name: f"{progress_bars.format_rate(1 / measurements[name])} photos/s"
            for name in candidates
            if name not in failures
        }
        reason = "; ".join(f"{name} {speeds.get(name, 'needs more memory')}" for name in candidates)
    reasons = {**settings.reasons, "precision": reason}
    seconds = min(times[best] for times in (measurements, corrections) if best in times)
    return replace(settings, precision=best, reasons=reasons, seconds_per_photo=seconds, measurement_id=file.stem)


def _measure_precisions(
    settings: DeviceSettings, names: list[str], trial: Callable[[DeviceSettings], float]
) -> tuple[dict[str, float], dict[str, MachineError], bool]:
    """Run the trial for each precision, several times in turn if other processes compete.

    Returns:
        Seconds per photo, the errors of precisions that failed, and whether others competed.
    """
    measured: dict[str, float] = {}
    failures: dict[str, MachineError] = {}
    is_contended = False
    with progress.stage("measure speed", len(names), "precisions") as bar:
        for number in range(CONTENDED_TRIALS):
            with WaitMeter() as meter:
                for name in names:
                    try:
                        seconds = trial(replace(settings, precision=name))
                        measured[name] = min(seconds, measured.get(name, seconds))
                    except MachineError as error:
                        failures[name] = error
                    bar.advance(number == 0)
            is_contended |= meter.is_contended
            names = [name for name in names if name not in failures]
            if not is_contended or len(names) < 2:
                break
    return measured, failures, is_contended


def record_faster_speed(settings: DeviceSettings, seconds: float) -> None:
    """Record a long measurement that was faster than the short trial.

    The machine may have been busy during the trial. Later estimates use the faster time. If it is
    much faster, the trial is discarded, and the next run measures and selects the precision again.

    Args:
        settings: as `select_precision` returned them, or with another precision.
        seconds: seconds per photo.
    """
    if not settings.measurement_id:
        return
    file = _get_measurement_path(settings.measurement_id)
    key, measurements, corrections = _read_file(file)
    name = settings.precision
    # 0 if this precision was never measured: nothing is faster.
    known_seconds = min((times[name] for times in (measurements, corrections) if name in times), default=0.0)
    if key.startswith(_describe_machine(settings)) and seconds < known_seconds:
        if seconds * MIN_SPEEDUP_TO_MEASURE_AGAIN < known_seconds:
            measurements = {}
        with contextlib.suppress(MachineError):  # an unwritable cache must not end a run
            _write_measurements(file, key, measurements, {**corrections, name: seconds})


def get_seconds_per_photo(settings: DeviceSettings) -> float | None:
    """Return the best known seconds per photo, None if nothing was measured."""
    corrections = _read_file(_get_measurement_path(settings.measurement_id))[2] if settings.measurement_id else {}
    known_seconds = (settings.seconds_per_photo, corrections.get(settings.precision))
    return min((seconds for seconds in known_seconds if seconds is not None), default=None)


def _get_measurement_path(name: str) -> Path:
    return cache_folder() / "measurements" / f"{name}.json"


def _write_measurements(file: Path, key: str, measurements: dict[str, float], corrections: dict[str, float]) -> None:
    """Write seconds per photo by precision: those of the trials, and later, faster ones."""
    if file.is_dir():
        discard(file)
    values = {"key": key, "seconds_per_photo": measurements, "corrections": corrections}
    with atomic_write(file) as partial:
        partial.write_text(json.dumps({**values, "crc32": _compute_checksum(values)}, indent=1), "utf-8")


def _list_candidate_precisions(settings: DeviceSettings) -> dict[str, str]:
    """Return each precision worth a trial on this device, with the reason."""
    if settings.device == "mps":
        return {"float32": "bfloat16 is not reliable on MPS yet"}
    if settings.device == "cuda" and not torch.cuda.is_bf16_supported():
        return {"float32": "this GPU does not support bfloat16"}
    if settings.device == "cpu" and not cpu_has_bfloat16():
        return {"float32": "this processor does not support bfloat16"}
    return dict.fromkeys(DTYPES, "measured")


def _make_key(settings: DeviceSettings, network: str) -> str:
    return _describe_machine(settings) + network


def _describe_machine(settings: DeviceSettings) -> str:
    """Join all properties of the machine that its speed depends on."""
    accelerator = torch.cuda.get_device_name() if settings.device == "cuda" else describe_processor()
    properties = (
        str(MEASUREMENT_VERSION),
        settings.device,
        accelerator,
        str(settings.threads),
        settings.allocator,
        *([] if fast.is_enabled() else ["plain layers"]),
        torch.__version__,
        "",
    )
    return " | ".join(properties)


def _read_measurements(file: Path, key: str) -> tuple[dict[str, float], dict[str, float]]:
    file_key, measurements, corrections = _read_file(file)
    return (measurements, corrections) if file_key == key else ({}, {})


def _read_file(file: Path) -> tuple[str, dict[str, float], dict[str, float]]:
    """Read what `_write_measurements` wrote; all empty if the file is absent or damaged."""
    try:
        values = json.loads(file.read_text("utf-8"))
        if values.pop("crc32") != _compute_checksum(values):
            return "", {}, {}
        measurements, corrections = (
            {str(name): float(value) for name, value in values[part].items()}
            for part in ("seconds_per_photo", "corrections")
        )
        return str(values["key"]), measurements, corrections
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return "", {}, {}


def _compute_checksum(values: dict[str, Any]) -> int:
    """Compute the CRC-32 that keeps a corrupt digit from selecting another precision."""
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())
