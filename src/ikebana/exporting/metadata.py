"""Metadata of a model file, without times or paths: equal runs give equal files."""

import json
from pathlib import Path
from typing import Any

from ikebana.inference.model_file import FORMAT_VERSION
from ikebana.recipe import recipe_to_json
from ikebana.runs.run import Run
from ikebana.system.versions import find_versions

LIBRARIES = ("ikebana", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow")


def collect(run: Run) -> dict[str, Any]:
    """Collect all metadata of a run that a user of the file may need.

    Raises:
        RunError: the run has not finished, or is damaged.
    """
    scores = run.evaluation.to_json()
    calibration = run.calibration
    return {
        "ikebana": FORMAT_VERSION,
        "classes": list(run.classes),
        "image_size": run.recipe.image_size,
        "resize": run.recipe.resize,
        "threshold": calibration.threshold,
        "temperature": calibration.temperature,
        "recipe": _strip_paths(recipe_to_json(run.recipe)),
        "data": {"fingerprint": run.source["fingerprint"]},
        "scores": {
            name: value for name, value in scores.items() if name not in ("seconds", "leakage", "slices", "robustness")
        },
        "pretrained": run.pretrained,
        "versions": find_versions(LIBRARIES),
    }


def to_entries(values: dict[str, Any]) -> dict[str, str]:
    """Encode each value as JSON, as ONNX metadata hold strings only."""
    return {name: json.dumps(value, ensure_ascii=False, allow_nan=False) for name, value in values.items()}


def _strip_paths(recipe: dict[str, Any]) -> dict[str, Any]:
    """Keep the name of the weights file, not its folder."""
    if not recipe["method"].get("weights"):
        return recipe
    return {**recipe, "method": {**recipe["method"], "weights": Path(recipe["method"]["weights"]).name}}
