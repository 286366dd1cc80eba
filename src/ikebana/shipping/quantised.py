"""The network in whole numbers of 8 bits: a quarter of the size, and faster where the processor has instructions for it.

Which numbers the layers' outputs take is found out on training photos. Rounding moves probabilities, so such a file is not
held against torch's probabilities but against accuracy: on validation photos for choices, beside the file in float32.

source  onnxruntime's quantisation: docs/performance/model-optimizations/quantization.md in its repository
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

from ikebana import progress
from ikebana.errors import ModelError
from ikebana.shipping import again, parity, runtime
from ikebana.shipping.again import Known
from ikebana.shipping.classifier import BATCH, Classifier

MARGIN = 0.01  # of validation accuracy that may be lost
ENOUGH = 100  # photos: of fewer, a single one is more than the margin
SHOWN = 128  # training photos that the layers' ranges are found by
SPARED = 10  # one of so many convolutions, from the first on, stays in float32
ROUNDS = 5  # of the speed's measurement


def of(
    network: ModelProto,
    exact: Classifier,
    parts: dict[str, list[Known]],
    opened: Callable[[ModelProto], Classifier],
) -> tuple[ModelProto, dict[str, Any]]:
    """The network quantised, and what that cost.

    exact   the classifier in float32
    opened  makes a classifier of a network
    raises  ModelError if validation accuracy falls by more than 0.01, or there are no validation photos to tell by
    """
    if not parts["validation"]:
        raise ModelError("there are no validation photos to try int8 on", advice="ikebana export without --int8")
    small = _quantised(network, exact, parts["train"])
    rounded = opened(small)
    judges = judging(parts["validation"])
    before, after, same = _accuracies(exact, rounded, judges)
    if before - after > MARGIN:
        lost = round((before - after) * len(judges))
        few = f" (one photo is more than that: it takes {ENOUGH} to tell)" if len(judges) < ENOUGH else ""
        raise ModelError(
            f"in int8 the accuracy on {len(judges)} validation photos falls from {before:.3f} to {after:.3f}, by {lost} "
            f"photo{'s' * (lost != 1)} and more than {MARGIN}{few}",
            advice="ikebana export without --int8" + (", or more photos" if few else ", or another network"),
        )
    progress.say(_speed(exact, rounded, parts["validation"][:BATCH]))
    figures = {
        "judged_by": "accuracy on validation photos, beside the same network in float32",
        "validation_photos": len(judges),
        "accuracy_in_float32": before,
        "accuracy_in_int8": after,
        "margin": MARGIN,
        "top1_agreement": same,
        "network_bytes_in_float32": network.ByteSize(),
        "network_bytes_in_int8": small.ByteSize(),
    }
    return small, figures


def judging(validation: Sequence[Known]) -> list[Known]:
    """The photos that the decision is made by: those for choices, so that the others serve confidence alone; all, if these
    are too few to see the margin."""
    found = [each for each in validation if each.for_choices]
    return found if len(found) >= ENOUGH else list(validation)


def summary(figures: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"int8: {figures['network_bytes_in_float32'] / 1e6:.1f} MB became {figures['network_bytes_in_int8'] / 1e6:.1f}; "
        f"accuracy on {figures['validation_photos']} validation photos {figures['accuracy_in_float32']:.3f} in float32 and "
        f"{figures['accuracy_in_int8']:.3f} in int8, the same class in {figures['top1_agreement']:.1%}"
    )


class _Calibration:
    """Training photos, as the network's input, for onnxruntime."""

    def __init__(self, exact: Classifier, photos: Sequence[Known], name: str):
        self.batches: Iterator[np.ndarray] = (each.squares for each in parity.shown(exact, photos, "calibrate"))
        self.name = name

    def get_next(self) -> dict[str, np.ndarray] | None:
        squares = next(self.batches, None)
        return None if squares is None else {self.name: squares.transpose(0, 3, 1, 2).astype(np.float32)}


def _quantised(network: ModelProto, exact: Classifier, train: Sequence[Known]) -> ModelProto:
    """Convolutions and matrix products in whole numbers, each channel of the weights with a scale of its own."""
    import onnx

    runtime.onnxruntime()
    from onnxruntime import quantization

    calibration = _Calibration(exact, again.spread(train, SHOWN), network.graph.input[0].name)
    # The mean of the batches' ranges: one odd photo does not coarsen all others.
    options = {"CalibMovingAverage": True}
    with tempfile.TemporaryDirectory() as folder, _quietly():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(network, source)
        quantization.quantize_static(
            source,
            target,
            calibration,  # pyright: ignore[reportArgumentType]  (it has the method that counts)
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "MaxPool"],
            nodes_to_exclude=_first_convolutions(network),
            extra_options=options,
        )
        return _standard(onnx.load(target))


def _first_convolutions(network: ModelProto) -> list[str]:
    """The first tenth of a network's convolutions stay in float32: they are a small part of the work and the most easily hurt.

    On the flowers, EfficientNet-Lite0 lost 0.030 of its accuracy with them in int8 and 0.002 without.
    """
    nodes = [node for node in network.graph.node if node.op_type == "Conv"]
    weights: dict[str, list[str]] = {}  # of each network of an ensemble; a weight may serve twice, for the mirror image
    for node in nodes:
        member = re.match(r".*?members\.\d+\.|", node.input[1])
        names = weights.setdefault(member[0] if member else "", [])
        if node.input[1] not in names:
            names.append(node.input[1])
    first = {name for names in weights.values() for name in names[: len(names) // SPARED]}
    return [node.name for node in nodes if node.input[1] in first]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tool's advice, which is meant for whoever calls it by hand."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _standard(network: ModelProto) -> ModelProto:
    """Without mention of operators that it does not use, and the tool's notes."""
    used = {node.domain for node in network.graph.node}
    kept = [each for each in network.opset_import if each.domain in used]
    del network.opset_import[:]
    network.opset_import.extend(kept)
    network.ClearField("metadata_props")
    network.graph.ClearField("value_info")
    return network


def _accuracies(exact: Classifier, rounded: Classifier, photos: Sequence[Known]) -> tuple[float, float, float]:
    """The share that each names rightly, and that both name alike."""
    before = after = same = 0
    for seen in parity.shown(exact, photos, "try int8"):
        labels = np.array([each.label for each in seen.photos])
        first, second = seen.said.argmax(1), rounded.look(seen.squares).probabilities.argmax(1)
        before += int((first == labels).sum())
        after += int((second == labels).sum())
        same += int((first == second).sum())
    return before / len(photos), after / len(photos), same / len(photos)


def _speed(exact: Classifier, rounded: Classifier, photos: Sequence[Known]) -> str:
    """How fast each is here. Not for the file, which would then depend on the machine's mood."""
    squares = np.stack([exact.opened(again.read(each)) for each in photos])
    times: dict[Classifier, list[float]] = {exact: [], rounded: []}
    for _ in range(ROUNDS):
        for each, taken in times.items():
            begun = time.perf_counter()
            each.look(squares)
            taken.append(time.perf_counter() - begun)
    first, second = (len(squares) / min(taken) for taken in times.values())
    return f"int8 is {second / first:.2f} times as fast here: {second:,.0f} photos a second, float32 {first:,.0f}"
