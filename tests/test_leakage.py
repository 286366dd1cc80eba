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
    told = leakage.measure_leakage(drawn, recipe, right)
    seen = np.array([path in told.photos for path in tested["path"]])
    elsewhere = set(drawn.used_photos.filter(split="train")["duplicate_of"].drop_nulls()) | set(
        drawn.used_photos.filter(split="validation")["duplicate_of"].drop_nulls()
    )
    assert seen.tolist() == [key in elsewhere for key in tested["duplicate_of"]]
    parts = [(told.accuracy_on_leaked, seen.sum()), (told.accuracy_on_others, (~seen).sum())]
    assert sum(accuracy * number for accuracy, number in parts if number) == pytest.approx(right.sum())
    assert [accuracy is None for accuracy, _ in parts] == [number == 0 for _, number in parts]
    if kind == "stratified":
        assert not told.photos
    else:
        assert told.naive_shuffle.with_duplicate == len(told.photos)


def test_a_naive_shuffle_of_duplicates_alone_would_have_shown_a_perfect_score():
    drawn = make_dataset(["a", "b"] * 30, duplicate_of=[str(row // 12) for row in range(60)])
    recipe = Recipe()
    parted = split.split_photos(drawn, recipe)
    told = leakage.measure_leakage(parted, recipe, np.zeros(parted.used_photos.filter(split="test").height, bool))
    assert told.naive_shuffle.with_duplicate == told.naive_shuffle.n == 12
    assert told.naive_shuffle.accuracy == 1
    assert "12" in repr(told)


def test_photos_of_one_group_are_not_duplicates():
    """Forty groups of three: nobody knows whether a network that has seen some of a group knows the others."""
    drawn = make_dataset(["a", "b"] * 60, group=[str(row // 6) for row in range(120)])
    parted = split.split_photos(drawn, Recipe())
    told = leakage.measure_leakage(parted, Recipe(), np.arange(parted.used_photos.filter(split="test").height) % 2 == 0)
    assert (told.naive_shuffle.with_duplicate, told.naive_shuffle.accuracy) == (0, told.accuracy_on_others)
    assert repr(told) == ""


def test_a_score_on_duplicates_alone_is_called_inflated():
    drawn = make_dataset(["a", "b"] * 30, group=["one"] * 60, split=["train", "test", "train"] * 20)
    told = leakage.measure_leakage(drawn, Recipe(), np.ones(20, bool))
    assert len(told.photos) == 20
    assert "all 20 test photos" in repr(told)
    assert "the score is inflated" in repr(told)


def test_leakage_survives_writing_and_reading_an_evaluation():
    told = leakage.Leakage(("a/1.jpg",), 1.0, 0.5, leakage.NaiveShuffle(10, 4, 0.7))
    made = evaluate(np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), ("a", "b"), leakage=told)
    again = from_json(made.to_json(), made.report)
    assert again.leakage == told
    assert "leakage: 1 test photo with a duplicate or group member in training or validation;" in repr(again)
    assert from_json({**made.to_json(), "leakage": None}, "").leakage is None


def test_a_naive_shuffle_is_mentioned_only_if_it_differs_by_more_than_the_interval():
    naive = leakage.NaiveShuffle(100, 12, 0.97)
    described = leakage.Leakage((), None, 0.9, naive)
    assert "a naive shuffle would have leaked 12 test photos" in described.describe((0.8, 0.95))
    assert "accuracy of about 0.970" in described.describe()
    assert described.describe((0.8, 0.98)) == ""
