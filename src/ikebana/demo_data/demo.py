"""`ikebana demo`: draw photos, train on them and predict new ones."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikebana.commands import fit as fit_command
from ikebana.commands import predict as predict_command
from ikebana.demo_data import paper_flowers
from ikebana.demo_data.paper_flowers import PlantedFaults
from ikebana.runs.run import Run
from ikebana.system import progress

# Options that differ from the default recipe; tests use smaller photos.
OPTIONS: dict[str, Any] = {}


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo; `new_correct` of `new_total` new photos were classified correctly."""

    folder: Path
    run: Run
    planted: PlantedFaults
    new_correct: int
    new_total: int


def demo(out: str | Path | None = None) -> DemoResult:
    """Draw paper flowers with planted faults, train, predict new photos, report on the faults.

    Args:
        out: folder to create; None for `ikebana-demo` or the first free name like it.
    Raises:
        RunError: the folder exists.
    """
    start = time.perf_counter()
    folder = _free_folder(out)
    progress.message(f"1. Drawing photos of five kinds of paper flowers into {folder / 'photos'}")
    planted = paper_flowers.draw_collection(folder / "photos")
    truth = paper_flowers.draw_new(folder / "new")

    progress.message(f"\n2. ikebana fit {folder / 'photos'}")
    run = fit_command.fit(folder / "photos", run=folder / "run", **OPTIONS)

    progress.message(f"\n3. ikebana predict {run.folder} {folder / 'new'}")
    predictions = predict_command.predict(run, folder / "new", folder / "new.csv")
    right = sum(result.label == truth[Path(result.path).name] for result in predictions)
    progress.message(f"{right} of {len(truth)} new photos classified correctly")

    progress.message("\n4. What happened to the planted faults")
    progress.message("\n".join(f"   {line}" for line in describe_faults(run, planted)))
    progress.message(f"\nDone in {time.perf_counter() - start:.0f} s. Results:\n{_list_files(folder)}")
    return DemoResult(folder, run, planted, right, len(truth))


def describe_faults(run: Run, planted: PlantedFaults) -> list[str]:
    """Describe each kind of planted fault: the number, and how many were handled."""
    table = {row["path"]: row for row in run.dataset.iter_rows(named=True)}
    broken = sum(table[path]["status"] != "used" for path in planted.broken)
    together = sum(table[first]["split"] == table[second]["split"] for first, second in planted.duplicates)
    findings = json.loads((run.folder / "audit.json").read_text("utf-8"))["findings"]
    reported = {finding["paths"][0] for finding in findings if finding["kind"] == "exact_duplicate"}
    duplicates = sum(bool({first, second} & reported) for first, second in planted.duplicates)
    upright = sum(table[path]["status"] == "used" for path in planted.sideways)
    contradicted, held_out = _count_contradicted(run, planted.wrong_label)
    return [
        f"{len(planted.broken)} broken files: {broken} skipped, each with its reason",
        f"{len(planted.duplicates)} pairs of duplicates: {duplicates} found, {together} kept in the same split",
        f"{len(planted.sideways)} photos stored sideways: {upright} read upright",
        f"{len(planted.wrong_label)} wrong labels: {held_out} in validation or test, of which the network contradicts "
        f"{contradicted}; `ikebana audit` lists suspect labels before training",
    ]


def _count_contradicted(run: Run, wrong: tuple[str, ...]) -> tuple[int, int]:
    """Count held-out photos with a wrong label: those predicted otherwise, and all of them."""
    rows = [row for row in run.predictions.iter_rows(named=True) if row["path"] in wrong]
    predicted = [max(run.classes, key=lambda name, row=row: row[f"p:{name}"]) for row in rows]
    return sum(label != row["label"] for label, row in zip(predicted, rows, strict=True)), len(rows)


def _free_folder(out: str | Path | None) -> Path:
    from ikebana.runs.run_writer import check_folder_is_free

    if out is not None:
        check_folder_is_free(out, "--out")
        return Path(os.path.expanduser(out))
    names = (Path("ikebana-demo" if number == 1 else f"ikebana-demo-{number}") for number in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _list_files(folder: Path) -> str:
    run = folder / "run"
    contents = {
        folder / "photos": "the drawn photos, including the faults",
        run / "report.html": "a page about the run",
        run / "figures": "sample photos, confusion matrix",
        run / "audit.json": "problems found in the files",
        run / "evaluation.json": "the score, for programs",
        folder / "new.csv": "predictions for the new photos",
    }
    width = max(len(str(path)) for path in contents)
    return "\n".join(f"   {path!s:<{width}}  {content}" for path, content in contents.items())
