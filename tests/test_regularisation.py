"""The choice of a strength: the lowest loss wins, and as few are tried as patience allows."""

import pytest

from ikebana.learning.regularisation import select_regularisation

LOSSES = {1.0: 0.9, 2.0: 0.5, 3.0: 0.7, 4.0: 0.4, 5.0: 0.6, 6.0: 0.8, 7.0: 0.1}


@pytest.mark.parametrize(
    ("patience", "best", "tried"), [(1, 2.0, 3), (2, 4.0, 6), (3, 7.0, 7), (None, 7.0, 7)], ids=str
)
def test_the_lowest_loss_wins_of_those_that_patience_lets_be_tried(patience, best, tried):
    seen = []

    def evaluate(strength):
        seen.append(strength)
        return LOSSES[strength], f"head {strength}"

    assert select_regularisation(tuple(LOSSES), evaluate, patience) == (best, f"head {best}")
    assert seen == list(LOSSES)[:tried]


def test_of_equal_losses_the_first_wins():
    assert select_regularisation((1.0, 2.0, 3.0), lambda strength: (min(strength, 0.5), strength)) == (1.0, 1.0)
    assert select_regularisation((1.0,), lambda strength: (0.0, "alone"), 1) == (1.0, "alone")
