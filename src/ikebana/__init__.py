"""From a folder of labelled photos to an image classifier that its owner can trust and ship.

import ikebana
ikebana.audit("flowers/")            # problems of the photos, before training
run = ikebana.fit("flowers/")        # train a network and score it on a test set
run.evaluation                       # accuracy with its confidence interval, scores per class
flowers = ikebana.export(run, "flowers.onnx")  # one verified file
flowers.predict("garden.jpg")        # Prediction("tulip", 0.93)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ikebana.advice import Advice
    from ikebana.checkup import doctor
    from ikebana.choices import Augmentation, Transfer, Tuning
    from ikebana.errors import (
        IkebanaError,
        MachineError,
        ModelError,
        PhotosError,
        RecipeError,
        RunError,
        UnreadablePhoto,
    )
    from ikebana.inspection import Audit, audit
    from ikebana.pipeline import fit, resume
    from ikebana.prediction import predict
    from ikebana.recipe import RECIPES, Recipe
    from ikebana.run import Run, open_run
    from ikebana.shipping.classifier import Classifier, load
    from ikebana.shipping.export import export
    from ikebana.shipping.prediction import Prediction
    from ikebana.shipping.server import serve
    from ikebana.shipping.web import export_web
    from ikebana.storage import Cache, cache
    from ikebana.tour import demo
    from ikebana.trust.evaluation import Evaluation

# Public names per module. They load on first use: `import ikebana` must not wait for torch.
_PUBLIC_NAMES = {
    "advice": ("Advice",),
    "checkup": ("doctor",),
    "choices": ("Augmentation", "Transfer", "Tuning"),
    "errors": (
        "IkebanaError",
        "MachineError",
        "ModelError",
        "PhotosError",
        "RecipeError",
        "RunError",
        "UnreadablePhoto",
    ),
    "inspection": ("Audit", "audit"),
    "pipeline": ("fit", "resume"),
    "prediction": ("predict",),
    "recipe": ("RECIPES", "Recipe"),
    "run": ("Run", "open_run"),
    "storage": ("Cache", "cache"),
    "shipping.classifier": ("Classifier", "load"),
    "shipping.export": ("export",),
    "shipping.prediction": ("Prediction",),
    "shipping.server": ("serve",),
    "shipping.web": ("export_web",),
    "tour": ("demo",),
    "trust.evaluation": ("Evaluation",),
}

__all__ = [
    "RECIPES",
    "Advice",
    "Audit",
    "Augmentation",
    "Cache",
    "Classifier",
    "Evaluation",
    "IkebanaError",
    "MachineError",
    "ModelError",
    "PhotosError",
    "Prediction",
    "Recipe",
    "RecipeError",
    "Run",
    "RunError",
    "Transfer",
    "Tuning",
    "UnreadablePhoto",
    "audit",
    "cache",
    "demo",
    "doctor",
    "export",
    "export_web",
    "fit",
    "load",
    "open_run",
    "predict",
    "resume",
    "serve",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _PUBLIC_NAMES.items():
        if name in names:
            return getattr(import_module(f"ikebana.{module}"), name)
    raise AttributeError(f"module 'ikebana' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
