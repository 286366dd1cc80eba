"""Head, tail or everything: the rules keep their word, and the probe sees what it may and nothing else."""

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
from ikebana.learning import folds
from ikebana.learning.features import depth_probe
from ikebana.learning.features.depth_probe import DEPTH_NAMES, AccuracyEstimate, ProbeResult
from ikebana.system.cache_folder import cache_folder

pytestmark = pytest.mark.usefixtures("shared_cache")

LEVELS = ("head", "last_stages", "all")
LITTLE, ENOUGH, PLENTY = (
    MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING // 2,
    (MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING + MIN_PHOTOS_PER_CLASS_FOR_ALL) // 2,
    4 * MIN_PHOTOS_PER_CLASS_FOR_ALL,
)  # training photos a class


def shown(best=0.8, lead=0.1, error=0.005, judged=1000, doubling=0.02):
    """What a probe may have shown."""
    cuts: dict[str, AccuracyEstimate] = dict(
        zip(DEPTH_NAMES, [AccuracyEstimate(value, error) for value in (0.3, 0.4, best - lead, best)], strict=True)
    )
    halves = AccuracyEstimate(best - doubling, error), AccuracyEstimate(best - 2 * doubling, error)
    return ProbeResult(judged, 0.2, cuts, AccuracyEstimate(lead, error), *halves, AccuracyEstimate(doubling, error))


def supply(a_class, smallest=None):
    return PhotoCounts(
        photos=6 * a_class, test_photos=a_class, median_per_class=a_class, smallest=("rose", smallest or a_class)
    )


def given_for(evidence, photos):
    return recommendation.recommend(evidence, photos, "my photos", {})


LIKE, UNLIKE, SOLVED = shown(), shown(lead=-0.05), shown(best=0.995)


@pytest.mark.parametrize(
    ("evidence", "a_class", "expected"),
    [
        (LIKE, LITTLE, "head"),
        (LIKE, ENOUGH, "last_stages"),
        (LIKE, PLENTY, "last_stages"),
        (UNLIKE, LITTLE, "head"),
        (UNLIKE, ENOUGH, "last_stages"),
        (UNLIKE, PLENTY, "all"),
        (SOLVED, PLENTY, "head"),
        (shown(best=0.99, lead=-0.005), PLENTY, "head"),
        (shown(lead=0.0, error=0.05), PLENTY, "last_stages"),  # an earlier cut may be as good, but nobody can tell
    ],
)
def test_the_chapters_cases_get_the_chapters_answers(evidence, a_class, expected):
    assert given_for(evidence, supply(a_class)).trainable == expected


@given(
    best=some.floats(0, 1),
    lead=some.floats(-0.5, 0.5),
    error=some.floats(0.001, 0.1),
    a_class=some.tuples(some.integers(0, 400), some.integers(0, 400)),
    worse=some.floats(1, 10),
)
def test_fewer_photos_never_recommend_more_of_the_network(best, lead, error, a_class, worse):
    fewer, more = sorted(a_class)
    with_more = recommendation.choose_trainable(shown(best, lead, error), supply(more))
    with_fewer = recommendation.choose_trainable(shown(best, lead, error * worse), supply(fewer))
    assert LEVELS.index(with_fewer) <= LEVELS.index(with_more)


@pytest.mark.parametrize("level", LEVELS)
def test_what_it_says_to_run_is_a_command_with_a_recipe_that_exists(level):
    said = replace(given_for(LIKE, supply(ENOUGH)), trainable=level)
    assert said.recipe in recipes.RECIPES
    assert said.command == f"ikebana fit 'my photos' --recipe {said.recipe}"
    assert said.command in repr(said)


def test_confidence_is_low_if_there_is_a_caveat():
    assert not given_for(LIKE, supply(PLENTY)).caveats
    assert not given_for(UNLIKE, supply(LITTLE // 2)).caveats
    for doubtful in (
        given_for(shown(judged=40), supply(ENOUGH)),
        given_for(LIKE, supply(MIN_PHOTOS_PER_CLASS_FOR_FINE_TUNING)),  # just enough for a tail
        given_for(UNLIKE, supply(PLENTY)),  # compare
        given_for(shown(lead=0.02), supply(PLENTY)),  # like ImageNet's, or just not
        given_for(shown(best=0.205), supply(PLENTY)),  # no better than guessing
        given_for(LIKE, supply(PLENTY, smallest=2)),
    ):
        assert doubtful.caveats
        assert re.search(r"confidence +low", repr(doubtful))


def test_whether_more_photos_would_help_follows_from_the_gain_of_doubling():
    assert "would help" in given_for(shown(doubling=0.03), supply(PLENTY)).more_photos
    assert "hardly help" in given_for(shown(doubling=0.001), supply(PLENTY)).more_photos


def clouds(count, apart, width=10, classes=3, seed=0):
    """Photos of classes that lie so far apart in what a cut sees."""
    numbers = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    seen = numbers.normal(size=(count, width))
    seen[np.arange(count), labels] += apart
    return seen.astype(np.float32), labels.astype(np.int64)


def judged(cuts, labels, groups=None):
    groups = np.arange(len(labels)) if groups is None else np.array(groups)
    return depth_probe.evaluate_depths(cuts, labels, groups, folds.make_scoring_folds(labels, groups, "photos"))


@pytest.mark.slow
@pytest.mark.parametrize("winner", [0, 1, 3])
def test_the_cut_that_tells_more_wins(winner):
    cuts = [clouds(150, 3.0 if number == winner else 1.0, seed=number)[0] for number in range(4)]
    evidence = judged(cuts, clouds(150, 1.0)[1])
    assert (
        max(evidence.accuracy_by_depth, key=lambda name: evidence.accuracy_by_depth[name].value) == DEPTH_NAMES[winner]
    )
    assert (evidence.last_depth_gain.value > 0) == (winner == 3)
    assert abs(evidence.last_depth_gain.value) > 2 * evidence.last_depth_gain.standard_error


@pytest.mark.slow
def test_labels_that_mean_nothing_are_guessed_and_twins_do_not_help():
    seen, _ = clouds(100, 0.0, width=100)
    labels = np.random.default_rng(5).integers(0, 3, 100)
    twins, both = np.concatenate((seen, seen)), np.concatenate((labels, labels))
    honest = judged([twins] * 4, both, [*range(100), *range(100)])
    assert honest.last_depth_accuracy.value < 0.5
    assert judged([twins] * 4, both).last_depth_accuracy.value > 0.7  # what a split that parts twins would have shown


@pytest.mark.slow
def test_fewer_photos_to_learn_from_tell_less_and_the_error_says_what_chance_may_do():
    draws = [clouds(240, 2.0, width=60, seed=seed)[0] for seed in range(4)]
    evidence = judged(draws, clouds(240, 2.0)[1])
    assert evidence.quarter_data_accuracy.value < evidence.half_data_accuracy.value < evidence.last_depth_accuracy.value
    assert evidence.doubling_gain.value == pytest.approx(
        evidence.last_depth_accuracy.value - evidence.half_data_accuracy.value
    )
    spread = np.std([each.value for each in evidence.accuracy_by_depth.values()], ddof=1)
    assert evidence.last_depth_accuracy.standard_error / 4 < spread < evidence.last_depth_accuracy.standard_error * 4
    perfect = judged([clouds(30, 50.0)[0]] * 4, clouds(30, 1)[1])
    assert perfect.last_depth_accuracy.value == 1
    assert perfect.last_depth_accuracy.standard_error > 0.01  # thirty of thirty are no proof


def test_the_error_is_what_chance_does_where_photos_of_a_group_fare_alike_too():
    """Of each group's photos another share is named rightly: drawn from Beta(9, 1)."""
    numbers, group, found = np.random.default_rng(0), np.repeat(np.arange(20), 20), []
    for _ in range(300):
        right = numbers.random(400) < numbers.beta(9, 1, 20)[group]
        found.append(depth_probe._estimate_accuracy(right, group))
    real = np.std([each.value for each in found])
    assert real / 1.3 < np.mean([each.standard_error for each in found]) < 1.3 * real
    alone = depth_probe._estimate_accuracy(np.arange(400) % 10 > 0, np.arange(400))
    assert alone.standard_error < real / 1.3


@pytest.mark.slow
def test_every_photo_is_judged_once_even_where_a_class_has_but_one():
    labels = np.array([0] * 9 + [1] * 9 + [2], np.int64)
    dealt = folds.make_scoring_folds(labels, np.arange(19), "photos")
    assert sorted(np.concatenate([left for _, left in dealt])) == list(range(19))
    assert judged([clouds(19, 1.0)[0]] * 4, labels).scored_photos == 19


def test_of_many_photos_each_class_is_looked_at_by_its_share_and_twins_together():
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


def test_the_cuts_are_what_the_network_sees_after_its_blocks():
    import torch

    from ikebana.learning.models import networks

    small = recipes.get_recipe("quick", image_size=64)
    backbone = networks.build_network(small, 2).get_submodule("backbone").eval()
    seen = {}
    for name in ("blocks.1", "blocks.2", "blocks.4"):
        backbone.get_submodule(f"network.{name}").register_forward_hook(
            lambda _, __, maps, name=name: seen.update({name: maps})
        )
    photos = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        depths = depth_probe.DepthFeatures(backbone)
        *earlier, last = depths.split_by_depth(depths(photos).numpy())
        np.testing.assert_allclose(last, backbone(photos).numpy(), rtol=1e-5, atol=1e-6)
    for found, maps in zip(earlier, seen.values(), strict=True):
        expected = np.concatenate([maps.numpy().mean((2, 3)), maps.numpy().std((2, 3), ddof=1)], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The default recipe on small photos, in the one number format that needs no measuring."""
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
    # The audit's own look at all photos keeps what the last layer sees; the advice's, which is wider, stops at the seal.
    files = cache_folder().glob("features/*/features.npy")
    widest = max(files, key=lambda file: np.load(file, mmap_mode="r").shape[1])
    seen = np.load(widest.with_name("checks.npy")) != 0
    validation = np.flatnonzero(parts == "validation")
    choosing = validation[get_selection_mask(looked.dataset.photos[validation])]
    assert 0 < len(choosing) < len(validation)
    assert set(np.flatnonzero(seen)) == {*np.flatnonzero(parts == "train"), *choosing}
    assert "test photos are not used" in repr(looked.recommendation)


@pytest.mark.slow
def test_the_command_it_gives_is_of_the_table_that_was_made(drawn, tmp_path):
    looked = ikebana.audit(
        drawn, advise=True, write=tmp_path / "cleaned.csv", drop=["exact_duplicate", "near_duplicate"]
    )
    assert looked.recommendation is not None
    assert f"ikebana fit {tmp_path / 'cleaned.csv'} --recipe" in repr(looked)


@pytest.mark.slow
def test_a_second_look_computes_no_features_and_says_the_same(drawn, stages, tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path))  # the module's has the features of other tests already
    first = ikebana.audit(drawn, advise=True)
    assert "extract features" in stages
    stages.clear()
    assert ikebana.audit(drawn, advise=True).recommendation == first.recommendation
    assert stages
    assert "extract features" not in stages
    assert first.recommendation is not None
    assert first.recommendation.trainable == "head"  # 8 training photos a class
    assert repr(first.recommendation) in repr(first)


def command(*arguments):
    """The command line's status; what it sets for its process is forgotten afterwards."""
    with pytest.raises(SystemExit) as ended:
        contextvars.copy_context().run(cli.main, [str(each) for each in arguments])
    return ended.value.code


@pytest.mark.slow
def test_a_plain_audit_gives_no_advice_and_goes_on_where_the_network_cannot_be_had(drawn, monkeypatch, capsys):
    from ikebana.errors import MachineError
    from ikebana.learning.models import weight_loading

    def gone(_):
        raise MachineError("the weights are gone", advice="look elsewhere")

    monkeypatch.setattr(weight_loading, "resolve_weights", gone)
    assert command("audit", drawn) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "photos used" in err
    assert "labels and outliers are not checked: the weights are gone (look elsewhere)" in err
    assert "Advice" not in err


@pytest.mark.slow
def test_a_folder_to_write_to_holds_the_page_afterwards(drawn, tmp_path, capsys):
    assert command("audit", drawn) == 0
    assert "--out DIR" in capsys.readouterr().err
    assert command("audit", drawn, "--out", tmp_path / "told") == 0
    assert "--out DIR" not in (said := capsys.readouterr().err)
    assert f"full list: {tmp_path / 'told' / audit_command.PAGE_FILE}" in said
    page = (tmp_path / "told" / audit_command.PAGE_FILE).read_text("utf-8")
    for finding in ikebana.audit(drawn).findings:
        assert html.escape(finding.evidence).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


@pytest.mark.slow
def test_the_last_line_for_scripts_is_the_command_to_run(drawn, capsys):
    assert command("audit", drawn, "--advise") == 0
    out, err = capsys.readouterr()
    assert out == f"ikebana fit {drawn} --recipe quick\n"
    assert DEPTH_NAMES[-1] in err
    assert command("audit", drawn, "--advise", "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    by_name = {each["event"]: each for each in events}
    assert by_name["recommendation"]["trainable"] == "head"
    assert set(by_name["recommendation"]["evidence"]["accuracy_by_depth"]) == set(DEPTH_NAMES)
    assert by_name["audit"]["used"] + by_name["audit"]["set_aside"] == by_name["audit"]["paths"]
    assert events[-1] == {"event": "done", "leaks": 0, "command": out.strip()}


@pytest.mark.slow
def test_a_leak_between_given_parts_ends_with_status_3_and_is_named(tmp_path, capsys):
    files = {
        f"{part}/{path}": data + part.encode() for part in ("train", "test") for path, data in two_classes().items()
    }
    files["test/a/copy.jpg"] = files["train/a/0.jpg"]
    assert command("audit", write_files(tmp_path / "photos", files)) == 3
    said = capsys.readouterr().err
    assert "test/a/copy.jpg, train/a/0.jpg" in said
    assert "test and train" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no photos"),
        ({"a/0.jpg": encode_photo(0), "a/1.jpg": encode_photo(1)}, "only one class"),
        (two_classes(1), "is left for the test split"),
        (two_classes(2), "are too few"),
        ({f"{name}/{number}.jpg": encode_photo(ord(name)) for name in "ab" for number in range(3)},  # twins: one group a class
         "is left for the test split"),
        ({f"{part}/{name}/0.jpg": encode_photo(number) for number, (part, name) in enumerate([("train", "a"), ("test", "b")])},
         "only class a has training photos"),
    ],
)  # fmt: skip
def test_what_nobody_could_judge_is_refused_in_words(files, said, tmp_path, capsys):
    assert command("audit", write_files(tmp_path / "photos", files), "--advise") == 1
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert str(tmp_path) in err


@pytest.mark.slow
def test_a_class_of_two_photos_makes_the_advice_doubtful_and_does_not_end_it(tmp_path):
    files = two_classes(20) | {"c/0.jpg": encode_photo(900), "c/1.jpg": encode_photo(901)}
    said = ikebana.audit(write_files(tmp_path / "photos", files), advise=True).recommendation
    assert said is not None
    assert said.trainable == "head"
    assert any("class c has 1 training photo" in each for each in said.caveats)
