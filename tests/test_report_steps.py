"""The first screen of a report: what it says, and what to do next."""

import json
from dataclasses import replace

import numpy as np
import pytest
from support.runs_with_photos import make_run

from ikebana.evaluation.learning_curves import Forecast, LearningCurve
from ikebana.evaluation.metrics import MIN_CALIBRATION_PHOTOS, evaluate
from ikebana.evaluation.slices import Slice, Slices
from ikebana.recipe import LinearProbe, Recipe
from ikebana.reports import mistakes, report_page, report_steps, report_text
from ikebana.runs.run import Run

CLASSES = ("daisy", "rose", "tulip")
QUICK = Recipe(name="quick", network="tf_efficientnet_lite0", image_size=24, method=LinearProbe())


@pytest.fixture(scope="module")
def strong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strong") / "run"
    return make_run(folder, CLASSES, photos_per_class=90, accuracy=0.9, recipe=QUICK)


def score(confusion):
    """Score answers with these numbers of photos [true, predicted]."""
    pairs = [(row, column) for row, line in enumerate(confusion) for column, n in enumerate(line) for _ in range(n)]
    labels, predicted = np.array(pairs).T
    return evaluate(np.eye(len(confusion))[predicted], labels, CLASSES)


def list_commands(run):
    held_out = mistakes.read_held_out(run)
    suspects = mistakes.find_suspect_labels(run, held_out)
    worst = mistakes.find_worst_mistakes(held_out.test, 3)
    return [step.command for step in report_steps.suggest_next_steps(run, suspects, worst)]


def describe_confusion(confusion):
    answers = report_text._describe_confusion(score(confusion))
    return answers[0]


def test_the_most_frequent_confusion_is_named_and_equally_frequent_ones_are_counted():
    text = describe_confusion([[20, 3, 1], [1, 20, 1], [1, 0, 20]])
    assert text == "Most often, daisy is mistaken for rose (3 of 24). 4 other pairs have 1 mistake each."
    assert describe_confusion([[20, 1, 1], [1, 20, 1], [0, 0, 20]]).startswith("No pair of classes stands out: 4 pairs")
    assert describe_confusion([[20, 3, 0], [2, 20, 0], [0, 1, 20]]) == (
        "Most often, daisy is mistaken for rose (3 of 23), then rose for daisy (2 of 22) and tulip for rose (1 of 21)."
    )


def test_a_weak_network_is_replaced_before_anything_else(tmp_path):
    weak = make_run(tmp_path / "run", CLASSES, photos_per_class=30, accuracy=0.2)
    first, *others = list_commands(weak)
    assert first.endswith("--recipe quick")
    assert not [command for command in others if "export" in command or "--out" in command]
    assert 'id="suspects"' not in report_page.render(weak)


def test_a_strong_network_explains_its_worst_mistake_and_is_exported(strong):
    commands = list_commands(strong)
    worst = mistakes.find_worst_mistakes(mistakes.read_held_out(strong).test, 1)[0]
    assert any(command.startswith("ikebana explain") and worst.path in command for command in commands)
    assert commands[-1].startswith("ikebana export")


@pytest.mark.parametrize(("low", "high", "is_suggested"), [(-0.007, 0.011, False), (-0.005, 0.03, True)])
def test_photos_are_suggested_only_where_they_are_likely_to_help(low, high, is_suggested, strong, tmp_path):
    curve = LearningCurve("", (50, 100), (0.8, 0.9), ((0.7, 0.9),) * 2, Forecast(100, 0.9 + low, 0.9 + high))
    scored = replace(strong.evaluation, learning_curves=(curve,))
    (step,) = report_steps._suggest_photos(scored, "photos")
    assert step.text.startswith("Add photos" if is_suggested else "More photos of the same kind may not help")
    assert bool(step.command) == is_suggested


@pytest.mark.parametrize("p_value", [0.2, 0.004])
def test_a_group_that_is_harder_is_a_next_step(p_value, strong):
    tested = Slice("site", "Lund", 10, 0.5, (0.2, 0.8), 0.9, p_value)
    steps = report_steps._suggest_groups(replace(strong.evaluation, slices=Slices((tested,))))
    texts = [step.text for step in steps]
    assert ["Look at photos where site is Lund: 50.0% of these" in text for text in texts] == [True] * (p_value < 0.05)
    assert [step.link for step in steps] == ["groups"] * (p_value < 0.05)


def test_a_threshold_from_few_photos_is_called_rough(strong):
    for photos, is_rough in ((MIN_CALIBRATION_PHOTOS - 1, True), (MIN_CALIBRATION_PHOTOS, False), (None, False)):
        scored = replace(strong.evaluation, calibration_photos=photos)
        assert scored.is_threshold_rough == is_rough
        assert ("rough estimate" in repr(scored)) == is_rough
        assert ("rough estimate" in " ".join(report_text._describe_confidence(scored))) == is_rough


def test_commands_have_paths_as_a_user_in_this_folder_writes_them(strong, tmp_path, monkeypatch):
    monkeypatch.chdir(strong.folder.parent)
    assert "ikebana export run model.onnx" in list_commands(strong)
    monkeypatch.chdir(tmp_path)
    assert f"ikebana export {strong.folder} model.onnx" in list_commands(strong)


def test_a_fitted_head_has_no_epochs_on_its_card(strong, tmp_path):
    assert "<dt>epochs</dt>" not in report_page.render(strong)
    assert "<dt>epochs</dt>" in report_page.render(make_run(tmp_path / "run", CLASSES))


@pytest.mark.parametrize(
    ("p_value", "heading"), [(0.2, "No group of photos is worse"), (0.004, "1 group of photos is")]
)
def test_groups_of_photos_are_folded_unless_one_is_harder(p_value, heading, tmp_path):
    run = make_run(tmp_path / "run", CLASSES)
    values = json.loads((run.folder / "evaluation.json").read_text("utf-8"))
    tested = {"name": "site", "value": "Lund", "n": 10, "accuracy": 0.5, "accuracy_interval": [0.2, 0.8]}
    tested |= {"accuracy_of_others": 0.9, "p_value": p_value}
    values["slices"] = {"tested": [tested], "significance_level": 0.05}
    (run.folder / "evaluation.json").write_text(json.dumps(values), "utf-8")
    section = report_page.render(Run(run.folder)).split('<section id="groups">')[1].split("</section>")[0]
    assert heading in section
    assert ("<details open>" in section) == (p_value < 0.05)
    assert ("&lt;0.01" if p_value < 0.01 else "0.20") in section
