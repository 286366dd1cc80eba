"""The footer of a Parquet file: its row groups, and where their bytes are.

polars reads a Parquet file from a disk. To read single row groups of a file in a store, the range of
their bytes must be known, which is in the footer, in Thrift's compact protocol.

Source: https://github.com/apache/parquet-format (FileMetaData in parquet.thrift).
"""

import struct
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
# Length of the footer, and the magic number.
TAIL_BYTES = 8
MAX_FOOTER_BYTES = 2**28
MAX_DEPTH = 16

# Types of the compact protocol.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)

# Field numbers of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData.
_NUM_ROWS, _ROW_GROUPS = 3, 4
_COLUMNS, _GROUP_ROWS = 1, 3
_META_DATA = 3
_PATH, _UNCOMPRESSED_SIZE, _COMPRESSED_SIZE, _DATA_OFFSET, _DICTIONARY_OFFSET = 3, 6, 7, 9, 11


class DamagedFooter(Exception):
    """The file is no Parquet file, or its footer is damaged."""


@dataclass(frozen=True)
class ColumnChunk:
    """The bytes of one column of a row group."""

    # The name of the column; the first part of the path of a nested one.
    column: str
    start: int
    end: int
    uncompressed_bytes: int


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows that are stored together."""

    first_row: int
    rows: int
    chunks: tuple[ColumnChunk, ...]


def get_footer_bytes(tail: bytes, file_bytes: int) -> int:
    """Return the bytes of the footer, with its length and its magic number.

    Args:
        tail: the last TAIL_BYTES bytes of the file.
    Raises:
        DamagedFooter: it is no Parquet file.
    """
    if len(tail) != TAIL_BYTES or tail[4:] != MAGIC:
        raise DamagedFooter("it does not end like a Parquet file")
    length = int.from_bytes(tail[:4], "little") + TAIL_BYTES
    if not TAIL_BYTES < length <= min(file_bytes, MAX_FOOTER_BYTES):
        raise DamagedFooter(f"its footer declares {length:,} bytes")
    return length


def parse_row_groups(footer: bytes, file_bytes: int) -> list[RowGroup]:
    """Parse the row groups from the bytes that `get_footer_bytes` counts.

    Raises:
        DamagedFooter: it is damaged, or a row group lies outside the file.
    """
    try:
        fields = _Reader(footer[:-TAIL_BYTES]).read_struct()
        groups, first_row = [], 0
        for group in fields[_ROW_GROUPS]:
            rows = group[_GROUP_ROWS]
            chunks = tuple(_to_chunk(column[_META_DATA], file_bytes) for column in group[_COLUMNS])
            if rows < 0:
                raise DamagedFooter("a row group has a negative number of rows")
            if rows:
                groups.append(RowGroup(first_row, rows, chunks))
            first_row += rows
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise DamagedFooter(f"its footer is damaged ({error!r})") from None
    if first_row != fields.get(_NUM_ROWS):
        raise DamagedFooter("its row groups do not add up to its rows")
    return groups


def _to_chunk(fields: dict[int, Any], file_bytes: int) -> ColumnChunk:
    start = min(fields[_DATA_OFFSET], fields.get(_DICTIONARY_OFFSET) or fields[_DATA_OFFSET])
    end = start + fields[_COMPRESSED_SIZE]
    if not 0 <= start <= end <= file_bytes:
        raise DamagedFooter("a column lies outside the file")
    return ColumnChunk(fields[_PATH][0].decode("utf-8", "replace"), start, end, fields[_UNCOMPRESSED_SIZE])


class _Reader:
    """A reader of Thrift's compact protocol; values become ints, bytes, lists and dicts by field."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def read_struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise DamagedFooter("its footer is nested too deeply")
        fields, number = {}, 0
        while header := self._read_byte():
            number = number + (header >> 4) if header >> 4 else self._read_integer()
            kind = header & 15
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._read_value(kind, depth)
        return fields

    def _read_value(self, kind: int, depth: int) -> Any:
        if kind in _INTEGERS:
            return self._read_integer()
        if kind in (_LIST, _SET):
            return self._read_list(depth)
        if kind == _STRUCT:
            return self.read_struct(depth + 1)
        if kind == _BINARY:
            return self._read_bytes(self._read_varint())
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._read_byte()
        if kind == _DOUBLE:
            return self._read_bytes(8)
        raise DamagedFooter(f"its footer has a value of type {kind}")

    def _read_list(self, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise DamagedFooter("its footer is nested too deeply")
        header = self._read_byte()
        length = header >> 4 if header >> 4 != 15 else self._read_varint()
        # Each item takes a byte at least.
        if length > len(self.data) - self.position:
            raise DamagedFooter(f"its footer declares a list of {length:,}")
        return [self._read_value(header & 15, depth + 1) for _ in range(length)]

    def _read_byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _read_bytes(self, length: int) -> bytes:
        self.position += length
        if self.position > len(self.data):
            raise DamagedFooter("its footer is cut")
        return self.data[self.position - length : self.position]

    def _read_varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._read_byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise DamagedFooter("its footer has a number of more than 64 bits")

    def _read_integer(self) -> int:
        value = self._read_varint()
        return (value >> 1) ^ -(value & 1)
