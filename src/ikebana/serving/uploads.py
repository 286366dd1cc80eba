"""Uploads: photos from a request's body, refused as soon as a limit is exceeded.

FastAPI's `UploadFile` writes uploads larger than a megabyte to disk and has no time limit. Here no
photo is written to disk.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ikebana.serving.limits import BYTES_PER_MEGABYTE, ClientDisconnected, Limits, Refusal

# Characters of a file's name that the response repeats.
MAX_NAME_CHARACTERS = 255
# Form fields without a file: parsing takes time, and their content is ignored.
MAX_FORM_FIELDS = 64


@dataclass
class Upload:
    """One uploaded photo: its name, or "", and the bytes of its file."""

    name: str
    data: bytes


class ByteBudget(Protocol):
    """A count of one request's bytes, against the limit for all requests."""

    def reserve(self, size: int) -> None: ...


async def read_uploads(request: Request, limits: Limits, budget: ByteBudget) -> list[Upload]:
    """Read a request's photos: the files of a form, or the body as one.

    Args:
        budget: reserves memory for each piece of the body, and may refuse it.
    Raises:
        Refusal: 400 for a malformed form, 408 for a slow upload, 413 for a large one.
        ClientDisconnected: no client waits for the response.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    pieces = _read_body(request, limits, budget)
    if content_type != b"multipart/form-data":
        body = bytearray()
        async for piece in pieces:
            body += piece
        return [Upload(request.query_params.get("name", "")[:MAX_NAME_CHARACTERS], bytes(body))]
    return await _read_form(pieces, options.get(b"boundary", b""), limits)


async def _read_body(request: Request, limits: Limits, budget: ByteBudget) -> AsyncIterator[bytes]:
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
        if size > limits.megabytes * BYTES_PER_MEGABYTE:
            raise _make_too_large_refusal(limits)
        budget.reserve(len(piece))
        yield piece


def _check_content_length(length: str | None, limits: Limits) -> None:
    """Refuse a body whose declared length is too large before reading it."""
    if length is not None and length.isdecimal() and int(length) > limits.megabytes * BYTES_PER_MEGABYTE:
        raise _make_too_large_refusal(limits)


def _make_too_large_refusal(limits: Limits) -> Refusal:
    return Refusal(413, f"the upload is larger than {limits.megabytes} MB", "a smaller photo, or fewer per request")


async def _read_form(pieces: AsyncIterator[bytes], boundary: bytes, limits: Limits) -> list[Upload]:
    form = _Form(limits.files)
    try:
        parser = MultipartParser(boundary, form.get_callbacks())
        async for piece in pieces:
            parser.write(piece)
    except (FormParserError, ValueError, AssertionError) as error:
        raise Refusal(
            400, f"the form is malformed: {error}", "multipart/form-data, as sent by browsers and curl -F"
        ) from None
    if not form.is_complete:
        raise Refusal(400, "the form is truncated", "send the whole photo")
    if not form.uploads:
        raise Refusal(400, "the form contains no file", "curl -F photo=@garden.jpg")
    return form.uploads


@dataclass
class _Form:
    """A form whose files the parser's callbacks collect; other fields are ignored."""

    max_files: int
    uploads: list[Upload] = field(default_factory=list)
    is_complete: bool = False
    header_name: bytes = b""
    header_content: bytes = b""
    disposition: bytes = b""
    # The bytes of the current file; None within a field without a file.
    content: bytearray | None = None
    field_count: int = 0

    def get_callbacks(self) -> Any:
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
        self.header_name = self.header_content = self.disposition = b""
        self.content = None

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_content += data[start:end]

    def header_end(self) -> None:
        if self.header_name.lower() == b"content-disposition":
            self.disposition = self.header_content
        self.header_name = self.header_content = b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self.disposition)
        if b"filename" not in options:
            self.field_count += 1
            if self.field_count > MAX_FORM_FIELDS:
                raise Refusal(
                    413, f"more than {MAX_FORM_FIELDS} fields in one form", "files only: curl -F photo=@garden.jpg"
                )
            return
        if len(self.uploads) == self.max_files:
            raise Refusal(413, f"more than {self.max_files} photos in one request", "fewer photos per request")
        self.uploads.append(Upload(options[b"filename"].decode("utf-8", "replace")[:MAX_NAME_CHARACTERS], b""))
        self.content = bytearray()

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self.content is not None:
            self.content += data[start:end]

    def part_end(self) -> None:
        if self.content is not None:
            self.uploads[-1].data = bytes(self.content)
            self.content = None

    def end(self) -> None:
        self.is_complete = True
