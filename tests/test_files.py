"""Output paths that cannot be written are refused before any work."""

import hashlib
import os
import subprocess
import sys

import pytest
from support.images import two_classes, write_files

import ikebana
from ikebana.errors import MachineError
from ikebana.system import files

# The second is too long only with the suffix of a partial file.
LONG_NAME, LONG_NAME_WITH_SUFFIX = "n" * 300, "n" * 250


@pytest.mark.parametrize("name", [LONG_NAME, LONG_NAME_WITH_SUFFIX, "file/inside", "a\0b"])
def test_an_impossible_name_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MachineError, match="cannot be written") as refused:
        files.resolve_output_path(tmp_path / name)
    assert refused.value.advice
    assert os.listdir(tmp_path) == ["file"]


def test_a_writable_target_is_accepted_and_nothing_is_created(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("new.csv", "there", "there/new.csv", "not/yet/there.csv", "n" * 200):
        assert files.resolve_output_path(tmp_path / name) == tmp_path / name
        assert files.resolve_output_path(f"~/{name}") == tmp_path / name
    assert files.resolve_output_path("here.csv") == files.Path("here.csv")
    assert os.listdir(tmp_path) == ["there"]


@pytest.fixture
def unprivileged_user():
    """Switch to a user other than root, because root may write anywhere."""
    if os.geteuid() == 0:
        os.setresuid(65534, 65534, 0)
        yield
        os.setresuid(0, 0, 0)
    else:
        yield


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such users")
@pytest.mark.usefixtures("unprivileged_user")
def test_a_folder_without_write_permission_is_refused():
    with pytest.raises(MachineError, match="Permission denied") as refused:
        files.resolve_output_path("/usr/lib/new.csv")
    assert refused.value.where == files.Path("/usr/lib")


@pytest.mark.parametrize(
    ("verb", "place"),
    [
        ("fit", {"run": LONG_NAME}),
        ("audit", {"out": LONG_NAME}),
        ("audit", {"write": f"{LONG_NAME}.csv"}),
        ("demo", {"out": LONG_NAME}),
    ],
)
def test_every_verb_refuses_before_it_opens_a_photo(verb, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = [] if verb == "demo" else [write_files(tmp_path / "photos", two_classes())]
    with pytest.raises(MachineError, match="File name too long"):
        getattr(ikebana, verb)(*photos, **place)
    assert os.listdir(tmp_path) == ([] if verb == "demo" else ["photos"])


def test_outputs_of_runs_and_models_are_checked_before_any_work(paper_run, paper_model, good_photos, tmp_path):
    (tmp_path / "file").write_text("x")
    model = str(paper_model)
    for command in (
        ["export", str(paper_run.folder), f"{LONG_NAME}.onnx"],
        ["export", str(paper_run.folder), "--web", LONG_NAME],
        ["predict", model, str(good_photos[0]), "--out", f"{LONG_NAME}.csv"],
        ["predict", model, str(good_photos[0]), "--copy-to", "file"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ikebana", *command], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("MachineError: this cannot be written: ")
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["fit"], ["export", "run"], ["export", "run", "a.onnx", "--web", "b"], ["predict", "a.onnx"], ["fat"]]
)
def test_a_command_with_missing_or_extra_arguments_exits_with_2(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ikebana", *command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_the_working_directory_is_not_replaced_by_a_run(tmp_path, monkeypatch):
    photos = write_files(tmp_path / "photos", two_classes())
    (tmp_path / "empty" / "within").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "within")
    for name in (".", "..", str(tmp_path / "empty")):
        with pytest.raises(MachineError, match="working directory cannot be replaced"):
            ikebana.fit(photos, run=name)
    assert files.resolve_output_path(".") == files.Path()


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    for size in (0, 1, 2**18 + 1):
        (tmp_path / "bytes").write_bytes(data := bytes(range(256)) * (size // 256) + b"\n" * (size % 256))
        assert files.compute_file_sha256(tmp_path / "bytes") == hashlib.sha256(data).hexdigest()
