"""The split of an earlier run, kept for the photos that it knew (`fit --split-from`).

The test split stays the same, so that both runs can be compared on it. New photos are for training
and validation. A new photo that duplicates a test photo would leak, and one more test photo would
make the runs incomparable. So it is set aside.
"""

from collections import defaultdict
from dataclasses import dataclass

import polars as pl

from ikebana.data.dataset import SPLITS, Dataset, to_strings
from ikebana.data.split import assign_stratified, find_groups
from ikebana.errors import PhotosError
from ikebana.recipe import Recipe
from ikebana.system import progress

STATUS_TEST_DUPLICATE = "duplicate of a test photo of the run given by --split-from"


@dataclass(frozen=True)
class KnownSplit:
    """The used photos of an earlier run.

    Attributes:
        photos: path, label, split, sha256.
        run: the folder for messages; empty if the run resumes, which needs none.
    """

    photos: pl.DataFrame
    run: str = ""


def split_like(dataset: Dataset, recipe: Recipe, known: KnownSplit) -> Dataset:
    """Assign the known split to every used photo that has one, and assign the others.

    A photo is known by its content (sha256), so it may have been renamed.

    Args:
        dataset: with its near-duplicates found.
        recipe: its fractions and split seed assign the new photos.
    Raises:
        PhotosError: the photos come with a split, or no training or test photo of the run is left.
    """
    used = dataset.used_photos_with_row
    if used["split"].is_not_null().any():
        raise PhotosError(
            "the photos come with a split, and --split-from gives another",
            where=dataset.source,
            advice="leave --split-from out, or give the photos without their split",
        )
    splits = _find_known_splits(used, known.photos)
    is_new = [split is None for split in splits]
    groups = find_groups(used.drop("row"))
    splits_by_group: dict[int, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        if split is not None:
            splits_by_group[group].add(split)
    for row, group in enumerate(groups):
        if splits[row] is None and splits_by_group[group]:
            splits[row] = _choose_split(splits_by_group[group])
    _assign_new(used, groups, splits, recipe)
    for required in ("train", "test"):
        if required not in splits:
            raise PhotosError(
                f"no {required} photo of the run given by --split-from is among these photos",
                where=dataset.source,
                advice="give the photos of that run and the new ones together",
            )
    if known.run:
        joined = {group for group, new in zip(groups, is_new, strict=True) if new and len(splits_by_group[group]) > 1}
        _report(used, splits, is_new, known, len(joined))
    return _write(dataset, used["row"], splits)


def _find_known_splits(used: pl.DataFrame, known: pl.DataFrame) -> list[str | None]:
    """Find the split of each photo; None for new photos and copies."""
    by_path = used.join(
        known.select("path", "sha256", "split"),
        on=["path", "sha256"],
        how="left",
        suffix="_known",
        maintain_order="left",
    )
    matched = by_path.filter(pl.col("split_known").is_not_null())["sha256"].unique()
    # Where copies are in several splits, the test split counts: nothing of it may be trained on.
    by_content = known.sort(pl.col("split").replace_strict({name: -rank for rank, name in enumerate(SPLITS)}))
    by_content = by_content.unique("sha256", keep="first").select("sha256", split_by_content="split")
    rows = by_path.join(by_content, on="sha256", how="left", maintain_order="left")
    is_renamed = ~pl.col("sha256").is_in(matched.implode())
    chosen = pl.coalesce("split_known", pl.when(is_renamed).then("split_by_content"))
    return rows.select(chosen.alias("split"))["split"].to_list()


def _choose_split(splits: set[str]) -> str:
    """Choose a split for a duplicate of photos of these; "" to set it aside."""
    return "" if "test" in splits else "train" if "train" in splits else "validation"


def _assign_new(used: pl.DataFrame, groups: list[int], splits: list[str | None], recipe: Recipe) -> None:
    """Assign new photos without known duplicates to training and validation, by the recipe's fractions."""
    rows = [row for row, split in enumerate(splits) if split is None]
    train, validation, _ = recipe.split_fractions
    fractions = (train / (train + validation), validation / (train + validation), 0.0)
    labels = to_strings(used["label"][rows]) if rows else []
    assigned = assign_stratified(labels, [groups[row] for row in rows], fractions, recipe.split_seed) if rows else []
    for row, split in zip(rows, assigned, strict=True):
        splits[row] = split


def _report(
    used: pl.DataFrame, splits: list[str | None], is_new: list[bool], known: KnownSplit, divided_groups: int
) -> None:
    counts = {name: sum(new and split == name for new, split in zip(is_new, splits, strict=True)) for name in SPLITS}
    known_count, set_aside = is_new.count(False), splits.count("")
    text = f"split of {known.run}: {known_count:,} photos keep theirs"
    if added := is_new.count(True):
        text += (
            f"; of {added:,} new ones, {counts['train']:,} are for training, {counts['validation']:,} for validation"
        )
    progress.message(text)
    if set_aside:
        progress.warn(f"new photos that are duplicates of its test photos, and are not used: {set_aside:,}")
    if divided_groups:
        progress.warn(
            f"groups of duplicates that new photos join and that were in several splits before: {divided_groups:,}; "
            "known photos keep their split"
        )
    tests = known.photos.filter(split="test")
    missing = tests.join(used, on="sha256", how="anti").height
    relabelled = tests.join(used, on="sha256", how="semi").join(used, on=["sha256", "label"], how="anti").height
    for count, what in ((missing, "are missing now"), (relabelled, "have another label now")):
        if count:
            progress.warn(f"{count:,} test photos of {known.run} {what}: the runs cannot be compared")


def _write(dataset: Dataset, rows: pl.Series, splits: list[str | None]) -> Dataset:
    empty = pl.Series("split", [None], pl.String).new_from_index(0, dataset.photos.height)
    column = empty.scatter(rows, pl.Series("split", [split or None for split in splits], pl.String))
    set_aside = rows.filter(pl.Series([split == "" for split in splits], dtype=pl.Boolean))
    status = dataset.photos["status"].scatter(set_aside, STATUS_TEST_DUPLICATE)
    return dataset.with_photos(dataset.photos.with_columns(column, status.alias("status")))
