"""JPEGs without an end marker, and those that have one although pixels are missing.

Some phones, IP cameras and recovery programs leave it out, or write a trailer instead. A truncated
JPEG lacks it as well, and the decoder fills the missing part with grey. The pixels tell them apart:

- If the photo is complete, the decoder needs nothing more: any bytes may follow, the pixels stay.
- If its last bytes are those of the photo, and not of another file, the pixels change without them.

A truncated JPEG may have an end marker all the same, if a program appended it. Where image data are
missing, libjpeg fills the last corner with mid-grey. Zeros in their place give blocks that need fewer
bytes than there are. Only photos with such a corner, or zeros before the end marker, are checked.

Source: ITU-T T.81, annexes B and G.
"""

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
from PIL import Image

from ikebana.data.corruption import END_OF_IMAGE, START_OF_SCAN, iterate_jpeg_markers

END_MARKER = b"\xff\xd9"
# Frames of Huffman or arithmetic coding, without those of lossless and hierarchical JPEGs.
FRAME_MARKERS = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
COEFFICIENTS = 64
# More than one block of all colours takes: 10 times 64 coefficients of at most 26 bits.
FILLER_BYTES = 4096
RESTART_MARKERS = [bytes([0xFF, 0xD0 + number]) for number in range(8)]
# What libjpeg fills in; 127 in CMYK, which is stored inverted.
MID_GREY = {127, 128}
# Bytes at the end of the photo that must matter.
LAST_BYTES = 16
# Samsung's phones write a directory of their trailer at the end of the file.
TRAILER_END, TRAILER_DIRECTORY = b"SEFT", b"SEFH"
TRAILER_ENTRY_BYTES = 12


def complete(data: bytes, decode: Callable[[bytes], int | None]) -> bytes | None:
    """Add the end marker to a JPEG; return None if pixels are missing.

    Args:
        data: a JPEG without an end marker.
        decode: decodes a JPEG to a checksum of all its pixels; None if it cannot be decoded.
    """
    photo = _cut_trailer(data)
    if not has_all_scans(photo):
        return None
    checksum = decode(photo + END_MARKER)
    needs_no_more = checksum is not None and all(
        decode(photo + following + END_MARKER) == checksum for following in _make_following_bytes()
    )
    is_complete = needs_no_more and decode(photo[:-LAST_BYTES] + END_MARKER) != checksum
    return photo + END_MARKER if is_complete else None


def lacks_data(image: Image.Image, data: bytes, decode: Callable[[bytes], int | None]) -> bool:
    """Return whether image data are missing before the end marker of a loaded JPEG.

    Args:
        image: the loaded JPEG, at any scale.
        data: its bytes.
        decode: as for `complete`.
    """
    corner = image.getpixel((image.width - 1, image.height - 1))
    is_grey = MID_GREY.issuperset(corner if isinstance(corner, tuple) else (corner,))
    if not is_grey and not data.endswith(bytes(LAST_BYTES) + END_MARKER):
        return False
    marker, end = max(iterate_jpeg_markers(data), key=lambda item: item[1], default=(0, 0))
    # Without an end marker, `complete` has checked it.
    if marker != END_OF_IMAGE:
        return False
    photo = data[: end - len(END_MARKER)]
    checksum = decode(photo + END_MARKER)
    if is_grey:
        # Whole blocks are missing, so two of the sequences are enough.
        sequences = islice(_make_following_bytes(), 2)
        return checksum is None or any(decode(photo + following + END_MARKER) != checksum for following in sequences)
    return decode(photo[:-LAST_BYTES] + END_MARKER) == checksum


def _make_following_bytes() -> Iterator[bytes]:
    """Make image data that change the pixels of an incomplete photo.

    Of two complementary fillers, one differs in the first missing bit from what the decoder assumes.
    A decoder that waits for a restart marker accepts one of the sequences.
    """
    # Without 0 and 255, since a complement must not be a marker.
    filler = np.random.default_rng(0).integers(1, 255, FILLER_BYTES, np.uint8)
    for content in (filler, filler[::-1]):
        for first, data in ((0, content.tobytes()), (4, (255 - content).tobytes())):
            yield data + b"".join(marker + data for marker in RESTART_MARKERS[first:] + RESTART_MARKERS[:first])


def _cut_trailer(data: bytes) -> bytes:
    """Cut off Samsung's trailer, and zeros or ones that fill a block."""
    trailer_end = data.rfind(TRAILER_END)
    photo = data[: _find_trailer_start(data, trailer_end)] if trailer_end >= 0 else data
    stripped = photo.rstrip(b"\0")
    # In image data, a zero follows each byte 0xFF.
    if stripped.endswith(b"\xff") and len(stripped) < len(photo):
        return stripped + b"\0"
    return stripped.rstrip(b"\xff")


def _find_trailer_start(data: bytes, trailer_end: int) -> int:
    """Find the start by the directory, which has the distance of each entry before it."""
    directory = data.rfind(TRAILER_DIRECTORY, 0, trailer_end)
    if directory < 0:
        return trailer_end
    # After the name: version, number of entries, and per entry its type, distance and size.
    distances = (
        int.from_bytes(data[position + 4 : position + 8], "little")
        for position in range(directory + 12, trailer_end - TRAILER_ENTRY_BYTES + 1, TRAILER_ENTRY_BYTES)
    )
    return max(0, directory - max(distances, default=0))


def has_all_scans(photo: bytes) -> bool:
    """Return whether the scans transmit every coefficient of every colour down to its last bit."""
    missing: set[tuple[int, int]] | None = None
    try:
        for marker, start in iterate_jpeg_markers(photo):
            if marker in FRAME_MARKERS:
                colours = photo[start + 8 : start + 8 + 3 * photo[start + 7] : 3]
                missing = {(colour, number) for colour in colours for number in range(COEFFICIENTS)}
            elif marker == START_OF_SCAN and missing is not None:
                missing -= set(_list_finished_coefficients(photo, start))
    except (IndexError, ValueError):
        return False
    return missing is not None and not missing


def _list_finished_coefficients(photo: bytes, start: int) -> Iterator[tuple[int, int]]:
    """List the coefficients of which a scan transmits the last bit.

    Raises:
        ValueError: the header of the scan is cut.
    """
    colours_end = start + 3 + 2 * photo[start + 2]
    first, last, bits = photo[colours_end : colours_end + 3]
    # The lower half is the number of bits that a later scan transmits.
    if bits & 15 == 0:
        yield from (
            (colour, number) for colour in photo[start + 3 : colours_end : 2] for number in range(first, last + 1)
        )
