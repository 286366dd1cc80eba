"""The table of predictions: `.csv`, `.jsonl` or `.parquet`, one row per path.

`OUT.part` collects the rows as JSON lines. A call that was killed resumes from it: for a photo that
an earlier call predicted, the part gets a note with the position of that row. The lines of the
last call are therefore the table, in the order of its photos. Only a complete table becomes OUT, by
rename; then the part is deleted. The memory needed is 16 bytes per prediction that exists.
"""

import heapq
import json
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ikebana.errors import MachineError, UsageError
from ikebana.inference import table_formats
from ikebana.inference.prediction import Prediction
from ikebana.inference.table_formats import FIXED_COLUMNS, TABLE_SUFFIXES, to_row
from ikebana.system import progress
from ikebana.system.files import atomic_write, resolve_output_path, write_error

# A part of another version is discarded.
PART_FORMAT_VERSION = 4
# Replaces the digest if `find_existing` did not look up the photo: no call can resume from its row.
NO_DIGEST = 0


def resolve_table_path(out: Path, *, advises_folder: bool = False) -> Path:
    """Resolve ~ in the table's path and check it before any work is done.

    Args:
        advises_folder: whether a folder for shards is possible instead.
    Raises:
        UsageError: the name does not end in a table's suffix, or is a folder.
        MachineError: the path is not writable.
    """
    path = resolve_output_path(out)
    if path.suffix.lower() not in TABLE_SUFFIXES or path.is_dir():
        folder = f"; or the name of a folder, {out}/, for shards" if advises_folder else ""
        raise UsageError(
            f"{out} is not a supported table file", advice=f"a name that ends in {', '.join(TABLE_SUFFIXES)}{folder}"
        )
    return path


def get_part_path(out: Path) -> Path:
    """Get the path of the file that collects the rows until the table is complete."""
    return out.with_name(f"{out.name}.part")


def is_own(file: Path, out: Path) -> bool:
    """Return whether the file is the table or its part.

    Either may be among the photos.
    """
    return file.name in (out.name, get_part_path(out).name) and file.parent.resolve() == out.parent.resolve()


class Table:
    """A table that predictions are written to.

    Args:
        model: identifies the classifier; only rows of the same classifier are reused.
        overwrite: start over, even if a part exists.
    """

    def __init__(self, out: Path, classes: Sequence[str], model: str, overwrite: bool = False):
        self.out, self.overwrite, self.classes = resolve_table_path(out), overwrite, tuple(classes)
        self.part_path = get_part_path(self.out)
        self.header = json.dumps({"format": PART_FORMAT_VERSION, "model": model, "classes": list(classes)}) + "\n"
        self.open_files = ExitStack()
        # Appends to the part, and reads the rows of earlier calls.
        self.writer: IO[bytes] | None = None
        self.reader: IO[bytes] | None = None
        # Sorted digests of earlier predictions, and the offsets of their rows.
        self.known_digests = self.row_offsets = np.zeros(0, np.uint64)
        # Bytes of the part that earlier calls wrote.
        self.start_offset = 0
        # Digests of the photos whose rows are still to be added, and the number of all such photos.
        self.pending_digests: deque[int] = deque()
        self.new_count = 0

    def __enter__(self) -> Self:
        with ExitStack() as open_files:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self.writer = open_files.enter_context(_open_locked(self.part_path))
                self._resume(self.writer)
                self.reader = open_files.enter_context(self.part_path.open("rb"))
            except OSError as error:
                raise write_error(error, self.part_path) from error
            self.open_files = open_files.pop_all()  # keeps them open after this block
        return self

    def __exit__(self, *_: object) -> None:
        self.open_files.close()

    def _resume(self, part: IO[bytes]) -> None:
        """Index the rows of earlier calls; discard truncated rows and those of another model."""
        part.seek(0)
        header = b"" if self.overwrite else part.readline()
        if header != self.header.encode():
            if header.endswith(b"\n"):  # else a kill truncated the header, and no rows follow
                progress.warn(f"{self.part_path} belongs to another model: starting over")
            part.truncate(0)
            part.write(self.header.encode())
            self.start_offset = len(self.header.encode())
            return
        digests, offsets, end = array("Q"), array("Q"), part.tell()
        for line in part:
            if (row := _parse_row(line)) is None:
                break
            if row and _is_prediction(row):
                digests.append(row[0])
                offsets.append(end)
            end += len(line)
        part.truncate(end)
        part.seek(0, os.SEEK_END)
        self.start_offset, order = end, np.argsort(digests)
        self.known_digests, self.row_offsets = (np.array(column, np.uint64)[order] for column in (digests, offsets))
        if digests:
            progress.message(f"resuming after {len(digests)} earlier predictions")

    def find_existing(self, path: str, file: Path, stamp: str | None = None) -> Prediction | None:
        """Find an earlier call's prediction; None if the caller must predict and add it.

        Args:
            file: the file at the path; one that changed since the earlier call has no prediction.
            stamp: what changes with a photo that is no file; None for a file.
        """
        assert self.reader is not None
        digest = _compute_digest(path, _stamp_file(file) if stamp is None else stamp)
        index = int(np.searchsorted(self.known_digests, np.uint64(digest)))
        if index == len(self.known_digests) or int(self.known_digests[index]) != digest:
            self.pending_digests.append(digest)
            self.new_count += 1
            return None
        offset = int(self.row_offsets[index])
        self._write(json.dumps({"after": self.new_count, "place": offset}) + "\n")
        shown_path, label, confidence, status, candidates, familiarity, *numbers = _read_row(self.reader, offset)
        probabilities = dict(zip(self.classes, numbers, strict=True))
        return Prediction(shown_path, label, confidence, probabilities, status, tuple(candidates), familiarity)

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Add rows in the order of the `find_existing` calls; they survive a kill."""
        rows = []
        for prediction in predictions:
            digest = self.pending_digests.popleft() if self.pending_digests else NO_DIGEST
            rows.append(json.dumps([digest, *to_row(prediction, self.classes)], ensure_ascii=False) + "\n")
        self._write("".join(rows), flush=True)

    def _write(self, text: str, flush: bool = False) -> None:
        assert self.writer is not None
        try:
            self.writer.write(text.encode())
            if flush:
                self.writer.flush()
        except OSError as error:
            raise write_error(error, self.part_path) from error

    def finish(self) -> None:
        """Write the table from the rows and delete the part."""
        self._write("", flush=True)
        with atomic_write(self.out) as partial_file:
            table_formats.write_table(partial_file, self.out.suffix, self.classes, self._rows())
        if os.name == "nt":  # Windows cannot delete open files; elsewhere the lock is held until the end
            self.open_files.close()
        with suppress(OSError):
            self.part_path.unlink()
        self.open_files.close()

    def _rows(self) -> Iterator[list[Any]]:
        """Yield the rows of this call's photos in order, new and earlier ones merged."""
        with (
            self.part_path.open("rb") as row_lines,
            self.part_path.open("rb") as note_lines,
            self.part_path.open("rb") as old,
        ):
            row_lines.seek(self.start_offset)
            note_lines.seek(self.start_offset)
            new_rows = enumerate(json.loads(line)[1:] for line in row_lines if not _is_note(line))
            notes = (json.loads(line) for line in note_lines if _is_note(line))
            old_rows = ((note["after"], _read_row(old, note["place"])) for note in notes)
            # Of equal keys heapq.merge yields the first iterable's item first.
            for _, row in heapq.merge(old_rows, new_rows, key=itemgetter(0)):
                yield row


def _read_row(part: IO[bytes], offset: int) -> list[Any]:
    """Read the row at an offset, without its digest."""
    part.seek(offset)
    return json.loads(part.readline())[1:]


def _is_note(line: bytes) -> bool:
    """Return whether the line is a note with an earlier row's offset, not a row."""
    return line.startswith(b"{")


def _parse_row(line: bytes) -> list[Any] | None:
    """Parse a row and its digest; [] for a note, None if truncated."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if isinstance(row, dict):
        return []
    if not isinstance(row, list) or len(row) <= 1 + len(FIXED_COLUMNS):
        return None
    digest, path = row[:2]
    return row if isinstance(path, str) and isinstance(digest, int) and 0 <= digest < 2**64 else None


def _is_prediction(row: Sequence[Any]) -> bool:
    """Return whether the photo was usable; an unusable one is tried again."""
    return row[1 + FIXED_COLUMNS.index("confidence")] is not None


def _stamp_file(file: Path) -> str:
    """Return the size and modification time of a file."""
    try:
        stat = os.stat(file)
    except (OSError, ValueError):  # the file cannot be opened either; its row will report the reason
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _compute_digest(path: str, stamp: str) -> int:
    """Hash a path with what changes with its photo."""
    return int.from_bytes(blake2b(f"{stamp}\n{path}".encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _open_locked(part: Path) -> IO[bytes]:
    """Open the part for appending and lock it.

    Raises:
        MachineError: another process holds the lock.
    """
    while True:
        with ExitStack() as open_files:
            stream = open_files.enter_context(part.open("a+b"))
            _lock(stream, part)
            # The previous holder of the lock may have finished meanwhile and deleted the part.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(part)):
                    open_files.pop_all()  # keeps the stream open
                    return stream


def _lock(part: IO[bytes], path: Path) -> None:
    """Lock the part for this process, if the system has file locks."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MachineError(
            "this table is locked by another process",
            where=path,
            advice="wait until it finishes, or use another --out FILE",
        ) from None
