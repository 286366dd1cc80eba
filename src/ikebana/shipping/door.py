"""What every request and every answer passes: the headers that keep browsers safe, the count, and the end of an upload.

A client that is refused while it still sends would see its connection break instead of the reason, since closing a socket with
unread bytes resets it. So the reason is sent first, and what still comes is read and dropped for a moment.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi.responses import JSONResponse

from ikebana.shipping.metrics import Metrics
from ikebana.shipping.pages import POLICY

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LINGER_SECONDS = 2.0  # for which the rest of a refused upload is read and dropped
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]
NOT_KEPT = (b"cache-control", b"no-store")
CLOSE = (b"connection", b"close")
# Paths that tell a stranger nothing: whoever looks after servers may ask by names of his own.
FOR_ALL = ("/healthz", "/readyz")


class Door:
    """The application, with every request counted and every answer in order.

    paths  that are counted under their own name; all others together, since anybody can invent them
    names  of this server: a request for any other is refused; None if it may have any name
    """

    def __init__(self, app: App, metrics: Metrics, paths: Collection[str], names: Collection[str] | None = None):
        self.app, self.metrics, self.paths, self.names = app, metrics, frozenset(paths), names

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = Passage(scope, receive, send)
        begun, path = time.perf_counter(), scope["path"] if scope["path"] in self.paths else "other"
        try:
            app = self.app if scope["path"] in FOR_ALL or self._is_meant(scope) else _misdirected
            await app(scope, passage.receive, passage.send)
        finally:
            self.metrics.requests.labels(path, str(passage.status)).inc()
            if path == "/predict":
                self.metrics.request.observe(time.perf_counter() - begun)

    def _is_meant(self, scope: MutableMapping[str, Any]) -> bool:
        asked = dict(scope["headers"]).get(b"host")  # which browsers always send
        return self.names is None or asked is None or _name(asked.decode("latin-1")) in self.names


def _name(host: str) -> str:
    """The name in a `Host`, without the port."""
    return re.sub(r":\d*$", "", host.strip().lower()).removesuffix(".").strip("[]")


async def _misdirected(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    what = "this server listens at its own machine alone, and the request is for another name"
    advice = "http://localhost and the port; behind another server: ikebana serve --token SECRET"
    await JSONResponse({"error": what, "advice": advice}, 421)(scope, receive, send)


class Passage:
    """One request's way through the door."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.status = 0
        headers = dict(scope["headers"])
        chunked = b"transfer-encoding" in headers
        self.unread = chunked or headers.get(b"content-length", b"0") != b"0"
        # Whoever passes such a request on may see its end elsewhere than we do, and the next one too (RFC 9112, 6.3).
        self.last = chunked and b"content-length" in headers

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            kept = [] if any(name == b"cache-control" for name, _ in given) else [NOT_KEPT]
            # After an error that nobody foresaw uvicorn hangs up; whoever is not told sends the next request into nothing.
            last = self.unread or self.last or self.status == 500
            message = {**message, "headers": given + HEADERS + kept + ([CLOSE] if last else [])}
        elif self.unread and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._rest()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _rest(self) -> None:
        """Read what still comes, and drop it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.unread:
                    await self.receive()
