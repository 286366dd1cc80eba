"""The page about a run, made from its folder alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.errors import RunError
from ikebana.evaluation.metrics import Evaluation
from ikebana.evaluation.statistics import wilson_interval
from ikebana.reports import pages, report_card, report_charts, report_steps, report_text
from ikebana.reports.audit_page import KIND_DESCRIPTIONS
from ikebana.reports.mistakes import (
    HeldOutPhotos,
    ScoredPhoto,
    SuspectPhoto,
    find_suspect_labels,
    find_worst_mistakes,
    group_by_cell,
    read_held_out,
)
from ikebana.reports.report_pictures import (
    LARGE_PIXELS,
    MAX_LIST_BYTES,
    NEIGHBOUR_PIXELS,
    SMALL_PIXELS,
    Thumbnails,
    open_thumbnails,
    order_by_importance,
    pick_samples,
)
from ikebana.runs.run import Run
from ikebana.system.percentages import format_confidence

# Mistakes that are shown with the training photos that they resemble.
MAX_MISTAKES = 20
MAX_SUSPECTS = 40
# With more classes, the matrix would not fit on a screen: the confused pairs are listed.
MAX_MATRIX_CLASSES = 30
MAX_PAIRS = 60
MAX_SLICES = 12
MAX_FINDINGS = 12


@dataclass(frozen=True)
class HeatMapPicture:
    """The heat map of a photo on the page.

    Attributes:
        source: a data URI; empty if the map failed its check and must not be shown.
    """

    source: str


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix.

    Attributes:
        key: the id of its photos on the page; empty if there are none.
        tint: share of the colour in the background, 0 to 100.
    """

    key: str
    label: str
    predicted: str
    photos: int
    share: float
    tint: float

    @property
    def is_correct(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class CellPhotos:
    """The photos of a cell: those that are shown, and how many are not."""

    cell: Cell
    photos: Sequence[ScoredPhoto]
    hidden: int


def write(file: Path, run: Run, heat_maps: Mapping[str, HeatMapPicture] | None = None) -> None:
    """Write the page of a finished run.

    Args:
        heat_maps: by path, of the photos of `list_worst_mistakes`; None if they are not wanted.
    Raises:
        RunError: the run is not finished, or a file in it is damaged.
        MachineError: the page cannot be written.
    """
    pages.write_page(file, render(run, heat_maps))


def list_worst_mistakes(run: Run) -> list[ScoredPhoto]:
    """List the mistakes that are shown large, the most confident first."""
    return find_worst_mistakes(read_held_out(run).test, MAX_MISTAKES)


def render(run: Run, heat_maps: Mapping[str, HeatMapPicture] | None = None) -> str:
    """Render the page as text, see `write`."""
    evaluation, held_out, thumbnails = run.evaluation, read_held_out(run), open_thumbnails(run)
    suspects = [] if report_steps.is_weak(run) else find_suspect_labels(run, held_out)
    mistakes = find_worst_mistakes(held_out.test, MAX_MISTAKES)
    samples = pick_samples(held_out.photos, run.classes)
    small = _encode_lists(thumbnails, held_out, suspects, samples)
    matrix = make_matrix(evaluation)
    return pages.render(
        "report.html.jinja",
        run=run,
        name=get_title(run),
        evaluation=evaluation,
        percent=report_text.percent,
        format_confidence=format_confidence,
        answers=report_text.answer_questions(run),
        steps=report_steps.suggest_next_steps(run, suspects, mistakes),
        matrix=matrix if len(run.classes) <= MAX_MATRIX_CLASSES else None,
        pairs=_list_pairs(matrix),
        cells=_list_cells(matrix, held_out.test, small),
        mistakes=_describe_mistakes(run, mistakes, thumbnails),
        mistake_count=sum(not photo.is_correct for photo in held_out.test),
        heat_maps=heat_maps,
        rows=_score_classes(evaluation),
        suspects=suspects[:MAX_SUSPECTS],
        suspect_count=len(suspects),
        pictures=small,
        samples=samples,
        hidden_sample_classes=len(run.classes) - len(samples),
        augmented=_read_augmented(run),
        charts=report_charts.draw_all(run, held_out),
        slices=evaluation.slices.tested[:MAX_SLICES] if evaluation.slices is not None else (),
        worse_count=len(evaluation.slices.worse) if evaluation.slices is not None else 0,
        findings=_summarise_findings(run),
        cards=report_card.make_cards(run),
        intended_use=report_card.INTENDED_USE,
        limits=report_card.list_limits(run),
        recipe_json=report_card.format_recipe(run),
        layers=report_card.read_layer_table(run),
        commands=report_card.list_commands(run),
        reproducibility=report_card.get_reproducibility(run.environment),
        test_count=len(held_out.test),
        shown_count=sum(photo.sha256 in small for photo in held_out.test),
    )


def get_title(run: Run) -> str:
    """Return the name of the folder, archive or table of a run's photos."""
    source = str(run.source.get("root") or run.source["photos"])
    return Path(source).name or source


def _encode_lists(
    thumbnails: Thumbnails,
    held_out: HeldOutPhotos,
    suspects: Sequence[SuspectPhoto],
    samples: Mapping[str, Sequence[ScoredPhoto]],
) -> dict[str, str]:
    """Encode the photos of all lists, as many as the page may have."""
    first = [suspect.photo for suspect in suspects[:MAX_SUSPECTS]]
    first += [photo for of_class in samples.values() for photo in of_class]
    hashes = [photo.sha256 for photo in (*first, *order_by_importance(held_out.test))]
    return thumbnails.encode_all(hashes, SMALL_PIXELS, MAX_LIST_BYTES)


def make_matrix(evaluation: Evaluation) -> list[list[Cell]]:
    """Make the confusion matrix: a row per label, a cell per predicted class."""
    totals = [sum(row) for row in evaluation.confusion]
    largest = max(
        (
            number / total
            for index, (row, total) in enumerate(zip(evaluation.confusion, totals, strict=True))
            for column, number in enumerate(row)
            if number and column != index
        ),
        default=1.0,
    )

    def make_cell(row: int, column: int) -> Cell:
        number = evaluation.confusion[row][column]
        share = number / totals[row] if number else 0.0
        tint = 100 * share if row == column else 100 * share / largest
        key = f"cell-{row}-{column}" if number else ""
        return Cell(key, evaluation.classes[row], evaluation.classes[column], number, share, tint)

    indices = range(len(evaluation.classes))
    return [[make_cell(row, column) for column in indices] for row in indices]


def _list_pairs(matrix: Sequence[Sequence[Cell]]) -> list[Cell]:
    """List the confused pairs, the most frequent first."""
    wrong = [cell for row in matrix for cell in row if cell.photos and not cell.is_correct]
    return sorted(wrong, key=lambda cell: (-cell.photos, -cell.share))[:MAX_PAIRS]


def _list_cells(
    matrix: Sequence[Sequence[Cell]], photos: Sequence[ScoredPhoto], pictures: Mapping[str, str]
) -> list[CellPhotos]:
    """List the cells with their photos: wrong ones first, then correct ones."""
    of_cell = group_by_cell(photos)
    filled = [cell for row in matrix for cell in row if cell.photos]
    cells = []
    for cell in sorted(filled, key=lambda cell: (cell.is_correct, -cell.photos)):
        of_this = of_cell.get((cell.label, cell.predicted), [])
        shown = [photo for photo in of_this if photo.sha256 in pictures]
        cells.append(CellPhotos(cell, shown, len(of_this) - len(shown)))
    return cells


def _describe_mistakes(run: Run, mistakes: Sequence[ScoredPhoto], thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Add their pictures, and the training photos that they resemble, to mistakes."""
    table = run.mistake_neighbours
    neighbours: dict[str, list[dict[str, Any]]] = {}
    if table is not None:
        shown = table.filter(
            pl.col("path").is_in(pl.Series([photo.path for photo in mistakes], dtype=pl.String).implode())
        )
        sources = thumbnails.encode_all(shown["sha256"], NEIGHBOUR_PIXELS)
        for row in shown.iter_rows(named=True):
            source = sources.get(row["sha256"], "")
            neighbours.setdefault(row["path"], []).append({**row, "source": source})
    large = thumbnails.encode_all([photo.sha256 for photo in mistakes], LARGE_PIXELS)
    return [
        {
            "photo": photo,
            "source": large.get(photo.sha256, ""),
            "neighbours": neighbours.get(photo.path, []),
        }
        for photo in mistakes
    ]


def _score_classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the rows of the table of classes."""
    cross_validated = evaluation.cross_validation.recall if evaluation.cross_validation is not None else {}
    return [
        {
            "name": name,
            "scores": scores,
            "interval": wilson_interval(scores.recall * scores.support, scores.support) if scores.support else None,
            "cross_validated": cross_validated.get(name),
        }
        for name, scores in evaluation.per_class.items()
    ]


def _summarise_findings(run: Run) -> list[dict[str, Any]]:
    """Count the findings of audit.json by kind, the most severe first."""
    try:
        findings = run.audit.get("findings")
    except RunError:
        return []
    kinds: dict[str, dict[str, Any]] = {}
    for finding in findings if isinstance(findings, list) else ():
        kind = str(finding.get("kind"))
        description = KIND_DESCRIPTIONS.get(kind)
        title = description.title if description is not None else kind.replace("_", " ")
        first = {"title": title, "severity": finding.get("severity"), "evidence": finding.get("evidence"), "count": 0}
        first["path"] = next(iter(finding.get("paths") or ()), "")
        kinds.setdefault(kind, first)["count"] += 1
    return list(kinds.values())[:MAX_FINDINGS]


def _read_augmented(run: Run) -> str:
    """Encode the figure of the augmented samples; empty if the run has none."""
    figures = Thumbnails(run.folder / "figures")
    photo = figures.read_file("augmented.png")
    return "" if photo is None else pages.to_data_uri(photo, max(photo.shape))
