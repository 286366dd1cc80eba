"""Another threshold for "not sure" than the run's, from the run's own predictions."""

import numpy as np
import polars as pl

from ikebana.data.dataset import STATUS_USED
from ikebana.data.split import find_groups
from ikebana.errors import RunError
from ikebana.evaluation.calibration import Calibration, set_threshold
from ikebana.evaluation.calibration_photos import find_calibration_photos
from ikebana.evaluation.metrics import Evaluation, score_confidence
from ikebana.runs.run import Run


def guarantee_errors(run: Run, at_most_wrong: float) -> tuple[Calibration, Evaluation]:
    """Choose the threshold anew, so that at most so many of the answers are wrong.

    Returns:
        The run's calibration and evaluation with this threshold.
    Raises:
        RunError: its calibration photos do not show it; the message gives the reason.
    """
    used, coverage = run.dataset.filter(pl.col("status") == STATUS_USED), run.recipe.coverage
    *chosen, is_known = _read_predictions(run, find_calibration_photos(used))
    calibration = set_threshold(
        run.calibration, *chosen, coverage=coverage, at_most_wrong=at_most_wrong, is_known=is_known
    )
    guarantee = calibration.guarantee
    if guarantee is None or not guarantee.holds:
        reason = guarantee.reason if guarantee is not None else ""
        raise RunError(reason, where=run.folder, advice="a larger share, or a run with more photos")
    grouped = used.with_columns(together=pl.Series(find_groups(used), dtype=pl.Int64))
    *test, is_known = _read_predictions(run, grouped.filter(pl.col("split") == "test"))
    evaluation = score_confidence(run.evaluation, *test, calibration=calibration, coverage=coverage, is_known=is_known)
    return calibration, evaluation


def _read_predictions(run: Run, photos: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read probabilities [photos, classes], class indices, group numbers, and whether known [photos].

    Args:
        photos: rows of the run's dataset, with the column `together`.
    """
    rows = run.predictions.join(photos.select("path", "together"), on="path")
    indices = {name: index for index, name in enumerate(run.classes)}
    labels = np.array([indices[name] for name in rows["label"]], np.int64)
    probabilities = rows.select(f"p:{name}" for name in run.classes).to_numpy()
    threshold = run.familiarity.threshold if run.familiarity is not None else 0.0
    is_known = rows["familiarity"].fill_null(1.0).to_numpy() >= threshold
    return probabilities, labels, rows["together"].to_numpy(), is_known
