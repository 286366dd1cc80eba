"""Predictions on their way into a table: `.csv`, `.jsonl` or `.parquet`, a row a path.

Rows are kept in `OUT.part` as they come, a JSON line each. Whoever is killed goes on from there: where an answer is there already
a line says where it stands, so that the lines of the last call are the table, in the order in which it asked. Only what is
complete becomes OUT, by rename, and the part is taken away. In memory are 16 bytes for each answer that was there.
"""

import csv
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

from ikebana import progress
from ikebana.errors import MachineError, RecipeError
from ikebana.places import cannot_write, to_write, written
from ikebana.shipping.prediction import Prediction

KINDS = (".csv", ".jsonl", ".parquet")
DIGITS = 6  # of a probability: a millionth is less than what two processors differ by
FORMAT = 2  # of the part: a part of another format is begun anew
NOBODYS = 0  # in place of the digest of a photo that was not asked for: no later call can go on from its row


def columns(classes: Sequence[str]) -> list[str]:
    """The table's columns."""
    return ["path", "label", "confidence", "status", *(f"p:{name}" for name in classes)]


def values(prediction: Prediction, classes: Sequence[str]) -> list[Any]:
    """A row; None where there is nothing to say."""
    numbers = [round(prediction.probabilities[name], DIGITS) if prediction.usable else None for name in classes]
    confidence = round(prediction.confidence, DIGITS) if prediction.usable else None
    return [prediction.path, prediction.label, confidence, prediction.status, *numbers]


def check(out: Path) -> Path:
    """The table's place with ~ resolved; a name that no table can be written under is refused before any work is done.

    raises  RecipeError; MachineError if nothing can be written there
    """
    place = to_write(out)
    if place.suffix.lower() not in KINDS or place.is_dir():
        raise RecipeError(f"{out} is not the name of a table", advice=f"a name that ends in {', '.join(KINDS)}")
    return place


def part_of(out: Path) -> Path:
    """Where rows are kept until all are there."""
    return out.with_name(f"{out.name}.part")


def is_own(file: Path, out: Path) -> bool:
    """Whether the file is the table itself or its part, which may lie among the photos."""
    return file.name in (out.name, part_of(out).name) and file.parent.resolve() == out.parent.resolve()


class Table:
    """A table that is being written."""

    def __init__(self, out: Path, classes: Sequence[str], model: str, anew: bool = False):
        """
        model  what tells the classifier from any other: only its own rows are gone on from
        anew   from the beginning, whatever is there
        """
        self.out, self.anew, self.classes = check(out), anew, tuple(classes)
        self.part = part_of(self.out)
        self.head = json.dumps({"format": FORMAT, "model": model, "classes": list(classes)}) + "\n"
        self.opened = ExitStack()
        self.stream: IO[bytes] | None = None  # what is added
        self.old: IO[bytes] | None = None  # what was there
        self.there = np.zeros(0, np.uint64)  # digests of the answers that were there, sorted
        self.places, self.began = self.there, 0  # where these stand; bytes that were there
        self.looked_at: deque[int] = deque()  # digests of the photos whose rows are still to come
        self.new = 0  # photos that were asked for and not there

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self.stream = opened.enter_context(_locked(self.part))
                self._go_on(self.stream)
                self.old = opened.enter_context(self.part.open("rb"))
            except OSError as error:
                raise cannot_write(error, self.part) from error
            self.opened = opened.pop_all()  # they stay open
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.close()

    def _go_on(self, part: IO[bytes]) -> None:
        """Find out what is there; a row that was cut off, and all of another model's, is taken away."""
        part.seek(0)
        head = b"" if self.anew else part.readline()
        if head != self.head.encode():
            if head.endswith(b"\n"):  # else a kill cut it off, and nothing was in there
                progress.say(f"{self.part} was made by another model: it is begun anew")
            part.truncate(0)
            part.write(self.head.encode())
            self.began = len(self.head.encode())
            return
        digests, places, end = array("Q"), array("Q"), part.tell()
        for line in part:
            if (row := _whole(line)) is None:
                break
            if row and _is_answer(row):
                digests.append(row[0])
                places.append(end)
            end += len(line)
        part.truncate(end)
        part.seek(0, os.SEEK_END)
        self.began, order = end, np.argsort(digests)
        self.there, self.places = (np.array(each, np.uint64)[order] for each in (digests, places))
        if digests:
            progress.say(f"{len(digests)} predictions are there already: going on from them")

    def was(self, path: str, file: Path) -> Prediction | None:
        """The answer that was there when the table was opened; None if this photo is to be looked at, and its row to be added.

        file  what lies at the path now: the answer of one that has been changed since does not count
        """
        assert self.old is not None
        digest = _digest(path, file)
        found = int(np.searchsorted(self.there, np.uint64(digest)))
        if found == len(self.there) or int(self.there[found]) != digest:
            self.looked_at.append(digest)
            self.new += 1
            return None
        place = int(self.places[found])
        self._write(json.dumps({"after": self.new, "place": place}) + "\n")
        shown, label, confidence, status, *numbers = _row(self.old, place)
        return Prediction(shown, label, confidence, dict(zip(self.classes, numbers, strict=True)), status)

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Keep some rows, in the order in which they were asked for; they survive a kill."""
        rows = []
        for each in predictions:
            digest = self.looked_at.popleft() if self.looked_at else NOBODYS
            rows.append(json.dumps([digest, *values(each, self.classes)], ensure_ascii=False) + "\n")
        self._write("".join(rows), through=True)

    def _write(self, text: str, through: bool = False) -> None:
        assert self.stream is not None
        try:
            self.stream.write(text.encode())
            if through:
                self.stream.flush()
        except OSError as error:
            raise cannot_write(error, self.part) from error

    def finish(self) -> None:
        """The rows become the table."""
        write = {".csv": self._to_csv, ".jsonl": self._to_jsonl, ".parquet": self._to_parquet}[self.out.suffix.lower()]
        self._write("", through=True)
        with written(self.out) as beside:
            write(beside)
        if os.name == "nt":  # where what is open cannot be removed; elsewhere the lock is held meanwhile
            self.opened.close()
        with suppress(OSError):
            self.part.unlink()
        self.opened.close()

    def _rows(self) -> Iterator[list[Any]]:
        """Of the photos that this call asked for, in its order: its own, and in between what an earlier one had answered."""
        with self.part.open("rb") as lines, self.part.open("rb") as again, self.part.open("rb") as old:
            lines.seek(self.began)
            again.seek(self.began)
            new = enumerate(json.loads(line)[1:] for line in lines if not _is_note(line))
            notes = (json.loads(line) for line in again if _is_note(line))
            there = ((note["after"], _row(old, note["place"])) for note in notes)
            for _, row in heapq.merge(there, new, key=itemgetter(0)):  # of equals the first comes first
                yield row

    def _to_csv(self, file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(columns(self.classes))
            writer.writerows(map(as_text, self._rows()))

    def _to_jsonl(self, file: Path) -> None:
        with file.open("w", encoding="utf-8") as stream:
            for *about, numbers in ((*row[:4], row[4:]) for row in self._rows()):
                row = dict(zip(columns(()), about, strict=True))
                row["probabilities"] = dict(zip(self.classes, numbers, strict=True))
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _to_parquet(self, file: Path) -> None:
        """By polars, which passes the rows on in pieces."""
        import polars as pl

        names = columns(self.classes)
        kinds = {name: pl.String if name in ("path", "label", "status") else pl.Float64 for name in names}
        flat = file.with_name(f"{file.name}.flat")
        try:
            with flat.open("w", encoding="utf-8") as stream:
                for row in self._rows():
                    stream.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")
            pl.scan_ndjson(flat, schema=kinds).sink_parquet(file)
        finally:
            flat.unlink(missing_ok=True)


def as_text(row: Sequence[Any]) -> list[str]:
    """A row for CSV: all probabilities in as many digits, nothing where there is nothing to say."""
    return ["" if each is None else f"{each:.{DIGITS}f}" if isinstance(each, float) else str(each) for each in row]


def _row(part: IO[bytes], place: int) -> list[Any]:
    """The row that stands there, without its digest."""
    part.seek(place)
    return json.loads(part.readline())[1:]


def _is_note(line: bytes) -> bool:
    """Whether a line says where an answer stands that was there already, and is no row."""
    return line.startswith(b"{")


def _whole(line: bytes) -> list[Any] | None:
    """A row with its digest; an empty one for a note, None if it was cut off."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    if isinstance(row, dict):
        return []
    if not isinstance(row, list) or len(row) <= 1 + len(columns(())):
        return None
    digest, path = row[:2]
    return row if isinstance(path, str) and isinstance(digest, int) and 0 <= digest < 2**64 else None


def _is_answer(row: Sequence[Any]) -> bool:
    """Whether the photo could be used: what could not may be there, or be read, the next time."""
    return row[1 + columns(()).index("confidence")] is not None


def _digest(path: str, file: Path) -> int:
    """Of a path and of the file that lies there, which is another one if its size or its time has changed."""
    try:
        about = os.stat(file)
        stamp = f"{about.st_size} {about.st_mtime_ns}"
    except (OSError, ValueError):  # it cannot be opened either, and its row will say why
        stamp = ""
    return int.from_bytes(blake2b(f"{stamp}\n{path}".encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _locked(part: Path) -> IO[bytes]:
    """The part, opened to be gone on with, for this process alone.

    raises  MachineError if another process has it
    """
    while True:
        with ExitStack() as opened:
            stream = opened.enter_context(part.open("a+b"))
            _lock(stream, part)
            with suppress(FileNotFoundError):  # whoever had the lock may have finished in between, and removed the part
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(part)):
                    opened.pop_all()  # it stays open
                    return stream


def _lock(part: IO[bytes], name: Path) -> None:
    """One process writes a table at a time; where files cannot be locked, that is the user's to see to."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MachineError(
            "another process is writing this table", where=name, advice="wait for it, or another --out FILE"
        ) from None
