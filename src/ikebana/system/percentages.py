"""Shares as percentages: those that users write, and those that are shown."""

import math
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
        example = f"{share:g}% or {share / 100:g}" if 1 < share < 100 else "5% or 0.05"
        raise ValueError(f"it must be a share below 1, such as {example}")
    return share


def format_share(share: float) -> str:
    """Format a fraction as a percentage with at most three significant digits, such as 0.5%."""
    return f"{100 * share:.3g}%"


def format_percentage(share: float, decimals: int = 1) -> str:
    """Format a share, halves rounded up; without decimals if it is 0 or 1.

    Python rounds halves to even digits, so 37 of 40 would be 92.5% here and 92% there.
    """
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    # 100 * 0.145 is slightly less than 14.5.
    scale = 10**decimals
    return f"{math.floor(100 * scale * share + 0.5 + 1e-9) / scale:.{decimals}f}%"


def format_confidence(share: float) -> str:
    """Format a confidence in whole percent, as <1% or >99% rather than as certain."""
    if 0 < share < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= share < 1 else format_percentage(share, 0)
