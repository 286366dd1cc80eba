"""Near-duplicate search: resized, re-encoded, slightly cropped, mirrored or rotated copies.

The search (`duplicates/search`) uses the cached thumbnails, which are squashed for every image size
and resize option, so no photo is opened again. The result is cached beside them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from ikebana.data.dataset import STATUS_USED, Dataset, NearDuplicate
from ikebana.data.duplicates.search import find_pairs
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.split import find_connected_components
from ikebana.system.files import atomic_write, discard

# Increase it with each change of the search; that invalidates cached results.
SEARCH_VERSION = 9
# Share of a class. More copies than this in one group would leave a split without photos.
MAX_GROUP_SHARE = 0.5
# A group of at most this many photos of a class is always kept.
MAX_SMALL_GROUP_PHOTOS = 10


def find_near_duplicates(dataset: Dataset, pixel_cache: PixelCache) -> Dataset:
    """Add the near-duplicates to a dataset, and the column `duplicate_of` that names their groups."""
    pairs = load_pairs(dataset, pixel_cache)
    if pairs is None:
        pairs = save_pairs(dataset, pixel_cache, find_pairs(pixel_cache.thumbnails, get_unique_rows(dataset)))
    return replace(
        dataset, near_duplicates=tuple(pairs), photos=dataset.photos.with_columns(_name_groups(dataset, pairs))
    )


def get_unique_rows(dataset: Dataset) -> np.ndarray:
    """Get the rows of the used photos, exact copies once."""
    return (
        dataset.used_photos_with_row.unique("sha256", keep="first", maintain_order=True)["row"]
        .to_numpy()
        .astype(np.int64)
    )


def _describe_pair(dataset: Dataset, first: int, second: int, changes: str, similarity: float) -> NearDuplicate:
    """Make a pair; if the squares show no change, compare the sizes of the files."""
    if not changes:
        sizes = dataset.photos[[first, second]].select("width", "height").rows()
        changes = "saved again" if sorted(sizes[0]) == sorted(sizes[1]) else "resized"
    return NearDuplicate(first, second, changes, round(similarity, 3))


def _name_groups(dataset: Dataset, pairs: list[NearDuplicate]) -> pl.Series:
    """Make the column `duplicate_of`: the path of the first photo of a group of near-duplicates.

    An exact copy belongs to the group of its original.
    """
    photos, name_of_hash = dataset.photos, dict[str, str]()
    class_sizes = dict(
        dataset.used_photos.unique("sha256", keep="first", maintain_order=True)["label"].value_counts().iter_rows()
    )
    for rows in find_connected_components((pair.first, pair.second) for pair in pairs):
        label_counts = Counter(photos["label"][rows])
        if all(
            count <= max(MAX_SMALL_GROUP_PHOTOS, MAX_GROUP_SHARE * class_sizes[label])
            for label, count in label_counts.items()
        ):
            name_of_hash |= dict.fromkeys(photos["sha256"][rows], photos["path"][rows[0]])
    names = pl.col("sha256").replace_strict(name_of_hash, default=None, return_dtype=pl.String)
    return photos.select(pl.when(pl.col("status") == STATUS_USED).then(names).alias("duplicate_of"))["duplicate_of"]


def has_cached_pairs(folder: Path) -> bool:
    """Return whether a pixel cache folder holds the result of an earlier search."""
    return any(folder.glob(f"near_duplicates.{SEARCH_VERSION}.*.json"))


def _make_file_prefix(dataset: Dataset) -> str:
    """Make the start of the file name, which identifies the used photos.

    They may change during the search, when another process can read a photo that was unreadable
    before.
    """
    hashes = pl.when(pl.col("status") == STATUS_USED).then(pl.col("sha256")).otherwise(pl.lit(""))
    joined = "\n".join(dataset.photos.select(hashes.alias("seen"))["seen"])
    return f"near_duplicates.{SEARCH_VERSION}.{hashlib.sha256(joined.encode()).hexdigest()[:16]}"


def save_pairs(
    dataset: Dataset, pixel_cache: PixelCache, pairs: Iterable[tuple[int, int, str, float]]
) -> list[NearDuplicate]:
    """Save the result of `search.find_pairs` in a file whose name holds its checksum.

    The pixel cache's index is saved in the same way.
    """
    described = [_describe_pair(dataset, *pair) for pair in pairs]
    text = json.dumps([[pair.first, pair.second, pair.transformation, pair.similarity] for pair in described])
    with atomic_write(pixel_cache.folder / _make_file_name(_make_file_prefix(dataset), text)) as partial:
        partial.write_text(text, "utf-8")
    return described


def _make_file_name(prefix: str, text: str) -> str:
    return f"{prefix}.{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def load_pairs(dataset: Dataset, pixel_cache: PixelCache) -> list[NearDuplicate] | None:
    """Load the pairs of an earlier search.

    Returns None if there was no search or the file was changed.
    """
    prefix = _make_file_prefix(dataset)
    for file in pixel_cache.folder.glob(f"{prefix}.*.json"):
        with suppress(OSError, ValueError):
            text = file.read_text("utf-8")
            if file.name == _make_file_name(prefix, text):
                return [NearDuplicate(*pair) for pair in json.loads(text)]
        discard(file)
    return None


def get_parts_folder(dataset: Dataset, pixel_cache: PixelCache) -> Path:
    """Get the folder in which several processes put the results of ranges of queries."""
    return pixel_cache.folder / f"{_make_file_prefix(dataset)}.parts"
