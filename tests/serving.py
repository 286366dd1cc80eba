"""A server in the tests' own process, before a classifier that can be seen through: it names the colour of a photo."""

import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx
import numpy as np
from conftest import encoded
from PIL import Image

from ikebana.data import decoding
from ikebana.inference import prediction
from ikebana.serving import connections, server
from ikebana.serving.limits import Limits
from ikebana.serving.prediction_queue import PredictionQueue

PATIENCE = 20  # seconds: a shared machine may hold up anything


@dataclass
class Colours:
    """Names the channel that is brightest; each has its share of the light. Looks only while its gate is open."""

    classes: tuple[str, ...] = ("red", "green", "blue")
    threshold: float | None = 0.6
    metadata: dict = field(
        default_factory=lambda: {"scores": {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "n": 40}}
    )
    gate: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    looks: list[int] = field(default_factory=list)  # how many photos each look was at, from its beginning

    def preprocess(self, photo):
        return decoding.decode(photo, 8).pixels

    def forward(self, photos):
        self.looks.append(len(photos))
        assert self.gate.wait(PATIENCE)
        if self.broken:
            raise RuntimeError("the network is broken")
        light = photos.astype(np.float64).mean((1, 2)) + 1e-6
        return SimpleNamespace(probabilities=light / light.sum(1, keepdims=True))

    def to_prediction(self, probabilities, path=""):
        return prediction.to_prediction(probabilities.tolist(), self.classes, self.threshold, path)


def coloured(name: str, side: int = 16, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (side, side), name), kind)


RED, BLUE, GREY = coloured("red"), coloured("blue"), coloured("grey")


@dataclass
class Running:
    """A server, and ways to ask it."""

    url: str
    desk: PredictionQueue
    colours: Colours
    client: httpx.Client
    thread: threading.Thread
    pool: ThreadPoolExecutor

    def post(self, data: bytes = RED, **options) -> httpx.Response:
        return self.client.post("/predict", content=data, **options)

    def soon(self, data: bytes = RED):
        """The same, without waiting for the answer."""
        return self.pool.submit(self.post, data)

    def form(self, *photos: bytes, **options) -> httpx.Response:
        files = [("photo", (f"{number}.png", data, "image/png")) for number, data in enumerate(photos)]
        return self.client.post("/predict", files=files, **options)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=PATIENCE)

    def counted(self, line: str) -> float:
        """What the metrics say on the line that begins so; 0 if there is none."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(each.rsplit(" ", 1)[1]) for each in lines if each.startswith(line + " ")), 0.0)

    def until(self, happened) -> None:
        """Wait for it."""
        end = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextmanager
def running(classifier=None, token: str | None = None, **limits) -> Iterator[Running]:
    """A server at a free port of this machine; it is told to stop at the end, and must."""
    bounds, colours = Limits(**limits), Colours()
    colours.gate.set()
    service = server.build(classifier or colours, bounds, token)
    listener = connections.bind_socket("127.0.0.1", 0)
    url = connections.build_url(listener)
    run = threading.Thread(target=connections.run, args=(service.app, service.queue, bounds, listener))
    run.start()
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE) as client, ThreadPoolExecutor(32) as pool:
            yield Running(url, service.queue, colours, client, run, pool)
    finally:
        colours.gate.set()
        service.queue.close()
        run.join(PATIENCE)
        listener.close()
        assert not run.is_alive()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Everything that comes until the other side hangs up: status and body."""
    said = b""
    while piece := connection.recv(65536):
        said += piece
    head, _, body = said.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def refused(response, status, words=""):
    """The answer is a refusal: so numbered, with what is wrong and what to try."""
    assert response.status_code == status, response.text
    told = response.json()
    assert re.search(words, told["error"])
    assert isinstance(told["advice"], str)
    return told
