"""Metadata of a model file, without times or paths: equal runs give equal files."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikebana.exporting.threshold import guarantee_errors
from ikebana.inference.model_file import FORMAT_VERSION
from ikebana.recipe import recipe_to_json
from ikebana.runs.run import Run
from ikebana.system.versions import find_versions

# Keys of evaluation.json that depend on the machine, name photos or are long.
OMITTED_SCORES = ("seconds", "leakage", "risk_coverage", "slices", "robustness")
LIBRARIES = ("ikebana", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow")


def collect(run: Run, at_most_wrong: float | None = None) -> dict[str, Any]:
    """Collect all metadata of a run that a user of the file may need.

    Args:
        at_most_wrong: the share of wrong answers that the threshold must guarantee; None for the
            threshold of the run.
    Raises:
        RunError: the run has not finished, is damaged, or cannot give the guarantee.
    """
    calibration, evaluation = run.calibration, run.evaluation
    if at_most_wrong is not None:
        calibration, evaluation = guarantee_errors(run, at_most_wrong)
    scores, model = evaluation.to_json(), run.familiarity
    return {
        "ikebana": FORMAT_VERSION,
        "classes": list(run.classes),
        "image_size": run.recipe.image_size,
        "resize": run.recipe.resize,
        "threshold": calibration.threshold,
        "temperature": calibration.temperature,
        "familiarity": model and {"threshold": model.threshold, "photos": model.known_photos},
        "candidates": None if calibration.candidates is None else asdict(calibration.candidates),
        "guarantee": None if calibration.guarantee is None else asdict(calibration.guarantee),
        "recipe": _strip_paths(recipe_to_json(run.recipe)),
        "data": {"fingerprint": run.source["fingerprint"]},
        "scores": {name: value for name, value in scores.items() if name not in OMITTED_SCORES},
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
