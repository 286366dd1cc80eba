"""`ikebana compare`: verdicts, pooling, refusals, text and page."""

import contextvars
import json
import re
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from scipy import stats
from support.images import draw_image, encode_image
from support.runs import CLASSES, make_photos, write_run

import ikebana
from ikebana import cli
from ikebana.errors import RunError, UsageError
from ikebana.evaluation.comparison_text import _wrap
from ikebana.evaluation.metrics import evaluate
from ikebana.recipes import RECIPES
from ikebana.reports.comparison_page import make_scale

PHOTOS = make_photos(300)


def run_cli(*arguments):
    with pytest.raises(SystemExit) as ended:
        contextvars.copy_context().run(cli.main, [str(argument) for argument in arguments])
    return ended.value.code


@pytest.fixture
def two_runs(tmp_path):
    """The second run is wrong on 10 photos, of which the first is wrong on 5, and on 25 more."""
    first = write_run(tmp_path / "first", range(30), photos=PHOTOS)
    second = write_run(tmp_path / "second", [*range(5), *range(40, 45)], photos=PHOTOS, recipe=RECIPES["good"])
    return first, second


def test_two_runs_are_compared_by_mcnemars_exact_test(two_runs):
    comparison = ikebana.compare(*two_runs)
    (pair,) = comparison.pairs
    assert (pair.first, pair.second, pair.verdict) == ("quick", "good", "better")
    assert pair.p_value == pytest.approx(stats.binomtest(5, 30).pvalue)
    assert pair.difference.value == pytest.approx(20 / 300)
    low, high = pair.difference.interval
    assert low < 20 / 300 < high
    assert (pair.difference.first_ahead, pair.difference.second_ahead) == (5, 25)
    assert [contestant.accuracy for contestant in comparison.contestants] == pytest.approx([0.9, 290 / 300])


def test_the_verdict_is_about_the_run_given_last(two_runs):
    first, second = two_runs
    (pair,) = ikebana.compare(second, first).pairs
    assert (pair.first, pair.second, pair.verdict) == ("good", "quick", "worse")
    assert "quick is worse than good: -6.7 points" in repr(ikebana.compare(second, first))


def test_a_small_difference_is_a_tie_and_says_how_many_photos_would_tell(tmp_path):
    write_run(tmp_path / "a", range(10), photos=PHOTOS)
    write_run(tmp_path / "b", range(4, 12), photos=PHOTOS, options={"image_size": 200})
    comparison = ikebana.compare(tmp_path / "a", tmp_path / "b")
    assert comparison.pairs[0].verdict == "tie"
    needed = comparison.pairs[0].photos_needed
    assert needed is not None
    assert needed > 300
    assert "b and a: tie on these 300 photos: +0.7 points" in repr(comparison)
    assert f"about {needed:,} test photos would be needed to tell" in " ".join(repr(comparison).split())


def test_recipes_of_the_same_name_are_named_by_folder_and_their_options_are_listed(tmp_path):
    write_run(tmp_path / "a", photos=PHOTOS)
    write_run(tmp_path / "b", photos=PHOTOS, options={"image_size": 200})
    comparison = ikebana.compare(tmp_path / "a", tmp_path / "b")
    assert [contestant.name for contestant in comparison.contestants] == ["a", "b"]
    assert "b is quick with image_size=200" in repr(comparison)


def test_seeds_of_a_recipe_are_pooled_and_a_photo_counts_as_the_share_of_runs_that_are_right(tmp_path):
    wrong = {"q0": [0, 1, 2, 3], "q1": [0, 1], "g0": [9], "g1": []}
    for name, rows in wrong.items():
        recipe = RECIPES["quick" if name[0] == "q" else "good"]
        write_run(tmp_path / name, rows, photos=PHOTOS, recipe=recipe, options={"seed": int(name[1])})
    comparison = ikebana.compare(*(tmp_path / name for name in wrong))
    assert [contestant.name for contestant in comparison.contestants] == ["quick", "good"]
    (pair,) = comparison.pairs
    assert pair.difference.value == pytest.approx((4 + 2) / 2 / 300 - 1 / 2 / 300)
    # In halves of a photo: two differences of 2, two of 1, one of -1.
    assert pair.p_value == pytest.approx(8 / 32)
    assert comparison.contestants[0].accuracies == pytest.approx((296 / 300, 298 / 300))
    assert "pooled over seeds: quick, good" in repr(comparison)


def test_the_notes_of_the_page_are_sentences_and_names_of_runs_stay_as_they_are(tmp_path):
    for name, options in (("a0", {}), ("b0", {"seed": 1}), ("c0", {"image_size": 160})):
        write_run(tmp_path / name, [len(options)], photos=PHOTOS, options=options)
    notes = ikebana.compare(*(tmp_path / name for name in ("a0", "b0", "c0")), out=tmp_path / "page.html").notes
    assert [note.split()[0] for note in notes] == ["c0", "pooled"]
    text = (tmp_path / "page.html").read_text("utf-8")
    assert '<p class="quiet">c0 is quick with image_size=160.</p>' in text
    assert '<p class="quiet">Pooled over seeds: quick. A photo counts as the share of runs that are right.</p>' in text


def test_two_seeds_of_one_recipe_alone_are_not_pooled(tmp_path):
    write_run(tmp_path / "a", [1, 2], photos=PHOTOS)
    write_run(tmp_path / "b", [3], photos=PHOTOS, options={"seed": 1})
    comparison = ikebana.compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "page.html")
    assert [contestant.name for contestant in comparison.contestants] == ["a", "b"]
    assert "differ by chance only" in repr(comparison)
    # So more test photos would tell nothing.
    assert comparison.pairs[0].photos_needed is None
    page = (tmp_path / "page.html").read_text("utf-8")
    for text in (repr(comparison), comparison._repr_html_(), page):
        assert "would be needed" not in text
        assert "no difference" not in text
    assert "Of each run that is trained" not in page  # `quick` has no epochs


@pytest.mark.parametrize("has_groups", [False, True])
def test_the_interval_of_a_run_is_that_of_its_own_evaluation(has_groups, tmp_path):
    groups = pl.int_range(pl.len()).cast(pl.String) if not has_groups else (pl.int_range(pl.len()) // 3).cast(pl.String)
    photos = PHOTOS.with_columns(group=groups)
    wrong = [*range(30), 40, 50]
    write_run(tmp_path / "a", wrong, photos=photos)
    write_run(tmp_path / "b", photos=photos, recipe=RECIPES["good"])
    is_right = ~np.isin(np.arange(300), wrong)
    probabilities = np.stack([is_right, ~is_right], 1).astype(np.float32)
    of_test = photos.filter(split="test")
    numbers = np.unique(of_test["group"].to_numpy(), return_inverse=True)[1]
    evaluation = evaluate(probabilities, np.zeros(300, np.int64), ("right", "wrong"), groups=numbers)
    contestant = ikebana.compare(tmp_path / "a", tmp_path / "b").contestants[0]
    assert contestant.accuracy_interval == pytest.approx(evaluation.accuracy_interval, abs=1e-12)


def test_the_curves_are_of_each_run_or_of_the_first_run_of_a_recipe(tmp_path):
    options = [{}, {"seed": 1}]
    runs = [write_run(tmp_path / f"b{row}", [row], recipe=RECIPES["baseline"], options=options[row]) for row in (0, 1)]
    ikebana.compare(*runs, out=tmp_path / "page.html")
    assert "Of each run that is trained" in (tmp_path / "page.html").read_text("utf-8")
    ikebana.compare(*runs, write_run(tmp_path / "g", recipe=RECIPES["good"]), out=tmp_path / "page.html")
    assert "Of the first run of each recipe that is trained" in (tmp_path / "page.html").read_text("utf-8")


def test_the_number_format_of_training_does_not_separate_seeds(tmp_path):
    for seed, precision in enumerate(("float32", "bfloat16")):
        write_run(tmp_path / f"q{seed}", photos=PHOTOS, options={"seed": seed, "precision": precision})
    write_run(tmp_path / "g", photos=PHOTOS, recipe=RECIPES["good"])
    assert len(ikebana.compare(tmp_path / "q0", tmp_path / "q1", tmp_path / "g").contestants) == 2


def test_duplicates_count_once(tmp_path):
    """The first run is wrong on 12 photos, which are copies of two."""
    copies = pl.when(pl.col("split") == "test").then(pl.int_range(pl.len()) // 6).cast(pl.String)
    photos = PHOTOS.with_columns(duplicate_of=copies)
    write_run(tmp_path / "a", range(12), photos=photos)
    write_run(tmp_path / "b", photos=photos, recipe=RECIPES["good"])
    (pair,) = ikebana.compare(tmp_path / "a", tmp_path / "b").pairs
    assert (pair.difference.n, pair.difference.n_groups) == (300, 50)
    assert pair.p_value == pytest.approx(2 * 0.5**2)


def test_seven_runs_have_21_pairs_corrected_by_holm(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(7):
        wrong = rng.choice(300, size=20 + 6 * number, replace=False)
        write_run(tmp_path / f"run{number}", wrong.tolist(), photos=PHOTOS, options={"image_size": 100 + number})
    comparison = ikebana.compare(tmp_path)
    assert len(comparison.pairs) == 21
    raw = np.array([pair.difference.p_value for pair in comparison.pairs])
    order = np.argsort(raw)
    smallest = comparison.pairs[order[0]]
    assert smallest.p_value == pytest.approx(min(1, 21 * raw[order[0]]))
    assert all(pair.p_value >= pair.difference.p_value for pair in comparison.pairs)
    assert all(len(line) <= 80 for line in repr(comparison).splitlines())


def test_classes_are_compared_by_name_whatever_their_order(tmp_path):
    write_run(tmp_path / "a", [0], photos=PHOTOS)
    write_run(tmp_path / "b", [0], photos=PHOTOS, classes=CLASSES[::-1], recipe=RECIPES["good"])
    assert ikebana.compare(tmp_path / "a", tmp_path / "b").pairs[0].difference.value == 0


def test_renamed_photos_are_the_same_photos(tmp_path):
    write_run(tmp_path / "a", [7], photos=PHOTOS)
    renamed = PHOTOS.with_columns(path=pl.lit("moved/") + pl.col("path")).reverse()
    write_run(tmp_path / "b", [7], photos=renamed, recipe=RECIPES["good"])
    (pair,) = ikebana.compare(tmp_path / "a", tmp_path / "b").pairs
    # Position 7 is another photo in each order.
    assert (pair.difference.first_ahead, pair.difference.second_ahead) == (1, 1)


def split_photos(seed):
    """Give 100 of 300 photos to the test split of this seed."""
    test = np.zeros(300, bool)
    test[np.random.default_rng(seed).choice(300, 100, replace=False)] = True
    return make_photos(300, train=0).with_columns(split=pl.Series(np.where(test, "test", "train")))


def write_splits(folder, seeds, recipes=("quick", "good")):
    for seed in seeds:
        for recipe in recipes:
            wrong = range(20 if recipe == "quick" else 5)
            write_run(
                folder / f"{recipe}-{seed}",
                wrong,
                photos=split_photos(seed),
                recipe=RECIPES[recipe],
                options={"split_seed": seed},
            )


def test_runs_on_several_splits_are_compared_split_by_split_and_together(tmp_path):
    write_splits(tmp_path, range(3))
    comparison = ikebana.compare(tmp_path)
    assert comparison.splits == dict.fromkeys(("split seed 0", "split seed 1", "split seed 2"), 100)
    (pair,) = comparison.pairs
    assert (pair.second, pair.verdict) == ("quick", "worse")
    assert [difference.value for difference in pair.by_split] == pytest.approx([-0.15] * 3)
    assert pair.difference.n == 300
    # A photo that is a test photo of two splits is one group.
    tests = [set(split_photos(seed).filter(split="test")["sha256"]) for seed in range(3)]
    assert pair.difference.n_groups == len(set.union(*tests))
    assert "split by split" in repr(comparison)
    repeated = sum(sum(sha256 in test for test in tests) > 1 for sha256 in set.union(*tests))
    assert f"{repeated} photos are test photos of several splits" in repr(comparison)


def test_accuracies_are_in_the_order_of_the_runs_whatever_the_order_of_the_splits(tmp_path):
    runs = []
    for name, seed, split_seed, wrong in (("a", 0, 0, 1), ("b", 0, 1, 2), ("c", 1, 0, 3), ("d", 1, 1, 4)):
        options = {"seed": seed, "split_seed": split_seed}
        runs.append(write_run(tmp_path / name, range(wrong), photos=split_photos(split_seed), options=options))
    runs.append(write_run(tmp_path / "good", photos=split_photos(0), recipe=RECIPES["good"]))
    runs.append(
        write_run(tmp_path / "good1", photos=split_photos(1), recipe=RECIPES["good"], options={"split_seed": 1})
    )
    contestant = ikebana.compare(*runs).contestants[0]
    accuracies = {folder: ikebana.open_run(folder).evaluation.accuracy for folder in contestant.runs}
    assert contestant.accuracies == pytest.approx(tuple(accuracies.values()))


def test_a_split_that_only_one_recipe_has_is_left_out_of_the_difference(tmp_path):
    write_splits(tmp_path, range(2))
    write_splits(tmp_path, [2], ["quick"])
    (pair,) = ikebana.compare(tmp_path).pairs
    assert pair.difference.n == 200


def test_more_photos_with_the_same_test_photos_are_another_contestant(tmp_path):
    """This answers whether new photos helped: fit --split-from."""
    write_run(tmp_path / "before", range(20), photos=PHOTOS)
    more = make_photos(0, train=50, prefix="n")
    write_run(tmp_path / "after", range(3), photos=pl.concat([PHOTOS, more]))
    comparison = ikebana.compare(tmp_path / "before", tmp_path / "after")
    assert comparison.pairs[0].verdict == "better"
    assert [contestant.name for contestant in comparison.contestants] == ["before", "after"]
    assert "differ in training photos" in repr(comparison)


# --- refusals ---


def test_fewer_than_two_runs_are_refused(tmp_path):
    write_run(tmp_path / "a")
    with pytest.raises(UsageError, match="one run has nothing to compare"):
        ikebana.compare(tmp_path / "a")
    with pytest.raises(UsageError, match="no run was given"):
        ikebana.compare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run in this folder"):
        ikebana.compare(tmp_path / "empty", tmp_path / "a")


def test_a_missing_run_is_refused_with_the_runs_beside_it(tmp_path):
    write_run(tmp_path / "quick-1")
    (tmp_path / "quick-notes").mkdir()
    for name, start in (("quick-2", "did you mean"), ("nope", "a run that exists, such as")):
        with pytest.raises(RunError, match="no such run folder") as error:
            ikebana.compare(tmp_path / name, tmp_path / "quick-1")
        assert str(error.value.advice).rstrip("?") == f"{start} {tmp_path / 'quick-1'}"


def test_the_same_run_twice_is_refused_also_under_another_path(tmp_path):
    write_run(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for other in (tmp_path / "a", tmp_path / "b" / ".." / "a", tmp_path / "link"):
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(RunError, match="given twice"):
            ikebana.compare(tmp_path / "a", other)


def test_an_unfinished_run_and_a_model_file_are_refused(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", is_finished=False)
    with pytest.raises(RunError, match="has not finished") as error:
        ikebana.compare(tmp_path / "a", tmp_path / "b")
    assert "--resume" in str(error.value)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(RunError, match="a model file, not a run"):
        ikebana.compare(tmp_path / "a", tmp_path / "model.onnx")


def test_other_classes_are_refused_and_named(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", classes=(*CLASSES, "iris"))
    with pytest.raises(RunError, match=r"only .*b has iris"):
        ikebana.compare(tmp_path / "a", tmp_path / "b")


def test_other_labels_of_the_same_test_photos_are_refused_and_named(tmp_path):
    write_run(tmp_path / "a", photos=PHOTOS)
    label = pl.when(pl.int_range(pl.len()) == 20).then(pl.lit("daisy")).otherwise("label")
    write_run(tmp_path / "b", photos=PHOTOS.with_columns(label=label))
    with pytest.raises(RunError, match=r"1 test photo has different labels.*tulip/0020.jpg \(tulip, then daisy\)"):
        ikebana.compare(tmp_path / "a", tmp_path / "b")


def test_another_split_of_the_same_photos_is_refused_with_the_seeds(tmp_path):
    write_splits(tmp_path, [0], ["quick"])
    write_splits(tmp_path, [1], ["good"])
    with pytest.raises(RunError, match=r"split the same photos differently.*split_seed 1 and 0") as error:
        ikebana.compare(tmp_path)
    assert "--split-from" in str(error.value)


def test_runs_without_common_photos_are_refused(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", photos=make_photos(prefix="other"))
    with pytest.raises(RunError, match=r"no test photo in common.*has 30.*0 in common"):
        ikebana.compare(tmp_path / "a", tmp_path / "b")


def test_one_recipe_on_several_splits_has_nothing_to_compare(tmp_path):
    write_splits(tmp_path, range(2), ["quick"])
    with pytest.raises(RunError, match="same recipe and different test photos"):
        ikebana.compare(tmp_path)


def test_predictions_of_other_photos_than_the_dataset_are_damage(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", recipe=RECIPES["good"])
    file = tmp_path / "b" / "predictions.parquet"
    pl.read_parquet(file).head(20).write_parquet(file)
    with pytest.raises(RunError, match="damaged"):
        ikebana.compare(tmp_path / "a", tmp_path / "b")


# --- the command and its page ---


class Tags(HTMLParser):
    """Collects what a browser would see: tags, attributes with addresses, ids."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.handlers = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_command_prints_the_table_or_one_event(two_runs, tmp_path, capsys):
    first, second = two_runs
    assert run_cli("compare", first.folder, second.folder) == 0
    output = capsys.readouterr().out
    assert output.startswith("2 runs compared on the same 300 test photos")
    assert "good is better than quick: +6.7 points" in output
    assert run_cli("compare", first.folder, second.folder, "--json") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["comparison", "done"]
    assert events[0]["pairs"][0]["verdict"] == "better"
    assert run_cli("compare", first.folder) == 2
    assert run_cli("compare", first.folder, tmp_path / "nowhere") == 1


def test_the_page_is_one_file_that_loads_nothing_and_shows_the_photos(two_runs, tmp_path):
    thumbnails = two_runs[0].folder / "thumbnails"
    thumbnails.mkdir()
    shown = PHOTOS.filter(split="test")["sha256"][41]
    (thumbnails / f"{shown}.jpg").write_bytes(encode_image(draw_image(64)))
    # A damaged thumbnail is left out.
    (thumbnails / f"{PHOTOS.filter(split='test')['sha256'][42]}.jpg").write_bytes(b"no photo")
    comparison = ikebana.compare(*two_runs, out=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Tags(text)
    assert not [address for address in page.addresses if not address.startswith(("#", "data:image/jpeg;base64,"))]
    assert text.count('<img src="data:image/jpeg') == text.count("data:image/jpeg") == 1
    assert text.count('class="card"') == 30
    assert "Only good is right" in text
    assert "good is better than quick" in text
    assert comparison.pairs[0].verdict == "better"
    assert "http" not in text
    # Only `good` has several epochs.
    assert "<svg viewBox" in text.split('<section id="curves">')[1]


def test_names_of_photos_and_classes_cannot_run_code_in_the_page(tmp_path):
    script, handler = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg'
    classes = ("daisy", script)
    labels = pl.Series([classes[row % 2] for row in range(42)])
    photos = make_photos().with_columns(label=labels, path=labels + "/" + pl.int_range(42).cast(pl.String) + handler)
    write_run(tmp_path / "a", [3, 4], photos=photos, classes=classes)
    write_run(tmp_path / "b", [5], photos=photos, classes=classes, recipe=RECIPES["good"])
    ikebana.compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "page.html")
    page = Tags((tmp_path / "page.html").read_text("utf-8"))
    assert "script" not in page.tags
    assert not page.handlers
    assert "img" not in page.tags


def test_names_of_folders_cannot_run_code_in_the_page_or_its_curves(tmp_path):
    for seed, name in enumerate(("<img src=x onerror=alert(1)>", "<script>alert(1)<")):
        options = {"seed": seed}
        write_run(tmp_path / name, range(seed), photos=PHOTOS, recipe=RECIPES["good"], options=options)
    ikebana.compare(tmp_path, out=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    page = Tags(text)
    assert '<section id="curves">' in text
    assert not {"img", "script"} & set(page.tags)
    assert not page.handlers


def test_the_notebook_view_escapes_names(tmp_path):
    write_run(tmp_path / "<b>one", photos=PHOTOS)
    write_run(tmp_path / "two", photos=PHOTOS, options={"seed": 1})
    html = ikebana.compare(tmp_path / "<b>one", tmp_path / "two")._repr_html_()
    assert "a tie" in html
    assert "<table" in html
    assert "<b>one" not in html
    assert re.search(r"&lt;b&gt;one", html)


@pytest.mark.parametrize(
    ("bounds", "ticks"),
    [
        ([0.907, 0.961], ["90%", "92%", "94%", "96%", "98%"]),
        ([0.56, 0.96], ["50%", "60%", "70%", "80%", "90%", "100%"]),
        ([0.9, 0.9], ["90%", "91%"]),
        ([0.0, 1.0], ["0%", "50%", "100%"]),
    ],
)
def test_a_scale_goes_from_round_number_to_round_number_and_contains_the_bounds(bounds, ticks):
    scale = make_scale(bounds, "{:.0f}%")
    assert [label for _, label in scale.ticks] == ticks
    assert (scale.ticks[0][0], scale.ticks[-1][0]) == (0, 100)
    place = scale.place((min(bounds), max(bounds)), min(bounds))
    assert place.start >= -1e-6
    assert place.start + place.width <= 100 + 1e-6
    assert place.value == place.start


def test_copies_of_test_photos_are_counted_and_named(tmp_path):
    test = PHOTOS.filter(split="test")
    photos = pl.concat([PHOTOS, test.head(1).with_columns(path=pl.lit("copy.jpg"))])
    write_run(tmp_path / "a", photos=photos)
    write_run(tmp_path / "b", photos=photos, recipe=RECIPES["good"])
    text = repr(ikebana.compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "page.html"))
    assert "the same 300 test photos" in text
    assert "1 exact copy of test photos left out" in text


def test_a_p_value_is_not_split_at_the_end_of_a_line():
    for padding in range(60, 90):
        lines = _wrap("x" * padding + " p = 0.012 and more words that fill the line").splitlines()
        assert any("p = 0.012" in line for line in lines)


def test_cards_of_photos_name_the_split_where_there_are_several(tmp_path):
    write_splits(tmp_path, range(2), ["quick", "good"])
    ikebana.compare(tmp_path, out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    for split in range(2):
        assert f'<span class="quiet">split seed {split}</span>' in page
    assert "<strong>200</strong><span>test photos, counted per split</span>" in page
