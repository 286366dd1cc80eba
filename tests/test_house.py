"""The size and order of the house itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("bench/*.py")])


@pytest.mark.parametrize("file", CODE, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines_and_no_function_longer_than_50(file):
    text = file.read_text("utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 50, node.name


def test_the_pipeline_fits_on_one_screen():
    assert (ROOT / "src/ikebana/commands/fit.py").read_text("utf-8").count("\n") <= 120


@pytest.mark.parametrize("file", sorted(ROOT.glob("src/**/*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_room_and_every_public_function_says_what_it_is_for(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and len(node.body) > 2:
            assert ast.get_docstring(node), node.name


def test_only_one_room_opens_photos():
    openers = [file.name for file in ROOT.glob("src/**/*.py") if "Image.open(" in file.read_text("utf-8")]
    assert openers == ["decoding.py"]


def test_nothing_is_pickled():
    words = ("pickle.", "import pickle", "allow_pickle=True", "weights_only=False")
    assert not [file for file in ROOT.glob("src/**/*.py") for word in words if word in file.read_text("utf-8")]
    for file in ROOT.glob("src/**/*.py"):
        loads = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if _is_torch_load(node)]
        assert file.name == "pretrained_weights.py" or not loads, file
        assert all("weights_only=True" in ast.unparse(call) for call in loads), file


def _is_torch_load(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
