"""The calibration photos of a run: validation photos that no selection has used."""

import math

import polars as pl

from ikebana.data.dataset import Dataset
from ikebana.data.split import find_groups, get_selection_mask
from ikebana.errors import PhotosError
from ikebana.evaluation.error_guarantee import count_groups_for_guarantee, describe_shortage, find_lowest_limit
from ikebana.system.percentages import format_share

# With a smaller share of training photos, accuracy would suffer more than the guarantee is worth.
MIN_TRAINING_SHARE = 0.4
# Groups are assigned by chance, so calibration may get fewer than its share.
CHANCE_MARGIN = 1.15


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
            advice=_advise(dataset.used_photos, group_count, at_most_wrong),
        )


def _advise(photos: pl.DataFrame, group_count: int, at_most_wrong: float) -> str:
    """Name what would suffice: another split or more photos, and a possible limit."""
    factor = count_groups_for_guarantee(at_most_wrong) / max(group_count, 1) * CHANCE_MARGIN
    validation_now, test = (photos.filter(split=split).height / len(photos) for split in ("validation", "test"))
    # Rounded up.
    validation = math.ceil(20 * factor * validation_now) / 20
    training = round(1 - validation - test, 2)
    if training >= MIN_TRAINING_SHARE:
        advice = f"more validation photos: --split-fractions {training:g},{validation:g},{round(1 - training - validation, 2):g}"
    else:
        advice = f"about {math.ceil(factor * len(photos) / 100) * 100:,} photos in all"
    limit = find_lowest_limit(group_count)
    return advice if limit is None else f"{advice}; or at least --at-most-wrong {format_share(limit)}"
