"""What runs on the nodes of a cluster to decode photos and find near-duplicates."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ikebana.cluster import jobs
from ikebana.cluster.jobs import JobHandle
from ikebana.data import pixel_cache, pixel_cache_parts
from ikebana.data.dataset import Dataset
from ikebana.data.duplicates.search import CopySearch, Match, Matches, Pair
from ikebana.data.parts import Parts
from ikebana.data.pixel_cache import PixelCache
from ikebana.data.pixel_cache_parts import PixelParts
from ikebana.errors import IkebanaError
from ikebana.recipe import Resize
from ikebana.system.threads import limit_threads

# CPUs, and threads, of a task that decodes photos.
CPUS_PER_DECODING_TASK = 1


# --- decoding ---


def decode(handle: JobHandle, number: int, photos: Dataset, crashed: Mapping[int, str]) -> IkebanaError | None:
    """Decode the photos of a part; return the error that ends the command, or None.

    Args:
        photos: of this part.
        crashed: the status of photos that are not opened, by their position in the part.
    """

    def work() -> None:
        pixel_parts: PixelParts = jobs.fetch_job(handle, jobs.describe_all_versions)
        with limit_threads(CPUS_PER_DECODING_TASK):
            pixel_cache_parts.compute_part(pixel_parts, number, photos, crashed)

    return jobs.return_error(work)


def try_photos(handle: JobHandle, _: int, photos: Dataset, start: int, stop: int) -> None:
    """Decode some photos of a part, to see whether the process crashes."""
    pixel_parts: PixelParts = jobs.fetch_job(handle, jobs.describe_all_versions)
    chosen = photos.with_photos(photos.photos[start:stop])
    with limit_threads(CPUS_PER_DECODING_TASK):
        pixel_cache_parts.try_photos(chosen, pixel_parts.image_size, pixel_parts.resize)


# --- near-duplicates ---


@dataclass(frozen=True)
class CompleteCache:
    """A complete pixel cache, for processes that open it."""

    folder: Path
    rows: int
    image_size: int
    resize: Resize
    # Locates photos whose pixels are damaged; it has no table.
    dataset: Dataset

    def open(self) -> PixelCache:
        """Open it; MachineError if it is damaged."""
        return pixel_cache.reopen_pixel_cache(self.dataset, self.rows, self.image_size, self.resize, self.folder)


@dataclass(frozen=True)
class SearchJob:
    """A search for near-duplicates."""

    cache: CompleteCache
    # int64: of the photos to compare, which the parts divide.
    rows: np.ndarray
    parts: Parts
    threads: int


def search(handle: JobHandle, number: int, _: Mapping[int, str]) -> IkebanaError | None:
    """Search for copies of a part's photos; return the error that ends the command."""

    def work() -> None:
        job: SearchJob = jobs.fetch_job(handle, jobs.describe_all_versions)
        # Describing all photos takes longer than many searches.
        copies = jobs.open_once(handle, lambda: CopySearch(job.cache.open().thumbnails, job.rows))
        with limit_threads(job.threads):
            matches = copies.find_matches(job.parts.get_rows(number))
        job.parts.write(number, encode_matches(matches))

    return jobs.return_error(work)


def encode_matches(matches: Matches) -> bytes:
    """Encode the matches of a part as JSON."""
    return json.dumps([[[*pair, *match] for pair, match in pairs.items()] for pairs in matches]).encode()


def decode_matches(content: bytes) -> Matches:
    """Decode the JSON of a part."""
    by_colour, by_brightness = (_decode_pairs(rows) for rows in json.loads(content))
    return Matches(by_colour, by_brightness)


def _decode_pairs(rows: Sequence[Sequence[Any]]) -> dict[Pair, Match]:
    return {(first, second): (changes, similarity) for first, second, changes, similarity in rows}
