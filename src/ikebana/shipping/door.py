"""What every request and every answer passes: the headers that keep browsers safe, the count, and the end of an upload.

A client that is refused while it still sends would see its connection break instead of the reason, since closing a socket with
unread bytes resets it. So the reason is sent first, and what still comes is read and dropped for a moment.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from contextlib import suppress
from typing import Any

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


class Door:
    """The application, with every request counted and every answer in order.

    paths  that are counted under their own name; all others together, since anybody can invent them
    """

    def __init__(self, app: App, metrics: Metrics, paths: Collection[str]):
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = Passage(scope, receive, send)
        begun, path = time.perf_counter(), scope["path"] if scope["path"] in self.paths else "other"
        try:
            await self.app(scope, passage.receive, passage.send)
        finally:
            self.metrics.requests.labels(path, str(passage.status)).inc()
            if path == "/predict":
                self.metrics.request.observe(time.perf_counter() - begun)


class Passage:
    """One request's way through the door."""

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.status = 0
        headers = dict(scope["headers"])
        self.unread = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"

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
            message = {**message, "headers": given + HEADERS + kept + ([CLOSE] if self.unread else [])}
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
