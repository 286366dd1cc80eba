"""The search for the photos of a shard that crash the process which decodes them.

A shard whose worker has crashed several times is tried in halves, then in halves of those that
crash again, until single photos are left. Other photos of the shard keep their normal rows.
"""

from typing import TypeAlias

# Crashes of a shard's worker until its photos are tried: a node may have run out of memory.
MAX_CRASHES = 3
# Crashes with a single photo until that photo is to blame.
MAX_PHOTO_CRASHES = 2
# Rounds that find no photo until the search ends.
MAX_FRUITLESS_ROUNDS = 2
STATUS_CRASHED = "the process crashed while decoding this photo"

# What to run next: a trial of some photos by their position, or None for the whole shard without
# the photos that crash.
Work: TypeAlias = range | None


class CrashSearch:
    """The search in one shard.

    Attributes:
        crashing: positions of the photos that crash their process.
    """

    def __init__(self, photos: int):
        self.photos = photos
        self.crashing: set[int] = set()
        self._crashes = 0
        self._fruitless_rounds = 0
        self._found_in_round = False
        self._trials_in_flight = 0
        self._crashes_by_photo: dict[int, int] = {}

    @property
    def statuses(self) -> dict[int, str]:
        """The status of each photo that crashes its process."""
        return dict.fromkeys(sorted(self.crashing), STATUS_CRASHED)

    @property
    def is_hopeless(self) -> bool:
        """Whether the shard crashes although no single photo does."""
        return self._fruitless_rounds == MAX_FRUITLESS_ROUNDS

    def record_shard_crash(self) -> list[Work]:
        """Record a crash of the whole shard; return what to run next, if anything."""
        self._crashes += 1
        if self._crashes < MAX_CRASHES:
            return [None]
        if self.is_hopeless:
            return []
        self._found_in_round = False
        return self._count(_halve(range(self.photos)))

    def record_trial(self, photos: range, has_crashed: bool) -> list[Work]:
        """Record the end of a trial; return what to run next."""
        self._trials_in_flight -= 1
        trials: list[Work] = []
        if has_crashed and len(photos) > 1:
            trials = _halve(photos)
        elif has_crashed and not self._blame(photos.start):
            trials = [photos]
        if trials or self._trials_in_flight:
            return self._count(trials)
        self._fruitless_rounds = 0 if self._found_in_round else self._fruitless_rounds + 1
        return [None]

    def _count(self, trials: list[Work]) -> list[Work]:
        self._trials_in_flight += len(trials)
        return trials

    def _blame(self, position: int) -> bool:
        """Count a crash with a single photo; return whether the photo is to blame."""
        self._crashes_by_photo[position] = self._crashes_by_photo.get(position, 0) + 1
        if self._crashes_by_photo[position] < MAX_PHOTO_CRASHES:
            return False
        self.crashing.add(position)
        self._found_in_round = True
        return True


def _halve(photos: range) -> list[Work]:
    middle = len(photos) // 2
    return [half for half in (photos[:middle], photos[middle:]) if half]
