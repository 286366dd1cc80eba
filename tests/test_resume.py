"""Resuming runs, reproducing them from a recipe file, and failing disks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.interrupts import interrupt_after_steps

import ikebana
from ikebana import recipes
from ikebana.commands import fit as fit_command
from ikebana.data import sources
from ikebana.demo_data import paper_flowers
from ikebana.learning import device
from ikebana.learning.training import checkpoint
from ikebana.learning.training.trainer import Trainer
from ikebana.recipe import AdamW, recipe_to_json, with_options
from ikebana.runs import reproducibility
from ikebana.runs.run import Run
from ikebana.runs.run_writer import RunWriter
from ikebana.system import cache_folder, files

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 2, "precision": "float32"}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def finished_run(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", **SMALL_OPTIONS)


@pytest.fixture
def stopped_run(photos, tmp_path):
    """A run that was interrupted in its first step."""
    with interrupt_after_steps(0):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    return tmp_path / "run"


def test_a_run_with_a_changed_recipe_is_not_resumed_and_the_difference_is_reported(stopped_run, finished_run):
    file = stopped_run / "recipe.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(values | {"method": values["method"] | {"epochs": 7, "learning_rate": 0.5}}), "utf-8")
    with pytest.raises(ikebana.RunError) as refusal:
        ikebana.resume(stopped_run)
    assert "epochs was 2 and is 7" in str(refusal.value)
    assert "learning_rate was 0.001 and is 0.5" in str(refusal.value)
    assert "batch" not in str(refusal.value)
    file.write_text(json.dumps(values), "utf-8")
    assert ikebana.resume(stopped_run).weights.read_bytes() == finished_run.weights.read_bytes()


def test_a_run_locked_by_another_process_is_left_alone(stopped_run, finished_run):
    holds = """if True:
        import sys, pathlib
        from ikebana.system.locks import exclusive_lock
        with exclusive_lock(pathlib.Path(sys.argv[1])) as free:
            print(free, flush=True)
            input()"""
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(stopped_run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with pytest.raises(ikebana.RunError, match="this run is locked by another process"):
            ikebana.resume(stopped_run)
        other.kill()  # its lock is released
    assert ikebana.resume(stopped_run).weights.read_bytes() == finished_run.weights.read_bytes()
    assert not list(stopped_run.glob(".*"))
    assert not list(cache_folder.cache_folder().glob("locks/*"))


def test_a_run_is_resumed_with_its_original_pretrained_weights(tmp_path):
    run = RunWriter(Run(tmp_path))
    about = {"net": {"source": "mine.pth", "sha256": "aa", "license": None}}
    run.record_pretrained({})
    assert not (tmp_path / "pretrained.json").exists()
    run.record_pretrained(about)
    run.record_pretrained({"net": about["net"] | {"source": "the same file elsewhere"}})
    assert json.loads((run.folder / "pretrained.json").read_text("utf-8")) == about
    with pytest.raises(ikebana.RunError, match="weights of net have changed"):
        run.record_pretrained({"net": about["net"] | {"sha256": "bb"}})


def test_differences_inside_the_records_of_a_recipe_are_reported():
    good = recipes.get_recipe("good")
    assert reproducibility.describe_recipe_changes(good, good) == []
    assert reproducibility.describe_recipe_changes(
        good, with_options(good, adamw=AdamW(0.5, 0.8, 0.1, 0.1, 0.99), epochs=7)
    ) == ["epochs was 6 and is 7", "adamw's weight_decay was 0.02 and is 0.5"]


def test_changed_photos_are_named(tmp_path, finished_run):
    folder = tmp_path / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=8)
    with interrupt_after_steps(0):
        ikebana.fit(folder, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    used = ikebana.open_run(tmp_path / "run").dataset.filter(status="used")["path"].to_list()
    gone, changed, renamed, broken = used[0], used[1], used[2], used[3]
    (folder / gone).unlink()
    (folder / changed).write_bytes((folder / used[4]).read_bytes())
    (folder / renamed).rename((folder / renamed).with_name("another.jpg"))
    (folder / broken).write_bytes(b"no photo")
    with pytest.raises(ikebana.RunError) as refusal:
        ikebana.resume(tmp_path / "run")
    lines = dict(line.strip().split(": ", 1) for line in str(refusal.value).splitlines() if ": " in line)
    assert set(lines["removed"].split(", ")) == {gone, renamed}
    assert lines["changed"] == changed
    assert lines["new"] == str(Path(renamed).with_name("another.jpg"))
    assert lines["no longer usable"] == broken


@pytest.mark.usefixtures("terminal")
def test_a_recipe_file_and_the_photos_reproduce_the_run_to_the_bit(finished_run, photos, tmp_path, capsys):
    again = ikebana.fit(photos, str(finished_run.folder / "recipe.json"), run=tmp_path / "again")
    assert again.recipe == finished_run.recipe
    assert again.weights.read_bytes() == finished_run.weights.read_bytes()
    assert again.predictions.equals(finished_run.predictions)
    assert "the result should be bit-identical" in capsys.readouterr().err


def test_the_command_accepts_a_recipe_file_and_reports_what_differs_on_this_machine(finished_run, photos, tmp_path):
    there = tmp_path / "from elsewhere"
    there.mkdir()
    about = json.loads((finished_run.folder / "environment.json").read_text("utf-8"))
    (there / "recipe.json").write_text((finished_run.folder / "recipe.json").read_text("utf-8"), "utf-8")
    (there / "environment.json").write_text(json.dumps(about | {"processor": "an abacus"}), "utf-8")
    arguments = ["fit", photos, "--recipe", there / "recipe.json", "--epochs", "1", "--run", tmp_path / "run"]
    command = [sys.executable, "-m", "ikebana", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "processor was an abacus" in done.stderr
    assert ikebana.open_run(tmp_path / "run").recipe == with_options(finished_run.recipe, epochs=1)
    assert "identical bits" in about["reproducibility"]


def test_the_selected_precision_is_part_of_what_reproduces_a_run(photos, tmp_path, monkeypatch):
    from ikebana.learning import device, precision

    monkeypatch.setattr(precision, "_list_candidate_precisions", lambda _: dict.fromkeys(device.DTYPES, "measured"))
    monkeypatch.setattr(precision, "_read_measurements", lambda *_: ({"float32": 1.0, "bfloat16": 2.0}, {}))
    run_made = ikebana.fit(
        photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS | {"precision": "auto", "epochs": 1}
    )
    assert run_made.recipe.precision == "float32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[]", "not a recipe"),
        ('{"epochs": 3}', "not a recipe"),
        ({"later": 1}, "later"),
        ({"method": {"epochs": "3"}}, "epochs"),
        ({"method": {"epochs": True}}, "epochs"),
        ({"image_size": 48.5}, "image_size"),
        ({"method": {"learning_rate": float("nan")}}, "learning_rate"),
        ({"split_fractions": [0.6, "x", 0.2]}, "split_fractions"),
        ({"split_fractions": 3}, "split_fractions"),
        ({"method": {"hidden_units": -3}}, "hidden_units"),
        ({"method": {"augmentation": 3}}, "augmentation"),
        ({"resize": "stretch"}, "resize"),
        ({"method": {"epochs": 0}}, "epochs is 0"),
    ],
)
def test_a_damaged_recipe_file_or_one_of_another_version_is_refused(text, words, tmp_path):
    if isinstance(text, dict):
        values = recipe_to_json(recipes.get_recipe("good"))
        text = json.dumps(values | text | {"method": values["method"] | text.get("method", {})})
    (tmp_path / "recipe.json").write_text(text, "utf-8")
    with pytest.raises(ikebana.RecipeError, match=words):
        recipes.resolve_recipe(str(tmp_path / "recipe.json"))


def test_a_missing_recipe_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ikebana.RecipeError, match="cannot be read"):
        recipes.resolve_recipe(tmp_path / "recipe.json")
    with pytest.raises(ikebana.RecipeError, match="bset"):
        recipes.resolve_recipe(Path("bset"))


def test_a_run_whose_folder_is_deleted_reports_it_and_creates_no_other(photos, tmp_path, monkeypatch):
    real = Trainer.step

    def vanishing(*arguments):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", vanishing)
    with pytest.raises(ikebana.MachineError, match="no longer exists"):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert not (tmp_path / "run").exists()


def test_deleting_the_cache_during_training_changes_nothing(finished_run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    real = Trainer.step

    def vanishing(*arguments):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", vanishing)
    run_made = ikebana.fit(photos, "baseline", run=tmp_path / "run", **SMALL_OPTIONS)
    assert run_made.weights.read_bytes() == finished_run.weights.read_bytes()


def test_a_run_folder_that_is_a_file_is_refused(photos, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ikebana.MachineError):
        ikebana.fit(photos, "baseline", run=tmp_path / "file" / "run", **SMALL_OPTIONS)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("trouble", ["full", "ro"])
def test_a_full_or_read_only_disk_is_an_error_and_the_run_can_be_resumed(
    trouble, small_disk, finished_run, photos, monkeypatch
):
    place, remount = small_disk
    real, steps_made = Trainer.step, []

    def spoilt(*arguments):
        if (place / "run").exists():  # not while the speed is measured
            steps_made.append(1)
        if len(steps_made) == 3:  # in the second epoch
            assert remount(trouble if trouble == "ro" else f"size={shutil.disk_usage(place).used}")
        return real(*arguments)

    monkeypatch.setattr(Trainer, "step", spoilt)
    with pytest.raises(ikebana.MachineError, match=r"the disk is full|Read-only"):
        ikebana.fit(photos, "baseline", run=place / "run", **SMALL_OPTIONS)
    assert remount("rw,size=1g")
    assert not [path for path in place.rglob("*") if "partial" in path.name or path.name.startswith(".tmp")]
    assert len(ikebana.open_run(place / "run").history) == 1
    assert ikebana.resume(place / "run").weights.read_bytes() == finished_run.weights.read_bytes()


@pytest.mark.usefixtures("terminal")
def test_a_disk_that_becomes_read_only_after_the_results_leaves_a_finished_run(
    small_disk, finished_run, photos, monkeypatch, capsys
):
    place, remount = small_disk
    real = RunWriter.write_json

    def and_then_locked(run, name, *values):
        real(run, name, *values)
        if name == "evaluation.json":
            assert remount("ro")

    monkeypatch.setattr(RunWriter, "write_json", and_then_locked)
    run_made = ikebana.fit(photos, "baseline", run=place / "run", **SMALL_OPTIONS)
    assert run_made.is_finished
    assert run_made.weights.read_bytes() == finished_run.weights.read_bytes()
    assert "checkpoint.safetensors is no longer needed" in capsys.readouterr().err


def test_partial_files_of_killed_processes_are_removed_on_resume(stopped_run):
    left = [stopped_run / name for name in (".checkpoint.safetensors.7.partial", ".tmpAbC123")]
    for path in left:
        path.write_bytes(b"half")
    ikebana.resume(stopped_run)
    assert not [path for path in left if path.exists()]


def test_two_runs_cannot_use_one_folder(tmp_path):
    def late():
        with files.atomic_directory(tmp_path / "run", allow_existing=False):
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "recipe.json").write_text("another's")

    with pytest.raises(ikebana.MachineError):
        late()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.json"]


def test_a_run_folder_among_the_photos_is_not_read_as_photos(photos, finished_run, tmp_path):
    place = tmp_path / "photos"
    shutil.copytree(photos, place)
    before = sources.read(place)
    shutil.copytree(finished_run.folder, place / "runs" / "one")
    shutil.copytree(finished_run.folder, place / "runs" / "another")
    shutil.copytree(finished_run.folder, place / before.classes[0] / "deeper")
    after = sources.read(place)
    assert after.photos.equals(before.photos)
    assert after.classes == before.classes
    assert after.empty_classes == before.empty_classes == ()
    assert after.ignored_count > before.ignored_count


def test_a_run_finished_by_another_process_meanwhile_is_not_changed(stopped_run, finished_run, monkeypatch):
    taken_in = fit_command.open_photos

    def ended_meanwhile(*given):
        shutil.copy(finished_run.folder / "evaluation.json", stopped_run)
        return taken_in(*given)

    monkeypatch.setattr(fit_command, "open_photos", ended_meanwhile)
    monkeypatch.setattr(fit_command, "_train_and_score", lambda *_: pytest.fail("it was trained again"))
    assert ikebana.resume(stopped_run).is_finished


@pytest.mark.parametrize("more", [["--recipe", "good"], ["--run", "elsewhere"], ["--epochs", "3"]])
def test_flags_beside_resume_are_refused(finished_run, more):
    command = [sys.executable, "-m", "ikebana", "fit", "--resume", str(finished_run.folder), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has its own options" in done.stderr


def test_machine_readable_output_is_utf8_in_any_locale(tmp_path):
    command = [sys.executable, "-m", "ikebana", "fit", str(tmp_path / "花"), "--json"]
    around = os.environ | {"PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, capture_output=True, check=False, env=around)
    assert done.returncode == 1
    assert json.loads(done.stdout.decode("utf-8").splitlines()[-1])["where"].endswith("花")


@pytest.mark.usefixtures("on_processor")
def test_a_run_is_resumed_with_its_original_settings(tmp_path, monkeypatch):
    file = tmp_path / "environment.json"
    assert device.load_settings(file) is None
    began = device.DeviceSettings("cpu", "bfloat16", 1, "system default", {"device": "a reason"}, 0.01)
    file.write_text(json.dumps(device.collect_environment(began)), "utf-8")
    threads = torch.get_num_threads()
    try:
        assert device.load_settings(file) == began
        assert torch.get_num_threads() == 1
        assert device.configure().threads == threads  # a new run does not use that setting
        monkeypatch.setattr(device, "_select_device", lambda: ("cuda", "a GPU is there now"))
        assert device.load_settings(file) == began
        file.write_text(json.dumps({**device.collect_environment(began), "device": "mps"}), "utf-8")
        assert device.load_settings(file) is None
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("terminal")
def test_a_run_resumed_on_another_machine_reports_the_differences(stopped_run, finished_run, capsys):
    file = stopped_run / "environment.json"
    values = json.loads(file.read_text("utf-8"))
    file.write_text(json.dumps(values | {"processor": "an abacus"}), "utf-8")
    assert ikebana.resume(stopped_run).weights.read_bytes() == finished_run.weights.read_bytes()
    assert "processor was an abacus and is" in capsys.readouterr().err


def test_a_checkpoint_that_is_temporarily_unreadable_is_not_called_damaged(stopped_run):
    for error in (PermissionError(13, "Permission denied"), OSError(5, "Input/output error")):
        with (
            pytest.raises(ikebana.RunError, match="cannot be read") as refusal,
            checkpoint.checkpoint_errors(stopped_run),
        ):
            raise error
        assert "delete" not in str(refusal.value)
    with pytest.raises(torch.OutOfMemoryError), checkpoint.checkpoint_errors(stopped_run):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(ikebana.RunError, match="delete it"), checkpoint.checkpoint_errors(stopped_run):
        raise KeyError("network.dense")
