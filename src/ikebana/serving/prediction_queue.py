"""The queue of photos: threads decode them, and the network classifies decoded ones in batches.

A photo never waits for a batch to fill: the next batch collects during the current forward pass.
A single photo is classified at once, and batches grow with the load.
"""

import asyncio
import base64
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from ikebana.data.decoding import read_dimensions
from ikebana.errors import UnreadablePhoto
from ikebana.evaluation.drift import Drift, FamiliarityCounts
from ikebana.inference.neighbours import NeighbourIndex
from ikebana.inference.page_files import ClassifierDescription
from ikebana.inference.prediction import NOT_SURE, UNKNOWN
from ikebana.inference.sorting import UNUSABLE
from ikebana.serving.bodies import Upload
from ikebana.serving.limits import BYTES_PER_MEGABYTE, Limits, Refusal
from ikebana.serving.metrics import Metrics
from ikebana.system.threads import count_threads

# Photos per forward pass.
MAX_BATCH_PHOTOS = 16
MAX_RETRY_AFTER_SECONDS = 30
# Estimate before the first forward pass.
INITIAL_SECONDS_PER_PHOTO = 0.05
# Weight of the last batch in the moving average of seconds per photo.
LAST_BATCH_WEIGHT = 0.2
# Photos whose familiarity is compared with that of the calibration photos.
RECENT_PHOTOS = 1000
# Metric label of a photo that got a class.
OUTCOME_NAMED = "named"


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
    @property
    def familiarity(self) -> float | None: ...
    @property
    def candidates(self) -> Sequence[str]: ...


class Classifier(ClassifierDescription, Protocol):
    """The part of the exported Classifier that the server needs; threads may share one."""

    @property
    def familiarity_photos(self) -> int | None: ...
    @property
    def neighbour_index(self) -> NeighbourIndex | None: ...

    def preprocess(self, photo: bytes, /) -> np.ndarray:
        """Decode a photo to uint8 [image_size, image_size, 3]."""
        ...

    def forward(self, photos: np.ndarray, /) -> Any:
        """Run uint8 [photos, image_size, image_size, 3] → ForwardResult."""
        ...

    def to_prediction(self, probabilities: np.ndarray, /, *, familiarity: float | None = None) -> PredictionLike: ...


@dataclass
class TrainingPhoto:
    """A training photo that resembles another photo."""

    # Within the folder, archive or table of the training photos.
    path: str
    label: str
    # Cosine similarity, -1 to 1.
    similarity: float
    # A small JPEG in base64.
    thumbnail: str


class PhotoOutputs(NamedTuple):
    """What the network computes for one photo."""

    # float32 [classes].
    probabilities: np.ndarray
    familiarity: float | None
    # float32 [features]; None if the file has no training photos to compare with.
    features: np.ndarray | None


@dataclass
class PhotoPrediction:
    """The predicted class of a photo and its confidence, or why there is none."""

    # The file's name in the upload.
    name: str
    # None if not sure, unlike the training photos, or unusable.
    label: str | None
    # The probability of the most probable class; 0 if the photo is unusable.
    confidence: float
    # The probability of each class; empty if the photo is unusable.
    probabilities: dict[str, float]
    # "ok", "not sure", "unknown", or the reason why the photo is unusable.
    status: str
    # The classes that contain the true one with a stated probability, the most probable first.
    candidates: list[str]
    # Share of known photos that resemble the training photos less; null if it is not known.
    familiarity: float | None
    # The training photos that it resembles most, if the request asks for them and the file has them.
    neighbours: list[TrainingPhoto] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        if self.label is not None:
            return OUTCOME_NAMED
        return self.status if self.status in (NOT_SURE, UNKNOWN) else UNUSABLE


class QueuedRequest:
    """One request and the memory that its upload takes."""

    def __init__(self, queue: "PredictionQueue"):
        self.queue, self.size = queue, 0

    def reserve(self, size: int, *, is_received: bool = True) -> None:
        """Count further bytes that are now in memory.

        Args:
            is_received: False for bytes that were computed from received ones.
        Raises:
            Refusal: 503, all requests together take too much memory.
        """
        if self.queue.held_bytes + size > self.queue.limits.held_megabytes * BYTES_PER_MEGABYTE:
            raise self.queue.make_busy_refusal("too many uploads at once")
        self.size += size
        self.queue.held_bytes += size
        if is_received:
            self.queue.metrics.received_bytes.inc(size)


@dataclass
class _DecodedPhoto:
    """A decoded photo and the future of what the network computes for it."""

    image: np.ndarray
    outputs: "asyncio.Future[PhotoOutputs]"


class PredictionQueue:
    """A queue that accepts photos up to the limits and predicts each.

    All methods run on one event loop; decoding and the network have their own threads.
    """

    def __init__(self, classifier: Classifier, limits: Limits, metrics: Metrics):
        self.classifier, self.limits, self.metrics = classifier, limits, metrics
        self.decode_executor = ThreadPoolExecutor(count_threads(), "decode")
        self.network_executor = ThreadPoolExecutor(1, "network")
        self.ready_photos: deque[_DecodedPhoto] = deque()
        self.has_ready = asyncio.Event()
        self.waiting_photos = self.held_bytes = self.open_requests = 0
        self.seconds_per_photo = INITIAL_SECONDS_PER_PHOTO
        self.recent_familiarity: deque[float] = deque(maxlen=RECENT_PHOTOS)
        # When close() was called, by time.monotonic.
        self.closed_at: float | None = None
        metrics.drift_p_value.set_function(lambda: getattr(self.measure_drift(), "p_value", math.nan))
        metrics.median_familiarity.set_function(lambda: getattr(self.measure_drift(), "median_familiarity", math.nan))
        metrics.waiting_photos.set_function(lambda: self.waiting_photos)
        metrics.held_bytes.set_function(lambda: self.held_bytes)
        metrics.open_requests.set_function(lambda: self.open_requests)

    @property
    def is_idle(self) -> bool:
        """Whether every accepted request is answered."""
        return not self.open_requests

    @property
    def is_closing(self) -> bool:
        return self.closed_at is not None

    @property
    def is_grace_over(self) -> bool:
        """Whether the time to finish accepted requests is over."""
        return self.closed_at is not None and time.monotonic() > self.closed_at + self.limits.grace_seconds

    def close(self) -> None:
        """Refuse new requests; accepted ones are still answered."""
        if self.closed_at is None:
            self.closed_at = time.monotonic()

    def make_busy_refusal(self, what: str) -> Refusal:
        """Make a 503 whose `Retry-After` is the estimated time for the waiting photos."""
        seconds = min(max(math.ceil(self.waiting_photos * self.seconds_per_photo), 1), MAX_RETRY_AFTER_SECONDS)
        return Refusal(503, what, f"retry in {seconds} s", retry_after=seconds)

    @contextmanager
    def admit_request(self) -> Iterator[QueuedRequest]:
        """Admit a request and release its memory at the end.

        Raises:
            Refusal: 503, the server is shutting down or the queue is full.
        """
        if self.is_closing:
            raise Refusal(
                503,
                "the server is shutting down",
                "another server, or retry later",
                retry_after=MAX_RETRY_AFTER_SECONDS,
            )
        self._require_capacity(1)
        request = QueuedRequest(self)
        self.open_requests += 1
        try:
            yield request
        finally:
            self.open_requests -= 1
            self.held_bytes -= request.size

    def _require_capacity(self, photos: int) -> None:
        if self.waiting_photos and self.waiting_photos + photos > self.limits.waiting:
            raise self.make_busy_refusal("the queue is full")

    async def predict(self, uploads: Sequence[Upload], neighbours: int = 0) -> list[PhotoPrediction]:
        """Predict each photo, in order.

        Args:
            neighbours: number of training photos to find per photo.
        Raises:
            Refusal: 503, the queue is full or the time is over; 422, one photo decodes too slowly.
        """
        self._require_capacity(len(uploads))
        self.waiting_photos += len(uploads)
        jobs = [_Job(upload, self, neighbours) for upload in uploads]
        tasks = [asyncio.ensure_future(job.run()) for job in jobs]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                predictions = await asyncio.gather(*tasks)
        except TimeoutError:
            if any(job.is_slow for job in jobs):
                raise Refusal(422, "a photo takes too long to decode", "a smaller JPEG or PNG") from None
            raise self.make_busy_refusal("the server is overloaded") from None
        finally:
            for task in tasks:
                task.cancel()
        for prediction in predictions:
            self.metrics.count_photo(prediction.outcome, prediction.label or "")
            if prediction.familiarity is not None:
                self.recent_familiarity.append(prediction.familiarity)
        return predictions

    def measure_drift(self) -> Drift | None:
        """Compare the last photos with the calibration photos; None if that is not possible."""
        return FamiliarityCounts(self.recent_familiarity.copy()).compare(self.classifier.familiarity_photos)

    def release_photo(self) -> None:
        """Count a photo that no longer needs a thread or memory."""
        self.waiting_photos -= 1

    async def _run_batches(self) -> None:
        """Classify decoded photos in batches until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.has_ready.wait()
            batch = [self.ready_photos.popleft() for _ in range(min(len(self.ready_photos), MAX_BATCH_PHOTOS))]
            if not self.ready_photos:
                self.has_ready.clear()
            # Requests that ended have cancelled the futures of their photos.
            batch = [photo for photo in batch if not photo.outputs.done()]
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(
                    self.network_executor, self._forward, [photo.image for photo in batch]
                )
            except Exception as error:  # fails the requests of this batch only
                _resolve(batch, lambda photo, _, error=error: photo.outputs.set_exception(error))
            else:
                _resolve(batch, lambda photo, index, rows=rows: photo.outputs.set_result(rows[index]))

    def _forward(self, images: list[np.ndarray]) -> list[PhotoOutputs]:
        start = time.perf_counter()
        outputs = self.classifier.forward(np.stack(images))
        features = [None] * len(images) if self.classifier.neighbour_index is None else list(outputs.features)
        rows = [
            PhotoOutputs(probabilities, familiarity, row)
            for (probabilities, familiarity), row in zip(outputs.iterate_photos(), features, strict=True)
        ]
        seconds = time.perf_counter() - start
        self.seconds_per_photo += LAST_BATCH_WEIGHT * (seconds / len(images) - self.seconds_per_photo)
        self.metrics.network_seconds.observe(seconds)
        self.metrics.batch_photos.observe(len(images))
        return rows

    @asynccontextmanager
    async def run_workers(self) -> AsyncIterator[None]:
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
        if not photo.outputs.done():
            set_outcome(photo, index)


class _Job:
    """The prediction of one photo of a request."""

    def __init__(self, upload: Upload, queue: PredictionQueue, neighbours: int):
        self.upload, self.queue, self.neighbours = upload, queue, neighbours
        self.decode_start: float | None = None

    @property
    def is_slow(self) -> bool:
        """Whether decoding has taken more than half of the time limit."""
        return (
            self.decode_start is not None
            and time.perf_counter() - self.decode_start > self.queue.limits.answer_seconds / 2
        )

    async def run(self) -> PhotoPrediction:
        queue, loop = self.queue, asyncio.get_running_loop()
        decoding: Future[np.ndarray] = queue.decode_executor.submit(self._decode)
        try:
            image = await asyncio.wrap_future(decoding)
            outputs = loop.create_future()
            queue.ready_photos.append(_DecodedPhoto(image, outputs))
            queue.has_ready.set()
            computed = await outputs
            result = queue.classifier.to_prediction(computed.probabilities, familiarity=computed.familiarity)
            return PhotoPrediction(
                self.upload.name,
                result.label,
                result.confidence,
                dict(result.probabilities),
                result.status,
                list(result.candidates),
                result.familiarity,
                self._find_neighbours(computed.features),
            )
        except UnreadablePhoto as error:
            return PhotoPrediction(self.upload.name, None, 0.0, {}, error.what, [], None)
        finally:
            # Threads cannot be cancelled: the photo counts as waiting until its decoding ends.
            decoding.add_done_callback(lambda _: _call_in_loop(loop, queue.release_photo))

    def _find_neighbours(self, features: np.ndarray | None) -> list[TrainingPhoto]:
        index = self.queue.classifier.neighbour_index
        if index is None or features is None or not self.neighbours:
            return []
        return [
            TrainingPhoto(
                neighbour.path,
                neighbour.label,
                neighbour.similarity,
                base64.b64encode(neighbour.thumbnail or b"").decode(),
            )
            for neighbour in index.find(features, self.neighbours)
        ]

    def _decode(self) -> np.ndarray:
        self.decode_start = time.perf_counter()
        try:
            data, self.upload.data = self.upload.data, b""
            size = read_dimensions(data)
            if size is not None and size[0] * size[1] > self.queue.limits.megapixels * 1_000_000:
                what = f"too large: {size[0]} x {size[1]} is {size[0] * size[1] / 1e6:,.0f} megapixels"
                raise UnreadablePhoto(f"{what}; the limit is {self.queue.limits.megapixels}")
            return self.queue.classifier.preprocess(data)
        finally:
            self.queue.metrics.decode_seconds.observe(time.perf_counter() - self.decode_start)
            self.decode_start = None


def _call_in_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed, so counting no longer matters
        loop.call_soon_threadsafe(function)
