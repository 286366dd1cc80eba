"""The page when it cannot load at first, and when the camera is granted late."""

import pytest
from support.browser import choose_photos
from support.server import RED, run_server

pytestmark = pytest.mark.slow

PHOTO = [{"name": "a.png", "mimeType": "image/png", "buffer": RED}]
# A camera that the test grants with grants[n](); cameras[n] is its stream.
CAMERA = """
  window.grants = []; window.cameras = [];
  navigator.mediaDevices.getUserMedia = () => new Promise((done) => grants.push(() => {
    const canvas = document.createElement("canvas");
    canvas.getContext("2d").fillRect(0, 0, 9, 9);
    cameras.push(canvas.captureStream());
    done(cameras.at(-1));
  }));
"""
RUNNING = "cameras.filter((camera) => camera.getTracks().some((track) => track.readyState === 'live')).length"


@pytest.fixture(scope="module")
def served():
    with run_server() as server:
        yield server


def fail_requests(page, path, times=1):
    """Make the first requests for a path fail."""
    request_count = []

    def handle(route):
        request_count.append(1)
        if len(request_count) > times:
            route.continue_()
        else:
            route.abort()

    page.context.route(path, handle)


# --- errors at the start ---


def test_photos_chosen_before_the_model_loads_are_predicted_after_a_retry(visit, served):
    page = visit("about:blank")
    fail_requests(page, "**/classes", times=2)
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


def test_photos_chosen_before_the_error_report_it_too(visit, served):
    held_routes = []

    def hold(route):
        held_routes.append(route)

    page = visit("about:blank")
    page.route("**/classes", hold)
    page.goto(served.url)
    page.set_input_files("#choose", PHOTO)
    assert page.locator(".answer").inner_text() == "Waiting …"
    held_routes[0].abort()
    page.wait_for_selector("#about.error")
    assert page.locator(".answer").inner_text() == "Not classified: see above"


@pytest.mark.parametrize("lost", ["model.json", "model.onnx", "engine-worker.js"])
def test_without_a_server_a_retry_loads_the_missing_file(visit, hosted, lost):
    page = visit("about:blank")
    fail_requests(page, f"**/{lost}")
    page.goto(hosted)
    page.wait_for_selector("#about.error")
    page.click("#retry")
    (card,) = choose_photos(page, ("a.png", RED))
    assert card.locator(".bars li").count()


# --- the camera ---


def wait_until(page, happened):
    """Wait for a condition. The page's security policy forbids Playwright's own function."""
    while not page.evaluate(happened):
        page.wait_for_timeout(20)


def open_camera(page, number):
    page.click("#camera")
    wait_until(page, f"grants.length === {number}")


@pytest.fixture
def page(visit, served):
    page = visit("about:blank")
    page.add_init_script(CAMERA)
    page.goto(served.url)
    page.wait_for_selector("body[data-ready]")
    return page


def test_a_camera_granted_after_it_was_closed_is_stopped(page):
    open_camera(page, 1)
    page.click("#close-camera")
    page.evaluate("grants[0]()")
    wait_until(page, f"cameras.length === 1 && {RUNNING} === 0")


def test_only_one_of_two_late_cameras_runs_and_none_after_closing(page):
    open_camera(page, 1)
    page.click("#close-camera")
    open_camera(page, 2)
    page.evaluate("grants[0](); grants[1]()")
    page.wait_for_selector("#take-photo:enabled")
    assert page.evaluate(RUNNING) == 1
    assert page.evaluate("document.getElementById('video').srcObject === cameras[1]")
    page.click("#close-camera")
    wait_until(page, f"{RUNNING} === 0")


def test_a_photo_from_the_camera_is_predicted_and_the_camera_is_stopped(page):
    open_camera(page, 1)
    page.evaluate("grants[0]()")
    page.click("#take-photo")
    page.wait_for_selector(".card:not(.waiting)")
    wait_until(page, f"{RUNNING} === 0")
