"""The nearest training photos on the page: served and in the browser, as Python finds them."""

import base64
import json

import pytest
from PIL import Image
from support.browser import choose_photos, serve_files
from support.images import encode_image
from support.server import RED, run_server

import ikebana
from ikebana.evaluation.drawn_images import draw_images
from ikebana.exporting import web

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(drawn, fit_in_cache):
    """A run with nearest training photos."""
    return fit_in_cache(drawn(60), "quick", image_size=96)


@pytest.fixture(scope="module")
def classifier(run):
    return ikebana.export(run, run.folder.parent / "paper.onnx", with_neighbours=True)


@pytest.fixture(scope="module")
def photos(run, drawn):
    paths = run.predictions.filter(split="test")["path"].gather_every(12)[:6]
    return {path.replace("/", "-"): (drawn(60) / path).read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(run):
    ikebana.export_web(run, run.folder.parent / "web", with_neighbours=True)
    return run.folder.parent / "web"


def skip_without_runtime(folder):
    if json.loads((folder / "model.json").read_text("utf-8"))["runtime"]["place"] == web.RUNTIME_CDN_URL:
        pytest.skip("npm cannot give onnxruntime-web here")


def read_neighbours(card):
    """The labels, paths and similarities that a card shows."""
    card.locator(".neighbours summary").click()
    names = card.locator(".neighbours .name")
    similarities = [
        float(text.removeprefix("similarity ")) for text in card.locator(".neighbours .similarity").all_inner_texts()
    ]
    paths = [name.get_attribute("title") for name in names.all()]
    return list(zip(paths, names.all_inner_texts(), similarities, strict=True))


def check(cards, photos, classifier):
    for card, data in zip(cards, photos.values(), strict=True):
        expected = classifier.find_neighbours(data)
        shown = read_neighbours(card)
        # The browser decodes JPEGs with another decoder.
        assert [similarity for *_, similarity in shown] == pytest.approx(
            [neighbour.similarity for neighbour in expected], abs=0.03
        )
        assert shown[0][0] == expected[0].path or shown[0][2] - shown[1][2] < 0.03
        labels = {neighbour.path: neighbour.label for neighbour in classifier.find_neighbours(data, 300)}
        assert all(labels[path] == label for path, label, _ in shown)
        for picture in card.locator(".neighbours img").all():
            assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96


def test_the_browser_calls_drawn_texts_unlike_the_training_photos_as_python_does(visit, folder, classifier):
    skip_without_runtime(folder)
    images = draw_images(classifier.image_size, 4)["text"]
    texts = {f"text {number}.png": encode_image(Image.fromarray(image), "PNG") for number, image in enumerate(images)}
    with serve_files(folder) as address:
        cards = choose_photos(visit(address), *texts.items())
        for card, data in zip(cards, texts.values(), strict=True):
            expected = classifier.predict([data])[0]
            assert expected.status == "unknown"
            assert card.locator(".answer").inner_text() == "Unlike the training photos"
            assert card.locator(".reason").inner_text() == f"The closest class is {expected.closest_class}."


def test_the_browser_finds_the_training_photos_that_python_finds(visit, folder, photos, classifier):
    skip_without_runtime(folder)
    with serve_files(folder) as address:
        check(choose_photos(visit(address), *photos.items()), photos, classifier)


def test_the_served_page_shows_the_training_photos_that_python_finds(visit, photos, classifier):
    with run_server(classifier) as served:
        check(choose_photos(visit(served.url), *photos.items()), photos, classifier)


def test_the_folder_has_a_picture_per_training_photo(folder, classifier):
    values = json.loads((folder / "neighbours.json").read_text("utf-8"))
    index = classifier.get_neighbour_index()
    assert tuple(values["paths"]) == index.paths
    assert "thumbnails" not in values
    for number, thumbnail in enumerate(index.thumbnails):
        assert (folder / f"training-photos/{number}.jpg").read_bytes() == thumbnail
    assert b"thumbnails" not in (folder / "model.onnx").read_bytes()


def test_the_api_returns_training_photos_only_if_asked(classifier, photos):
    data = next(iter(photos.values()))
    expected = classifier.find_neighbours(data, 2)
    with run_server(classifier) as served:
        plain = served.client.post("/predict", content=data).json()["predictions"][0]
        asked = served.client.post("/predict?neighbours=2", content=data).json()["predictions"][0]
        refused = [
            served.client.post(f"/predict?neighbours={text}", content=data) for text in ("-1", "21", "x", "9" * 99)
        ]
        assert served.client.get("/classes").json()["has_neighbours"]
    assert plain["neighbours"] == []
    assert [neighbour["path"] for neighbour in asked["neighbours"]] == [neighbour.path for neighbour in expected]
    assert base64.b64decode(asked["neighbours"][0]["thumbnail"]) == expected[0].thumbnail
    assert {response.status_code for response in refused} == {400}


def test_a_model_without_training_photos_returns_none():
    with run_server() as served:
        response = served.client.post("/predict?neighbours=3", content=RED)
        assert response.json()["predictions"][0]["neighbours"] == []
        assert not served.client.get("/classes").json()["has_neighbours"]
