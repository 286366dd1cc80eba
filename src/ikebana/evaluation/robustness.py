"""Accuracy on test photos that were changed: blurred, darkened, rotated and others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

STRENGTHS = (1, 2, 3, 4, 5)
# Widths in the table.
NAME_COLUMNS, NUMBER_COLUMNS = 14, 7


@dataclass(frozen=True)
class Robustness:
    """Accuracy of a network on changed copies of some test photos.

    Attributes:
        n: number of test photos that were changed.
        accuracy: on these photos as they are.
        accuracies: per change, at strengths 1 to 5.
    """

    n: int
    accuracy: float
    accuracies: Mapping[str, tuple[float, ...]]

    @property
    def mean_accuracy(self) -> float:
        """The mean over all changes and strengths."""
        return float(np.mean(list(self.accuracies.values())))

    def describe(self) -> str:
        """Return one line for the report."""
        worst = min(self.accuracies, key=lambda name: float(np.mean(self.accuracies[name])))
        return (
            f"on changed copies of {self.n} test photos: accuracy {self.mean_accuracy:.3f} on average, unchanged "
            f"{self.accuracy:.3f}; lowest for {worst}, {np.mean(self.accuracies[worst]):.3f}"
        )

    def format_table(self) -> str:
        """Format one row per change and one column per strength."""
        header = "".join(f"{name:>{NUMBER_COLUMNS}}" for name in ("0", *map(str, STRENGTHS), "mean"))
        lines = [f"{'strength':<{NAME_COLUMNS}}{header}"]
        for name, accuracies in self.accuracies.items():
            row = (self.accuracy, *accuracies, float(np.mean(accuracies)))
            lines.append(f"{name:<{NAME_COLUMNS}}" + "".join(f"{number:>{NUMBER_COLUMNS}.3f}" for number in row))
        return f"accuracy on changed copies of {self.n} test photos (strength 0: unchanged)\n\n" + "\n".join(lines)


def from_json(values: Mapping[str, Any]) -> Robustness:
    """Read the robustness from a run's `evaluation.json`.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: a value is missing or of the wrong type.
    """
    accuracies = {name: tuple(map(float, row)) for name, row in values["accuracies"].items()}
    return Robustness(int(values["n"]), float(values["accuracy"]), accuracies)
