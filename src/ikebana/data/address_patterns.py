"""Patterns for many files: `shard-{000..127}.tar`, `{train,test}.parquet`, `*.tar`."""

import re

from ikebana.errors import PhotosError

BRACES = re.compile(r"\{([^{}]*)\}")
NUMBER_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# A pattern of more is refused before it fills the memory.
MAX_EXPANSIONS = 1_000_000


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..127}` and `{a,b}` like a shell; numbers keep their leading zeros.

    Braces with neither two dots between numbers nor a comma stay as they are.

    Raises:
        PhotosError: the pattern stands for too many names.
    """
    prefixes, position = [""], 0
    for match in BRACES.finditer(pattern):
        options = _list_options(match[1], pattern)
        if options is None:
            continue
        literal = pattern[position : match.start()]
        _refuse_many(len(prefixes) * len(options), pattern)
        prefixes = [f"{prefix}{literal}{option}" for prefix in prefixes for option in options]
        position = match.end()
    return [f"{prefix}{pattern[position:]}" for prefix in prefixes]


def has_braces(pattern: str) -> bool:
    """Return whether a pattern stands for several names by its braces."""
    return any("," in match[1] or NUMBER_RANGE.fullmatch(match[1]) for match in BRACES.finditer(pattern))


def _list_options(content: str, pattern: str) -> list[str] | None:
    numbers = NUMBER_RANGE.fullmatch(content)
    if numbers is None:
        return content.split(",") if "," in content else None
    first, last = int(numbers[1]), int(numbers[2])
    _refuse_many(abs(last - first) + 1, pattern)
    # As in a shell: zeros are kept if either number begins with one.
    is_padded = any(len(number) > 1 and number.startswith("0") for number in numbers.groups())
    width = max(len(numbers[1]), len(numbers[2])) if is_padded else 0
    step = 1 if first <= last else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _refuse_many(count: int, pattern: str) -> None:
    if count > MAX_EXPANSIONS:
        raise PhotosError(
            f"this pattern stands for more than {MAX_EXPANSIONS:,} names", where=pattern, advice="use a smaller range"
        )
