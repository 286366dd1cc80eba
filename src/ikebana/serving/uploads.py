"""Uploads: photos from a request's body, refused as soon as a limit is exceeded.

FastAPI's `UploadFile` writes uploads larger than a megabyte to disk and has no time limit. Here no
photo is written to disk.
"""

from fastapi import Request
from python_multipart.multipart import parse_options_header

from ikebana.serving import photo_text
from ikebana.serving.bodies import MAX_NAME_CHARACTERS, ByteBudget, Upload, read_body
from ikebana.serving.forms import read_form
from ikebana.serving.limits import Limits, Refusal


async def read_uploads(request: Request, limits: Limits, budget: ByteBudget) -> list[Upload]:
    """Read a request's photos from a form, from JSON, or the body as one.

    Args:
        budget: reserves memory for each piece of the body, and may refuse it.
    Raises:
        Refusal: 400 for a malformed body, 408 for a slow upload, 413 for a large one, 415 for an
            unknown encoding.
        ClientDisconnected: no client waits for the response.
    """
    content_type, options = parse_options_header(request.headers.get("content-type"))
    pieces = read_body(request, limits, budget)
    if content_type.startswith(b"multipart/"):
        return await read_form(pieces, options.get(b"boundary", b""), limits)
    body = bytearray()
    async for piece in pieces:
        body += piece
    name = request.query_params.get("name", "")[:MAX_NAME_CHARACTERS]
    if photo_text.is_json(content_type.decode("latin-1"), bytes(body[:64])):
        uploads = photo_text.read_json(bytes(body), limits)
        budget.reserve(sum(len(upload.data) for upload in uploads), is_received=False)
        return [Upload(upload.name or name, upload.data) for upload in uploads]
    return [Upload(name, _decode_data_url(bytes(body)))]


def _decode_data_url(body: bytes) -> bytes:
    """Decode a body that is a data URL; return others unchanged."""
    if not photo_text.is_data_url(body):
        return body
    try:
        return photo_text.decode_photo(body)
    except ValueError as error:
        raise Refusal(400, f"the body is {error}", "the bytes of a photo") from None
