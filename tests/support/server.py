"""A server in the test process, which predicts the colour of a photo."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
from PIL import Image

from ikebana.data import decoding
from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.inference import prediction
from ikebana.inference.classifier import ForwardResult
from ikebana.inference.neighbours import NeighbourIndex
from ikebana.serving import connections, server
from ikebana.serving.limits import Limits
from ikebana.serving.prediction_queue import PredictionQueue

from .images import encode_image

# A shared machine may delay anything.
TIMEOUT_SECONDS = 20


@dataclass
class BrightestChannelClassifier:
    """Classifies a photo as its brightest channel while its gate is open.

    Probabilities are the mean brightness of the channels.
    """

    classes: tuple[str, ...] = ("red", "green", "blue")
    threshold: float | None = 0.6
    candidate_rule: CandidateRule | None = CandidateRule(0.9, 0.75, 0.6)
    familiarity_threshold: float | None = 0.05
    familiarity_photos: int | None = 200
    neighbour_index: NeighbourIndex | None = None
    metadata: dict = field(
        default_factory=lambda: {"scores": {"accuracy": 0.9, "accuracy_interval": [0.8, 0.95], "n": 40}}
    )
    gate: threading.Event = field(default_factory=threading.Event)
    is_broken: bool = False
    # Of all forward passes, recorded when they begin.
    batch_sizes: list[int] = field(default_factory=list)

    def preprocess(self, photo):
        return decoding.decode(photo, 8).pixels

    def forward(self, photos):
        self.batch_sizes.append(len(photos))
        assert self.gate.wait(TIMEOUT_SECONDS)
        if self.is_broken:
            raise RuntimeError("the network is broken")
        light = photos.astype(np.float64).mean((1, 2)) + 1e-6
        # A black photo resembles nothing.
        familiarity = np.minimum(light.max(1) / 100, 1)
        return ForwardResult(light / light.sum(1, keepdims=True), light, familiarity)

    def to_prediction(self, probabilities, path="", *, familiarity=None):
        return prediction.to_prediction(
            probabilities.tolist(),
            self.classes,
            self.threshold,
            path,
            candidate_rule=self.candidate_rule,
            familiarity=familiarity,
            familiarity_threshold=self.familiarity_threshold,
        )


def encode_square(colour: str, side: int = 16, file_format: str = "PNG") -> bytes:
    """Encode a square of one colour."""
    return encode_image(Image.new("RGB", (side, side), colour), file_format)


RED, BLUE, GREY = encode_square("red"), encode_square("blue"), encode_square("grey")


@dataclass
class RunningServer:
    """A server, and ways to send requests to it."""

    url: str
    queue: PredictionQueue
    classifier: BrightestChannelClassifier
    client: httpx.Client
    thread: threading.Thread
    pool: ThreadPoolExecutor

    def post(self, data: bytes = RED, **options) -> httpx.Response:
        """Send one photo as the body of a request, and wait for the response."""
        return self.client.post("/predict", content=data, **options)

    def post_later(self, data: bytes = RED) -> Future[httpx.Response]:
        """Send one photo without waiting for the response."""
        return self.pool.submit(self.post, data)

    def post_form(self, *photos: bytes, **options) -> httpx.Response:
        """Send photos as a form, and wait for the response."""
        files = [("photo", (f"{number}.png", data, "image/png")) for number, data in enumerate(photos)]
        return self.client.post("/predict", files=files, **options)

    def connect(self) -> socket.socket:
        """Open a connection of its own to the server."""
        return socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), timeout=TIMEOUT_SECONDS)

    def get_metric(self, name: str) -> float:
        """Read a metric, whose name includes labels; 0 if there is none."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + " ")), 0.0)

    def wait_until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; fail after TIMEOUT_SECONDS."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@contextmanager
def run_server(classifier=None, token: str | None = None, origins=(), name="", **limits) -> Iterator[RunningServer]:
    """Run a server at a free port until the end of the block."""
    server_limits, test_classifier = Limits(**limits), BrightestChannelClassifier()
    test_classifier.gate.set()
    service = server.build(classifier or test_classifier, server_limits, token, origins=frozenset(origins), name=name)
    listener = connections.bind_socket("127.0.0.1", 0)
    url = connections.build_url(listener)
    thread = threading.Thread(target=connections.run, args=(service.app, service.queue, server_limits, listener))
    thread.start()
    try:
        with httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS) as client, ThreadPoolExecutor(32) as pool:
            yield RunningServer(url, service.queue, test_classifier, client, thread, pool)
    finally:
        test_classifier.gate.set()
        service.queue.close()
        thread.join(TIMEOUT_SECONDS)
        listener.close()
        assert not thread.is_alive()


def read_response(connection: socket.socket) -> tuple[int, bytes]:
    """Read until the server closes the connection: status and body."""
    response = b""
    while chunk := connection.recv(65536):
        response += chunk
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def assert_error(response: httpx.Response, status: int, pattern: str = "") -> dict:
    """Assert that the response is an error, and return its body.

    It must have this status, a matching message, and advice.
    """
    assert response.status_code == status, response.text
    body = response.json()
    assert re.search(pattern, body["error"])
    assert isinstance(body["advice"], str)
    return body
