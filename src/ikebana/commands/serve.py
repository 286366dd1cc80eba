"""`ikebana serve`: model file → socket → HTTP."""

import re
from pathlib import Path

from ikebana.errors import RecipeError
from ikebana.serving import connections
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
) -> None:
    """Serve a model file over HTTP until a signal to stop.

    Args:
        file: an .onnx file that `ikebana export` wrote.
        token: required from clients as `Authorization: Bearer TOKEN`.
    Raises:
        ModelError: the file is not a model file.
        MachineError: the port is in use.
        RecipeError: the token contains characters that an HTTP header cannot carry.
    """
    from ikebana.inference import classifier

    limits = limits or Limits()
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise RecipeError(
            "the token contains characters that an HTTP header cannot carry",
            advice="letters and digits, for example 32",
        )
    loaded = classifier.load(file)
    listener = connections.bind_socket(host, port)
    allowed_hosts = connections.get_allowed_hosts(listener, host)
    service = build(loaded, limits, token, None if token else allowed_hosts)
    progress.message(f"{Path(file).name}: {', '.join(loaded.classes)}")
    progress.message("Photos are not stored. Ctrl-C answers the accepted requests, then stops.")
    if allowed_hosts is None and not token:
        progress.warn("Reachable from other machines without authentication. Set --token to require one.")
    url = connections.build_url(listener)
    progress.event("serving", url=url)
    progress.result(url)
    connections.run(service.app, service.queue, limits, listener)
