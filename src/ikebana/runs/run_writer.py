"""Writing of a run's folder: what `fit` and `resume` do to it.

`runs.run` lists what each file contains.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import safetensors.numpy

from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.data.sources import PhotoSource
from ikebana.data.split import fingerprint
from ikebana.errors import MachineError, PhotosError, RecipeError, RunError
from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.evaluation.metrics import Evaluation
from ikebana.recipe import MODULE_PREFIX, Recipe, recipe_from_json, recipe_to_json
from ikebana.runs.earlier_split import SPLIT_FROM
from ikebana.runs.moved_photos import check_files, restore_paths
from ikebana.runs.photo_source import FRAME_FILE, describe_source, get_location, read_photos
from ikebana.runs.reproducibility import describe_recipe_changes
from ikebana.runs.run import DAMAGED_ADVICE, RESUME_COLUMNS, Run
from ikebana.system import progress
from ikebana.system.files import atomic_directory, atomic_write, remove_partial_files, resolve_output_path, write_json
from ikebana.system.locks import exclusive_lock

DEFAULT_RUNS_FOLDER = Path("runs")
GUARANTEE_ADVICE = "a larger --at-most-wrong, a more accurate recipe, or more photos"
# Photos listed in a message per kind of change.
MAX_NAMED_PHOTOS = 5


@dataclass(frozen=True)
class RunWriter:
    """The writer of one run's folder."""

    run: Run

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def refit_checkpoint(self) -> Path:
        """The checkpoint of the refit on all photos, if the recipe has one."""
        return self.folder / "checkpoint-all.safetensors"

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
        """Return whether the run is finished, and print a message if it lacks nothing."""
        if self.run.is_finished and not self.run.lacks_robustness:
            progress.message(f"{self.folder} is already finished: nothing to do")
        return self.run.is_finished

    @contextmanager
    def lock_for_training(self) -> Iterator[None]:
        """Lock the run; if Ctrl-C, SIGTERM or a full disk interrupts, print how to resume.

        Raises:
            RunError: another process holds the lock.
        """
        # Read now: the folder may vanish during training.
        resume_command = self.run.resume_command
        try:
            with exclusive_lock(self.folder) as acquired:
                if not acquired:
                    raise RunError(
                        "this run is locked by another process", where=self.folder, advice="wait for it, or stop it"
                    )
                remove_partial_files(self.folder)
                yield
        except MachineError:
            progress.warn(f"the last checkpoint is safe. Resume with: {resume_command}")
            raise
        except KeyboardInterrupt:
            progress.warn(f"interrupted; nothing was lost. Resume with: {resume_command}")
            raise

    def write_predictions(
        self, dataset: Dataset, rows: np.ndarray, probabilities: np.ndarray, familiarity: np.ndarray | None
    ) -> None:
        """Write one row per photo: path, label, split, familiarity, and `p:<class>` for each class."""
        columns: dict[str, Any] = {
            "familiarity": pl.lit(None, dtype=pl.Float64) if familiarity is None else familiarity
        }
        columns |= {f"p:{name}": probabilities[:, index] for index, name in enumerate(dataset.classes)}
        self.write_table(
            "predictions.parquet", dataset.photos[rows].select("path", "label", "split").with_columns(**columns)
        )

    def write_familiarity(self, model: FamiliarityModel, references: pl.DataFrame) -> None:
        """Write the matrices of familiarity, and which training photos are among them.

        Args:
            references: rows of the dataset, in the order of the model's references.
        """
        self.write_table("references.parquet", references.select("path", "label"))
        with atomic_write(self.folder / "familiarity.safetensors", create_parent=False) as partial_file:
            partial_file.write_bytes(safetensors.numpy.save(model.to_arrays()))

    def write_mistake_neighbours(
        self, dataset: Dataset, photos: np.ndarray, neighbours: np.ndarray, similarity: np.ndarray
    ) -> None:
        """Write the training photos that the worst mistakes resemble, one row per pair.

        Args:
            photos: int [mistakes], rows of the dataset.
            neighbours: int [mistakes, neighbours], rows of the dataset.
            similarity: float [mistakes, neighbours], cosine similarity.
        """
        mistakes = dataset.photos[np.repeat(photos, neighbours.shape[1])]
        nearest = dataset.photos[neighbours.ravel()]
        self.write_table(
            "mistakes.parquet",
            nearest.select(
                mistakes["path"],
                neighbour="path",
                label="label",
                sha256="sha256",
                similarity=pl.Series(similarity.ravel(), dtype=pl.Float32),
            ),
        )

    def finish(self, scores: Evaluation, seconds: Mapping[str, float]) -> None:
        """Write the scores, which finishes the run, and remove the checkpoints."""
        scores = replace(scores, seconds=dict(seconds))
        self.write_text("classification_report.txt", scores.report)
        self.write_json("evaluation.json", scores.to_json())
        for checkpoint in self.folder.glob("checkpoint*.safetensors"):
            try:
                checkpoint.unlink(missing_ok=True)
            # The run is complete without this.
            except OSError as error:
                progress.warn(f"{checkpoint} is no longer needed but could not be deleted: {error.strerror}")

    def request_robustness(self) -> "RunWriter":
        """Record that robustness is wanted; return a writer of the changed run."""
        self.write_json("source.json", self.run.source | {"robustness": True})
        return RunWriter(Run(self.folder))

    def report(self, scores: Evaluation, seconds: Mapping[str, float]) -> None:
        """Report the scores, and add the seconds of the pictures to them."""
        scores = replace(scores, seconds=dict(seconds))
        # The run is complete without this.
        with suppress(MachineError):
            self.write_json("evaluation.json", scores.to_json())
        progress.event("evaluation", **scores.to_json())
        progress.message(f"\n{scores!r}")
        guarantee = scores.risk_coverage.guarantee if scores.risk_coverage is not None else None
        if guarantee is not None and not guarantee.holds:
            progress.warn(f"{guarantee.describe()}\n  try  {GUARANTEE_ADVICE}")

    def write_suggestion(self, suggestion: Mapping[str, Any]) -> None:
        """Write what to try next; the run is complete without it."""
        with suppress(MachineError):
            self.write_json("suggestion.json", suggestion)

    def name_report(self) -> None:
        """Report where the page about the run is, or its figures if there is none."""
        for name, file in (("report", self.run.report_file), ("figures", self.folder / "figures")):
            if file.exists():
                progress.message(f"{name}: {file}")
                return

    def check_same_recipe(self) -> None:
        """Raise RunError if recipe.json has changed since the run began."""
        try:
            initial = recipe_from_json(self.run.source["recipe"])
        except RecipeError as error:
            what = f"source.json is damaged: {error.what}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE) from None
        if changes := describe_recipe_changes(initial, self.run.recipe):
            raise RunError(
                f"the recipe has changed since this run began: {'; '.join(changes)}",
                where=self.folder / "recipe.json",
                advice="restore recipe.json, or start a new run: ikebana fit PHOTOS --recipe RUN/recipe.json",
            )

    def record_pretrained(self, weights: dict[str, Any]) -> None:
        """Record the source of the pretrained weights once; RunError if they have changed since."""
        if weights and not (self.folder / "pretrained.json").exists():
            self.write_json("pretrained.json", weights)
        initial = self.run.pretrained if weights else {}
        changed = [name for name, source in weights.items() if initial.get(name, {}).get("sha256") != source["sha256"]]
        if changed and changed[0].startswith(MODULE_PREFIX):
            raise RunError(
                "the model's initial weights are not those that this run began with, and no epoch was saved yet",
                where=self.folder / "pretrained.json",
                advice="call torch.manual_seed before you create the model, or start a new run",
            )
        if changed:
            raise RunError(
                f"the pretrained weights of {', '.join(changed)} have changed since this run began",
                where=self.folder / "pretrained.json",
                advice="restore them, or start a new run",
            )

    def find_photos(self, photos: PhotoSource | None = None) -> Dataset:
        """List the run's photos without opening any, under the paths that they have now.

        Args:
            photos: where they are now, if they have moved.
        Raises:
            PhotosError: they are missing.
            RunError: other photos are there.
        """
        try:
            listed = read_photos(self.run, photos, self.run.recipe.class_order)
        except PhotosError as error:
            raise PhotosError(
                f"the photos of this run were not found: {error.what}",
                where=get_location(self.run) if photos is None else error.where,
                advice=f"restore them there, or give their new place: ikebana fit --resume {self.folder} --photos DIR",
            ) from None
        if photos is not None:
            check_files(self.run.dataset, self.restore_paths(listed))
        return listed

    def restore_paths(self, listed: Dataset) -> Dataset:
        """Give photos that moved the paths that the run recorded."""
        return restore_paths(listed, self.run.dataset)

    def record_photos(self, listed: Dataset) -> "RunWriter":
        """Record where the photos are now; return a writer of the changed run.

        Args:
            listed: as `find_photos` returned it.
        """
        if listed.frame is not None:
            self.write_table(FRAME_FILE, listed.frame)
        place = {name: value for name, value in self.run.source.items() if name != "root"} | describe_source(listed)
        self.write_json("source.json", place)
        writer = RunWriter(Run(self.folder))
        progress.message(f"the photos of this run are now at {get_location(writer.run)}")
        return writer

    def check_same_photos(self, dataset: Dataset) -> None:
        """Raise RunError, naming some photos, if the photos have changed since the run began."""
        initial = self.run.dataset.filter(pl.col("status") == STATUS_USED).select(RESUME_COLUMNS)
        if not initial.equals(dataset.used_photos.select(RESUME_COLUMNS)):
            raise RunError(
                f"the photos have changed since this run began{_describe_changes(initial, dataset.photos)}",
                where=get_location(self.run) if dataset.frame is not None else dataset.source,
                advice="start a new run, or restore the photos",
            )


def create_run(
    folder: str | Path | None,
    recipe: Recipe,
    dataset: Dataset,
    environment: dict[str, Any],
    *,
    split_from: str = "",
) -> RunWriter:
    """Create a new run's folder, complete with everything that a resume needs.

    Args:
        split_from: the folder of the run whose split was kept; empty if there is none.
    Raises:
        RunError: the folder is not empty.
        MachineError: it cannot be made.
    """
    source = {
        **describe_source(dataset),
        "fingerprint": fingerprint(dataset.used_photos["sha256"]),
        "classes": list(dataset.classes),
        # A resume compares it with recipe.json, which a user may have edited.
        "recipe": recipe_to_json(recipe),
        **({SPLIT_FROM: str(Path(split_from).resolve())} if split_from else {}),
    }
    path = Path(os.path.expanduser(folder)) if folder is not None else _choose_folder(recipe, source)
    check_folder_is_free(path)
    with atomic_directory(path, allow_existing=False) as partial_folder:
        write_json(partial_folder / "recipe.json", source["recipe"])
        write_json(partial_folder / "source.json", source)
        write_json(partial_folder / "environment.json", environment)
        writer = RunWriter(Run(partial_folder))
        writer.write_table("dataset.parquet", dataset.photos)
        if dataset.frame is not None:
            writer.write_table(FRAME_FILE, dataset.frame)
    return RunWriter(Run(path))


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
        advice = Run(path).resume_command if can_resume else f"another {flag} DIR"
        raise RunError(
            "this folder already exists and is not empty" if path.is_dir() else "this path is a file, not a folder",
            where=path,
            advice=advice,
        )


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
        "with another label": used & ~modified & (pl.col("label") != pl.col("label_now")),
        "in another split": used & ~modified & (pl.col("split") != pl.col("split_now")),
    }
    lines = []
    for kind, condition in kinds.items():
        paths = both.filter(condition)["path"].sort().to_list()
        if paths:
            more = f" and {len(paths) - MAX_NAMED_PHOTOS:,} more" if len(paths) > MAX_NAMED_PHOTOS else ""
            lines.append(f"\n  {kind}: {', '.join(paths[:MAX_NAMED_PHOTOS])}{more}")
    return "".join(lines)


def _choose_folder(recipe: Recipe, source: dict[str, Any]) -> Path:
    """Return `runs/<recipe>-<hash>`; the time is hashed too, so a command can be repeated."""
    hashed = json.dumps([recipe_to_json(recipe), source, time.time_ns()])
    return DEFAULT_RUNS_FOLDER / f"{recipe.name}-{hashlib.sha256(hashed.encode()).hexdigest()[:6]}"
