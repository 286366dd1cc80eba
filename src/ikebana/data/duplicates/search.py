"""The search for near-duplicates among thumbnails, and its division into ranges of photos.

First, short descriptions select candidate pairs (`duplicates/candidates`). Then the pairs are
aligned and compared pixel by pixel (`duplicates/similarity`).
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple, TypeAlias

import numpy as np

from ikebana.data.duplicates.candidates import (
    AXIS_CROPS,
    COEFFICIENTS,
    COLOUR_BANDS,
    SEARCHED_COUNT,
    SHAPE_POSITIONS,
    UNCROPPED_WINDOW,
    WINDOW_CROPS,
    CandidateIndex,
    compute_invariants,
    describe_photos,
    describe_shapes,
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
from ikebana.data.pixel_cache import allocate_zeros, make_chunks
from ikebana.data.verified_array import Pixels
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import write_error
from ikebana.system.resources import require_disk
from ikebana.system.threads import map_in_threads

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

# Two rows of the photos, the smaller first.
Pair: TypeAlias = tuple[int, int]
# What was done to one of them, and their similarity.
Match: TypeAlias = tuple[str, float]


class Matches(NamedTuple):
    """Pairs of rows, the smaller first, with their transformation and similarity."""

    by_colour: dict[Pair, Match]
    # Of which at least one photo has no colours, compared by brightness alone.
    by_brightness: dict[Pair, Match]


def find_pairs(photos: Pixels, rows: np.ndarray) -> list[tuple[int, int, str, float]]:
    """Find all pairs of photos of which one is a copy of the other.

    Args:
        photos: uint8 [photos, 64, 64, 3], squashed.
        rows: of the photos to compare, each a different file.
    Returns:
        Two rows, the smaller first; a description of the transformation; their similarity.
    """
    return list_pairs([find_matches(photos, rows)])


def find_matches(photos: Pixels, rows: np.ndarray, queries: range | None = None) -> Matches:
    """Find the copies of some photos among all photos.

    The result depends on nothing but the arguments. So several processes may each search a range,
    and `list_pairs` of all their results is the answer of one process.

    Args:
        photos, rows: as for `find_pairs`.
        queries: places in `rows` of the photos whose copies are searched; by default all.
    """
    queries = range(len(rows)) if queries is None else queries
    with CopySearch(photos, rows) as search:
        by_colour = search.find_by_colour(queries)
        # Two indexes would take the disk space twice.
        search.close()
        return Matches(by_colour, search.find_by_brightness(queries))


class CopySearch:
    """The search for copies of several ranges of photos.

    All photos are described once. The descriptions are in temporary files until the search is closed.

    Args:
        photos, rows: as for `find_pairs`.
    """

    def __init__(self, photos: Pixels, rows: np.ndarray):
        self._photos, self._rows = photos, rows
        self._opened = ExitStack()
        self._colour_index: _PhotoIndex | None = None
        self._brightness_index: _PhotoIndex | None = None
        self._is_grey: np.ndarray | None = None

    def __enter__(self) -> "CopySearch":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary files; a later search describes the photos again."""
        self._colour_index = self._brightness_index = None
        self._opened.close()

    def find_matches(self, queries: range) -> Matches:
        """Find the copies of some photos, given by their places in `rows`."""
        return Matches(self.find_by_colour(queries), self.find_by_brightness(queries))

    def find_by_colour(self, queries: range) -> dict[Pair, Match]:
        """Find the copies of some photos by brightness and colours."""
        if not queries:
            return {}
        if self._colour_index is None:
            self._colour_index = self._opened.enter_context(_index_photos(self._photos, self._rows))
        return self._colour_index.find_pairs(queries)

    def find_by_brightness(self, queries: range) -> dict[Pair, Match]:
        """Find copies by brightness alone, if a photo of the pair has no colours.

        A greyscale copy has other colours than its original, but the same brightness.
        """
        if self._is_grey is None:
            self._is_grey = _find_greyscale(self._photos, self._rows)
        is_grey = self._is_grey
        grey_before = np.concatenate([[0], is_grey.cumsum()])
        grey_queries = range(int(grey_before[queries.start]), int(grey_before[queries.stop]))
        if not grey_queries or is_grey.all():
            return {}
        if self._brightness_index is None:
            grey_first = np.concatenate([self._rows[is_grey], self._rows[~is_grey]])
            self._brightness_index = self._opened.enter_context(
                _index_photos(_BrightnessView(self._photos), grey_first)
            )
        greyscale, by_brightness = set(self._rows[is_grey].tolist()), {}
        for pair, (changes, similarity) in self._brightness_index.find_pairs(grey_queries).items():
            is_mixed = len(greyscale.intersection(pair)) == 1
            by_brightness[pair] = ", ".join(filter(None, (changes, "greyscale" if is_mixed else ""))), similarity
        return by_brightness


def list_pairs(parts: Iterable[Matches]) -> list[tuple[int, int, str, float]]:
    """List the pairs of all parts; by brightness only those that colours do not show."""
    by_colour: dict[Pair, Match] = {}
    by_brightness: dict[Pair, Match] = {}
    for part in parts:
        _add_best(by_colour, part.by_colour.items())
        _add_best(by_brightness, part.by_brightness.items())
    return [(*pair, *match) for pair, match in sorted((by_brightness | by_colour).items())]


def _add_best(best: dict[Pair, Match], matches: Iterable[tuple[Pair, Match]]) -> None:
    """Add matches, of each pair the most similar.

    A pair is found twice if both photos are queries. Equal similarities are decided by the names of
    the transformations, not by the order.
    """
    for pair, match in matches:
        best[pair] = max(match, best.get(pair, match), key=lambda match: (match[1], match[0]))


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
        # Not np.ptp: reductions over an axis of three take ten times as long.
        red, green, blue = np.moveaxis(_select(photos, rows, chunk), -1, 0)
        highest, lowest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        return (highest - lowest).max((1, 2)) <= MAX_GREY_CHROMA_LEVELS

    chunks = make_chunks(len(rows), CHUNK_PHOTOS)
    return np.concatenate([np.zeros(0, bool), *map_in_threads(is_grey, chunks)])


def _name_stage(name: str, photos: "Pixels | _BrightnessView") -> str:
    """Name a stage, which a search by brightness alone repeats."""
    return f"{name} (greyscale)" if isinstance(photos, _BrightnessView) else name


class _PhotoIndex(NamedTuple):
    """Descriptions of all photos, in which ranges of them are searched."""

    photos: "Pixels | _BrightnessView"
    rows: np.ndarray
    descriptions: np.ndarray
    candidates: CandidateIndex

    def find_pairs(self, queries: range) -> dict[Pair, Match]:
        """Find the pairs that contain one of some photos, given by their places in `rows`."""
        from threadpoolctl import threadpool_limits

        best: dict[Pair, Match] = {}
        ranges = _select_chunks(make_chunks(len(self.rows), CHUNK_PHOTOS), queries)
        work = closing(map_in_threads(lambda chunk: _find_pairs_of_chunk(self, chunk), ranges))
        with (
            threadpool_limits(1, "blas"),
            progress.stage(_name_stage("find duplicates", self.photos), len(queries)) as bar,
            work as results,
        ):
            for chunk, pairs in zip(ranges, results, strict=True):
                for (first, second), match in pairs:
                    numbers = self.rows[first].item(), self.rows[second].item()
                    _add_best(best, [((min(numbers), max(numbers)), match)])
                bar.advance(len(chunk))
        return best


@contextmanager
def _index_photos(photos: "Pixels | _BrightnessView", rows: np.ndarray) -> Iterator[_PhotoIndex]:
    """Describe all photos in temporary files."""
    from threadpoolctl import threadpool_limits

    require_disk({cache_folder(): compute_scratch_bytes(len(rows))})
    descriptions_file, lifted_file, shapes_file = (
        _create_scratch_array(len(rows), dtype) for dtype in (_DESCRIPTION, _LIFTED, _SHAPE)
    )
    with descriptions_file as descriptions, lifted_file as lifted, shapes_file as shapes:
        index = _PhotoIndex(photos, rows, descriptions, CandidateIndex(descriptions["uncropped"], lifted, shapes))
        work = closing(
            map_in_threads(lambda chunk: _describe_chunk(index, chunk), make_chunks(len(rows), CHUNK_PHOTOS))
        )
        # Threads work on photos already: BLAS threads for small products would wait for each other.
        with threadpool_limits(1, "blas"):
            with progress.stage(_name_stage("index photos", photos), len(rows)) as bar, work as counts:
                for count in counts:
                    bar.advance(count)
            index.candidates.divide()
        yield index


def _select_chunks(chunks: list[range], queries: range) -> list[range]:
    """Select the parts of chunks inside the queries.

    Chunks begin at the same photos in any partition, so that their matrix products round alike.
    """
    parts = (range(max(chunk.start, queries.start), min(chunk.stop, queries.stop)) for chunk in chunks)
    return [part for part in parts if part]


_DESCRIPTION = np.dtype(
    [
        ("uncropped", np.float32, (len(COEFFICIENTS),)),
        ("grey", np.uint8, (GREY_SIZE,) * 2),
        ("colour", np.uint8, (COLOUR_SIZE, COLOUR_SIZE, 3)),
    ]
)

_LIFTED = np.dtype((np.float32, (SEARCHED_COUNT + 1,)))
_SHAPE = np.dtype((np.float32, (len(SHAPE_POSITIONS),)))


def compute_scratch_bytes(photos: int) -> int:
    """Compute the bytes that the search takes on the cache's disk while it runs."""
    return photos * (_DESCRIPTION.itemsize + _LIFTED.itemsize + _SHAPE.itemsize)


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


def _describe_chunk(index: _PhotoIndex, chunk: range) -> int:
    """Fill in the descriptions of a chunk and return its number of photos."""
    target, images = slice(chunk.start, chunk.stop), _select(index.photos, index.rows, chunk)
    descriptions, candidates = index.descriptions, index.candidates
    descriptions["grey"][target] = np.rint(images.astype(np.float32) @ COLOUR_BANDS[0])
    descriptions["colour"][target] = np.rint(average_blocks(images, COLOUR_SIZE))
    uncropped = describe_photos(images, AXIS_CROPS[:1])[:, UNCROPPED_WINDOW]
    uncropped[descriptions["grey"][target].std((1, 2)) < MIN_GREY_STD] = np.nan
    candidates.uncropped[target], candidates.lifted[target] = uncropped, lift_descriptions(uncropped)
    candidates.shapes[target] = describe_shapes(compute_invariants(uncropped))
    return len(chunk)


def _select(photos: "Pixels | _BrightnessView", rows: np.ndarray, chunk: range) -> np.ndarray:
    return photos[rows[chunk.start : chunk.stop]]


def _find_pairs_of_chunk(index: _PhotoIndex, chunk: range) -> list[tuple[Pair, Match]]:
    """Find the pairs that contain a photo of the chunk."""
    candidates = index.candidates.find_candidates(chunk, describe_photos(_select(index.photos, index.rows, chunk)))
    descriptions, pairs = index.descriptions, []
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
