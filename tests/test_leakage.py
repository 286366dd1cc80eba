"""The effect of duplicates on a score is reported next to it, by plain counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import LABELS, SEEDS, make_dataset

from ikebana.data import split
from ikebana.evaluation import leakage
from ikebana.evaluation.metrics import evaluate, from_json
from ikebana.recipe import Recipe


@pytest.mark.slow
@given(labels=LABELS, seed=SEEDS, kind=st.sampled_from(["stratified", "shuffle"]), data=st.data())
def test_leaked_and_other_photos_add_up_to_the_score(labels, seed, kind, data):
    labels = [*labels, *"abcabc" * 2]
    near = data.draw(st.lists(st.sampled_from("uvwxyz"), min_size=len(labels), max_size=len(labels)))
    recipe = Recipe(split=kind, split_seed=seed)
    drawn = split.split_photos(
        make_dataset(labels, duplicate_of=[None if key in "uvw" else key for key in near]), recipe
    )
    tested = drawn.used_photos.filter(split="test")
    right = np.array(data.draw(st.lists(st.booleans(), min_size=tested.height, max_size=tested.height)))
    report = leakage.measure_leakage(drawn, recipe, right)
    is_leaked = np.array([path in report.photos for path in tested["path"]])
    elsewhere = set(drawn.used_photos.filter(split="train")["duplicate_of"].drop_nulls()) | set(
        drawn.used_photos.filter(split="validation")["duplicate_of"].drop_nulls()
    )
    assert is_leaked.tolist() == [key in elsewhere for key in tested["duplicate_of"]]
    parts = [(report.accuracy_on_leaked, is_leaked.sum()), (report.accuracy_on_others, (~is_leaked).sum())]
    assert sum(accuracy * number for accuracy, number in parts if number) == pytest.approx(right.sum())
    assert [accuracy is None for accuracy, _ in parts] == [number == 0 for _, number in parts]
    if kind == "stratified":
        assert not report.photos
    else:
        assert report.naive_shuffle.with_duplicate == len(report.photos)


def test_a_naive_shuffle_of_duplicates_alone_has_a_perfect_score():
    drawn = make_dataset(["a", "b"] * 30, duplicate_of=[str(row // 12) for row in range(60)])
    recipe = Recipe()
    parted = split.split_photos(drawn, recipe)
    report = leakage.measure_leakage(parted, recipe, np.zeros(parted.used_photos.filter(split="test").height, bool))
    assert report.naive_shuffle.with_duplicate == report.naive_shuffle.n == 12
    assert report.naive_shuffle.accuracy == 1
    assert "12" in repr(report)


def test_photos_of_one_group_are_not_duplicates():
    """Training on some photos of a group does not show the others."""
    drawn = make_dataset(["a", "b"] * 60, group=[str(row // 6) for row in range(120)])
    parted = split.split_photos(drawn, Recipe())
    report = leakage.measure_leakage(
        parted, Recipe(), np.arange(parted.used_photos.filter(split="test").height) % 2 == 0
    )
    assert (report.naive_shuffle.with_duplicate, report.naive_shuffle.accuracy) == (0, report.accuracy_on_others)
    assert repr(report) == ""


def test_a_score_on_duplicates_alone_is_called_inflated():
    drawn = make_dataset(["a", "b"] * 30, group=["one"] * 60, split=["train", "test", "train"] * 20)
    report = leakage.measure_leakage(drawn, Recipe(), np.ones(20, bool))
    assert len(report.photos) == 20
    assert "all 20 test photos" in repr(report)
    assert "the score is inflated" in repr(report)


def test_leakage_survives_writing_and_reading_an_evaluation():
    report = leakage.Leakage(("a/1.jpg",), 1.0, 0.5, leakage.NaiveShuffle(10, 4, 0.7))
    evaluation = evaluate(np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), ("a", "b"), leakage=report)
    again = from_json(evaluation.to_json(), evaluation.report)
    assert again.leakage == report
    assert "leakage: 1 test photo with a duplicate or group member in training or validation;" in repr(again)
    assert from_json({**evaluation.to_json(), "leakage": None}, "").leakage is None


def test_a_naive_shuffle_is_mentioned_only_if_it_differs_by_more_than_the_interval():
    naive = leakage.NaiveShuffle(100, 12, 0.97)
    described = leakage.Leakage((), None, 0.9, naive)
    assert "a naive shuffle would have leaked 12 test photos" in described.describe((0.8, 0.95))
    assert "accuracy of about 0.970" in described.describe()
    assert described.describe((0.8, 0.98)) == ""
