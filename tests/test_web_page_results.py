"""All predictions of the page together: summary, compact list, table, and the name of the classifier."""

import csv

import numpy as np
import polars as pl
import pytest
from PIL import Image
from support.browser import choose_photos
from support.images import encode_image
from support.server import BLUE, GREY, RED, BrightestChannelClassifier, encode_square, run_server

from ikebana.evaluation.familiarity import Projection
from ikebana.inference.neighbours import NeighbourIndex
from ikebana.inference.prediction import to_prediction
from ikebana.inference.table_formats import format_row, get_column_names, to_row

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def served():
    with run_server() as server:
        yield server


def make_photos(count: int, data: bytes = RED) -> list[tuple[str, bytes]]:
    return [(f"{number}.png", data) for number in range(count)]


def read_download(page, tmp_path) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "predictions.csv"
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_summary_counts_the_answers_the_most_frequent_class_first(visit, served):
    page = visit(served.url)
    choose_photos(page, ("a.png", RED))
    assert page.locator("#summary").inner_text() == ""
    black, text = encode_square("black"), b"text, no photo"
    photos = [("b.png", BLUE), ("c.png", BLUE), ("d.png", GREY), ("e.png", black), ("f.jpg", text)]
    choose_photos(page, *photos)
    expected = "2 blue, 1 red, 1 not sure, 1 unlike the training photos, 1 not classified"
    assert page.locator("#summary").inner_text() == expected
    page.click("[aria-label='Remove a.png']")
    assert page.locator("#summary").inner_text() == expected.replace("1 red, ", "")


def test_a_class_may_have_the_name_of_a_state(visit):
    classifier = BrightestChannelClassifier(classes=("waiting", "not sure", "blue"))
    classifier.gate.set()
    with run_server(classifier) as served:
        page = visit(served.url)
        choose_photos(page, ("a.png", RED), ("b.png", RED), ("c.png", GREY))
        assert page.locator("#summary").inner_text() == "2 waiting, 1 not sure"


def test_beyond_five_photos_the_list_is_compact_until_the_user_chooses(visit, served):
    page = visit(served.url)
    choose_photos(page, *make_photos(5))
    assert page.locator("#layout").is_hidden()
    assert page.locator(".card .bars").first.is_visible()
    tall = page.locator("#answers").bounding_box()["height"]
    choose_photos(page, *make_photos(6))
    assert not page.locator(".card .bars").first.is_visible()
    assert page.locator("#answers").bounding_box()["height"] < tall
    page.get_by_role("button", name="Show details").click()
    assert page.locator(".card .bars").first.is_visible()
    choose_photos(page, *make_photos(2))
    assert page.locator(".card .bars").first.is_visible()
    page.get_by_role("button", name="Compact list").click()
    assert not page.locator(".card .bars").first.is_visible()


@pytest.mark.parametrize("width", [320, 390])
def test_a_compact_list_does_not_scroll_sideways(visit, served, width):
    page = visit(served.url, viewport={"width": width, "height": 700})
    choose_photos(page, *((f"{'a-long-name-' * 9}{number}.png", RED) for number in range(7)))
    assert page.locator("html").evaluate("each => each.scrollWidth") <= width


def test_the_table_has_the_columns_and_values_of_predict(visit, tmp_path):
    classes = ('"red", or; pink', "gr\\een", HOSTILE)
    classifier = BrightestChannelClassifier(classes=classes)
    classifier.gate.set()
    with run_server(classifier) as served:
        page = visit(served.url)
        orange = encode_square("#ff6400")
        photos = [("=a,b.png", orange), (f"{HOSTILE}.png", GREY), ("c.jpg", b"text, no photo")]
        choose_photos(page, *photos)
        rows = read_download(page, tmp_path)
        responses = served.client.post("/predict", content=orange).json()["predictions"]
    assert list(rows[0]) == get_column_names(classes)
    assert [row["path"] for row in rows] == [name for name, _ in photos]
    probabilities = [responses[0]["probabilities"][name] for name in classes]
    expected = to_prediction(
        probabilities, classes, classifier.threshold, candidate_rule=classifier.candidate_rule,
        familiarity=responses[0]["familiarity"], path="=a,b.png",
    )  # fmt: skip
    assert list(rows[0].values()) == format_row(to_row(expected, classes))
    assert (rows[1]["label"], rows[1]["status"]) == ("", "not sure")
    assert rows[2]["status"] == "Not a photo: text"
    assert pl.read_csv(tmp_path / "predictions.csv").height == 3


def test_an_answer_without_a_class_emphasises_none(visit, served):
    page = visit(served.url)
    named, unsure, unknown = choose_photos(page, ("a.png", RED), ("b.png", GREY), ("c.png", encode_square("black")))
    read = """each => {
      const [label, fill] = [".label", ".fill"].map((name) => getComputedStyle(each.querySelector(name)));
      return [label.fontWeight, fill.backgroundColor];
    }"""
    weight, colour = named.locator(".bars").evaluate(read)
    for card in (unsure, unknown):
        other_weight, other_colour = card.locator(".bars").evaluate(read)
        assert int(other_weight) < int(weight)
        assert other_colour != colour
        assert other_colour == "rgba(0, 0, 0, 0)"


def make_index(labels: tuple[str, ...], has_thumbnails: bool = True) -> NeighbourIndex:
    """Make an index of photos of 8 grey levels; the first of each class is unlike its others."""
    directions = np.eye(3, dtype=np.float16)
    rows = [directions[2] if labels.index(label) == number else directions[0] for number, label in enumerate(labels)]
    thumbnails = tuple(encode_image(Image.new("RGB", (8, 8), (10 * number,) * 3)) for number in range(len(labels)))
    empty = np.zeros(3, np.float32)
    projection = Projection(empty, empty + 1, np.eye(3, dtype=np.float32), empty)
    paths = tuple(f"{number}.jpg" for number in range(len(labels)))
    return NeighbourIndex(paths, labels, projection, np.stack(rows), thumbnails if has_thumbnails else ())


def test_the_most_typical_photo_of_each_class_is_its_sample():
    index = make_index(("a", "b", "a", "a", "b", "b"))
    assert index.pick_samples(2) == {"a": index.thumbnails[2], "b": index.thumbnails[4]}
    assert index.pick_samples(1) == {}
    assert make_index(("a", "b"), has_thumbnails=False).pick_samples(9) == {}


def test_a_file_with_training_photos_shows_one_of_each_class(visit):
    labels = ("red", HOSTILE, "red", HOSTILE)
    classifier = BrightestChannelClassifier(classes=("red", HOSTILE, "blue"), neighbour_index=make_index(labels))
    classifier.gate.set()
    with run_server(classifier) as served:
        page = visit(served.url)
        page.wait_for_selector("body[data-ready]")
        assert sorted(page.locator("#samples li").all_inner_texts()) == sorted((HOSTILE, "red"))
        loaded = "images => images.every((image) => image.complete && image.naturalWidth === 8)"
        assert page.locator("#samples img").evaluate_all(loaded)


def test_a_file_without_training_photos_shows_none(visit, served):
    page = visit(served.url)
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#samples").is_hidden()


@pytest.mark.parametrize("name", ["", "flowers", HOSTILE])
def test_the_title_has_the_name_of_the_classifier(visit, name):
    with run_server(name=name) as served:
        page = visit(served.url)
        page.wait_for_selector("body[data-ready]")
        title = "What does the photo show?"
        assert page.title() == (f"{name} · {title}" if name else title)
        assert page.locator("h1").inner_text() == title
        assert page.locator("#name").inner_text() == name
        assert page.locator("#name").is_visible() == bool(name)
