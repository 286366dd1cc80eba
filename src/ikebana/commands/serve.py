"""`ikebana serve`: model file → socket → HTTP."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from ikebana.errors import RecipeError
from ikebana.serving import connections
from ikebana.serving.background import BackgroundServer
from ikebana.serving.cross_origin import ANY_ORIGIN, normalise_origins
from ikebana.serving.limits import Limits
from ikebana.serving.server import build
from ikebana.system import progress


def serve(
    file: str | Path,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    token: str | None = None,
    limits: Limits | None = None,
    allow_origins: str | Iterable[str] = (),
    background: bool | None = None,
) -> BackgroundServer | None:
    """Serve a model file over HTTP until a signal to stop.

    Args:
        file: an .onnx file that `ikebana export` wrote.
        token: required from clients as `Authorization: Bearer TOKEN`.
        allow_origins: web pages that may use the server, such as "https://example.org"; "*" for any.
        background: serve in a thread and return at once. By default only where an event loop runs,
            as in a notebook.
    Returns:
        In the background, the server with its `.url` and `.stop()`; otherwise None at the end.
    Raises:
        ModelError: the file is not a model file.
        MachineError: the port is in use.
        RecipeError: the token contains characters that an HTTP header cannot carry, or an origin is
            not one.
    """
    from ikebana.inference import classifier

    limits = limits or Limits()
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RecipeError(
            "the token contains characters that an HTTP header cannot carry",
            advice="letters and digits, for example 32",
        )
    origins = normalise_origins(allow_origins)
    loaded = classifier.load(file)
    listener = connections.bind_socket(host, port)
    allowed_hosts = connections.get_allowed_hosts(listener, host)
    service = build(loaded, limits, token, None if token else allowed_hosts, origins=origins, name=Path(file).stem)
    is_background = _has_event_loop() if background is None else background
    progress.message(f"{Path(file).name}: {', '.join(loaded.classes)}")
    end = "" if is_background else " Press Ctrl-C to stop; accepted requests are still answered."
    progress.message(f"Photos are not stored.{end}")
    if not token:
        _warn_of_strangers(is_loopback=allowed_hosts is not None, origins=origins)
    url = connections.build_url(listener)
    progress.event("serving", url=url)
    progress.result(url)
    if is_background:
        return BackgroundServer(service, limits, listener)
    connections.run(service.app, service.queue, limits, listener)
    return None


def _has_event_loop() -> bool:
    """Return whether an event loop runs in this thread; another one cannot be started there."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _warn_of_strangers(*, is_loopback: bool, origins: frozenset[str]) -> None:
    if not is_loopback:
        progress.warn("Reachable from other machines without authentication. Set --token to require one.")
    if ANY_ORIGIN in origins:
        progress.warn("Any web page that a browser here opens can use it. Set --token, or name the origins.")
