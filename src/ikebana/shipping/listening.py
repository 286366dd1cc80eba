"""The socket, and how long the server waits for those on its other end.

uvicorn speaks HTTP; what it leaves open is decided here: how long a client may take over a request's first lines, how many
connections there may be, and that whoever stops the server is obeyed when the accepted work is done.
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
from ikebana.shipping.limits import Limits
from ikebana.shipping.queueing import Desk

LAST_PORT = 65535
LAST_SECONDS = 5  # for answers that are on their way out when everything else is done


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    port    0 for any that is free
    raises  MachineError if it is taken, or this machine has no such address
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= LAST_PORT:
        raise MachineError(
            f"there is no port {port}", where=f"{host}:{port}", advice="--port 8000, or 0 for any that is free"
        )
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None or number < 0 or number == errno.EADDRNOTAVAIL:  # below 0: a name that leads nowhere
            why, advice = (
                "this machine has no such address",
                "--host 127.0.0.1, or --host 0.0.0.0 for all its addresses",
            )
        else:  # Python's own words say once more where it was
            why, advice = (
                os.strerror(number),
                f"--port {port + 1 if 0 < port < LAST_PORT else 8000}, or --port 0 for any that is free",
            )
        raise MachineError(f"the server cannot listen there: {why}", where=f"{host}:{port}", advice=advice) from None
    listener.setblocking(False)
    return listener


def address(listener: socket.socket) -> str:
    """What to write into a browser."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, str(host))
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def names(listener: socket.socket, host: str) -> frozenset[str] | None:
    """What requests may call a server that only this machine reaches; None if others do, who may have names of their own.

    A page from elsewhere whose name is made to lead here later (DNS rebinding) is an insider to the browser; its requests
    still bear the page's name.

    host  as it was given
    """
    where = str(listener.getsockname()[0])
    if not ipaddress.ip_address(where.partition("%")[0]).is_loopback:
        return None
    return frozenset({host.lower(), where, "localhost", "127.0.0.1", "::1"})


class Server(uvicorn.Server):
    """Stops when it is told to and everything accepted is answered; a second Ctrl-C stops it at once."""

    def __init__(self, app: Any, desk: Desk, limits: Limits):
        self.desk = desk
        super().__init__(
            uvicorn.Config(
                app,
                http=_patient(limits),
                ws="none",
                lifespan="on",
                interface="asgi3",
                loop="asyncio",
                log_config=None,
                log_level="error",  # what strangers send is not worth a line each
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=LAST_SECONDS,
            )
        )

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Told to stop by SIGTERM or Ctrl-C."""
        if self.desk.closing:
            logging.getLogger("uvicorn.error").addFilter(_is_a_fault)
            self.should_exit = self.force_exit = True
        self.desk.close()

    async def on_tick(self, counter: int) -> bool:
        if self.desk.closing and (self.desk.idle or self.desk.late):
            self.should_exit = True
        return await super().on_tick(counter)


def _is_a_fault(record: logging.LogRecord) -> bool:
    """Whether there is more to say than that somebody was cut off, which is what a second Ctrl-C asks for."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)) and (
        "CancelledError" not in record.getMessage()
    )


def _patient(limits: Limits) -> type[H11Protocol]:
    class Within(Patient):
        bounds = limits

    return Within


class Patient(H11Protocol):
    """HTTP with an end to patience: a request's first lines must come in time, and connections are counted."""

    bounds = Limits()
    timer: asyncio.TimerHandle | None = None
    stuck: asyncio.TimerHandle | None = None  # runs while the other end takes nothing of what we have to say

    @property
    def answering(self) -> bool:
        """Whether a request is there that is not answered yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._be_patient()
        if len(self.connections) > self.bounds.connections:
            self._say(503, "too many connections", "the same once more in 1 s", {"Retry-After": "1"})

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.answering:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.answering:
            self._be_patient()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_soon()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.stuck is not None and not self.transport.is_closing():
            self.stuck.cancel()
            self.stuck = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self.stuck is not None:
            self.stuck.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Bytes that are no HTTP."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._say(400, "this is not an HTTP request")
        else:  # they belong to a request whose answer is on its way already: a second one would be taken for the next one's
            self.transport.close()
            self._abort_soon()

    def _be_patient(self) -> None:
        self._stop_waiting()
        if not self.transport.is_closing():
            self.timer = self.loop.call_later(self.bounds.silence_seconds, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _lose_patience(self) -> None:
        if not self.answering:
            self._say(408, "the request was too slow")

    def _say(self, status: int, what: str, advice: str = "", headers: dict[str, str] | None = None) -> None:
        """An answer where there was no whole request, and the end of the connection."""
        if self.transport.is_closing():
            return
        if self.answering:  # what the application still says comes too late
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        body = json.dumps({"error": what, "advice": advice}).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        first = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{head}Connection: close\r\n\r\n"
        self.transport.write(first.encode() + body)
        self.transport.close()
        self._abort_soon()

    def _abort_soon(self) -> None:
        """Closing waits for whoever does not read; this does not."""
        if self.stuck is None:
            self.stuck = self.loop.call_later(self.bounds.silence_seconds, self.transport.abort)


def run(app: Any, desk: Desk, limits: Limits, listener: socket.socket) -> None:
    """Answer on this socket until told to stop.

    raises  KeyboardInterrupt if told so twice: what was accepted has not all been answered
    """
    server = Server(app, desk, limits)
    server.run(sockets=[listener])
    if server.force_exit:
        raise KeyboardInterrupt
