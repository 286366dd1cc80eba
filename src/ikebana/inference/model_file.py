"""Checks of a model file before anything in it runs.

A model file is an ONNX file whose metadata describe the classifier. It may be untrusted, so its
bytes are checked first. Refused are references to other files, custom operators, functions, loops,
and bytes that changed since the export. The last metadata entry, the seal, is the SHA-256 of all
bytes before it.

Source: ONNX, onnx/onnx.proto (field numbers); the protobuf wire format (tag, length, content).
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ikebana.errors import ModelError

# Increase when older versions of ikebana cannot read the file any more.
FORMAT_VERSION = 1
# Bytes: protobuf's own limit.
MAX_FILE_BYTES = 2**31 - 1
ADVICE_MODEL_FILE = "an .onnx file that `ikebana export` wrote, such as flowers.onnx"
# Levels of messages within messages; exported files have 8.
MAX_NESTING = 24
# A metadata entry in protobuf's encoding.
SEAL_PATTERN = re.compile(rb'r\x4c\n\x06sha256\x12\x42"([0-9a-f]{64})"\Z')
SEAL_BYTES = 78

# Wire types of fields; the others are deprecated.
VARINT, EIGHT_BYTES, DELIMITED, FOUR_BYTES = 0, 1, 2, 5
# Message type → field number → type of the nested message.
NESTED_MESSAGES = {
    "model": {7: "graph", 8: "operators"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
# Versions, names, graph and metadata of a model; neither training nor functions.
MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14}
METADATA_FIELD = 14
# The first byte of a model: field 1, a varint.
IR_VERSION_TAG = 0x08
# Message type → the field that names an operator set.
DOMAIN_FIELDS = {"operators": 1, "node": 7}
# The field of a node that names its operator.
OPERATOR_FIELD = 4
# The fields of a tensor that refer to another file.
EXTERNAL_DATA_FIELDS = {13, 14}
LOOP_OPERATORS = {b"Loop", b"Scan"}


class Field(NamedTuple):
    """A field of a protobuf message."""

    number: int
    wire_type: int
    # Empty for numbers.
    content: memoryview


def read(file: str | Path) -> bytes:
    """Read a model file.

    Raises:
        ModelError: the file is missing, unreadable or too large.
    """
    path = Path(os.path.expanduser(file))
    if os.path.isdir(path):
        advice = f"if it is a run: ikebana export {path} flowers.onnx"
        raise ModelError("this is a folder, not a model file", where=file, advice=advice)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ModelError("this file is too large for a model file", where=file, advice=ADVICE_MODEL_FILE)
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError("no such model file", where=file, advice=ADVICE_MODEL_FILE) from None
    except (OSError, MemoryError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(f"this model file cannot be read: {why}", where=file, advice=ADVICE_MODEL_FILE) from None


def add_seal(model: bytes) -> bytes:
    """Append the seal; protobuf allows appended entries, so the result is still an ONNX file."""
    return model + b'r\x4c\n\x06sha256\x12\x42"' + hashlib.sha256(model).hexdigest().encode() + b'"'


def read_metadata(data: bytes, where: str | Path | None = None) -> dict[str, Any]:
    """Check a model file and return its metadata.

    Raises:
        ModelError: it is damaged, foreign or too new, or has content that ikebana never writes.
    """
    try:
        entries = _read_entries(memoryview(data))
    except (ValueError, IndexError):
        raise ModelError(
            "this is not an ONNX file, or it is damaged",
            where=where,
            advice="an .onnx file that `ikebana export` wrote",
        ) from None
    except _RefusedError as error:
        raise ModelError(
            f"this model file is refused: {error}", where=where, advice="an .onnx file that `ikebana export` wrote"
        ) from None
    version = entries.get("ikebana")
    if version is None:
        raise ModelError(
            "this ONNX file was not exported by ikebana: it has no metadata about its classes",
            where=where,
            advice="an .onnx file that `ikebana export` wrote; run other models with onnxruntime directly",
        )
    if type(version) is int and version > FORMAT_VERSION:
        raise ModelError(
            f"this file was exported by a newer ikebana: it has format {version}, this version reads {FORMAT_VERSION}",
            where=where,
            advice="pip install --upgrade ikebana",
        )
    seal = SEAL_PATTERN.search(data, max(0, len(data) - SEAL_BYTES))
    is_intact = seal is not None and seal[1].decode() == hashlib.sha256(data[: seal.start()]).hexdigest()
    if type(version) is not int or version != FORMAT_VERSION or not is_intact:
        raise ModelError(
            "the checksum of this model file does not match: it is damaged or was modified",
            where=where,
            advice="an undamaged copy, or export it again with `ikebana export`",
        )
    return entries


class _RefusedError(Exception):
    """The file contains something that ikebana never writes."""


def _read_entries(data: memoryview) -> dict[str, Any]:
    """Check all messages of a model and return its metadata."""
    entries: dict[str, Any] = {}
    if not data:
        raise ValueError("empty file")
    if data[0] != IR_VERSION_TAG:
        raise ValueError("the first field is not an IR version")
    for field in _parse_fields(data):
        if field.number not in MODEL_FIELDS:
            raise _RefusedError("it contains more than a network and its metadata")
        if field.number == METADATA_FIELD and field.wire_type == DELIMITED:
            key, value = _parse_entry(field.content)
            entries[key] = value
    _check_message(data, "model", 0)
    return entries


def _parse_entry(data: memoryview) -> tuple[str, Any]:
    """Parse a metadata entry; a value that is not JSON becomes None."""
    texts = {
        field.number: bytes(field.content).decode("utf-8")
        for field in _parse_fields(data)
        if field.wire_type == DELIMITED
    }
    key, text = texts.get(1, ""), texts.get(2, "")
    try:
        return key, json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return key, None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON")


def _check_message(data: memoryview, message_type: str, depth: int) -> None:
    """Refuse what a network does not need; ValueError or IndexError if the bytes are malformed."""
    if depth > MAX_NESTING:
        raise _RefusedError("it is nested too deeply")
    for field in _parse_fields(data):
        if message_type == "tensor" and field.number in EXTERNAL_DATA_FIELDS:
            raise _RefusedError("it refers to another file")
        if field.wire_type != DELIMITED:
            continue
        if field.number == DOMAIN_FIELDS.get(message_type) and bytes(field.content) not in (b"", b"ai.onnx"):
            raise _RefusedError("it uses custom operators")
        if message_type == "node" and field.number == OPERATOR_FIELD and bytes(field.content) in LOOP_OPERATORS:
            raise _RefusedError("it contains a loop, which may never end")
        nested_type = NESTED_MESSAGES.get(message_type, {}).get(field.number)
        if nested_type is not None:
            _check_message(field.content, nested_type, depth + 1)


def _parse_fields(data: memoryview) -> Iterator[Field]:
    """Yield the fields of a message."""
    position = 0
    while position < len(data):
        tag, position = _parse_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        start, end = position, position
        if wire_type == VARINT:
            _, position = _parse_varint(data, position)
        elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
            position += 8 if wire_type == EIGHT_BYTES else 4
        elif wire_type == DELIMITED:
            length, start = _parse_varint(data, position)
            position = end = start + length
        else:
            raise ValueError("unknown wire type")
        if number == 0 or position > len(data):
            raise ValueError("a field extends beyond its message")
        yield Field(number, wire_type, data[start:end])


def _parse_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Parse a varint (7 bits per byte, lowest first) and return the next position, too."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
        if shift > 63:
            raise ValueError("unterminated varint")
