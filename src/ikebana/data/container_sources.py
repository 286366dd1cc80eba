"""Labelled photos in a store, in tar shards or in Parquet, read into a Dataset."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from ikebana.data import class_folders, containers, parquet_photos, stores
from ikebana.data.containers import PARQUET_SUFFIX, Container
from ikebana.data.dataset import LOCATION_SCHEMA, SCHEMA, SPLIT_ALIASES, STATUS_UNOPENED, Dataset
from ikebana.data.photo_listing import PhotoListing
from ikebana.data.table import NO_LABEL
from ikebana.errors import PhotosError

ADVICE_LABELS = (
    "labels come from class folders, from .cls or .json files beside the photos of a tar, "
    "or from a column label of a Parquet file"
)

ADVICE_LABEL_COLUMN = "give the column of labels, which has texts or whole numbers, one of the names " + ", ".join(
    parquet_photos.LABEL_COLUMNS
)


def read(source: str | Path) -> Dataset:
    """List the labelled photos of an address, of tar shards or of Parquet files.

    Raises:
        PhotosError: they do not exist, are damaged, or have no labels; or their store refused a request.
    """
    collection = containers.find_containers(str(source))
    _refuse_single_photo(collection, str(source))
    listing = containers.join(collection, containers.list_containers(collection))
    _refuse_containers(listing, collection, str(source))
    if listing.photos["label"].null_count() < listing.photos.height:
        dataset = _use_labels(listing, str(source))
    elif all(container.address.lower().endswith(PARQUET_SUFFIX) for container in collection):
        raise _describe_unlabelled(listing, source, ADVICE_LABEL_COLUMN)
    else:
        dataset = class_folders.read_listing(listing, str(source))
        is_unlabelled = dataset.photos.height > 0 and dataset.photos["label"].is_null().all()
        if is_unlabelled and all(container.is_archive for container in collection):
            raise _describe_unlabelled(listing, source, ADVICE_LABELS)
    dataset = _use_file_splits(dataset, listing, collection)
    locations = listing.photos.filter(pl.col("status") == STATUS_UNOPENED).with_columns(_show_path())
    return replace(
        dataset,
        ignored_count=listing.ignored_count,
        notes=(*listing.notes, *dataset.notes),
        locations=locations.select(*LOCATION_SCHEMA).unique("path", keep="first").sort("path"),
    )


def _describe_unlabelled(listing: PhotoListing, source: str | Path, advice: str) -> PhotosError:
    """Build the error for photos without labels; the notes say what was found instead."""
    return PhotosError("; ".join(("these photos have no labels", *listing.notes)), where=source, advice=advice)


def _show_path() -> pl.Expr:
    return (pl.col("prefix").fill_null("") + pl.col("path")).alias("path")


def _use_labels(listing: PhotoListing, source: str) -> Dataset:
    """Use the labels that the containers have."""
    is_unlabelled = pl.col("label").is_null() & (pl.col("status") == STATUS_UNOPENED)
    photos = listing.photos.with_columns(
        _show_path(), pl.when(is_unlabelled).then(pl.lit(NO_LABEL)).otherwise("status").alias("status")
    ).select("path", "label", "status")
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in SCHEMA.items() if name not in photos.columns]
    return Dataset(source, Path("/", source), photos.with_columns(missing).select(*SCHEMA).sort("path"), ())


def _use_file_splits(dataset: Dataset, listing: PhotoListing, collection: Sequence[Container]) -> Dataset:
    """Use the splits in the names of several files, as in `train-00000-of-00002.parquet`."""
    names = {container.address: stores.get_name(container.address) for container in collection}
    splits = {address: SPLIT_ALIASES.get(name.lower().split("-")[0].split(".")[0]) for address, name in names.items()}
    if (
        len(collection) < 2
        or None in splits.values()
        or "train" not in splits.values()
        or len(set(splits.values())) < 2
    ):
        return dataset
    split = pl.col("address").replace_strict(splits, return_dtype=pl.String).alias("split")
    of_paths = listing.photos.select(_show_path(), split).unique("path", keep="first")
    photos = dataset.photos.drop("split").join(of_paths, on="path", how="left", maintain_order="left")
    note = "the files' names give the splits: " + ", ".join(sorted({name.split("-")[0] for name in names.values()}))
    return replace(dataset, photos=photos.select(*SCHEMA), notes=(*dataset.notes, note))


def _refuse_single_photo(collection: Sequence[Container], source: str) -> None:
    if not any(container.is_archive or container.is_folder for container in collection):
        advice = f"{stores.ADVICE_WEB_FOLDER}; {ADVICE_LABELS}" if source.lower().startswith("http") else ADVICE_LABELS
        raise PhotosError("this is one file, not a collection of photos", where=source, advice=advice)


def _refuse_containers(listing: PhotoListing, collection: Sequence[Container], source: str) -> None:
    """Refuse a folder of tars or Parquet files, which a pattern can name."""
    if not all(container.is_folder for container in collection):
        return
    paths = (f"{source.rstrip('/')}/{path}" for path in listing.photos["path"])
    if advice := containers.advise_files(source, paths):
        raise PhotosError(containers.REASON_ONLY_CONTAINERS, where=source, advice=advice)
