"""Environments of notebooks, containers, services and scripts: variables, homes and terminals of every kind."""

import os
import subprocess
import sys
import tarfile
import tempfile

import pytest
from support.archives import make_tar, make_zip
from support.images import write_files

from ikebana.errors import MachineError
from ikebana.system import cache_folder, terminal_size


def run_command(*arguments: object, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `ikebana` with these variables besides the tests' own."""
    command = [sys.executable, "-m", "ikebana", *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=timeout
    )


# --- matplotlib's backend ---

FIGURE = """
import os, sys
from pathlib import Path
from ikebana.reports import figures, sheet
sheet.write_sheet(figures.make_class_bars({"a": {"train": 1}, "b": {"test": 2}}), Path(sys.argv[1]))
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams._get("backend") if os.environ["MPLBACKEND"] == "pdf" else "")
"""


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://missing", "nonsense", "pdf", ""]
)
def test_figures_do_not_need_the_backend_of_the_environment(backend, tmp_path):
    script = [sys.executable, "-c", FIGURE, str(tmp_path / "bars.png")]
    done = subprocess.run(script, env=os.environ | {"MPLBACKEND": backend}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == {"pdf": ["pdf", "pdf"], "": []}.get(backend, [backend])
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


# --- the home and the cache ---


@pytest.fixture
def without_home(tmp_path) -> dict[str, str]:
    """Variables of a user whose home is a file, and a temporary folder."""
    (tmp_path / "home").write_text("a file")
    (tmp_path / "tmp").mkdir()
    return {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": "", "IKEBANA_CACHE": "", "TMPDIR": str(tmp_path / "tmp")}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take the cache folder from HOME")
def test_without_a_home_the_cache_is_in_a_temporary_folder_of_the_users_own(without_home, tmp_path):
    done = run_command("cache", **without_home)
    folder = tmp_path / "tmp" / f"ikebana-{os.getuid()}"
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout
    assert f"the cache is in {folder}" in done.stderr
    assert "IKEBANA_CACHE" in done.stderr
    assert folder.stat().st_mode & 0o777 == 0o700
    assert run_command("cache", **without_home).stdout == done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take the cache folder from HOME")
def test_a_temporary_folder_that_others_may_write_is_refused(without_home, tmp_path):
    folder = tmp_path / "tmp" / f"ikebana-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    done = run_command("cache", **without_home)
    assert done.returncode == 1
    assert "others may write to it" in done.stderr
    folder.rmdir()
    folder.symlink_to(tmp_path)
    done = run_command("cache", **without_home)
    assert done.returncode == 1
    assert "IKEBANA_CACHE=DIR" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not take the cache folder from HOME")
def test_a_user_without_a_home_or_a_name_has_a_temporary_cache(tmp_path, monkeypatch):
    def know_no_user(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME", "IKEBANA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", know_no_user)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cache_folder._choose_folder.cache_clear()
    assert cache_folder.cache_folder() == tmp_path / f"ikebana-{os.getuid()}"
    assert [entry.name for entry in tmp_path.iterdir()] == [f"ikebana-{os.getuid()}"]
    cache_folder._choose_folder.cache_clear()


def test_a_cache_below_a_home_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", "~no-such-user/cache")
    with pytest.raises(MachineError, match="no home folder") as refusal:
        cache_folder.cache_folder()
    assert "IKEBANA_CACHE=" in (refusal.value.advice or "")


def test_a_home_that_can_be_written_holds_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("IKEBANA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of mine"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache_folder.cache_folder().parents


# --- the size of the terminal ---


@pytest.mark.parametrize("columns", ["0", "1", "2", "10", "-5", "abc", "", "²", "9" * 9, "9" * 99, "80"])
def test_help_is_readable_at_any_terminal_width(columns):
    done = run_command("fit", "--help", COLUMNS=columns, LINES=columns, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) < 500
    assert "--epochs" in done.stdout
    assert max(map(len, lines)) >= 35


@pytest.mark.parametrize(("value", "corrected"), [
    ("0", None), ("-1", None), ("abc", None), ("", None), ("²", None), ("1", "40"), ("39", "40"), ("40", "40"), ("200", "200"),
    ("99999", "1000"), ("9" * 5000, None),
])  # fmt: skip
def test_a_terminal_width_too_small_for_text_is_corrected(value, corrected, monkeypatch):
    monkeypatch.setenv("COLUMNS", value)
    terminal_size.correct_variables()
    assert os.environ.get("COLUMNS") == corrected


# --- the encoding of file names ---


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems take the encoding of names from elsewhere")
@pytest.mark.parametrize("kind", ["folder", "table", "zip", "tar"])
def test_names_that_the_locale_cannot_encode_are_refused_with_advice(kind, tmp_path):
    folder = write_files(tmp_path / "photos", {f"{name}/1.jpg": b"x" for name in ("rose", "Gänseblümchen")})
    rows = "".join(f"photos/{path.relative_to(folder)},{path.parent.name}\n" for path in folder.rglob("*.jpg"))
    members = [(str(path.relative_to(folder)), path.read_bytes()) for path in folder.rglob("*.jpg")]
    files = {
        "photos.csv": f"path,label\n{rows}".encode(),
        "photos.zip": make_zip([(*member, 0o100644) for member in members]),
        "photos.tar": make_tar([(*member, tarfile.REGTYPE) for member in members]),
    }
    write_files(tmp_path, files)
    source = {"folder": "photos", "table": "photos.csv", "zip": "photos.zip", "tar": "photos.tar"}[kind]
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_command("audit", tmp_path / source, **variables)  # pyright: ignore[reportArgumentType]
    assert done.returncode == 1
    assert "need" in done.stderr
    assert "UTF-8, but Python uses ascii for file names here" in done.stderr
    assert "set PYTHONUTF8=1" in done.stderr
    assert "rename it" not in done.stderr
