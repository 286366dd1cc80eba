"""Detection of corruption that decoders do not report, and of files that are not photos.

A truncated copy often has its full length, with zeros for the rest. Decoders fill such an image
with grey or noise and report nothing. Two formats reveal it, in 1 to 7% of the decoding time: a
JPEG has an end marker (all intact ones of 4,341 real JPEGs had it), a PNG has checksums.
`jpeg_end` decides about a JPEG that may lack only the marker. And a JPEG may declare so many scans
that decoding never ends.
"""

import re
import zlib
from collections.abc import Iterator

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, STANDALONE_MARKER = 0xD8, 0xD9, 0xDA, 0x01
# Of a progressive JPEG; programs and cameras write about ten.
MAX_JPEG_SCANS = 100
MISSING_END = "its end is missing"
# A marker, but not a stuffed byte, a restart marker inside image data, or a fill byte.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
PNG_SIGNATURE_BYTES = 8
ICO_SIGNATURE = b"\0\0\1\0"

WEB_PAGE = "a web page"
REASON_WEB_PAGE = f"not a photo: {WEB_PAGE}"
FOREIGN_SIGNATURES = {
    b"%pdf": "PDF",
    b"pk\x03\x04": "a zip archive or an office document",
    b"\xd0\xcf\x11\xe0": "an office document",
    b"<svg": "SVG",
    b"<!doctype html": WEB_PAGE,
    b"<html": WEB_PAGE,
    b"8bps": "Photoshop",
    b"\x1ae\xdf\xa3": "a video",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"rar!\x1a\x07": "a RAR archive",
    b"\x1f\x8b": "a gzip archive",
    b"par1": "a Parquet file (it is read if it is given itself, and has a column of image bytes, such as image)",
}
# The signature of a tar is not at its beginning.
TAR_SIGNATURE, TAR_SIGNATURE_POSITION = b"ustar", 257
TAR = "a tar archive (it is read if it is given itself)"
VIDEO_BRANDS = (b"mp4", b"iso", b"qt ", b"m4v", b"avc", b"3gp")
# Raw files that are not TIFFs: Olympus, Panasonic, Fujifilm, Canon before 2004, Sigma, Minolta.
RAW_SIGNATURES = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"II\x1a\0\0\0HEAPCCDR", b"FOVb", b"\0MRM")
# Canon since 2018.
RAW_BRAND = b"ftypcrx "
BIGTIFF_SIGNATURES = (b"II+\0", b"MM\0+")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", *BIGTIFF_SIGNATURES)
REASON_UNKNOWN_FORMAT = "unreadable: unknown image format, or a damaged header"
REASON_UNKNOWN_TIFF = (
    "unreadable: unsupported kind of TIFF, such as float colours, or a damaged header (save it with 8 bits per colour)"
)
RAW_ADVICE = "export it as JPEG or TIFF with the camera's software or darktable"
REASON_RAW = f"unsupported format: a raw file of a camera ({RAW_ADVICE})"


def find_silent_damage(data: bytes, format_name: str | None) -> str | None:
    """Describe damage that this format's decoder would not report; None if there is none."""
    if format_name in ("JPEG", "MPO"):
        return _find_jpeg_damage(data)
    if format_name == "PNG" and not _has_valid_png_checksums(data):
        return "its data do not match their checksum"
    return None


def _find_jpeg_damage(data: bytes) -> str | None:
    """Report a missing end of the first image, or too many scans.

    Each scan, of ten bytes perhaps, makes the decoder go over all pixels.
    """
    scans, marker = 0, None
    for marker, _ in iterate_jpeg_markers(data):
        scans += marker == START_OF_SCAN
        if scans > MAX_JPEG_SCANS:
            return f"it has more than {MAX_JPEG_SCANS} scans"
    return None if marker == END_OF_IMAGE else MISSING_END


def iterate_jpeg_markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Iterate over the first image's markers and the positions after them.

    Segments are skipped, because they may hold images of their own.
    """
    position, marker = 2, 0
    while marker != END_OF_IMAGE and (match := JPEG_MARKER.search(data, position)):
        marker, position = data[match.end() - 1], match.end()
        yield marker, position
        if marker not in (START_OF_IMAGE, STANDALONE_MARKER):
            position += int.from_bytes(data[position : position + 2])


def _has_valid_png_checksums(data: bytes) -> bool:
    return all(
        zlib.crc32(data[start - 4 : end]) == int.from_bytes(data[end : end + 4]) or end + 4 > len(data)
        for chunk_type, start, end in _iterate_png_chunks(data)
        if chunk_type == b"IDAT"
    )


def _iterate_png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Iterate over the type, start and end of each chunk's content."""
    position = PNG_SIGNATURE_BYTES
    while position + 8 <= len(data):
        length, chunk_type = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if not chunk_type.isalpha():
            return
        yield chunk_type, position + 8, position + 8 + length
        position += length + 12


def is_heif(data: bytes) -> bool:
    """Return whether this is HEIF, whose decoder is an extra; AVIF uses the same container."""
    brands = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
    return data[4:8] == b"ftyp" and data[8:12] in brands and b"avif" not in data[8:64]


def identify_foreign_file(data: bytes) -> str:
    """Describe a file that no decoder accepts."""
    if data.startswith(RAW_SIGNATURES) or data[4:12] == RAW_BRAND:
        return REASON_RAW
    start = data[:512].lstrip().lower()
    if start.startswith(b"<?xml") and b"<svg" in data[:4096].lower():
        return "not a photo: SVG"
    if start[4:8] == b"ftyp" and start[8:11] in VIDEO_BRANDS:
        return "not a photo: a video"
    if name := _find_foreign_format(data, start):
        return f"not a photo: {name}"
    if b"\x00" not in data[:4096] and _is_text(data[:4096]):
        return "not a photo: text"
    return REASON_UNKNOWN_TIFF if data.startswith(TIFF_SIGNATURES) else REASON_UNKNOWN_FORMAT


def _find_foreign_format(data: bytes, start: bytes) -> str | None:
    """Find the format of a file that is no photo, by its signature."""
    if data.startswith(TAR_SIGNATURE, TAR_SIGNATURE_POSITION):
        return TAR
    return next((name for magic, name in FOREIGN_SIGNATURES.items() if start.startswith(magic)), None)


def _is_text(start: bytes) -> bool:
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        # The limit of `start` may cut the last letter in two.
        return error.start > len(start) - 4
    return True
