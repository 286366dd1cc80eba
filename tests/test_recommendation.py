"""The rules of the recommendation, and the photos that the probe uses."""

import contextvars
import html
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from support.images import encode_photo, two_classes, write_files

import ikebana
from ikebana import cli, recipes
from ikebana.auditing import recommendation
from ikebana.auditing.recommendation import (
    MIN_PHOTOS_PER_CLASS_FOR_ALL,
    MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING,
    PhotoCounts,
)
from ikebana.commands import audit as audit_command
from ikebana.data.split import get_selection_mask
from ikebana.demo_data import paper_flowers
from ikebana.evaluation.learning_curves import Forecast, LearningCurve
from ikebana.learning import folds
from ikebana.learning.features import depth_probe
from ikebana.learning.features.depth_probe import DEPTH_NAMES, AccuracyEstimate, ProbeResult
from ikebana.system.cache_folder import cache_folder

pytestmark = pytest.mark.usefixtures("shared_cache")

LEVELS = ("head", "last_stages", "all")
TOO_FEW_PHOTOS, SUFFICIENT_PHOTOS, PLENTIFUL_PHOTOS = (
    MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING // 2,
    (MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING + MIN_PHOTOS_PER_CLASS_FOR_ALL) // 2,
    4 * MIN_PHOTOS_PER_CLASS_FOR_ALL,
)


def make_evidence(best=0.8, lead=0.1, error=0.005, scored_photos=1000, doubling=0.02):
    """Make the evidence of a probe."""
    cuts: dict[str, AccuracyEstimate] = dict(
        zip(DEPTH_NAMES, [AccuracyEstimate(value, error) for value in (0.3, 0.4, best - lead, best)], strict=True)
    )
    halves = AccuracyEstimate(best - doubling, error), AccuracyEstimate(best - 2 * doubling, error)
    return ProbeResult(
        scored_photos, 0.2, cuts, AccuracyEstimate(lead, error), *halves, AccuracyEstimate(doubling, error)
    )


def make_supply(a_class, smallest=None):
    return PhotoCounts(
        photos=6 * a_class, test_photos=a_class, median_per_class=a_class, smallest=("rose", smallest or a_class)
    )


def get_recommendation(evidence, photos):
    return recommendation.recommend(evidence, photos, "my photos", {})


LIKE, UNLIKE, SOLVED = make_evidence(), make_evidence(lead=-0.05), make_evidence(best=0.995)


@pytest.mark.parametrize(
    ("evidence", "a_class", "expected"),
    [
        (LIKE, TOO_FEW_PHOTOS, "head"),
        (LIKE, SUFFICIENT_PHOTOS, "last_stages"),
        (LIKE, PLENTIFUL_PHOTOS, "last_stages"),
        (UNLIKE, TOO_FEW_PHOTOS, "head"),
        (UNLIKE, SUFFICIENT_PHOTOS, "last_stages"),
        (UNLIKE, PLENTIFUL_PHOTOS, "all"),
        (SOLVED, PLENTIFUL_PHOTOS, "head"),
        (make_evidence(best=0.99, lead=-0.005), PLENTIFUL_PHOTOS, "head"),
        # An earlier depth may be as good, but the error is too large to know.
        (
            make_evidence(lead=0.0, error=0.05),
            PLENTIFUL_PHOTOS,
            "last_stages",
        ),
    ],
)
def test_the_cases_of_the_textbook_chapter_get_its_answers(evidence, a_class, expected):
    assert get_recommendation(evidence, make_supply(a_class)).trainable == expected


@given(
    best=some.floats(0, 1),
    lead=some.floats(-0.5, 0.5),
    error=some.floats(0.001, 0.1),
    a_class=some.tuples(some.integers(0, 400), some.integers(0, 400)),
    worse=some.floats(1, 10),
)
def test_fewer_photos_never_recommend_training_more_layers(best, lead, error, a_class, worse):
    fewer, more = sorted(a_class)
    with_more = recommendation.choose_trainable(make_evidence(best, lead, error), make_supply(more))
    with_fewer = recommendation.choose_trainable(make_evidence(best, lead, error * worse), make_supply(fewer))
    assert LEVELS.index(with_fewer) <= LEVELS.index(with_more)


@pytest.mark.parametrize("level", LEVELS)
def test_the_recommended_command_has_an_existing_recipe(level):
    advice = replace(get_recommendation(LIKE, make_supply(SUFFICIENT_PHOTOS)), trainable=level)
    assert advice.recipe in recipes.RECIPES
    assert advice.command == f"ikebana fit 'my photos' --recipe {advice.recipe}"
    assert advice.command in repr(advice)


def test_confidence_is_low_if_there_is_a_caveat():
    assert not get_recommendation(LIKE, make_supply(PLENTIFUL_PHOTOS)).caveats
    assert not get_recommendation(UNLIKE, make_supply(TOO_FEW_PHOTOS // 2)).caveats
    for doubtful in (
        get_recommendation(make_evidence(scored_photos=40), make_supply(SUFFICIENT_PHOTOS)),
        get_recommendation(LIKE, make_supply(MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING)),  # just enough for the last stages
        get_recommendation(UNLIKE, make_supply(PLENTIFUL_PHOTOS)),  # compare
        # At the limit between similar to ImageNet and not.
        get_recommendation(make_evidence(lead=0.02), make_supply(PLENTIFUL_PHOTOS)),
        get_recommendation(make_evidence(best=0.205), make_supply(PLENTIFUL_PHOTOS)),  # no better than guessing
        get_recommendation(LIKE, make_supply(PLENTIFUL_PHOTOS, smallest=2)),
    ):
        assert doubtful.caveats
        assert re.search(r"confidence +low", repr(doubtful))


def test_the_advice_on_more_photos_follows_from_the_gain_of_doubling():
    (gain,) = get_recommendation(make_evidence(doubling=0.03), make_supply(PLENTIFUL_PHOTOS)).more_photos
    (no_gain,) = get_recommendation(make_evidence(doubling=0.001), make_supply(PLENTIFUL_PHOTOS)).more_photos
    assert "would help" in gain
    assert "hardly help" in no_gain


def make_curve(name, low, high, present=0.8):
    values, forecast = (present - 0.1, present - 0.05, present), Forecast(100, present + low, present + high)
    return LearningCurve(name, (50, 100, 200), values, ((0.7, 0.9),) * 3, forecast)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.05, "would help"),
        (-0.01, 0.05, "may help"),
        (-0.01, 0.015, "may or may not help"),
        (-0.01, 0.005, "hardly help"),
    ],
)
def test_the_advice_on_more_photos_names_the_classes_that_gain_most(low, high, verdict):
    curves = (
        make_curve("", low, high),
        make_curve("iris", -0.02, 0.0),
        make_curve("rose", 0.01, 0.03),
        make_curve("tulip", 0.03, 0.07),
    )
    advice = recommendation.recommend(make_evidence(), make_supply(PLENTIFUL_PHOTOS), "photos", {}, curves)
    overall, *by_class = advice.more_photos
    assert verdict in overall
    assert [text.split(" may")[0] for text in by_class] == ["100 more photos of tulip", "100 more photos of rose"]
    assert "100 more photos of tulip may change its recall by +3.0 to +7.0 points" in repr(advice)
    assert advice.to_json()["learning_curves"][3]["forecast"]["low"] == pytest.approx(0.83)


def draw_clouds(count, apart, width=10, classes=3, seed=0):
    """Draw features of classes at this distance."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    features = numbers.normal(size=(count, width))
    features[np.arange(count), labels] += apart
    return features.astype(np.float32), labels.astype(np.int64)


def probe(cuts, labels, groups=None):
    groups = np.arange(len(labels)) if groups is None else np.array(groups)
    return depth_probe.evaluate_depths(cuts, labels, groups, folds.make_scoring_folds(labels, groups, "photos"))


@pytest.mark.slow
@pytest.mark.parametrize("winner", [0, 1, 3])
def test_the_depth_with_the_most_information_is_recommended(winner):
    cuts = [draw_clouds(150, 3.0 if number == winner else 1.0, seed=number)[0] for number in range(4)]
    evidence = probe(cuts, draw_clouds(150, 1.0)[1])
    assert (
        max(evidence.accuracy_by_depth, key=lambda name: evidence.accuracy_by_depth[name].value) == DEPTH_NAMES[winner]
    )
    assert (evidence.last_depth_gain.value > 0) == (winner == 3)
    assert abs(evidence.last_depth_gain.value) > 2 * evidence.last_depth_gain.standard_error


@pytest.mark.slow
def test_random_labels_score_as_guessing_even_with_duplicates():
    features, _ = draw_clouds(100, 0.0, width=100)
    labels = np.random.default_rng(5).integers(0, 3, 100)
    doubled, both = np.concatenate((features, features)), np.concatenate((labels, labels))
    honest = probe([doubled] * 4, both, [*range(100), *range(100)])
    assert honest.last_depth_accuracy.value < 0.5
    assert probe([doubled] * 4, both).last_depth_accuracy.value > 0.7  # the score of a split that separates duplicates


@pytest.mark.slow
def test_fewer_training_photos_score_lower_and_the_standard_error_covers_chance():
    draws = [draw_clouds(240, 2.0, width=60, seed=seed)[0] for seed in range(4)]
    evidence = probe(draws, draw_clouds(240, 2.0)[1])
    assert evidence.quarter_data_accuracy.value < evidence.half_data_accuracy.value < evidence.last_depth_accuracy.value
    assert evidence.doubling_gain.value == pytest.approx(
        evidence.last_depth_accuracy.value - evidence.half_data_accuracy.value
    )
    spread = np.std([estimate.value for estimate in evidence.accuracy_by_depth.values()], ddof=1)
    assert evidence.last_depth_accuracy.standard_error / 4 < spread < evidence.last_depth_accuracy.standard_error * 4
    perfect = probe([draw_clouds(30, 50.0)[0]] * 4, draw_clouds(30, 1)[1])
    assert perfect.last_depth_accuracy.value == 1
    assert perfect.last_depth_accuracy.standard_error > 0.01  # 30 of 30 do not prove an accuracy of 1


def test_the_standard_error_is_right_for_correlated_photos_of_a_group():
    """The accuracy within each group is drawn from Beta(9, 1)."""
    numbers, group, estimates = np.random.default_rng(0), np.repeat(np.arange(20), 20), []
    for _ in range(300):
        right = numbers.random(400) < numbers.beta(9, 1, 20)[group]
        estimates.append(depth_probe._estimate_accuracy(right, group))
    real = np.std([estimate.value for estimate in estimates])
    assert real / 1.3 < np.mean([estimate.standard_error for estimate in estimates]) < 1.3 * real
    alone = depth_probe._estimate_accuracy(np.arange(400) % 10 > 0, np.arange(400))
    assert alone.standard_error < real / 1.3


@pytest.mark.slow
def test_every_photo_is_scored_once_even_if_a_class_has_only_one():
    labels = np.array([0] * 9 + [1] * 9 + [2], np.int64)
    fold_numbers = folds.make_scoring_folds(labels, np.arange(19), "photos")
    assert sorted(np.concatenate([left for _, left in fold_numbers])) == list(range(19))
    assert probe([draw_clouds(19, 1.0)[0]] * 4, labels).scored_photos == 19


def test_a_sample_of_many_photos_keeps_class_proportions_and_duplicates_together():
    from ikebana.learning.examples import PhotoExamples

    labels = np.array([0] * 600 + [1] * 300 + [2] * 100)
    rows = np.arange(1000)
    photos = PhotoExamples(np.zeros((1000, 2, 2, 3), np.uint8), rows, labels, np.zeros(1000, bool), np.arange(1000))
    twin = [row - row % 2 for row in range(1000)]
    chosen, groups = depth_probe.sample_photos(photos, twin, max_photos=200)
    assert np.abs(np.bincount(chosen.labels) - [120, 60, 20]).max() <= 1
    assert [twin[row] for row in chosen.rows] == groups.tolist()
    assert {row ^ 1 for row in chosen.rows} == set(chosen.rows)
    assert len(depth_probe.sample_photos(photos, twin, max_photos=1000)[0]) == 1000


def test_the_probed_features_are_the_outputs_of_the_blocks():
    import torch

    from ikebana.learning.models import networks

    small = recipes.get_recipe("quick", image_size=64)
    backbone = networks.build_network(small, 2).get_submodule("backbone").eval()
    outputs = {}
    for name in ("blocks.1", "blocks.2", "blocks.4"):
        backbone.get_submodule(f"network.{name}").register_forward_hook(
            lambda _, __, maps, name=name: outputs.update({name: maps})
        )
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        depths = depth_probe.DepthFeatures(backbone)
        *earlier, last = depths.split_by_depth(depths(photos).numpy())
        np.testing.assert_allclose(last, backbone(photos).numpy(), rtol=1e-5, atol=1e-6)
    for actual, maps in zip(earlier, outputs.values(), strict=True):
        expected = np.concatenate([maps.numpy().mean((2, 3)), maps.numpy().std((2, 3), ddof=1)], axis=1)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Use the default recipe on small photos in float32, which needs no speed measurement."""
    smaller = recipes.get_recipe("quick", image_size=64, precision="float32")
    monkeypatch.setattr(audit_command, "RECIPES", {**recipes.RECIPES, "quick": smaller})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=14)
    return folder


@pytest.mark.slow
def test_test_and_calibration_photos_are_never_used(drawn):
    looked = ikebana.audit(drawn, advise=True)
    parts = looked.dataset.photos["split"].to_numpy()
    # The audit caches the last layer of all photos. The wider features of the advice leave out sealed photos.
    files = cache_folder().glob("features/*/features.npy")
    widest = max(files, key=lambda file: np.load(file, mmap_mode="r").shape[1])
    is_computed = np.load(widest.with_name("checks.npy")) != 0
    validation = np.flatnonzero(parts == "validation")
    choosing = validation[get_selection_mask(looked.dataset.photos[validation])]
    assert 0 < len(choosing) < len(validation)
    assert set(np.flatnonzero(is_computed)) == {*np.flatnonzero(parts == "train"), *choosing}
    assert "test photos are not used" in repr(looked.recommendation)


@pytest.mark.slow
def test_the_recommended_command_uses_the_written_table(drawn, tmp_path):
    looked = ikebana.audit(
        drawn, advise=True, write=tmp_path / "cleaned.csv", drop=["exact_duplicate", "near_duplicate"]
    )
    assert looked.recommendation is not None
    assert f"ikebana fit {tmp_path / 'cleaned.csv'} --recipe" in repr(looked)


@pytest.mark.slow
def test_a_second_call_computes_no_features_and_recommends_the_same(drawn, stages, tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))  # the module's cache has features of other tests
    first = ikebana.audit(drawn, advise=True)
    assert "extract features" in stages
    stages.clear()
    assert ikebana.audit(drawn, advise=True).recommendation == first.recommendation
    assert stages
    assert "extract features" not in stages
    assert first.recommendation is not None
    assert first.recommendation.trainable == "head"  # 8 training photos per class
    assert repr(first.recommendation) in repr(first)


def run_command(*arguments):
    """Run the command line, restore the process settings, and return the exit status."""
    with pytest.raises(SystemExit) as ended:
        contextvars.copy_context().run(cli.main, [str(argument) for argument in arguments])
    return ended.value.code


@pytest.mark.slow
def test_a_plain_audit_gives_no_advice_and_continues_without_the_network(drawn, monkeypatch, capsys):
    from ikebana.errors import MachineError
    from ikebana.learning.models import weight_loading

    def gone(_):
        raise MachineError("the weights are gone", advice="look elsewhere")

    monkeypatch.setattr(weight_loading, "resolve_weights", gone)
    assert run_command("audit", drawn) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "photos used" in err
    assert "labels and outliers are not checked: the weights are gone (look elsewhere)" in err
    assert "Advice" not in err


@pytest.mark.slow
def test_the_output_folder_has_the_page_afterwards(drawn, tmp_path, capsys):
    assert run_command("audit", drawn) == 0
    assert "--out DIR" in capsys.readouterr().err
    assert run_command("audit", drawn, "--out", tmp_path / "told") == 0
    assert "--out DIR" not in (output := capsys.readouterr().err)
    assert f"full list: {tmp_path / 'told' / audit_command.PAGE_FILE}" in output
    page = (tmp_path / "told" / audit_command.PAGE_FILE).read_text("utf-8")
    for finding in ikebana.audit(drawn).findings:
        assert html.escape(finding.evidence).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


@pytest.mark.slow
def test_the_last_line_for_scripts_is_the_command_to_run(drawn, capsys):
    assert run_command("audit", drawn, "--advise") == 0
    out, err = capsys.readouterr()
    assert out == f"ikebana fit {drawn} --recipe quick\n"
    assert DEPTH_NAMES[-1] in err
    assert run_command("audit", drawn, "--advise", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {event["event"]: event for event in events}
    assert by_name["recommendation"]["trainable"] == "head"
    assert set(by_name["recommendation"]["evidence"]["accuracy_by_depth"]) == set(DEPTH_NAMES)
    assert by_name["audit"]["used"] + by_name["audit"]["set_aside"] == by_name["audit"]["paths"]
    assert events[-1] == {"event": "done", "leaks": 0, "command": out.strip()}


@pytest.mark.slow
def test_leakage_between_given_splits_exits_with_3_and_is_reported(tmp_path, capsys):
    files = {
        f"{part}/{path}": data + part.encode() for part in ("train", "test") for path, data in two_classes().items()
    }
    files["test/a/copy.jpg"] = files["train/a/0.jpg"]
    assert run_command("audit", write_files(tmp_path / "photos", files)) == 3
    output = capsys.readouterr().err
    assert "test/a/copy.jpg, train/a/0.jpg" in output
    assert "test and train" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no photos"),
        ({"a/0.jpg": encode_photo(0), "a/1.jpg": encode_photo(1)}, "only one class"),
        (two_classes(1), "is left for the test split"),
        (two_classes(2), "are too few"),
        # Duplicates: one group per class.
        ({f"{name}/{number}.jpg": encode_photo(ord(name)) for name in "ab" for number in range(3)},
         "is left for the test split"),
        ({f"{part}/{name}/0.jpg": encode_photo(number) for number, (part, name) in enumerate([("train", "a"), ("test", "b")])},
         "only class a has training photos"),
    ],
)  # fmt: skip
def test_too_few_photos_for_advice_are_refused_with_a_message(files, message, tmp_path, capsys):
    assert run_command("audit", write_files(tmp_path / "photos", files), "--advise") == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert str(tmp_path) in err


@pytest.mark.slow
def test_a_class_of_two_photos_lowers_the_confidence_of_the_advice(tmp_path):
    files = two_classes(20) | {"c/0.jpg": encode_photo(900), "c/1.jpg": encode_photo(901)}
    advice = ikebana.audit(write_files(tmp_path / "photos", files), advise=True).recommendation
    assert advice is not None
    assert advice.trainable == "head"
    assert any("class c has 1 training photo" in caveat for caveat in advice.caveats)
