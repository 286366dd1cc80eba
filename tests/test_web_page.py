"""The page in a real browser, with a server and without."""

import dataclasses
import json
import re
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from support.browser import choose_photos, serve_files
from support.images import draw_image, draw_noisy_image, encode_image
from support.server import BLUE, GREY, RED, BrightestChannelClassifier, encode_square, run_server

from ikebana.commands import export
from ikebana.errors import ModelError
from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.exporting import web
from ikebana.inference import page_files

pytestmark = pytest.mark.slow

PAGE = Path(page_files.__file__).with_name("page")


@pytest.fixture(scope="module")
def served():
    with run_server() as running_server:
        yield running_server


# --- with the server ---


def test_a_chosen_photo_is_shown_with_its_class_and_one_bar_per_class(visit, served):
    page = visit(served.url)
    (card,) = choose_photos(page, ("rose.png", RED))
    assert card.locator(".answer").inner_text().split() == ["red", ">99%"]
    assert card.locator("canvas").count() == 1
    assert card.locator(".bars li").count() == 3
    page.wait_for_timeout(700)  # the animation of the bars has ended
    wide, full = (card.locator(f"{selector} >> nth=0").bounding_box()["width"] for selector in (".fill", ".track"))
    assert wide == pytest.approx(full, abs=1)


def test_a_score_of_another_network_is_shown_with_a_note(visit, served):
    plain = visit(served.url)
    plain.wait_for_selector("body[data-ready]")
    assert "It classified" in plain.locator("#about").inner_text()
    note = "The exported network was retrained on all 400 photos with the same recipe."
    scores = {**served.classifier.metadata["scores"], "note": note}
    with run_server(BrightestChannelClassifier(metadata={"scores": scores})) as other_server:
        page = visit(other_server.url)
        page.wait_for_selector("body[data-ready]")
        about = page.locator("#about").inner_text()
    assert about.endswith(note)
    assert "It classified" not in about
    assert "The scored network classified" in about


def test_many_photos_are_each_answered_and_announced_to_screen_readers(visit, served):
    page = visit(served.url)
    photos = [("a.png", RED), ("b.png", GREY), ("c.jpg", b"text, no photo"), ("d.png", BLUE), ("e.png", b"")]
    red, unsure, text, blue, empty = choose_photos(page, *photos)
    assert "red" in red.locator(".answer").inner_text()
    assert unsure.locator(".answer").inner_text() == "Not sure"
    assert re.search(r"It might be \w+ \(33%\) or \w+ \(33%\)", unsure.locator(".reason").inner_text())
    assert text.locator(".answer").inner_text() == "Not a photo: text"
    assert "blue" in blue.locator(".answer").inner_text()
    assert not blue.locator(".reason").is_visible()
    assert empty.locator(".answer").inner_text() == "This file is empty"
    spoken = page.locator("#announcements[aria-live]")
    page.wait_for_timeout(300)
    assert spoken.text_content()


def test_other_candidates_are_named_below_the_class(visit, served):
    page = visit(served.url)
    (card,) = choose_photos(page, ("a.png", encode_square("#ff6400")))
    assert card.locator(".answer").inner_text().split() == ["red", "72%"]
    assert card.locator(".reason").inner_text() == "It might also be green (28%)."
    assert "For 90% of photos like those it learned from" in page.locator("#footnote").inner_text()


def test_the_page_works_with_the_keyboard_alone(visit, served):
    page = visit(served.url)
    choose_photos(page, ("a.png", RED), ("b.png", BLUE))
    page.locator("#choose").focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        element = page.locator(":focus")
        reached.append(element.get_attribute("aria-label") or element.inner_text() if element.count() else "")
    assert {"Clear all", "Remove a.png", "Remove b.png"} <= set(reached)
    page.locator("[aria-label='Remove a.png']").focus()
    page.keyboard.press("Enter")
    assert page.locator(".card").count() == 1
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    assert page.locator("#results").is_hidden()


def test_photos_can_be_dropped_and_pasted(visit, served):
    page = visit(served.url)
    page.wait_for_selector("body[data-ready]")
    for kind, holder in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.evaluate(
            """([kind, holder, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], kind + ".png", {type: "image/png"}));
              const event = kind === "drop" ? new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})
                : new ClipboardEvent(kind, {clipboardData: data, bubbles: true, cancelable: true});
              document.body.dispatchEvent(event);
            }""",
            [kind, holder, list(RED)],
        )
        page.wait_for_selector(f"[aria-label='Remove {kind}.png']")
    page.wait_for_selector(".card.named >> nth=1")


@pytest.mark.parametrize("width", [320, 390, 1180])
def test_the_page_never_scrolls_sideways(visit, served, width):
    page = visit(served.url, viewport={"width": width, "height": 700})
    choose_photos(
        page, ("a-very-long-name-without-a-place-to-break-it-" * 3 + ".png", RED), ("b.png", GREY), ("c", b"text")
    )
    assert page.locator("html").evaluate("each => each.scrollWidth") <= width
    for button in page.locator("button:visible, .button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 40, button.inner_text()  # large enough for a finger


def test_the_page_asks_for_the_token_until_it_is_correct(visit):
    with run_server(token="sesame") as served:
        page = visit(served.url)
        page.wait_for_selector("#token-dialog[open]")
        for token in ("wrong", "sesame"):
            page.fill("#token", token)
            page.keyboard.press("Enter")
            if token == "wrong":
                page.wait_for_selector("text=This token is wrong")
        (card,) = choose_photos(page, ("a.png", RED))
        assert "red" in card.locator(".answer").inner_text()


def test_while_the_server_is_busy_the_page_waits_and_retries(visit):
    with run_server(waiting=1) as served:
        page = visit(served.url)
        page.wait_for_selector("body[data-ready]")
        served.classifier.gate.clear()
        first = served.post_later()
        served.wait_until(lambda: served.queue.waiting_photos == 1)
        page.set_input_files("#choose", [{"name": "a.png", "mimeType": "image/png", "buffer": RED}])
        page.wait_for_selector("text=Server busy")
        served.classifier.gate.set()
        page.wait_for_selector(".card.named")
        assert first.result().status_code == 200


def test_the_api_docs_show_every_path_without_another_host(visit, served):
    page = visit(f"{served.url}/docs")
    page.wait_for_selector("section >> nth=4")
    assert page.locator("h2 code >> nth=0").inner_text() == "/predict"


# --- colours ---


def read_palette(block: str) -> dict[str, tuple[float, ...]]:
    named = re.findall(r"--([\w-]+): #(\w{6});", block)
    return {name: tuple(int(value[at : at + 2], 16) / 255 for at in (0, 2, 4)) for name, value in named}


def compute_contrast(first, second):
    """Compute the contrast ratio of WCAG 2.1."""

    def compute_luminance(colour):
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((compute_luminance(first), compute_luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme):
    blocks = re.findall(r":root \{(.*?)\}", (PAGE / "palette.css").read_text("utf-8"), re.DOTALL)
    colours = read_palette(blocks[0]) if scheme == "light" else read_palette(blocks[1])
    for text in ("ink", "quiet", "accent", "warning", "error", "note"):
        for ground in ("paper", "card", "sink") if text in ("ink", "quiet") else ("paper", "card"):
            assert compute_contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert compute_contrast(colours["on-accent"], colours["accent"]) >= 4.5
    for shape, ground in (("border", "paper"), ("border", "card"), ("bar", "sink"), ("accent", "paper")):
        assert compute_contrast(colours[shape], colours[ground]) >= 3, (shape, ground)  # graphics need a contrast of 3


# --- without a server ---


def test_the_browser_predicts_as_python_does_without_network_requests(
    visit, hosted, folder, paper_classifier, good_photos
):
    page = visit("about:blank")
    asked = []
    page.on("request", lambda request: asked.append((request.method, request.url)))
    page.goto(hosted)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = draw_image(300).resize((900, 600))
    more = {
        "lying.jpg": encode_image(upright, quality=95, exif=exif),
        "clear.png": encode_image(_half_clear(), "PNG"),
        "large.jpg": encode_image(draw_noisy_image(1900, 1300), quality=92),
        "odd.jpg": encode_image(draw_noisy_image(777, 1013), quality=92),
    }
    photos = {photo.name: photo.read_bytes() for photo in good_photos[:6]} | more
    cards = choose_photos(page, *photos.items())
    rule = CandidateRule(**json.loads((folder / "model.json").read_text("utf-8"))["candidates"])
    classifier = dataclasses.replace(paper_classifier, threshold=0.5, candidate_rule=rule)
    for card, (name, data) in zip(cards, photos.items(), strict=True):
        expected = classifier.predict(data)
        shares = dict(zip(card.locator(".label").all_inner_texts(), _shares(card), strict=True))
        assert shares == pytest.approx(expected.probabilities, abs=0.03), name
        sure = expected.confidence >= 0.5
        if abs(expected.confidence - 0.5) > 0.03:
            assert card.locator(".answer").inner_text().startswith(expected.label if sure else "Not sure"), name
            _check_candidates(card, expected, rule.limit if sure else rule.unsure_limit)
    assert {method for method, _ in asked} == {"GET"}
    assert all(url.startswith((hosted, "blob:")) for _, url in asked)


def test_the_worker_selects_exactly_the_candidates_that_python_selects(visit):
    code = (PAGE / "engine-worker.js").read_text("utf-8")
    function = code[code.index("function selectCandidates") :].split("\n}\n")[0] + "}"
    rng, rule = np.random.default_rng(0), CandidateRule(0.9, 0.25, 0.75)
    rows = rng.integers(0, 9, (500, 6)) + 1e-3 * rng.integers(0, 2, (500, 6))  # some are equal
    probabilities = ((rows + 1e-6) / (rows + 1e-6).sum(1, keepdims=True)).astype(np.float32)
    for is_sure in (True, False):
        expected = [rule.select(row.tolist(), is_sure) for row in probabilities]
        selected = visit("about:blank").evaluate(
            f"([rows, rule, isSure]) => {{ {function}; return rows.map((row) => selectCandidates(row, rule, isSure)); }}",
            [probabilities.tolist(), dataclasses.asdict(rule), is_sure],
        )
        assert selected == expected


def _check_candidates(card, expected, limit):
    """The names below the answer are the candidates of Python, if none of them is close to the limit."""
    ranked = sorted(expected.probabilities, key=lambda name: -expected.probabilities[name])
    masses = np.cumsum([expected.probabilities[name] for name in ranked])
    if np.abs(masses - limit).min() < 0.05:
        return
    named = re.findall(r"(\w+) \(", card.locator(".reason").text_content())
    if expected.label is not None:
        assert (expected.label, *named) == expected.candidates
    else:
        assert named == list(expected.candidates if len(expected.candidates) > 1 else ranked[:2])


def _half_clear():
    picture = draw_image(120).convert("RGBA")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 120).astype(np.uint8), (120, 1))))
    return picture


def _shares(card):
    """Read the unrounded numbers of the bars."""
    return [float(bar.evaluate("bar => bar.style.getPropertyValue('--share')")) for bar in card.locator(".fill").all()]


def test_a_page_opened_as_a_file_shows_the_command_for_a_web_server(visit, folder):
    page = visit((folder / "index.html").as_uri())
    page.wait_for_selector("#about.error")
    about = page.locator("#about").inner_text()
    assert about.startswith("Browsers run this page only from a web server.")
    assert "python3 -m http.server" in about
    assert page.locator("#drop").is_hidden()


def test_a_file_that_the_browser_cannot_open_gets_a_reason(visit, hosted):
    (card,) = choose_photos(visit(hosted), ("a.jpg", b"text, no photo"))
    assert card.locator(".answer").inner_text() == "This browser cannot open this file as a photo"


def test_a_runtime_from_another_host_works_too(visit, hosted, folder):
    file = folder / "model.json"
    original = file.read_text("utf-8")
    try:
        with serve_files(folder / "onnxruntime") as elsewhere:
            about = json.loads(original)
            about["runtime"]["place"] = elsewhere
            file.write_text(json.dumps(about), "utf-8")
            choose_photos(visit(hosted), ("a.png", RED))[0].locator(".bars").wait_for()
    finally:
        file.write_text(original, "utf-8")


def test_a_modified_runtime_is_not_run(visit, hosted, folder):
    file = folder / "onnxruntime" / web.RUNTIME_SCRIPT
    original = file.read_bytes()
    file.write_bytes(original + b"\n")
    try:
        page = visit(hosted)
        page.wait_for_selector("#about.error")
        assert "could not be loaded" in page.locator("#about").inner_text()
    finally:
        file.write_bytes(original)


def test_the_folder_has_the_page_and_the_model_and_names_no_other_host(folder, paper_model):
    assert (folder / "model.onnx").read_bytes() == paper_model.read_bytes()
    about = json.loads((folder / "model.json").read_text("utf-8"))
    assert about["threshold"] == 0.5
    assert about["image_size"] == 48
    index = (folder / "index.html").read_text("utf-8")
    assert "engine-browser.js" in index
    assert "engine-server.js" not in index
    assert "Content-Security-Policy" in index
    for file in [*folder.glob("*.js"), *folder.glob("*.html"), *folder.glob("*.css")]:
        assert not re.search(r"(https?:)?//[a-z]", file.read_text("utf-8")), file.name


def test_without_npm_the_page_loads_a_pinned_runtime_with_integrity_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr(web.shutil, "which", lambda _: None)
    about = web.add_runtime(tmp_path)
    assert about["place"] == f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web.RUNTIME_VERSION}/dist/"
    assert set(about["integrity"]) == {about["script"], about["wasm"]}
    assert all(digest.startswith("sha384-") for digest in about["integrity"].values())
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_and_not_changed(paper_run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ModelError, match="already exists"):
            export.export_web(paper_run, taken)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_every_file_that_the_page_needs_is_in_the_package(served):
    named = {
        "index.html",
        "docs.html",
        *page_files.COMMON_FILES,
        *page_files.SERVER_FILES,
        *page_files.STANDALONE_FILES,
    }
    assert {path.name for path in PAGE.iterdir()} == named
    assert httpx.get(f"{served.url}/engine-browser.js").status_code == 404


def test_a_photo_unlike_the_training_photos_gets_its_closest_class_in_words(visit, served):
    page = visit(served.url)
    (card,) = choose_photos(page, ("black.png", encode_square("black")))
    assert card.locator(".answer").inner_text() == "Unlike the training photos"
    assert re.fullmatch(r"The closest class is \w+\.", card.locator(".reason").inner_text())


def test_a_page_that_stays_open_says_when_photos_begin_to_differ(visit):
    with run_server() as server:
        page = visit(server.url)
        choose_photos(page, *((f"grey {number}.png", GREY) for number in range(3)))
        assert page.locator("#drift").is_hidden()
        choose_photos(page, *((f"black {number}.png", encode_square("black")) for number in range(15)))
        page.locator("#drift").wait_for()
        assert page.locator("#drift").inner_text().startswith("The last 18 photos differ from the training photos")
