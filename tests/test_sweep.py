"""`ikebana sweep`: runs, resuming, failures and comparison; `--minutes` of fit and sweep."""

import contextvars
import json

import pytest
from support.runs import make_photos, write_run

import ikebana
from ikebana import cli
from ikebana.commands import run_series
from ikebana.data import sources
from ikebana.errors import MachineError, PhotosError, RecipeError, RunError
from ikebana.learning import budget
from ikebana.learning.budget import RunCost, select_rounds
from ikebana.recipes import RECIPES

PHOTOS = make_photos(60)


@pytest.fixture
def fake_fit(monkeypatch):
    """Write runs with made-up predictions instead of training; returns the names of trained runs."""
    trained = []

    def fit(photos, recipe, run, device, robustness):
        trained.append(run.name)
        wrong = range({"quick": 12, "good": 2, "baseline": 30}[recipe.name] + recipe.seed)
        return write_run(run, wrong, photos=PHOTOS, recipe=recipe)

    monkeypatch.setattr(run_series, "fit", fit)
    monkeypatch.setattr(run_series, "resume", lambda run, robustness=False: ikebana.open_run(run))
    monkeypatch.setattr(sources, "read", lambda photos, order=(): make_listed())
    return trained


def make_listed():
    from pathlib import Path

    from ikebana.data.dataset import Dataset

    return Dataset("photos", Path(), PHOTOS.with_columns(split=None), ("daisy", "rose", "tulip"))


def run_cli(*arguments):
    with pytest.raises(SystemExit) as ended:
        contextvars.copy_context().run(cli.main, [str(argument) for argument in arguments])
    return ended.value.code


def test_every_recipe_is_trained_with_every_seed_and_compared(fake_fit, tmp_path):
    result = ikebana.sweep("photos", ("quick", "good"), seeds=2, out=tmp_path / "sweep")
    assert fake_fit == ["quick-split0-seed0", "good-split0-seed0", "quick-split0-seed1", "good-split0-seed1"]
    assert [run.recipe.seed for run in result.runs] == [0, 0, 1, 1]
    assert result.comparison is not None
    (pair,) = result.comparison.pairs
    assert (pair.first, pair.second, pair.verdict) == ("quick", "good", "better")
    assert "good is better than quick" in (tmp_path / "sweep" / "comparison.html").read_text("utf-8")
    values = json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))
    assert set(values["accuracies"]) == set(fake_fit)
    assert values["comparison"]["pairs"][0]["verdict"] == "better"


def test_splits_come_before_seeds(fake_fit, tmp_path):
    ikebana.sweep("photos", ("quick",), seeds=2, split_seeds=2, out=tmp_path / "sweep")
    assert fake_fit == ["quick-split0-seed0", "quick-split1-seed0", "quick-split0-seed1", "quick-split1-seed1"]


def test_the_same_call_trains_only_what_is_missing(fake_fit, tmp_path):
    ikebana.sweep("photos", ("quick", "good"), out=tmp_path / "sweep")
    fake_fit.clear()
    ikebana.sweep("photos", ("quick", "good"), seeds=2, out=tmp_path / "sweep")
    assert fake_fit == ["quick-split0-seed1", "good-split0-seed1"]


def test_after_ctrl_c_the_same_command_resumes(fake_fit, tmp_path, monkeypatch, capsys):
    fit = run_series.fit

    def interrupt(photos, recipe, **options):
        if recipe.name == "good":
            raise KeyboardInterrupt
        return fit(photos, recipe, **options)

    monkeypatch.setattr(run_series, "fit", interrupt)
    assert run_cli("sweep", "photos", "--out", tmp_path / "sweep") == 130
    assert f"repeat the same command with --out {tmp_path / 'sweep'}" in capsys.readouterr().err
    monkeypatch.setattr(run_series, "fit", fit)
    assert run_cli("sweep", "photos", "--out", tmp_path / "sweep") == 0
    assert fake_fit == ["quick-split0-seed0", "good-split0-seed0"]


@pytest.mark.parametrize("error", [MachineError("out of memory"), ValueError("a bug")])
def test_a_failing_run_does_not_lose_the_others(error, fake_fit, tmp_path, monkeypatch, capsys):
    fit = run_series.fit

    def fail(photos, recipe, **options):
        if recipe.name == "baseline":
            raise error
        return fit(photos, recipe, **options)

    monkeypatch.setattr(run_series, "fit", fail)
    arguments = ["sweep", "photos", "--recipes", "baseline,quick,good", "--out", tmp_path / "sweep"]
    assert run_cli(*arguments) == 1
    output = capsys.readouterr()
    assert output.out == f"{tmp_path / 'sweep'}\n"
    assert [line[:21] for line in output.err.splitlines() if line.startswith("run ")] == [
        "run 1 of 3: baseline-",
        "run 2 of 3: accuracy ",
        "run 3 of 3: accuracy ",
    ]
    assert "good is better than quick" in output.err
    assert (
        f"failed: baseline-split0-seed0: {str(error) if isinstance(error, MachineError) else 'ValueError: a bug'}"
        in output.err
    )
    [page] = (tmp_path / "sweep").glob("*.html")
    reason = str(error) if isinstance(error, MachineError) else "ValueError: a bug"
    assert f"Not finished: baseline-split0-seed0 ({reason})." in page.read_text("utf-8")


def test_if_every_run_fails_the_first_error_is_raised(fake_fit, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise MachineError("out of memory")

    monkeypatch.setattr(run_series, "fit", fail)
    with pytest.raises(MachineError, match="out of memory"):
        ikebana.sweep("photos", ("quick", "good"), out=tmp_path / "sweep")


def test_a_single_recipe_gives_a_table_without_pairs(fake_fit, tmp_path):
    result = ikebana.sweep("photos", ("quick",), out=tmp_path / "sweep")
    assert result.comparison is not None
    assert result.comparison.pairs == ()
    assert "quick" in repr(result)
    assert "1 run in" in result._repr_html_()
    page = (tmp_path / "sweep" / "comparison.html").read_text("utf-8")
    assert "<h1>Accuracy of quick</h1>" in page
    assert 'id="differences"' not in page


def test_another_recipe_in_the_folder_is_refused(fake_fit, tmp_path):
    ikebana.sweep("photos", ("quick",), out=tmp_path / "sweep")
    with pytest.raises(RunError, match="another recipe"):
        ikebana.sweep("photos", ("quick",), out=tmp_path / "sweep", image_size=96)


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_is_no_folder_for_a_sweep(is_finished, fake_fit, tmp_path):
    run = write_run(tmp_path / "run", is_finished=is_finished)
    files = sorted(run.folder.rglob("*"))
    with pytest.raises(RunError, match="this is a run, not a folder of runs"):
        ikebana.sweep("photos", ("quick",), out=run.folder)
    assert sorted(run.folder.rglob("*")) == files
    assert not fake_fit


def test_wrong_sweeps_are_refused_before_any_training(fake_fit, tmp_path):
    for recipes, options, message in [
        ((), {}, "no recipes"),
        ("quick", {}, "no recipes"),
        (("quick", "quick"), {}, "two recipes are called quick"),
        (("quick",), {"seeds": 0}, "--seeds is 0"),
        (("quick",), {"split_seeds": -1}, "--split-seeds is -1"),
        (("quick",), {"seed": 1}, "--seed has no effect"),
        (("quick",), {"minutes": 0}, "--minutes is 0"),
        (("nonsense",), {}, "no recipe 'nonsense'"),
    ]:
        with pytest.raises(RecipeError, match=message):
            ikebana.sweep("photos", recipes, out=tmp_path / "sweep", **options)
    assert not fake_fit


def test_several_splits_of_photos_that_come_with_one_are_refused(fake_fit, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(sources, "read", lambda photos, order=(): replace(make_listed(), photos=PHOTOS))
    with pytest.raises(PhotosError, match="come with a split"):
        ikebana.sweep("photos", ("quick",), split_seeds=2, out=tmp_path / "sweep")


# --- minutes ---


@pytest.fixture
def costs(monkeypatch):
    """Estimated seconds by recipe, which tests may change."""
    seconds = {"quick": 40.0, "good": 300.0, "best": 1200.0}

    def estimate(photos, recipe, **_):
        return seconds[recipe if isinstance(recipe, str) else recipe.name]

    monkeypatch.setattr(budget, "estimate_seconds", estimate)
    monkeypatch.setattr(budget, "_count_training_photos_per_class", lambda dataset: 500)
    return seconds


@pytest.mark.parametrize(("minutes", "name"), [(1, "quick"), (5, "good"), (19.9, "good"), (20, "best")])
def test_the_most_accurate_recipe_that_fits_is_chosen(minutes, name, costs, fake_fit, messages):
    assert budget.choose_recipe("photos", minutes) == name
    assert f"{name} fits into {minutes:g} min" in messages[-1]


def test_too_few_minutes_are_refused_with_what_the_fastest_needs(costs, fake_fit):
    with pytest.raises(
        RecipeError, match=r"no recipe fits into 0.5 min \(best: about 20 min; good: about 5 min; quick: about 40 s"
    ) as error:
        budget.choose_recipe("photos", 0.5)
    assert error.value.advice == "--minutes 1"
    for minutes in (0, -1, float("nan")):
        with pytest.raises(RecipeError, match="--minutes is"):
            budget.choose_recipe("photos", minutes)


def test_few_photos_are_not_fine_tuned_however_many_minutes(costs, fake_fit, monkeypatch):
    monkeypatch.setattr(budget, "_count_training_photos_per_class", lambda dataset: 39)
    assert budget.choose_recipe("photos", 600) == "quick"


def test_a_recipe_that_cannot_run_here_is_passed_over(costs, fake_fit, monkeypatch, messages):
    estimate = budget.estimate_seconds

    def refuse_best(photos, recipe, **options):
        if recipe == "best":
            raise MachineError("no weights of lite2")
        return estimate(photos, recipe, **options)

    monkeypatch.setattr(budget, "estimate_seconds", refuse_best)
    assert budget.choose_recipe("photos", 600) == "good"
    assert "best: no weights of lite2" in messages[-1]


def test_fit_with_minutes_and_a_recipe_is_refused():
    with pytest.raises(RecipeError, match="--minutes chooses the recipe"):
        ikebana.fit("photos", "good", minutes=5)


def test_rounds_are_selected_whole_and_later_runs_use_the_caches():
    rounds = [["quick", "good"]] * 4
    costs = {"quick": RunCost(100, 10), "good": RunCost(60, 60)}
    assert select_rounds(rounds, costs, minutes=2) == (0, 0)
    assert select_rounds(rounds, costs, minutes=160 / 60) == (1, 160)
    assert select_rounds(rounds, costs, minutes=299 / 60) == (2, 230)
    assert select_rounds(rounds, costs, minutes=60) == (4, 370)
    # Finished runs cost nothing.
    assert select_rounds([[], ["quick", "good"]], costs, minutes=3) == (2, 160)


def test_a_sweep_with_minutes_leaves_out_rounds_and_then_recipes(costs, fake_fit, tmp_path, messages):
    ikebana.sweep("photos", ("quick", "good"), seeds=3, out=tmp_path / "a", minutes=10)
    assert fake_fit == ["quick-split0-seed0", "good-split0-seed0"]
    assert any("1 of 3 rounds of quick, good fit into 10 min" in text for text in messages)
    fake_fit.clear()
    ikebana.sweep("photos", ("quick", "good"), seeds=2, out=tmp_path / "b", minutes=2)
    assert fake_fit == ["quick-split0-seed0", "quick-split0-seed1"]
    assert any("left out: good (about 5 min per run)" in text for text in messages)
    with pytest.raises(RecipeError, match=r"no run fits into 0.1 min"):
        ikebana.sweep("photos", ("quick", "good"), out=tmp_path / "c", minutes=0.1)


def test_the_resumed_sweep_counts_only_missing_runs(costs, fake_fit, tmp_path):
    ikebana.sweep("photos", ("quick", "good"), seeds=2, out=tmp_path / "a", minutes=6)
    fake_fit.clear()
    ikebana.sweep("photos", ("quick", "good"), seeds=2, out=tmp_path / "a", minutes=6)
    assert fake_fit == ["quick-split0-seed1", "good-split0-seed1"]


def test_photos_per_class_are_training_photos():
    assert budget._count_training_photos_per_class(make_listed()) == pytest.approx(0.6 * 24)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_real_sweep_compares_two_recipes_on_two_splits(drawn, tmp_path):
    small = {"batch_size": 16, "epochs": 1, "precision": "float32", "image_size": 48}
    recipes = [ikebana.RECIPES["baseline"], RECIPES["augmented"]]
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'ikebana[tensorboard]'")
    result = ikebana.sweep(drawn(10), recipes, split_seeds=2, out=tmp_path / "sweep", log="tensorboard", **small)
    assert not result.failures
    # Each run has a log of its own.
    assert len(list((tmp_path / "sweep").glob("*/tensorboard/events.*"))) == 4
    assert result.comparison is not None
    (pair,) = result.comparison.pairs
    assert (pair.first, pair.second, len(pair.by_split)) == ("baseline", "augmented", 2)
    estimate = budget.estimate_run_cost(drawn(10), ikebana.RECIPES["quick"])
    assert 0 < estimate.later <= estimate.first
