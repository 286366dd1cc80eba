"""A training as a run of MLflow, in the store that MLflow's own variables name."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ikebana.errors import MachineError, advise_extra
from ikebana.system.files import write_json

# Holds MLflow's id of the run, which a resumed run continues.
ID_FILE = "mlflow.json"
EPOCH_METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
TEST_METRICS = ("accuracy", "balanced_accuracy", "log_loss")
ARTIFACTS = ("recipe.json", "evaluation.json", "classification_report.txt", "report.html", "figures")
# MLflow prints the address of a run on standard output, which belongs to ikebana's result.
SILENCE_VARIABLE = "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"
RUN_NAME_VARIABLE, RUN_ID_VARIABLE = "MLFLOW_RUN_NAME", "MLFLOW_RUN_ID"


class MlflowLog:
    """Logs recipe, epochs, scores and figures, into the active run if there is one."""

    def __init__(self) -> None:
        """Check that MLflow is installed; MachineError if it is not."""
        if importlib.util.find_spec("mlflow") is None:
            raise MachineError("MLflow is not installed", advice=advise_extra("mlflow"))
        self.folder, self.run_id = Path(), ""
        self.is_own_run = False
        # Steps are counted, because the epochs of an ensemble start at 1 for each network.
        self.step = self.logged_step = 0

    def on_event(self, event: dict[str, Any]) -> None:
        """Log what an event reports, if it is about the training."""
        if event["event"] == "run":
            self._start(event)
        elif event["event"] == "epoch" and self.run_id:
            self.step += 1
            # A resumed run reports its first epochs again.
            if self.step > self.logged_step:
                self._log_metrics({name: event.get(name) for name in EPOCH_METRICS})
        elif event["event"] == "evaluation" and self.run_id:
            low, high = event["accuracy_interval"]
            scores = {f"test_{name}": event[name] for name in TEST_METRICS}
            self._log_metrics(scores | {"test_accuracy_low": low, "test_accuracy_high": high})

    def close(self, error: BaseException | None) -> None:
        """Log the files of the run, and end MLflow's run if it was started here."""
        if not self.run_id:
            return
        import mlflow

        with _silence():
            for file in (self.folder / name for name in ARTIFACTS):
                if file.is_dir():
                    mlflow.log_artifacts(str(file), file.name, run_id=self.run_id)
                elif file.is_file():
                    mlflow.log_artifact(str(file), run_id=self.run_id)
            if self.is_own_run:
                is_stopped = isinstance(error, KeyboardInterrupt)
                mlflow.end_run("FINISHED" if error is None else "KILLED" if is_stopped else "FAILED")
        self.run_id = ""

    def _start(self, event: dict[str, Any]) -> None:
        import mlflow

        # With --split-seeds, one run follows another.
        self.close(None)
        self.folder = Path(event["folder"])
        with _silence():
            active = mlflow.active_run()
            self.is_own_run = active is None
            run = active or self._start_own_run()
            self.run_id = run.info.run_id
            history = mlflow.MlflowClient().get_metric_history(self.run_id, "train_loss")
            self.step, self.logged_step = 0, max((metric.step for metric in history), default=0)
            mlflow.log_params(_flatten(event["recipe"]), run_id=self.run_id)
            mlflow.set_tags({"ikebana.run": str(self.folder.absolute()), "ikebana.photos": event["photos"]})
        write_json(self.folder / ID_FILE, {"run_id": self.run_id}, create_parent=False)

    def _start_own_run(self) -> Any:
        """Continue the run of an interrupted training, or start a new one."""
        import mlflow

        if (previous := self._read_previous_id()) and RUN_ID_VARIABLE not in os.environ:
            try:
                return mlflow.start_run(run_id=previous)
            # The store is another one, or the run was deleted there.
            except mlflow.MlflowException:
                pass
        # MLflow itself reads the variables of the run's id and of the experiment.
        if RUN_ID_VARIABLE in os.environ:
            return mlflow.start_run()
        return mlflow.start_run(run_name=os.environ.get(RUN_NAME_VARIABLE) or self.folder.name)

    def _read_previous_id(self) -> str:
        try:
            return str(json.loads((self.folder / ID_FILE).read_text("utf-8"))["run_id"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _log_metrics(self, values: dict[str, float | None]) -> None:
        import mlflow

        known = {name: value for name, value in values.items() if value is not None}
        mlflow.log_metrics(known, step=self.step, run_id=self.run_id)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path, such as method.learning_rate."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@contextmanager
def _silence() -> Iterator[None]:
    """Keep MLflow from printing on standard output."""
    previous = os.environ.get(SILENCE_VARIABLE)
    os.environ[SILENCE_VARIABLE] = "true"
    try:
        yield
    finally:
        if previous is None:
            del os.environ[SILENCE_VARIABLE]
        else:
            os.environ[SILENCE_VARIABLE] = previous
