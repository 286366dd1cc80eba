"""`fit --log`: TensorBoard and MLflow, with the real packages."""

import dataclasses
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import two_classes, write_files
from support.interrupts import interrupt_after_steps

import ikebana
from ikebana.errors import MachineError, RecipeError
from ikebana.system import progress
from ikebana.tracking import follow as follow_module
from ikebana.tracking.follow import follow
from ikebana.tracking.mlflow_log import MlflowLog
from ikebana.tracking.tensorboard_log import TensorBoardLog

OPTIONS = {"image_size": 48, "batch_size": 4, "epochs": 3, "precision": "float32"}
EPOCH = {"train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.75, "seconds": 1.5}
RECIPE = {"name": "baseline", "method": {"kind": "scratch", "adamw": None}, "class_order": []}
SCORES = {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "balanced_accuracy": 0.89, "log_loss": 0.3}


def report_run(folder, epochs=3, **values):
    """Report the events of a run without training."""
    facts = {"photos": "flowers/", "classes": ["a", "b"], "recipe": RECIPE}
    progress.event("run", folder=str(folder), **facts)
    for number in range(1, epochs + 1):
        progress.event("epoch", epoch=number, **EPOCH | values)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_files(folder, two_classes(10))
    return folder


# --- TensorBoard ---


def read_scalars(folder):
    """Read the scalars of a run as TensorBoard does: {tag: {step: value}}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(row.step, row.value) for row in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def tensorboard():
    return pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'ikebana[tensorboard]'")


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_tensorboard_reads_the_epochs_and_the_score_of_a_run(photos, tmp_path):
    run = ikebana.fit(photos, "baseline", run=tmp_path / "run", log="tensorboard", **OPTIONS)
    scalars = read_scalars(run.folder)
    history = run.history
    for column, tag in (("train_loss", "loss/train"), ("val_accuracy", "accuracy/validation")):
        expected = list(zip(history["epoch"].to_list(), history[column].to_list(), strict=True))
        assert scalars[tag] == [(step, pytest.approx(value)) for step, value in expected]
    assert scalars["test/accuracy"] == [(3, pytest.approx(run.evaluation.accuracy))]


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_a_resumed_run_has_each_epoch_once(photos, tmp_path):
    with interrupt_after_steps(5):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", log="tensorboard", **OPTIONS)
    run = ikebana.resume(tmp_path / "run", log="tensorboard")
    assert [step for step, _ in read_scalars(run.folder)["loss/train"]] == [1, 2, 3]


@pytest.mark.usefixtures("tensorboard")
def test_steps_of_an_ensemble_go_on_and_missing_values_are_left_out(tmp_path):
    with follow(log="tensorboard"):
        report_run(tmp_path, epochs=2, val_loss=None)
        progress.event("epoch", epoch=1, **EPOCH)
    scalars = read_scalars(tmp_path)
    assert [step for step, _ in scalars["loss/train"]] == [1, 2, 3]
    assert [step for step, _ in scalars["loss/validation"]] == [3]


@pytest.mark.usefixtures("tensorboard")
def test_runs_of_several_splits_have_a_log_each(tmp_path):
    with follow(log=["tensorboard", "tensorboard"]):
        for number in range(2):
            report_run(tmp_path / str(number), epochs=number + 1)
    assert [len(read_scalars(tmp_path / str(number))["loss/train"]) for number in range(2)] == [1, 2]


# --- MLflow ---


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow with an SQLite store of its own."""
    module = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'ikebana[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_RUN_NAME", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


def read_metrics(mlflow, run_id):
    """Read all metrics of a run: {name: {step: value}}, from MLflow's own client."""
    client = mlflow.MlflowClient()
    names = client.get_run(run_id).data.metrics
    return {name: [(row.step, row.value) for row in client.get_metric_history(run_id, name)] for name in names}


def get_id(folder):
    return json.loads((folder / "mlflow.json").read_text("utf-8"))["run_id"]


pytest_mlflow = [
    pytest.mark.slow,
    # MLflow and its libraries use what Python and others have deprecated.
    pytest.mark.filterwarnings("ignore"),
]


class TestMlflow:
    """Each test has a store of its own, which MLflow takes a second to make."""

    pytestmark = pytest_mlflow

    def test_mlflow_has_recipe_epochs_scores_and_files_of_a_run(self, photos, tmp_path, mlflow, capfd):
        run = ikebana.fit(photos, "baseline", run=tmp_path / "run", log="mlflow", **OPTIONS)
        assert capfd.readouterr().out == ""
        logged = mlflow.MlflowClient().get_run(get_id(run.folder))
        assert logged.info.status == "FINISHED"
        assert logged.info.run_name == "run"
        assert logged.data.params["method.epochs"] == "3"
        assert logged.data.tags["ikebana.run"] == str(run.folder)
        metrics = read_metrics(mlflow, logged.info.run_id)
        assert metrics["val_loss"] == list(
            zip(run.history["epoch"].to_list(), run.history["val_loss"].to_list(), strict=True)
        )
        assert metrics["test_accuracy"] == [(3, run.evaluation.accuracy)]
        names = {item.path for item in mlflow.MlflowClient().list_artifacts(logged.info.run_id)}
        assert {"recipe.json", "evaluation.json", "figures"} <= names
        (count,) = sqlite3.connect(tmp_path / "mlflow.db").execute("select count(*) from runs").fetchone()
        assert count == 1

    def test_a_resumed_run_continues_its_run_of_mlflow(self, photos, tmp_path, mlflow):
        with interrupt_after_steps(5):
            ikebana.fit(photos, "baseline", run=tmp_path / "run", log="mlflow", **OPTIONS)
        first = get_id(tmp_path / "run")
        assert mlflow.MlflowClient().get_run(first).info.status == "KILLED"
        ikebana.resume(tmp_path / "run", log="mlflow")
        assert get_id(tmp_path / "run") == first
        assert mlflow.MlflowClient().get_run(first).info.status == "FINISHED"
        assert [step for step, _ in read_metrics(mlflow, first)["train_loss"]] == [1, 2, 3]

    def test_an_active_run_of_the_user_is_used_and_stays_active(self, tmp_path, mlflow):
        with mlflow.start_run() as active:
            with follow(log="mlflow"):
                report_run(tmp_path)
            assert mlflow.active_run().info.run_id == active.info.run_id
        assert len(read_metrics(mlflow, active.info.run_id)["train_loss"]) == 3

    def test_the_variables_of_mlflow_name_experiment_and_run(self, tmp_path, mlflow, monkeypatch):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
        monkeypatch.setenv("MLFLOW_RUN_NAME", "a name")
        with follow(log="mlflow"):
            report_run(tmp_path)
        logged = mlflow.MlflowClient().get_run(get_id(tmp_path))
        assert logged.info.run_name == "a name"
        experiment = mlflow.MlflowClient().get_experiment(logged.info.experiment_id)
        assert experiment.name == "from the environment"

    def test_a_store_without_the_earlier_run_gets_a_new_one(self, tmp_path, mlflow):
        (tmp_path / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
        with follow(log="mlflow"):
            report_run(tmp_path)
        assert len(read_metrics(mlflow, get_id(tmp_path))["train_loss"]) == 3

    def test_a_failed_call_is_a_failed_run(self, tmp_path, mlflow):
        def fail():
            with follow(log="mlflow"):
                report_run(tmp_path)
                raise RecipeError("loss became NaN or infinite in epoch 3")

        with pytest.raises(RecipeError):
            fail()
        assert mlflow.MlflowClient().get_run(get_id(tmp_path)).info.status == "FAILED"

    def test_a_store_that_fails_ends_the_log_and_not_the_training(self, tmp_path, mlflow, monkeypatch, caplog):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/no/mlflow.db")
        with follow(log="mlflow"):
            report_run(tmp_path)
        assert "MlflowLog has stopped, the training goes on" in caplog.text


# --- both ---


@pytest.mark.parametrize(("log", "library"), [(TensorBoardLog, "tensorboard"), (MlflowLog, "mlflow")])
def test_a_missing_library_is_reported_with_the_command_that_installs_it(log, library, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MachineError, match="is not installed") as refusal:
        log()
    assert refusal.value.advice == f"pip install -c requirements.lock '.[{library}]' in ikebana's folder"


def test_an_unknown_log_is_refused_before_any_photo_is_read():
    with pytest.raises(RecipeError, match="there is no log 'wandb'") as refusal:
        ikebana.fit("no such folder", log="wandb")
    assert refusal.value.advice == "--log tensorboard or --log mlflow"


def test_a_follower_that_fails_is_reported_once_and_then_left_out(monkeypatch, caplog):
    @dataclasses.dataclass
    class Broken:
        calls: int = 0

        def on_event(self, event):
            self.calls += 1
            raise OSError("the disk is full")

        def close(self, error):
            pass

    broken = Broken()
    monkeypatch.setattr(follow_module, "_get_log_maker", lambda name: lambda: broken)
    with follow(log="broken"):
        report_run("runs/run")
    assert broken.calls == 1
    assert caplog.text.count("Broken has stopped, the training goes on: OSError: the disk is full") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("tensorboard")
def test_the_command_line_prints_the_address_and_ends_with_the_run_folder(photos, tmp_path):
    command = [sys.executable, "-m", "ikebana", "fit", photos, "--recipe", "baseline", "--run", tmp_path / "run"]
    options = ["--image-size", 48, "--batch-size", 4, "--epochs", 2, "--precision", "float32"]
    done = subprocess.run(
        [str(word) for word in [*command, *options, "--watch", "--log", "tensorboard"]],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'run'}\n"
    assert "watch the training at http://127.0.0.1:" in done.stderr
    assert f"tensorboard --logdir {tmp_path}" in done.stderr
    assert len(read_scalars(Path(tmp_path / "run"))["loss/train"]) == 2
