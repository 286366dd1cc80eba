"""Photos in forms: multipart/form-data, as browsers, curl, libraries and apps send it.

RFC 7578 wants a name for each file, and many clients send none. A part without a name is a photo if
its content or its type says so; other parts are fields, whose content is ignored.
"""

import re
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from ikebana.serving import photo_text
from ikebana.serving.bodies import MAX_NAME_CHARACTERS, Upload, check_photo_count
from ikebana.serving.limits import Limits, Refusal

FORM_ADVICE = "curl -F photo=@garden.jpg"
# Form fields without a file: parsing takes time, and their content is ignored.
MAX_FORM_FIELDS = 64
# RFC 5987: charset'language'percent-encoded. RFC 7578 forbids it in forms, and clients send it.
EXTENDED_FILE_NAME = re.compile(rb";\s*filename\*\s*=\s*\"?([\w.-]*)'[\w-]*'([^\"';\s]*)", re.IGNORECASE)
KNOWN_ENCODINGS = frozenset((b"", b"7bit", b"8bit", b"binary", b"base64"))


async def read_form(pieces: AsyncIterator[bytes], boundary: bytes, limits: Limits) -> list[Upload]:
    """Read the photos of a form.

    Raises:
        Refusal: 400 for a malformed form, 413 for too many photos or fields.
    """
    if not boundary:
        what = "the form is malformed: its Content-Type has no boundary"
        raise Refusal(400, what, "let the client set the Content-Type of a form itself")
    form = _Form(limits)
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
        raise Refusal(400, "the form contains no file", FORM_ADVICE)
    return form.uploads


def read_file_name(disposition: bytes) -> str | None:
    """Read the file name of a Content-Disposition header; None if it has none."""
    extended = EXTENDED_FILE_NAME.search(disposition)
    if extended is not None:
        encoding = "latin-1" if extended[1].lower() == b"iso-8859-1" else "utf-8"
        name = urllib.parse.unquote_to_bytes(extended[2]).decode(encoding, "replace")
        return name[:MAX_NAME_CHARACTERS]
    _, options = parse_options_header(disposition)
    plain = options.get(b"filename")
    return None if plain is None else plain.decode("utf-8", "replace")[:MAX_NAME_CHARACTERS]


@dataclass
class _Form:
    """A form whose photos the parser's callbacks collect."""

    limits: Limits
    uploads: list[Upload] = field(default_factory=list)
    is_complete: bool = False
    header_name: bytes = b""
    header_content: bytes = b""
    # The headers of the current part, with names in lower case.
    headers: dict[bytes, bytes] = field(default_factory=dict)
    file_name: str | None = None
    content: bytearray = field(default_factory=bytearray)
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
        self.header_name = self.header_content = b""
        self.headers, self.content = {}, bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self.header_name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.header_content += data[start:end]

    def header_end(self) -> None:
        self.headers[self.header_name.lower()] = self.header_content
        self.header_name = self.header_content = b""

    def headers_finished(self) -> None:
        self.file_name = read_file_name(self.headers.get(b"content-disposition", b""))
        if self.file_name:
            check_photo_count(len(self.uploads) + 1, self.limits)

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self.content += data[start:end]

    def part_end(self) -> None:
        sent, self.content = bytes(self.content), bytearray()
        is_data_url = photo_text.is_data_url(sent)
        content = self._decode_content(sent)
        if is_data_url or self._is_photo(content):
            check_photo_count(len(self.uploads) + 1, self.limits)
            if self.transfer_encoding not in KNOWN_ENCODINGS:
                encoding = self.transfer_encoding[:40].decode("utf-8", "replace")
                raise Refusal(400, f"unknown Content-Transfer-Encoding {encoding!r}", FORM_ADVICE)
            self.uploads.append(Upload(self.file_name or "", content))
            return
        self.field_count += 1
        if self.field_count > MAX_FORM_FIELDS:
            raise Refusal(413, f"more than {MAX_FORM_FIELDS} fields in one form", f"files only: {FORM_ADVICE}")

    def end(self) -> None:
        self.is_complete = True

    @property
    def transfer_encoding(self) -> bytes:
        """The current part's Content-Transfer-Encoding, in lower case."""
        return self.headers.get(b"content-transfer-encoding", b"").strip().lower()

    def _is_photo(self, content: bytes) -> bool:
        if self.file_name:
            return True
        # Browsers send an empty file with an empty name if the user chose none.
        if self.file_name is not None:
            return bool(content)
        media_type, _ = parse_options_header(self.headers.get(b"content-type", b""))
        is_declared = media_type.startswith(b"image/") or media_type == b"application/octet-stream"
        # Files of photos contain zero bytes, and text does not.
        return is_declared or b"\0" in content

    def _decode_content(self, content: bytes) -> bytes:
        """Undo the part's Content-Transfer-Encoding; a data URL is decoded, too."""
        try:
            if self.transfer_encoding == b"base64" or photo_text.is_data_url(content):
                return photo_text.decode_photo(content)
        except ValueError as error:
            raise Refusal(400, f"a part of the form is {error}", FORM_ADVICE) from None
        return content
