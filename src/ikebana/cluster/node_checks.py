"""Checks of a folder that all nodes of a cluster must share."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ikebana.errors import IkebanaError, get_first_line
from ikebana.system.files import atomic_write, write_error

# In the shared folder while nodes are checked. Two drivers may check theirs at the same time.
MARK_PREFIX = ".nodes-check-"


@contextmanager
def mark_folder(folder: Path) -> Iterator[str]:
    """Yield a file by which nodes recognise the folder, which is made if missing.

    Raises:
        MachineError: it cannot be written.
    """
    mark = folder / f"{MARK_PREFIX}{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise write_error(error, folder) from error
    try:
        yield str(mark)
    finally:
        with suppress(OSError):
            mark.unlink()


def inspect_folder(mark: str) -> list[str]:
    """Describe why this node cannot use the folder of a mark, if so."""
    folder = Path(mark).parent
    if not Path(mark).exists():
        return [f"{folder} is not the folder of the driver"]
    try:
        trial = folder / f".trial-{secrets.token_hex(4)}"
        with atomic_write(trial, create_parent=False) as partial_file:
            partial_file.write_bytes(b"trial")
        with suppress(OSError):
            trial.unlink()
    except IkebanaError as error:
        return [f"{folder} cannot be used: {get_first_line(error)}"]
    return []
