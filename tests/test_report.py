"""The report of a run: complete, safe with any names, one file of bounded size."""

import json
import os
import re
import subprocess
import sys

import polars as pl
import pytest
from support.browser import find_covered_headings
from support.html_reader import Reader
from support.runs_with_photos import make_run

import ikebana
from ikebana.errors import MachineError, RunError, UsageError
from ikebana.recipe import Recipe
from ikebana.reports import mistakes, report_page, report_pictures, report_text
from ikebana.runs.run import Run

SCRIPT, IMAGE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", ("daisy", "rose", "tulip"))


def test_the_page_shows_every_test_photo_and_the_numbers_of_the_evaluation(run):
    page = Reader(report_page.render(run))
    shown = " ".join(value or "" for value in page.values("alt"))
    for photo in mistakes.read_held_out(run).test:
        assert f"{photo.label}: {photo.path}" in shown
    low, high = run.evaluation.accuracy_interval
    correct = sum(row[index] for index, row in enumerate(run.evaluation.confusion))
    assert f"It classified {correct} of {run.evaluation.n} test photos correctly" in page.text
    assert f"expect {low:.1%} to {high:.1%}" in page.text
    wrong = run.evaluation.n - correct
    assert f"{wrong} mistakes" in page.text


def test_each_cell_of_the_matrix_opens_as_many_photos_as_it_counts(run):
    text = report_page.render(run)
    for row, numbers in enumerate(run.evaluation.confusion):
        for column, number in enumerate(numbers):
            assert (f'href="#cell-{row}-{column}"' in text) == bool(number)
            if number:
                group = text.split(f'<div id="cell-{row}-{column}">')[1].split("</details>")[0]
                assert group.count("<img") == number
                shares = [float(share) for share in re.findall(r"(\d+)%", re.sub(r"<img[^>]*>", "", group))]
                assert shares == sorted(shares, reverse=True)


def test_the_worst_mistakes_are_the_most_confident_answers_that_are_wrong(run):
    photos = mistakes.read_held_out(run).test
    worst = mistakes.find_worst_mistakes(photos, 5)
    answered = [photo for photo in photos if photo.predicted != photo.label and not photo.status]
    assert worst[: len(answered)] == sorted(answered, key=lambda photo: -photo.confidence)[:5]


@pytest.mark.parametrize("hostile", [SCRIPT, IMAGE])
def test_names_of_classes_photos_and_files_are_shown_as_text(hostile, tmp_path):
    classes = (f"a{hostile}".replace("/", "_"), "b")
    hostile_run = make_run(tmp_path / "run", classes, name=hostile.replace("/", "_"))
    page = Reader(report_page.render(hostile_run))
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert classes[0] in page.text
    assert f"{classes[0]}/" in page.text
    assert not [value for value in page.values("src") if not value.startswith("data:image/jpeg;base64,")]


def test_the_page_loads_nothing_and_each_link_has_its_target(run):
    text = report_page.render(run)
    page = Reader(text)
    identifiers = page.values("id")
    assert len(identifiers) == len(set(identifiers))
    for target in page.values("href"):
        assert target.startswith("#")
        assert target[1:] in identifiers
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#[^)]*\)", "", text)


def test_the_same_run_gives_the_same_bytes(run):
    assert report_page.render(Run(run.folder)) == report_page.render(Run(run.folder))


def test_the_page_has_as_many_photos_as_fit_and_says_how_many_are_missing(run, monkeypatch):
    monkeypatch.setattr(report_page, "MAX_LIST_BYTES", 12_000)
    page = Reader(report_page.render(run))
    shown = len(set(page.values("src")))
    assert 3 < shown < run.evaluation.n + 20
    assert re.search(r"\d+ photos? (is|are) not on this page", page.text)


def test_mistakes_come_first_where_not_all_photos_fit(run):
    photos = report_pictures.order_by_importance(mistakes.read_held_out(run).test)
    first_correct = next(number for number, photo in enumerate(photos) if photo.is_correct)
    assert all(photo.is_correct for photo in photos[first_correct:])
    classes = [photo.label for photo in photos[first_correct : first_correct + 3]]
    assert len(set(classes)) == 3


@pytest.mark.parametrize("count", [2, 100])
def test_two_classes_and_a_hundred_classes_have_a_page(count, tmp_path):
    classes = tuple(f"class {number:03}" for number in range(count))
    many = make_run(tmp_path / "run", classes, photos_per_class=6)
    page = Reader(report_page.render(many))
    assert ("too many classes for a matrix" in page.text) == (count == 100)
    assert "class 001" in page.text


def test_a_run_without_thumbnails_figures_and_optional_scores_has_a_page(tmp_path):
    old = make_run(tmp_path / "run", ("a", "b"))
    for file in (old.folder / "thumbnails").iterdir():
        file.unlink()
    (old.folder / "thumbnails").rmdir()
    scores = json.loads((old.folder / "evaluation.json").read_text("utf-8"))
    optional = ("cross_validation", "learning_curves", "unknown_objects", "risk_coverage", "candidates", "slices")
    older = {name: value for name, value in scores.items() if name not in (*optional, "robustness", "seconds")}
    older |= dict.fromkeys(("threshold", "answered_share", "answered_accuracy"))
    (old.folder / "evaluation.json").write_text(json.dumps(older), "utf-8")
    for name in ("audit.json", "layers.txt"):
        (old.folder / name).unlink()
    page = Reader(report_page.render(Run(old.folder)))
    assert "no preview" in page.text
    assert "Too few validation photos" in page.text


def test_a_damaged_thumbnail_is_left_out(tmp_path):
    damaged = make_run(tmp_path / "run", ("a", "b"))
    for file in (damaged.folder / "thumbnails").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert "no preview" in Reader(report_page.render(damaged)).text


def test_a_network_without_mistakes_has_a_page_that_says_so(tmp_path):
    page = Reader(report_page.render(make_run(tmp_path / "run", ("a", "b"), accuracy=1.0)))
    assert "it made no mistake on the test photos" in page.text
    assert 'id="mistakes"' not in str(page.attributes)


def test_a_recorded_suggestion_is_a_command_to_copy(tmp_path):
    advised = make_run(tmp_path / "run", ("a", "b"))
    suggestion = {"text": "more accurate", "command": "ikebana fit x --recipe good", "note": "about 4 min here"}
    (advised.folder / "suggestion.json").write_text(json.dumps(suggestion), "utf-8")
    page = Reader(report_page.render(advised))
    assert "Try a recipe that is more accurate (about 4 min here)." in page.text
    assert "ikebana fit x --recipe good" in page.text


def test_report_writes_into_the_run_or_where_the_user_wants_it(run, tmp_path):
    assert ikebana.report(run) == run.folder / "report.html"
    assert ikebana.report(run.folder, tmp_path / "new" / "page.html").exists()
    first = (tmp_path / "new" / "page.html").read_bytes()
    ikebana.report(run, tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").read_bytes() == first


def test_report_refuses_what_it_cannot_or_must_not_write(run, tmp_path):
    (tmp_path / "thesis.html").write_text("<title>mine</title>")
    with pytest.raises(MachineError, match="exists and is not a report"):
        ikebana.report(run, tmp_path / "thesis.html")
    assert (tmp_path / "thesis.html").read_text() == "<title>mine</title>"
    with pytest.raises(MachineError, match="this is a folder"):
        ikebana.report(run, tmp_path)
    with pytest.raises(UsageError, match=r"must end in \.html"):
        ikebana.report(run, tmp_path / "model.onnx")
    with pytest.raises(MachineError, match="a file is in the way"):
        ikebana.report(run, tmp_path / "thesis.html" / "page.html")


def test_report_refuses_unfinished_damaged_and_missing_runs(tmp_path):
    unfinished = make_run(tmp_path / "run", ("a", "b"))
    (unfinished.folder / "evaluation.json").rename(tmp_path / "evaluation.json")
    with pytest.raises(RunError, match="has not finished"):
        ikebana.report(unfinished.folder)
    (tmp_path / "evaluation.json").rename(unfinished.folder / "evaluation.json")
    (unfinished.folder / "predictions.parquet").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"predictions\.parquet cannot be read"):
        ikebana.report(unfinished.folder)
    assert not (unfinished.folder / "report.html").exists()
    with pytest.raises(RunError, match="no such run folder"):
        ikebana.report(tmp_path / "nothing")


@pytest.mark.slow
def test_the_command_ends_with_the_file(run):
    command = [sys.executable, "-m", "ikebana", "report", str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{run.folder / 'report.html'}\n"
    events = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert json.loads(events[-1]) == {"event": "done", "report": str(run.folder / "report.html")}


def test_a_cell_opens_its_photos_without_javascript_and_nothing_is_requested(run, browser, tmp_path):
    file = ikebana.report(run, tmp_path / "page.html")
    for has_scripts in (False, True):
        context = browser.new_context(java_script_enabled=has_scripts, viewport={"width": 390, "height": 800})
        page = context.new_page()
        requests, messages = [], []
        page.on("request", lambda request, urls=requests: urls.append(request.url))
        page.on("console", lambda message, texts=messages: texts.append(message.text))
        page.goto(file.as_uri())
        link = page.locator(".matrix td a").first
        target = page.locator(link.get_attribute("href"))
        assert not target.is_visible()
        link.click()
        target.wait_for(state="visible")
        assert target.locator("img").first.is_visible()
        assert not messages
        assert not [url for url in requests if not url.startswith(("file:", "data:"))]
        if has_scripts:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
        context.close()


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_the_menu_covers_no_heading_that_its_links_jump_to(run, visit, width, tmp_path):
    page = visit(ikebana.report(run, tmp_path / "page.html").as_uri())
    assert find_covered_headings(page, width) == []


@pytest.fixture(scope="module")
def trained(drawn, fit_in_cache):
    """A run of `fit` that cannot give its guarantee."""
    return fit_in_cache(
        drawn(60), "baseline", image_size=48, batch_size=16, epochs=2, precision="float32", at_most_wrong=0.12
    )


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_fit_writes_the_report(trained):
    text = (trained.folder / "report.html").read_text("utf-8")
    assert f"{trained.evaluation.accuracy:.1%}" in text


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_recorded_neighbours_of_mistakes_are_those_of_explain(trained):
    table = trained.mistake_neighbours
    assert table is not None
    paths = table["path"].unique(maintain_order=True).to_list()
    wrong = [photo.path for photo in mistakes.read_held_out(trained).test if not photo.is_correct]
    assert set(paths) <= set(wrong)
    splits = dict(trained.dataset.filter(status="used").select("path", "split").iter_rows())
    assert {splits[path] for path in table["neighbour"]} == {"train"}
    assert all((trained.folder / "thumbnails" / f"{sha256}.jpg").exists() for sha256 in table["sha256"])
    root = trained.source["photos"]
    for path in paths[:3]:
        (explanation,) = ikebana.explain(trained, os.path.join(root, path), count=1)
        recorded = table.filter(pl.col("path") == path)["similarity"][0]
        assert recorded == pytest.approx(explanation.neighbours[0].similarity, abs=0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_missing_report_is_written_again_without_the_photos(trained, tmp_path, monkeypatch):
    before = (trained.folder / "report.html").read_bytes()
    (trained.folder / "report.html").unlink()
    ikebana.resume(trained.folder)
    assert (trained.folder / "report.html").exists()
    assert len((trained.folder / "report.html").read_bytes()) == pytest.approx(len(before), rel=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_failed_guarantee_is_a_warning_with_advice(trained, drawn, tmp_path, caplog):
    guarantee = trained.evaluation.risk_coverage.guarantee
    assert not guarantee.holds
    from ikebana.runs.run_writer import RunWriter

    RunWriter(Run(trained.folder)).report(trained.evaluation, trained.evaluation.seconds)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("the threshold has no guarantee\n  try  " in warning for warning in warnings)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize("options", [{"refit_on_all": True}, {"network": "tutorial+tutorial"}])
def test_refits_and_ensembles_have_a_report(options, drawn, fit_in_cache):
    small = {"image_size": 48, "batch_size": 16, "epochs": 2, "precision": "float32", **options}
    trained = fit_in_cache(drawn(10), "baseline", **small)
    assert "ikebana report" in (trained.folder / "report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_module_of_the_user_has_a_report_with_commands_in_python(drawn, fit_in_cache):
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 11 * 11, 5))
    trained = fit_in_cache(drawn(10), model=model, image_size=48, batch_size=16, epochs=1, precision="float32")
    assert "model=model" in (trained.folder / "report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_heat_maps_are_shown_where_they_passed_their_check_and_only_there(trained, tmp_path):
    page = ikebana.report(trained, tmp_path / "page.html", heat_maps=True).read_text("utf-8")
    shown = page.count("what speaks for") // 2
    assert shown + page.count("No heat map: hiding its warm parts lowers") == len(
        report_page.list_worst_mistakes(trained)
    )
    assert "what speaks for" not in ikebana.report(trained, tmp_path / "page.html").read_text("utf-8")


def test_a_picture_is_a_heat_map_only_if_it_may_be_shown(run):
    first, second, *_ = report_page.list_worst_mistakes(run)
    source = "data:image/jpeg;base64,AAAA"
    pictures = {
        first.path: report_page.HeatMapPicture(source),
        second.path: report_page.HeatMapPicture(""),
    }
    text = report_page.render(run, pictures)
    assert text.count(source) == 1
    assert text.count("No heat map: hiding its warm parts lowers") == 1


def test_heat_maps_of_a_network_that_was_trained_on_test_photos_are_refused(tmp_path):
    refitted = make_run(tmp_path / "run", ("a", "b"), recipe=Recipe(name="baseline", image_size=24, refit_on_all=True))
    with pytest.raises(RunError, match="was retrained on its test photos"):
        ikebana.report(refitted, heat_maps=True)


def test_a_weak_network_makes_no_labels_suspect(tmp_path):
    weak = make_run(tmp_path / "run", ("a", "b", "c"), photos_per_class=90, accuracy=0.1)
    suspects = mistakes.find_suspect_labels(weak, mistakes.read_held_out(weak))
    assert all(suspect.probability is not None for suspect in suspects)


def test_all_classes_that_are_equally_hard_are_named():
    recall = {"daisy": 0.9, "rose": 0.9, "tulip": 0.95}
    assert report_text._describe_extremes(recall, True) == (
        "Hardest: daisy and rose (90.0% recognised in cross-validation). Easiest: tulip (95.0%)."
    )
    assert report_text._describe_extremes(dict.fromkeys(recall, 0.9), False).startswith("No class is harder")
