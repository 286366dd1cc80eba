"""A model file → predictions. Needs numpy, Pillow and onnxruntime; neither torch nor the run that it was made from.

Photos come through the decoder that training used (photos/pixels.py) and reach the graph as squares; everything from there on
to calibrated probabilities is inside the graph, so there is no arithmetic here that could disagree with the run's.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
from PIL import Image

from ikebana.errors import ModelError, PhotosError, UnreadablePhoto
from ikebana.photos import pixels
from ikebana.recipe import Fit
from ikebana.shipping import model_file, prediction, runtime
from ikebana.shipping.prediction import Prediction

Photo: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
Named: TypeAlias = tuple[str, Photo]  # a name of your own for the prediction's `path`, and the photo
Opener: TypeAlias = Callable[[], np.ndarray]  # gives a photo uint8 [side, side, 3], or raises UnreadablePhoto

BATCH = 16  # photos that the network sees at a time
AHEAD = 2  # batches that are being opened meanwhile
INPUT, PROBABILITIES, FEATURES = "photos", "probabilities", "features"


class Look(NamedTuple):
    """What the network sees in some photos."""

    probabilities: np.ndarray  # float32 [photos, classes], calibrated; each row adds up to 1
    features: np.ndarray  # float32 [photos, features]: what its last part decides by; alike for photos that look alike


@dataclass(frozen=True, eq=False)
class Classifier:
    """What ships: says what photos show. Any number of threads may use one at the same time.

    `look` is the network itself: photos uint8 [photos, height, width, 3], one size a call → Look. Whoever needs a step alone
    (a server that decodes here and batches there) takes `opened`, `look` and `said`; `predict` and `stream` are made of these.
    """

    classes: tuple[str, ...]
    side: int  # pixels: what the network sees
    fit: Fit  # how photos become square
    threshold: float | None  # the confidence below which the answer is "not sure"; None if it never is
    about: Mapping[str, Any]  # all that the file says about itself: docs/export.md lists it
    look: Callable[[np.ndarray], Look]

    @overload
    def predict(self, photos: Photo) -> Prediction: ...
    @overload
    def predict(self, photos: Iterable[Photo | Named]) -> list[Prediction]: ...
    def predict(self, photos: Photo | Iterable[Photo | Named]) -> Prediction | list[Prediction]:
        """What a photo shows; or a list of answers, for many.

        photos  a path, a file's bytes, a picture of Pillow's or an array uint8 [height, width, 3] in RGB; or any number of
                these, of which each may also be a pair: a name of yours, for the answer's `path`, and the photo
        raises  UnreadablePhoto if the one photo cannot be used. Of many, those have no label, and a `status` that says why
        """
        if isinstance(photos, str | os.PathLike | bytes | bytearray | Image.Image) or _is_array(photos, 3):
            found = self.look(self.opened(photos)[None])  # pyright: ignore[reportArgumentType]
            return self.said(found.probabilities[0], _path(photos))  # pyright: ignore[reportArgumentType]
        return list(self.stream(photos))  # pyright: ignore[reportArgumentType]

    def stream(self, photos: Iterable[Photo | Named], batch: int = BATCH) -> Iterator[Prediction]:
        """An answer for each photo, in order, as photos come; some are decoded while the network looks at others.

        Holds a few batches of photos at a time, however many come; a photo that cannot be used gets an answer that says why.
        """
        return answers(self, ((_path(each), partial(self.opened, each)) for each in photos), batch)

    def opened(self, photo: Photo | Named) -> np.ndarray:
        """A photo as the network sees it: uint8 [side, side, 3], upright, in sRGB, by the very function that training used.

        raises  UnreadablePhoto with a reason in plain words
        """
        content = photo[1] if isinstance(photo, tuple) else photo
        if isinstance(content, bytes | bytearray | memoryview):
            return pixels.decode(bytes(content), self.side, self.fit).pixels
        if isinstance(content, Image.Image):
            return pixels.of_picture(content, self.side, self.fit).pixels
        if isinstance(content, np.ndarray):
            return pixels.of_picture(Image.fromarray(_as_picture(content)), self.side, self.fit).pixels
        if isinstance(content, str | os.PathLike):
            return _of_file(Path(content).expanduser(), self.side, self.fit)
        raise PhotosError(
            f"a {type(content).__name__} is not a photo",
            advice="a path, a file's bytes, a picture of Pillow's, or an array uint8 [height, width, 3]",
        )

    def said(self, probabilities: np.ndarray, path: str = "") -> Prediction:
        """The answer that these probabilities [classes] give: "not sure" if none of them reaches the threshold."""
        return prediction.said(probabilities.tolist(), self.classes, self.threshold, path)

    def __repr__(self) -> str:
        scores = self.about.get("scores") or {}
        accuracy, whose = scores.get("accuracy"), " of the network that was scored" if scores.get("note") else ""
        score = f", accuracy {accuracy:.3f}{whose}" if isinstance(accuracy, float) else ""
        return f"Classifier({len(self.classes)} classes: {', '.join(self.classes[:8])}{score})"


def load(file: str | os.PathLike[str], *, threads: int | None = None) -> Classifier:
    """The classifier in a file that `ikebana export` made. The file may come from anybody: nothing in it is run that could do
    more than compute.

    threads  that the network may use; as many as processors may be used, if not given
    raises   ModelError if there is no such file, or it is damaged, foreign or too new
    """
    place = Path(file)
    return from_bytes(model_file.read(place), place, threads=threads)


def from_bytes(data: bytes, where: str | Path | None = None, *, threads: int | None = None) -> Classifier:
    """The classifier in a model file's bytes.

    raises  ModelError if they are damaged, foreign or too new
    """
    about = model_file.metadata(data, where)
    _refuse(_wrong_metadata(about), where)
    session, classes = _session(data, where, threads), tuple(about["classes"])
    _refuse(_wrong_graph(session, len(classes)), where)
    look = partial(_look, session, len(classes), where)
    return Classifier(classes, about["side"], about["fit"], about["threshold"], about, look)


def answers(classifier: Classifier, photos: Iterable[tuple[str, Opener]], batch: int = BATCH) -> Iterator[Prediction]:
    """An answer for each photo, in order. While the network looks at a batch, threads open the next ones.

    photos  the path of each, and what opens it
    """
    ready = opened_ahead(photos, AHEAD * batch)
    while chunk := list(islice(ready, batch)):
        shown = [each for _, each in chunk if not isinstance(each, str)]
        looks = iter(classifier.look(np.stack(shown)).probabilities if shown else ())
        for path, each in chunk:
            yield prediction.unusable(path, each) if isinstance(each, str) else classifier.said(next(looks), path)


def opened_ahead(photos: Iterable[tuple[str, Opener]], ahead: int) -> Generator[tuple[str, np.ndarray | str]]:
    """Each photo opened, or the reason why it cannot be, in order; threads are at most so many photos ahead."""
    todo = iter(photos)
    pool = ThreadPoolExecutor(pixels.threads(), "decode")
    try:
        waiting = deque((path, pool.submit(_opened_or_reason, opener)) for path, opener in islice(todo, ahead))
        while waiting:
            path, future = waiting.popleft()
            yield path, future.result()
            waiting.extend((path, pool.submit(_opened_or_reason, opener)) for path, opener in islice(todo, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _opened_or_reason(opener: Opener) -> np.ndarray | str:
    try:
        return opener()
    except UnreadablePhoto as reason:
        return reason.what


def _path(photo: Photo | Named) -> str:
    if isinstance(photo, tuple):
        return photo[0]
    return os.fspath(photo) if isinstance(photo, str | os.PathLike) else ""


def _of_file(file: Path, side: int, fit: Fit) -> np.ndarray:
    try:
        return pixels.decode(pixels.read_bytes(file), side, fit).pixels
    except UnreadablePhoto as reason:
        raise UnreadablePhoto(reason.what, where=file) from None
    except FileNotFoundError:
        raise UnreadablePhoto("there is no such file", where=file) from None
    except IsADirectoryError:
        raise UnreadablePhoto("this is a folder", where=file, advice="ikebana.predict takes folders too") from None
    except (OSError, ValueError) as error:
        raise UnreadablePhoto(f"unreadable: {getattr(error, 'strerror', None) or error}", where=file) from None


def _is_array(photo: Any, axes: int) -> bool:
    return isinstance(photo, np.ndarray) and photo.ndim == axes


def _as_picture(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        shape = ", ".join(str(length) for length in array.shape)
        raise PhotosError(
            f"an array {array.dtype} [{shape}] is not a photo", advice="uint8 [height, width, 3], red, green and blue"
        )
    return np.ascontiguousarray(array)


def _refuse(wrong: str | None, where: str | Path | None) -> None:
    if wrong is not None:
        advice = "ikebana export, once more"
        raise ModelError(f"this model file contradicts itself: {wrong}", where=where, advice=advice)


def _wrong_metadata(about: Mapping[str, Any]) -> str | None:
    """What the metadata say that cannot be; None if they make sense."""
    classes, side, fit = (about.get(name) for name in ("classes", "side", "fit"))
    threshold = about.get("threshold")
    if not isinstance(classes, list) or len(classes) < 2 or not all(isinstance(each, str) and each for each in classes):
        return "its classes are not a list of names"
    if len(set(classes)) != len(classes):
        return "it names a class twice"
    if type(side) is not int or not 1 <= side <= 4096:
        return "the side of its photos is not a number of pixels"
    if fit not in ("squash", "crop"):
        return "it does not say how photos become square"
    if threshold is not None and not (type(threshold) in (int, float) and 0 <= threshold <= 1):
        return "its threshold is not a probability"
    return None


def _wrong_graph(session: Any, classes: int) -> str | None:
    """What the graph's inputs and outputs contradict; None if they are what they must be."""
    given, made = session.get_inputs(), session.get_outputs()
    if [each.name for each in given] != [INPUT] or given[0].type != "tensor(uint8)" or len(given[0].shape) != 4:
        return "its input is not a batch of photos"
    if [(each.name, each.type) for each in made] != [(PROBABILITIES, "tensor(float)"), (FEATURES, "tensor(float)")]:
        return "its outputs are not probabilities and features"
    if list(made[0].shape[1:]) != [classes]:
        return f"it names {classes} classes, and gives another number of probabilities"
    return None


def _session(data: bytes, where: str | Path | None, threads: int | None) -> Any:
    onnxruntime = runtime.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said in an error
    options.intra_op_num_threads = threads or pixels.threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # photos are decoded meanwhile
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common ancestor of their own
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot run this model file: {str(error).splitlines()[0]}",
            where=where,
            advice="pip install --upgrade onnxruntime, or ikebana export once more",
        ) from None


def _look(session: Any, classes: int, where: str | Path | None, photos: np.ndarray) -> Look:
    """photos  uint8 [photos, height, width, 3]"""
    try:
        found = Look(*session.run([PROBABILITIES, FEATURES], {INPUT: photos}))
    except Exception as error:
        why = str(error).splitlines()[0]
        raise ModelError(
            f"this model file cannot be run: {why}", where=where, advice="ikebana export, once more"
        ) from None
    if found.probabilities.shape != (len(photos), classes) or not np.isfinite(found.probabilities).all():
        raise ModelError("this model file gives no probabilities", where=where, advice="ikebana export, once more")
    return found
