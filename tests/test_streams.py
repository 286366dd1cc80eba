"""A command whose output nobody reads, or can be written nowhere, says so by its status and loses no work."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="this is a shell's way of speaking")
IKEBANA = f"{sys.executable} -m ikebana"


def shell(line):
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_end_no_work(closed):
    done = shell(f"{IKEBANA} cache {closed}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux's")
def test_a_full_disk_behind_the_output_is_said_in_words():
    done = shell(f"{IKEBANA} cache --json >/dev/full")
    assert done.returncode == 1
    assert "the output cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_whoever_stops_reading_does_not_make_it_look_done():
    done = shell(f"{IKEBANA} cache --json | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.strip() in ("0", "141")  # 0 if it was quicker than the reader
    slow = f"{sys.executable} -c 'import time; time.sleep(1)'"
    done = shell(f"({slow}; {IKEBANA} cache --json) | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.strip() == "141"
    assert not done.stderr
