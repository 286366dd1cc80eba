"""The docs agree with the program."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ikebana import cli
from ikebana.recipe import METHODS, AdamW, Augmentation
from ikebana.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_and_picture_exists(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def anchors(page):
    """List the link targets of a page: its headings, as Markdown renderers name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_section_has_a_target(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text("utf-8")):
        assert anchor in anchors(page.parent / target if target else page), (target, anchor)


def linked_pages(page):
    """The pages of docs/ that a page links to."""
    targets = re.findall(r"\]\(([^)#:]+\.md)[^)]*\)", page.read_text("utf-8"))
    return {path for path in ((page.parent / target).resolve() for target in targets) if path.exists()}


def test_every_verb_has_its_page_and_every_page_is_reachable_from_the_index():
    for verb in (name for name in cli.app if not name.startswith("-")):
        assert (ROOT / f"docs/{verb}.md").exists()
    reached, pending = set(), {(ROOT / "docs/index.md").resolve()}
    while pending:
        reached |= pending
        pending = set().union(*map(linked_pages, pending)) - reached
    assert {path.resolve() for path in ROOT.glob("docs/**/*.md")} <= reached


@pytest.mark.parametrize(("verb", "no_flag"), [("fit", ""), ("serve", "--file")])
def test_the_page_of_a_verb_names_exactly_its_flags(verb, no_flag):
    shown = subprocess.run(
        [sys.executable, "-m", "ikebana", verb, "--help"], capture_output=True, text=True, check=True
    )
    flags = set(re.findall(r"(--[a-z][a-z-]+)", shown.stdout)) - {no_flag, "--help"}
    page = (ROOT / f"docs/{verb}.md").read_text("utf-8")
    documented = set(re.findall(r"`(--[a-z][a-z-]+)", page))
    assert documented == flags


@pytest.mark.parametrize("verb", ["compare", "demo", "doctor", "report"])
def test_the_page_of_a_verb_with_few_flags_names_all_of_them(verb):
    page = (ROOT / f"docs/{verb}.md").read_text("utf-8")
    arguments = cli.app[verb].assemble_argument_collection()
    flags = {name for argument in arguments if argument.index is None for name in argument.names}
    assert {name for name in flags if name.startswith("--")} <= set(re.findall(r"--[a-z][a-z-]+", page))


def test_the_recipes_page_has_a_section_for_each_recipe():
    page = (ROOT / "docs/recipes.md").read_text("utf-8")
    assert set(re.findall(r"^## `(\w+)`", page, re.MULTILINE)) == set(RECIPES)


@pytest.mark.parametrize("record", [AdamW, Augmentation, *METHODS], ids=lambda record: record.__name__)
def test_the_python_page_names_every_field_of_the_recipe_records(record):
    page = (ROOT / "docs/python.md").read_text("utf-8")
    table = page.split(f"| `{record.__name__}` |")[1].split("\n\n")[0]
    documented = set(re.findall(r"`(\w+)`", table))
    assert {field.name for field in fields(record)} - {"kind"} <= documented


def test_the_commands_shown_in_the_docs_exist():
    verbs = {name for name in cli.app if not name.startswith("-")}
    for page in PAGES:
        for verb in re.findall(r"^    ikebana (\w+)", page.read_text("utf-8"), re.MULTILINE):
            assert verb in verbs, (page.name, verb)


def test_the_readme_shows_two_commands_and_describes_its_pictures():
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(block.splitlines()) == 2


def test_no_committed_file_names_a_registry_host():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(None, listed):
        file = ROOT / name
        if file.suffix in {".md", ".toml", ".py", ".lock", ".txt", ""} and file.is_file() and file.name != "LICENSE":
            assert not re.search(
                r"https?://[^\s/]*(pypi|pythonhosted|pytorch\.org/whl|npmjs)", file.read_text("utf-8")
            ), name
