"""Unusual inputs of the page: folders, deleted files, Escape, photos that browsers decode differently."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from support.browser import choose_photos
from support.images import draw_image, encode_image
from support.server import BLUE, GREY, RED, run_server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served():
    with run_server() as server:
        yield server


def drop(page, *paths):
    """Drop files and folders onto the page, as a file manager does."""
    page.wait_for_selector("body[data-ready]")
    box = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for step in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": step, "x": box["x"] + 20, "y": box["y"] + 20, "data": data})


def wait_for_answers(page, count):
    """Wait for so many cards, and return their predictions."""
    page.wait_for_selector(f".card >> nth={count - 1}")
    while page.locator(".card.waiting").count():
        page.wait_for_timeout(20)
    return dict(zip(page.locator(".name").all_inner_texts(), page.locator(".answer").all_inner_texts(), strict=True))


# --- folders and files ---


def test_every_photo_of_a_dropped_folder_is_predicted_in_order_without_hidden_files(visit, served, tmp_path):
    inside = {
        "b.png": RED,
        "a.png": BLUE,
        ".c.png": RED,
        "Thumbs.db": b"x",
        "more/a/d.png": GREY,
        "more/.git/e.png": RED,
    }
    for name, data in inside.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(data)
    (tmp_path / "alone.png").write_bytes(RED)
    page = visit(served.url)
    drop(page, tmp_path / "alone.png", tmp_path / "photos")
    texts = wait_for_answers(page, 4)
    assert list(texts) == ["alone.png", "a.png", "b.png", "d.png"]
    assert [prediction.split()[0] for prediction in texts.values()] == ["red", "blue", "red", "Not"]


def test_a_dropped_folder_may_have_more_entries_than_one_browser_call_returns(visit, served, tmp_path):
    for number in range(130):
        (tmp_path / f"{number:03}.txt").write_bytes(b"")
    page = visit(served.url)
    drop(page, tmp_path)
    assert list(wait_for_answers(page, 130)) == [f"{number:03}.txt" for number in range(130)]


def test_photos_beyond_the_limit_are_counted_and_can_be_added_later(visit, served, tmp_path):
    for number in range(503):
        (tmp_path / "many" / f"{number:03}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "many" / f"{number:03}.txt").write_bytes(b"")
    page = visit(served.url)
    assert page.locator("#left-out").is_hidden()
    drop(page, tmp_path / "many")
    assert list(wait_for_answers(page, 500)) == [f"{number:03}.txt" for number in range(500)]
    assert page.locator("#left-out").inner_text().startswith("Left out: 3 of 503.")
    choose_photos(page, ("red.png", RED))
    assert page.locator("#left-out").inner_text().startswith("Left out: 1 of 1.")
    page.click("#clear")
    assert page.locator("#left-out").is_hidden()
    (card,) = choose_photos(page, ("red.png", RED))
    assert "red" in card.locator(".answer").inner_text()


def test_a_dropped_folder_without_a_photo_is_reported(visit, served, tmp_path):
    (tmp_path / "holiday").mkdir()
    page = visit(served.url)
    drop(page, tmp_path / "holiday")
    assert wait_for_answers(page, 1) == {"holiday": "This folder contains no photos"}


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_an_unreadable_file_is_not_called_empty_or_a_server_error(visit, served, tmp_path, change):
    held_routes = []

    def hold(route):
        held_routes.append(route)

    file = tmp_path / "a.png"
    file.write_bytes(RED)
    page = visit("about:blank")
    page.route("**/classes", hold)
    page.goto(served.url)
    page.set_input_files("#choose", file)
    page.wait_for_selector(".card")
    if change == "gone":
        file.unlink()
    else:  # browsers refuse to read a file that changed after it was chosen
        file.write_bytes(BLUE * 2)
        os.utime(file, (1, 1))
    held_routes[0].continue_()
    assert wait_for_answers(page, 1) == {"a.png": "This file cannot be read"}


@pytest.mark.parametrize("name", ["🌹" * 60 + ".jpeg", "🌹" * 200 + ".jpeg"], ids=["long", "longer"])
def test_a_photo_may_have_any_name(visit, served, name):
    (card,) = choose_photos(visit(served.url), (name, RED))
    assert "red" in card.locator(".answer").inner_text()


# --- keyboard and screen reader ---


def test_escape_does_not_close_the_question_for_the_token(visit):
    with run_server(token="sesame") as served:
        page = visit(served.url)
        page.wait_for_selector("#token-dialog[open]")
        for _ in range(5):
            page.keyboard.press("Escape")
            page.wait_for_timeout(100)
        page.wait_for_selector("#token-dialog[open]")
        page.keyboard.type("sesame")  # the question has the focus
        page.keyboard.press("Enter")
        (card,) = choose_photos(page, ("a.png", RED))
        assert "red" in card.locator(".answer").inner_text()
        assert page.locator("#token-dialog").is_hidden()


def test_cleared_photos_are_not_announced(visit):
    with run_server() as served:
        page = visit(served.url)
        page.wait_for_selector("body[data-ready]")
        served.classifier.gate.clear()
        page.set_input_files("#choose", [{"name": "a.png", "mimeType": "image/png", "buffer": RED}])
        served.wait_until(lambda: served.classifier.batch_sizes)
        page.click("#clear")
        page.wait_for_selector("#announcements:text-is('No photos.')", state="attached")
        with page.expect_response("**/predict?*"):
            served.classifier.gate.set()
        page.wait_for_timeout(500)  # longer than announcements are collected
        assert page.locator("#announcements").text_content() == "No photos."


# --- photos that browsers decode differently ---


@pytest.mark.parametrize("mode", ["grey", "colour"])
def test_a_16_bit_png_that_the_browser_would_show_black_is_refused(visit, hosted, mode):
    (card,) = choose_photos(visit(hosted), ("a.png", _deep_png(mode)))
    assert "16 bits" in card.locator(".answer").inner_text()
    assert "ikebana serve" in card.locator(".reason").inner_text()


def _deep_png(mode):
    """Encode 12 bits in 16, as cameras do."""
    if mode == "grey":
        grey = np.asarray(draw_image(64).convert("L")).astype(np.uint16) * 16
        return encode_image(Image.fromarray(grey), "PNG")
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0))]
    rows = np.asarray(draw_image(64).convert("RGB")).astype(">u2") * 16
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows.astype(">u2")))
    chunks += [(b"IDAT", packed), (b"IEND", b"")]
    rows = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(rows)


@pytest.mark.parametrize("size", [(70_000, 60), (60, 70_000), (9_001, 1_203)])
def test_a_long_photo_is_squashed_as_in_python(visit, hosted, paper_classifier, size):
    data = encode_image(draw_image(48, seed=3).resize(size), "PNG")
    (card,) = choose_photos(visit(hosted), ("a.png", data))
    expected = paper_classifier.predict(data).probabilities
    fills = card.locator(".fill").all()
    shares = [float(bar.evaluate("bar => bar.style.getPropertyValue('--share')")) for bar in fills]
    probabilities_shown = dict(zip(card.locator(".label").all_inner_texts(), shares, strict=True))
    assert probabilities_shown == pytest.approx(expected, abs=0.03)
    assert probabilities_shown != pytest.approx(paper_classifier.predict(_blank(size)).probabilities, abs=0.03)
    middle = "one => [...one.getContext('2d').getImageData(one.width / 2, one.height / 2, 1, 1).data]"
    assert card.locator("canvas").evaluate(middle)[3] == 255  # the shown picture is not blank either


def _blank(size):
    return encode_image(Image.new("RGB", size, "white"), "PNG")


def test_a_canvas_that_stays_blank_is_an_error(visit, hosted):
    def larger(route):
        script = route.fetch().text()
        assert "[512, 4096]" in script
        route.fulfill(body=script.replace("[512, 4096]", "[512, 100000]"), content_type="text/javascript")

    page = visit("about:blank")
    page.context.route("**/engine-worker.js", larger)
    page.goto(hosted)
    (card,) = choose_photos(page, ("a.png", encode_image(draw_image(48).resize((70_000, 60)), "PNG")))
    assert card.locator(".answer").inner_text() == "This photo is too large for this browser"
