"""ASGI middleware: security headers, the `Host` check, request metrics, and draining of uploads.

Closing a socket with unread bytes resets it, so a client that is refused during its upload would
not see the reason. The middleware therefore sends the response first, then reads and drops the rest
of the upload for a short time.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse

from ikebana.inference.page_files import CONTENT_SECURITY_POLICY
from ikebana.serving.metrics import Metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

# The time to read and drop the rest of a refused upload.
LINGER_SECONDS = 2.0
SECURITY_HEADERS = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
NO_STORE = (b"cache-control", b"no-store")
CLOSE_CONNECTION = (b"connection", b"close")
# These paths reveal nothing, and monitoring systems may use other host names.
ANY_HOST_PATHS = ("/healthz", "/readyz")


class SecurityMiddleware:
    """Middleware that counts requests and completes responses.

    Args:
        paths: paths with their own metric; all others share one, since clients can invent paths.
        allowed_hosts: host names that requests may use; None for any.
        api_paths: paths that may also end with a slash.
    """

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        paths: Collection[str],
        allowed_hosts: Collection[str] | None = None,
        *,
        api_paths: Collection[str] = (),
    ):
        self.app, self.metrics, self.allowed_hosts = app, metrics, allowed_hosts
        self.paths, self.api_paths = frozenset(paths), frozenset(api_paths)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, scope = Exchange(scope, receive, send), self._normalise(scope)
        start, path = time.perf_counter(), scope["path"] if scope["path"] in self.paths else "other"
        try:
            is_allowed = scope["path"] in ANY_HOST_PATHS or self._is_allowed_host(scope)
            app = self.app if is_allowed else _refuse_host
            await app(scope, exchange.receive, exchange.send)
        finally:
            self.metrics.requests.labels(path, str(exchange.status)).inc()
            if path == "/predict":
                self.metrics.predict_seconds.observe(time.perf_counter() - start)

    def _normalise(self, scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Answer HEAD as GET, whose body uvicorn then leaves out, and accept a trailing slash."""
        path = scope["path"].rstrip("/")
        return {
            **scope,
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
            "path": path if path in self.api_paths else scope["path"],
        }

    def _is_allowed_host(self, scope: MutableMapping[str, Any]) -> bool:
        host = dict(scope["headers"]).get(b"host")  # browsers always send it
        return self.allowed_hosts is None or host is None or _parse_host(host.decode("latin-1")) in self.allowed_hosts


def _parse_host(host: str) -> str:
    """Get the name in a `Host` header, without the port."""
    return re.sub(r":\d*$", "", host.strip().lower()).removesuffix(".").strip("[]")


async def _refuse_host(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    what = "this server accepts requests to localhost only, and the Host header has another name"
    advice = "http://localhost:PORT; behind a reverse proxy: ikebana serve --token SECRET"
    await JSONResponse({"error": what, "advice": advice}, 421)(scope, receive, send)


class Exchange:
    """One request and its response."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.status = 0
        headers = dict(scope["headers"])
        is_chunked = b"transfer-encoding" in headers
        self.has_unread_body = is_chunked or headers.get(b"content-length", b"0") != b"0"
        # With both headers a proxy may see another end of the body than this server does, and so
        # another start of the next request: RFC 9112, section 6.3.
        self.has_ambiguous_length = is_chunked and b"content-length" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.has_unread_body = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", []))
            caching = [] if any(name == b"cache-control" for name, _ in headers) else [NO_STORE]
            # uvicorn closes the connection after an unexpected error; without this header the
            # client would send its next request into a closed connection.
            must_close = self.has_unread_body or self.has_ambiguous_length or self.status == 500
            closing = [CLOSE_CONNECTION] if must_close else []
            message = {**message, "headers": headers + SECURITY_HEADERS + caching + closing}
        elif self.has_unread_body and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        """Read and drop the rest of the body."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.has_unread_body:
                    await self.receive()
