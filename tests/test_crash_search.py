"""The search for photos that crash their process finds exactly those."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from ikebana.cluster.crash_search import MAX_CRASHES, MAX_FRUITLESS_ROUNDS, MAX_PHOTO_CRASHES, CrashSearch


def run_search(search, photos, killers):
    """Run a shard and its trials until the shard is complete; return the number of crashes."""
    crashes, works = 0, deque([None])
    while works:
        work = works.popleft()
        tried = set(range(photos) if work is None else work)
        if work is None:
            tried -= search.crashing
        has_crashed = bool(tried & killers)
        crashes += has_crashed
        if work is not None:
            works.extend(search.record_trial(work, has_crashed))
        elif has_crashed:
            works.extend(search.record_shard_crash())
    return crashes


@given(photos=st.integers(1, 70), killers=st.sets(st.integers(0, 69), max_size=4))
def test_the_photos_that_crash_are_found_and_no_others(photos, killers):
    killers = {position for position in killers if position < photos}
    search = CrashSearch(photos)
    crashes = run_search(search, photos, killers)
    assert search.crashing == killers
    assert set(search.statuses) == killers
    levels = photos.bit_length() + 1
    assert crashes <= MAX_CRASHES + len(killers) * (levels + MAX_PHOTO_CRASHES)


def test_a_shard_that_crashes_a_few_times_is_computed_again_as_a_whole():
    search = CrashSearch(10)
    assert [search.record_shard_crash() for _ in range(MAX_CRASHES - 1)] == [[None]] * (MAX_CRASHES - 1)
    assert not search.statuses


def test_a_photo_that_crashes_once_is_not_blamed():
    search = CrashSearch(1)
    works = [search.record_shard_crash() for _ in range(MAX_CRASHES)]
    assert works[-1] == [range(1)]
    assert search.record_trial(range(1), has_crashed=True) == [range(1)]
    assert search.record_trial(range(1), has_crashed=False) == [None]
    assert not search.crashing


def test_the_search_ends_where_only_all_photos_together_crash():
    search, rounds = CrashSearch(2), 0
    for _ in range(MAX_CRASHES - 1):
        search.record_shard_crash()
    while works := search.record_shard_crash():
        rounds += 1
        for work in works:
            assert work is not None
            search.record_trial(work, has_crashed=False)
    assert (rounds, search.is_hopeless) == (MAX_FRUITLESS_ROUNDS, True)
