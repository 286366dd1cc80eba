"""Slices against Fisher's test of scipy, against what Holm's correction promises, and on photos with planted differences."""

from dataclasses import asdict

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageEnhance, ImageFilter
from scipy import stats
from support.images import draw_noisy_image

from ikebana.auditing.slice_properties import collect_properties
from ikebana.data import pixel_cache, sources
from ikebana.evaluation import slices, statistics
from ikebana.evaluation.slices import Slices

COUNTS = st.integers(0, 40)
SITES = np.array(["Lund", "Oslo"] * 100)


def mark(right, wrong):
    return np.array([True] * right + [False] * wrong, bool)


def score(is_right, properties, groups=None) -> Slices:
    """Score slices where there are some."""
    report = slices.score_slices(is_right, properties, groups)
    assert report is not None
    return report


def draw_outcomes(seed, n=400, accuracy=0.9):
    """Outcomes that depend on no property, and properties of several kinds."""
    rng = np.random.default_rng(seed)
    properties = {
        "brightness": rng.normal(120, 30, n),
        "sharpness": rng.gamma(2.0, 1.0, n),
        "shorter side": rng.choice([240.0, 320.0], n),
        "file type": rng.choice(["JPEG", "PNG", "WEBP"], n, p=[0.8, 0.15, 0.05]),
        "site": rng.choice([f"site {number}" for number in range(8)], n),
    }
    return rng.random(n) < accuracy, properties


# --- the test and its correction ---


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_the_p_value_is_that_of_fishers_exact_test(right_inside, wrong_inside, right_outside, wrong_outside):
    p_value = slices.compute_p_value(mark(right_inside, wrong_inside), mark(right_outside, wrong_outside))
    table = [[wrong_inside, right_inside], [wrong_outside, right_outside]]
    assert p_value == pytest.approx(stats.fisher_exact(table, alternative="greater")[1], abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_correction_rejects_what_holms_steps_reject(p_values):
    adjusted = statistics.adjust_p_values(np.array(p_values))
    order = np.argsort(p_values, kind="stable")
    level, rejected = 0.05, set()
    for step, index in enumerate(order):
        if p_values[index] * (len(p_values) - step) > level:
            break
        rejected.add(index)
    assert set(np.flatnonzero(adjusted <= level)) == rejected
    assert (adjusted >= np.array(p_values) - 1e-12).all()


@pytest.mark.parametrize("accuracy", [0.6, 0.92])
def test_without_a_difference_at_most_one_report_in_twenty_names_a_slice(accuracy):
    trials = 300
    alarms = sum(bool(score(*draw_outcomes(seed, accuracy=accuracy)).worse) for seed in range(trials))
    assert stats.binomtest(alarms, trials, 0.05, alternative="greater").pvalue > 0.001


def test_photos_that_are_right_or_wrong_in_groups_raise_no_more_false_alarms():
    """Each group is from one site, so that a site with unlucky groups looks worse than it is."""
    trials, alarms, naive_alarms = 200, 0, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(60), 8)
        is_right = rng.random(len(groups)) < rng.beta(4.5, 0.5, 60)[groups]
        properties = {"site": rng.choice(["Lund", "Oslo", "Bonn", "Turin"], 60)[groups]}
        alarms += bool(score(is_right, properties, groups).worse)
        naive_alarms += bool(score(is_right, properties).worse)
    assert stats.binomtest(alarms, trials, 0.05, alternative="greater").pvalue > 0.001
    assert naive_alarms > 3 * max(alarms, 5)


# --- what is found ---


def test_a_text_whose_photos_score_worse_is_reported_with_its_interval():
    is_right = np.ones(200, bool)
    is_right[:60:2] = False
    report = score(is_right, {"site": SITES, "brightness": np.linspace(0, 255, 200)[::-1]})
    assert (report.worse[0].name, report.worse[0].value) in {("site", "Lund"), ("brightness", "230 or more")}
    (lund,) = [tested for tested in report.worse if tested.name == "site"]
    low, high = lund.accuracy_interval
    assert (lund.value, lund.n, lund.accuracy, lund.accuracy_of_others) == ("Lund", 100, 0.7, 1.0)
    assert low < 0.7 < high
    assert "where site is Lund: accuracy 0.700" in report.describe()


def test_the_darkest_tenth_is_found_and_its_range_says_exactly_which_photos_it_has():
    brightness = np.random.default_rng(0).normal(120, 30, 500)
    is_right = np.random.default_rng(1).random(500) < np.where(brightness < np.quantile(brightness, 0.1), 0.5, 0.97)
    report = score(is_right, {"brightness": brightness})
    darkest = report.worse[0]
    end = float(darkest.value.removeprefix("below "))
    assert darkest.n == (brightness < end).sum()
    assert darkest.accuracy == is_right[brightness < end].mean()
    assert sum(tested.n for tested in report.tested) == 500


def test_ranges_have_at_least_as_many_photos_as_a_slice_needs():
    for n in (15, 25, 60, 200):
        report = slices.score_slices(np.arange(n) % 3 > 0, {"brightness": np.linspace(0, 255, n)})
        counts = [tested.n for tested in report.tested] if report else []
        assert all(count >= slices.MIN_SLICE_PHOTOS for count in counts)
        assert (len(counts) >= 2) == (n >= 2 * slices.MIN_SLICE_PHOTOS)


def test_unknown_values_count_neither_inside_nor_outside():
    sites = SITES.copy()
    sites[150:] = ""
    is_right = np.arange(200) < 150
    numbers = np.where(sites == "", np.nan, np.arange(200))
    report = score(is_right, {"site": sites, "depth": numbers})
    assert all(tested.accuracy == tested.accuracy_of_others == 1 for tested in report.tested)
    assert sum(tested.n for tested in report.tested if tested.name == "depth") == 150
    assert report.describe() == ""


def test_nothing_is_tested_where_no_slice_is_large_enough():
    assert slices.score_slices(mark(5, 4), {"site": np.array(["a", "b", "c"] * 3)}) is None
    assert (
        slices.score_slices(mark(100, 10), {"remark": np.array([f"photo {number}" for number in range(110)])}) is None
    )
    assert slices.score_slices(mark(100, 10), {}) is None


def test_the_report_names_two_slices_and_counts_the_others():
    is_right = np.tile([True, True, False, False, True, False, True, True], 50)
    parts = np.tile(["a", "a", "b", "b", "c", "c", "d", "d"], 50)
    halves = np.tile(["x", "x", "y", "y", "x", "y", "x", "x"], 50)
    report = score(is_right, {"part": parts, "half": halves, "copy": halves})
    assert len(report.worse) > 2
    lines = report.describe().splitlines()
    assert len(lines) == 3
    assert f"{len(report.worse) - 2} more groups" in lines[-1]


def test_slices_are_read_as_they_were_written():
    report = score(*draw_outcomes(3))
    assert slices.from_json(asdict(report)) == report
    assert slices.from_json({"tested": [], "significance_level": 0.05}) == Slices(())
    with pytest.raises((KeyError, TypeError, ValueError)):
        slices.from_json({"tested": [{"name": "site"}], "significance_level": 0.05})


# --- properties of photos ---


@pytest.fixture
def opened(tmp_path):
    """A table of photos: one is dark, one blurred, one a PNG, one wide; with columns of its own."""
    changes = {
        "plain": lambda image: image,
        "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.2),
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(4)),
        "wide": lambda image: image.resize((320, 80)),
    }
    for number, (name, change) in enumerate(changes.items()):
        change(draw_noisy_image(160, 120, seed=number)).save(tmp_path / f"{name}.jpg", quality=95)
    draw_noisy_image(160, 120, seed=9).save(tmp_path / "typed.png")
    names = ["blurred.jpg", "dark.jpg", "plain.jpg", "typed.png", "wide.jpg"]
    sites = ["Lund", "", "Oslo", "Oslo", "Lund"]
    table = pl.DataFrame(
        {"path": names, "label": list("ababa"), "site": sites, "brightness": ["1", "2", "2", "1", "2"]}
    )
    table.write_csv(tmp_path / "photos.csv")
    return pixel_cache.open_pixel_cache(sources.read(tmp_path / "photos.csv"), 96, "squash")


def test_properties_are_those_of_the_photos_in_the_order_asked_for(opened):
    dataset, pixels = opened
    rows = np.array([4, 3, 2, 1, 0])
    properties = collect_properties(dataset, pixels.pixels, rows)
    names = [dataset.photos["path"][int(row)].split(".")[0] for row in rows]
    assert names[properties["brightness"].argmin()] == "dark"
    assert names[properties["sharpness"].argmin()] == "blurred"
    assert properties["file type"].tolist() == ["JPEG", "PNG", "JPEG", "JPEG", "JPEG"]
    assert properties["aspect ratio"].tolist() == pytest.approx([4, 4 / 3, 4 / 3, 4 / 3, 4 / 3])
    assert properties["shorter side"].tolist() == [80, 120, 120, 120, 120]
    assert properties["site"].tolist() == ["Lund", "Oslo", "Oslo", "", "Lund"]


def test_a_column_named_like_a_measured_property_keeps_its_prefix(opened):
    dataset, pixels = opened
    properties = collect_properties(dataset, pixels.pixels, np.arange(5))
    assert properties["column:brightness"].tolist() == ["1", "2", "2", "1", "2"]
    assert properties["brightness"].dtype.kind == "f"


def test_a_file_that_is_gone_has_no_type(opened):
    dataset, pixels = opened
    dataset.resolve_path("typed.png").unlink()
    properties = collect_properties(dataset, pixels.pixels, np.arange(5))
    assert properties["file type"].tolist() == ["JPEG", "JPEG", "JPEG", "", "JPEG"]
