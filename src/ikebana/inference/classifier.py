"""The classifier in a model file, with numpy, Pillow and onnxruntime.

It needs neither torch nor the run.

The decoder is the one that training used (data/decoding.py) and gives the graph square images.
The graph does all the rest up to calibrated probabilities, so nothing here can differ from the run.
"""

import os
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np

from ikebana.errors import ModelError, PhotosError, RecipeError, UnreadablePhoto, get_first_line
from ikebana.evaluation import candidate_sets
from ikebana.evaluation.candidate_sets import CandidateRule
from ikebana.inference import model_file, neighbours, open_files, photo_input, prediction, runtime
from ikebana.inference.model_metadata import find_metadata_error
from ikebana.inference.neighbours import DEFAULT_COUNT, Neighbour, NeighbourIndex
from ikebana.inference.open_files import BinaryFile
from ikebana.inference.photo_input import NamedPhoto, Photo
from ikebana.inference.prediction import Prediction
from ikebana.recipe import Resize
from ikebana.system.threads import count_threads, map_in_threads

# What `load` reads.
ModelFile: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile
# Returns uint8 [image_size, image_size, 3], or raises UnreadablePhoto.
Preprocessor: TypeAlias = Callable[[], np.ndarray]

# Photos per forward pass.
BATCH_PHOTOS = 16
# Batches that threads preprocess during a forward pass.
PREFETCH_BATCHES = 2
PHOTOS_INPUT = "photos"
PROBABILITIES_OUTPUT, FEATURES_OUTPUT, FAMILIARITY_OUTPUT = "probabilities", "features", "familiarity"


class ForwardResult(NamedTuple):
    """The network's outputs for some photos."""

    # float32 [photos, classes], calibrated; each row adds up to 1.
    probabilities: np.ndarray
    # float32 [photos, features]: the input of the head, close for photos that look similar.
    features: np.ndarray
    # float32 [photos], 0 to 1: share of known photos that resemble the training photos less; None if
    # calibration had too few photos.
    familiarity: np.ndarray | None = None

    def iterate_photos(self) -> Iterator[tuple[np.ndarray, float | None]]:
        """Yield the probabilities [classes] and the familiarity of each photo."""
        for index, probabilities in enumerate(self.probabilities):
            yield probabilities, None if self.familiarity is None else float(self.familiarity[index])


class ModelSource(NamedTuple):
    """What a classifier was loaded from, so that another process can load it too."""

    data: bytes
    where: str | Path | None
    threads: int | None


@dataclass(frozen=True, eq=False)
class Classifier:
    """An exported classifier; threads may share one.

    `forward` runs the network alone: uint8 [photos, height, width, 3], one size per call →
    ForwardResult. `predict` and `stream` combine `preprocess`, `forward` and `to_prediction`.
    A server that decodes and batches separately calls these three itself.
    """

    classes: tuple[str, ...]
    # Pixels: the side of the network's square input.
    image_size: int
    # How photos become square.
    resize: Resize
    # The confidence below which the prediction is "not sure"; None if it never is.
    threshold: float | None
    # All metadata of the file: docs/export.md lists them.
    metadata: Mapping[str, Any]
    forward: Callable[[np.ndarray], ForwardResult]
    # Selects the candidate classes; None if calibration had too few photos.
    candidate_rule: CandidateRule | None = None
    # The familiarity below which a photo is "unknown"; None if none is.
    familiarity_threshold: float | None = None
    # Number of photos that familiarity was calibrated on; None if it is not known.
    familiarity_photos: int | None = None
    # The training photos; None if the file was exported without them.
    neighbour_index: NeighbourIndex | None = None
    # The model file; None for the network of a run.
    source: ModelSource | None = None

    @overload
    def predict(self, photos: Photo) -> Prediction: ...
    @overload
    def predict(self, photos: Iterable[Photo | NamedPhoto]) -> list[Prediction]: ...
    def predict(self, photos: Photo | Iterable[Photo | NamedPhoto]) -> Prediction | list[Prediction]:
        """Predict one photo, or each of many.

        Args:
            photos: a path, the bytes of a file, a file opened with 'rb', a Pillow image, or an array
                uint8: RGB [height, width, 3] or grey [height, width]; or an iterable of these. In an
                iterable a pair (name, photo) sets the prediction's `path`.
        Raises:
            UnreadablePhoto: the single photo cannot be used. Among many, such photos have no
                label, and their `status` gives the reason.
        """
        if photo_input.is_single(photos):
            result = self.forward(self.preprocess(photos)[None])  # pyright: ignore[reportArgumentType]
            ((probabilities, familiarity),) = result.iterate_photos()
            return self.to_prediction(probabilities, photo_input.get_name(photos), familiarity=familiarity)
        return list(self.stream(photos))  # pyright: ignore[reportArgumentType]

    def stream(self, photos: Iterable[Photo | NamedPhoto], batch_size: int = BATCH_PHOTOS) -> Iterator[Prediction]:
        """Yield a prediction for each photo, in order; decoding overlaps with the forward pass.

        Holds only a few batches in memory. The status of an unusable photo gives the reason.
        """
        if batch_size < 1:
            raise RecipeError(f"a batch size of {batch_size} is too small", advice="batch_size=16")
        named = (
            (photo_input.get_name(photo), partial(self.preprocess, photo)) for photo in photo_input.iterate(photos)
        )
        return predict_photos(self, named, batch_size)

    def preprocess(self, photo: Photo | NamedPhoto) -> np.ndarray:
        """Decode a photo for the network, with the function that training uses.

        Returns:
            uint8 [image_size, image_size, 3], upright, in sRGB.
        Raises:
            UnreadablePhoto: with the reason.
        """
        return photo_input.decode(photo, self.image_size, self.resize)

    def find_neighbours(self, photo: Photo | NamedPhoto, count: int = DEFAULT_COUNT) -> list[Neighbour]:
        """Find the training photos that a photo resembles most, the nearest first.

        Raises:
            ModelError: the file was exported without `--with-neighbours`.
            UnreadablePhoto: the photo cannot be used.
        """
        index = self.get_neighbour_index()
        return index.find(self.forward(np.stack([self.preprocess(photo)])).features[0], count)

    def get_neighbour_index(self) -> NeighbourIndex:
        """Return the training photos; ModelError if the classifier has none."""
        if self.neighbour_index is None:
            raise ModelError(
                "this model contains no training photos to compare with",
                advice="ikebana export RUN FILE --with-neighbours, or the run folder",
            )
        return self.neighbour_index

    def to_prediction(
        self, probabilities: np.ndarray, path: str = "", *, familiarity: float | None = None
    ) -> Prediction:
        """Turn the probabilities [classes] and the familiarity of one photo into a prediction."""
        return prediction.to_prediction(
            probabilities.tolist(),
            self.classes,
            self.threshold,
            path,
            candidate_rule=self.candidate_rule,
            familiarity=familiarity,
            familiarity_threshold=self.familiarity_threshold,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Describe how another process makes the same classifier: from the bytes of the model file.

        Raises:
            ModelError: it is the classifier of a run, which has no model file.
        """
        if self.source is None:
            raise ModelError(
                "the classifier of a run cannot be sent to another process",
                advice="export it: ikebana.export(run, 'flowers.onnx') returns one that can",
            )
        changed = {name: getattr(self, name) for name in COPIED_FIELDS}
        return _restore, (self.source, changed)

    def __repr__(self) -> str:
        scores = self.metadata.get("scores") or {}
        accuracy, owner = scores.get("accuracy"), " of the scored network" if scores.get("note") else ""
        score = f", accuracy {accuracy:.3f}{owner}" if isinstance(accuracy, float) else ""
        return f"Classifier({len(self.classes)} classes: {', '.join(self.classes[:8])}{score})"

    def _repr_html_(self) -> str:
        from ikebana.inference.views import render_classifier

        return render_classifier(self)


# What a caller may have replaced in a classifier, such as its threshold.
COPIED_FIELDS = ("threshold", "metadata", "candidate_rule", "familiarity_threshold", "familiarity_photos")


def _restore(source: ModelSource, changed: dict[str, Any]) -> Classifier:
    """Load a classifier in another process."""
    return replace(from_bytes(source.data, source.where, threads=source.threads), **changed)


def load(file: ModelFile, *, threads: int | None = None) -> Classifier:
    """Load the classifier in a file that `ikebana export` made.

    The file may be untrusted: it is checked before it runs, and can only compute.

    Args:
        file: its path, its bytes, or the file opened with 'rb'.
        threads: threads for the network; by default one per usable CPU.
    Raises:
        ModelError: the file is missing, damaged, foreign or too new.
    """
    if isinstance(file, str | os.PathLike):
        path = Path(file)
        return from_bytes(model_file.read(path), path, threads=threads)
    if isinstance(file, bytes | bytearray | memoryview):
        return from_bytes(bytes(file), threads=threads)
    if open_files.is_file(file):
        return from_bytes(_read_open_file(file), threads=threads)
    raise ModelError(
        f"an object of type {type(file).__name__} is not a model file", advice=model_file.ADVICE_MODEL_FILE
    )


def _read_open_file(file: BinaryFile) -> bytes:
    try:
        return open_files.read(file, model_file.MAX_FILE_BYTES)
    except UnreadablePhoto as error:
        raise ModelError(error.what, advice=error.advice) from None


def from_bytes(data: bytes, where: str | Path | None = None, *, threads: int | None = None) -> Classifier:
    """Load the classifier in the bytes of a model file.

    Raises:
        ModelError: the bytes are damaged, foreign or too new.
    """
    metadata = model_file.read_metadata(data, where)
    _raise_if_inconsistent(find_metadata_error(metadata), where)
    session, classes = _create_session(data, where, threads), tuple(metadata["classes"])
    try:
        index = neighbours.from_metadata(metadata.pop("neighbours", None), classes)
    except ValueError as error:
        index = _raise_if_inconsistent(str(error), where)
    of_familiarity = metadata.get("familiarity") or {}
    unknown_threshold = of_familiarity.get("threshold")
    outputs = [PROBABILITIES_OUTPUT, FEATURES_OUTPUT]
    outputs += [FAMILIARITY_OUTPUT] if unknown_threshold is not None else []
    _raise_if_inconsistent(_find_graph_error(session, len(classes), outputs), where)
    forward = partial(_run_session, session, len(classes), outputs, where)
    rule, size, resize = (
        candidate_sets.from_json(metadata.get("candidates")),
        metadata["image_size"],
        metadata["resize"],
    )
    return Classifier(
        classes,
        size,
        resize,
        metadata["threshold"],
        metadata,
        forward,
        candidate_rule=rule,
        familiarity_threshold=unknown_threshold,
        familiarity_photos=of_familiarity.get("photos"),
        neighbour_index=index,
        source=ModelSource(data, where, threads),
    )


def predict_photos(
    classifier: Classifier, photos: Iterable[tuple[str, Preprocessor]], batch: int = BATCH_PHOTOS
) -> Iterator[Prediction]:
    """Yield a prediction for each photo, in order; decoding overlaps with the forward pass.

    Args:
        photos: the path of each photo, and the function that decodes it.
    """
    preprocessed = preprocess_ahead(photos, PREFETCH_BATCHES * batch)
    while chunk := list(islice(preprocessed, batch)):
        images = [image for _, image in chunk if not isinstance(image, str)]
        rows = classifier.forward(np.stack(images)).iterate_photos() if images else iter(())
        for path, image in chunk:
            if isinstance(image, str):
                yield prediction.unusable_prediction(path, image)
                continue
            probabilities, familiarity = next(rows)
            yield classifier.to_prediction(probabilities, path, familiarity=familiarity)


def preprocess_ahead(photos: Iterable[tuple[str, Preprocessor]], ahead: int) -> Generator[tuple[str, np.ndarray | str]]:
    """Return each photo preprocessed, or the reason why it is unusable, in order.

    Threads preprocess at most `ahead` photos in advance.
    """
    return map_in_threads(_try_preprocess, photos, ahead)


def _try_preprocess(photo: tuple[str, Preprocessor]) -> tuple[str, np.ndarray | str]:
    path, preprocess = photo
    try:
        return path, preprocess()
    except UnreadablePhoto as error:
        return path, error.what


def _raise_if_inconsistent(problem: str | None, where: str | Path | None) -> None:
    if problem is not None:
        advice = "export it again with `ikebana export`"
        raise ModelError(f"this model file is inconsistent: {problem}", where=where, advice=advice)


def _find_graph_error(session: Any, classes: int, names: list[str]) -> str | None:
    """Describe what is invalid in the graph's inputs and outputs; None if they are valid."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [value.name for value in inputs] != [PHOTOS_INPUT]:
        return "the input is not a batch of photos"
    if inputs[0].type != "tensor(uint8)" or len(inputs[0].shape) != 4:
        return "the input is not a batch of photos"
    if [(value.name, value.type) for value in outputs] != [(name, "tensor(float)") for name in names]:
        return f"the outputs are not {', '.join(names)}"
    if list(outputs[0].shape[1:]) != [classes]:
        return f"it lists {classes} classes but outputs another number of probabilities"
    return None


def _create_session(data: bytes, where: str | Path | None, threads: int | None) -> Any:
    onnxruntime = runtime.import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Log fatal errors only: other errors raise exceptions.
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or count_threads()
    # Spinning threads would slow down the decoding threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base class
        raise ModelError(
            f"onnxruntime {onnxruntime.__version__} cannot run this model file: {get_first_line(error)}",
            where=where,
            advice="pip install --upgrade onnxruntime, or export it again with `ikebana export`",
        ) from None


def _run_session(
    session: Any, classes: int, outputs: list[str], where: str | Path | None, photos: np.ndarray
) -> ForwardResult:
    """Run a forward pass on uint8 [photos, height, width, 3]."""
    if not isinstance(photos, np.ndarray) or photos.dtype != np.uint8 or photos.ndim != 4 or photos.shape[3] != 3:
        shape = getattr(photos, "shape", None)
        given = type(photos).__name__ if shape is None else f"{photos.dtype} {list(shape)}"
        raise PhotosError(
            f"the network takes photos as uint8 [photos, height, width, 3], not {given}",
            advice="stack what .preprocess(photo) returns",
        )
    try:
        result = ForwardResult(*session.run(outputs, {PHOTOS_INPUT: photos}))
    except Exception as error:
        what = f"this model file cannot be run: {get_first_line(error)}"
        raise ModelError(what, where=where, advice="export it again with `ikebana export`") from None
    familiarity = np.zeros(len(photos)) if result.familiarity is None else result.familiarity
    has_shapes = result.probabilities.shape == (len(photos), classes) and familiarity.shape == (len(photos),)
    if not has_shapes or not np.isfinite(result.probabilities).all() or not np.isfinite(familiarity).all():
        raise ModelError(
            "this model file does not output probabilities", where=where, advice="export it again with `ikebana export`"
        )
    return result
