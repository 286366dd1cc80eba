"""Time a forward pass of a model file with and without its familiarity.

    .venv/bin/python bench/familiarity_time.py flowers.onnx

Processor seconds of one thread, in turns. Without means the part of the graph that computes the
probabilities.
"""

import argparse
import statistics
import time

import numpy as np
import onnx
import onnxruntime
from machine import format_header, format_spread
from onnx.utils import Extractor


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def measure_seconds(session: onnxruntime.InferenceSession, photos: np.ndarray) -> float:
    """Return the processor seconds of one forward pass."""
    started_at = time.process_time()
    session.run(None, {session.get_inputs()[0].name: photos})
    return time.process_time() - started_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--photos", type=int, default=16, help="photos per forward pass")
    parser.add_argument("--side", type=int, default=240, help="pixels; the graph resizes its input")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()

    complete = onnx.load(options.model)
    reduced = Extractor(complete).extract_model(["photos"], ["probabilities"])
    sessions = [open_session(model) for model in (reduced, complete)]
    shape = (options.photos, options.side, options.side, 3)
    photos = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for session in sessions:
        measure_seconds(session, photos)
    seconds = [[measure_seconds(session, photos) for session in sessions] for _ in range(options.rounds)]

    print(format_header("onnxruntime"))
    print(f"{len(reduced.graph.node)} and {len(complete.graph.node)} operations")
    for name, times in zip(("without", "with"), zip(*seconds, strict=True), strict=True):
        print(f"{name}: {1000 * statistics.median(times) / options.photos:.2f} ms per photo")
    ratios = [after / before for before, after in seconds]
    print(f"ratio: {format_spread(ratios, 3)}, {options.rounds} rounds of {options.photos} photos")


if __name__ == "__main__":
    main()
