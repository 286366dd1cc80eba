"""The photos on a run's page, from the thumbnails of its folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto
from ikebana.reports import pages
from ikebana.reports.mistakes import ScoredPhoto, group_by_cell
from ikebana.runs.run import Run
from ikebana.system.threads import map_in_threads

# Longer sides of a photo: in a list of many, of a mistake, and of a photo that resembles it.
SMALL_PIXELS, LARGE_PIXELS, NEIGHBOUR_PIXELS = 144, 224, 96
# Of the photos in lists, as text; the page stays below 10 MB.
MAX_LIST_BYTES = 7_500_000
SAMPLES_PER_CLASS, MAX_SAMPLED_CLASSES = 6, 12


@dataclass(frozen=True)
class Thumbnails:
    """The thumbnails of a run, named by the sha256 of the photo."""

    folder: Path

    def read(self, sha256: str) -> np.ndarray | None:
        """Read a thumbnail: uint8 [height, width, 3]; None if it is missing or damaged."""
        return self.read_file(f"{sha256}.jpg")

    def read_file(self, name: str) -> np.ndarray | None:
        """Read a picture in the folder by its name, in the same way."""
        try:
            return decoding.decode_full_size(decoding.read_bytes(self.folder / name))
        except (OSError, UnreadablePhoto):
            return None

    def to_data_uri(self, sha256: str, longer_side: int) -> str:
        """Encode a thumbnail for the page; empty if it is missing or damaged."""
        photo = self.read(sha256)
        return "" if photo is None else pages.to_data_uri(photo, longer_side)

    def encode_all(self, hashes: Iterable[str], longer_side: int, max_bytes: int | None = None) -> dict[str, str]:
        """Encode thumbnails in threads, in this order, until the page has enough of them.

        Args:
            max_bytes: limit of the sum of all texts; None for all.
        """
        encoded: dict[str, str] = {}
        total = 0
        wanted = list(dict.fromkeys(hashes))
        results = map_in_threads(lambda sha256: self.to_data_uri(sha256, longer_side), wanted)
        for sha256, source in zip(wanted, results, strict=False):
            total += len(source)
            if max_bytes is not None and total > max_bytes:
                results.close()
                break
            encoded[sha256] = source
        return {sha256: source for sha256, source in encoded.items() if source}


def open_thumbnails(run: Run) -> Thumbnails:
    """Return the thumbnails of a run, of which some or all may be missing."""
    return Thumbnails(run.folder / "thumbnails")


def order_by_importance(photos: Sequence[ScoredPhoto]) -> list[ScoredPhoto]:
    """Order photos for a limited page: mistakes first, then photos of each class in turn."""
    wrong = sorted((photo for photo in photos if not photo.is_correct), key=lambda photo: -photo.confidence)
    correct = group_by_cell(photo for photo in photos if photo.is_correct)
    in_turn = [photo for row in zip_longest(*correct.values()) for photo in row if photo is not None]
    return [*wrong, *in_turn]


def pick_samples(photos: Sequence[ScoredPhoto], classes: Sequence[str]) -> dict[str, list[ScoredPhoto]]:
    """Pick evenly spaced photos of each class, always the same ones."""
    samples = {}
    for name in islice(classes, MAX_SAMPLED_CLASSES):
        of_class = [photo for photo in photos if photo.label == name]
        places = np.unique(np.linspace(0, len(of_class) - 1, SAMPLES_PER_CLASS).astype(int)) if of_class else []
        samples[name] = [of_class[int(place)] for place in places]
    return samples
