"""Draws its own photos and walks the whole road with them: `ikebana demo`."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ikebana import paper, pipeline, prediction, progress
from ikebana.paper import Planted
from ikebana.run import Run

CHOICES: dict[str, Any] = {}  # of the default recipe, to be changed; tests use smaller photos


@dataclass(frozen=True)
class Walk:
    """What the demo left behind."""

    folder: Path
    run: Run
    planted: Planted
    new_right: int  # of the new photos
    new_total: int


def demo(out: str | Path | None = None) -> Walk:
    """Draw photos of paper flowers, train on them, look at new ones, and say what became of the planted faults.

    out     the folder to make; `ikebana-demo`, or the first free name like it, if none is given
    raises  RunError if it is taken
    """
    begun = time.perf_counter()
    folder = _free_folder(out)
    progress.say(f"1. Drawing photos of five kinds of paper flowers into {folder / 'photos'}")
    planted = paper.draw_collection(folder / "photos")
    truth = paper.draw_new(folder / "new")

    progress.say(f"\n2. ikebana fit {folder / 'photos'}")
    run = pipeline.fit(folder / "photos", run=folder / "run", **CHOICES)

    progress.say(f"\n3. ikebana predict {run.folder} {folder / 'new'}")
    predictions = prediction.predict(run, folder / "new", folder / "new.csv")
    right = sum(each.label == truth[Path(each.path).name] for each in predictions)
    progress.say(f"{right} of {len(truth)} new photos named rightly")

    progress.say("\n4. What became of the planted faults")
    progress.say("\n".join(f"   {line}" for line in fates(run, planted)))
    progress.say(f"\nDone in {time.perf_counter() - begun:.0f} s. Look at\n{_where_to_look(folder)}")
    return Walk(folder, run, planted, right, len(truth))


def fates(run: Run, planted: Planted) -> list[str]:
    """A line for each kind of planted fault: how many there were, and what intake and training made of them."""
    table = {row["path"]: row for row in run.dataset.iter_rows(named=True)}
    broken = sum(table[path]["status"] != "used" for path in planted.broken)
    together = sum(table[one]["split"] == table[other]["split"] for one, other in planted.twins)
    found = {
        finding["paths"][0] for finding in run.read_json("audit.json")["findings"] if finding["kind"] == "identical"
    }
    twins = sum(bool({one, other} & found) for one, other in planted.twins)
    upright = sum(table[path]["status"] == "used" for path in planted.sideways)
    doubted, held_out = _doubted(run, planted.wrong_label)
    return [
        f"{len(planted.broken)} broken files: {broken} set aside, each with its reason",
        f"{len(planted.twins)} pairs of twins: {twins} found, {together} kept in one part",
        f"{len(planted.sideways)} photos stored sideways: {upright} read upright",
        f"{len(planted.wrong_label)} wrong labels: {held_out} came into validation or test, "
        f"where the network contradicts {doubted}; those it trained on it has learned as they are",
    ]


def _doubted(run: Run, wrong: tuple[str, ...]) -> tuple[int, int]:
    """How many of the wrongly labelled photos the network, never trained on them, labels otherwise; and of how many."""
    rows = [row for row in run.predictions.iter_rows(named=True) if row["path"] in wrong]
    said = [max(run.classes, key=lambda name, row=row: row[f"p:{name}"]) for row in rows]
    return sum(label != row["label"] for label, row in zip(said, rows, strict=True)), len(rows)


def _free_folder(out: str | Path | None) -> Path:
    from ikebana.run import check_free

    if out is not None:
        check_free(out, "--out")
        return Path(os.path.expanduser(out))
    names = (Path("ikebana-demo" if number == 1 else f"ikebana-demo-{number}") for number in range(1, 10_000))
    return next(place for place in names if not place.exists())


def _where_to_look(folder: Path) -> str:
    run = folder / "run"
    places = {
        folder / "photos": "what was drawn, faults included",
        run / "figures": "sample photos, the confusion matrix",
        run / "audit.json": "what was odd about the files",
        run / "evaluation.json": "the score, as programs read it",
        folder / "new.csv": "the predictions of the new photos",
    }
    width = max(len(str(place)) for place in places)
    return "\n".join(f"   {place!s:<{width}}  {what}" for place, what in places.items())
