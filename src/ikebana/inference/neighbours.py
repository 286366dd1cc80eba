"""The training photos that a photo resembles most, from the features of a network.

Photos are compared along the main directions of the training features, as for familiarity. A model
file contains what this needs only if it was exported with its training photos.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ikebana.evaluation.familiarity import Projection

DEFAULT_COUNT = 5
# Types of the matrices in the metadata of a model file.
MATRICES = {
    "mean": np.float32,
    "scale": np.float32,
    "axes": np.float16,
    "centre": np.float32,
    "references": np.float16,
}


@dataclass(frozen=True)
class Neighbour:
    """A training photo that resembles another photo."""

    # Within the folder, archive or table of the training photos.
    path: str
    label: str
    # Cosine similarity, -1 to 1; 1 for the photo itself.
    similarity: float
    # A small JPEG; None if it comes from a run.
    thumbnail: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class NeighbourIndex:
    """Training photos among which the nearest are searched.

    Attributes:
        paths, labels: of each photo.
        projection: from features to the axes along which photos are compared.
        references: float16 [photos, axes], of unit length.
        thumbnails: a small JPEG per photo; empty if there are none.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    projection: Projection
    references: np.ndarray
    thumbnails: tuple[bytes, ...] = ()

    def find(self, features: np.ndarray, count: int = DEFAULT_COUNT) -> list[Neighbour]:
        """Find the training photos that are most similar, the nearest first.

        Args:
            features: float32 [features], of one photo.
        """
        similarity = (self.projection.project(features[None]) @ self.references.astype(np.float32).T)[0]
        return [
            Neighbour(
                self.paths[index],
                self.labels[index],
                float(similarity[index]),
                self.thumbnails[index] if self.thumbnails else None,
            )
            for index in np.argsort(-similarity, kind="stable")[: max(count, 0)].tolist()
        ]

    def pick_samples(self, max_classes: int) -> dict[str, bytes]:
        """Pick the most typical thumbnail of each class; empty if there are none.

        It is the photo that is most similar to the mean of its class.

        Args:
            max_classes: with more classes, there are no samples.
        """
        labels = np.array(self.labels)
        classes = sorted(set(self.labels)) if self.thumbnails else []
        samples = {}
        for name in classes if len(classes) <= max_classes else ():
            rows = np.flatnonzero(labels == name)
            vectors = self.references[rows].astype(np.float32)
            samples[name] = self.thumbnails[rows[int((vectors @ vectors.mean(0)).argmax())]]
        return samples


def to_metadata(index: NeighbourIndex, classes: Sequence[str]) -> dict[str, Any]:
    """Encode an index for the metadata of a model file."""
    arrays = vars(index.projection) | {"references": index.references}
    return {
        "paths": list(index.paths),
        "labels": [classes.index(label) for label in index.labels],
        "shape": [len(index.references), *index.projection.axes.shape],
        "matrices": {
            name: _encode(np.ascontiguousarray(arrays[name], np.dtype(kind).newbyteorder("<")).tobytes())
            for name, kind in MATRICES.items()
        },
        "thumbnails": [_encode(thumbnail) for thumbnail in index.thumbnails],
    }


def from_metadata(values: Any, classes: Sequence[str]) -> NeighbourIndex | None:
    """Read the index in the metadata of a model file; None if it has none.

    The values are untrusted.

    Raises:
        ValueError: they are damaged.
    """
    if values is None:
        return None
    try:
        names = dict(enumerate(classes))
        photos, width, axes = (int(size) for size in values["shape"])
        paths, labels = tuple(map(str, values["paths"])), tuple(names[label] for label in values["labels"])
        thumbnails = tuple(map(_decode, values["thumbnails"]))
        shapes = {
            "mean": (width,),
            "scale": (width,),
            "axes": (width, axes),
            "centre": (axes,),
            "references": (photos, axes),
        }
        arrays = _decode_matrices(values["matrices"], shapes)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the training photos cannot be read: {type(error).__name__}: {error}") from None
    if not len(paths) == len(labels) == len(thumbnails) == photos:
        raise ValueError(f"{photos} training photos have {len(paths)} paths and {len(thumbnails)} thumbnails")
    references = arrays.pop("references")
    return NeighbourIndex(paths, labels, Projection(**arrays), references, thumbnails)


def _decode_matrices(encoded: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    arrays = {
        name: np.frombuffer(_decode(encoded[name]), np.dtype(kind).newbyteorder("<")).reshape(shapes[name])
        for name, kind in MATRICES.items()
    }
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("a matrix is not finite")
    return arrays


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"invalid base64: {error}") from None
