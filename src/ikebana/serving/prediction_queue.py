"""The queue of photos: threads decode them, and the network classifies decoded ones in batches.

A photo never waits for a batch to fill: the next batch collects during the current forward pass.
A single photo is classified at once, and batches grow with the load.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ikebana.data import decoding as decoding_module
from ikebana.errors import UnreadablePhoto
from ikebana.inference.page_files import ClassifierDescription
from ikebana.inference.prediction import NOT_SURE
from ikebana.inference.sorting import UNUSABLE
from ikebana.serving.limits import MEGA, Limits, Refusal
from ikebana.serving.metrics import Metrics
from ikebana.serving.uploads import Upload

# Photos per forward pass.
MAX_BATCH_PHOTOS = 16
MAX_RETRY_AFTER_SECONDS = 30
# Estimate before the first forward pass.
INITIAL_SECONDS_PER_PHOTO = 0.05
# Weight of the last batch in the moving average of seconds per photo.
LAST_BATCH_WEIGHT = 0.2
NAMED = "named"


class PredictionLike(Protocol):
    """The part of Prediction that the server needs."""

    @property
    def label(self) -> str | None: ...
    @property
    def confidence(self) -> float: ...
    @property
    def probabilities(self) -> Mapping[str, float]: ...
    @property
    def status(self) -> str: ...


class Classifier(ClassifierDescription, Protocol):
    """The part of the exported Classifier that the server needs; threads may share one."""

    def opened(self, photo: bytes, /) -> np.ndarray:
        """Decode a photo to uint8 [image_size, image_size, 3]."""
        ...

    def look(self, photos: np.ndarray, /) -> Any:
        """Run uint8 [photos, image_size, image_size, 3] → `.probabilities` [photos, classes]."""
        ...

    def said(self, probabilities: np.ndarray, /) -> PredictionLike: ...


@dataclass
class Answer:
    """The predicted class of a photo and its confidence, or why there is none."""

    # The file's name in the upload.
    name: str
    # None if not sure, or the photo is unusable.
    label: str | None
    # The probability of the most probable class; 0 if the photo is unusable.
    confidence: float
    # The probability of each class; empty if the photo is unusable.
    probabilities: dict[str, float]
    # "used", "not sure", or the reason why the photo is unusable.
    status: str

    @property
    def outcome(self) -> str:
        if self.label is not None:
            return NAMED
        return NOT_SURE if self.probabilities else UNUSABLE


class Visit:
    """One request and the memory that its upload takes."""

    def __init__(self, queue: "Desk"):
        self.queue, self.size = queue, 0

    def hold(self, size: int) -> None:
        """Count further bytes that are now in memory.

        Raises:
            Refusal: 503, all requests together take too much memory.
        """
        if self.queue.held + size > self.queue.limits.held_megabytes * MEGA:
            raise self.queue.make_busy_refusal("too many uploads at once")
        self.size += size
        self.queue.held += size
        self.queue.metrics.received.inc(size)


@dataclass
class _DecodedPhoto:
    """A decoded photo and the future of its probabilities."""

    image: np.ndarray
    probabilities: "asyncio.Future[np.ndarray]"


class Desk:
    """Accepts photos up to the limits and predicts each.

    All methods run on one event loop; decoding and the network have their own threads.
    """

    def __init__(self, classifier: Classifier, limits: Limits, metrics: Metrics):
        self.classifier, self.limits, self.metrics = classifier, limits, metrics
        self.decode_executor = ThreadPoolExecutor(decoding_module.count_threads(), "decode")
        self.network_executor = ThreadPoolExecutor(1, "network")
        self.ready: deque[_DecodedPhoto] = deque()
        self.has_ready = asyncio.Event()
        self.waiting = self.held = self.visits = 0
        self.seconds_per_photo = INITIAL_SECONDS_PER_PHOTO
        # When close() was called, by time.monotonic.
        self.closed_at: float | None = None
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.held.set_function(lambda: self.held)
        metrics.open.set_function(lambda: self.visits)

    @property
    def idle(self) -> bool:
        """Whether every accepted request is answered."""
        return not self.visits

    @property
    def closing(self) -> bool:
        return self.closed_at is not None

    @property
    def late(self) -> bool:
        """Whether the time to finish accepted requests is over."""
        return self.closed_at is not None and time.monotonic() > self.closed_at + self.limits.grace_seconds

    def close(self) -> None:
        """Refuse new requests; accepted ones are still answered."""
        if self.closed_at is None:
            self.closed_at = time.monotonic()

    def make_busy_refusal(self, what: str) -> Refusal:
        """Make a 503 whose `Retry-After` is the estimated time for the waiting photos."""
        seconds = min(max(math.ceil(self.waiting * self.seconds_per_photo), 1), MAX_RETRY_AFTER_SECONDS)
        return Refusal(503, what, f"the same once more in {seconds} s", again=seconds)

    @contextmanager
    def visit(self) -> Iterator[Visit]:
        """Admit a request and release its memory at the end.

        Raises:
            Refusal: 503, the server is shutting down or the queue is full.
        """
        if self.closing:
            raise Refusal(503, "the server is shutting down", "another server, or later", again=MAX_RETRY_AFTER_SECONDS)
        self._require_capacity(1)
        request = Visit(self)
        self.visits += 1
        try:
            yield request
        finally:
            self.visits -= 1
            self.held -= request.size

    def _require_capacity(self, photos: int) -> None:
        if self.waiting and self.waiting + photos > self.limits.waiting:
            raise self.make_busy_refusal("the queue is full")

    async def answers(self, uploads: Sequence[Upload]) -> list[Answer]:
        """Predict each photo, in order.

        Raises:
            Refusal: 503, the queue is full or the time is over; 422, one photo decodes too slowly.
        """
        self._require_capacity(len(uploads))
        self.waiting += len(uploads)
        jobs = [_Job(upload, self) for upload in uploads]
        tasks = [asyncio.ensure_future(job.run()) for job in jobs]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                predictions = await asyncio.gather(*tasks)
        except TimeoutError:
            if any(job.is_slow for job in jobs):
                raise Refusal(422, "a photo here takes too long to open", "JPEG or PNG, in a smaller size") from None
            raise self.make_busy_refusal("the server has too much to do") from None
        finally:
            for task in tasks:
                task.cancel()
        for prediction in predictions:
            self.metrics.answered(prediction.outcome, prediction.label or "")
        return predictions

    def release_photo(self) -> None:
        """Count a photo that no longer needs a thread or memory."""
        self.waiting -= 1

    async def _run_batches(self) -> None:
        """Classify decoded photos in batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.has_ready.wait()
            batch = [self.ready.popleft() for _ in range(min(len(self.ready), MAX_BATCH_PHOTOS))]
            if not self.ready:
                self.has_ready.clear()
            # Requests that ended have cancelled the futures of their photos.
            batch = [photo for photo in batch if not photo.probabilities.done()]
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(
                    self.network_executor, self._forward, [photo.image for photo in batch]
                )
            except Exception as error:  # fails the requests of this batch only
                _resolve(batch, lambda photo, _, error=error: photo.probabilities.set_exception(error))
            else:
                _resolve(batch, lambda photo, index, rows=rows: photo.probabilities.set_result(rows[index]))

    def _forward(self, images: list[np.ndarray]) -> np.ndarray:
        start = time.perf_counter()
        probabilities = self.classifier.look(np.stack(images)).probabilities
        seconds = time.perf_counter() - start
        self.seconds_per_photo += LAST_BATCH_WEIGHT * (seconds / len(images) - self.seconds_per_photo)
        self.metrics.network.observe(seconds)
        self.metrics.batch.observe(len(images))
        return probabilities

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Classify photos within this block, and release the threads at its end."""
        worker = asyncio.create_task(self._run_batches())
        try:
            yield
        finally:
            self.close()
            worker.cancel()
            self.decode_executor.shutdown(wait=False, cancel_futures=True)
            self.network_executor.shutdown(wait=False, cancel_futures=True)


def _resolve(batch: list[_DecodedPhoto], set_outcome: Callable[[_DecodedPhoto, int], None]) -> None:
    for index, photo in enumerate(batch):
        if not photo.probabilities.done():
            set_outcome(photo, index)


class _Job:
    """The prediction of one photo of a request."""

    def __init__(self, upload: Upload, queue: Desk):
        self.upload, self.queue = upload, queue
        self.decode_start: float | None = None

    @property
    def is_slow(self) -> bool:
        """Whether decoding has taken more than half of the time limit."""
        return (
            self.decode_start is not None
            and time.perf_counter() - self.decode_start > self.queue.limits.answer_seconds / 2
        )

    async def run(self) -> Answer:
        queue, loop = self.queue, asyncio.get_running_loop()
        decoding: Future[np.ndarray] = queue.decode_executor.submit(self._decode)
        try:
            image = await asyncio.wrap_future(decoding)
            probabilities = loop.create_future()
            queue.ready.append(_DecodedPhoto(image, probabilities))
            queue.has_ready.set()
            result = queue.classifier.said(await probabilities)
            return Answer(self.upload.name, result.label, result.confidence, dict(result.probabilities), result.status)
        except UnreadablePhoto as error:
            return Answer(self.upload.name, None, 0.0, {}, error.what)
        finally:
            # Threads cannot be cancelled: the photo counts as waiting until its decoding ends.
            decoding.add_done_callback(lambda _: _call_in_loop(loop, queue.release_photo))

    def _decode(self) -> np.ndarray:
        self.decode_start = time.perf_counter()
        try:
            data, self.upload.data = self.upload.data, b""
            size = decoding_module.read_dimensions(data)
            if size is not None and size[0] * size[1] > self.queue.limits.megapixels * 1_000_000:
                what = f"too large: {size[0]} x {size[1]} is {size[0] * size[1] / 1e6:,.0f} megapixels"
                raise UnreadablePhoto(f"{what}, and the limit here is {self.queue.limits.megapixels}")
            return self.queue.classifier.opened(data)
        finally:
            self.queue.metrics.decode.observe(time.perf_counter() - self.decode_start)
            self.decode_start = None


def _call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, so counting no longer matters
        loop.call_soon_threadsafe(function)
