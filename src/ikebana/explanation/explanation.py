"""The explanation of a prediction: a heat map and the nearest training photos."""

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ikebana.explanation.heat_map import HeatMap, overlay
from ikebana.inference.neighbours import Neighbour
from ikebana.inference.prediction import Prediction
from ikebana.inference.views import describe_answer
from ikebana.system.notebook_html import Markup, render_paragraph, render_picture, render_table, render_view

VIEW_PIXELS = 192
JPEG_QUALITY = 85
# Cosine similarity of features that equal each other, up to rounding to half precision.
MIN_COPY_SIMILARITY = 0.999
COPY_NOTE = "It is a training photo or a copy of one, so its answer says little about new photos."


@dataclass(frozen=True, eq=False)
class Explanation:
    """A prediction, its heat map and the nearest training photos.

    Attributes:
        neighbours: the nearest first; empty if the photo cannot be used, or if the model contains
            no training photos.
        photo: uint8 [side, side, 3], as the network sees it; None if the photo cannot be used.
        heat_map: of the most probable class; None if it was not computed.
    """

    prediction: Prediction
    neighbours: tuple[Neighbour, ...]
    photo: np.ndarray | None = None
    heat_map: HeatMap | None = None

    @property
    def overlay(self) -> np.ndarray | None:
        """The trusted heat map over the photo: uint8 [side, side, 3]; else None."""
        if self.photo is None or self.heat_map is None or not self.heat_map.is_trusted:
            return None
        return overlay(self.photo, self.heat_map)

    def describe_heat_map(self) -> str:
        """Say what the heat map shows, or why it is not shown."""
        if self.heat_map is None:
            return ""
        name = self.prediction.closest_class
        if self.heat_map.is_trusted:
            return f"The warm parts speak for {name}: hiding them lowers its probability more than hiding other parts."
        return f"No heat map: hiding its warm parts lowers the probability of {name} no more than hiding others."

    def describe_neighbours(self) -> str:
        """Say which classes the nearest training photos have, and whether one is the photo itself."""
        counts = Counter(neighbour.label for neighbour in self.neighbours).most_common()
        if not counts:
            return ""
        total, listed = len(self.neighbours), ", ".join(f"{count} {label}" for label, count in counts)
        labels = f"Labels of the {total} nearest training photos: {listed}."
        if len(counts) == 1:
            number = "The nearest training photo is" if total == 1 else f"All {total} nearest training photos are"
            labels = f"{number} labelled {counts[0][0]}."
        return labels if self.neighbours[0].similarity < MIN_COPY_SIMILARITY else f"{COPY_NOTE} {labels}"

    def describe_familiarity(self) -> str:
        """Say how much the photo resembles the training photos, if it is known."""
        familiarity = self.prediction.familiarity
        if familiarity is None:
            return ""
        if familiarity < 0.01:
            return "More than 99% of other photos of these classes resemble the training photos more."
        share = f"{min(familiarity, 0.99):.0%}"
        return f"It resembles the training photos more than {share} of other photos of these classes do."

    def __repr__(self) -> str:
        width = max((len(neighbour.label) for neighbour in self.neighbours), default=0)
        rows = [
            f"  {neighbour.similarity:5.2f}  {neighbour.label:<{width}}  {neighbour.path}"
            for neighbour in self.neighbours
        ]
        untrusted = (
            []
            if self.heat_map is None or self.heat_map.is_trusted
            else ["  no heat map: hiding its warm parts lowers the probability of the class no more than hiding others"]
        )
        return "\n".join([f"{self.prediction.path}: {_describe(self.prediction)}", *rows, *untrusted])

    def _repr_html_(self) -> str:
        pictures = [picture for picture in (self.photo, self.overlay) if picture is not None]
        rendered = [render_picture(_encode(picture), self.prediction.path, height=VIEW_PIXELS) for picture in pictures]
        rows = [
            (
                render_picture(neighbour.thumbnail, neighbour.path, height=64) if neighbour.thumbnail else Markup(),
                neighbour.label,
                neighbour.similarity,
                neighbour.path,
            )
            for neighbour in self.neighbours
        ]
        headers = ("photo", "label", "similarity", "path")
        return render_view(
            describe_answer(self.prediction),
            render_paragraph(self.prediction.path, is_quiet=True),
            render_paragraph(Markup(" ".join(rendered))) if rendered else "",
            self.describe_heat_map(),
            self.describe_familiarity(),
            self.describe_neighbours(),
            render_table(headers, rows) if rows else "",
        )


def _describe(answer: Prediction) -> str:
    """Describe a prediction in some words."""
    if answer.label is not None:
        return f"{answer.label} {answer.confidence:.2f}"
    if not answer.is_usable:
        return answer.status
    return f"{answer.status}, most probably {answer.closest_class} {answer.confidence:.2f}"


def _encode(photo: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
