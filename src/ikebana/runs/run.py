"""A run's folder: what `fit` writes and every later command reads.

recipe.json                 every option
source.json                 path (or root folder) and fingerprint of the photos, the classes, the initial recipe
                            and, if it is wanted, that robustness is measured
pretrained.json             source and licence of the pretrained weights per network, if any
dataset.parquet             one row per path found: status, label, split, sha256
photos.parquet              the rows of the frame that listed the photos, if it was a frame
audit.json                  findings about the photos
environment.json            the machine and versions, and the reasons for the device settings
epochs.jsonl                one line per epoch
weights.safetensors         the network
predictions.parquet         validation and test photos with a probability for each class
calibration.json            temperature, and the threshold below which the answer is "not sure"
familiarity.safetensors     matrices that tell how much a photo resembles the training photos
references.parquet          the training photos that these matrices compare a photo with
mistakes.parquet            the training photos that the most confident mistakes resemble
classification_report.txt   in scikit-learn's layout
layers.txt                  layers, output shapes and parameter counts of the network
evaluation.json             the scores; a run that has it is finished
suggestion.json             what to try next: a better recipe and its cost, if there is one
report.html                 a page about the run
figures/, thumbnails/       pictures; each folder appears when it is complete
checkpoint*.safetensors     state of an unfinished training

Reading a missing or damaged file raises RunError.
"""

import difflib
import functools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import safetensors.numpy

from ikebana.errors import RecipeError, RunError, get_first_line
from ikebana.evaluation import calibration, familiarity, metrics
from ikebana.evaluation.calibration import Calibration
from ikebana.evaluation.evaluation_view import render_evaluation
from ikebana.evaluation.familiarity import FamiliarityModel
from ikebana.evaluation.metrics import Evaluation
from ikebana.recipe import MODULE_PREFIX, Recipe, recipe_from_json
from ikebana.system.notebook_html import render_view

if TYPE_CHECKING:
    from ikebana.reports.mistakes_view import Mistakes
    from ikebana.reports.run_plots import RunPlots

# Files that a run has from its start, and that `resume_command` needs.
START_FILES = ("recipe.json", "source.json")
# Columns of the dataset that must not change before a resume.
RESUME_COLUMNS = ("path", "label", "split", "sha256")
DAMAGED_ADVICE = "an undamaged copy of the run, or repeat it: ikebana fit PHOTOS --recipe RUN/recipe.json"

# Run folders that an error names instead of a missing one.
MAX_SUGGESTED_RUNS = 3
ADVICE_RUN_FOLDER = "a run folder that `ikebana fit` wrote, such as runs/quick-7f3a21"

# Attributes that `dir` does not list.
INTERNAL_ATTRIBUTES = frozenset(
    ("wants_robustness", "lacks_robustness", "source", "mistake_neighbours", "suggestion", "reference_photos")
)

# Losses and accuracies are null where there are no validation photos. `selection_loss` is null where the
# last epoch's weights are used.
HISTORY_SCHEMA = {"epoch": pl.Int64} | dict.fromkeys(
    ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "selection_loss"), pl.Float64
)


@dataclass(frozen=True)
class Run:
    """A run's folder and what is in it."""

    folder: Path

    @property
    def resume_command(self) -> str:
        """How to resume the run: from Python only, if it trains the user's module."""
        if self.recipe.network.startswith(MODULE_PREFIX):
            return f"ikebana.resume({str(self.folder)!r}, model=model)"
        return f"ikebana fit --resume {self.folder}"

    @property
    def weights(self) -> Path:
        """The file with the trained weights."""
        return self.folder / "weights.safetensors"

    @functools.cached_property
    def recipe(self) -> Recipe:
        """Every option of the run."""
        try:
            return recipe_from_json(self._read_json("recipe.json"))
        except RecipeError as error:
            raise RunError(error.what, where=self.folder, advice=error.advice) from None

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """Where the photos are: `photos`, `fingerprint`, `classes`."""
        values = self._read_json("source.json")
        if problem := _find_source_problem(values):
            raise RunError(f"source.json is damaged: {problem}", where=self.folder, advice=DAMAGED_ADVICE)
        return values

    @property
    def wants_robustness(self) -> bool:
        """Whether the user asked for the accuracy on changed test photos."""
        return bool(self.source.get("robustness"))

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.source["classes"])

    @property
    def is_finished(self) -> bool:
        return (self.folder / "evaluation.json").exists()

    @property
    def lacks_robustness(self) -> bool:
        """Whether a finished run lacks its robustness and can still get it.

        After a refit on all photos, no network is left that was not trained on the test photos.
        """
        is_wanted = self.wants_robustness and self.is_finished and not self.recipe.refit_on_all
        return is_wanted and self.evaluation.robustness is None

    @functools.cached_property
    def evaluation(self) -> Evaluation:
        """The scores on the test photos; RunError if the run has not finished."""
        if not self.is_finished:
            raise self._describe_unfinished()
        report = self._read_text("classification_report.txt")
        try:
            return metrics.from_json(self._read_json("evaluation.json"), report)
        except ValueError as error:
            raise RunError(f"evaluation.json is damaged: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    @property
    def calibration(self) -> Calibration:
        """Temperature and threshold of the network's confidence."""
        try:
            return calibration.from_json(self._read_json("calibration.json"))
        except ValueError as error:
            raise RunError(f"calibration.json is damaged: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    @property
    def familiarity(self) -> FamiliarityModel | None:
        """What familiarity is computed with; None if the run had too few calibration photos."""
        file = self.folder / "familiarity.safetensors"
        if not file.exists():
            return None
        try:
            return familiarity.from_arrays(safetensors.numpy.load_file(file))
        except (OSError, ValueError, safetensors.SafetensorError) as error:
            what = f"familiarity.safetensors is damaged: {get_first_line(error)}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE) from None

    @property
    def reference_photos(self) -> pl.DataFrame | None:
        """The training photos that familiarity compares others with: path and label; None if not recorded."""
        is_recorded = (self.folder / "references.parquet").exists()
        return self._read_table("references.parquet", ("path", "label")) if is_recorded else None

    @property
    def mistake_neighbours(self) -> pl.DataFrame | None:
        """The training photos that the most confident mistakes resemble; None if not recorded."""
        columns = ("path", "neighbour", "label", "sha256", "similarity")
        is_recorded = (self.folder / "mistakes.parquet").exists()
        return self._read_table("mistakes.parquet", columns) if is_recorded else None

    @property
    def audit(self) -> dict[str, Any]:
        """Totals and findings about the photos."""
        return self._read_json("audit.json")

    @property
    def environment(self) -> dict[str, Any]:
        """The machine, and the versions of the libraries."""
        return self._read_json("environment.json")

    @property
    def layer_table(self) -> str:
        """Layers, output shapes and parameter counts of the network, as text."""
        return self._read_text("layers.txt")

    @property
    def suggestion(self) -> dict[str, Any]:
        """What to try next; empty if there is nothing to suggest."""
        return self._read_json("suggestion.json") if (self.folder / "suggestion.json").exists() else {}

    @property
    def report_file(self) -> Path:
        """The page about the run, which may not exist yet."""
        return self.folder / "report.html"

    @property
    def dataset(self) -> pl.DataFrame:
        """One row per path found."""
        return self._read_table("dataset.parquet", (*RESUME_COLUMNS, "status"))

    @property
    def predictions(self) -> pl.DataFrame:
        """Validation and test photos, the class predicted for them, and the probability of each class.

        `predicted` is the most probable class, also where the answer would be "not sure" or
        "unknown". The file has neither it nor its probability, `confidence`.
        """
        classes = [f"p:{name}" for name in self.classes]
        table = self._read_table("predictions.parquet", ("path", "label", "split", *classes))
        best = (
            pl.concat_list(classes).list.arg_max().replace_strict(dict(enumerate(self.classes)), return_dtype=pl.String)
        )
        answers = {"predicted": best, "confidence": pl.max_horizontal(classes)}
        others = pl.exclude("path", "label", "split", *answers)
        return table.with_columns(**answers).select("path", "label", "split", *answers, others)

    @property
    def mistakes(self) -> "Mistakes":
        """The misclassified test photos, the most confident first; a notebook shows their thumbnails."""
        from ikebana.reports.mistakes_view import Mistakes

        return Mistakes(self)

    @property
    def plot(self) -> "RunPlots":
        """The charts of the run as matplotlib figures, such as `run.plot.confusion()`."""
        from ikebana.reports.run_plots import RunPlots

        return RunPlots(self)

    @property
    def pretrained(self) -> dict[str, Any]:
        """The source of the initial weights by network; empty if all were random."""
        return self._read_json("pretrained.json") if (self.folder / "pretrained.json").exists() else {}

    @property
    def history(self) -> pl.DataFrame:
        """Loss, accuracy and seconds per epoch; RunError if there are none yet."""
        try:
            lines = (self.folder / "epochs.jsonl").read_text("utf-8").splitlines()
            return pl.DataFrame([json.loads(line) for line in lines], HISTORY_SCHEMA)
        except (OSError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
            raise RunError(f"epochs.jsonl cannot be read: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def _describe_unfinished(self) -> RunError:
        return RunError("this run has not finished", where=self.folder, advice=self.resume_command)

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            # Without recipe or source, nothing shows that this is a run at all.
            if name not in START_FILES and not self.is_finished:
                raise self._describe_unfinished() from None
            raise RunError(
                f"this is not a run: it has no {name}", where=self.folder, advice=ADVICE_RUN_FOLDER
            ) from None
        except (ValueError, OSError) as error:
            raise RunError(f"{name} cannot be read: {error}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def _read_text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text("utf-8")
        except (ValueError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{name} cannot be read: {reason}", where=self.folder, advice=DAMAGED_ADVICE) from None

    def _read_table(self, name: str, columns: Sequence[str]) -> pl.DataFrame:
        """Read a table of the run that must have these columns."""
        try:
            table = pl.read_parquet(self.folder / name)
        except (OSError, pl.exceptions.PolarsError) as error:
            what = f"{name} cannot be read: {get_first_line(error)}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE) from None
        if missing := [column for column in columns if column not in table.columns]:
            what = f"{name} is damaged: it lacks {', '.join(missing)}"
            raise RunError(what, where=self.folder, advice=DAMAGED_ADVICE)
        return table

    def __dir__(self) -> list[str]:
        """List what users need; the commands use the other attributes."""
        return [name for name in vars(Run) | vars(self) if not name.startswith("_") and name not in INTERNAL_ATTRIBUTES]

    def __repr__(self) -> str:
        state = self.evaluation.describe_lines()[0] if self.is_finished else "not finished"
        return f"Run({self.folder}: {self.recipe.name}, {state}{self._describe_refit()})"

    def _describe_refit(self) -> str:
        is_refitted = self.is_finished and self.recipe.refit_on_all
        return "; the exported network was retrained on all photos" if is_refitted else ""

    def _repr_html_(self) -> str:
        title = f"{self.recipe.name}: {self.folder}{self._describe_refit()}"
        if self.is_finished:
            report = f"; the report: {self.report_file}" if self.report_file.exists() else ""
            return render_evaluation(self.evaluation, title, f"more: run.mistakes, run.plot, run.predictions{report}")
        return render_view(title, f"not finished; resume it with: {self.resume_command}")


def _find_source_problem(values: Any) -> str:
    """Describe what a source.json lacks; empty if nothing."""
    if not isinstance(values, dict):
        return "it is not a JSON object"
    types = {"photos": str, "fingerprint": str, "recipe": dict}
    wrong = [name for name, expected in types.items() if not isinstance(values.get(name), expected)]
    classes = values.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        wrong.append("classes")
    return f"{' and '.join(wrong)} missing or invalid" if wrong else ""


def _describe_non_folder(path: Path) -> str:
    if not os.path.lexists(path):
        return "no such run folder"
    return "this is a model file, not a run" if path.suffix == ".onnx" else "this is a file, not a run folder"


def _suggest_runs(missing: Path) -> str:
    """Suggest run folders beside a missing one, or return ""."""
    if os.path.lexists(missing):
        return ""
    try:
        names = [entry.name for entry in missing.parent.iterdir() if (entry / "recipe.json").is_file()]
    except OSError:
        return ""
    if close := difflib.get_close_matches(missing.name, names, n=MAX_SUGGESTED_RUNS):
        return f"did you mean {' or '.join(str(missing.parent / name) for name in close)}?"
    listed = ", ".join(str(missing.parent / name) for name in sorted(names)[:MAX_SUGGESTED_RUNS])
    return f"a run that exists, such as {listed}" if listed else ""


def open_run(folder: str | Path) -> Run:
    """Open the run in a folder; RunError if there is none."""
    run = Run(Path(os.path.expanduser(folder)))
    if not os.path.isdir(run.folder):
        advice = _suggest_runs(run.folder) or ADVICE_RUN_FOLDER
        raise RunError(_describe_non_folder(run.folder), where=folder, advice=advice)
    _ = run.recipe, run.source
    return run
