"""A path that the user may have meant instead of a misspelt one."""

import difflib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

# Entries of a folder that are looked at.
MAX_SIBLINGS = 1000


def suggest_similar_path(path: Path, is_candidate: Callable[[Path], bool] = Path.exists) -> str | None:
    """Find a path with a similar name beside a missing one; None without.

    Args:
        is_candidate: whether a sibling may be meant.
    """
    try:
        names = [sibling.name for sibling in islice(path.parent.iterdir(), MAX_SIBLINGS) if is_candidate(sibling)]
    except OSError:
        return None
    matches = difflib.get_close_matches(path.name, names, n=1)
    return str(path.parent / matches[0]) if matches else None
