"""Cross-origin requests: pages of other origins that the user allows to use the server.

A browser sends a page's request to another origin, and hides the response unless the server allows
the page's origin (CORS).
"""

import re
from collections.abc import Iterable

from starlette.middleware.cors import CORSMiddleware

from ikebana.errors import RecipeError
from ikebana.serving.middleware import App

ANY_ORIGIN = "*"
ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/?#@\s:*,]+|\[[0-9a-f:.]+\])(:(?P<port>\d{1,5}))?", re.IGNORECASE
)
# Browsers leave these out of the `Origin` header.
DEFAULT_PORTS = {"http": "80", "https": "443"}


def normalise_origins(origins: str | Iterable[str]) -> frozenset[str]:
    """Write origins as browsers send them.

    Raises:
        RecipeError: one is not an origin.
    """
    return frozenset(_normalise(origin) for origin in ([origins] if isinstance(origins, str) else origins))


def _normalise(origin: str) -> str:
    if origin == ANY_ORIGIN:
        return origin
    if origin.lower() == "null":
        what = "the origin null is that of every page opened from a file and of many others"
        raise RecipeError(what, advice="--allow-origin 'https://example.org', or '*' for any page")
    match = ORIGIN.fullmatch(origin.removesuffix("/"))
    if match is None:
        start = ORIGIN.match(origin)
        advice = (
            start[0]
            if start
            else f"http://{origin}"
            if re.fullmatch(r"[\w.-]+(:\d+)?", origin)
            else "https://example.org"
        )
        raise RecipeError(f"{origin!r} is not an origin", advice=f"--allow-origin {advice}: scheme, host and port only")
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"]
    return f"{scheme}://{host}" + (f":{port}" if port and port != DEFAULT_PORTS.get(scheme) else "")


def allow_origins(app: App, origins: frozenset[str]) -> App:
    """Let pages of these origins read the responses of an application, with a token, too."""
    if not origins:
        return app
    return CORSMiddleware(  # pyright: ignore[reportReturnType] -- starlette has names of its own for the same types
        app,  # pyright: ignore[reportArgumentType]
        allow_origins=sorted(origins),
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("Authorization", "Content-Encoding", "Content-Type"),
        expose_headers=("Retry-After",),
    )
