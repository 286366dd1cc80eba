"""Selecting the regularisation: the lowest loss wins, and patience limits the trials."""

import pytest

from ikebana.learning.regularisation import select_regularisation

LOSSES = {1.0: 0.9, 2.0: 0.5, 3.0: 0.7, 4.0: 0.4, 5.0: 0.6, 6.0: 0.8, 7.0: 0.1}


@pytest.mark.parametrize(
    ("patience", "best", "tried"), [(1, 2.0, 3), (2, 4.0, 6), (3, 7.0, 7), (None, 7.0, 7)], ids=str
)
def test_the_lowest_loss_within_the_patience_is_selected(patience, best, tried):
    tried_strengths = []

    def evaluate(strength):
        tried_strengths.append(strength)
        return LOSSES[strength], f"head {strength}"

    assert select_regularisation(tuple(LOSSES), evaluate, patience) == (best, f"head {best}")
    assert tried_strengths == list(LOSSES)[:tried]


def test_the_first_of_equal_losses_is_selected():
    assert select_regularisation((1.0, 2.0, 3.0), lambda strength: (min(strength, 0.5), strength)) == (1.0, 1.0)
    assert select_regularisation((1.0,), lambda strength: (0.0, "alone"), 1) == (1.0, "alone")
