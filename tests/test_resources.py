"""Too little disk or memory is refused with both sizes before any photo is opened."""

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

# Python calls an audit hook for every file that is opened. The script prints those of photos.
WATCHED = """
import sys
sys.addaudithook(lambda event, about: event == "open" and str(about[0]).endswith(".jpg") and print("OPENED", about[0]))
from ikebana import cli
cli.main()
"""
MEGABYTE = 2**20


def fit(photos, cache, *flags, before=None):
    """Run the command in a separate process that prints the photos it opens."""
    command = [sys.executable, "-c", WATCHED, *flags, str(photos), "--json"]
    environment = {**os.environ, "IKEBANA_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, cwd=photos.parent, preexec_fn=before, text=True, capture_output=True, check=False
    )


@contextmanager
def mount_small_disk(place, size):
    """Mount a disk of this size, or skip the test."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here: that needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def limit_group(size):
    """Make a control group with this memory limit, or skip the test."""
    own, reasons = Path("/proc/self/cgroup").read_text("utf-8").splitlines(), []
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
        except OSError as error:
            reasons.append(str(error))
            continue
        try:
            (group / limit).write_text(str(size), "ascii")
        except OSError as error:
            reasons.append(str(error))
            group.rmdir()
            continue
        try:
            yield group
        finally:
            group.rmdir()
        return
    pytest.skip(f"no control group with a limit can be made here: {'; '.join(reasons)}")


@pytest.fixture
def photos(tmp_path):
    return write_files(tmp_path / "photos", two_classes(20))


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("fit", "--recipe", "baseline"), ("audit",)])
def test_a_disk_too_small_is_refused_before_any_photo_is_opened(photos, tmp_path, flags):
    with mount_small_disk(tmp_path / "disk", MEGABYTE) as cache:
        done = fit(photos, cache, *flags)
    assert done.returncode == 1, done.stderr
    assert "are needed on the disk" in done.stdout
    assert "IKEBANA_CACHE" in done.stdout
    assert "OPENED" not in done.stdout


@pytest.mark.slow
def test_a_large_enough_disk_is_used(photos, tmp_path):
    with mount_small_disk(tmp_path / "disk", 64 * MEGABYTE) as cache:
        done = fit(
            photos, cache, "fit", "--recipe", "baseline", "--image-size", "46", "--epochs", "1", "--batch-size", "8"
        )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("OPENED") >= 40


@pytest.mark.slow
def test_a_memory_limit_of_the_process_is_checked_before_any_photo_is_opened(photos, tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux counts a process' data against its limit")

    def limited():
        resource.setrlimit(resource.RLIMIT_DATA, (6000 * MEGABYTE, 6000 * MEGABYTE))

    done = fit(photos, tmp_path / "cache", "fit", "--recipe", "baseline", "--image-size", "640", before=limited)
    assert done.returncode == 1, done.stderr
    assert "of memory are needed" in done.stdout
    assert "--batch-size (now " in done.stdout
    assert "OPENED" not in done.stdout


@pytest.mark.slow
def test_a_memory_limit_of_the_container_is_checked_before_any_photo_is_opened(photos, tmp_path):
    with limit_group(2000 * MEGABYTE) as group:

        def inside():
            (group / "cgroup.procs").write_text(str(os.getpid()), "ascii")

        done = fit(photos, tmp_path / "cache", "fit", "--recipe", "baseline", "--image-size", "640", before=inside)
    assert done.returncode == 1, done.stderr
    assert "of memory are needed" in done.stdout
    assert "OPENED" not in done.stdout


def test_the_space_needed_on_one_disk_is_added_up(tmp_path):
    free = resources.free_space(tmp_path)
    cache, run = tmp_path / "cache", tmp_path / "run" / "deep"
    resources.require_disk({cache: 0.4 * free, run: 0.1 * free})
    with pytest.raises(MachineError, match="are needed on the disk") as refusal:
        resources.require_disk({cache: 0.7 * free, run: 0.7 * free})
    assert str(cache) in str(refusal.value)
    assert str(run) in str(refusal.value)


def test_memory_already_used_by_the_process_is_not_counted_again():
    left = resources.free_memory()
    if left is None:
        pytest.skip("this system does not tell")
    resources.require_memory(1, "nothing")
    with pytest.raises(MachineError, match="left"):
        resources.require_memory(100 * left, "less")


def test_on_a_gpu_a_step_needs_gpu_memory_and_not_main_memory(monkeypatch):
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
def test_pixels_are_not_copied_into_gpu_memory_that_a_step_needs(monkeypatch):
    recipe = networks.fill_defaults(recipes.get_recipe("good"))
    here, there = (device.DeviceSettings(name, "float32", 2, "") for name in ("cpu", "cuda"))
    built = assemble(recipe, 5)
    step = int(estimate._estimate_step_memory(recipe.gradient_method.batch_size, built, there))
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: step + 1000)
    assert estimate.get_spare_gpu_bytes(built, there) == 1000
    assert estimate.get_spare_gpu_bytes(built, here) == 0
    monkeypatch.setattr(device, "get_free_gpu_bytes", lambda: step // 2)
    assert estimate.get_spare_gpu_bytes(built, there) == 0


def test_a_network_too_large_for_memory_is_refused_before_it_is_built(monkeypatch):
    allocated = []
    monkeypatch.setattr(networks.nn, "Linear", lambda *sizes: allocated.append(sizes))
    monkeypatch.setattr(resources, "free_memory", lambda: resources.memory_in_use() + 4 * 10**9)
    with pytest.raises(MachineError, match="smaller --image-size"):
        networks.build_network(recipes.get_recipe("baseline", image_size=2048), 5)  # 128 x 126 x 126 x 512 weights
    assert not allocated


def test_a_timm_network_too_large_for_memory_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(resources, "free_memory", lambda: resources.memory_in_use() + 300 * MEGABYTE)
    monkeypatch.setattr(nn.Module, "to", lambda *_, **__: pytest.fail("the network was made"))
    with pytest.raises(MachineError, match="smaller --network"):
        # It has 343 MB of weights.
        networks.build_network(networks.fill_defaults(recipes.get_recipe("quick", network="vit_base_patch16_224")), 5)


def test_the_size_of_a_network_is_known_without_building_it_or_changing_random_state():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    described = backbones._describe_weights.__wrapped__("mobilenetv3_small_050")
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=0).state_dict()
    assert {name: value.shape for name, value in described.items()} == {
        name: value.shape for name, value in weights.items()
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
    with expect_memory_error():
        raise error


def test_out_of_memory_errors_of_torch_on_cpu_are_recognised():
    with expect_memory_error():
        torch.empty(10**15)


@contextmanager
def expect_memory_error():
    """Expect an out-of-memory error within this block."""
    words = r"memory ran out[\s\S]*smaller --image-size.* or --batch-size"
    with pytest.raises(MachineError, match=words), estimate.recipe_memory_errors(recipes.get_recipe("good")):
        yield


def test_other_errors_of_a_step_are_not_changed():
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


def run_out_of_memory(*_given, **_named):
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_predictions_that_run_out_of_memory_are_an_error_message(paper_run, good_photos, monkeypatch):
    monkeypatch.setattr(networks.CalibratedNetwork, "forward", run_out_of_memory)
    with pytest.raises(MachineError, match="memory ran out: CUDA out of memory"):
        ikebana.predict(paper_run, good_photos[:3])


@pytest.mark.slow
@pytest.mark.usefixtures("terminal")
def test_advice_out_of_memory_is_an_error_and_a_plain_audit_skips_that_check(drawn, monkeypatch, capsys):
    monkeypatch.setattr(out_of_fold, "extract_labelled_features", run_out_of_memory)
    assert ikebana.audit(drawn(30)).dataset.used_photos.height
    assert ": memory ran out: CUDA out of memory" in capsys.readouterr().err
    monkeypatch.setattr(depth_probe, "extract_depth_features", run_out_of_memory)
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
