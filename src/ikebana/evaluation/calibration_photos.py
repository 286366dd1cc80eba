"""The calibration photos of a run: validation photos that no selection has used."""

import polars as pl

from ikebana.data.dataset import Dataset
from ikebana.data.split import find_groups, get_selection_mask
from ikebana.errors import PhotosError
from ikebana.evaluation.error_guarantee import describe_shortage


def find_calibration_photos(photos: pl.DataFrame) -> pl.DataFrame:
    """Find the validation photos for calibration, of classes that have training photos.

    Args:
        photos: the used photos, opened and split.
    Returns:
        Their rows, with their group number in the column `together`.
    """
    trained = photos.filter(pl.col("split") == "train")["label"].unique().to_list()
    grouped = photos.with_columns(together=pl.Series(find_groups(photos), dtype=pl.Int64))
    validation = grouped.filter(pl.col("split") == "validation")
    is_chosen = ~get_selection_mask(validation) & validation["label"].is_in(trained).to_numpy()
    return validation.filter(pl.Series(is_chosen, dtype=pl.Boolean))


def check_calibration_photos(dataset: Dataset, at_most_wrong: float | None) -> None:
    """Check before training that the photos may suffice for a guarantee.

    Args:
        dataset: opened and split.
        at_most_wrong: the share of wrong answers; None if no guarantee is requested.
    Raises:
        PhotosError: they are too few, even if all of them are classified correctly.
    """
    if at_most_wrong is None:
        return
    group_count = find_calibration_photos(dataset.used_photos)["together"].n_unique()
    if shortage := describe_shortage(group_count, at_most_wrong):
        raise PhotosError(
            shortage,
            where=dataset.source,
            advice="more photos, a larger --at-most-wrong, or more validation photos: --split-fractions 0.4,0.4,0.2",
        )
