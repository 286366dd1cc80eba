"""Near-duplicate search: resized, re-encoded, slightly cropped, mirrored or rotated copies.

First, short descriptions select candidate pairs (`duplicates/candidates`). Then the pairs are
aligned and compared pixel by pixel (`duplicates/similarity`). Both use the cached thumbnails,
which are squashed for every image size and resize option, so no photo is opened again. The result
is cached beside them.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from ikebana.data.dataset import STATUS_USED, Dataset, NearDuplicate
from ikebana.data.duplicates.candidates import (
    AXIS_CROPS,
    COEFFICIENTS,
    COLOUR_BANDS,
    UNCROPPED_WINDOW,
    WINDOW_CROPS,
    CandidateIndex,
    describe_photos,
    lift_descriptions,
)
from ikebana.data.duplicates.similarity import (
    COLOUR_SIZE,
    GREY_SIZE,
    SYMMETRY_NAMES,
    ReducedImages,
    Similarity,
    average_blocks,
    compare_pairs,
)
from ikebana.data.pixel_cache import PixelCache, allocate_zeros, make_chunks
from ikebana.data.split import find_connected_components
from ikebana.data.verified_array import Pixels
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_write, discard, write_error
from ikebana.system.resources import require_disk
from ikebana.system.threads import map_in_threads

# Increase it with each change of the search; that invalidates cached results.
SEARCH_VERSION = 7
# Photos per task.
CHUNK_PHOTOS = 128
# Pairs compared at once; each needs about 200 kB.
CHUNK_PAIRS = 128
# Standard deviation in grey levels; a photo below it has no content to compare.
MIN_GREY_STD = 3.0
# Levels between the colour channels of a thumbnail; re-encoding colours a greyscale photo by less.
MAX_GREY_CHROMA_LEVELS = 6
# Share of a side; resizing alone may move an edge by less.
MIN_CROP_SHARE = 0.015
# Mean colour change of blocks; resizing, cropping and re-encoding caused 4.9 levels at most.
MIN_RECOLOUR_LEVELS = 6.0
# Share of a class. More copies than this in one group would leave a split without photos.
MAX_GROUP_SHARE = 0.5
# A group of at most this many photos of a class is always kept.
MAX_SMALL_GROUP_PHOTOS = 10


def find_near_duplicates(dataset: Dataset, pixel_cache: PixelCache) -> Dataset:
    """Add the near-duplicates to a dataset, and the column `duplicate_of` that names their groups."""
    rows = _get_unique_rows(dataset)
    file_prefix = _make_file_prefix(dataset)
    pairs = _load_pairs(pixel_cache, file_prefix)
    if pairs is None:
        pairs = [_describe_pair(dataset, *pair) for pair in find_pairs(pixel_cache.thumbnails, rows)]
        _save_pairs(pixel_cache, file_prefix, pairs)
    return replace(
        dataset, near_duplicates=tuple(pairs), photos=dataset.photos.with_columns(_name_groups(dataset, pairs))
    )


def find_pairs(photos: Pixels, rows: np.ndarray) -> list[tuple[int, int, str, float]]:
    """Find all pairs of photos of which one is a copy of the other.

    Args:
        photos: uint8 [photos, 64, 64, 3], squashed.
        rows: of the photos to compare, each a different file.
    Returns:
        Two rows, the smaller first; a description of the transformation; their similarity.
    """
    best = _search(photos, rows, len(rows))
    # A greyscale copy has other colours than its original, but the same brightness.
    is_grey = _find_greyscale(photos, rows)
    if is_grey.any() and not is_grey.all():
        grey_first = np.concatenate([rows[is_grey], rows[~is_grey]])
        matches = _search(_BrightnessView(photos), grey_first, int(is_grey.sum()))
        greyscale = set(rows[is_grey].tolist())
        for pair, (changes, similarity) in matches.items():
            if pair not in best:
                is_mixed = len(greyscale.intersection(pair)) == 1
                best[pair] = ", ".join(filter(None, (changes, "greyscale" if is_mixed else ""))), similarity
    return [(*pair, *match) for pair, match in sorted(best.items())]


class _BrightnessView:
    """Photos without their colours, of which only those that are read are computed."""

    def __init__(self, photos: Pixels):
        self.photos = photos

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        grey = np.rint(self.photos[rows].astype(np.float32) @ COLOUR_BANDS[0]).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)


def _find_greyscale(photos: Pixels, rows: np.ndarray) -> np.ndarray:
    """Return for each row whether its thumbnail has no colours."""

    def is_grey(chunk: range) -> np.ndarray:
        images = _select(photos, rows, chunk)
        return np.ptp(images, axis=-1).max((1, 2)) <= MAX_GREY_CHROMA_LEVELS

    return np.concatenate([np.zeros(0, bool), *map(is_grey, make_chunks(len(rows), CHUNK_PHOTOS))])


def _search(
    photos: "Pixels | _BrightnessView", rows: np.ndarray, queries: int
) -> dict[tuple[int, int], tuple[str, float]]:
    """Find the pairs that contain one of the first `queries` rows.

    Returns:
        Description and similarity by pair of rows, the smaller one first.
    """
    from threadpoolctl import threadpool_limits

    require_disk({cache_folder(): compute_scratch_bytes(len(rows))})
    descriptions_file = _create_scratch_array(len(rows), _DESCRIPTION)
    lifted_file = _create_scratch_array(len(rows), _LIFTED)
    # Threads work on photos already: BLAS threads for small products would wait for each other.
    with threadpool_limits(1, "blas"), descriptions_file as descriptions, lifted_file as lifted:
        ranges = make_chunks(len(rows), CHUNK_PHOTOS)
        work = closing(map_in_threads(lambda chunk: _describe_chunk(photos, rows, chunk, descriptions, lifted), ranges))
        with progress.stage("index photos", len(rows)) as bar, work as counts:
            for count in counts:
                bar.advance(count)
        index = CandidateIndex(descriptions["uncropped"], lifted)
        best: dict[tuple[int, int], tuple[str, float]] = {}
        ranges = make_chunks(queries, CHUNK_PHOTOS)
        work = closing(
            map_in_threads(lambda chunk: _find_pairs_of_chunk(photos, rows, chunk, index, descriptions), ranges)
        )
        with progress.stage("find duplicates", queries) as bar, work as results:
            for chunk, pairs in zip(ranges, results, strict=True):
                for (first, second), match in pairs:
                    pair = min(rows[first], rows[second]).item(), max(rows[first], rows[second]).item()
                    best[pair] = max(match, best.get(pair, match), key=lambda match: match[1])
                bar.advance(len(chunk))
    return best


_DESCRIPTION = np.dtype(
    [
        ("uncropped", np.float32, (len(COEFFICIENTS),)),
        ("grey", np.uint8, (GREY_SIZE,) * 2),
        ("colour", np.uint8, (COLOUR_SIZE, COLOUR_SIZE, 3)),
    ]
)

_LIFTED = np.dtype((np.float32, (len(COEFFICIENTS) + 1,)))


def compute_scratch_bytes(photos: int) -> int:
    """Compute the bytes that the search takes on the cache's disk while it runs."""
    return photos * (_DESCRIPTION.itemsize + _LIFTED.itemsize)


@contextmanager
def _create_scratch_array(photos: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Create an array of one record per photo in an unnamed temporary file.

    The file disappears when it is closed.

    Raises:
        MachineError: the file cannot be created or written.
    """
    folder, rows = cache_folder(), max(photos, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            allocate_zeros(stream, rows * dtype.itemsize)
            yield np.memmap(stream, dtype, "r+", shape=rows)[:photos]
    except OSError as error:
        raise write_error(error, folder) from error


def _describe_chunk(
    photos: "Pixels | _BrightnessView", rows: np.ndarray, chunk: range, descriptions: np.ndarray, lifted: np.ndarray
) -> int:
    """Fill in the descriptions of a chunk and return its number of photos."""
    target, images = slice(chunk.start, chunk.stop), _select(photos, rows, chunk)
    descriptions["grey"][target] = np.rint(images.astype(np.float32) @ COLOUR_BANDS[0])
    descriptions["colour"][target] = np.rint(average_blocks(images, COLOUR_SIZE))
    uncropped = describe_photos(images, AXIS_CROPS[:1])[:, UNCROPPED_WINDOW]
    uncropped[descriptions["grey"][target].std((1, 2)) < MIN_GREY_STD] = np.nan
    descriptions["uncropped"][target], lifted[target] = uncropped, lift_descriptions(uncropped)
    return len(chunk)


def _select(photos: "Pixels | _BrightnessView", rows: np.ndarray, chunk: range) -> np.ndarray:
    return photos[rows[chunk.start : chunk.stop]]


def _find_pairs_of_chunk(
    photos: "Pixels | _BrightnessView",
    rows: np.ndarray,
    chunk: range,
    index: CandidateIndex,
    descriptions: np.ndarray,
) -> list[tuple[tuple[int, int], tuple[str, float]]]:
    """Find the pairs that contain a photo of the chunk."""
    candidates = index.find_candidates(chunk, describe_photos(_select(photos, rows, chunk)))
    pairs = []
    for start in range(0, len(candidates.first), CHUNK_PAIRS):
        first, second, window, symmetry = (column[start : start + CHUNK_PAIRS] for column in candidates)
        left, right = (
            ReducedImages(descriptions["grey"][numbers], descriptions["colour"][numbers]) for numbers in (first, second)
        )
        matches = compare_pairs(left, right, WINDOW_CROPS[window], symmetry)
        for row in np.flatnonzero(matches.is_duplicate):
            pair = int(min(first[row], second[row])), int(max(first[row], second[row]))
            pairs.append((pair, (_name_changes(matches, int(row)), float(matches.correlation[row]))))
    return pairs


def _name_changes(matches: Similarity, row: int) -> str:
    """Name the transformations that the pixels show: "mirrored, cropped"."""
    is_cropped = np.abs(matches.window[row]).max() > MIN_CROP_SHARE
    is_recoloured = matches.colour_distance[row] > MIN_RECOLOUR_LEVELS
    words = (
        SYMMETRY_NAMES[matches.symmetry[row]],
        "cropped" if is_cropped else "",
        "recoloured" if is_recoloured else "",
    )
    return ", ".join(filter(None, words))


def _get_unique_rows(dataset: Dataset) -> np.ndarray:
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


def _save_pairs(pixel_cache: PixelCache, prefix: str, pairs: list[NearDuplicate]) -> None:
    """Save the pairs in a file whose name holds their checksum.

    The pixel cache's index is saved in the same way.
    """
    text = json.dumps([[pair.first, pair.second, pair.transformation, pair.similarity] for pair in pairs])
    with atomic_write(pixel_cache.folder / _make_file_name(prefix, text)) as partial:
        partial.write_text(text, "utf-8")


def _make_file_name(prefix: str, text: str) -> str:
    return f"{prefix}.{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _load_pairs(pixel_cache: PixelCache, prefix: str) -> list[NearDuplicate] | None:
    """Load the pairs of an earlier search.

    Returns None if there was no search or the file was changed.
    """
    for file in pixel_cache.folder.glob(f"{prefix}.*.json"):
        with suppress(OSError, ValueError):
            text = file.read_text("utf-8")
            if file.name == _make_file_name(prefix, text):
                return [NearDuplicate(*pair) for pair in json.loads(text)]
        discard(file)
    return None
