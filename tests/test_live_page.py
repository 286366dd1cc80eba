"""The live page of a training: what it shows, what it answers, and when it ends."""

import json
import threading
import time
from xml.etree import ElementTree

import httpx
import pytest

from ikebana.errors import RunError
from ikebana.system import progress
from ikebana.tracking import live_server, live_state
from ikebana.tracking.follow import follow
from ikebana.tracking.live_server import LivePage
from ikebana.tracking.live_state import PARTS, LiveState

SCRIPT, BROKEN_OUT = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>.jpg'
EPOCH = {"train_loss": 0.5, "train_accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.75, "seconds": 1.5}


def make_epoch(number, **values):
    return {"event": "epoch", "epoch": number, **EPOCH, **values}


def start_run(folder, photos="flowers/"):
    recipe = {"name": "good"}
    return {"event": "run", "folder": str(folder), "photos": photos, "classes": ["a", "b"], "recipe": recipe}


def parse(state, part):
    """Parse a part of the page strictly: anything not escaped or not closed raises ParseError."""
    return ElementTree.fromstring(f"<div>{state.render(part)[1]}</div>")


def read(state, part):
    return " ".join("".join(parse(state, part).itertext()).split())


@pytest.fixture
def state():
    """The state of a training in its second epoch."""
    state = LiveState()
    state.on_event(start_run("runs/good"))
    state.on_event({"event": "stage", "stage": "train", "total": 200, "unit": "photos"})
    state.on_event(make_epoch(1, val_accuracy=0.71))
    done = {"event": "progress", "stage": "train", "done": 150, "total": 200, "unit": "photos"}
    state.on_event(done | {"epoch": "2/2", "loss": 0.4321, "accuracy": 0.875})
    return state


@pytest.fixture
def page():
    """A live page that ends with the test."""
    page = LivePage()
    yield page
    page.close(None)


def stream_events(url, received):
    """Collect the server-sent events of a page until it ends the stream."""
    with httpx.stream("GET", f"{url}/events", timeout=30) as response:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                received.append((name, json.loads(line.removeprefix("data: "))))


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "the page did not change"
        time.sleep(0.02)


# --- what it shows ---


def test_the_state_shows_stage_share_and_scores(state):
    assert read(state, "state") == "Train 75% epoch 2/2 loss 0.432 accuracy 87.5% runs/good, 2 classes"
    (bar,) = parse(state, "state").iter("progress")
    assert float(bar.get("value", "")) == 0.75


def test_the_epochs_are_listed_with_the_last_one_first(state):
    state.on_event(make_epoch(2, val_loss=None, val_accuracy=None))
    rows = [["".join(cell.itertext()) for cell in row] for row in parse(state, "epochs").iter("tr")]
    assert rows[1] == ["2", "0.500", "80.0%", "", "", "1.5"]
    assert rows[2] == ["1", "0.500", "80.0%", "0.600", "71.0%", "1.5"]


def test_of_many_epochs_the_last_ones_are_listed(state, monkeypatch):
    monkeypatch.setattr(live_state, "MAX_SHOWN_EPOCHS", 3)
    for number in range(2, 11):
        state.on_event(make_epoch(number))
    assert "The last 3 of 10 epochs" in read(state, "epochs")
    assert [row[0].text for row in parse(state, "epochs").iter("tr")][1:] == ["10", "9", "8"]


def test_the_curves_are_an_image_with_a_description(state):
    (image,) = parse(state, "curves").iter("svg")
    assert image.get("role") == "img"
    assert image.get("aria-label") == "loss and accuracy per epoch"
    assert "71.0%" in read(state, "curves")


def test_the_curves_are_not_redrawn_with_every_short_epoch(state, monkeypatch):
    monkeypatch.setattr(live_state, "MIN_CURVES_INTERVAL_SECONDS", 1000.0)
    first = state.render("curves")
    state.on_event(make_epoch(2))
    assert state.render("curves") == first
    state.finish("finished")
    assert state.render("curves") != first


def test_a_part_is_rendered_again_only_after_a_change(state, monkeypatch):
    before = state.render("epochs")
    monkeypatch.setattr(state, "_render", lambda part: pytest.fail("rendered again"))
    state.on_event({"event": "message", "text": "a message"})
    assert state.render("epochs") == before


def test_a_second_run_starts_again(state):
    state.on_event(start_run("runs/split-1"))
    assert "No epoch has ended yet" in read(state, "epochs")
    assert "runs/split-1" in read(state, "state")


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("finished", "Finished"),
        ("stopped", "Nothing was lost. Resume with: ikebana fit --resume runs/good"),
        ("failed", f"RunError: {SCRIPT}"),
    ],
)
def test_the_page_says_how_the_training_ended(state, outcome, words):
    state.finish(outcome, f"RunError: {SCRIPT}" if outcome == "failed" else "")
    assert words in read(state, "state")


def test_names_from_outside_are_escaped():
    state = LiveState()
    state.on_event(start_run(BROKEN_OUT, photos=SCRIPT))
    state.on_event({"event": "message", "text": f"{SCRIPT}\n{BROKEN_OUT}"})
    state.on_event({"event": "stage", "stage": SCRIPT, "total": 0, "unit": "photos"})
    state.on_event({"event": "progress", "stage": SCRIPT, "done": 1, "total": 0, "unit": "photos", "note": BROKEN_OUT})
    assert read(state, "title") == f"good on {SCRIPT}"
    for part in PARTS:
        tags = {element.tag for element in parse(state, part).iter()}
        assert not tags & {"script", "img"}
    assert SCRIPT in read(state, "messages")
    text = state.render_page("nonce")
    assert text.count("<script") == 1  # the page's own
    assert "<img" not in text


# --- what it answers ---


def test_the_page_has_the_state_without_javascript(page):
    page.on_event(start_run("runs/good"))
    page.on_event(make_epoch(1, val_accuracy=0.71))
    response = httpx.get(page.url)
    assert response.status_code == 200
    assert "71.0%" in response.text
    assert "runs/good" in response.text


def test_nothing_else_is_answered_and_no_other_host(page, tmp_path):
    page.on_event(start_run(tmp_path))
    (tmp_path / "recipe.json").write_text("{}")
    for path in ("/recipe.json", "/../recipe.json", "/%2e%2e/recipe.json", "/docs", "/openapi.json", "/report.html"):
        assert httpx.get(page.url + path).status_code == 404
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, page.url).status_code == 405
    assert httpx.get(page.url, headers={"Host": "example.org"}).status_code == 400
    assert page.url.startswith("http://127.0.0.1:")


def test_scripts_of_others_are_forbidden_by_the_page(page):
    first, second = httpx.get(page.url), httpx.get(page.url)
    policies = [response.headers["content-security-policy"] for response in (first, second)]
    assert all("default-src 'none'" in policy for policy in policies)
    assert "script-src 'nonce-" in policies[0]
    assert policies[0] != policies[1]
    assert "access-control-allow-origin" not in first.headers


def test_changes_are_streamed_and_the_stream_ends_with_the_training():
    page, received = LivePage(), []
    thread = threading.Thread(target=stream_events, args=(page.url, received))
    thread.start()
    wait_for(lambda: received)
    assert set(received[0][1]) == set(PARTS)  # a page that is opened late misses nothing
    page.on_event(start_run("runs/good"))
    page.on_event(make_epoch(1, val_accuracy=0.71))
    wait_for(lambda: any("71.0%" in values.get("epochs", "") for _, values in received))
    page.close(None)
    thread.join(30)
    assert not thread.is_alive()
    assert received[-1][0] == "end"
    assert "Finished" in received[-2][1]["state"]
    with pytest.raises(httpx.TransportError):
        httpx.get(page.url)


def test_the_server_waits_until_an_open_page_has_the_report(tmp_path):
    (tmp_path / "report.html").write_text("<p>the report</p>")
    page, received, reports = LivePage(), [], []
    page.on_event(start_run(tmp_path))

    def watch():
        stream_events(page.url, received)
        time.sleep(0.5)
        reports.append(httpx.get(f"{page.url}/report.html").text)

    thread = threading.Thread(target=watch)
    thread.start()
    wait_for(lambda: received)
    assert httpx.get(f"{page.url}/report.html").status_code == 404  # of an unfinished training
    page.close(None)
    thread.join(30)
    assert reports == ["<p>the report</p>"]
    assert 'href="report.html"' in received[-2][1]["state"]


def test_a_page_that_nobody_opened_ends_at_once(tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("<p>the report</p>")
    monkeypatch.setattr(live_server, "MAX_CLOSE_SECONDS", 1000.0)
    page = LivePage()
    page.on_event(start_run(tmp_path))
    page.close(None)
    assert not page.thread.is_alive()


# --- following ---


def test_watching_reports_the_address_and_ends_with_the_block(capsys):
    with progress.use_reporter(progress.TerminalReporter()):
        with follow(watch=True):
            address = capsys.readouterr().err.removeprefix("watch the training at ").strip()
            progress.event("run", **{name: value for name, value in start_run("runs/good").items() if name != "event"})
            progress.event("epoch", epoch=1, **EPOCH)
            text = httpx.get(address).text
        assert "75.0%" in text
    with pytest.raises(httpx.TransportError):
        httpx.get(address)


@pytest.mark.parametrize(
    ("error", "outcome"), [(KeyboardInterrupt(), "stopped"), (RunError("a reason"), "failed"), (None, "finished")]
)
def test_the_follower_learns_how_the_block_ended(error, outcome, monkeypatch):
    pages = []
    monkeypatch.setattr(live_server.LivePage, "__init__", _wrap_init(pages))

    def run_block():
        with follow(watch=True):
            if error is not None:
                raise error

    if error is None:
        run_block()
    else:
        with pytest.raises(type(error)):
            run_block()
    assert pages[0].state.outcome == outcome


def _wrap_init(pages):
    original = live_server.LivePage.__init__

    def initialise(self):
        original(self)
        pages.append(self)

    return initialise


# --- in a browser ---


@pytest.mark.slow
def test_the_page_changes_without_a_reload_and_becomes_the_report(visit, tmp_path):
    (tmp_path / "report.html").write_text("<!doctype html><title>report</title><p>the report</p>")
    page = LivePage()
    view = visit(page.url)
    page.on_event(start_run(tmp_path))
    messages = []
    view.on("console", lambda message: messages.append(message.text))
    page.on_event(make_epoch(1, val_accuracy=0.71))
    view.get_by_text("71.0%").first.wait_for()
    # A page that was requested before the events may get its title one update later.
    view.get_by_role("heading", level=1, name="good on flowers/", exact=True).wait_for()
    page.on_event({"event": "message", "text": SCRIPT})
    view.get_by_text(SCRIPT).wait_for()
    closing = threading.Thread(target=page.close, args=(None,))
    closing.start()
    view.get_by_text("the report").wait_for()
    assert view.url.endswith("/report.html")
    closing.join(30)
    assert messages == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_its_window(visit, width, page):
    page.on_event(start_run("runs/good"))
    for number in range(1, 4):
        page.on_event(make_epoch(number))
    view = visit(page.url, viewport={"width": width, "height": 900})
    view.get_by_text("75.0%").first.wait_for()
    assert view.evaluate("document.documentElement.scrollWidth") <= width
