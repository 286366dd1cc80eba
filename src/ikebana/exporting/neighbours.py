"""The training photos, small, that a model file contains if the user asks for them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

from PIL import Image

from ikebana.data import decoding
from ikebana.errors import RunError
from ikebana.exporting import run_photos
from ikebana.exporting.run_photos import RunPhoto
from ikebana.inference import neighbours
from ikebana.runs import neighbour_index
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.threads import map_in_threads

# Side of a thumbnail, which shows the centre square of a photo.
THUMBNAIL_PIXELS = 96
JPEG_QUALITY = 80
# Photos that threads read in advance.
PREFETCH_PHOTOS = 32


def collect(run: Run, splits: Mapping[str, Sequence[RunPhoto]]) -> dict[str, Any]:
    """Collect the training photos for the metadata of a model file.

    Args:
        splits: the photos of the run.
    Raises:
        RunError: the run does not know its nearest training photos.
        PhotosError: a photo is missing or has changed.
    """
    index = neighbour_index.load(run)
    if index is None:
        raise RunError(neighbour_index.NO_NEIGHBOURS_MESSAGE, where=run.folder, advice=neighbour_index.ADVICE)
    by_path = {photo.path: photo for photos in splits.values() for photo in photos}
    photos, thumbnails = [by_path[path] for path in index.paths], []
    with progress.stage("draw thumbnails", len(photos)) as bar:
        for thumbnail in map_in_threads(draw_thumbnail, photos, PREFETCH_PHOTOS):
            thumbnails.append(thumbnail)
            bar.advance(1)
    return neighbours.to_metadata(replace(index, thumbnails=tuple(thumbnails)), run.classes)


def draw_thumbnail(photo: RunPhoto) -> bytes:
    """Draw the centre square as a JPEG; PhotosError if the photo cannot be read."""
    pixels = decoding.decode(run_photos.read_photo(photo), THUMBNAIL_PIXELS, "crop").pixels
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
