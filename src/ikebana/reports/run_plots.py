"""The charts of a run as matplotlib figures: `run.plot`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from ikebana.data.dataset import SPLITS, STATUS_USED
from ikebana.errors import RunError
from ikebana.runs.run import Run

# matplotlib takes half a second to load.
if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ikebana.reports.sheet import SheetFigure


@dataclass(frozen=True)
class RunPlots:
    """The charts of a run, each a matplotlib figure that notebooks show."""

    run: Run

    def classes(self) -> "SheetFigure":
        """Draw the photos per class: training, validation and test photos."""
        from ikebana.reports.figures import make_class_bars

        used = self.run.dataset.filter(status=STATUS_USED).group_by("label", "split").len()
        counts = {name: dict.fromkeys(map(str, SPLITS), 0) for name in self.run.classes}
        for label, split, photos in used.iter_rows():
            counts[label][split] = photos
        return _get_figure(make_class_bars(counts))

    def curves(self, network: int = 1) -> "SheetFigure":
        """Draw loss and accuracy per epoch.

        Args:
            network: of an ensemble, from 1.
        """
        from ikebana.reports.run_figures import make_network_curves

        if not hasattr(self.run.recipe.method, "epochs"):
            what = f"the recipe {self.run.recipe.name} has no epochs, so there are no curves"
            raise RunError(what, where=self.run.folder, advice="a recipe with epochs: ikebana fit PHOTOS --recipe good")
        epochs, count = self.run.history.to_dicts(), len(self.run.recipe.networks)
        if not 1 <= network <= count:
            what = f"there is no network {network}: the recipe {self.run.recipe.name} has {count}"
            raise RunError(what, where=self.run.folder, advice="run.plot.curves()")
        validation_count = self.run.dataset.filter(status=STATUS_USED, split="validation").height
        return _get_figure(make_network_curves(epochs, self.run.recipe, validation_count)[network - 1])

    def confusion(self) -> "SheetFigure":
        """Draw the confusion matrix of the test photos."""
        from ikebana.reports.figures import make_confusion_matrix

        evaluation = self.run.evaluation
        return _get_figure(make_confusion_matrix(np.array(evaluation.confusion), evaluation.classes))

    def confused_pairs(self) -> "SheetFigure":
        """Draw the most frequent confusions of two classes, which helps with many classes."""
        from ikebana.reports.figures import make_worst_pairs

        evaluation = self.run.evaluation
        return _get_figure(make_worst_pairs(np.array(evaluation.confusion), evaluation.classes))

    def reliability(self) -> "SheetFigure":
        """Draw how often answers of a confidence are correct, on the test photos."""
        from ikebana.reports.run_charts import make_reliability

        test = self.run.predictions.filter(split="test")
        index = {name: number for number, name in enumerate(self.run.classes)}
        labels = np.array([index[name] for name in test["label"]], int)
        probabilities = test.select(f"p:{name}" for name in self.run.classes).to_numpy()
        return _get_figure(make_reliability(probabilities, labels))

    def risk_coverage(self) -> "SheetFigure":
        """Draw the share of wrong answers by the share of answered test photos."""
        from ikebana.reports.run_charts import make_risk_coverage

        evaluation = self.run.evaluation
        if evaluation.risk_coverage is None:
            raise self._missing_error("risk-coverage curve", "repeat the run with this version of ikebana")
        return _get_figure(make_risk_coverage(evaluation.risk_coverage, evaluation.threshold))

    def learning_curves(self) -> "SheetFigure":
        """Draw what more photos would bring, overall and for single classes."""
        from ikebana.reports.run_charts import make_learning_curves

        if not self.run.evaluation.learning_curves:
            advice = "ikebana audit PHOTOS --advise; fit measures them for quick with at most 1,000 photos"
            raise self._missing_error("learning curves", advice)
        return _get_figure(make_learning_curves(self.run.evaluation.learning_curves))

    def robustness(self) -> "SheetFigure":
        """Draw the accuracy on changed test photos."""
        from ikebana.reports.run_charts import make_robustness

        if self.run.evaluation.robustness is None:
            raise self._missing_error("robustness", f"ikebana fit --resume {self.run.folder} --robustness")
        return _get_figure(make_robustness(self.run.evaluation.robustness))

    def _missing_error(self, name: str, advice: str) -> RunError:
        return RunError(f"this run has no {name}", where=self.run.folder, advice=advice)

    def __dir__(self) -> list[str]:
        return [name for name in vars(RunPlots) if not name.startswith("_")]

    def __repr__(self) -> str:
        return f"the charts of {self.run.folder}: " + ", ".join(f".{name}()" for name in dir(self))


def _get_figure(sheet: "Axes") -> "SheetFigure":
    return cast("SheetFigure", sheet.figure)
