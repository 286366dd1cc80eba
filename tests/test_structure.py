"""The structure of the source and the tests: docstrings, imports, no pickle."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = sorted(ROOT.glob("src/**/*.py"))
TEST_MODULES = sorted(ROOT.glob("tests/test_*.py"))
IMPORT_OF_TESTS = re.compile(r"\b(from|import) (tests\b|conftest\b|\.|test_\w)")


@pytest.mark.parametrize("file", SOURCE, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_module_and_every_public_function_has_a_docstring(file):
    tree = ast.parse(file.read_text("utf-8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and len(node.body) > 2:
            assert ast.get_docstring(node), node.name


def test_git_ignores_no_file_of_the_package():
    """The built package would lack an ignored folder, unlike an editable install."""
    names = [str(file.relative_to(ROOT)) for file in SOURCE]
    command = ["git", "check-ignore", "--no-index", *names]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr


def test_only_one_module_opens_photos():
    assert [file.name for file in SOURCE if "Image.open(" in file.read_text("utf-8")] == ["decoding.py"]


def test_nothing_is_pickled():
    words = ("pickle.", "import pickle", "allow_pickle=True", "weights_only=False")
    assert not [file for file in SOURCE for word in words if word in file.read_text("utf-8")]
    for file in SOURCE:
        text = file.read_text("utf-8")
        loads = [node for node in ast.walk(ast.parse(text)) if _is_torch_load(node)] if "torch.load" in text else []
        assert file.name == "pretrained_weights.py" or not loads, file
        assert all("weights_only=True" in ast.unparse(call) for call in loads), file


@pytest.mark.parametrize("file", TEST_MODULES, ids=lambda file: file.stem)
def test_no_test_module_imports_conftest_or_another_test_module(file):
    """This includes code for other processes, which is a string in a test module."""
    tree = ast.parse(file.read_text("utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    imports = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [code for code in imports + strings if IMPORT_OF_TESTS.search(code)]


def _is_torch_load(node):
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
