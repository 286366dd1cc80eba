"""The listening socket, and the server's limits on slow or excess clients.

uvicorn implements HTTP. This module adds a time limit for the first lines of a request, a limit on
connections, and a shutdown as soon as all accepted requests are answered.
"""

import asyncio
import errno
import ipaddress
import json
import logging
import os
import socket
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ikebana.errors import MachineError
from ikebana.serving.limits import Limits
from ikebana.serving.loggers import shared_loggers
from ikebana.serving.prediction_queue import PredictionQueue

MAX_PORT = 65535
# Time to send the last responses after all other work is done.
FLUSH_SECONDS = 5


def bind_socket(host: str, port: int) -> socket.socket:
    """Create a listening socket.

    Args:
        port: 0 for any free port.
    Raises:
        MachineError: the host is empty, the port is in use, or this machine has no such address.
    """
    if not host:
        # The system would take it for all addresses of the machine.
        raise MachineError("the host is empty", where=f":{port}", advice="--host 127.0.0.1, or leave --host out")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= MAX_PORT:
        raise MachineError(
            f"invalid port {port}", where=f"{host}:{port}", advice="--port 8000, or --port 0 for any free port"
        )
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        # Negative numbers are name resolution errors.
        if number is None or number < 0 or number == errno.EADDRNOTAVAIL:
            why, advice = (
                "this machine has no such address",
                "--host 127.0.0.1, or --host 0.0.0.0 for all its addresses",
            )
        else:  # the message of the exception would repeat the address
            why, advice = (
                os.strerror(number),
                f"--port {port + 1 if 0 < port < MAX_PORT else 8000}, or --port 0 for any free port",
            )
        raise MachineError(
            f"the server cannot listen on this address: {why}", where=f"{host}:{port}", advice=advice
        ) from None
    listener.setblocking(False)
    return listener


def build_url(listener: socket.socket) -> str:
    """Build the URL for a browser."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def get_allowed_hosts(listener: socket.socket, host: str) -> frozenset[str] | None:
    """Get the `Host` names that the server accepts; None for any.

    Only a loopback server restricts them; clients on other machines may use any name.
    The check stops DNS rebinding, where a foreign page's domain later resolves to this machine:
    the browser takes the server for the page's origin, but sends the page's domain as `Host`.

    Args:
        host: the address as the user gave it.
    """
    address = str(listener.getsockname()[0])
    if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return None
    return frozenset({host.lower().strip("[]"), address, "localhost", "127.0.0.1", "::1"})


class Server(uvicorn.Server):
    """A server that stops after all accepted requests, or at once on a second Ctrl-C."""

    def __init__(self, app: Any, queue: PredictionQueue, limits: Limits):
        self.queue = queue
        super().__init__(
            uvicorn.Config(
                app,
                http=_make_protocol(limits),
                ws="none",
                lifespan="on",
                interface="asgi3",
                loop="asyncio",
                log_config=None,
                log_level="error",  # no warnings about malformed requests
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=FLUSH_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Handle SIGTERM or Ctrl-C."""
        if self.queue.is_closing:
            logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
            self.should_exit = self.force_exit = True
        self.queue.close()

    async def on_tick(self, counter: int) -> bool:
        if self.queue.is_closing and (self.queue.is_idle or self.queue.is_grace_over):
            self.should_exit = True
        return await super().on_tick(counter)


def _is_unexpected(record: logging.LogRecord) -> bool:
    """Return whether the log record is about more than requests that a second Ctrl-C cancelled."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)) and (
        "CancelledError" not in record.getMessage()
    )


def _make_protocol(limits: Limits) -> type[H11Protocol]:
    class LimitedProtocol(TimeoutProtocol):
        bounds = limits

    return LimitedProtocol


class TimeoutProtocol(H11Protocol):
    """HTTP with limits on the time of a request's first lines and on connections."""

    bounds = Limits()
    request_timer: asyncio.TimerHandle | None = None
    # Runs while the client reads nothing of the response.
    abort_timer: asyncio.TimerHandle | None = None

    @property
    def is_answering(self) -> bool:
        """Whether the current request has no complete response yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_request_timer()
        if len(self.connections) > self.bounds.connections:
            self._send_error(503, "too many connections", "retry in 1 s", {"Retry-After": "1"})

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.is_answering:
            self._cancel_request_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.is_answering:
            self._start_request_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_abort_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.abort_timer is not None and not self.transport.is_closing():
            self.abort_timer.cancel()
            self.abort_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_request_timer()
        if self.abort_timer is not None:
            self.abort_timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_error(400, "this is not an HTTP request")
        else:  # a response is under way, and the client would take a second one for the next request's
            self.transport.close()
            self._start_abort_timer()

    def _start_request_timer(self) -> None:
        self._cancel_request_timer()
        if not self.transport.is_closing():
            self.request_timer = self.loop.call_later(self.bounds.silence_seconds, self._on_request_timeout)

    def _cancel_request_timer(self) -> None:
        if self.request_timer is not None:
            self.request_timer.cancel()
            self.request_timer = None

    def _on_request_timeout(self) -> None:
        if not self.is_answering:
            self._send_error(408, "the request was too slow")

    def _send_error(self, status: int, what: str, advice: str = "", headers: dict[str, str] | None = None) -> None:
        """Send an error response to an incomplete request and close the connection."""
        if self.transport.is_closing():
            return
        if self.is_answering:  # discard what the application still sends
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"error": what, "advice": advice}).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}Connection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._start_abort_timer()

    def _start_abort_timer(self) -> None:
        """Abort later, since close() waits without limit for a client that does not read."""
        if self.abort_timer is None:
            self.abort_timer = self.loop.call_later(self.bounds.silence_seconds, self.transport.abort)


def run(app: Any, queue: PredictionQueue, limits: Limits, listener: socket.socket) -> None:
    """Serve requests on this socket until a signal to stop.

    Raises:
        KeyboardInterrupt: a second signal came before all accepted requests were answered.
    """
    with shared_loggers.use():
        server = Server(app, queue, limits)
        server.run(sockets=[listener])
    if server.force_exit:
        raise KeyboardInterrupt
