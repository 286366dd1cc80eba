"""The page, when it cannot begin at once, and when its camera comes late."""

import pytest
from support.browser import choose_photos
from support.server import RED, run_server

pytestmark = pytest.mark.slow

PHOTO = [{"name": "a.png", "mimeType": "image/png", "buffer": RED}]
# A camera that is granted when the test says so: grants[n](), and cameras[n] is what it then shows.
CAMERA = """
  window.grants = []; window.cameras = [];
  navigator.mediaDevices.getUserMedia = () => new Promise((done) => grants.push(() => {
    const canvas = document.createElement("canvas");
    canvas.getContext("2d").fillRect(0, 0, 9, 9);
    cameras.push(canvas.captureStream());
    done(cameras.at(-1));
  }));
"""
RUNNING = "cameras.filter((each) => each.getTracks().some((track) => track.readyState === 'live')).length"


@pytest.fixture(scope="module")
def served():
    with run_server() as one:
        yield one


def failing(page, path, times=1):
    """The first requests for it fail."""
    seen = []

    def handle(route):
        seen.append(1)
        if len(seen) > times:
            route.continue_()
        else:
            route.abort()

    page.context.route(path, handle)


# --- trouble at the start ---


def test_photos_that_cannot_be_looked_at_yet_say_so_and_are_looked_at_after_a_second_try(visit, served):
    page = visit("about:blank")
    failing(page, "**/classes", times=2)
    page.goto(served.url)
    page.wait_for_selector("#about.error")
    page.set_input_files("#choose", PHOTO)
    assert page.locator(".answer").inner_text() == "Not classified: see above"
    page.wait_for_selector("#announcements:text-matches('cannot be reached')", state="attached")
    page.click("#retry")
    page.wait_for_selector("#about.error")
    assert page.locator(".answer").inner_text() == "Not classified: see above"
    page.click("#retry")
    page.wait_for_selector(".card.named")
    assert "red" in page.locator(".answer").inner_text()
    assert page.locator("#about").inner_text().startswith("Distinguishes")
    assert page.locator("#retry").is_hidden()
    assert page.locator("#about.error").count() == 0
    assert page.evaluate("document.activeElement.id") == "choose"


def test_photos_that_came_before_the_trouble_say_so_too(visit, served):
    held = []

    def hold(route):
        held.append(route)

    page = visit("about:blank")
    page.route("**/classes", hold)
    page.goto(served.url)
    page.set_input_files("#choose", PHOTO)
    assert page.locator(".answer").inner_text() == "Waiting …"
    held[0].abort()
    page.wait_for_selector("#about.error")
    assert page.locator(".answer").inner_text() == "Not classified: see above"


@pytest.mark.parametrize("lost", ["model.json", "model.onnx", "engine-worker.js"])
def test_alone_in_a_browser_a_second_try_loads_what_was_lost(visit, hosted, lost):
    page = visit("about:blank")
    failing(page, f"**/{lost}")
    page.goto(hosted)
    page.wait_for_selector("#about.error")
    page.click("#retry")
    (card,) = choose_photos(page, ("a.png", RED))
    assert card.locator(".bars li").count()


# --- the camera ---


def until(page, happened):
    """Wait for it: Playwright's own way is what the page's policy forbids."""
    while not page.evaluate(happened):
        page.wait_for_timeout(20)


def open_camera(page, number):
    page.click("#camera")
    until(page, f"grants.length === {number}")


@pytest.fixture
def page(visit, served):
    page = visit("about:blank")
    page.add_init_script(CAMERA)
    page.goto(served.url)
    page.wait_for_selector("body[data-ready]")
    return page


def test_a_camera_that_is_granted_after_it_was_put_away_is_turned_off(page):
    open_camera(page, 1)
    page.click("#close-camera")
    page.evaluate("grants[0]()")
    until(page, f"cameras.length === 1 && {RUNNING} === 0")


def test_of_two_cameras_that_are_granted_late_one_runs_and_none_when_it_is_put_away(page):
    open_camera(page, 1)
    page.click("#close-camera")
    open_camera(page, 2)
    page.evaluate("grants[0](); grants[1]()")
    page.wait_for_selector("#take-photo:enabled")
    assert page.evaluate(RUNNING) == 1
    assert page.evaluate("document.getElementById('video').srcObject === cameras[1]")
    page.click("#close-camera")
    until(page, f"{RUNNING} === 0")


def test_a_photo_from_the_camera_is_looked_at_and_the_camera_is_off(page):
    open_camera(page, 1)
    page.evaluate("grants[0]()")
    page.click("#take-photo")
    page.wait_for_selector(".card:not(.waiting)")
    until(page, f"{RUNNING} === 0")
