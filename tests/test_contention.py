"""Computing beside other processes."""

import subprocess
import sys
import time

import pytest
import torch

from ikebana.system import contention

pytestmark = pytest.mark.skipif(
    not contention.read_waits(), reason="this system does not count waiting for a processor"
)

# Both processes are restricted to one processor.
BUSY_PROCESS = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
MEASURE_BESIDE_IT = """
import os, time
from ikebana.system.contention import WaitMeter
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
with WaitMeter() as meter:
    end = time.monotonic() + 1
    while time.monotonic() < end:
        pass
print(meter.is_contended)
"""
COUNT_SPINNING = """
import contextlib, sys, time, torch
from ikebana.system import contention
torch.set_num_threads(2)
values = torch.ones(2**17)
throttle = contention._Throttle() if sys.argv[1] == "throttled" else None
started_at = time.process_time()
for _ in range(150):
    values.add_(1)
    time.sleep(0.002)
print(time.process_time() - started_at)
if throttle is not None:
    throttle.stop()
"""


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_a_process_that_shares_its_processor_waits_measurably():
    busy = subprocess.Popen([sys.executable, "-c", BUSY_PROCESS])
    try:
        assert run_python(MEASURE_BESIDE_IT).strip() == "True"
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.skipif(not contention._find_libgomp(), reason="torch's threads are not libgomp's here")
def test_throttled_threads_use_less_processor_time_while_they_wait():
    spinning, throttled = (float(run_python(COUNT_SPINNING, mode)) for mode in ("spinning", "throttled"))
    assert throttled < spinning / 2


def test_throttling_changes_no_bit_and_ends_all_its_threads():
    generator = torch.Generator().manual_seed(0)
    photos, weights = torch.randn(4, 8, 33, 33, generator=generator), torch.randn(16, 8, 3, 3, generator=generator)
    threads = len(contention.read_waits())
    expected = torch.nn.functional.conv2d(photos, weights)
    throttle = contention._Throttle()
    assert torch.equal(torch.nn.functional.conv2d(photos, weights), expected)
    throttle.stop()
    deadline = time.monotonic() + 30
    while len(contention.read_waits()) > threads + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(contention.read_waits()) <= threads + 1


def test_the_watcher_runs_only_while_something_computes():
    with contention.avoid_spinning():
        with contention.avoid_spinning():
            thread = contention._watcher.thread
        assert thread.is_alive()
    assert not thread.is_alive()


def test_the_users_omp_wait_policy_is_kept(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert not contention._can_adapt()


def test_computation_of_another_process_counts_as_used_by_others():
    before = contention._read_others_seconds()
    run_python("import time\nwhile time.process_time() < 0.5: pass")
    assert contention._read_others_seconds() - before > 0.4


def test_a_machine_with_a_low_load_average_is_not_measured(monkeypatch):
    monkeypatch.setattr(contention.os, "getloadavg", lambda: (0.1, 5.0, 5.0))
    monkeypatch.setattr(contention.time, "sleep", lambda _: pytest.fail("it waited"))
    assert contention.estimate_competing_processors() == 0


def test_at_most_as_many_processors_are_left_out_as_the_load_average_shows(monkeypatch):
    monkeypatch.setattr(contention.os, "getloadavg", lambda: (0.75, 0.0, 0.0))
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert 0 < contention.estimate_competing_processors() <= 0.75
    finally:
        busy.kill()
        busy.wait()
