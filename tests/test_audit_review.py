"""The audit page in a browser: photos are enlarged, and decisions become a table for `fit`."""

import numpy as np
import polars as pl
import pytest
from PIL import Image
from support.browser import find_covered_headings

from ikebana.auditing.findings import Finding
from ikebana.data import sources
from ikebana.data.dataset import STATUS_USED, Dataset
from ikebana.reports import audit_page
from ikebana.reports.audit_page import KIND_DESCRIPTIONS

pytestmark = pytest.mark.slow

CLASSES = ("plain", '"><img src=x onerror=alert(1)>', "a, b")
HOSTILE = 'plain/"><img src=x onerror=alert(1)>.png'


@pytest.fixture
def photos(tmp_path) -> Dataset:
    """Six photos of three classes, with hostile names."""
    folder = tmp_path / "photos"
    names = {HOSTILE: 0, "plain/a.png": 0, "quoted/b.png": 1, "quoted/c.png": 1, "comma/d.png": 2, "comma/e.png": 2}
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 20 * number, np.uint8)).save(folder / name)
    opened = sources.read(folder)
    labels = pl.Series("label", [CLASSES[names[path]] for path in opened.photos["path"]])
    rows = opened.photos.with_columns(
        labels, split=pl.lit("train"), status=pl.lit(STATUS_USED), width=pl.lit(30), height=pl.lit(20)
    )
    return Dataset(str(folder), folder, rows, CLASSES)


@pytest.fixture
def page(photos, tmp_path, visit):
    findings = [
        Finding("suspect_label", "warning", (HOSTILE,), "looks like", "look", CLASSES[1], 0.9),
        *(Finding("outlier", "note", (path,), "5.0", "look") for path in photos.photos["path"]),
    ]
    file = tmp_path / "audit" / "index.html"
    audit_page.write(file, photos, findings, np.zeros((6, 20, 20, 3), np.uint8), "squash")
    return visit(file.as_uri())


def decide(page, path: str, action: str, card: int = 0) -> None:
    boxes = page.get_by_role("group", name=f"Your decision on the photo {path}", exact=True)
    boxes.nth(card).get_by_role("button", name=action, exact=True).click()


def test_decisions_become_a_table_that_fit_reads(page, photos, tmp_path):
    # The table omits what all paths begin with.
    download_button = page.get_by_role("button", name="Download cleaned.csv")
    assert download_button.is_visible()
    assert download_button.is_disabled()
    decide(page, HOSTILE, f"change to {CLASSES[1]}")
    decide(page, "comma/d.png", "remove")
    page.get_by_label("The right label of the photo comma/e.png").select_option("plain")
    decide(page, "quoted/b.png", f"keep {CLASSES[1]}")
    decide(page, "quoted/c.png", "remove")
    decide(page, "quoted/c.png", "remove")  # a second click takes it back
    assert "4 decided: 1 kept, 2 changed, 1 removed" in page.inner_text("#review")
    with page.expect_download() as download:
        download_button.click()
    assert download.value.suggested_filename == "cleaned.csv"
    download.value.save_as(tmp_path / "cleaned.csv")
    read = sources.read(tmp_path / "cleaned.csv").photos
    labels = {str(path).removeprefix(f"{photos.root}/"): label for path, label in read.select("path", "label").rows()}
    assert labels == {
        HOSTILE: CLASSES[1], "plain/a.png": "plain", "quoted/b.png": CLASSES[1], "quoted/c.png": CLASSES[1],
        "comma/e.png": "plain",
    }  # fmt: skip


def test_a_photo_on_two_cards_has_one_decision_which_a_reload_keeps(page):
    decide(page, HOSTILE, "remove", card=1)
    pressed = page.locator("button[aria-pressed=true]")
    assert pressed.all_inner_texts() == ["remove", "remove"]
    page.reload()
    assert pressed.all_inner_texts() == ["remove", "remove"]
    page.get_by_role("button", name="Discard").click()
    assert pressed.count() == 0
    assert page.get_by_role("button", name="Download cleaned.csv").is_disabled()


def test_copies_are_kept_or_removed_and_only_a_suggestion_has_a_button_of_its_own(photos, tmp_path, visit):
    findings = [
        Finding("near_duplicate", "note", ("comma/d.png", "comma/e.png"), "cropped", "look"),
        Finding("suspect_label", "note", ("plain/a.png",), "look", "look", "a, b", None),
        Finding("outlier", "note", ("quoted/b.png",), "5.0", "look"),
    ]
    file = tmp_path / "index.html"
    audit_page.write(file, photos, findings, np.zeros((6, 20, 20, 3), np.uint8), "squash")
    page = visit(file.as_uri())
    words = {
        kind: page.locator(f"#{kind} .decide button").all_inner_texts()
        for kind in ("near_duplicate", "suspect_label", "outlier")
    }
    assert words == {
        "near_duplicate": ["keep", "remove", "keep", "remove"],
        "suspect_label": ["keep plain", "change to a, b", "remove"],
        "outlier": [f"keep {CLASSES[1]}", "remove"],
    }
    assert page.locator("#near_duplicate select").count() == 0
    assert page.get_by_text("then download cleaned.csv").first.is_visible()


def test_photos_are_enlarged_and_left_by_the_keyboard(page):
    first = page.locator("main img").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    before = viewer.locator("p").inner_text()
    page.keyboard.press("ArrowRight")
    assert viewer.locator("p").inner_text() != before
    page.keyboard.press("Escape")
    assert viewer.is_hidden()
    assert first.evaluate("element => element === document.activeElement")


def test_a_link_opens_a_folded_section(page):
    page.locator("#fold").click()
    assert not page.locator("#outlier .cards").is_visible()
    page.get_by_role("link", name="Outliers").click()
    # The browser sends the event of the new address after the click has returned.
    page.locator("#outlier .cards").wait_for()
    assert page.locator("#outlier .cards").is_visible()


@pytest.mark.parametrize("width", [1280, 700, 390])
def test_the_menu_covers_no_heading_that_its_links_jump_to(photos, tmp_path, visit, width):
    paths = photos.photos["path"]
    findings = [Finding(kind, "note", (path,), "", "look") for kind in KIND_DESCRIPTIONS for path in paths]
    file = tmp_path / "audit" / "index.html"
    audit_page.write(file, photos, findings, np.zeros((6, 20, 20, 3), np.uint8), "squash")
    assert find_covered_headings(visit(file.as_uri()), width) == []


def test_the_page_is_readable_without_scripts(page, browser):
    context = browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(page.url)
    assert plain.locator("#suspect_label img").is_visible()
    assert "ikebana audit" in plain.inner_text("#clean")
    assert plain.locator(".decide").count() == 0
    assert plain.locator("#review").is_hidden()
    assert plain.locator(".scripted").first.is_hidden()
    assert plain.locator("#fold").is_hidden()
    context.close()
