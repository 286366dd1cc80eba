"""Check names, docstrings, messages and docs for banned names and phrases.

There are two lists: identifiers that describe nothing, and phrases that a reader cannot search for.
A word may be banned as a name and fine in prose (`found`, `course`).
"""

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("bench/*.py")])
# This file quotes the banned words.
THIS_FILE = Path(__file__).name
TESTS = sorted(file for file in ROOT.glob("tests/**/*.py") if file.name != THIS_FILE)
# What people read in a browser.
WEB_PAGES = sorted(
    file for pattern in ("*.jinja", "*.html", "*.js") for file in ROOT.glob(f"src/**/{pattern}") if file.is_file()
)
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
MAX_FIRST_LINE_WORDS = 15
MAX_PROSE_COLUMNS = 100

# Participles, pronouns, prepositions and metaphors. The value says what to use instead.
BANNED_IDENTIFIERS = {
    "said": "the thing that was computed: logits, probabilities, message",
    "told": "message, values",
    "found": "the thing that was found",
    "each": "the thing: for finding in findings",
    "one": "the thing, or first and second",
    "its": "the thing it belongs to",
    "of": "a verb: extract_features",
    "was": "previous",
    "it": "the thing",
    "sought": "resolve_…",
    "settled": "fill_defaults",
    "dealt": "make_folds, assign_…",
    "made": "the thing that was made",
    "held": "a quantity with its unit",
    "seen": "features, photos_seen",
    "kept": "cached",
    "seer": "backbone",
    "dice": "rng",
    "twins": "duplicates",
    "lean": "fused",
    "pull": "l2",
    "purse": "budget",
    "desk": "queue",
    "door": "middleware",
    "lesson": "task",
    "course": "plan",
    "whole": "what is complete",
    "somebody": "user",
    "nobody": "",
    "whoever": "",
}
# Adjectives, adverbs and prepositions alone do not say what a constant bounds, nor in which unit.
BARE_CONSTANT = re.compile(
    r"^(FEW|MANY|MOST|LEAST|ALIKE|ENOUGH|LARGE|LARGEST|SMALL|SMALLEST|LONG|LONGEST|DEEPEST|HIGHEST|NEAR|NEARLY|CLOSE|FAR|SURE|"
    r"EVEN|RIGHT|WRONG|HELD|KEPT|SHOWN|JUDGED|WITHIN|BEHIND|AHEAD|APART|AMONG|EVERY|SHARE|NEVER|ALWAYS|LIVELY|PLAIN|QUIET|"
    r"FAINT|OUTERMOST|UNHEARD|NAMED|LISTED|OPENED|SOME|NONE_OF|OF_[A-Z_]+|AT_[A-Z]+|A_[A-Z]+|IN_[A-Z]+|TOO_[A-Z]+|NO_LONGER)$"
)
BANNED_PHRASES = re.compile(
    r"\b(twins?|near-twins?|dice|seer|whoever|nobody|somebody|odd photos|in words|held back|way back|doubted|mended|"
    r"what lies|lies in|that is all there is|named rightly|no number any more|a line an epoch|"
    r"(?:photos?|images?|files?) a (?:class|second|step|task|batch)|purse|desk|lesson|goes on where|learned by heart)\b",
    re.IGNORECASE,
)


def defined_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module defines: functions, classes, parameters, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def docstrings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node)
            if text:
                yield text, getattr(node, "lineno", 1)


def messages(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every string of the code with a space in it, the literal parts of f-strings included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value, node.lineno


def comments(text: str) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


by_file = pytest.mark.parametrize("file", [*SOURCE, *TESTS], ids=lambda file: str(file.relative_to(ROOT)))
by_source_file = pytest.mark.parametrize("file", SOURCE, ids=lambda file: str(file.relative_to(ROOT)))


@by_file
def test_no_name_is_a_participle_a_pronoun_or_a_metaphor(file):
    names = defined_names(parse(file))
    banned = [(line, name, BANNED_IDENTIFIERS[name.strip("_").lower()]) for name, line in names
              if name.strip("_").lower() in BANNED_IDENTIFIERS]  # fmt: skip
    assert not banned


@by_file
def test_no_constant_is_an_adjective_alone(file):
    names = defined_names(parse(file))
    assert not [(line, name) for name, line in names if name.isupper() and BARE_CONSTANT.match(name.strip("_"))]


@by_file
def test_docstrings_and_comments_are_free_of_the_old_dialect(file):
    text = file.read_text("utf-8")
    prose = [*docstrings(parse(file)), *comments(text)]
    assert not [(line, found[0]) for words, line in prose for found in [BANNED_PHRASES.search(words)] if found]


@by_file
def test_messages_are_free_of_the_old_dialect(file):
    found = [
        (line, phrase[0]) for text, line in messages(parse(file)) for phrase in [BANNED_PHRASES.search(text)] if phrase
    ]
    assert not found


@pytest.mark.parametrize("file", [*WEB_PAGES, *DOCS], ids=lambda file: str(file.relative_to(ROOT)))
def test_pages_and_docs_are_free_of_the_old_dialect(file):
    """Code may quote old names, such as those of a flag that was renamed."""
    lines = file.read_text("utf-8").splitlines()
    if file.suffix == ".md":
        lines = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", line) for line in lines if not line.startswith("    ")]
    assert not [
        (number, phrase[0])
        for number, line in enumerate(lines, 1)
        for phrase in [BANNED_PHRASES.search(line)]
        if phrase
    ]


@pytest.mark.parametrize("file", DOCS, ids=lambda file: str(file.relative_to(ROOT)))
def test_percentages_have_one_form(file):
    assert not re.findall(r"[0-9] %", file.read_text("utf-8"))


@pytest.mark.parametrize("file", DOCS, ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_of_the_docs_is_wrapped_at_100_columns(file):
    is_code, long_lines = False, []
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        is_code ^= line.startswith("```")
        is_prose = (
            not (is_code or line.startswith(("    ", "|", "![", "[", "#"))) and "](" not in line and " " in line[100:]
        )
        if is_prose and len(line) > MAX_PROSE_COLUMNS:
            long_lines.append((number, len(line)))
    assert not long_lines


@by_source_file
def test_the_first_line_of_a_docstring_is_short(file):
    for text, line in docstrings(parse(file)):
        first = text.split("\n\n")[0].split("\n")[0]
        assert len(first.split()) <= MAX_FIRST_LINE_WORDS, (line, first)


def test_the_lists_would_catch_what_they_are_for():
    tree = ast.parse("FEW = 3\ndef sought(each): found = each")
    assert {name for name, _ in defined_names(tree)} == {"FEW", "sought", "each", "found"}
    assert BARE_CONSTANT.match("FEW")
    assert not BARE_CONSTANT.match("MIN_CALIBRATION_GROUPS")
    assert BANNED_PHRASES.search("Twenty photos a class are what lies in it.")
    assert not BANNED_PHRASES.search("Of course, photos per class.")
