"""The guarantee on wrong answers in a run and in what is exported from it; candidates go along."""

import json
import re

import numpy as np
import polars as pl
import pytest

import ikebana
from ikebana.data.split import find_groups, get_selection_mask
from ikebana.errors import PhotosError, RecipeError, RunError
from ikebana.evaluation.calibration_photos import find_calibration_photos
from ikebana.evaluation.error_guarantee import find_guaranteed_threshold

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_cache")]

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 6, "precision": "float32"}
# At most 12% wrong: 20 calibration photos may suffice, but not those of a network that was trained for a moment.
HARD, EASY = 0.12, 0.9


@pytest.fixture(scope="module")
def photos(drawn):
    return drawn(60)


@pytest.fixture(scope="module")
def run(photos, fit_in_cache):
    return fit_in_cache(photos, "baseline", at_most_wrong=HARD, coverage="80%", **SMALL_OPTIONS)


def test_too_few_photos_for_the_guarantee_are_refused_before_a_run_begins(photos, tmp_path, stages):
    with pytest.raises(PhotosError, match="at most 1% wrong answers cannot be guaranteed") as refusal:
        ikebana.fit(photos, "baseline", run=tmp_path / "run", at_most_wrong="1%", **SMALL_OPTIONS)
    assert "needs at least 230" in str(refusal.value)
    assert "train" not in stages
    assert not (tmp_path / "run").exists()


def test_the_advised_split_has_enough_photos_for_the_guarantee(photos, tmp_path):
    with pytest.raises(PhotosError) as refusal:
        ikebana.fit(photos, "baseline", run=tmp_path / "few", at_most_wrong="5%", **SMALL_OPTIONS)
    advised = re.search(r"--split-fractions ([\d.,]+);? ?", str(refusal.value))
    assert advised is not None
    train, validation, test = map(float, advised[1].split(","))
    run = ikebana.fit(
        photos,
        "baseline",
        run=tmp_path / "run",
        at_most_wrong="5%",
        split_fractions=(train, validation, test),
        **SMALL_OPTIONS,
    )
    assert run.is_finished


def test_where_no_split_suffices_the_number_of_photos_is_advised(photos, tmp_path):
    with pytest.raises(PhotosError, match=r"try +about [0-9],[0-9]00 photos in all"):
        ikebana.fit(photos, "baseline", run=tmp_path / "run", at_most_wrong="1%", **SMALL_OPTIONS)


def test_a_run_that_cannot_give_the_guarantee_finishes_with_the_default_threshold(run):
    assert run.is_finished
    assert run.recipe.at_most_wrong == HARD
    calibration = run.calibration
    assert calibration.threshold is not None
    assert calibration.guarantee is not None
    assert not calibration.guarantee.holds
    assert "the threshold has no guarantee" in repr(run.evaluation)
    assert run.evaluation.risk_coverage.guarantee == calibration.guarantee


def test_candidates_of_a_run_have_the_requested_coverage(run, photos):
    rule = run.calibration.candidates
    assert rule.coverage == run.evaluation.candidates.coverage == 0.8
    predictions = ikebana.predict(run, photos / "iris")
    for prediction in predictions:
        if prediction.is_usable:
            ranked = sorted(prediction.probabilities, key=lambda name: -prediction.probabilities[name])
            assert prediction.candidates == tuple(ranked[: len(prediction.candidates)])
            assert prediction.candidates
        else:
            assert prediction.candidates == ()


def test_calibration_photos_are_the_validation_photos_that_selected_nothing(run):
    used = run.dataset.filter(status="used")
    chosen = find_calibration_photos(used)
    validation = used.filter(split="validation")
    assert chosen["path"].to_list() == validation.filter(~pl.Series(get_selection_mask(validation)))["path"].to_list()
    assert len(chosen) == run.calibration.photos
    groups = dict(zip(used["path"], find_groups(used), strict=True))
    assert chosen["together"].to_list() == [groups[path] for path in chosen["path"]]


def test_an_export_chooses_the_threshold_anew_from_the_run_alone(run, tmp_path):
    classifier = ikebana.export(run, tmp_path / "flowers.onnx", at_most_wrong=f"{100 * EASY:g}%")
    photos = run.predictions.join(find_calibration_photos(run.dataset.filter(status="used")), on="path")
    probabilities = photos.select(f"p:{name}" for name in run.classes).to_numpy()
    labels = np.array([run.classes.index(name) for name in photos["label"]])
    expected = find_guaranteed_threshold(probabilities, labels, photos["together"].to_numpy(), EASY)
    assert expected is not None
    assert classifier.threshold == max(0.5, expected)
    scores = classifier.metadata["scores"]
    test = run.predictions.filter(split="test").select(f"p:{name}" for name in run.classes).to_numpy()
    assert scores["threshold"] == classifier.threshold
    assert scores["answered_share"] == (test.max(1) >= classifier.threshold).mean()
    assert classifier.metadata["guarantee"]["holds"]
    assert classifier.candidate_rule is not None
    assert classifier.candidate_rule.coverage == 0.8
    assert ikebana.load(tmp_path / "flowers.onnx").candidate_rule == classifier.candidate_rule
    assert classifier.metadata["parity"]["candidate_agreement"] >= 0.95
    # The run stays as it is.
    assert json.loads((run.folder / "calibration.json").read_text("utf-8"))["threshold"] == run.calibration.threshold


@pytest.mark.parametrize(
    ("share", "error", "words"),
    [
        (0.12, RunError, "the .. independent calibration photos show it for no threshold"),
        ("1%", RunError, "needs at least 230"),
        ("5", RecipeError, "'5' is not a share of wrong answers"),
        ("few", RecipeError, "is not a share"),
    ],
)
def test_an_export_without_the_guarantee_writes_no_file_and_says_why(run, tmp_path, share, error, words):
    with pytest.raises(error, match=words):
        ikebana.export(run, tmp_path / "flowers.onnx", at_most_wrong=share)
    assert not list(tmp_path.iterdir())
