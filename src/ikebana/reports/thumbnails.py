"""Thumbnails of a run's validation and test photos."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import make_chunks
from ikebana.data.verified_array import Pixels
from ikebana.recipe import Resize
from ikebana.system.files import atomic_directory
from ikebana.system.threads import map_in_threads


def write_thumbnails(
    folder: Path, dataset: Dataset, pixels: Pixels, resize: Resize, others: Collection[str] = ()
) -> None:
    """Write small validation and test photos in their own shape, named by the file's sha256.

    Args:
        others: sha256 of training photos to write as well.
    """
    is_wanted = pl.col("split").is_in(("validation", "test")) | pl.col("sha256").is_in(
        pl.Series(list(others), dtype=pl.String).implode()
    )
    wanted = dataset.used_photos_with_row.filter(is_wanted)
    rows = list(wanted.select("row", "sha256", "width", "height").iter_rows())

    def save(chunk: range, partial_folder: Path) -> None:
        for row, sha256, width, height in rows[chunk.start : chunk.stop]:
            thumbnail = Image.fromarray(restore_aspect_ratio(pixels[row], width, height, resize))
            thumbnail.save(partial_folder / f"{sha256}.jpg", "JPEG", quality=85)

    with atomic_directory(folder, create_parent=False) as partial_folder:
        for _ in map_in_threads(lambda chunk: save(chunk, partial_folder), make_chunks(len(rows))):
            pass


def restore_aspect_ratio(square: np.ndarray, width: int, height: int, resize: Resize) -> np.ndarray:
    """Restore the aspect ratio of a squashed photo, keeping its longer side.

    A crop stays square.
    """
    if resize == "crop":
        return square
    longer = max(width, height)
    side = square.shape[0]
    size = max(1, round(side * width / longer)), max(1, round(side * height / longer))
    return np.asarray(Image.fromarray(square).resize(size, Image.Resampling.BILINEAR))
