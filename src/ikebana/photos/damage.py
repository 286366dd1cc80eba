"""What is wrong with a photo's bytes: what they are instead, and damage that a decoder passes over in silence.

A copy that was broken off often has its full length, with zeros where the rest should be. Decoders fill such a picture
up with grey or noise, and say nothing. Two formats allow to notice it, in 1 to 7 % of the decoding time: a JPEG has an end
marker (of 4,341 real ones, all that were whole had it), a PNG has checksums. And a JPEG may ask to be decoded for ever.
"""

import re
import zlib
from collections.abc import Iterator

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, ALONE = 0xD8, 0xD9, 0xDA, 0x01
MOST_SCANS = 100  # of a progressive JPEG; programs and cameras write about ten
# A marker that is neither a stuffed byte, nor a restart between two stretches of picture data, nor filling.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
PNG_SIGNATURE = 8  # bytes
ICON = b"\0\0\1\0"

FOREIGN = {
    b"%pdf": "PDF",
    b"pk\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"<svg": "SVG",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"8bps": "Photoshop",
    b"\x1ae\xdf\xa3": "a video",
}
VIDEO_BRANDS = (b"mp4", b"iso", b"qt ", b"m4v", b"avc", b"3gp")


def in_silence(data: bytes, format_name: str | None) -> str | None:
    """What the decoder of this format would not report; None if there is nothing, or the format cannot tell."""
    if format_name in ("JPEG", "MPO"):
        return _jpeg_fault(data)
    if format_name == "PNG" and not _png_data_agree(data):
        return "its data do not agree with their checksum"
    return None


def _jpeg_fault(data: bytes) -> str | None:
    """Of the first picture: that its end is missing, or that it would be decoded again and again, since each of its scans, of ten
    bytes perhaps, goes over all pixels."""
    scans, kind = 0, None
    for kind in _jpeg_markers(data):
        scans += kind == START_OF_SCAN
        if scans > MOST_SCANS:
            return f"it has more than {MOST_SCANS} scans"
    return None if kind == END_OF_IMAGE else "its end is missing"


def _jpeg_markers(data: bytes) -> Iterator[int]:
    """Of the first picture, its end included; segments may hold pictures of their own and are stepped over."""
    place, kind = 2, 0
    while kind != END_OF_IMAGE and (marker := JPEG_MARKER.search(data, place)):
        kind, place = data[marker.end() - 1], marker.end()
        yield kind
        if kind not in (START_OF_IMAGE, ALONE):
            place += int.from_bytes(data[place : place + 2])


def _png_data_agree(data: bytes) -> bool:
    return all(
        zlib.crc32(data[start - 4 : end]) == int.from_bytes(data[end : end + 4]) or end + 4 > len(data)
        for kind, start, end in _png_chunks(data)
        if kind == b"IDAT"
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Each chunk's kind, and where its content starts and ends."""
    place = PNG_SIGNATURE
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        if not kind.isalpha():
            return
        yield kind, place + 8, place + 8 + length
        place += length + 12


def is_heif(data: bytes) -> bool:
    """Whether this is a phone's HEIF picture, whose decoder is an extra; AVIF has the same container."""
    brands = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    return data[4:8] == b"ftyp" and data[8:12] in brands and b"avif" not in data[8:64]


def what_it_is_instead(data: bytes) -> str:
    """What to say of a file that no decoder takes."""
    start = data[:512].lstrip().lower()
    if start.startswith(b"<?xml") and b"<svg" in data[:4096].lower():
        return "not a photo: SVG"
    if start[4:8] == b"ftyp" and start[8:11] in VIDEO_BRANDS:
        return "not a photo: a video"
    for magic, name in FOREIGN.items():
        if start.startswith(magic):
            return f"not a photo: {name}"
    if b"\x00" not in data[:4096] and _is_text(data[:4096]):
        return "not a photo: text"
    return "unreadable: no known image format, or a header too broken to tell"


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # a letter cut in two by our own limit
    return True
