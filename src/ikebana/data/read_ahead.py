"""Reading of photos from stores, several at a time and ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from ikebana.data.stores import PARALLEL_REQUESTS

# Photos in memory that have not been decoded yet.
QUEUED_PHOTOS = 2 * PARALLEL_REQUESTS

Photo = TypeVar("Photo")


def read_ahead(
    photos: Iterable[Photo], read: Callable[[Photo], bytes], is_remote: Callable[[Photo], bool]
) -> Iterator[tuple[Photo, Callable[[], bytes]]]:
    """Yield each photo with a function that returns its bytes or raises.

    Photos of a store are requested ahead, because an answer takes longer than decoding. Others are
    read when the function is called. Closing the generator drops the requests that have not begun.
    """
    remaining, queue = iter(photos), deque[tuple[Photo, Callable[[], bytes]]]()
    pool: ThreadPoolExecutor | None = None
    is_complete = False
    try:
        while True:
            for photo in islice(remaining, max(0, QUEUED_PHOTOS - len(queue))):
                if not is_remote(photo):
                    queue.append((photo, lambda photo=photo: read(photo)))
                    break
                pool = pool or ThreadPoolExecutor(PARALLEL_REQUESTS)
                queue.append((photo, pool.submit(read, photo).result))
            if not queue:
                is_complete = True
                return
            yield queue.popleft()
    finally:
        if pool is not None:
            # The caller may still wait for the last photos.
            pool.shutdown(wait=False, cancel_futures=not is_complete)
