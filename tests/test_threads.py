"""Work in threads: results in order, and a bounded number of pending items."""

import threading
import time

import pytest

from ikebana.system.threads import count_threads, limit_threads, map_in_threads


def test_results_are_in_the_order_of_the_items():
    def work(number):
        time.sleep(0.002 * (number % 3))
        return number**2

    assert list(map_in_threads(work, range(40))) == [number**2 for number in range(40)]
    assert list(map_in_threads(work, [])) == []


@pytest.mark.parametrize("ahead", [1, 5])
def test_items_are_read_only_as_far_as_they_are_queued(ahead):
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = map_in_threads(lambda number: number, items(), ahead)
    assert not taken  # nothing starts before the first result is requested
    for number in range(10):
        assert next(results) == number
        assert len(taken) == number + ahead
    results.close()
    assert len(taken) == 9 + ahead


def test_an_error_is_raised_in_order_and_pending_items_are_dropped():
    started, go_on = [], threading.Event()

    def work(number):
        started.append(number)
        if number == 1:
            raise ValueError(number)
        if number > 1:
            go_on.wait(5)
        return number

    results = map_in_threads(work, range(1000), 100)
    assert next(results) == 0
    threading.Timer(0.1, go_on.set).start()
    with pytest.raises(ValueError, match="1"):
        next(results)
    assert len(started) <= 2 + 2 * count_threads()


def test_a_limit_holds_within_its_block_and_in_this_thread_only():
    usable = count_threads()
    with limit_threads(1):
        assert count_threads() == 1
        # Each of the threads sees the processors, as other calls in this process do.
        assert list(map_in_threads(lambda _: count_threads(), range(3))) == [usable] * 3
    assert count_threads() == usable
