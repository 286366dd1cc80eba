"""Work in threads: results in order, with little computed ahead."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

# By default, so that no thread idles while one item takes long.
QUEUED_ITEMS_PER_THREAD = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_threads() -> int:
    """Count the processors that this process may use."""
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
