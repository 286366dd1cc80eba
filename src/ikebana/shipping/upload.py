"""A request's body → the photos in it, in memory alone, given up as soon as it breaks a limit.

FastAPI's own `UploadFile` writes uploads of more than a megabyte to disk and has no limit in time; photos that come here
touch no disk.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ikebana.shipping.limits import MEGA, Gone, Limits, Refusal

NAME_LENGTH = 255  # letters of a file's name that are repeated in the answer
COMPLETE = "send the whole photo"
FIELDS = 64  # of a form that are no files: each costs time, and none is looked at


@dataclass
class Upload:
    """One photo as it came: its name, if it has one, and the bytes of its file."""

    name: str
    data: bytes


class Purse(Protocol):
    """Counts the bytes that all requests hold together."""

    def hold(self, size: int) -> None: ...


async def received(request: Request, limits: Limits, purse: Purse) -> list[Upload]:
    """The photos of a request: the files of a form, or the one that its body is.

    purse   is told of every byte that is held, and may refuse it
    raises  Refusal: 400 for a broken form, 408 for a slow one, 413 for a large one; Gone if nobody waits for an answer
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    pieces = _pieces(request, limits, purse)
    if kind != b"multipart/form-data":
        whole = bytearray()
        async for piece in pieces:
            whole += piece
        return [Upload(request.query_params.get("name", "")[:NAME_LENGTH], bytes(whole))]
    return await _files(pieces, options.get(b"boundary", b""), limits)


async def _pieces(request: Request, limits: Limits, purse: Purse) -> AsyncIterator[bytes]:
    """The body as it comes."""
    _refuse_declared(request.headers.get("content-length"), limits)
    loop, size, more = asyncio.get_running_loop(), 0, True
    deadline = loop.time() + limits.upload_seconds
    while more:
        patience = min(limits.silence_seconds, deadline - loop.time())
        try:
            async with asyncio.timeout(patience):
                message = await request.receive()
        except TimeoutError:
            raise Refusal(408, "the upload was too slow", "a faster connection, or a smaller photo") from None
        if message["type"] == "http.disconnect":
            raise Gone
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limits.megabytes * MEGA:
            raise _too_large(limits)
        purse.hold(len(piece))
        yield piece


def _refuse_declared(length: str | None, limits: Limits) -> None:
    """What says itself that it is too large need not be read."""
    if length is not None and length.isdecimal() and int(length) > limits.megabytes * MEGA:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"this upload is larger than {limits.megabytes} MB", "a smaller photo, or fewer at a time")


async def _files(pieces: AsyncIterator[bytes], boundary: bytes, limits: Limits) -> list[Upload]:
    form = _Form(limits.files)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for piece in pieces:
            parser.write(piece)
    except (FormParserError, ValueError, AssertionError) as error:
        raise Refusal(
            400, f"this form is broken: {error}", "multipart/form-data, as browsers and curl -F send it"
        ) from None
    if not form.ended:
        raise Refusal(400, "this form ends in the middle", COMPLETE)
    if not form.uploads:
        raise Refusal(400, "there is no file in this form", "curl -F photo=@garden.jpg")
    return form.uploads


@dataclass
class _Form:
    """Gathers the files of a form as the parser meets them; fields that are no files are passed over."""

    most: int
    uploads: list[Upload] = field(default_factory=list)
    ended: bool = False
    key: bytes = b""
    value: bytes = b""
    disposition: bytes = b""
    file: bytearray | None = None  # that is being read; None within a field that is no file
    fields: int = 0

    def callbacks(self) -> Any:
        names = (
            "part_begin",
            "header_field",
            "header_value",
            "header_end",
            "headers_finished",
            "part_data",
            "part_end",
        )
        return {f"on_{name}": getattr(self, name) for name in (*names, "end")}

    def part_begin(self) -> None:
        self.key = self.value = self.disposition = b""
        self.file = None

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.key += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        if self.key.lower() == b"content-disposition":
            self.disposition = self.value
        self.key = self.value = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if b"filename" not in options:
            self.fields += 1
            if self.fields > FIELDS:
                raise Refusal(413, f"more than {FIELDS} fields in one form", "files alone: curl -F photo=@garden.jpg")
            return
        if len(self.uploads) == self.most:
            raise Refusal(413, f"more than {self.most} photos in one request", "fewer at a time")
        self.uploads.append(Upload(options[b"filename"].decode("utf-8", "replace")[:NAME_LENGTH], b""))
        self.file = bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self.file is not None:
            self.file += data[start:end]

    def part_end(self) -> None:
        if self.file is not None:
            self.uploads[-1].data = bytes(self.file)
            self.file = None

    def end(self) -> None:
        self.ended = True
