"""Training: it learns, is reproducible, refuses invalid input, and writes complete checkpoints."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.training import BASELINE, CPU_SETTINGS, TUNED, have_same_weights, make_striped_photos

from ikebana import recipes
from ikebana.errors import MachineError, RecipeError, RunError
from ikebana.learning import augmentation, device, precision, scoring
from ikebana.learning.models import networks, parameter_groups
from ikebana.learning.training import checkpoint as checkpoints
from ikebana.learning.training import loop
from ikebana.learning.training.epoch_progress import EpochProgress
from ikebana.recipe import Augmentation, FineTune, with_options


def train(recipe=BASELINE, setting=CPU_SETTINGS, checkpoint=None, held_out=80):
    network = networks.build_network(recipe, 2)
    epochs = list(
        loop.train(network, recipe, make_striped_photos(96), make_striped_photos(held_out, seed=1), setting, checkpoint)
    )
    return network, epochs


@pytest.mark.slow
def test_a_network_learns_visible_patterns_and_recognises_them_in_new_photos():
    _, epochs = train(with_options(BASELINE, epochs=12))
    assert epochs[-1].val_accuracy is not None
    assert epochs[-1].val_accuracy > 0.9
    assert epochs[-1].train_loss < epochs[0].train_loss


@pytest.mark.slow
def test_random_labels_cannot_be_learned():
    recipe = with_options(BASELINE, epochs=12)
    photos, held_out = make_striped_photos(96), make_striped_photos(200, seed=1)
    shuffled = np.random.default_rng(0).permutation(photos.labels)
    network = networks.build_network(recipe, 2)
    *_, last = loop.train(network, recipe, dataclasses.replace(photos, labels=shuffled), held_out, CPU_SETTINGS)
    assert last.val_accuracy is not None
    assert 0.3 < last.val_accuracy < 0.7


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    assert have_same_weights(train()[0], train()[0])
    assert not have_same_weights(train()[0], train(with_options(BASELINE, seed=1))[0])


@pytest.fixture
def recorded_epochs(monkeypatch):
    """The selection loss and the weights of each epoch."""
    epochs_considered, real = [], loop.BestWeights.update

    def record(best, loss, network):
        epochs_considered.append((loss, {name: value.clone() for name, value in network.state_dict().items()}))
        real(best, loss, network)

    monkeypatch.setattr(loop.BestWeights, "update", record)
    return epochs_considered


@pytest.mark.slow
def test_with_fine_tuning_the_epoch_with_the_lowest_selection_loss_is_kept(recorded_epochs):
    network, epochs = train(TUNED)
    assert len(recorded_epochs) == len(epochs) == 5
    loss, weights = min(recorded_epochs, key=lambda pair: pair[0])
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    validation = make_striped_photos(80, seed=1)
    logits = scoring.compute_logits(network, validation, CPU_SETTINGS)
    chosen = validation.for_selection
    assert scoring.score(logits[chosen], validation.labels[chosen])[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_with_few_selection_photos_the_last_epoch_is_kept(recorded_epochs):
    network, _ = train(TUNED, held_out=2 * loop.MIN_SELECTION_PHOTOS - 4)
    assert [loss for loss, _ in recorded_epochs] == [None] * 5
    assert all(torch.equal(value, recorded_epochs[-1][1][name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_interrupted_fine_tuning_resumes_to_the_same_result(tmp_path):
    uninterrupted, _ = train(TUNED)
    file = tmp_path / "checkpoint"
    stream = loop.train(
        networks.build_network(TUNED, 2),
        TUNED,
        make_striped_photos(96),
        make_striped_photos(80, seed=1),
        CPU_SETTINGS,
        file,
    )
    for _ in range(2):
        next(stream)
    del stream
    resumed, epochs = train(TUNED, checkpoint=file)
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4, 5]
    assert have_same_weights(uninterrupted, resumed)


@pytest.mark.slow
def test_the_head_is_trained_first_and_an_interrupt_between_the_phases_changes_nothing(tmp_path):
    method = FineTune(
        train_from="layer4.0", head_epochs=2, head_learning_rate=1e-3, epochs=2, batch_size=16, learning_rate=1e-4
    )
    recipe = with_options(BASELINE, network="resnet10t", image_size=64, method=method)

    def run(checkpoint=None, epochs=4):
        network = networks.build_network(recipe, 2)
        start = {name: value.clone() for name, value in network.state_dict().items()}
        stream = loop.train(
            network,
            recipe,
            make_striped_photos(32, side=64),
            make_striped_photos(16, seed=1, side=64),
            CPU_SETTINGS,
            checkpoint,
        )
        for _ in range(epochs):
            next(stream)
        del stream
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
        return network, moved

    _, moved = run(epochs=2)
    assert moved == {"head.dense.weight", "head.dense.bias"}
    uninterrupted, moved = run()
    assert {name.split(".")[2] for name in moved if name.startswith("backbone.")} == {"layer4"}
    run(tmp_path / "checkpoint", epochs=2)  # interrupted between the two phases
    resumed, _ = run(tmp_path / "checkpoint", epochs=4)
    assert have_same_weights(uninterrupted, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "augmented"])
@pytest.mark.parametrize("stop", [1, 3])
def test_resuming_from_a_checkpoint_gives_the_same_bits(name, stop, tmp_path):
    recipe = recipes.get_recipe(name, image_size=46, batch_size=16, epochs=4, learning_rate=1e-3)
    uninterrupted, all_epochs = train(recipe, checkpoint=tmp_path / "whole")
    stream = loop.train(
        networks.build_network(recipe, 2),
        recipe,
        make_striped_photos(96),
        make_striped_photos(80, seed=1),
        CPU_SETTINGS,
        tmp_path / "stopped",
    )
    for _ in range(stop):
        next(stream)
    del stream
    resumed, epochs = train(recipe, checkpoint=tmp_path / "stopped")
    assert have_same_weights(uninterrupted, resumed)
    untimed = [
        (epoch.epoch, epoch.train_loss, epoch.train_accuracy, epoch.val_loss, epoch.val_accuracy) for epoch in epochs
    ]
    assert untimed == [
        (epoch.epoch, epoch.train_loss, epoch.train_accuracy, epoch.val_loss, epoch.val_accuracy)
        for epoch in all_epochs
    ]


@pytest.mark.slow
def test_the_first_loss_in_bfloat16_is_about_that_in_float32():
    half = device.DeviceSettings("cpu", "bfloat16", 2, "system default")
    recipe = with_options(BASELINE, epochs=1, batch_size=96)
    assert train(recipe, half)[1][0].train_loss == pytest.approx(train(recipe)[1][0].train_loss, rel=0.01)


@pytest.mark.slow
def test_a_nan_loss_is_an_error_with_advice():
    with pytest.raises(RecipeError, match="became NaN or infinite") as refusal:
        train(with_options(BASELINE, learning_rate=1e30))
    assert "learning-rate" in str(refusal.value)


@pytest.mark.slow
def test_a_last_step_that_makes_weights_nan_is_detected():
    # There is only one step, whose loss is still finite.
    recipe = with_options(BASELINE, learning_rate=1e20, epochs=1, batch_size=96)
    with pytest.raises(RecipeError, match="became NaN or infinite"):
        train(recipe)


@pytest.mark.slow
def test_a_last_batch_of_one_photo_is_merged_where_batchnorm_is_trained():
    recipe = recipes.get_recipe("baseline", network="resnet18", image_size=32, batch_size=4, epochs=1)
    keras = with_options(recipe, network="keras_inception_v3", truncate_at="mixed2", image_size=75)
    for tested_recipe in (recipe, keras):
        photos = (
            make_striped_photos(9, side=tested_recipe.image_size),
            make_striped_photos(4, 1, side=tested_recipe.image_size),
        )
        (epoch,) = loop.train(networks.build_network(tested_recipe, 2), tested_recipe, *photos, CPU_SETTINGS)
        assert np.isfinite(epoch.train_loss)
    for count, sizes in ((9, [4, 5]), (10, [4, 4, 2]), (8, [4, 4]), (1, [1])):
        photos = make_striped_photos(count, side=32)
        assert [
            len(labels)
            for _, labels in EpochProgress(recipe, 1, photos, "cpu", avoid_single_photo_batches=True).iterate_batches()
        ] == sizes
        alone = [len(labels) for _, labels in EpochProgress(recipe, 1, photos, "cpu").iterate_batches()]
        assert (max(alone), sum(alone)) == (min(4, count), count)


@pytest.mark.parametrize(
    ("name", "choices", "learns"),
    [
        ("baseline", {}, False), ("baseline", {"network": "resnet18"}, True), ("frozen", {}, False), ("finetuned", {}, True),
        ("good", {}, False), ("good", {"network": "keras_inception_v3"}, True),
    ],
)  # fmt: skip
def test_batches_of_one_photo_are_refused_where_batchnorm_is_trained(name, choices, learns):
    recipe = recipes.get_recipe(name, **choices)
    assert parameter_groups.uses_batch_statistics(recipe, recipe.trainable) == learns
    alone = with_options(recipe, batch_size=1)
    if learns:
        with pytest.raises(RecipeError, match="batches of one photo"):
            networks.fill_defaults(alone)
    else:
        assert networks.fill_defaults(alone).gradient_method.batch_size == 1


@pytest.mark.slow
def test_the_last_batch_of_an_epoch_is_weighted_by_its_photos():
    photos = make_striped_photos(33)
    network = networks.build_network(BASELINE, 2)
    frozen = with_options(BASELINE, learning_rate=1e-30, epochs=1, batch_size=32)
    (epoch,) = loop.train(network, frozen, photos, make_striped_photos(0), CPU_SETTINGS)
    loss, accuracy = scoring.score(scoring.compute_logits(network, photos, CPU_SETTINGS), photos.labels)
    assert epoch.train_loss == pytest.approx(loss, rel=1e-5)
    assert epoch.train_accuracy == pytest.approx(accuracy)
    assert epoch.val_loss is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * len(data)]
)
def test_a_damaged_checkpoint_is_refused_by_name(damage, tmp_path):
    file = tmp_path / "checkpoint"
    next(
        loop.train(
            networks.build_network(BASELINE, 2),
            BASELINE,
            make_striped_photos(32),
            make_striped_photos(8),
            CPU_SETTINGS,
            file,
        )
    )
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError, match="checkpoint"):
        train(checkpoint=file)


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    file = tmp_path / "checkpoint"
    next(
        loop.train(
            networks.build_network(BASELINE, 2),
            BASELINE,
            make_striped_photos(32),
            make_striped_photos(8),
            CPU_SETTINGS,
            file,
        )
    )
    with pytest.raises(RunError, match="checkpoint"):
        next(
            loop.train(
                networks.build_network(BASELINE, 3),
                BASELINE,
                make_striped_photos(32),
                make_striped_photos(8),
                CPU_SETTINGS,
                file,
            )
        )


def test_a_failed_write_of_a_checkpoint_leaves_the_last_one(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint"
    saved = checkpoints.TrainingState([], networks.build_network(BASELINE, 2).state_dict())
    checkpoints.save(file, saved)
    before = file.read_bytes()

    def half_written(_, place, *rest):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", half_written)
    with pytest.raises(MachineError, match="disk is full"):
        checkpoints.save(file, saved)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_photos_too_small_for_the_network_are_refused():
    with pytest.raises(RecipeError, match="too small for the tutorial's network"):
        networks.build_network(recipes.get_recipe("baseline", image_size=30), 2)


def test_augmentation_with_zero_ranges_changes_nothing():
    photos = torch.from_numpy(make_striped_photos(4).pixels).permute(0, 3, 1, 2)
    still = augmentation.augment(photos, Augmentation(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, photos.float(), atol=0.01, rtol=0)


def test_a_flip_mirrors_about_half_of_the_photos():
    photos = torch.from_numpy(make_striped_photos(64).pixels).permute(0, 3, 1, 2)
    changed = augmentation.augment(photos, Augmentation(flip=True), torch.Generator().manual_seed(0))
    mirrored = torch.tensor(
        [torch.allclose(a, b.flip(-1).float(), atol=0.01) for a, b in zip(changed, photos, strict=True)]
    )
    same_as_before = torch.tensor(
        [torch.allclose(a, b.float(), atol=0.01) for a, b in zip(changed, photos, strict=True)]
    )
    assert (mirrored | same_as_before).all()
    assert 16 < int(mirrored.sum()) < 48


def test_the_precision_is_measured_once_and_then_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_list_candidate_precisions", lambda _: dict.fromkeys(device.DTYPES, "measured"))
    asked = []

    def trial(setting):
        asked.append(setting.precision)
        return {"float32": 0.02, "bfloat16": 0.01}[setting.precision]

    first = precision.select_precision(CPU_SETTINGS, "auto", "a network", trial)
    again = precision.select_precision(CPU_SETTINGS, "auto", "a network", trial)
    assert asked == ["float32", "bfloat16"]
    assert first == again
    assert first.precision == "bfloat16"
    assert "100 photos/s" in first.reasons["precision"]
    assert precision.select_precision(CPU_SETTINGS, "float32", "a network", trial).precision == "float32"
    another = precision.select_precision(CPU_SETTINGS, "auto", "another network", trial)
    assert dataclasses.replace(another, measurement_id=first.measurement_id) == first
    assert len(asked) == 4


def test_a_trial_beside_other_work_is_used_until_a_run_is_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))

    def measured():
        return precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.5)

    setting = measured()
    precision.record_faster_speed(setting, 0.75)
    assert precision.get_seconds_per_photo(setting) == measured().seconds_per_photo == 0.5
    precision.record_faster_speed(setting, 0.4375)
    assert precision.get_seconds_per_photo(setting) == measured().seconds_per_photo == 0.4375
    # This precision was never measured.
    precision.record_faster_speed(dataclasses.replace(setting, precision="bfloat16"), 0.01)
    assert precision.get_seconds_per_photo(setting) == 0.4375
    elsewhere = dataclasses.replace(setting, threads=77)  # another machine with the same cache
    precision.record_faster_speed(elsewhere, 0.001)
    assert precision.get_seconds_per_photo(setting) == 0.4375
    (tmp_path / "measurements" / f"{setting.measurement_id}.json").unlink()
    assert precision.get_seconds_per_photo(setting) == 0.5


class Selector:
    """Selects a precision by given seconds per photo, and counts the trials."""

    def __init__(self):
        self.trials = 0

    def __call__(self, **seconds):
        def trial(candidate):
            self.trials += 1
            return seconds[candidate.precision]

        return precision.select_precision(CPU_SETTINGS, "auto", "a network", trial)


@pytest.fixture
def select_from(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_list_candidate_precisions", lambda _: dict.fromkeys(device.DTYPES, "measured"))
    return Selector()


def test_a_little_more_speed_than_in_the_trial_changes_no_precision(select_from):
    first = select_from(float32=1.0, bfloat16=0.9)
    precision.record_faster_speed(dataclasses.replace(first, precision="float32"), 0.85)
    again = select_from(float32=9.0, bfloat16=9.0)
    assert (again.precision, again.seconds_per_photo, select_from.trials) == ("bfloat16", 0.9, 2)


def test_a_run_much_faster_than_the_trial_makes_the_next_run_measure_again(select_from):
    busy = select_from(float32=0.6, bfloat16=0.7)
    assert busy.precision == "float32"
    precision.record_faster_speed(busy, 0.18)
    assert precision.get_seconds_per_photo(busy) == 0.18
    assert select_from(float32=0.18, bfloat16=0.1).precision == "bfloat16"
    # The later trial is used from now on: another run of that speed does not discard it.
    precision.record_faster_speed(busy, 0.18)
    again = select_from(float32=9.0, bfloat16=9.0)
    assert precision.get_seconds_per_photo(again) == again.seconds_per_photo == 0.1


def test_a_later_trial_that_was_faster_than_a_run_is_used(select_from):
    first = select_from(float32=0.6, bfloat16=0.7)
    precision.record_faster_speed(first, 0.18)
    again = select_from(float32=0.15, bfloat16=0.7)
    assert precision.get_seconds_per_photo(again) == again.seconds_per_photo == 0.15


def test_a_speed_measured_beside_other_processes_is_not_cached(select_from, monkeypatch):
    monkeypatch.setattr(precision.WaitMeter, "is_contended", True)
    assert select_from(float32=0.6, bfloat16=0.7).precision == "float32"
    assert select_from.trials == 2 * precision.CONTENDED_TRIALS
    monkeypatch.setattr(precision.WaitMeter, "is_contended", False)
    assert select_from(float32=0.2, bfloat16=0.1).precision == "bfloat16"


@pytest.mark.parametrize(
    ("threads", "busy", "left"),
    [(2, 0.0, 2), (2, 0.4, 2), (2, 0.67, 1), (2, 5.0, 1), (8, 1.0, 7), (8, 3.6, 4), (1, 1.0, 1)],
)
def test_training_leaves_out_processors_that_others_use(monkeypatch, threads, busy, left):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "count_threads", lambda: threads)
    monkeypatch.setattr(device, "estimate_competing_processors", lambda: busy)
    count, reason = device._leave_busy_processors(threads, "all")
    assert count == left
    assert ("other processes" in reason) == (left < threads)


@pytest.mark.parametrize(("value", "is_reason"), [("1", True), ("many", False), (None, False)])
def test_the_reason_for_the_number_of_threads_names_the_variable_that_set_it(value, is_reason):
    environment = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": value} if value else {}
    command = "from ikebana.learning import device; print(*device._count_threads())"
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert ("set by OMP_NUM_THREADS" in done.stdout) == is_reason
    assert done.stdout.startswith("1 ") or not is_reason


def test_the_users_number_of_threads_is_kept_beside_other_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(device, "estimate_competing_processors", lambda: 9.0)
    assert device._leave_busy_processors(2, "all") == (2, "all")


def test_a_precision_that_runs_out_of_memory_is_skipped_and_retried_later(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_list_candidate_precisions", lambda _: dict.fromkeys(device.DTYPES, "measured"))
    full = ["float32"]

    def trial(setting):
        if setting.precision in full:
            raise MachineError(f"no room for {setting.precision}")
        return {"float32": 0.01, "bfloat16": 0.02}[setting.precision]

    selected = precision.select_precision(CPU_SETTINGS, "auto", "a network", trial)
    assert selected.precision == "bfloat16"
    assert selected.reasons["precision"] == "float32 needs more memory; bfloat16 50 photos/s"
    with pytest.raises(MachineError, match="no room for float32"):
        precision.select_precision(CPU_SETTINGS, "float32", "a network", trial)
    full.append("bfloat16")
    with pytest.raises(MachineError, match="no room for float32"):
        precision.select_precision(CPU_SETTINGS, "auto", "another network", trial)
    full.clear()
    assert precision.select_precision(CPU_SETTINGS, "auto", "a network", trial).precision == "float32"


def test_a_damaged_measurement_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.5)
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_text("{", "utf-8")
    assert precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.25).seconds_per_photo == 0.25


CROP_ONLY = Augmentation(crop_area=0.3)


def compute_corners(maps, side):
    """Compute where the corner pixels are sampled: [count, 4, 2].

    In pixels from the photo's centre.
    """
    edge = (side - 1) / 2
    places = torch.tensor([[x, y, 1.0] for x in (-edge, edge) for y in (-edge, edge)], dtype=maps.dtype)
    return torch.einsum("cij,pj->cpi", maps, places)


def test_a_random_crop_is_within_the_photo_and_has_the_requested_area():
    maps = augmentation.draw_affine_maps(500, 64, CROP_ONLY, torch.Generator().manual_seed(0))
    positions = compute_corners(maps, 64)
    assert positions.abs().max() <= 1.11 * 32  # the most elongated of the largest crops extend by a tenth
    area = (maps[:, 0, 0] * maps[:, 1, 1]).abs()
    assert 0.3 <= area.min() < 0.35
    assert 0.95 < area.max() <= 1
    assert (positions.mean(1).std(0) > 2).all()  # not always the centre


def test_brightness_and_contrast_changes_are_within_their_ranges():
    photos = torch.full((200, 3, 4, 4), 100.0)
    photos[:, :, :2] = 120
    lit = augmentation.jitter_contrast_and_brightness(photos.clone(), 0.2, torch.Generator().manual_seed(0))
    brightness = lit.mean((1, 2, 3)) / 110
    assert 0.8 <= brightness.min() < 0.83
    assert 1.17 < brightness.max() <= 1.2
    contrast = (lit[:, 0, 0, 0] - lit[:, 0, 3, 0]) / 20 / brightness
    assert 0.8 <= contrast.min() < 0.83
    assert 1.17 < contrast.max() <= 1.2


def test_augmented_photos_stay_between_black_and_white():
    photos = torch.rand((8, 3, 16, 16), generator=torch.Generator().manual_seed(0)) * 255
    lit = augmentation.jitter_contrast_and_brightness(photos, 0.9, torch.Generator().manual_seed(0))
    assert lit.min() >= 0
    assert lit.max() <= 255


HALF_CONVOLUTION = """
import torch
from ikebana.learning import device
photos, weight = (torch.zeros(size, dtype=torch.bfloat16) for size in ((1, 3, 8, 8), (4, 3, 3, 3)))
try:
    torch.nn.functional.conv2d(photos, weight.requires_grad_())
except RuntimeError:
    print(False, device.can_convolve_bfloat16())
else:
    print(True, device.can_convolve_bfloat16())
"""


def test_bfloat16_is_not_selected_where_it_cannot_be_computed(monkeypatch):
    monkeypatch.setattr(precision, "can_convolve_bfloat16", lambda: False)
    monkeypatch.setattr(device, "can_convolve_bfloat16", lambda: False)
    assert precision.select_precision(CPU_SETTINGS, "auto", "a network", lambda _: 0.01).precision == "float32"
    with pytest.raises(RecipeError, match="cannot compute convolutions in bfloat16"):
        precision.select_precision(CPU_SETTINGS, "bfloat16", "a network", lambda _: pytest.fail("it was tried"))


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_detected_bfloat16_support_agrees_with_a_convolution(isa):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", HALF_CONVOLUTION], capture_output=True, text=True, check=True, env=environment
    )
    can, known = done.stdout.split()
    assert known in (can, "False")  # torch may have a slower fallback
