"""Quantisation to 8 bits: a quarter of the size, often faster.

Training photos give the value range of each layer. Rounding changes probabilities, so the file is
compared by accuracy instead: on the model-selection half of the validation set, beside the float32
file.

Source: onnxruntime's quantisation, docs/performance/model-optimizations/quantization.md.
"""

import logging
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from ikebana.errors import ModelError
from ikebana.exporting import run_photos, verification
from ikebana.exporting.run_photos import RunPhoto
from ikebana.inference import runtime
from ikebana.inference.classifier import BATCH_PHOTOS, Classifier
from ikebana.system import progress

# Validation accuracy that quantisation may cost.
MAX_ACCURACY_LOSS = 0.01
# With fewer photos, one photo is more than the margin.
MIN_JUDGING_PHOTOS = 100
# Training photos that give the value ranges of the layers.
CALIBRATION_PHOTOS = 128
# The first 1 / 10 of the convolutions stays in float32.
FLOAT32_CONVOLUTION_DIVISOR = 10
SPEED_TEST_ROUNDS = 5


def quantise(
    network: ModelProto,
    float32_classifier: Classifier,
    splits: dict[str, list[RunPhoto]],
    build_classifier: Callable[[ModelProto], Classifier],
) -> tuple[ModelProto, dict[str, Any]]:
    """Quantise the network and measure the loss of accuracy.

    Args:
        build_classifier: makes a classifier from a network.
    Returns:
        The quantised network, and the figures for the file's metadata.
    Raises:
        ModelError: validation accuracy falls by more than 0.01, or there are no validation photos.
    """
    if not splits["validation"]:
        raise ModelError(
            "int8 cannot be verified: there are no validation photos", advice="ikebana export without --int8"
        )
    quantised_network = _quantise(network, float32_classifier, splits["train"])
    int8_classifier = build_classifier(quantised_network)
    photos = select_judging_photos(splits["validation"])
    before, after, agreement = _compare_accuracy(float32_classifier, int8_classifier, photos)
    if before - after > MAX_ACCURACY_LOSS:
        lost = round((before - after) * len(photos))
        too_few = (
            f" (a single photo exceeds the margin: at least {MIN_JUDGING_PHOTOS} photos are needed)"
            if len(photos) < MIN_JUDGING_PHOTOS
            else ""
        )
        raise ModelError(
            f"with int8, accuracy on {len(photos)} validation photos falls from {before:.3f} to {after:.3f}, by {lost} "
            f"photo{'s' * (lost != 1)} and by more than {MAX_ACCURACY_LOSS}{too_few}",
            advice="ikebana export without --int8" + (", or more photos" if too_few else ", or another network"),
        )
    progress.message(_compare_speed(float32_classifier, int8_classifier, splits["validation"][:BATCH_PHOTOS]))
    figures = {
        "judged_by": "accuracy on validation photos, compared with the same network in float32",
        "validation_photos": len(photos),
        "accuracy_in_float32": before,
        "accuracy_in_int8": after,
        "margin": MAX_ACCURACY_LOSS,
        "top1_agreement": agreement,
        "network_bytes_in_float32": network.ByteSize(),
        "network_bytes_in_int8": quantised_network.ByteSize(),
    }
    return quantised_network, figures


def select_judging_photos(validation: Sequence[RunPhoto]) -> list[RunPhoto]:
    """Return the model-selection half of the validation photos.

    The other half stays reserved for calibration. If the half is too small to resolve the margin,
    all validation photos are returned.
    """
    selection = [photo for photo in validation if photo.for_selection]
    return selection if len(selection) >= MIN_JUDGING_PHOTOS else list(validation)


def summarise(figures: dict[str, Any]) -> str:
    """Describe the sizes and accuracies in one sentence."""
    return (
        f"int8: {figures['network_bytes_in_int8'] / 1e6:.1f} MB instead of {figures['network_bytes_in_float32'] / 1e6:.1f} MB; "
        f"accuracy on {figures['validation_photos']} validation photos {figures['accuracy_in_int8']:.3f} instead of "
        f"{figures['accuracy_in_float32']:.3f}; same class for {figures['top1_agreement']:.1%}"
    )


class _CalibrationReader:
    """A reader that gives onnxruntime training photos as network input."""

    def __init__(self, classifier: Classifier, photos: Sequence[RunPhoto], input_name: str):
        batches = verification.predict_batches(classifier, photos, "calibrate")
        self.batches: Iterator[np.ndarray] = (batch.images for batch in batches)
        self.input_name = input_name

    def get_next(self) -> dict[str, np.ndarray] | None:
        images = next(self.batches, None)
        return None if images is None else {self.input_name: images.transpose(0, 3, 1, 2).astype(np.float32)}


def _quantise(network: ModelProto, float32_classifier: Classifier, train: Sequence[RunPhoto]) -> ModelProto:
    """Quantise convolutions and matrix products, with one scale per weight channel."""
    import onnx

    runtime.import_onnxruntime()
    from onnxruntime import quantization

    photos = run_photos.sample_evenly(train, CALIBRATION_PHOTOS)
    calibration = _CalibrationReader(float32_classifier, photos, network.graph.input[0].name)
    # The mean of the batches' ranges: one outlier photo does not coarsen all others.
    options = {"CalibMovingAverage": True}
    with tempfile.TemporaryDirectory() as folder, _silence_warnings():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(network, source)
        quantization.quantize_static(
            source,
            target,
            calibration,  # pyright: ignore[reportArgumentType]  (get_next is all that it needs)
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool"],
            nodes_to_exclude=[*_list_first_convolutions(network), *_list_familiarity_nodes(network)],
            extra_options=options,
        )
        return _strip_unused(onnx.load(target))


def _list_first_convolutions(network: ModelProto) -> list[str]:
    """Name the first tenth of a network's convolutions, which stays in float32.

    They are cheap and the most sensitive to rounding. On the flowers data, EfficientNet-Lite0 lost
    0.030 accuracy with them in int8 and 0.002 without.
    """
    nodes = [node for node in network.graph.node if node.op_type == "Conv"]
    # Per network of an ensemble. With flip TTA a weight is used twice.
    weights: dict[str, list[str]] = {}
    for node in nodes:
        member = re.match(r".*?members\.\d+\.|", node.input[1])
        names = weights.setdefault(member[0] if member else "", [])
        if node.input[1] not in names:
            names.append(node.input[1])
    first = {name for names in weights.values() for name in names[: len(names) // FLOAT32_CONVOLUTION_DIVISOR]}
    return [node.name for node in nodes if node.input[1] in first]


def _list_familiarity_nodes(network: ModelProto) -> list[str]:
    """Name the nodes that compute familiarity, which stays in float32.

    It compares small differences of similarities. Its matrices are a tenth of the file.
    """
    derived = {value.name for value in network.graph.initializer if value.name.startswith("familiarity.")}
    nodes = []
    # A graph lists its nodes in the order in which they can be computed.
    for node in network.graph.node:
        if derived.intersection(node.input):
            derived.update(node.output)
            nodes.append(node.name)
    return nodes


@contextmanager
def _silence_warnings() -> Iterator[None]:
    """Suppress onnxruntime's advice, which is meant for people who call it directly."""
    previous_level, handler = logging.root.manager.disable, logging.NullHandler()
    logging.disable(max(previous_level, logging.WARNING))
    # `logging.warning` would give the root logger a handler of its own if it had none.
    logging.root.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeHandler(handler)
        logging.disable(previous_level)


def _strip_unused(network: ModelProto) -> ModelProto:
    """Remove unused operator sets and the tool's debug info."""
    used_domains = {node.domain for node in network.graph.node}
    used_imports = [opset for opset in network.opset_import if opset.domain in used_domains]
    del network.opset_import[:]
    network.opset_import.extend(used_imports)
    network.ClearField("metadata_props")
    network.graph.ClearField("value_info")
    return network


def _compare_accuracy(
    float32_classifier: Classifier, int8_classifier: Classifier, photos: Sequence[RunPhoto]
) -> tuple[float, float, float]:
    """Return float32 accuracy, int8 accuracy, and the share of equal predictions."""
    float32_correct = int8_correct = equal = 0
    for batch in verification.predict_batches(float32_classifier, photos, "compare int8"):
        labels = np.array([photo.label for photo in batch.photos])
        float32_classes = batch.probabilities.argmax(1)
        int8_classes = int8_classifier.forward(batch.images).probabilities.argmax(1)
        float32_correct += int((float32_classes == labels).sum())
        int8_correct += int((int8_classes == labels).sum())
        equal += int((float32_classes == int8_classes).sum())
    return float32_correct / len(photos), int8_correct / len(photos), equal / len(photos)


def _compare_speed(float32_classifier: Classifier, int8_classifier: Classifier, photos: Sequence[RunPhoto]) -> str:
    """Measure both on this machine; the file does not depend on the result."""
    images = np.stack([float32_classifier.preprocess(run_photos.read_photo(photo)) for photo in photos])
    times: dict[Classifier, list[float]] = {float32_classifier: [], int8_classifier: []}
    for _ in range(SPEED_TEST_ROUNDS):
        for classifier, seconds in times.items():
            started = time.perf_counter()
            classifier.forward(images)
            seconds.append(time.perf_counter() - started)
    float32_speed, int8_speed = (len(images) / min(seconds) for seconds in times.values())
    return (
        f"int8 is {int8_speed / float32_speed:.2f} times as fast on this machine: {int8_speed:,.0f} photos/s instead of "
        f"{float32_speed:,.0f}"
    )
