"""What a model file says about itself: no time and no path, so equal runs give equal files."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from ikebana import recipe as recipes
from ikebana.run import Run
from ikebana.shipping.model_file import FORMAT

LIBRARIES = ("ikebana", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow")


def about(run: Run) -> dict[str, Any]:
    """Everything that the run knows and a user of the file may ask.

    raises  RunError if the run has not finished, or is damaged
    """
    scores = run.evaluation.to_json()
    trusted = run.calibration
    pretrained = (run.folder / "pretrained.json").exists()
    return {
        "ikebana": FORMAT,
        "classes": list(run.classes),
        "side": run.recipe.side,
        "fit": run.recipe.fit,
        "threshold": trusted.threshold,
        "temperature": trusted.temperature,
        "recipe": _without_paths(recipes.to_json(run.recipe)),
        "data": {"fingerprint": run.source["fingerprint"]},
        "scores": {name: value for name, value in scores.items() if name not in ("seconds", "leakage")},
        "pretrained": run.read_json("pretrained.json") if pretrained else {},
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def as_entries(values: dict[str, Any]) -> dict[str, str]:
    """Each value as JSON, as the file's metadata hold them."""
    return {name: json.dumps(value, ensure_ascii=False, allow_nan=False) for name, value in values.items()}


def _without_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """Where the weights' file lay says nothing to others; its name may."""
    return {**recipe, "weights": Path(recipe["weights"]).name}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
