"""A run's folder: what `fit` leaves behind and every later verb reads. A person can read it too.

recipe.json                 every choice
source.json                 where the photos are, their fingerprint, the classes, the choices as the run began with them
pretrained.json             for each network, where its pretrained weights came from, and their licence; if it builds on any
dataset.parquet             one row for every path found: used or why not, label, split, sha256
audit.json                  what is odd about the files
environment.json            what it ran on, and why it was used like that
epochs.jsonl                a line an epoch
weights.safetensors         the network
predictions.parquet         validation and test photos with a probability for each class
calibration.json            how its confidence is to be read: temperature, and the threshold below which it is "not sure"
classification_report.txt   in scikit-learn's layout
layers.txt                  the network's layers, output shapes and parameter counts
figures/, thumbnails/       pictures
evaluation.json             how good it is; written last, so a run that has it is finished
checkpoint*.safetensors     where an unfinished training stands
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ikebana import progress
from ikebana import recipe as recipes
from ikebana.errors import MachineError, PhotosError, RecipeError, RunError
from ikebana.learning.repeating import differences
from ikebana.photos import intake
from ikebana.photos.dataset import USED, Dataset
from ikebana.photos.split import fingerprint
from ikebana.places import alone, filled, tidy, to_write, written
from ikebana.recipe import Recipe
from ikebana.trust import calibration, evaluation
from ikebana.trust.calibration import Calibration
from ikebana.trust.evaluation import Evaluation

DEALT = ("path", "label", "split", "sha256")  # what must be the same for a run to go on
RUNS = Path("runs")  # where runs lie that no folder was named for
NAMED = 5  # photos of a kind, at most, in a message
AGAIN = "a copy of this run that is whole, or the same once more: ikebana fit PHOTOS --recipe RUN/recipe.json"


@dataclass(frozen=True)
class Run:
    """What was learned, a folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def checkpoint_of_all(self) -> Path:
        """Of the training on all photos that follows the score, if the recipe has it."""
        return self.folder / "checkpoint-all.safetensors"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Every choice that was made."""
        try:
            return recipes.from_json(self.read_json("recipe.json"))
        except RecipeError as error:
            raise RunError(error.what, where=self.folder, advice=error.advice) from None

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """Where the photos are: `photos`, `fingerprint`, `classes`.

        raises  RunError if the file is damaged
        """
        found = self.read_json("source.json")
        if wrong := _wrong_source(found):
            raise RunError(f"source.json is damaged: {wrong}", where=self.folder, advice=AGAIN)
        return found

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.source["classes"])

    @property
    def finished(self) -> bool:
        return (self.folder / "evaluation.json").exists()

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """How good it is on the sealed test photos.

        raises  RunError if the run has not finished, or a file of it is damaged or gone
        """
        if not self.finished:
            raise RunError("this run has not finished", where=self.folder, advice=f"ikebana fit --resume {self.folder}")
        report = self.read_text("classification_report.txt")
        try:
            return evaluation.from_json(self.read_json("evaluation.json"), report)
        except ValueError as error:
            raise RunError(f"evaluation.json is damaged: {error}", where=self.folder, advice=AGAIN) from None

    @property
    def calibration(self) -> Calibration:
        """How to read the network's confidence.

        raises  RunError if the file is damaged or gone
        """
        try:
            return calibration.from_json(self.read_json("calibration.json"))
        except ValueError as error:
            raise RunError(f"calibration.json is damaged: {error}", where=self.folder, advice=AGAIN) from None

    @property
    def dataset(self) -> pl.DataFrame:
        """One row for every path found."""
        return self.read_table("dataset.parquet", (*DEALT, "status"))

    @property
    def predictions(self) -> pl.DataFrame:
        """Validation and test photos with a probability for each class."""
        classes = [f"p:{name}" for name in self.classes]
        return self.read_table("predictions.parquet", ("path", "label", "split", *classes))

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """What each epoch gave.

        raises  RunError if there are none yet, or the file is damaged
        """
        try:
            lines = (self.folder / "epochs.jsonl").read_text("utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError) as error:
            raise RunError(f"epochs.jsonl cannot be read: {error}", where=self.folder, advice=AGAIN) from None

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"this is not a run: it has no {name}", where=self.folder, advice="a folder that fit made"
            ) from None
        except (ValueError, OSError) as error:
            raise RunError(f"{name} cannot be read: {error}", where=self.folder, advice=AGAIN) from None

    def read_text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text("utf-8")
        except (ValueError, OSError) as error:
            told = getattr(error, "strerror", None) or error
            raise RunError(f"{name} cannot be read: {told}", where=self.folder, advice=AGAIN) from None

    def read_table(self, name: str, columns: Sequence[str]) -> pl.DataFrame:
        """A table of the run, which must have these columns."""
        try:
            found = pl.read_parquet(self.folder / name)
        except (OSError, pl.exceptions.PolarsError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"{name} cannot be read: {told}", where=self.folder, advice=AGAIN) from None
        if missing := [each for each in columns if each not in found.columns]:
            raise RunError(f"{name} is damaged: it has no {', '.join(missing)}", where=self.folder, advice=AGAIN)
        return found

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.folder / name, value, make=False)

    def write_text(self, name: str, text: str) -> None:
        with written(self.folder / name, make=False) as beside:
            beside.write_text(text, "utf-8")

    def write_table(self, name: str, table: pl.DataFrame) -> None:
        with written(self.folder / name, make=False) as beside:
            table.write_parquet(beside)

    def write_epochs(self, epochs: Iterable[Any]) -> None:
        self.write_text("epochs.jsonl", "".join(json.dumps(asdict(each)) + "\n" for each in epochs))

    def has_ended(self) -> bool:
        """Whether nothing is left to do; says so then."""
        if self.finished:
            progress.say(f"{self.folder} has finished already: nothing is left to do")
        return self.finished

    @contextmanager
    def resumable(self) -> Iterator[None]:
        """Work that Ctrl-C, SIGTERM or a full disk interrupts: says how to go on.

        raises  RunError if another process is at it
        """
        try:
            with alone(self.folder) as free:
                if not free:
                    raise RunError(
                        "another process is at this run", where=self.folder, advice="wait for it, or stop it"
                    )
                tidy(self.folder)
                yield
        except MachineError:
            progress.say(f"what was learned before is safe. To go on then: ikebana fit --resume {self.folder}")
            raise
        except KeyboardInterrupt:
            progress.say(f"stopped; nothing is lost. To go on: ikebana fit --resume {self.folder}")
            raise

    def write_predictions(self, dataset: Dataset, rows: np.ndarray, probabilities: np.ndarray) -> None:
        """One row a photo: path, label, split, and `p:<class>` for each class."""
        columns = {f"p:{name}": probabilities[:, number] for number, name in enumerate(dataset.classes)}
        self.write_table(
            "predictions.parquet", dataset.photos[rows].select("path", "label", "split").with_columns(**columns)
        )

    def finish(self, scored: Evaluation, seconds: Mapping[str, float]) -> None:
        """Write the score, last of all, and drop the checkpoints: the run is complete."""
        scored = replace(scored, seconds=dict(seconds))
        self.write_text("classification_report.txt", scored.report)
        self.write_json("evaluation.json", scored.to_json())
        for checkpoint in self.folder.glob("checkpoint*.safetensors"):
            try:
                checkpoint.unlink(missing_ok=True)
            except OSError as error:  # all that counts is written
                progress.say(f"{checkpoint} is of no use any more and could not be removed: {error.strerror}")
        progress.event("evaluation", **scored.to_json())
        progress.say(f"\n{scored!r}\nfigures: {self.folder / 'figures'}")

    def check_same_recipe(self) -> None:
        """Refuse to go on with other choices than the run began with.

        raises  RunError
        """
        try:
            began = recipes.from_json(self.source["recipe"])
        except RecipeError as error:
            raise RunError(f"source.json is damaged: {error.what}", where=self.folder, advice=AGAIN) from None
        if changes := differences(began, self.recipe):
            raise RunError(
                f"the recipe has changed since this run began: {'; '.join(changes)}",
                where=self.folder / "recipe.json",
                advice="put it back, or begin a new run: ikebana fit PHOTOS --recipe RUN/recipe.json",
            )

    def note_pretrained(self, weights: dict[str, Any]) -> None:
        """Write down where the networks' first weights come from, once: whoever goes on does so with the same.

        raises  RunError if they are others by now
        """
        if weights and not (self.folder / "pretrained.json").exists():
            self.write_json("pretrained.json", weights)
        began = self.read_json("pretrained.json") if weights else {}
        other = [name for name, each in weights.items() if began.get(name, {}).get("sha256") != each["sha256"]]
        if other:
            raise RunError(
                f"the pretrained weights of {', '.join(other)} are not those that this run began with",
                where=self.folder / "pretrained.json",
                advice="put them back, or begin a new run",
            )

    def photos_found(self) -> Dataset:
        """The photos that it began with, none of them opened; PhotosError if they are not where they were."""
        try:
            return intake.read(self.source["photos"], self.recipe.class_order)
        except PhotosError as error:
            raise PhotosError(
                f"the photos of this run cannot be found again: {error.what}",
                where=self.source["photos"],
                advice="put them back there: a run goes on with the photos that it began with",
            ) from None

    def check_same_photos(self, dataset: Dataset) -> None:
        """Refuse to go on with other photos than the run began with.

        raises  RunError that names some of those that are not as they were
        """
        began = self.dataset.filter(pl.col("status") == USED).select(DEALT)
        if not began.equals(dataset.used.select(DEALT)):
            raise RunError(
                f"the photos have changed since this run began{_changes(began, dataset.photos)}",
                where=self.source["photos"],
                advice="a new run, or put the photos back as they were",
            )

    def __repr__(self) -> str:
        state = repr(self.evaluation).split("\n", 1)[0] if self.finished else "not finished"
        more = "; what ships has learned from all photos since" if self.finished and self.recipe.all else ""
        return f"Run({self.folder}: {self.recipe.name}, {state}{more})"

    def _repr_html_(self) -> str:
        import html

        about = html.escape(repr(self))
        return f"<p><b>{about}</b></p>" + (self.evaluation._repr_html_() if self.finished else "")


def write_json(file: Path, value: Any, make: bool = True) -> None:
    """Plain values or a record, readable by a person; never NaN, which no JSON reader takes."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    with written(file, make) as beside:
        beside.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def begin(folder: str | Path | None, recipe: Recipe, dataset: Dataset, environment: dict[str, Any]) -> Run:
    """A new run's folder; it appears with all inside that going on depends on.

    environment  what it begins on
    raises       RunError if the folder is taken, MachineError if it cannot be made
    """
    source = {
        "photos": str(Path(dataset.source).expanduser().resolve()),
        "fingerprint": fingerprint(dataset.used["sha256"]),
        "classes": list(dataset.classes),
        "recipe": recipes.to_json(recipe),  # as it was: if somebody changes recipe.json, --resume says what
    }
    place = Path(folder).expanduser() if folder is not None else _default_folder(recipe, source)
    check_free(place)
    with filled(place, shared=False) as beside:
        write_json(beside / "recipe.json", source["recipe"])
        write_json(beside / "source.json", source)
        write_json(beside / "environment.json", environment)
        Run(beside).write_table("dataset.parquet", dataset.photos)
    return Run(place)


def _wrong_source(values: Any) -> str:
    """What of a run's source.json is missing or of another kind; nothing if it is as `begin` wrote it."""
    if not isinstance(values, dict):
        return "it is no record"
    kinds = {"photos": str, "fingerprint": str, "recipe": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
    classes = values.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(each, str) for each in classes):
        wrong.append("classes")
    return f"{' and '.join(wrong)} cannot be told from it" if wrong else ""


def _changes(began: pl.DataFrame, photos: pl.DataFrame) -> str:
    """Some of the photos that are not as they were when the run began, by name: what happened to them, most grave first."""
    both = began.join(photos.select(*DEALT, "status"), on="path", how="full", suffix="_now", coalesce=True)
    gone, used = pl.col("status").is_null(), pl.col("status") == USED
    new, other = pl.col("sha256").is_null(), pl.col("sha256") != pl.col("sha256_now")
    kinds = {
        "removed": gone,
        "no longer usable": ~new & ~gone & ~used,
        "changed": used & other,
        "new": new & used,
        "under another label": used & ~other & (pl.col("label") != pl.col("label_now")),
        "in another part": used & ~other & (pl.col("split") != pl.col("split_now")),
    }
    lines = []
    for kind, holds in kinds.items():
        paths = both.filter(holds)["path"].sort().to_list()
        if paths:
            more = f" and {len(paths) - NAMED:,} more" if len(paths) > NAMED else ""
            lines.append(f"\n  {kind}: {', '.join(paths[:NAMED])}{more}")
    return "".join(lines)


def check_free(folder: str | Path | None, flag: str = "--run") -> None:
    """Refuse a folder with something in it before any work is done.

    flag    by which another one is named

    raises  RunError if it is a file or not empty; MachineError if it cannot be made
    """
    place = to_write(RUNS if folder is None else folder, appears=folder is not None)
    if folder is None or not place.exists():
        return
    if not place.is_dir() or any(place.iterdir()):
        resumable = (place / "recipe.json").exists() and not Run(place).finished
        advice = f"ikebana fit --resume {place}" if resumable else f"another {flag} DIR"
        raise RunError("this folder is taken", where=place, advice=advice)


def open_run(folder: str | Path) -> Run:
    """The run in that folder.

    raises  RunError if it is none
    """
    run = Run(Path(os.path.expanduser(folder)))
    if not os.path.isdir(run.folder):
        raise RunError(
            "there is no such run", where=folder, advice="a folder that fit made, such as runs/baseline-7f3a"
        )
    _ = run.recipe, run.source
    return run


def _default_folder(recipe: Recipe, source: dict[str, Any]) -> Path:
    """`runs/<recipe>-<short hash>`, the hash of choices, photos and time: the same command can be given twice."""
    made_of = json.dumps([recipes.to_json(recipe), source, time.time_ns()])
    return RUNS / f"{recipe.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:6]}"
