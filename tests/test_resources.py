"""What does not fit is refused with the numbers before any photo is opened; what fits is not."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import timm
import torch
from support.images import two_classes, write_files
from support.interrupts import fail_after_steps
from torch import nn

import ikebana
from ikebana import recipes
from ikebana.errors import MachineError
from ikebana.learning import device, estimate
from ikebana.learning.features import depth_probe, out_of_fold
from ikebana.learning.models import backbones, networks
from ikebana.learning.models.assembly import assemble
from ikebana.system import resources

# Python tells an audit hook of every file that is opened: those of photos are named.
WATCHED = """
import sys
sys.addaudithook(lambda event, about: event == "open" and str(about[0]).endswith(".jpg") and print("OPENED", about[0]))
from ikebana import cli
cli.main()
"""
MEGABYTE = 2**20


def fit(photos, cache, *flags, before=None):
    """The command in a process of its own, which names the photos that it opens."""
    command = [sys.executable, "-c", WATCHED, *flags, str(photos), "--json"]
    environment = {**os.environ, "IKEBANA_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=photos.parent, preexec_fn=before, text=True, capture_output=True, check=False
    )


@contextmanager
def small_disk(place, size):
    """A disk of so many bytes, where one can be had."""
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("no disk can be mounted here: that needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def small_group(size):
    """A control group with so much memory, where one can be made: version 1 or version 2."""
    own = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    for line in own:
        _, kinds, path = line.split(":", 2)
        top, limit = (
            (resources.CGROUP_ROOT / "memory", "memory.limit_in_bytes")
            if kinds
            else (resources.CGROUP_ROOT, "memory.max")
        )
        group = top / path.lstrip("/") / f"ikebana-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(size), "ascii")
        except OSError:
            group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    pytest.skip("no control group with a limit can be made here: that needs root and a memory controller")


@pytest.fixture
def photos(tmp_path):
    return write_files(tmp_path / "photos", two_classes(20))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("fit", "--recipe", "baseline"), ("audit",)])
def test_a_disk_too_small_is_refused_before_any_photo_is_opened(photos, tmp_path, flags):
    with small_disk(tmp_path / "disk", MEGABYTE) as cache:
        said = fit(photos, cache, *flags)
    assert said.returncode == 1, said.stderr
    assert "are needed on the disk" in said.stdout
    assert "IKEBANA_CACHE" in said.stdout
    assert "OPENED" not in said.stdout


@pytest.mark.slow
def test_a_disk_that_is_large_enough_is_used(photos, tmp_path):
    with small_disk(tmp_path / "disk", 64 * MEGABYTE) as cache:
        said = fit(
            photos, cache, "fit", "--recipe", "baseline", "--image-size", "46", "--epochs", "1", "--batch-size", "8"
        )
    assert said.returncode == 0, said.stdout
    assert said.stdout.count("OPENED") >= 40


@pytest.mark.slow
def test_memory_that_the_process_may_not_have_is_refused_before_any_photo_is_opened(photos, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux counts a process' data against its limit")

    def limited():
        resource.setrlimit(resource.RLIMIT_DATA, (6000 * MEGABYTE, 6000 * MEGABYTE))

    said = fit(photos, tmp_path / "cache", "fit", "--recipe", "baseline", "--image-size", "640", before=limited)
    assert said.returncode == 1, said.stderr
    assert "of memory are needed" in said.stdout
    assert "--batch-size (now " in said.stdout
    assert "OPENED" not in said.stdout


@pytest.mark.slow
def test_memory_that_the_container_has_not_is_refused_before_any_photo_is_opened(photos, tmp_path):
    with small_group(2000 * MEGABYTE) as group:

        def inside():
            (group / "cgroup.procs").write_text(str(os.getpid()), "ascii")

        said = fit(photos, tmp_path / "cache", "fit", "--recipe", "baseline", "--image-size", "640", before=inside)
    assert said.returncode == 1, said.stderr
    assert "of memory are needed" in said.stdout
    assert "OPENED" not in said.stdout


def test_what_is_needed_on_one_disk_is_added_up(tmp_path):
    free = resources.free_space(tmp_path)
    cache, run = tmp_path / "cache", tmp_path / "run" / "deep"
    resources.require_disk({cache: 0.4 * free, run: 0.1 * free})
    with pytest.raises(MachineError, match="are needed on the disk") as refusal:
        resources.require_disk({cache: 0.7 * free, run: 0.7 * free})
    assert str(cache) in str(refusal.value)
    assert str(run) in str(refusal.value)


def test_a_process_may_hold_what_it_holds_already():
    left = resources.free_memory()
    if left is None:
        pytest.skip("this system does not tell")
    resources.require_memory(1, "nothing")
    with pytest.raises(MachineError, match="left"):
        resources.require_memory(100 * left, "less")


def test_on_a_gpu_a_step_needs_the_gpus_memory_and_not_the_machines(monkeypatch):
    recipe = networks.fill_defaults(recipes.get_recipe("quick"))
    built = assemble(recipe, 5)
    here, there = (device.DeviceSettings(name, "float32", 2, "") for name in ("cpu", "cuda"))
    assert estimate._estimate_memory(100, built, there) < estimate._estimate_memory(100, built, here)
    needed = estimate.MIN_MEMORY_FRACTION * estimate._estimate_step_memory(there.inference_batch_size, built, there)
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: int(needed) + 1)
    estimate._require_step_memory(built, recipe, there)
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: int(needed) - 1)
    with pytest.raises(MachineError, match="of the GPU's memory are needed"):
        estimate._require_step_memory(built, recipe, there)


@pytest.mark.slow
def test_pixels_get_no_room_on_a_gpu_that_a_step_needs(monkeypatch):
    recipe = networks.fill_defaults(recipes.get_recipe("good"))
    here, there = (device.DeviceSettings(name, "float32", 2, "") for name in ("cpu", "cuda"))
    built = assemble(recipe, 5)
    step = int(estimate._estimate_step_memory(recipe.gradient_method.batch_size, built, there))
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: step + 1000)
    assert estimate.get_spare_gpu_bytes(built, there) == 1000
    assert estimate.get_spare_gpu_bytes(built, here) == 0
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: step // 2)
    assert estimate.get_spare_gpu_bytes(built, there) == 0


def test_a_network_whose_weights_memory_does_not_hold_is_refused_before_they_are_made(monkeypatch):
    made = []
    monkeypatch.setattr(networks.nn, "Linear", lambda *sizes: made.append(sizes))
    monkeypatch.setattr(resources, "free_memory", lambda: resources.memory_in_use() + 4 * 10**9)
    with pytest.raises(MachineError, match="smaller --image-size"):
        networks.build_network(recipes.get_recipe("baseline", image_size=2048), 5)  # 128 x 126 x 126 x 512 weights
    assert not made


def test_so_is_one_of_timms(monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: resources.memory_in_use() + 300 * MEGABYTE)
    monkeypatch.setattr(nn.Module, "to", lambda *_, **__: pytest.fail("the network was made"))
    with pytest.raises(MachineError, match="smaller --network"):
        networks.build_network(
            networks.fill_defaults(recipes.get_recipe("quick", network="vit_base_patch16_224")), 5
        )  # 343 MB of weights


def test_the_size_of_a_network_is_known_without_building_it_or_changing_random_state():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    described = backbones._describe_weights.__wrapped__("mobilenetv3_small_050")
    assert torch.equal(torch.random.get_rng_state(), before)
    made = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0).state_dict()
    assert {name: value.shape for name, value in described.items()} == {
        name: value.shape for name, value in made.items()
    }


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_an_error_message(error):
    with told_of_memory():
        raise error


def test_so_are_a_processors_real_words():
    with told_of_memory():
        torch.empty(10**15)


@contextmanager
def told_of_memory():
    """Within this block memory must run out, and be said to."""
    words = r"memory ran out[\s\S]*smaller --image-size.* or --batch-size"
    with pytest.raises(MachineError, match=words), estimate.recipe_memory_errors(recipes.get_recipe("good")):
        yield


def test_other_failures_of_a_step_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), estimate.recipe_memory_errors(recipes.get_recipe("good")):
        torch.zeros(2).view(3)


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_a_run_that_runs_out_of_memory_can_be_resumed(drawn, tmp_path, capsys):
    choices = {"image_size": 46, "epochs": 1, "batch_size": 16, "precision": "float32"}
    full = fail_after_steps(0, torch.OutOfMemoryError("CUDA out of memory."))
    with full, pytest.raises(MachineError, match="memory ran out: CUDA out of memory"):
        ikebana.fit(drawn(8), "baseline", run=tmp_path / "run", **choices)
    assert "--resume" in capsys.readouterr().err
    assert ikebana.resume(tmp_path / "run").is_finished


def running_out(*_given, **_named):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_predictions_for_which_memory_runs_out_say_so(paper_run, good_photos, monkeypatch):
    monkeypatch.setattr(networks.CalibratedNetwork, "forward", running_out)
    with pytest.raises(MachineError, match="memory ran out: CUDA out of memory"):
        ikebana.predict(paper_run, good_photos[:3])


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_so_does_advice_and_an_audit_goes_on_without_what_needs_the_memory(drawn, monkeypatch, capsys):
    monkeypatch.setattr(out_of_fold, "extract_labelled_features", running_out)
    assert ikebana.audit(drawn(30)).dataset.used_photos.height
    assert ": memory ran out: CUDA out of memory" in capsys.readouterr().err
    monkeypatch.setattr(depth_probe, "extract_depth_features", running_out)
    with pytest.raises(MachineError, match="memory ran out"):
        ikebana.audit(drawn(30), advise=True)


def test_a_batch_is_no_larger_than_there_are_photos():
    recipe = recipes.get_recipe("baseline", image_size=46, batch_size=10**7)
    with pytest.raises(MachineError):
        estimate.configure_device(assemble(recipe, 2))
    assert estimate.configure_device(assemble(recipe, 2), photo_count=16).precision


def test_a_missing_disk_is_reported_as_missing(tmp_path):
    class Unplugged(type(tmp_path)):
        def exists(self):
            return False

    with pytest.raises(MachineError, match="no such disk"):
        resources.free_space(Unplugged(tmp_path))
