"""Reading the photos of a shard, which is written only with final rows.

A damaged photo stays damaged, so its row is final. A photo whose store does not answer, or denies
access, may be readable an hour later. A file with such a row would count as done.
"""

import threading
from collections.abc import Sequence

from ikebana.data import listing
from ikebana.data.listing import ListedPhoto
from ikebana.data.store_errors import StoreError
from ikebana.data.stores import PARALLEL_REQUESTS
from ikebana.errors import IncompleteShard, UnavailablePhoto

# A shard ends after so many photos that cannot be read: the retries of one take ten seconds.
MAX_UNAVAILABLE_PHOTOS = PARALLEL_REQUESTS
ADVICE_AGAIN = "the same command again, later: it computes the shards that are missing"


class ShardReader:
    """Reads the photos of one shard, and counts those that cannot be read now.

    Threads may share it.

    Args:
        number: of the shard.
        accepts_unreadable: whether such photos get a row with the reason, like damaged ones.
    """

    def __init__(self, number: int, *, accepts_unreadable: bool = False):
        self.number, self.accepts_unreadable = number, accepts_unreadable
        self.lock = threading.Lock()
        # Photos that gave bytes.
        self.readable = 0
        self.failures: list[UnavailablePhoto] = []

    def read(self, photo: ListedPhoto) -> bytes:
        """Read the bytes of a photo.

        Raises:
            UnreadablePhoto: with the reason.
            IncompleteShard, StoreError: too many photos cannot be read, as in `require_all`.
        """
        try:
            data = listing.read_photo(photo)
        except UnavailablePhoto as error:
            with self.lock:
                self.failures.append(error)
            if len(self.failures) >= MAX_UNAVAILABLE_PHOTOS:
                self.require_all()
            raise
        # An empty file is not requested.
        self.readable += bool(data)
        return data

    def require_all(self) -> None:
        """Raise an error if photos could not be read and may be readable later.

        Raises:
            StoreError: access was denied to all photos that were requested.
            IncompleteShard: some photos cannot be read now.
        """
        if self.accepts_unreadable or not self.failures:
            return
        first = self.failures[0]
        if not self.readable and all(failure.is_denied for failure in self.failures):
            what = first.what.removeprefix("unreadable: ")
            raise StoreError(what, where=first.where, advice=first.advice)
        count = len(self.failures)
        error = IncompleteShard(
            f"shard {self.number} is not written: {describe_count([count])} could not be read, the first is {first.what}",
            where=first.where,
            advice=ADVICE_AGAIN,
        )
        error.number, error.photos, error.reason = self.number, count, first.what
        raise error


def describe_count(counts: Sequence[int]) -> str:
    """Describe how many photos of some shards could not be read.

    Of a shard that ended before all its photos were tried, there may be more.
    """
    least = "at least " if max(counts) >= MAX_UNAVAILABLE_PHOTOS else ""
    return f"{least}{sum(counts)} photo{'s' * (sum(counts) != 1)}"
