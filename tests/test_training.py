"""The training engine: it learns, it repeats itself, it refuses nonsense, and its checkpoint is whole or not there."""

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
from ikebana.learning.training import checkpoint, loop
from ikebana.learning.training.epoch_progress import EpochProgress
from ikebana.recipe import Augmentation, FineTune, with_options


def trained(recipe=BASELINE, setting=CPU_SETTINGS, kept=None, held_out=80):
    network = networks.build_network(recipe, 2)
    epochs = list(
        loop.train(network, recipe, make_striped_photos(96), make_striped_photos(held_out, seed=1), setting, kept)
    )
    return network, epochs


@pytest.mark.slow
def test_a_network_learns_visible_patterns_and_recognises_them_in_new_photos():
    _, epochs = trained(with_options(BASELINE, epochs=12))
    assert epochs[-1].val_accuracy is not None
    assert epochs[-1].val_accuracy > 0.9
    assert epochs[-1].train_loss < epochs[0].train_loss


@pytest.mark.slow
def test_labels_that_mean_nothing_cannot_be_learned():
    recipe = with_options(BASELINE, epochs=12)
    photos, held_out = make_striped_photos(96), make_striped_photos(200, seed=1)
    shuffled = np.random.default_rng(0).permutation(photos.labels)
    network = networks.build_network(recipe, 2)
    *_, last = loop.train(network, recipe, dataclasses.replace(photos, labels=shuffled), held_out, CPU_SETTINGS)
    assert last.val_accuracy is not None
    assert 0.3 < last.val_accuracy < 0.7


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits():
    assert have_same_weights(trained()[0], trained()[0])
    assert not have_same_weights(trained()[0], trained(with_options(BASELINE, seed=1))[0])


@pytest.fixture
def considered(monkeypatch):
    """What each epoch had to say for itself: its loss, and its weights."""
    found, real = [], loop.BestWeights.update

    def noted(best, loss, network):
        found.append((loss, {name: value.clone() for name, value in network.state_dict().items()}))
        real(best, loss, network)

    monkeypatch.setattr(loop.BestWeights, "update", noted)
    return found


@pytest.mark.slow
def test_with_tuning_the_epoch_counts_that_the_photos_for_choices_liked_best(considered):
    network, epochs = trained(TUNED)
    assert len(considered) == len(epochs) == 5
    loss, weights = min(considered, key=lambda each: each[0])
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    validation = make_striped_photos(80, seed=1)
    logits = scoring.compute_logits(network, validation, CPU_SETTINGS)
    chosen = validation.for_selection
    assert scoring.score(logits[chosen], validation.labels[chosen])[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_with_few_photos_for_choices_the_last_epoch_counts(considered):
    network, _ = trained(TUNED, held_out=2 * loop.MIN_SELECTION_PHOTOS - 4)
    assert [loss for loss, _ in considered] == [None] * 5
    assert all(torch.equal(value, considered[-1][1][name]) for name, value in network.state_dict().items())


@pytest.mark.slow
def test_a_tuning_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole, _ = trained(TUNED)
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
    resumed, epochs = trained(TUNED, kept=file)
    assert [each.epoch for each in epochs] == [1, 2, 3, 4, 5]
    assert have_same_weights(whole, resumed)


@pytest.mark.slow
def test_a_head_learns_first_where_the_recipe_says_so_and_a_stop_between_the_phases_changes_nothing(tmp_path):
    method = FineTune(
        train_from="layer4.0", head_epochs=2, head_learning_rate=1e-3, epochs=2, batch_size=16, learning_rate=1e-4
    )
    recipe = with_options(BASELINE, network="resnet10t", image_size=64, method=method)

    def run(kept=None, epochs=4):
        network = networks.build_network(recipe, 2)
        start = {name: value.clone() for name, value in network.state_dict().items()}
        stream = loop.train(
            network,
            recipe,
            make_striped_photos(32, side=64),
            make_striped_photos(16, seed=1, side=64),
            CPU_SETTINGS,
            kept,
        )
        for _ in range(epochs):
            next(stream)
        del stream
        moved = {name for name, value in network.state_dict().items() if not torch.equal(value, start[name])}
        return network, moved

    _, moved = run(epochs=2)
    assert moved == {"head.dense.weight", "head.dense.bias"}
    whole, moved = run()
    assert {name.split(".")[2] for name in moved if name.startswith("backbone.")} == {"layer4"}
    run(tmp_path / "checkpoint", epochs=2)  # stopped where one phase ends and the next has not begun
    resumed, _ = run(tmp_path / "checkpoint", epochs=4)
    assert have_same_weights(whole, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["baseline", "augmented"])
@pytest.mark.parametrize("stop", [1, 3])
def test_going_on_from_a_checkpoint_ends_in_the_same_bits(name, stop, tmp_path):
    recipe = recipes.get_recipe(name, image_size=46, batch_size=16, epochs=4, learning_rate=1e-3)
    whole, all_epochs = trained(recipe, kept=tmp_path / "whole")
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
    resumed, epochs = trained(recipe, kept=tmp_path / "stopped")
    assert have_same_weights(whole, resumed)
    untimed = [(each.epoch, each.train_loss, each.train_accuracy, each.val_loss, each.val_accuracy) for each in epochs]
    assert untimed == [
        (each.epoch, each.train_loss, each.train_accuracy, each.val_loss, each.val_accuracy) for each in all_epochs
    ]


@pytest.mark.slow
def test_bfloat16_computes_about_the_same_first_loss_as_float32():
    half = device.DeviceSettings("cpu", "bfloat16", 2, "system default")
    one = with_options(BASELINE, epochs=1, batch_size=96)
    assert trained(one, half)[1][0].train_loss == pytest.approx(trained(one)[1][0].train_loss, rel=0.01)


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_refused_with_advice():
    with pytest.raises(RecipeError, match="became NaN or infinite") as refusal:
        trained(with_options(BASELINE, learning_rate=1e30))
    assert "learning-rate" in str(refusal.value)


@pytest.mark.slow
def test_a_last_step_that_blows_the_network_up_is_noticed_too():
    recipe = with_options(
        BASELINE, learning_rate=1e20, epochs=1, batch_size=96
    )  # one step, whose loss was still a number
    with pytest.raises(RecipeError, match="became NaN or infinite"):
        trained(recipe)


@pytest.mark.slow
def test_a_single_last_photo_joins_the_batch_before_it_where_one_photo_has_no_spread():
    recipe = recipes.get_recipe("baseline", network="resnet18", image_size=32, batch_size=4, epochs=1)
    keras = with_options(recipe, network="keras_inception_v3", truncate_at="mixed2", image_size=75)
    for one in (recipe, keras):
        photos = make_striped_photos(9, side=one.image_size), make_striped_photos(4, 1, side=one.image_size)
        (epoch,) = loop.train(networks.build_network(one, 2), one, *photos, CPU_SETTINGS)
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
def test_batches_of_one_photo_are_refused_where_batchnorm_learns_from_them(name, choices, learns):
    recipe = recipes.get_recipe(name, **choices)
    assert parameter_groups.uses_batch_statistics(recipe, recipe.trainable) == learns
    alone = with_options(recipe, batch_size=1)
    if learns:
        with pytest.raises(RecipeError, match="batches of one photo"):
            networks.fill_defaults(alone)
    else:
        assert networks.fill_defaults(alone).gradient_method.batch_size == 1


@pytest.mark.slow
def test_the_last_batch_of_an_epoch_counts_with_the_photos_that_it_has():
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
        trained(kept=file)


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
    saved = checkpoint.TrainingState([], networks.build_network(BASELINE, 2).state_dict())
    checkpoint.save(file, saved)
    before = file.read_bytes()

    def half_written(_, place, *rest):
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", half_written)
    with pytest.raises(MachineError, match="disk is full"):
        checkpoint.save(file, saved)
    assert file.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint"]


def test_photos_too_small_for_the_network_are_refused():
    with pytest.raises(RecipeError, match="too small for the tutorial's network"):
        networks.build_network(recipes.get_recipe("baseline", image_size=30), 2)


def test_augmentation_that_may_change_nothing_changes_nothing():
    photos = torch.from_numpy(make_striped_photos(4).pixels).permute(0, 3, 1, 2)
    still = augmentation.augment(photos, Augmentation(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(still, photos.float(), atol=0.01, rtol=0)


def test_a_flip_alone_mirrors_about_half_of_the_photos():
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


def test_the_format_is_measured_once_and_then_remembered(tmp_path, monkeypatch):
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


def test_a_trial_beside_other_work_is_believed_until_it_goes_faster(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))

    def measured():
        return precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.5)

    setting = measured()
    precision.record_faster_speed(setting, 0.75)
    assert precision.get_seconds_per_photo(setting) == measured().seconds_per_photo == 0.5
    precision.record_faster_speed(setting, 0.4375)
    assert precision.get_seconds_per_photo(setting) == measured().seconds_per_photo == 0.4375
    precision.record_faster_speed(dataclasses.replace(setting, precision="bfloat16"), 0.01)  # nobody has timed it
    assert precision.get_seconds_per_photo(setting) == 0.4375
    elsewhere = dataclasses.replace(setting, threads=77)  # another machine that has the same cache
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
    # The later trial counts for good: as fast a run as before does not discard it.
    precision.record_faster_speed(busy, 0.18)
    again = select_from(float32=9.0, bfloat16=9.0)
    assert precision.get_seconds_per_photo(again) == again.seconds_per_photo == 0.1


def test_a_later_trial_that_was_faster_than_a_run_counts(select_from):
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
def test_training_does_without_the_threads_whose_processors_others_use(monkeypatch, threads, busy, left):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "count_threads", lambda: threads)
    monkeypatch.setattr(device, "estimate_competing_processors", lambda: busy)
    count, reason = device._leave_busy_processors(threads, "all")
    assert count == left
    assert ("other processes" in reason) == (left < threads)


def test_the_users_number_of_threads_is_kept_beside_other_processes(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(device, "estimate_competing_processors", lambda: 9.0)
    assert device._leave_busy_processors(2, "all") == (2, "all")


def test_a_format_that_memory_does_not_hold_is_left_and_tried_again_another_day(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    monkeypatch.setattr(precision, "_list_candidate_precisions", lambda _: dict.fromkeys(device.DTYPES, "measured"))
    full = ["float32"]

    def trial(setting):
        if setting.precision in full:
            raise MachineError(f"no room for {setting.precision}")
        return {"float32": 0.01, "bfloat16": 0.02}[setting.precision]

    found = precision.select_precision(CPU_SETTINGS, "auto", "a network", trial)
    assert found.precision == "bfloat16"
    assert found.reasons["precision"] == "float32 needs more memory; bfloat16 50 photos/s"
    with pytest.raises(MachineError, match="no room for float32"):
        precision.select_precision(CPU_SETTINGS, "float32", "a network", trial)
    full.append("bfloat16")
    with pytest.raises(MachineError, match="no room for float32"):
        precision.select_precision(CPU_SETTINGS, "auto", "another network", trial)
    full.clear()
    assert precision.select_precision(CPU_SETTINGS, "auto", "a network", trial).precision == "float32"


def test_a_damaged_measurement_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))
    precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.5)
    (file,) = (tmp_path / "measurements").iterdir()
    file.write_text("{", "utf-8")
    assert precision.select_precision(CPU_SETTINGS, "float32", "a network", lambda _: 0.25).seconds_per_photo == 0.25


PART = Augmentation(crop_area=0.3)


def corners(maps, side):
    """Where the middles of the four corner pixels are taken from, in pixels from the photo's centre: [count, 4, 2]."""
    edge = (side - 1) / 2
    places = torch.tensor([[x, y, 1.0] for x in (-edge, edge) for y in (-edge, edge)], dtype=maps.dtype)
    return torch.einsum("cij,pj->cpi", maps, places)


def test_a_part_of_a_photo_lies_within_it_and_has_the_area_that_was_asked():
    maps = augmentation.draw_affine_maps(500, 64, PART, torch.Generator().manual_seed(0))
    found = corners(maps, 64)
    assert found.abs().max() <= 1.11 * 32  # the most elongated of the largest parts reach a tenth beyond
    area = (maps[:, 0, 0] * maps[:, 1, 1]).abs()
    assert 0.3 <= area.min() < 0.35
    assert 0.95 < area.max() <= 1
    assert (found.mean(1).std(0) > 2).all()  # not always the centre


def test_other_light_changes_no_photo_beyond_its_reach():
    photos = torch.full((200, 3, 4, 4), 100.0)
    photos[:, :, :2] = 120
    lit = augmentation.jitter_contrast_and_brightness(photos.clone(), 0.2, torch.Generator().manual_seed(0))
    brightness = lit.mean((1, 2, 3)) / 110
    assert 0.8 <= brightness.min() < 0.83
    assert 1.17 < brightness.max() <= 1.2
    contrast = (lit[:, 0, 0, 0] - lit[:, 0, 3, 0]) / 20 / brightness
    assert 0.8 <= contrast.min() < 0.83
    assert 1.17 < contrast.max() <= 1.2


def test_photos_stay_within_black_and_white():
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
def test_what_is_known_of_bfloat16_is_what_a_convolution_does(isa):
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", HALF_CONVOLUTION], capture_output=True, text=True, check=True, env=environment
    )
    can, known = done.stdout.split()
    assert known in (can, "False")  # torch may have a slower way of its own
