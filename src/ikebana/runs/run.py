"""A run's folder: what `fit` writes and every later command reads.

recipe.json                 every option
source.json                 path and fingerprint of the photos, the classes, the initial recipe
pretrained.json             source and licence of the pretrained weights per network, if any
dataset.parquet             one row per path found: status, label, split, sha256
audit.json                  findings about the photos
environment.json            the machine and versions, and the reasons for the device settings
epochs.jsonl                one line per epoch
weights.safetensors         the network
predictions.parquet         validation and test photos with a probability for each class
calibration.json            temperature, and the threshold below which the answer is "not sure"
classification_report.txt   in scikit-learn's layout
layers.txt                  layers, output shapes and parameter counts of the network
figures/, thumbnails/       pictures
evaluation.json             the scores; written last, so a run that has it is finished
checkpoint*.safetensors     state of an unfinished training

Reading a missing or damaged file raises RunError.
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

from ikebana.system import progress
from ikebana import recipes
from ikebana.recipe import recipe_from_json, recipe_to_json
from ikebana.errors import MachineError, PhotosError, RecipeError, RunError
from ikebana.runs.reproducibility import describe_recipe_changes
from ikebana.data import sources
from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.split import fingerprint
from ikebana.system.locks import exclusive_lock
from ikebana.system.files import atomic_directory, remove_partial_files, resolve_output_path, atomic_write
from ikebana.recipe import Recipe
from ikebana.evaluation import calibration, metrics
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.metrics import Evaluation

# Columns of the dataset that must not change before a resume.
RESUME_COLUMNS = ("path", "label", "split", "sha256")
DEFAULT_RUNS_FOLDER = Path("runs")
# Photos listed in a message per kind of change.
MAX_NAMED_PHOTOS = 5
DAMAGED_ADVICE = "a copy of this run that is whole, or the same once more: ikebana fit PHOTOS --recipe RUN/recipe.json"

# Losses and accuracies are null where there are no validation photos.
HISTORY_SCHEMA = {"epoch": pl.Int64} | dict.fromkeys(
    ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds"), pl.Float64
)


@dataclass(frozen=True)
class Run:
    """A run's folder and what is in it."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def refit_checkpoint(self) -> Path:
        """The checkpoint of the refit on all photos, if the recipe has one."""
        return self.folder / "checkpoint-all.safetensors"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Every option of the run."""
        try:
            return recipe_from_json(self.read_json("recipe.json"))
        except RecipeError as error:
            raise RunError(error.what, where=self.folder, advice=error.advice) from None

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """Where the photos are: `photos`, `fingerprint`, `classes`."""
        values = self.read_json("source.json")
        if problem := _find_source_problem(values):
            raise RunError(f"source.json is damaged: {problem}", where=self.folder, advice=DAMAGED_ADVICE)
        return values

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.source["classes"])

    @property
    def is_finished(self) -> bool:
        return (self.folder / "evaluation.json").exists()

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The scores on the test photos; RunError if the run has not finished."""
        if not self.is_finished:
            raise RunError("this run has not finished", where=self.folder, advice=f"ikebana fit --resume {self.folder}")
        report = self.read_text("classification_report.txt")
        try:
            return metrics.from_json(self.read_json("evaluation.json"), report)
        except ValueError as error:
            raise RunError(f"evaluation.json is damaged: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    @property
    def calibration(self) -> Calibration:
        """Temperature and threshold of the network's confidence."""
        try:
            return calibration.from_json(self.read_json("calibration.json"))
        except ValueError as error:
            raise RunError(f"calibration.json is damaged: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    @property
    def dataset(self) -> pl.DataFrame:
        """One row per path found."""
        return self.read_table("dataset.parquet", (*RESUME_COLUMNS, "status"))

    @property
    def predictions(self) -> pl.DataFrame:
        """Validation and test photos with a probability for each class."""
        classes = [f"p:{name}" for name in self.classes]
        return self.read_table("predictions.parquet", ("path", "label", "split", *classes))

    @property
    def history(self) -> pl.DataFrame:
        """Loss, accuracy and seconds per epoch; RunError if there are none yet."""
        try:
            lines = (self.folder / "epochs.jsonl").read_text("utf-8").splitlines()
            return pl.DataFrame([json.loads(line) for line in lines], HISTORY_SCHEMA)
        except (OSError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
            raise RunError(f"epochs.jsonl cannot be read: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"this is not a run: it has no {name}", where=self.folder, advice="a folder that fit made"
            ) from None
        except (ValueError, OSError) as error:
            raise RunError(f"{name} cannot be read: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def read_text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text("utf-8")
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{name} cannot be read: {reason}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def read_table(self, name: str, columns: Sequence[str]) -> pl.DataFrame:
        """Read a table of the run that must have these columns."""
        try:
            table = pl.read_parquet(self.folder / name)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(f"{name} cannot be read: {reason}", where=self.folder, advice=DAMAGED_ADVICE) from None
        if missing := [column for column in columns if column not in table.columns]:
            what = f"{name} is damaged: it has no {', '.join(missing)}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE)
        return table

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.folder / name, value, create_parent=False)

    def write_text(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name, create_parent=False) as partial_file:
            partial_file.write_text(text, "utf-8")

    def write_table(self, name: str, table: pl.DataFrame) -> None:
        with atomic_write(self.folder / name, create_parent=False) as partial_file:
            table.write_parquet(partial_file)

    def write_epochs(self, epochs: Iterable[Any]) -> None:
        self.write_text("epochs.jsonl", "".join(json.dumps(asdict(epoch)) + "\n" for epoch in epochs))

    def report_if_finished(self) -> bool:
        """Return whether the run is finished, and print a message if it is."""
        if self.is_finished:
            progress.message(f"{self.folder} has finished already: nothing is left to do")
        return self.is_finished

    @contextmanager
    def lock_for_training(self) -> Iterator[None]:
        """Lock the run; if Ctrl-C, SIGTERM or a full disk interrupts, print how to resume.

        Raises:
            RunError: another process holds the lock.
        """
        try:
            with exclusive_lock(self.folder) as acquired:
                if not acquired:
                    raise RunError(
                        "another process is at this run", where=self.folder, advice="wait for it, or stop it"
                    )
                remove_partial_files(self.folder)
                yield
        except MachineError:
            progress.message(f"what was learned before is safe. To go on then: ikebana fit --resume {self.folder}")
            raise
        except KeyboardInterrupt:
            progress.message(f"stopped; nothing is lost. To go on: ikebana fit --resume {self.folder}")
            raise

    def write_predictions(self, dataset: Dataset, rows: np.ndarray, probabilities: np.ndarray) -> None:
        """Write one row per photo: path, label, split, and `p:<class>` for each class."""
        columns = {f"p:{name}": probabilities[:, index] for index, name in enumerate(dataset.classes)}
        self.write_table(
            "predictions.parquet", dataset.photos[rows].select("path", "label", "split").with_columns(**columns)
        )

    def finish(self, scores: Evaluation, seconds: Mapping[str, float]) -> None:
        """Write the scores last, which finishes the run, and remove the checkpoints."""
        scores = replace(scores, seconds=dict(seconds))
        self.write_text("classification_report.txt", scores.report)
        self.write_json("evaluation.json", scores.to_json())
        for checkpoint in self.folder.glob("checkpoint*.safetensors"):
            try:
                checkpoint.unlink(missing_ok=True)
            # The run is complete without this.
            except OSError as error:
                progress.message(f"{checkpoint} is of no use any more and could not be removed: {error.strerror}")
        progress.event("evaluation", **scores.to_json())
        progress.message(f"\n{scores!r}\nfigures: {self.folder / 'figures'}")

    def check_same_recipe(self) -> None:
        """Raise RunError if recipe.json has changed since the run began."""
        try:
            initial = recipe_from_json(self.source["recipe"])
        except RecipeError as error:
            what = f"source.json is damaged: {error.what}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE) from None
        if changes := describe_recipe_changes(initial, self.recipe):
            raise RunError(
                f"the recipe has changed since this run began: {'; '.join(changes)}",
                where=self.folder / "recipe.json",
                advice="put it back, or begin a new run: ikebana fit PHOTOS --recipe RUN/recipe.json",
            )

    def record_pretrained(self, weights: dict[str, Any]) -> None:
        """Record the source of the pretrained weights once; RunError if they have changed since."""
        if weights and not (self.folder / "pretrained.json").exists():
            self.write_json("pretrained.json", weights)
        initial = self.read_json("pretrained.json") if weights else {}
        changed = [name for name, source in weights.items() if initial.get(name, {}).get("sha256") != source["sha256"]]
        if changed:
            raise RunError(
                f"the pretrained weights of {', '.join(changed)} are not those that this run began with",
                where=self.folder / "pretrained.json",
                advice="put them back, or begin a new run",
            )

    def find_photos(self) -> Dataset:
        """List the run's photos without opening any; PhotosError if they are missing."""
        try:
            return sources.read(self.source["photos"], self.recipe.class_order)
        except PhotosError as error:
            raise PhotosError(
                f"the photos of this run cannot be found again: {error.what}",
                where=self.source["photos"],
                advice="put them back there: a run goes on with the photos that it began with",
            ) from None

    def check_same_photos(self, dataset: Dataset) -> None:
        """Raise RunError, naming some photos, if the photos have changed since the run began."""
        initial = self.dataset.filter(pl.col("status") == STATUS_USED).select(RESUME_COLUMNS)
        if not initial.equals(dataset.used_photos.select(RESUME_COLUMNS)):
            raise RunError(
                f"the photos have changed since this run began{_describe_changes(initial, dataset.photos)}",
                where=self.source["photos"],
                advice="a new run, or put the photos back as they were",
            )

    def __repr__(self) -> str:
        state = repr(self.evaluation).split("\n", 1)[0] if self.is_finished else "not finished"
        more = "; what ships has learned from all photos since" if self.is_finished and self.recipe.refit_on_all else ""
        return f"Run({self.folder}: {self.recipe.name}, {state}{more})"

    def _repr_html_(self) -> str:
        import html

        text = html.escape(repr(self))
        return f"<p><b>{text}</b></p>" + (self.evaluation._repr_html_() if self.is_finished else "")


def write_json(file: Path, value: Any, create_parent: bool = True) -> None:
    """Write plain values or a record as indented JSON, which has no NaN."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    with atomic_write(file, create_parent) as partial_file:
        partial_file.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def create_run(folder: str | Path | None, recipe: Recipe, dataset: Dataset, environment: dict[str, Any]) -> Run:
    """Create a new run's folder, complete with everything that a resume needs.

    Raises:
        RunError: the folder is taken.
        MachineError: it cannot be made.
    """
    source = {
        "photos": str(Path(dataset.source).expanduser().resolve()),
        "fingerprint": fingerprint(dataset.used_photos["sha256"]),
        "classes": list(dataset.classes),
        # A resume compares it with recipe.json, which a user may have edited.
        "recipe": recipe_to_json(recipe),
    }
    path = Path(folder).expanduser() if folder is not None else _choose_folder(recipe, source)
    check_folder_is_free(path)
    with atomic_directory(path, allow_existing=False) as partial_folder:
        write_json(partial_folder / "recipe.json", source["recipe"])
        write_json(partial_folder / "source.json", source)
        write_json(partial_folder / "environment.json", environment)
        Run(partial_folder).write_table("dataset.parquet", dataset.photos)
    return Run(path)


def _find_source_problem(values: Any) -> str:
    """Describe what a source.json lacks; empty if nothing."""
    if not isinstance(values, dict):
        return "it is no record"
    types = {"photos": str, "fingerprint": str, "recipe": dict}
    wrong = [name for name, expected in types.items() if not isinstance(values.get(name), expected)]
    classes = values.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        wrong.append("classes")
    return f"{' and '.join(wrong)} cannot be told from it" if wrong else ""


def _describe_changes(initial: pl.DataFrame, photos: pl.DataFrame) -> str:
    """Name some changed photos per kind of change, most serious first."""
    both = initial.join(photos.select(*RESUME_COLUMNS, "status"), on="path", how="full", suffix="_now", coalesce=True)
    gone, used = pl.col("status").is_null(), pl.col("status") == STATUS_USED
    new, modified = pl.col("sha256").is_null(), pl.col("sha256") != pl.col("sha256_now")
    kinds = {
        "removed": gone,
        "no longer usable": ~new & ~gone & ~used,
        "changed": used & modified,
        "new": new & used,
        "under another label": used & ~modified & (pl.col("label") != pl.col("label_now")),
        "in another part": used & ~modified & (pl.col("split") != pl.col("split_now")),
    }
    lines = []
    for kind, condition in kinds.items():
        paths = both.filter(condition)["path"].sort().to_list()
        if paths:
            more = f" and {len(paths) - MAX_NAMED_PHOTOS:,} more" if len(paths) > MAX_NAMED_PHOTOS else ""
            lines.append(f"\n  {kind}: {', '.join(paths[:MAX_NAMED_PHOTOS])}{more}")
    return "".join(lines)


def check_folder_is_free(folder: str | Path | None, flag: str = "--run") -> None:
    """Refuse a non-empty folder before any work is done.

    Args:
        flag: the command-line flag that names the folder.
    Raises:
        RunError: it is a file or not empty.
        MachineError: it cannot be made.
    """
    path = resolve_output_path(DEFAULT_RUNS_FOLDER if folder is None else folder, is_new_folder=folder is not None)
    if folder is None or not path.exists():
        return
    if not path.is_dir() or any(path.iterdir()):
        can_resume = (path / "recipe.json").exists() and not Run(path).is_finished
        advice = f"ikebana fit --resume {path}" if can_resume else f"another {flag} DIR"
        raise RunError("this folder is taken", where=path, advice=advice)


def open_run(folder: str | Path) -> Run:
    """Open the run in a folder; RunError if there is none."""
    run = Run(Path(os.path.expanduser(folder)))
    if not os.path.isdir(run.folder):
        raise RunError(
            "there is no such run", where=folder, advice="a folder that fit made, such as runs/baseline-7f3a"
        )
    _ = run.recipe, run.source
    return run


def _choose_folder(recipe: Recipe, source: dict[str, Any]) -> Path:
    """Return `runs/<recipe>-<hash>`; the time is hashed too, so a command can be repeated."""
    hashed = json.dumps([recipe_to_json(recipe), source, time.time_ns()])
    return DEFAULT_RUNS_FOLDER / f"{recipe.name}-{hashlib.sha256(hashed.encode()).hexdigest()[:6]}"
