"""Commands in a shell: closed or full outputs, broken pipes, and a deleted working directory."""

import subprocess
import sys
from pathlib import Path

import pytest

import ikebana

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")]
IKEBANA = f"{sys.executable} -m ikebana"


def shell(line):
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_stop_the_work(closed):
    done = shell(f"{IKEBANA} cache {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_behind_the_output_is_an_error_message():
    done = shell(f"{IKEBANA} cache --json >/dev/full")
    assert done.returncode == 1
    assert "the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_pipe_is_not_reported_as_success():
    slow = f"{sys.executable} -c 'import time; time.sleep(1)'"
    done = shell(f"({slow}; {IKEBANA} cache --json) | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.strip() == "141"
    assert not done.stderr


def test_a_deleted_working_directory_is_an_error_message(tmp_path):
    gone, source = tmp_path / "gone", Path(ikebana.__file__).parents[1]
    done = shell(f"mkdir {gone} && cd {gone} && rmdir {gone} && PYTHONPATH={source} {IKEBANA} doctor")
    assert done.returncode == 1
    assert (
        done.stderr == "MachineError: the working directory no longer exists\n  try  change to another folder with cd\n"
    )
