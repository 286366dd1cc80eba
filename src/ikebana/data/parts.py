"""Results of several processes on a shared disk, one file per range of rows.

The files are the state: a part that exists and checks out is done, whichever process wrote it. So any
process may be killed, and the next one computes the rest.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ikebana.errors import MachineError
from ikebana.system.files import atomic_directory, atomic_write, discard

# Of the folder, so that a later process divides the rows in the same way.
PLAN_FILE = "plan.json"
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Parts:
    """The parts in a folder; part `number` has the rows from `number * part_rows` on."""

    folder: Path
    rows: int
    part_rows: int

    @property
    def numbers(self) -> range:
        """The numbers of the parts, from 0."""
        return range(-(-self.rows // self.part_rows))

    def get_rows(self, number: int) -> range:
        """Return the rows of a part."""
        return range(self.rows)[number * self.part_rows : (number + 1) * self.part_rows]

    def get_path(self, number: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{number:06}"

    def write(self, number: int, content: bytes) -> None:
        """Write the file of a part, behind its digest.

        Raises:
            MachineError: the disk is full, or the folder has gone.
        """
        with atomic_write(self.get_path(number), create_parent=False) as partial:
            partial.write_bytes(_compute_digest(content) + content)

    def read(self, number: int) -> bytes | None:
        """Read the content of a part; None if it is missing or damaged."""
        try:
            data = self.get_path(number).read_bytes()
        except OSError:
            return None
        digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return content if digest == _compute_digest(content) else None

    def is_done(self, number: int) -> bool:
        """Return whether a part is complete, or the folder was removed after use."""
        return self.read(number) is not None or not self.folder.exists()

    def read_all(self) -> list[bytes] | None:
        """Read all parts in order; None if the folder was removed after use.

        Raises:
            MachineError: a part is missing or damaged.
        """
        contents = []
        for number in self.numbers:
            content = self.read(number)
            if content is None and not self.folder.exists():
                return None
            if content is None:
                raise MachineError(
                    "this part is missing or damaged",
                    where=self.get_path(number),
                    advice="run the same command again: it computes what is missing",
                )
            contents.append(content)
        return contents

    def list_missing(self) -> list[int]:
        """List the parts that are missing or damaged."""
        return [number for number in self.numbers if self.read(number) is None]

    def remove(self) -> None:
        """Remove the folder; errors are ignored."""
        discard(self.folder)


def _compute_digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def create_parts(folder: Path, rows: int, part_rows: int) -> None:
    """Make a folder for parts inside a folder that no other process sees yet."""
    folder.mkdir(exist_ok=True)
    (folder / PLAN_FILE).write_text(json.dumps({"rows": rows, "part_rows": part_rows}), "utf-8")


def open_parts(folder: Path, rows: int) -> Parts | None:
    """Open the parts of these rows; None if there is no such folder."""
    try:
        plan = json.loads((folder / PLAN_FILE).read_text("utf-8"))
        parts = Parts(folder, int(plan["rows"]), int(plan["part_rows"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return parts if parts.rows == rows and parts.part_rows > 0 else None


def prepare_parts(folder: Path, rows: int, part_rows: int) -> Parts:
    """Open the parts of these rows, or make their folder.

    Args:
        part_rows: rows per part, unless an earlier process has chosen another number.
    Raises:
        MachineError: the folder cannot be made.
    """
    parts = open_parts(folder, rows)
    if parts is None:
        discard(folder)
        with atomic_directory(folder) as partial:
            create_parts(partial, rows, part_rows)
        # Another process may have been faster.
        parts = open_parts(folder, rows)
    if parts is None:
        raise MachineError("this folder is not what was written", where=folder, advice="check the disk")
    return parts
