"""Photos as text: base64, data URLs, and JSON that contains them."""

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from ikebana.serving.bodies import MAX_NAME_CHARACTERS, Upload, check_photo_count
from ikebana.serving.limits import Limits, Refusal

JSON_ADVICE = '{"photo": "BASE64"}, or {"photo": ["BASE64", "BASE64"]}'
# Also accepts the alphabet for URLs. Some clients wrap lines.
TO_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
DATA_URL_HEAD = re.compile(rb"data:[^,]{0,200};base64,", re.IGNORECASE)
# Delimiters of JSON per photo: braces of its object, commas, and some in its name.
MAX_DELIMITERS_PER_PHOTO = 64


def is_data_url(text: bytes) -> bool:
    """Return whether the text is a photo as browsers give it: `data:image/png;base64,...`."""
    return DATA_URL_HEAD.match(text) is not None


def decode_photo(text: bytes) -> bytes:
    """Decode base64 or a data URL; ValueError for anything else."""
    head = DATA_URL_HEAD.match(text)
    compact = (text[head.end() :] if head else text).translate(TO_STANDARD_ALPHABET, b" \t\r\n")
    try:
        return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)
    except ValueError:
        start = text[:24].decode("utf-8", "replace")
        raise ValueError(f"neither base64 nor a base64 data URL; it starts with {start!r}") from None


def is_json(content_type: str, body: bytes) -> bool:
    """Return whether a body is JSON, by its type or its first brace.

    `curl -d` declares a web form, and no photo begins with a brace.
    """
    subtype = content_type.partition("/")[2]
    return subtype == "json" or subtype.endswith("+json") or body[:64].lstrip()[:1] == b"{"


def read_json(body: bytes, limits: Limits) -> list[Upload]:
    """Read the photos of `{"photo": ...}`.

    A photo is base64, a data URL, or an object with a name. There may be a list of them.

    Raises:
        Refusal: 400 for other JSON, 413 for too many photos.
    """
    # Python's objects for many small values would take a hundred times the memory of the body.
    if sum(body.count(delimiter) for delimiter in (b",", b"[", b"{")) > MAX_DELIMITERS_PER_PHOTO * limits.files:
        raise Refusal(413, "the JSON has too many values", JSON_ADVICE)
    try:
        photos = _list_photos(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON: {error}", JSON_ADVICE) from None
    check_photo_count(len(photos), limits)
    return [_read_photo(photo, number) for number, photo in enumerate(photos, 1)]


def _list_photos(value: Any) -> Sequence[Any]:
    """List the photos of a JSON value, each a text or an object."""
    photos = value.get("photo") if isinstance(value, dict) else value
    if isinstance(photos, list) and photos:
        if isinstance(value, dict) and "name" in value:
            raise Refusal(
                400, "one name was given for a list of photos", '{"photo": [{"name": "a.jpg", "photo": "BASE64"}]}'
            )
        return photos
    if isinstance(value, dict) and "photo" in value and photos != []:
        return [value]
    keys = f"; it has {', '.join(list(value)[:5])}"[:200] if isinstance(value, dict) and value else ""
    raise Refusal(400, f'the JSON has no "photo"{keys}', JSON_ADVICE)


def _read_photo(photo: Any, number: int) -> Upload:
    name, text = (photo.get("name", ""), photo.get("photo")) if isinstance(photo, dict) else ("", photo)
    if not isinstance(text, str) or not isinstance(name, str):
        raise Refusal(400, f"photo {number} of the JSON is not text", JSON_ADVICE)
    try:
        return Upload(name[:MAX_NAME_CHARACTERS], decode_photo(text.encode("utf-8", "replace")))
    except ValueError as error:
        raise Refusal(400, f"photo {number} of the JSON is {error}", JSON_ADVICE) from None
