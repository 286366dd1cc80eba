"""The body of a request: read within the limits, and decompressed."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from ikebana.serving.limits import BYTES_PER_MEGABYTE, ClientDisconnected, Limits, Refusal

# Characters of a file's name that the response repeats.
MAX_NAME_CHARACTERS = 255
# Bytes that are decompressed at a time, before they are counted.
EXPANSION_BYTES = 2**16
# zlib's `wbits` for a gzip header and the largest window.
GZIP_WINDOW_BITS = 31
GZIP_NAMES = frozenset(("gzip", "x-gzip"))


@dataclass
class Upload:
    """One uploaded photo: its name, or "", and the bytes of its file."""

    name: str
    data: bytes


class ByteBudget(Protocol):
    """A count of one request's bytes, against the limit for all requests."""

    def reserve(self, size: int, *, is_received: bool = True) -> None:
        """Count bytes that are now in memory, received or computed from received ones."""
        ...


def read_body(request: Request, limits: Limits, budget: ByteBudget) -> AsyncIterator[bytes]:
    """Read a body piece by piece, decompressed if it is gzip.

    Raises:
        Refusal: 400 for damaged gzip, 408 for a slow body, 413 for a large one, before or after
            decompression, 415 for another encoding.
        ClientDisconnected: no client waits for the response.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return _receive(request, limits, budget)
    if encoding in GZIP_NAMES:
        return _decompress(_receive(request, limits, budget), limits, budget)
    raise Refusal(
        415,
        f"the body is encoded as {encoding[:40]!r}",
        "Content-Encoding: gzip, or none",
        headers={"Accept-Encoding": "gzip"},
    )


async def _receive(request: Request, limits: Limits, budget: ByteBudget) -> AsyncIterator[bytes]:
    _check_content_length(request.headers.get("content-length"), limits)
    loop, size, has_more = asyncio.get_running_loop(), 0, True
    deadline = loop.time() + limits.upload_seconds
    while has_more:
        timeout = min(limits.silence_seconds, deadline - loop.time())
        try:
            async with asyncio.timeout(timeout):
                message = await request.receive()
        except TimeoutError:
            raise Refusal(408, "the upload was too slow", "a faster connection, or a smaller photo") from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        piece, has_more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        _check_size(size, limits)
        budget.reserve(len(piece))
        yield piece


async def _decompress(pieces: AsyncIterator[bytes], limits: Limits, budget: ByteBudget) -> AsyncIterator[bytes]:
    """Decompress gzip in small steps, so that a bomb is refused at the limit."""
    decompressor, size = zlib.decompressobj(GZIP_WINDOW_BITS), 0
    try:
        async for piece in pieces:
            compressed = piece
            while compressed and not decompressor.eof:
                output = decompressor.decompress(compressed, EXPANSION_BYTES)
                compressed = decompressor.unconsumed_tail
                size += len(output)
                _check_size(size, limits)
                budget.reserve(len(output), is_received=False)
                yield output
                # Other requests continue meanwhile.
                await asyncio.sleep(0)
            # Each gzip stream costs memory of its own, and clients send one.
            if decompressor.eof and (compressed or decompressor.unused_data):
                raise Refusal(400, "the gzip body has data after its end", "one gzip stream")
    except zlib.error as error:
        raise Refusal(400, f"the body is not gzip: {error}", "Content-Encoding only if the body is encoded") from None
    if not decompressor.eof:
        raise Refusal(400, "the gzip body is truncated", "send the whole photo")


def check_photo_count(count: int, limits: Limits) -> None:
    """Raise Refusal if a request has more photos than allowed."""
    if count > limits.files:
        raise Refusal(413, f"more than {limits.files} photos in one request", "fewer photos per request")


def _check_content_length(length: str | None, limits: Limits) -> None:
    """Refuse a body whose declared length is too large before reading it."""
    if length is not None and length.isdecimal():
        _check_size(int(length), limits)


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.megabytes * BYTES_PER_MEGABYTE:
        raise Refusal(413, f"the upload is larger than {limits.megabytes} MB", "a smaller photo, or fewer per request")
