"""The robustness of a finished run, measured and added to its scores."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ikebana.data.dataset import Dataset
from ikebana.data.pixel_cache import PixelCache
from ikebana.errors import RunError
from ikebana.learning import device
from ikebana.learning.device import DeviceSettings, load_settings
from ikebana.learning.estimate import format_duration
from ikebana.learning.examples import PhotoExamples, build_split_examples
from ikebana.learning.models.assembly import load_trained_network
from ikebana.learning.plan import Plan
from ikebana.learning.robustness import estimate_seconds, measure_robustness
from ikebana.reports import run_pictures
from ikebana.runs.run import Run
from ikebana.runs.run_writer import RunWriter
from ikebana.system import progress
from ikebana.system.progress import Stopwatch

if TYPE_CHECKING:
    from torch import nn


def check_can_measure(run: Run) -> None:
    """Raise RunError if the network of a finished run was trained on its test photos."""
    if run.is_finished and run.recipe.refit_on_all:
        raise RunError(
            "robustness cannot be measured any more: the network of this run was retrained on the test photos too",
            where=run.folder,
            advice="ikebana fit PHOTOS --recipe RUN/recipe.json --robustness",
        )


def report_cost(plan: Plan) -> None:
    """Report how long the measurement takes, before training."""
    seconds = estimate_seconds(plan.dataset.photos.height, plan.recipe, plan.settings)
    progress.message(f"--robustness takes about {format_duration(seconds)} more")


def add(writer: RunWriter, network: "nn.Module", test: PhotoExamples, settings: DeviceSettings) -> Run:
    """Measure the robustness of the scored network and add it to the finished run.

    The run was complete before, so an interruption costs only this measurement.
    """
    clock = Stopwatch()
    robustness = measure_robustness(network, test, settings)
    clock.lap("robustness")
    scores = Run(writer.folder).evaluation
    scores = replace(scores, robustness=robustness, seconds={**scores.seconds, **clock.seconds})
    writer.write_json("evaluation.json", scores.to_json())
    progress.event("robustness", **asdict(robustness))
    run_pictures.draw_robustness(writer.run, robustness)
    run_pictures.write_report(writer.run)
    progress.message(f"\n{robustness.format_table()}\n")
    return Run(writer.folder)


def add_later(writer: RunWriter, dataset: Dataset, pixels: PixelCache, model: "nn.Module | None") -> Run:
    """Measure the robustness of a run that finished earlier.

    Raises:
        RecipeError: the run trained a module that was not given.
    """
    run = writer.run
    settings = load_settings(run.folder / "environment.json") or device.configure()
    temperature = run.calibration.temperature
    calibrated = load_trained_network(run.recipe, len(run.classes), run.weights, temperature, model)
    test = build_split_examples(dataset, pixels.pixels)["test"]
    with writer.lock_for_training():
        return add(writer, calibrated.network.to(settings.device), test, settings)
