"""Work in threads: results in order, with little computed ahead."""

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import TypeVar

# By default, so that no thread idles while one item takes long.
QUEUED_ITEMS_PER_THREAD = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


# The limit of a `limit_threads` block, which other threads do not see.
_thread_limit: ContextVar[int | None] = ContextVar("thread_limit", default=None)


@contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Use at most so many threads within this block, in this thread only."""
    token = _thread_limit.set(threads)
    try:
        yield
    finally:
        _thread_limit.reset(token)


def count_threads() -> int:
    """Count the threads to use: one per usable processor, unless `limit_threads` allows fewer."""
    return min(_count_processors(), _thread_limit.get() or sys.maxsize)


def _count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int | None = None
) -> Generator[Result]:
    """Run work on items in threads and yield the results in order.

    Few items are queued ahead, so that results do not fill the memory if the caller is slow.
    Closing the generator drops the items that have not started.

    Args:
        items: read only as far as they are queued.
        ahead: items queued at most; by default 8 per thread.
    """
    threads, rest = count_threads(), iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        queued = islice(rest, ahead or QUEUED_ITEMS_PER_THREAD * threads)
        pending: deque[Future[Result]] = deque(pool.submit(work, item) for item in queued)
        while pending:
            yield pending.popleft().result()
            pending.extend(pool.submit(work, item) for item in islice(rest, 1))
    finally:
        pool.shutdown(cancel_futures=True)
