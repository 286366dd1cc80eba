"""The interface for programs: events, exit statuses, and schemas of files.

Nothing here depends on the processor. A change of these tests is a change of the interface.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime
import polars as pl
import pytest
from support.runs import write_run

import ikebana
from ikebana.demo_data import paper_flowers
from ikebana.runs.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

FIT = ["--recipe", "good", "--image-size", "64", "--batch-size", "16", "--epochs", "1", "--precision", "float32"]

RECIPE = {
    "name": "str", "network": "str", "truncate_at": "str", "image_size": "int", "resize": "str",
    "method": {
        "kind": "str", "learning_rate": "float", "batch_size": "int", "epochs": "int",
        "augmentation": {
            "rotation": "float", "shift": ["float"], "shear": "float", "zoom": "float", "flip": "bool", "crop_area": "float",
            "brightness": "float",
        },
        "adamw": dict.fromkeys(
            ("weight_decay", "layer_decay", "warmup_fraction", "label_smoothing", "ema_decay"), "float"
        ),
        "weights": "str", "flip_tta": "bool", "dropout": "float", "hidden_units": "int", "hidden_dropout": "float",
        "initial_head": "str", "head_epochs": "int", "head_learning_rate": "float", "train_from": "str",
    },
    "seed": "int", "split": "str", "split_seed": "int", "split_fractions": ["float"], "class_order": [],
    "refit_on_all": "bool", "coverage": "float", "at_most_wrong": "null", "precision": "str",
}  # fmt: skip
PER_CLASS = {"precision": "float", "recall": "float", "f1": "float", "support": "int"}
KINDS = ("camellia", "iris", "kusudama", "lotus", "pinwheel")
EVALUATION = {
    "accuracy": "float", "accuracy_interval": ["float"], "n": "int", "classes": ["str"], "confusion": [["int"]],
    "per_class": dict.fromkeys(KINDS, PER_CLASS), "balanced_accuracy": "float", "log_loss": "float",
    "expected_calibration_error": "float", "note": "str", "threshold": "null", "answered_share": "null",
    "answered_accuracy": "null", "leakage": {
        "photos": [], "accuracy_on_leaked": "null", "accuracy_on_others": "float",
        "naive_shuffle": {"n": "int", "with_duplicate": "int", "accuracy": "float"},
    }, "n_effective": "float", "cross_validation": "null", "learning_curves": "null",
    "slices": "null", "robustness": "null", "calibration_photos": "int",
    "unknown_objects": "null",
    "seconds": dict.fromkeys(("prepare", "read", "features", "train", "score", "draw"), "float"),
    "candidates": {"coverage": "float"} | dict.fromkeys(
        ("overall", "mean_size", "answered", "not_sure", "per_size", "per_class"), "null"
    ),
    "risk_coverage": {name: ["float"] for name in ("thresholds", "answered", "wrong")} | {"guarantee": "null"},
}  # fmt: skip
EPOCH = {
    "epoch": "int", "train_loss": "float", "train_accuracy": "float", "val_loss": "float", "val_accuracy": "float",
    "seconds": "float", "selection_loss": "null",
}  # fmt: skip
FINDING = {
    "kind": "str", "severity": "str", "paths": ["str"], "evidence": "str", "advice": "str", "suggested_label": "null",
    "confidence": "null",
}  # fmt: skip
AUDIT = {
    "source": "str", "paths": "int", "used": "int", "set_aside": "int", "ignored": "int",
    "reasons": {"unreadable: its end is missing": "int"},
    "classes": dict.fromkeys(KINDS, dict.fromkeys(("train", "validation", "test"), "int")), "notes": [],
    "findings": [FINDING, FINDING | {"paths": []}],
}  # fmt: skip
ENVIRONMENT = {
    "ikebana": "str", "python": "str", "system": "str", "processor": "str", "processes": "int", "accelerator": "null",
    "device": "str", "precision": "str", "threads": "int", "allocator": "str",
    "reasons": dict.fromkeys(("device", "threads", "allocator", "precision"), "str"),
    "seconds_per_photo": "float", "measurement_id": "str",
    "libraries": dict.fromkeys(
        ("torch", "timm", "numpy", "scipy", "pillow", "polars", "scikit-learn", "safetensors"), "str"
    ), "reproducibility": "str",
}  # fmt: skip
RUN = {
    "audit.json": AUDIT,
    "calibration.json": {
        "temperature": "float",
        "threshold": "null",
        "photos": "int",
        "candidates": "null",
        "guarantee": "null",
    },
    "environment.json": ENVIRONMENT,
    "evaluation.json": EVALUATION,
    "pretrained.json": {"tf_efficientnet_lite0": {"source": "str", "sha256": "str", "license": "str"}},
    "recipe.json": RECIPE,
    "source.json": {"photos": "str", "fingerprint": "str", "classes": ["str"], "recipe": RECIPE},
    "suggestion.json": {"text": "str", "command": "str", "note": "str"},
}
DATASET = {
    "path": pl.String, "label": pl.String, "split": pl.String, "group": pl.String, "duplicate_of": pl.String,
    "status": pl.String, "sha256": pl.String, "bytes": pl.Int64, "width": pl.Int32, "height": pl.Int32,
}  # fmt: skip
AGREEMENT = {"photos": "int", "top1_agreement": "float", "largest_difference": "float", "mean_difference": "float"}
PARITY = AGREEMENT | {
    "of": "str", "accuracy": "float", "candidate_agreement": "float", "tolerance": "float", "whole_photos": AGREEMENT,
    "largest_familiarity_difference": "float",
}  # fmt: skip
METADATA = {
    "sha256": "str", "parity": PARITY, "ikebana": "int",
    "classes": ["str"], "image_size": "int", "resize": "str", "threshold": "null", "temperature": "float",
    "familiarity": "null", "candidates": "null", "guarantee": "null", "recipe": RECIPE, "data": {"fingerprint": "str"},
    "scores": {
        name: value
        for name, value in EVALUATION.items()
        if name not in ("seconds", "leakage", "risk_coverage", "slices", "robustness")
    },
    "pretrained": RUN["pretrained.json"], "versions": dict.fromkeys(
        ("ikebana", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow"), "str"
    ),
}  # fmt: skip


def differences(actual: Any, expected: Any, place: str = "") -> list[str]:
    """List the differences of two schemas, one line each."""
    if isinstance(actual, dict) and isinstance(expected, dict):
        names = sorted(actual.keys() | expected.keys())
        return [
            line
            for name in names
            for line in differences(actual.get(name, "missing"), expected.get(name, "missing"), f"{place}/{name}")
        ]
    return [] if actual == expected else [f"{place} is {actual}, not {expected}"]


def schema(value: Any) -> Any:
    """Describe names and types of a JSON value.

    A list has each distinct schema of its items once.
    """
    if isinstance(value, dict):
        return {name: schema(item) for name, item in value.items()}
    if isinstance(value, list):
        schemas: list[Any] = []
        for item in value:
            if schema(item) not in schemas:
                schemas.append(schema(item))
        return schemas
    return "null" if value is None else type(value).__name__


def ikebana_command(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ikebana", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(10)


@pytest.fixture(scope="module")
def fit(photos, cache, tmp_path_factory):
    """A finished run of `good` from the command line, and its events."""
    place = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        done = ikebana_command("fit", photos, "--run", place, *FIT, "--json")
    assert done.returncode == 0, done.stderr
    return ikebana.open_run(place), events_of(done.stdout)


@pytest.fixture(scope="module")
def model(fit, cache, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("model") / "flowers.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        ikebana.export(fit[0], file)
    return file


# --- files ---


@pytest.mark.parametrize("name", RUN)
def test_a_json_file_of_a_run_has_this_schema(name, fit):
    assert not differences(schema(json.loads((fit[0].folder / name).read_text("utf-8"))), RUN[name])


def test_a_run_folder_has_these_files_and_no_others(fit):
    tables = {"dataset.parquet", "predictions.parquet"}
    others = {
        "epochs.jsonl",
        "layers.txt",
        "weights.safetensors",
        "classification_report.txt",
        "figures",
        "thumbnails",
        "report.html",
    }
    assert {entry.name for entry in fit[0].folder.iterdir()} == RUN.keys() | tables | others


def test_tables_of_a_run_have_these_columns(fit):
    run: Run = fit[0]
    assert pl.read_parquet_schema(run.folder / "dataset.parquet") == DATASET
    predictions = dict.fromkeys(("path", "label", "split"), pl.String) | {"familiarity": pl.Float64}
    predictions |= dict.fromkeys((f"p:{name}" for name in KINDS), pl.Float32)
    assert pl.read_parquet_schema(run.folder / "predictions.parquet") == predictions


def test_weights_are_of_a_backbone_and_a_head(fit):
    from safetensors import safe_open

    with safe_open(fit[0].weights, "numpy") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"backbone", "head"}  # noqa: SIM118


def test_an_exported_file_has_this_input_these_outputs_and_this_metadata(model):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (photos,) = session.get_inputs()
    assert (photos.name, photos.type, photos.shape[3]) == ("photos", "tensor(uint8)", 3)
    assert all(isinstance(axis, str) for axis in photos.shape[:3])
    outputs = [(output.name, output.type, output.shape[1]) for output in session.get_outputs()]
    assert outputs == [("probabilities", "tensor(float)", 5), ("features", "tensor(float)", 1280)]
    metadata = session.get_modelmeta().custom_metadata_map
    values = {name: json.loads(value) for name, value in metadata.items() if name != "seal"}
    assert not differences(schema(values), METADATA)


def test_a_table_of_predictions_has_these_columns_in_every_format(model, photos, tmp_path):
    columns = ["path", "label", "confidence", "status", "candidates", "familiarity", *(f"p:{name}" for name in KINDS)]
    for ending, read in (("csv", pl.read_csv), ("jsonl", pl.read_ndjson), ("parquet", pl.read_parquet)):
        ikebana.predict(model, photos / "iris", tmp_path / f"table.{ending}")
        table = read(tmp_path / f"table.{ending}")
        nested = ending == "jsonl"
        assert table.columns == ([*columns[:6], "probabilities"] if nested else columns)
        assert not nested or table["probabilities"].struct.fields == list(KINDS)
        assert "ok" in set(table["status"])


# --- events ---


def test_fit_prints_these_events(fit):
    _, events = fit
    schemas: dict[str, Any] = {}
    for event in events:
        schemas.setdefault(event["event"], schema(event))
    expected = {
        "stage": {"event": "str", "stage": "str", "total": "int", "unit": "str"},
        "progress": {"event": "str", "stage": "str", "done": "int", "total": "int", "unit": "str"},
        "stage_end": {"event": "str", "stage": "str", "done": "int"},
        "message": {"event": "str", "text": "str"},
        "run": {"event": "str", "folder": "str", "photos": "str", "classes": ["str"], "recipe": RECIPE},
        "epoch": {"event": "str"} | EPOCH,
        "evaluation": {"event": "str"} | EVALUATION,
        "done": {"event": "str", "run": "str"},
    }
    assert not differences(schemas, expected)
    assert events[-1]["event"] == "done"


def test_audit_cache_and_doctor_end_with_these_events(photos):
    events = events_of(ikebana_command("audit", photos, "--json").stdout)
    assert schema(events[-1]) == {"event": "str", "leaks": "int", "command": "str"}
    (audit,) = (event for event in events if event["event"] == "audit")
    assert audit.keys() == {"event"} | AUDIT.keys()
    (done,) = events_of(ikebana_command("cache", "--json").stdout)[-1:]
    kinds = ("archives", "pixels", "features", "measurements", "weights", "onnxruntime-web")
    assert not differences(schema(done), {"event": "str", "folder": "str", "bytes": dict.fromkeys(kinds, "int")})
    (done,) = events_of(ikebana_command("doctor", "--json").stdout)[-1:]
    facts = {
        "ikebana",
        "python",
        "processor",
        "GPU",
        "device",
        "processes",
        "threads",
        "allocator",
        "precision",
        "cache",
        "disk",
    }
    libraries = {
        "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "numpy", "pillow", "pillow-heif", "polars",
        "scikit-learn", "safetensors",
    }  # fmt: skip
    assert done.keys() == {"event"} | facts | libraries


def test_an_error_is_an_event(tmp_path):
    done = ikebana_command("fit", tmp_path / "nowhere", "--json")
    (error,) = (event for event in events_of(done.stdout) if event["event"] == "error")
    assert schema(error) == dict.fromkeys(("event", "kind", "what", "where", "advice"), "str")
    assert error["kind"] == "PhotosError"


# --- exit statuses ---


def test_an_error_exits_with_1_and_a_wrong_command_with_2(tmp_path):
    assert ikebana_command("fit", tmp_path / "nowhere").returncode == 1
    assert ikebana_command("fit").returncode == 2
    assert ikebana_command("fit", "--no-such-flag").returncode == 2


def test_an_audit_that_finds_leakage_exits_with_3(drawn, tmp_path):
    photo = next((drawn(10) / "iris").glob("*.jpg")).read_bytes()
    for split in ("train", "test"):
        paper_flowers.draw_collection(tmp_path / "photos" / split, photos_per_kind=6, seed=len(split))
        (tmp_path / "photos" / split / "iris" / "same.jpg").write_bytes(photo)
    assert ikebana_command("audit", tmp_path / "photos").returncode == 3


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_fit_exits_with_130_and_a_terminated_one_with_143(number, status, photos, tmp_path):
    command = [sys.executable, "-m", "ikebana", "fit", photos, "--run", tmp_path / "run", *FIT[:6], "--epochs", "400"]
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run").exists():
            assert time.monotonic() < deadline, "the run was not begun"
            assert process.poll() is None, "the command ended by itself"
            time.sleep(0.05)
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == status


def test_a_broken_pipe_exits_with_141(paper_model, photos):
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), str(photos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=120)
    assert process.returncode == 141


# --- comparing runs ---

DIFFERENCE = {
    "name": "str", "value": "float", "interval": ["float"], "p_value": "float", "n": "int", "n_groups": "int",
    "first_ahead": "int", "second_ahead": "int",
}  # fmt: skip


def test_the_event_of_compare(tmp_path):
    for name, wrong in (("quick", range(12)), ("good", range(2))):
        write_run(tmp_path / name, wrong, recipe=ikebana.RECIPES[name])
    comparison, done = events_of(ikebana_command("compare", tmp_path / "quick", tmp_path / "good", "--json").stdout)
    assert schema(comparison["contestants"][0]) == {
        "name": "str", "runs": ["str"], "accuracy": "float", "accuracy_interval": ["float"], "accuracies": ["float"],
        "n": "int",
    }  # fmt: skip
    assert schema(comparison["pairs"][0]) == {
        "first": "str", "second": "str", "verdict": "str", "difference": DIFFERENCE, "p_value": "float",
        "photos_needed": "int", "by_split": [],
    }  # fmt: skip
    assert set(comparison) == {"event", "contestants", "pairs", "splits", "notes"}
    assert schema(done) == {"event": "str", "out": "str"}


def test_a_comparison_that_is_refused_exits_with_1_and_a_single_run_with_2(tmp_path):
    write_run(tmp_path / "a")
    assert ikebana_command("compare", tmp_path / "a").returncode == 2
    assert ikebana_command("compare", tmp_path / "a", tmp_path / "b").returncode == 1
