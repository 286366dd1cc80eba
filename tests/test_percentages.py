"""Percentages that are shown: rounded as people do, and never more certain than they are."""

from decimal import ROUND_HALF_UP, Decimal

import pytest

from ikebana.system.percentages import format_confidence, format_percentage


@pytest.mark.parametrize("total", [7, 40, 200, 863])
@pytest.mark.parametrize("decimals", [0, 1])
def test_shares_of_photos_are_rounded_half_up(total, decimals):
    step = Decimal(1).scaleb(-decimals)
    for part in range(1, total):
        exact = (Decimal(100 * part) / Decimal(total)).quantize(step, ROUND_HALF_UP)
        assert format_percentage(part / total, decimals) == f"{exact}%"


def test_none_and_all_have_no_decimals():
    assert (format_percentage(0.0), format_percentage(1.0)) == ("0%", "100%")


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0%"), (0.001, "<1%"), (0.005, "1%"), (0.5, "50%"), (0.996, ">99%"), (1.0, "100%")]
)
def test_a_confidence_looks_certain_only_if_it_is(share, text):
    assert format_confidence(share) == text
