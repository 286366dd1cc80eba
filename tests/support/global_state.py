"""State of the whole process that a call must not change."""

import logging
import os
import random
import signal
import sys
import threading
import warnings
from typing import Any

LOGGERS = (
    "",
    "ikebana",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "uvicorn.asgi",
    "PIL",
    "onnxscript",
    "matplotlib",
)
THIRD_PARTY = (
    "torch", "torch._inductor.config", "torch.onnx", "torch.export", "timm", "matplotlib", "sklearn.linear_model",
    "sklearn.ensemble", "sklearn.model_selection", "scipy", "onnxscript", "polars", "PIL.Image", "PIL.ImageFile", "uvicorn",
    "onnx", "rich.progress", "onnxruntime", "onnxruntime.quantization",
)  # fmt: skip


def import_libraries() -> None:
    """Import the libraries that ikebana uses, because they change state when imported."""
    import importlib

    # Documented in onnxruntime's README. Otherwise it writes a device identifier to the home folder.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    for name in THIRD_PARTY:
        importlib.import_module(name)
    del os.environ["ORT_DISABLE_TELEMETRY"]


def take_snapshot() -> dict[str, Any]:
    """Describe the state of the process by name, as values that can be compared."""
    return {**describe_python(), **_describe_torch(), **_describe_libraries()}


def find_differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name what differs, with both values."""
    return [f"{name}: {before[name]!r:.300} -> {after[name]!r:.300}" for name in before if before[name] != after[name]]


def describe_python() -> dict[str, Any]:
    """Describe the state of Python alone, as `take_snapshot` does for all libraries."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "environment": dict(os.environ),
        "working directory": os.getcwd(),
        "umask": umask,
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "warning filters": [str(rule) for rule in warnings.filters],
        "showwarning": warnings.showwarning,
        "logging": [_describe_logger(name) for name in LOGGERS],
        "disabled log level": logging.root.manager.disable,
        "random": random.getstate(),
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
        "recursion limit": sys.getrecursionlimit(),
        "switch interval": sys.getswitchinterval(),
        "path": list(sys.path),
    }


def _describe_logger(name: str) -> tuple[Any, ...]:
    logger = logging.getLogger(name)
    return name, logger.level, logger.propagate, list(logger.handlers), list(logger.filters)


def _describe_torch() -> dict[str, Any]:
    import torch

    cudnn: Any = torch.backends.cudnn
    return {
        "threads": torch.get_num_threads(),
        "torch's rng": torch.get_rng_state().tolist(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "default dtype": torch.get_default_dtype(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        ),
        "cudnn": (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cudnn.conv.fp32_precision),
        "matmul": (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    }


def _describe_libraries() -> dict[str, Any]:
    import matplotlib
    import numpy as np
    from PIL import Image, ImageFile

    return {
        "numpy's rng": str(np.random.get_state()),
        "numpy's errors": np.geterr(),
        "Pillow": (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, sorted(Image.OPEN), sorted(Image.SAVE)),
        "matplotlib": (matplotlib.rcParams._get("backend"), dict(matplotlib.rcParams.copy())),  # type: ignore[attr-defined]
    }
