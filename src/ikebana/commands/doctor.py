"""`ikebana doctor`: this machine's hardware and versions, and how ikebana uses them."""

import importlib.metadata
import os
import platform

import torch

from ikebana.commands.cache import measure_size
from ikebana.errors import UsageError
from ikebana.learning import fast
from ikebana.learning.device import describe_processor
from ikebana.learning.estimate import configure_device
from ikebana.learning.models import networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.process_state import preserve_process_state
from ikebana.recipes import DEFAULT_RECIPE, RECIPES
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import free_space
from ikebana.system.launch import MEETING_POINT, SIZE, find_ignored_variables, read_launch
from ikebana.system.versions import find_versions

LIBRARIES = (
    "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow", "pillow-heif", "polars",
    "scikit-learn", "safetensors",
)  # fmt: skip


@preserve_process_state()
def doctor(*, device: str = "auto") -> dict[str, str]:
    """Return facts about this machine and how ikebana uses it, as text by name.

    Args:
        device: auto for a GPU if there is one, cpu, cuda or mps.
    """
    recipe = networks.fill_defaults(RECIPES[DEFAULT_RECIPE])
    settings = configure_device(assemble(recipe, classes=5, loads_weights=False), device_name=device)
    cache = cache_folder()
    return {
        "ikebana": importlib.metadata.version("ikebana"),
        "python": f"{platform.python_version()} on {platform.platform()}",
        "processor": describe_processor(),
        "GPU": "yes" if settings.device != "cpu" else "none that PyTorch can use: ikebana trains on the CPU",
        "processes": _describe_processes(settings.device),
        "device": f"{settings.device}: {settings.reasons['device']}",
        "threads": f"{settings.threads}: {settings.reasons['threads']}",
        "allocator": f"{settings.allocator}: {settings.reasons['allocator']}",
        "precision": f"{settings.precision} for {DEFAULT_RECIPE}: {settings.reasons['precision']}",
        **_describe_fast_paths(),
        "cache": f"{cache} ({measure_size(cache) / 1e9:.2f} GB; can be deleted at any time)",
        "disk": f"{free_space(cache) / 1e9:.0f} GB free",
        **{name: version or "not installed" for name, version in find_versions(LIBRARIES).items()},
    }


def _describe_processes(device: str) -> str:
    """Describe the processes that a launcher started, and how they exchange gradients."""
    try:
        launch = read_launch()
    except UsageError as error:
        return f"invalid variables: {error.what} ({error.advice})"
    gpus = torch.cuda.device_count()
    if not launch.has_peers:
        if ignored := find_ignored_variables():
            return f"1: {SIZE} is not set, so {' and '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored"
        unused = f": training uses one of {gpus} GPUs (to use all: docs/several-gpus.md)" if gpus > 1 else ""
        return f"1{unused}"
    backend = "NCCL" if device == "cuda" else "gloo"
    place = ":".join(os.environ[name] for name in MEETING_POINT)
    where = f"number {launch.local_rank} of {launch.local_size} on this machine, which has {gpus} GPUs"
    return f"{launch.size}: this is {launch.rank}, {where}; gradients by {backend}, meeting at {place}"


def _describe_fast_paths() -> dict[str, str]:
    return (
        {} if fast.is_enabled() else {"fast paths": f"disabled by {fast.VARIABLE}=off: plain PyTorch layers are used"}
    )
