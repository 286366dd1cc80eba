"""A device with its own memory gives the results of the CPU.

No tensor may be left on the host.

The device is written in Python; where there is a GPU, CUDA is tested too.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.utils import backend_registration

import ikebana
from ikebana.runs.run import open_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]
NEEDS_PYTHON_DEVICES = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch supports no device written in Python",
)
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = [pytest.param("fake", marks=NEEDS_PYTHON_DEVICES), pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]

SMALL_OPTIONS = {"precision": "float32", "split_fractions": [0.5, 0.25, 0.25]}
# Learning rates at which rounding errors do not grow: RMSprop divides even the smallest gradients by their size.
CHOICES = {
    "quick": {"image_size": 96},
    "good": {"image_size": 64, "batch_size": 16, "epochs": 1},
    "augmented": {"image_size": 48, "batch_size": 16, "epochs": 2, "dropout": 0.0},
    "finetuned": {"image_size": 75, "truncate_at": "mixed0", "epochs": 1, "batch_size": 16, "head_epochs": 1},
}


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(8)


@pytest.fixture(scope="module")
def inceptions(tmp_path_factory):
    """Weights for InceptionV3, drawn at random."""
    file = tmp_path_factory.mktemp("weights") / "drawn.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("inception_v3", pretrained=False).state_dict(), file)
    return file


@pytest.fixture(params=DEVICES)
def device(request, on_processor):
    """The name of the device; ikebana stays on the CPU within this process."""
    return request.param


def run_on(device, code, *arguments):
    """Run a program on a device, and return the operators used (none for CUDA)."""
    words = "import json, sys; from support import fake_device; "
    words += "fake_device.install(); " if device == "fake" else ""
    words += f"import ikebana; {code}; print(json.dumps(sorted(fake_device.used_operators)))"
    called = [sys.executable, "-c", words, *map(str, arguments)]
    done = subprocess.run(called, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def fit_on_device(device, photos, name, run, choices):
    """Fit a recipe on a device, and return the run and its operators."""
    code = "ikebana.fit(sys.argv[1], sys.argv[2], run=sys.argv[3], **json.loads(sys.argv[4]))"
    used = run_on(device, code, photos, name, run, json.dumps(choices))
    return open_run(run), used


@pytest.mark.parametrize("name", CHOICES)
def test_a_run_on_a_device_predicts_what_a_run_on_the_cpu_predicts(name, device, photos, inceptions, tmp_path):
    choices = SMALL_OPTIONS | CHOICES[name] | ({"weights": str(inceptions)} if name == "finetuned" else {})
    there, used = fit_on_device(device, photos, name, tmp_path / "there", choices)
    here = ikebana.fit(photos, name, run=tmp_path / "here", **choices)
    assert json.loads((there.folder / "environment.json").read_text("utf-8"))["device"] == device
    assert json.loads((here.folder / "environment.json").read_text("utf-8"))["device"] == "cpu"
    if device == "fake":
        assert {"convolution", "addmm"} <= used
        assert ("convolution_backward" in used) == (name != "quick")
    columns = [f"p:{name}" for name in here.classes]
    actual, expected = (run.predictions.select(columns).to_numpy() for run in (here, there))
    np.testing.assert_allclose(actual, expected, atol=2e-3)


STOPPED = """
from support.interrupts import interrupt_after_steps
from ikebana.learning.training import loop
loop.MIN_CHECKPOINT_INTERVAL_SECONDS, loop.MAX_CHECKPOINT_TIME_FRACTION = 0, 1e9
with interrupt_after_steps(int(sys.argv[5])):
    ikebana.fit(sys.argv[1], sys.argv[2], run=sys.argv[3], **json.loads(sys.argv[4]))
ikebana.resume(sys.argv[3])
"""


@pytest.mark.parametrize("name", ["augmented", "good"])
def test_a_run_interrupted_within_an_epoch_resumes_to_the_same_bits(name, device, photos, tmp_path):
    """The random generator of the device, which dropout uses, is resumed too."""
    choices = SMALL_OPTIONS | {"image_size": 48, "batch_size": 4, "epochs": 2}
    code = f"exec({STOPPED!r})"
    used = run_on(device, code, photos, name, tmp_path / "stopped", json.dumps(choices), 7)
    uninterrupted, _ = fit_on_device(device, photos, name, tmp_path / "whole", choices)
    assert device == "cuda" or name == "good" or "native_dropout" in used
    assert (tmp_path / "stopped" / "weights.safetensors").read_bytes() == uninterrupted.weights.read_bytes()


def test_photos_are_audited_and_predicted_on_a_device(device, photos, paper_run, good_photos, tmp_path):
    code = """
ikebana.audit(sys.argv[1], advise=True, out=sys.argv[2] + "/audit")
said = [dict(each.probabilities) for each in ikebana.predict(sys.argv[3], sys.argv[4:])]
open(sys.argv[2] + "/said.json", "w").write(json.dumps(said))
"""
    used = run_on(device, f"exec({code!r})", photos, tmp_path, paper_run.folder, *good_photos[:4])
    assert device == "cuda" or {"convolution", "addmm", "_softmax"} <= used
    here = ikebana.predict(paper_run, good_photos[:4])
    there = json.loads((tmp_path / "said.json").read_text("utf-8"))
    for first, second in zip(here, there, strict=True):
        assert dict(first.probabilities) == pytest.approx(second, abs=1e-5)


def test_batches_are_taken_from_pixels_on_the_device(device, tmp_path):
    code = """
import numpy as np
from ikebana.learning import examples
pixels = np.random.default_rng(0).integers(0, 256, (30, 4, 4, 3), np.uint8)
rows = np.array([7, 29, 0])
held = examples.copy_to_device(pixels, sys.argv[1], free_bytes=10**6)
photos = examples.PhotoExamples(pixels, rows, rows, rows > 9, rows, held)
inputs, labels = photos.get_batch(np.array([2, 0]), sys.argv[1])
assert inputs.device.type == labels.device.type == sys.argv[1]
assert (inputs.cpu().numpy() == pixels[[0, 7]].transpose(0, 3, 1, 2)).all()
"""
    used = run_on(device, f"exec({code!r})", device)
    assert device == "cuda" or "index" in used
