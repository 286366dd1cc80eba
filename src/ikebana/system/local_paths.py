"""Paths on this computer; an address would become a folder called `s3:`."""

import re
from pathlib import Path

from ikebana.errors import UsageError

# The beginning of an address, of which pathlib removes a slash. A drive of Windows has one letter.
ADDRESS_START = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)


def refuse_address(path: str | Path) -> None:
    """Raise UsageError for an address, where only a path on this computer is possible."""
    if ADDRESS_START.match(str(path)):
        raise UsageError(
            "this is an address, and a path on this computer is needed here",
            where=ADDRESS_START.sub(r"\1://", str(path), count=1),
            advice="a path on this computer; only photos may be at an address, and the folder of predict --out in s3://, "
            "gs:// or hf://",
        )
