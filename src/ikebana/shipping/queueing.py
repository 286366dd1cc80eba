"""Where photos wait: a few threads decode them, and the network looks at those that are ready, several at a time.

A batch is never waited for: while the network looks at one, the next gathers. A lone photo is looked at at once, and under
load batches grow by themselves.
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

from ikebana.errors import UnreadablePhoto
from ikebana.photos import pixels
from ikebana.shipping.limits import MEGA, Limits, Refusal
from ikebana.shipping.metrics import Metrics
from ikebana.shipping.pages import Told
from ikebana.shipping.prediction import NOT_SURE
from ikebana.shipping.sorting import UNUSABLE
from ikebana.shipping.upload import Upload

BATCH = 16  # photos that the network sees at a time, at most
LONGEST_AGAIN = 30  # seconds after which a client is asked to come again, at most
PACE = 0.05  # seconds a photo takes, until it has been seen
RECENT = 0.2  # how much the last batch counts in the pace
NAMED = "named"


class Said(Protocol):
    """What shipping/prediction.py says of one photo."""

    @property
    def label(self) -> str | None: ...
    @property
    def confidence(self) -> float: ...
    @property
    def probabilities(self) -> Mapping[str, float]: ...
    @property
    def status(self) -> str: ...


class Classifier(Told, Protocol):
    """What the server needs of shipping/classifier.py's; any number of threads may use it."""

    def opened(self, photo: bytes, /) -> np.ndarray:
        """A photo's bytes → uint8 [side, side, 3]."""
        ...

    def look(self, photos: np.ndarray, /) -> Any:
        """uint8 [photos, side, side, 3] → a record with `probabilities`, float [photos, classes]."""
        ...

    def said(self, probabilities: np.ndarray, /) -> Said: ...


@dataclass
class Answer:
    """What a photo shows, how sure that is, or why nothing can be said."""

    name: str  # of the file, as it was sent
    label: str | None  # None if it is not sure, or the photo cannot be used
    confidence: float  # the probability of the most probable class; 0 if the photo cannot be used
    probabilities: dict[str, float]  # of each class; empty if the photo cannot be used
    status: str  # "used", "not sure", or the reason why the photo cannot be used

    @property
    def outcome(self) -> str:
        if self.label is not None:
            return NAMED
        return NOT_SURE if self.probabilities else UNUSABLE


class Visit:
    """One request's share of the memory."""

    def __init__(self, desk: "Desk"):
        self.desk, self.size = desk, 0

    def hold(self, size: int) -> None:
        """So many bytes more are in memory.

        raises  Refusal with 503 if all requests together hold too much
        """
        if self.desk.held + size > self.desk.limits.held_megabytes * MEGA:
            raise self.desk.busy("too many uploads at once")
        self.size += size
        self.desk.held += size
        self.desk.metrics.received.inc(size)


@dataclass
class _Ready:
    """A photo that is decoded, and who waits for what it shows."""

    square: np.ndarray
    seen: "asyncio.Future[np.ndarray]"


class Desk:
    """Takes photos in, as many as it can hold, and answers each.

    All of it runs on one event loop, but for decoding and the network, which have threads of their own.
    """

    def __init__(self, classifier: Classifier, limits: Limits, metrics: Metrics):
        self.classifier, self.limits, self.metrics = classifier, limits, metrics
        self.decoders = ThreadPoolExecutor(pixels.threads(), "decode")
        self.network = ThreadPoolExecutor(1, "network")
        self.ready: deque[_Ready] = deque()
        self.some = asyncio.Event()  # something is ready
        self.waiting = self.held = self.visits = 0  # photos, bytes, requests
        self.pace = PACE
        self.closed: float | None = None  # when it was told to accept nothing more, by time.monotonic
        metrics.waiting.set_function(lambda: self.waiting)
        metrics.held.set_function(lambda: self.held)
        metrics.open.set_function(lambda: self.visits)

    @property
    def idle(self) -> bool:
        """Whether everything that was accepted is answered."""
        return not self.visits

    @property
    def closing(self) -> bool:
        return self.closed is not None

    @property
    def late(self) -> bool:
        """Whether the time to finish what was accepted is over."""
        return self.closed is not None and time.monotonic() > self.closed + self.limits.grace_seconds

    def close(self) -> None:
        """Accept nothing more; what was accepted is still answered."""
        if self.closed is None:
            self.closed = time.monotonic()

    def busy(self, what: str) -> Refusal:
        """503, with the time that the photos which wait will take."""
        seconds = min(max(math.ceil(self.waiting * self.pace), 1), LONGEST_AGAIN)
        return Refusal(503, what, f"the same once more in {seconds} s", again=seconds)

    @contextmanager
    def visit(self) -> Iterator[Visit]:
        """For the time of a request.

        raises  Refusal with 503 if the server is closing, or the queue is full already
        """
        if self.closing:
            raise Refusal(503, "the server is shutting down", "another server, or later", again=LONGEST_AGAIN)
        self._need_room(1)
        visit = Visit(self)
        self.visits += 1
        try:
            yield visit
        finally:
            self.visits -= 1
            self.held -= visit.size

    def _need_room(self, photos: int) -> None:
        if self.waiting and self.waiting + photos > self.limits.waiting:
            raise self.busy("the queue is full")

    async def answers(self, uploads: Sequence[Upload]) -> list[Answer]:
        """An answer for each photo, in order.

        raises  Refusal with 503 if there is no room in the queue, or no time; 422 if a photo alone takes that long
        """
        self._need_room(len(uploads))
        self.waiting += len(uploads)
        jobs = [_Job(each, self) for each in uploads]
        tasks = [asyncio.ensure_future(job.answer()) for job in jobs]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                answers = await asyncio.gather(*tasks)
        except TimeoutError:
            if any(job.slow for job in jobs):
                raise Refusal(422, "a photo here takes too long to open", "JPEG or PNG, in a smaller size") from None
            raise self.busy("the server has too much to do") from None
        finally:
            for task in tasks:
                task.cancel()
        for answer in answers:
            self.metrics.answered(answer.outcome, answer.label or "")
        return answers

    def released(self) -> None:
        """A photo needs neither thread nor memory any more."""
        self.waiting -= 1

    async def work(self) -> None:
        """Show the network what is ready, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.some.wait()
            batch = [self.ready.popleft() for _ in range(min(len(self.ready), BATCH))]
            if not self.ready:
                self.some.clear()
            batch = [each for each in batch if not each.seen.done()]  # nobody waits for the others any more
            if not batch:
                continue
            try:
                found = await loop.run_in_executor(self.network, self._look, [each.square for each in batch])
            except Exception as error:  # each of the requests says so; the next batch may be better
                _tell(batch, lambda each, _, error=error: each.seen.set_exception(error))
            else:
                _tell(batch, lambda each, number, found=found: each.seen.set_result(found[number]))

    def _look(self, squares: list[np.ndarray]) -> np.ndarray:
        begun = time.perf_counter()
        found = self.classifier.look(np.stack(squares)).probabilities
        seconds = time.perf_counter() - begun
        self.pace += RECENT * (seconds / len(squares) - self.pace)
        self.metrics.network.observe(seconds)
        self.metrics.batch.observe(len(squares))
        return found

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Within this block, photos are looked at; afterwards the threads are let go."""
        working = asyncio.create_task(self.work())
        try:
            yield
        finally:
            self.close()
            working.cancel()
            self.decoders.shutdown(wait=False, cancel_futures=True)
            self.network.shutdown(wait=False, cancel_futures=True)


def _tell(batch: list[_Ready], tell: Callable[[_Ready, int], None]) -> None:
    for number, each in enumerate(batch):
        if not each.seen.done():
            tell(each, number)


class _Job:
    """One photo on its way through the desk."""

    def __init__(self, upload: Upload, desk: Desk):
        self.upload, self.desk = upload, desk
        self.begun: float | None = None

    @property
    def slow(self) -> bool:
        """Whether most of the time that there is went into opening this photo."""
        return self.begun is not None and time.perf_counter() - self.begun > self.desk.limits.answer_seconds / 2

    async def answer(self) -> Answer:
        desk, loop = self.desk, asyncio.get_running_loop()
        opening: Future[np.ndarray] = desk.decoders.submit(self._open)
        try:
            square = await asyncio.wrap_future(opening)
            seen = loop.create_future()
            desk.ready.append(_Ready(square, seen))
            desk.some.set()
            said = desk.classifier.said(await seen)
            return Answer(self.upload.name, said.label, said.confidence, dict(said.probabilities), said.status)
        except UnreadablePhoto as reason:
            return Answer(self.upload.name, None, 0.0, {}, reason.what)
        finally:  # a thread that opens a photo cannot be stopped: the photo keeps its place until then
            opening.add_done_callback(lambda _: _in(loop, desk.released))

    def _open(self) -> np.ndarray:
        self.begun = time.perf_counter()
        try:
            data, self.upload.data = self.upload.data, b""
            size = pixels.declared(data)
            if size is not None and size[0] * size[1] > self.desk.limits.megapixels * 1_000_000:
                many = f"too large: {size[0]} x {size[1]} is {size[0] * size[1] / 1e6:,.0f} megapixels"
                raise UnreadablePhoto(f"{many}, and the limit here is {self.desk.limits.megapixels}")
            return self.desk.classifier.opened(data)
        finally:
            self.desk.metrics.decode.observe(time.perf_counter() - self.begun)
            self.begun = None


def _in(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: nothing is counted any more
        loop.call_soon_threadsafe(call)
