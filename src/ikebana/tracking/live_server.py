"""The server of the live page.

It runs on this machine only, and ends with the training. It answers three paths: the page, its
updates as server-sent events, and the finished report.
"""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from ikebana.errors import get_first_line
from ikebana.serving.connections import bind_socket, build_url
from ikebana.system import progress
from ikebana.tracking.live_state import PARTS, LiveState

HOST = "127.0.0.1"
# Host names that requests may use, so that the domain of a foreign page cannot stand for this machine.
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
UPDATE_SECONDS = 0.5
# Comments keep proxies from closing a quiet stream.
MAX_QUIET_SECONDS = 15.0
MAX_CONNECTIONS = 32
# When the training ends, open pages fetch the report: until then the server waits at most this long.
MAX_CLOSE_SECONDS = 5.0
REPORT_FILE = "report.html"
HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
# Nothing is loaded from elsewhere; the page itself may ask this server for updates.
COMMON_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PAGE_POLICY = f"{COMMON_POLICY}; connect-src 'self'; frame-ancestors 'none'"
REPORT_POLICY = f"{COMMON_POLICY}; script-src 'unsafe-inline'; img-src data:"


class LivePage:
    """Shows a training on a web page; a follower of its events."""

    def __init__(self) -> None:
        """Start the server on a free port; MachineError if there is none."""
        self.state = LiveState()
        self.streams = self.reports_sent = 0
        listener = bind_socket(HOST, 0)
        self.url = build_url(listener)
        self.server = self._make_server()
        self.thread = threading.Thread(target=self.server.run, args=([listener],), name="live page", daemon=True)
        self.thread.start()
        progress.warn(f"watch the training at {self.url}")

    def on_event(self, event: dict[str, Any]) -> None:
        self.state.on_event(event)

    def close(self, error: BaseException | None) -> None:
        """Show how the training ended, wait for open pages to fetch the report, and stop."""
        report = self._find_report()
        if error is None:
            self.state.finish("finished", has_report=report is not None)
        elif isinstance(error, Exception):
            self.state.finish("failed", f"{type(error).__name__}: {get_first_line(error)}")
        else:  # Ctrl-C, SIGTERM
            self.state.finish("stopped")
        waiting, deadline = self.streams, time.monotonic() + MAX_CLOSE_SECONDS
        while time.monotonic() < deadline and (self.streams or (report and self.reports_sent < waiting)):
            time.sleep(0.05)
        self.server.should_exit = True
        self.thread.join(MAX_CLOSE_SECONDS)

    def _find_report(self) -> Path | None:
        folder = self.state.run["folder"]
        return Path(folder, REPORT_FILE) if folder and Path(folder, REPORT_FILE).is_file() else None

    def _make_server(self) -> Any:
        import uvicorn
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        routes = [
            Route("/", self._send_page),
            Route("/events", self._send_events),
            Route(f"/{REPORT_FILE}", self._send_report),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=ALLOWED_HOSTS, www_redirect=False)
        config = uvicorn.Config(
            Starlette(routes=routes, middleware=[hosts]),
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        return uvicorn.Server(config)

    async def _send_page(self, request: Any) -> Any:
        from starlette.responses import HTMLResponse

        nonce = secrets.token_urlsafe(16)
        page = await asyncio.to_thread(self.state.render_page, nonce)
        policy = f"{PAGE_POLICY}; script-src 'nonce-{nonce}'"
        return HTMLResponse(page, headers=HEADERS | {"content-security-policy": policy})

    async def _send_report(self, request: Any) -> Any:
        from starlette.responses import HTMLResponse, PlainTextResponse

        file = self._find_report() if self.state.is_over else None
        if file is None:
            return PlainTextResponse("there is no report yet", 404, headers=HEADERS)
        page = await asyncio.to_thread(file.read_bytes)
        self.reports_sent += 1
        return HTMLResponse(page, headers=HEADERS | {"content-security-policy": REPORT_POLICY})

    async def _send_events(self, request: Any) -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=HEADERS)

    async def _stream(self) -> AsyncIterator[str]:
        """Yield the parts that changed, twice per second, until the training is over."""
        self.streams += 1
        try:
            sent: dict[str, int] = {}
            sent_at = time.monotonic()
            while not self.server.should_exit:
                is_last = self.state.is_over
                changed = {}
                for part in PARTS:
                    version, text = await asyncio.to_thread(self.state.render, part)
                    if sent.get(part) != version:
                        sent[part], changed[part] = version, text
                if changed:
                    yield f"event: update\ndata: {json.dumps(changed)}\n\n"
                elif time.monotonic() - sent_at > MAX_QUIET_SECONDS:
                    yield ": the training goes on\n\n"
                else:
                    await asyncio.sleep(UPDATE_SECONDS)
                    continue
                sent_at = time.monotonic()
                if is_last:
                    yield "event: end\ndata: {}\n\n"
                    return
                await asyncio.sleep(UPDATE_SECONDS)
        finally:
            self.streams -= 1
