"""Names of the members of a zip, which are bytes in one of several encodings.

A flag or an extra field declares UTF-8. macOS, among others, writes UTF-8 and declares nothing, and
old Windows programs write the code page of their machine. A name is read as

UTF-8           if it is declared: by the flag, or by a Unicode path field whose checksum fits
ASCII           if it has nothing else: all of these encodings agree on it
UTF-8           if most of the undeclared names are valid UTF-8: names in other encodings rarely are
code page 437   otherwise, as the format demands. It maps different bytes to different letters, so
                two classes stay two, even if their names are garbled

Source: PKWARE APPNOTE.TXT 6.3.10, sections 4.4.4 and 4.6.9, and appendix D.
"""

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEGACY_ENCODING = "cp437"
UTF8_FLAG = 0x800
UNICODE_PATH_FIELD, UNICODE_PATH_VERSION = 0x7075, 1
UNIX_SYSTEM = 3
# In Shift-JIS, GBK and Big5, the second byte of a letter may be a backslash.
DOUBTFUL_BACKSLASH = re.compile(r"(?<=[^\x00-\x7f])\\")
OTHER_BACKSLASH = re.compile(r"(?<![^\x00-\x7f])\\")
AMBIGUOUS_MESSAGE = "a backslash in its name is a separator or half of a letter (repack it with UTF-8 names)"


@dataclass(frozen=True)
class MemberName:
    """The name of a member, with forward slashes."""

    text: str
    # Whether the encoding is not known, so that letters may be wrong.
    is_guessed: bool = False
    # Why the name cannot be used.
    problem: str | None = None


def read_names(entries: Sequence[zipfile.ZipInfo]) -> list[MemberName]:
    """Read the names of all entries; together they show what one name does not."""
    declared = [_read_declared_name(entry) for entry in entries]
    undeclared = [
        raw
        for entry, name in zip(entries, declared, strict=True)
        if name is None and not (raw := _get_raw_name(entry)).isascii()
    ]
    is_utf8 = 2 * sum(map(_is_utf8, undeclared)) > len(undeclared)
    names = [
        MemberName(name) if name is not None else _decode_name(_get_raw_name(entry), is_utf8)
        for entry, name in zip(entries, declared, strict=True)
    ]
    has_slashes = any("/" in name.text for name in names)
    return [
        _replace_backslashes(name, has_slashes, entry.create_system == UNIX_SYSTEM)
        for name, entry in zip(names, entries, strict=True)
    ]


def _read_declared_name(entry: zipfile.ZipInfo) -> str | None:
    """Return the name if its encoding is declared; None if it is not."""
    if entry.flag_bits & UTF8_FLAG:
        return entry.orig_filename
    for field, content in _iterate_extra_fields(entry.extra):
        if field == UNICODE_PATH_FIELD and len(content) > 5 and content[0] == UNICODE_PATH_VERSION:
            # A program that renames the member without knowing this field leaves the old name in it.
            is_current = int.from_bytes(content[1:5], "little") == zlib.crc32(_get_raw_name(entry))
            return content[5:].decode() if is_current and _is_utf8(content[5:]) else None
    return None


def _iterate_extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(extra):
        field, size = struct.unpack_from("<HH", extra, position)
        yield field, extra[position + 4 : position + 4 + size]
        position += 4 + size


def _get_raw_name(entry: zipfile.ZipInfo) -> bytes:
    """Undo the decoding of zipfile, which reads undeclared names as code page 437."""
    return entry.orig_filename.encode(LEGACY_ENCODING)


def _decode_name(raw: bytes, is_utf8: bool) -> MemberName:
    if raw.isascii() or (is_utf8 and _is_utf8(raw)):
        return MemberName(raw.decode())
    return MemberName(raw.decode(LEGACY_ENCODING), is_guessed=True)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _replace_backslashes(name: MemberName, has_slashes: bool, is_from_unix: bool) -> MemberName:
    """Replace the backslashes that separate folders.

    The format forbids them, but some Windows programs write nothing else. On Unix, a backslash is a
    letter like others.
    """
    if "\\" not in name.text or (is_from_unix and has_slashes):
        return name
    if not name.is_guessed:
        return MemberName(name.text.replace("\\", "/"))
    if not has_slashes and DOUBTFUL_BACKSLASH.search(name.text):
        return MemberName(name.text, is_guessed=True, problem=AMBIGUOUS_MESSAGE)
    return MemberName(OTHER_BACKSLASH.sub("/", name.text), is_guessed=True)
