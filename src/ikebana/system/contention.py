"""Computing beside other processes that want the processors.

OpenMP's threads wait for each other hundreds of times per training step. If another process holds
up one of them, all of them wait: on two processors beside one busy process a step takes three times
as long. Two remedies:

Before training, `estimate_competing_processors` tells how many threads to do without.
Later the number of threads must stay, because results depend on it. `avoid_spinning` then changes
how they wait. libgomp's threads spin for milliseconds at the end of each parallel region, which
uses up the time slice that another thread needs. `OMP_WAIT_POLICY` is read once, when the library
is loaded, but libgomp hardly spins while it manages more threads than there are processors.
`avoid_spinning` adds idle threads while this process is kept waiting. No result changes.

Source: `gomp_throttled_spin_count_var` and `gomp_managed_threads` in libgomp/env.c and
libgomp/config/linux/wait.h of GCC.
"""

import contextlib
import ctypes
import os
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

from ikebana.system.shared_state import SharedState

# Seconds between two looks at how long this process was kept waiting.
SAMPLE_SECONDS = 0.5
# Seconds of waiting for a processor per second, over all threads: above the first the process
# competes with others, below the second it does not.
MIN_CONTENDED_WAIT, MAX_UNCONTENDED_WAIT = 0.3, 0.1
THREADS_FOLDER = Path("/proc/self/task")
# Seconds over which the processors that other processes use are measured.
OTHERS_SAMPLE_SECONDS = 0.5
# Below this load average (of one minute) the measurement is not worth its time.
MIN_LOAD_AVERAGE = 0.5
PROCESSOR_TIMES = Path("/proc/stat")


class _Throttle:
    """Idle threads that make libgomp's other threads sleep while they wait."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.threads = [
            threading.Thread(target=self._hold_threads, args=[file], daemon=True) for file in _find_libgomp()
        ]
        for thread in self.threads:
            thread.start()

    def _hold_threads(self, file: str) -> None:
        """Make a team of one thread more than there are processors, until the end."""
        library, idle = ctypes.CDLL(file), ctypes.CDLL(None).sched_yield
        threads = library.omp_get_num_procs() + 1
        library.GOMP_parallel(ctypes.cast(idle, ctypes.c_void_p), None, ctypes.c_uint(threads), ctypes.c_uint(0))
        self.end.wait()

    def stop(self) -> None:
        self.end.set()
        for thread in self.threads:
            thread.join()


class _Watcher(SharedState):
    """Looks at how long this process is kept waiting, while anything computes."""

    def __init__(self) -> None:
        super().__init__()
        self.end, self.thread = threading.Event(), threading.Thread()

    def set_up(self) -> None:
        self.end = threading.Event()
        self.thread = threading.Thread(target=_adapt_waiting, args=[self.end], daemon=True)
        self.thread.start()

    def restore(self) -> None:
        self.end.set()
        self.thread.join()


_watcher = _Watcher()


def avoid_spinning() -> AbstractContextManager[None]:
    """Within this block OpenMP's threads spin only while no other process wants the processors.

    Without effect where the threads are not libgomp's, or where the user chose how they wait.
    """
    return _watcher.use() if _can_adapt() else contextlib.nullcontext()


def _can_adapt() -> bool:
    is_chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    return sys.platform.startswith("linux") and not is_chosen and bool(read_waits())


def _adapt_waiting(end: threading.Event) -> None:
    """Throttle libgomp while this process competes for the processors, until the event is set."""
    throttle: _Throttle | None = None
    while not end.is_set():
        with WaitMeter() as meter:
            end.wait(SAMPLE_SECONDS)
        if throttle is None and meter.is_contended:
            throttle = _Throttle()
        elif throttle is not None and meter.seconds < MAX_UNCONTENDED_WAIT:
            throttle.stop()
            throttle = None
    if throttle is not None:
        throttle.stop()


class WaitMeter:
    """Measures, for a block of code, how long this process waited for a processor.

    Attributes:
        seconds: waited per second, over all threads; 0 where the system does not count it.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> "WaitMeter":
        self.waits, self.started_at = read_waits(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = compute_wait(self.waits, read_waits()) / max(time.monotonic() - self.started_at, 1e-9)

    @property
    def is_contended(self) -> bool:
        return self.seconds > MIN_CONTENDED_WAIT


def read_waits() -> dict[str, int]:
    """Read for each thread of this process the nanoseconds that it waited for a processor.

    Empty where the system does not count them.
    """
    waits: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(THREADS_FOLDER):
            # A thread may end meanwhile.
            with contextlib.suppress(OSError, IndexError, ValueError):
                waits[thread] = int((THREADS_FOLDER / thread / "schedstat").read_text("ascii").split()[1])
    return waits


def compute_wait(before: dict[str, int], after: dict[str, int]) -> float:
    """Compute the seconds that all threads together waited between two readings."""
    return sum(nanoseconds - before.get(thread, 0) for thread, nanoseconds in after.items()) / 1e9


def _find_libgomp() -> list[str]:
    from threadpoolctl import threadpool_info

    return [info["filepath"] for info in threadpool_info() if info["prefix"] == "libgomp"]


def estimate_competing_processors() -> float:
    """Estimate how many of the allowed processors other processes keep using.

    The minimum of the load average, which a short burst does not raise, and of what they use right
    now, which does not count the user's previous command.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < MIN_LOAD_AVERAGE:
        return 0.0
    before = _read_others_seconds(), time.monotonic()
    time.sleep(OTHERS_SAMPLE_SECONDS)
    used = (_read_others_seconds() - before[0]) / (time.monotonic() - before[1])
    return max(0.0, min(load, used))


def _read_others_seconds() -> float:
    """Read the processor seconds of other processes, on the processors allowed to this one.

    0 where the system does not count them.
    """
    try:
        lines = PROCESSOR_TIMES.read_text("ascii").splitlines()
        allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        ticks = os.sysconf("SC_CLK_TCK")
        fields = [line.split() for line in lines if line.startswith("cpu")]
        # User, nice, system; then, after idle and waiting for a disk, interrupts.
        busy = sum(sum(map(int, [*row[1:4], *row[6:8]])) for row in fields if row[0] in allowed)
    except (OSError, ValueError, AttributeError):
        return 0.0
    own = os.times()
    return busy / ticks - own.user - own.system
