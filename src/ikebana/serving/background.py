"""A server in a thread, for notebooks and programs that go on while it serves."""

import atexit
import html
import socket
import threading
from types import TracebackType
from typing import Self

from ikebana.serving import connections
from ikebana.serving.limits import Limits
from ikebana.serving.server import Service


class BackgroundServer:
    """A server that runs in a thread until it is stopped, or the program ends."""

    def __init__(self, service: Service, limits: Limits, listener: socket.socket):
        self.url = connections.build_url(listener)
        self._queue = service.queue
        arguments = (service.app, service.queue, limits, listener)
        self._thread = threading.Thread(target=connections.run, args=arguments, name=f"serve {self.url}", daemon=True)
        self._thread.start()
        atexit.register(self.stop)

    @property
    def is_running(self) -> bool:
        """Whether the server still answers."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Answer the accepted requests, then stop; does nothing if the server is stopped already."""
        self._queue.close()
        self._thread.join()
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"BackgroundServer({self.url}{'' if self.is_running else ', stopped'})"

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        state = "call .stop() to stop it" if self.is_running else "stopped"
        return f'<p>serving at <a href="{url}" target="_blank" rel="noopener">{url}</a>; {state}</p>'
