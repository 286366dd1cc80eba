"""Predictions on their way into a table: `.csv`, `.jsonl` or `.parquet`, a row a path.

Rows are kept in `OUT.part` as they come, a JSON line each. Whoever is killed goes on from there; only what is complete becomes
OUT, by rename, and the part is taken away. Nothing of it stays in memory but eight bytes for each path that was there.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from ikebana import progress
from ikebana.errors import MachineError, RecipeError
from ikebana.places import cannot_write, to_write, written
from ikebana.shipping.prediction import Prediction

KINDS = (".csv", ".jsonl", ".parquet")
DIGITS = 6  # of a probability: a millionth is less than what two processors differ by
FORMAT = 1  # of the part: a part of another format is begun anew


def columns(classes: Sequence[str]) -> list[str]:
    """The table's columns."""
    return ["path", "label", "confidence", "status", *(f"p:{name}" for name in classes)]


def values(prediction: Prediction, classes: Sequence[str]) -> list[Any]:
    """A row; None where there is nothing to say."""
    numbers = [round(prediction.probabilities[name], DIGITS) if prediction.usable else None for name in classes]
    confidence = round(prediction.confidence, DIGITS) if prediction.usable else None
    return [prediction.path, prediction.label, confidence, prediction.status, *numbers]


def check(out: Path) -> None:
    """Refuse a name that no table can be written under, before any work is done.

    raises  RecipeError; MachineError if nothing can be written there
    """
    to_write(out)
    if out.suffix.lower() not in KINDS or out.is_dir():
        raise RecipeError(f"{out} is not the name of a table", advice=f"a name that ends in {', '.join(KINDS)}")


class Table:
    """A table that is being written."""

    def __init__(self, out: Path, classes: Sequence[str], model: str, anew: bool = False):
        """
        model  what tells the classifier from any other: only its own rows are gone on from
        anew   from the beginning, whatever is there
        """
        check(out)
        self.anew = anew
        self.out, self.part, self.classes = out, out.with_name(f"{out.name}.part"), tuple(classes)
        self.head = json.dumps({"format": FORMAT, "model": model, "classes": list(classes)}) + "\n"
        self.stream: IO[bytes] | None = None
        self.there = np.zeros(0, np.uint64)  # digests of the paths that were there and could be used, sorted
        self.failed, self.began = self.there, 0  # digests of those that could not; bytes that were there

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            try:
                self.out.parent.mkdir(parents=True, exist_ok=True)
                self.stream = opened.enter_context(self.part.open("a+b"))
                _lock(self.stream, self.part)
                self._go_on(self.stream)
            except OSError as error:
                raise cannot_write(error, self.part) from error
            opened.pop_all()  # it stays open
        return self

    def __exit__(self, *_: object) -> None:
        if self.stream is not None:
            self.stream.close()

    def _go_on(self, part: IO[bytes]) -> None:
        """Find out what is there; a row that was cut off, and all of another model's, is taken away."""
        part.seek(0)
        if self.anew or part.readline() != self.head.encode():
            if part.tell():
                progress.say(f"{self.part} was made by another model: it is begun anew")
            part.truncate(0)
            part.write(self.head.encode())
            return
        digests, failed, end = [], [], part.tell()
        for line in part:
            if (row := _whole(line)) is None:
                break
            (digests if _is_answer(row) else failed).append(_digest(row[0]))
            end += len(line)
        part.truncate(end)
        part.seek(0, os.SEEK_END)
        self.began = end
        self.there, self.failed = (np.unique(np.array(each, np.uint64)) for each in (digests, failed))
        if digests:
            progress.say(f"{len(digests)} predictions are there already: going on from them")

    def has(self, path: str) -> bool:
        """Whether the path's answer was there when the table was opened."""
        return _holds(self.there, _digest(path))

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Keep some rows; they survive a kill."""
        assert self.stream is not None
        lines = [json.dumps(values(each, self.classes), ensure_ascii=False) + "\n" for each in predictions]
        try:
            self.stream.write("".join(lines).encode())
            self.stream.flush()
        except OSError as error:
            raise cannot_write(error, self.part) from error

    def finish(self) -> None:
        """The rows become the table."""
        write = {".csv": self._to_csv, ".jsonl": self._to_jsonl, ".parquet": self._to_parquet}[self.out.suffix.lower()]
        with written(self.out) as beside:
            write(beside)
        if self.stream is not None:
            self.stream.close()
        with suppress(OSError):
            self.part.unlink()

    def _rows(self) -> Iterator[list[Any]]:
        """In the order in which they came; what an earlier call could not use counts as this one has found it."""
        with self.part.open("rb") as lines, self.part.open("rb") as others:
            again = self._tried_again(lines)
            lines.seek(0)
            place = len(next(lines))
            for line in lines:
                row = json.loads(line)
                later = again.get(_digest(row[0])) if again else None
                if later is None or (place < self.began and _is_answer(row)):
                    yield row
                elif place < self.began:
                    others.seek(later)
                    yield json.loads(others.readline())
                place += len(line)

    def _tried_again(self, lines: IO[bytes]) -> dict[int, int]:
        """Where the new rows stand of the paths that could not be used before, by their digests."""
        found: dict[int, int] = {}
        place = self.began
        lines.seek(place)
        for line in lines if len(self.failed) else ():
            digest = _digest(json.loads(line)[0])
            if _holds(self.failed, digest):
                found[digest] = place
            place += len(line)
        return found

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


def _whole(line: bytes) -> list[Any] | None:
    """A row; None if it was cut off."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, list) and len(row) > len(columns(())) and isinstance(row[0], str) else None


def _is_answer(row: Sequence[Any]) -> bool:
    """Whether the photo could be used: what could not may be there, or be read, the next time."""
    return row[columns(()).index("confidence")] is not None


def _holds(digests: np.ndarray, digest: int) -> bool:
    """Whether it is one of these, which are sorted."""
    place = int(np.searchsorted(digests, np.uint64(digest)))
    return place < len(digests) and int(digests[place]) == digest


def _digest(path: str) -> int:
    return int.from_bytes(blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest())


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
