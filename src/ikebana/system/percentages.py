"""Shares that users write as a percentage or as a fraction."""

import re
from typing import Any

PERCENTAGE = re.compile(r"([0-9]*\.?[0-9]+)\s*%")


def parse_share(value: Any) -> Any:
    """Parse `5%`, `5 %` or `0.05` into a fraction; other types stay as they are.

    Raises:
        ValueError: the text is no number.
    """
    if not isinstance(value, str):
        return value
    percentage = PERCENTAGE.fullmatch(value.strip())
    try:
        # Rounded, so that 7% is exactly 0.07.
        share = round(float(percentage[1]) / 100, 12) if percentage else float(value)
    except ValueError:
        raise ValueError("it must be a share such as 5% or 0.05") from None
    if share >= 1:
        raise ValueError("it must be a share below 1, such as 5% or 0.05")
    return share


def format_share(share: float) -> str:
    """Format a fraction as a percentage with at most three significant digits, such as 0.5%."""
    return f"{100 * share:.3g}%"
