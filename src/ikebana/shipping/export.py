"""Run → one ONNX file, tried on the test photos before it is written. The one room of shipping that needs torch."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import polars as pl
import torch
from onnx import ModelProto

from ikebana import progress
from ikebana.errors import ModelError
from ikebana.learning import checkpoint, device, inference, lean, networks
from ikebana.learning.networks import Shipped
from ikebana.photos import pixels
from ikebana.places import to_write, written
from ikebana.run import Run, open_run
from ikebana.shipping import again, classifier, metadata, model_file, parity, quantised, resize
from ikebana.shipping.again import Known
from ikebana.shipping.classifier import FEATURES, PROBABILITIES, Classifier
from ikebana.shipping.parity import Reference
from ikebana.trust.calibration import NO_THRESHOLD

SQUARES = "squares"  # what the first part of the graph hands to the network
TRACED = 2  # photos that the network is traced with: with one, the exporter would take the batch for fixed


def export(
    run: Run | str | Path, file: str | Path, *, int8: bool = False, photos: str | Path | None = None
) -> Classifier:
    """One ONNX file that says what the run's network says, from the photo's bytes on. It is tried on all test photos first.

    int8    in whole numbers of 8 bits: a quarter of the size, often faster; refused if that costs accuracy
    photos  where the run's photos are, if they have moved
    raises  ModelError if the file would not say what the run says: then there is no file. RunError if the run has not
            finished; PhotosError if its photos are gone; MachineError if the file cannot be written
    """
    made, place = run if isinstance(run, Run) else open_run(run), to_write(file)
    if place.is_dir() or place.suffix != ".onnx":
        raise ModelError("a model file's name ends in .onnx", where=file, advice=f"{place.name or 'flowers'}.onnx")
    about = metadata.about(made)
    parts = again.find(made, photos)
    network = _network(made, about["temperature"])
    graph = traced(network, made.recipe.side, _few(parts["test"], about))
    found = classifier.from_bytes(_file(graph, about))
    agreement = parity.checked(found, _reference(network), parts["test"], _scored(made))
    about["parity"] = {"of": "float32", **agreement, "whole_photos": parity.plain(found, parts["test"])}
    if int8:
        graph, about["int8"] = quantised.of(graph, found, parts, lambda new: classifier.from_bytes(_file(new, about)))
    data = _file(graph, about)
    shipped = classifier.from_bytes(data, place)  # as it will be read
    with written(place) as beside:
        beside.write_bytes(data)
    progress.say(_summary(place, data, about))
    return shipped


def _network(run: Run, temperature: float) -> Shipped:
    """What the run ships, in float32 on the processor: scores must not depend on the device of this export."""
    device.prepare()
    network = networks.build(run.recipe, len(run.classes))
    checkpoint.load_weights(run.weights, network)
    return Shipped(network, temperature).eval()


def _few(photos: Sequence[Known], about: dict[str, Any]) -> np.ndarray:
    """Some test photos as the network sees them."""
    return np.stack([pixels.decode(again.read(each), about["side"], about["fit"]).pixels for each in photos[:TRACED]])


def _reference(network: Shipped) -> Reference:
    """Torch's own word, from the network as it was trained: BatchNorm is not folded here."""

    @torch.inference_mode()
    def probabilities(squares: np.ndarray) -> np.ndarray:
        found, _ = network(torch.from_numpy(squares).permute(0, 3, 1, 2).float())
        return found.numpy()

    return probabilities


def _scored(run: Run) -> dict[str, int] | None:
    """What each test photo was scored as; None where another network ships than was scored."""
    if run.recipe.all:
        return None
    test = run.predictions.filter(pl.col("split") == "test")
    best = test.select(f"p:{name}" for name in run.classes).to_numpy().argmax(1)
    return dict(zip(test["path"], best.tolist(), strict=True))


def traced(network: Shipped, side: int, few: np.ndarray) -> ModelProto:
    """The network as an ONNX graph: squares float [N, 3, side, side] → probabilities, features. BatchNorm is folded.

    few     photos uint8 [photos, side, side, 3], by which the folding is tried
    raises  ModelError if torch cannot write it
    """
    folded = lean.folded(network.network, inference.unlabelled(few, np.arange(len(few))))
    squares = torch.zeros(TRACED, 3, side, side)
    progress.say("write the network as ONNX")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Shipped(folded, network.temperature).eval(),
                (squares,),
                dynamo=True,
                opset_version=resize.OPSET,
                input_names=[SQUARES],
                output_names=[PROBABILITIES, FEATURES],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
            assert program is not None
            graph = program.model_proto
    except Exception as error:  # the exporter wraps whatever its passes meet
        raise ModelError(
            f"torch {torch.__version__} cannot write this network as ONNX: {str(error).strip().splitlines()[0]}",
            advice="another network",
        ) from None
    return _bare(graph)


def _bare(graph: ModelProto) -> ModelProto:
    """Without the exporter's notes: they hold the paths of this machine."""
    for node in graph.graph.node:
        node.doc_string = ""
        node.ClearField("metadata_props")
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
    for tensor in graph.graph.initializer:
        tensor.doc_string = ""
        tensor.ClearField("metadata_props")
    for notes in ("value_info", "metadata_props", "doc_string"):
        graph.graph.ClearField(notes)
    graph.ClearField("metadata_props")
    graph.ir_version = resize.IR_VERSION
    return graph


def _file(network: ModelProto, about: dict[str, Any]) -> bytes:
    """The whole file: photos of any size → squares → network, what it says about itself, and the seal.

    raises  ModelError if it would be larger than such a file can be
    """
    front = resize.front(about["side"], about["fit"])
    behind = onnx.compose.add_prefix(network, "network/", rename_inputs=False, rename_outputs=False)
    whole = onnx.compose.merge_models(front, behind, io_map=[(SQUARES, SQUARES)], name="ikebana")
    whole.producer_name, whole.producer_version = "ikebana", about["versions"]["ikebana"]
    for output in whole.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(whole, metadata.as_entries(about))
    if whole.ByteSize() > model_file.LARGEST - model_file.SEAL_LENGTH:
        raise ModelError("this network is too large for one ONNX file", advice="another network")
    return model_file.sealed(whole.SerializeToString(deterministic=True))


def _summary(place: Path, data: bytes, about: dict[str, Any]) -> str:
    """What was found out, for people."""
    found = about["parity"]
    who = "it says" if "int8" not in about else "in float32 it said"
    lines = [
        f"{place.name}: {len(data) / 1e6:.1f} MB. On {found['photos']} test photos, from their bytes, {who} what the run says: "
        f"the same class in {found['top1_agreement']:.2%}, no probability further off than {found['largest_difference']:.1g}"
    ]
    if "int8" in about:
        lines.append(quantised.summary(about["int8"]))
    if about["threshold"] is None:
        lines.append(NO_THRESHOLD)
    return "\n".join(lines)
