"""Image classifiers from folders of labelled photos: check, train, evaluate, export and predict.

import ikebana
ikebana.audit("flowers/")            # problems of the photos, before training
run = ikebana.fit("flowers/")        # train a network and score it on a test set
run.evaluation                       # accuracy with its confidence interval, scores per class
flowers = ikebana.export(run, "flowers.onnx")  # one verified file
flowers.predict("garden.jpg")        # Prediction("tulip", 0.93)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ikebana.auditing.findings import Finding
    from ikebana.auditing.recommendation import Recommendation
    from ikebana.commands.audit import Audit, audit
    from ikebana.commands.cache import Cache, cache
    from ikebana.commands.compare import compare
    from ikebana.commands.doctor import doctor
    from ikebana.commands.explain import explain
    from ikebana.commands.export import export, export_web
    from ikebana.commands.fit import fit, resume
    from ikebana.commands.predict import predict
    from ikebana.commands.predict_shards import join_shards, plan_shards, predict_shard
    from ikebana.commands.report import report
    from ikebana.commands.serve import serve
    from ikebana.commands.sweep import Sweep, sweep
    from ikebana.demo_data.demo import demo
    from ikebana.errors import (
        IkebanaError,
        IncompleteShard,
        MachineError,
        ModelError,
        PhotosError,
        RecipeError,
        RunError,
        UnreadablePhoto,
    )
    from ikebana.evaluation.comparison import Comparison
    from ikebana.evaluation.metrics import Evaluation
    from ikebana.explanation.explanation import Explanation
    from ikebana.inference.classifier import Classifier, load
    from ikebana.inference.prediction import Prediction
    from ikebana.inference.shard_plan import ShardPlan
    from ikebana.learning.plan import Plan, training
    from ikebana.learning.training.checkpoint import Epoch
    from ikebana.recipe import AdamW, Augmentation, FineTune, FrozenBackbone, LinearProbe, Recipe, Scratch
    from ikebana.recipes import RECIPES
    from ikebana.runs.run import Run, open_run
    from ikebana.system.progress import listen, progress

    __version__: str

# Public names per module. They load on first use: `import ikebana` must not wait for torch.
_PUBLIC_NAMES = {
    "auditing.findings": ("Finding",),
    "auditing.recommendation": ("Recommendation",),
    "commands.audit": ("Audit", "audit"),
    "commands.cache": ("Cache", "cache"),
    "commands.compare": ("compare",),
    "commands.doctor": ("doctor",),
    "commands.explain": ("explain",),
    "commands.export": ("export", "export_web"),
    "commands.fit": ("fit", "resume"),
    "commands.predict": ("predict",),
    "commands.predict_shards": ("join_shards", "plan_shards", "predict_shard"),
    "commands.report": ("report",),
    "commands.serve": ("serve",),
    "commands.sweep": ("Sweep", "sweep"),
    "demo_data.demo": ("demo",),
    "errors": (
        "IkebanaError",
        "IncompleteShard",
        "MachineError",
        "ModelError",
        "PhotosError",
        "RecipeError",
        "RunError",
        "UnreadablePhoto",
    ),
    "evaluation.comparison": ("Comparison",),
    "evaluation.metrics": ("Evaluation",),
    "explanation.explanation": ("Explanation",),
    "inference.classifier": ("Classifier", "load"),
    "inference.prediction": ("Prediction",),
    "inference.shard_plan": ("ShardPlan",),
    "learning.plan": ("Plan", "training"),
    "learning.training.checkpoint": ("Epoch",),
    "recipe": ("AdamW", "Augmentation", "FineTune", "FrozenBackbone", "LinearProbe", "Recipe", "Scratch"),
    "recipes": ("RECIPES",),
    "runs.run": ("Run", "open_run"),
    "system.progress": ("listen", "progress"),
}

__all__ = [
    "RECIPES",
    "AdamW",
    "Audit",
    "Augmentation",
    "Cache",
    "Classifier",
    "Comparison",
    "Epoch",
    "Evaluation",
    "Explanation",
    "Finding",
    "FineTune",
    "FrozenBackbone",
    "IkebanaError",
    "IncompleteShard",
    "LinearProbe",
    "MachineError",
    "ModelError",
    "PhotosError",
    "Plan",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Recommendation",
    "Run",
    "RunError",
    "Scratch",
    "ShardPlan",
    "Sweep",
    "UnreadablePhoto",
    "__version__",
    "audit",
    "cache",
    "compare",
    "demo",
    "doctor",
    "explain",
    "export",
    "export_web",
    "fit",
    "join_shards",
    "listen",
    "load",
    "open_run",
    "plan_shards",
    "predict",
    "predict_shard",
    "progress",
    "report",
    "resume",
    "serve",
    "sweep",
    "training",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("ikebana")
    for module, names in _PUBLIC_NAMES.items():
        if name in names:
            return getattr(import_module(f"ikebana.{module}"), name)
    raise AttributeError(f"module 'ikebana' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
