"""The bytes of a photo's file, or why it cannot be read."""

from pathlib import Path

from ikebana.data import decoding
from ikebana.errors import UnreadablePhoto


def read_photo_file(file: Path) -> bytes:
    """Read the file of a photo.

    Raises:
        UnreadablePhoto: with the reason.
    """
    try:
        return decoding.read_bytes(file)
    except FileNotFoundError:
        raise UnreadablePhoto("there is no such file", where=file) from None
    except IsADirectoryError:
        raise UnreadablePhoto("this is a folder", where=file, advice="ikebana.predict(model, folder)") from None
    except (OSError, ValueError) as error:
        raise UnreadablePhoto(f"unreadable: {getattr(error, 'strerror', None) or error}", where=file) from None
