"""The page of `explain`: photos, heat maps and nearest training photos."""

import base64
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ikebana.explanation.explanation import Explanation
from ikebana.inference.neighbours import Neighbour
from ikebana.inference.prediction import NOT_SURE, UNKNOWN, Prediction
from ikebana.reports import pages
from ikebana.system import progress
from ikebana.system.files import atomic_directory

PAGE_FILE, HEAT_MAP_FOLDER = "index.html", "heat-maps"
# The first bytes of the page contain its title.
PAGE_MARK, MARK_BYTES = b"<title>Explanations by ", 2000
# Longer side of the photo and of its heat map.
PHOTO_PIXELS = 400
# Each takes about 100 kB.
MAX_PAGE_PHOTOS = 200
MAX_STEM_CHARACTERS = 40


@dataclass(frozen=True)
class NeighbourView:
    """A training photo as the template shows it."""

    label: str
    path: str
    # A data URI; "" without a picture.
    source: str
    similarity: float
    is_same_class: bool


@dataclass(frozen=True)
class PhotoView:
    """An explained photo as the template shows it."""

    path: str
    # The most probable class; "" if the photo cannot be used.
    closest_class: str
    # "ok", "unsure", "unknown" or "unusable".
    state: str
    answer: str
    note: str
    familiarity: str
    # Data URIs; "" without a picture.
    source: str
    overlay: str
    heat_map_note: str
    heat_map_alt: str
    neighbours_note: str
    neighbours: list[NeighbourView]


def write_explanations(folder: Path, explanations: Sequence[Explanation], model: str) -> None:
    """Write the page and the heat maps that can be trusted.

    Args:
        folder: appears when it is complete, and replaces earlier explanations.
        model: name of the run or the file.
    Raises:
        MachineError: the folder cannot be written.
    """
    if len(explanations) > MAX_PAGE_PHOTOS:
        progress.message(f"the page shows the first {MAX_PAGE_PHOTOS} of {len(explanations):,} photos")
    with atomic_directory(folder, allow_existing=False) as partial_folder:
        (partial_folder / PAGE_FILE).write_text(render_page(explanations, model), "utf-8")
        _write_heat_maps(partial_folder / HEAT_MAP_FOLDER, explanations)
        # Checked again: the folder may have changed while the photos were explained.
        if folder.is_dir() and is_explanation_folder(folder):
            shutil.rmtree(folder)


def is_explanation_folder(folder: Path) -> bool:
    """Return whether the folder holds only earlier explanations, which may be replaced."""
    page, heat_maps = folder / PAGE_FILE, folder / HEAT_MAP_FOLDER
    names = {file.name for file in folder.iterdir()}
    if names != {PAGE_FILE, HEAT_MAP_FOLDER} or not page.is_file() or not heat_maps.is_dir():
        return False
    with page.open("rb") as file:
        is_page = PAGE_MARK in file.read(MARK_BYTES)
    return is_page and all(re.fullmatch(r"\d{3,}.*\.png", file.name) for file in heat_maps.iterdir())


def render_page(explanations: Sequence[Explanation], model: str) -> str:
    """Render the page as HTML."""
    states = Counter(_get_state(explanation.prediction) for explanation in explanations)
    drawn = [explanation for explanation in explanations if explanation.heat_map is not None]
    return pages.render(
        "explain.html.jinja",
        model=model,
        photos=[_make_view(explanation) for explanation in explanations[:MAX_PAGE_PHOTOS]],
        total=len(explanations),
        states=states,
        drawn=len(drawn),
        trusted=sum(explanation.overlay is not None for explanation in drawn),
        has_neighbours=any(explanation.neighbours for explanation in explanations),
    )


def name_heat_map(number: int, path: str) -> str:
    """Name a PNG file: a number, and what is safe of the photo's name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(path).stem)[:MAX_STEM_CHARACTERS].strip("-")
    return f"{number:03d}{'-' if stem else ''}{stem}.png"


def _write_heat_maps(folder: Path, explanations: Sequence[Explanation]) -> None:
    folder.mkdir()
    for number, explanation in enumerate(explanations, 1):
        if explanation.overlay is not None:
            Image.fromarray(explanation.overlay).save(folder / name_heat_map(number, explanation.prediction.path))


def _make_view(explanation: Explanation) -> PhotoView:
    answer = explanation.prediction
    return PhotoView(
        answer.path or "photo",
        answer.closest_class or "",
        _get_state(answer),
        _describe_answer(answer),
        _describe_alternatives(answer),
        explanation.describe_familiarity(),
        _to_source(explanation.photo),
        _to_source(explanation.overlay),
        explanation.describe_heat_map(),
        _describe_place(explanation),
        explanation.describe_neighbours(),
        [_make_neighbour(neighbour, answer.closest_class) for neighbour in explanation.neighbours],
    )


def _make_neighbour(neighbour: Neighbour, closest_class: str | None) -> NeighbourView:
    thumbnail = neighbour.thumbnail
    source = f"data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()}" if thumbnail else ""
    return NeighbourView(
        neighbour.label, neighbour.path, source, neighbour.similarity, neighbour.label == closest_class
    )


def _get_state(answer: Prediction) -> str:
    if not answer.is_usable:
        return "unusable"
    return {NOT_SURE: "unsure", UNKNOWN: "unknown"}.get(answer.status, "ok")


def _describe_answer(answer: Prediction) -> str:
    if not answer.is_usable:
        return "Cannot be used"
    if answer.label is not None:
        return f"{answer.label} ({_format_share(answer.confidence)})"
    return "Unlike the training photos" if answer.status == UNKNOWN else "Not sure"


def _describe_alternatives(answer: Prediction) -> str:
    """Say which other classes are possible, or why the photo has no answer."""
    if not answer.is_usable:
        return answer.status
    if answer.status == UNKNOWN:
        return f"The closest class is {answer.closest_class}."
    by_probability = sorted(answer.probabilities, key=lambda name: -answer.probabilities[name])
    # "Not sure" between one class and nothing would be no answer.
    min_classes = 1 if answer.label is not None else 2
    likely = answer.candidates if len(answer.candidates) >= min_classes else by_probability[:min_classes]
    others = [f"{name} ({_format_share(answer.probabilities[name])})" for name in likely if name != answer.label]
    if not others:
        return ""
    listed = others[0] if len(others) == 1 else f"{', '.join(others[:-1])} or {others[-1]}"
    return f"It might {'also ' if answer.label is not None else ''}be {listed}."


def _format_share(share: float) -> str:
    """Format a probability; never 0% or 100%, since no network is certain."""
    return "<1%" if share < 0.005 else ">99%" if share >= 0.995 else f"{share:.0%}"


def _describe_place(explanation: Explanation) -> str:
    """Say where a heat map has its maximum, for people who do not see it."""
    if explanation.heat_map is None:
        return ""
    values = explanation.heat_map.values
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    vertical = ("top", "middle", "bottom")[min(3 * int(row) // values.shape[0], 2)]
    horizontal = ("left", "centre", "right")[min(3 * int(column) // values.shape[1], 2)]
    return f"Heat map for {explanation.prediction.closest_class}, highest at the {vertical} {horizontal}"


def _to_source(photo: np.ndarray | None) -> str:
    return "" if photo is None else pages.to_data_uri(photo, PHOTO_PIXELS)
