"""What is in a model file, found out before anything in it is run.

A model file is an ONNX file whose metadata say what it is for. It may come from anybody, so it is looked through as bytes
first: a file that reaches for other files, brings operators or functions of its own, or loops is refused, and so is one whose
bytes are not those that were written. Its last entry, the seal, is the sha256 of all bytes before it.

source  ONNX, onnx/onnx.proto: the numbers of the fields; protobuf's wire format: tag, length, content
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ikebana.errors import ModelError

FORMAT = 1  # raised when older versions of ikebana could not read the file any more
LARGEST = 2**31 - 1  # bytes: protobuf itself stops there
EXPORTED = "a file that ikebana export made, such as flowers.onnx"
DEEPEST = 24  # messages within messages; ours has 8
SEAL = re.compile(rb'r\x4c\n\x06sha256\x12\x42"([0-9a-f]{64})"\Z')  # a metadata entry, as protobuf writes it
SEAL_LENGTH = 78

VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5  # kinds of fields; the others are out of use
WITHIN = {  # which fields hold what kind of message
    "model": {7: "graph", 8: "operators"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
OF_A_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}  # versions, names, graph, metadata: no training, no functions
METADATA = 14
IR_VERSION = 0x08  # a model's first byte: field 1, a number
DOMAINS = {"operators": 1, "node": 7}  # the field that names a set of operators
OPERATOR = 4  # a node's field
EXTERNAL = {13, 14}  # a tensor's fields: its numbers lie in another file
ENDLESS = {b"Loop", b"Scan"}


class Field(NamedTuple):
    """A field of a message."""

    number: int
    kind: int
    content: memoryview  # empty for numbers


def read(file: str | Path) -> bytes:
    """All bytes of a model file.

    raises  ModelError if there is none, or it is too large to be one
    """
    place = Path(os.path.expanduser(file))
    if os.path.isdir(place):
        advice = f"ikebana export {place} flowers.onnx, if it is a run"
        raise ModelError("this is a folder, not a model file", where=file, advice=advice)
    try:
        if place.stat().st_size > LARGEST:
            raise ModelError("this file is larger than any model file", where=file, advice=EXPORTED)
        return place.read_bytes()
    except FileNotFoundError:
        raise ModelError("there is no such model file", where=file, advice=EXPORTED) from None
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"this model file cannot be read: {why}", where=file, advice=EXPORTED) from None


def sealed(model: bytes) -> bytes:
    """The file with its seal at the end. Protobuf allows to append entries, so it remains an ONNX file."""
    return model + b'r\x4c\n\x06sha256\x12\x42"' + hashlib.sha256(model).hexdigest().encode() + b'"'


def metadata(data: bytes, where: str | Path | None = None) -> dict[str, Any]:
    """What the file says about itself, once it is known that nothing in it reaches further than a network must.

    raises  ModelError if the file is damaged, foreign or too new, or there is something in it that ikebana never writes
    """
    try:
        entries = _entries(memoryview(data))
    except (ValueError, IndexError):
        raise ModelError(
            "this is not an ONNX file, or it is damaged", where=where, advice="fetch it again, or ikebana export"
        ) from None
    except _Refused as reason:
        raise ModelError(
            f"this model file is refused: {reason}", where=where, advice="only files that ikebana export made"
        ) from None
    version = entries.get("ikebana")
    if version is None:
        raise ModelError(
            "this ONNX file was not made by ikebana: it does not say what its classes are",
            where=where,
            advice="a file that ikebana export made; any other needs onnxruntime and its own preparation of photos",
        )
    if type(version) is int and version > FORMAT:
        raise ModelError(
            f"a newer ikebana made this file: its format is {version}, and this version reads {FORMAT}",
            where=where,
            advice="pip install --upgrade ikebana",
        )
    seal = SEAL.search(data, max(0, len(data) - SEAL_LENGTH))
    whole = seal is not None and seal[1].decode() == hashlib.sha256(data[: seal.start()]).hexdigest()
    if type(version) is not int or version != FORMAT or not whole:
        raise ModelError(
            "this model file is not as ikebana wrote it: it is damaged, or was changed since",
            where=where,
            advice="fetch it again, or ikebana export",
        )
    return entries


class _Refused(Exception):
    """Something that ikebana never writes."""


def _entries(data: memoryview) -> dict[str, Any]:
    """The metadata of a model; everything else in it is looked through on the way."""
    entries: dict[str, Any] = {}
    if not data:
        raise ValueError("an empty file")
    if data[0] != IR_VERSION:
        raise ValueError("no model begins so")
    for field in _fields(data):
        if field.number not in OF_A_MODEL:
            raise _Refused("it holds more than a network")
        if field.number == METADATA and field.kind == DELIMITED:
            key, value = _entry(field.content)
            entries[key] = value
    _look_through(data, "model", 0)
    return entries


def _entry(data: memoryview) -> tuple[str, Any]:
    """A name and its value; values are JSON, but those of other programs are plain text and stay unread."""
    parts = {field.number: bytes(field.content).decode("utf-8") for field in _fields(data) if field.kind == DELIMITED}
    key, text = parts.get(1, ""), parts.get(2, "")
    try:
        return key, json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return key, None


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _look_through(data: memoryview, kind: str, depth: int) -> None:
    """Refuse what reaches further than a network must; ValueError or IndexError if the bytes make no sense."""
    if depth > DEEPEST:
        raise _Refused("its parts lie too deep in one another")
    for field in _fields(data):
        if kind == "tensor" and field.number in EXTERNAL:
            raise _Refused("it reaches for another file")
        if field.kind != DELIMITED:
            continue
        if field.number == DOMAINS.get(kind) and bytes(field.content) not in (b"", b"ai.onnx"):
            raise _Refused("it needs operators of its own")
        if kind == "node" and field.number == OPERATOR and bytes(field.content) in ENDLESS:
            raise _Refused("it has a loop, which need not end")
        inner = WITHIN.get(kind, {}).get(field.number)
        if inner is not None:
            _look_through(field.content, inner, depth + 1)


def _fields(data: memoryview) -> Iterator[Field]:
    """A message's fields, one after the other."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        start, end = place, place
        if kind == VARINT:
            _, place = _varint(data, place)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            place += 8 if kind == EIGHT_BYTES else 4
        elif kind == DELIMITED:
            length, start = _varint(data, place)
            place = end = start + length
        else:
            raise ValueError("a kind of field that is out of use")
        if number == 0 or place > len(data):
            raise ValueError("a field that ends after its message")
        yield Field(number, kind, data[start:end])


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
        if shift > 63:
            raise ValueError("a number without an end")
