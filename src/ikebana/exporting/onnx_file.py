"""Export of a run to one ONNX file, verified on the test photos.

This is the only module of exporting that needs torch.
"""

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
from torch import nn

from ikebana.data import decoding
from ikebana.errors import ModelError, get_first_line
from ikebana.evaluation.calibration import NO_THRESHOLD_MESSAGE
from ikebana.evaluation.error_guarantee import Guarantee
from ikebana.exporting import metadata, quantisation, run_photos
from ikebana.exporting.resize_graph import ONNX_IR_VERSION, ONNX_OPSET, build_resize_graph
from ikebana.exporting.run_photos import RunPhoto
from ikebana.exporting.verification import Reference
from ikebana.inference import model_file
from ikebana.inference.classifier import FAMILIARITY_OUTPUT, FEATURES_OUTPUT, PROBABILITIES_OUTPUT
from ikebana.learning import device, examples, fast
from ikebana.learning.models.assembly import load_trained_network
from ikebana.learning.models.networks import CalibratedNetwork
from ikebana.runs.run import Run
from ikebana.system import progress

# Name of the tensor that the resize graph passes to the network.
NETWORK_INPUT = "squares"
# Photos per tracing batch: with one photo, the exporter would make the batch size a constant.
TRACE_BATCH_SIZE = 2


def load_network(run: Run, temperature: float, model: nn.Module | None = None) -> CalibratedNetwork:
    """Load in float32 on the CPU: scores must not depend on the exporting device."""
    device.configure()
    return load_trained_network(
        run.recipe, len(run.classes), run.weights, temperature, model, familiarity=run.familiarity
    )


def decode_examples(photos: Sequence[RunPhoto], model_info: dict[str, Any]) -> np.ndarray:
    """Decode the first test photos as network input."""
    few, size, method = photos[:TRACE_BATCH_SIZE], model_info["image_size"], model_info["resize"]
    return np.stack([decoding.decode(run_photos.read_photo(photo), size, method).pixels for photo in few])


def make_reference(network: CalibratedNetwork) -> Reference:
    """Return torch's predictions from the network as trained, without BatchNorm folding."""

    @torch.inference_mode()
    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        probabilities, _, *others = network(torch.from_numpy(images).permute(0, 3, 1, 2).float())
        return probabilities.numpy(), others[0].numpy() if others else None

    return predict


def get_scored_classes(run: Run) -> dict[str, int] | None:
    """Return the scored class per test photo; None if another network is exported."""
    if run.recipe.refit_on_all:
        return None
    test = run.predictions.filter(pl.col("split") == "test")
    classes = test.select(f"p:{name}" for name in run.classes).to_numpy().argmax(1)
    return dict(zip(test["path"], classes.tolist(), strict=True))


def trace_to_onnx(network: CalibratedNetwork, image_size: int, images: np.ndarray) -> ModelProto:
    """Trace the network into an ONNX graph with BatchNorm folded.

    The graph maps float [N, 3, image_size, image_size] to probabilities, features and familiarity.

    Args:
        images: uint8 [photos, image_size, image_size, 3]; the folding is verified on them.
    Raises:
        ModelError: torch cannot export this network.
    """
    folded = fast.fold_batchnorm(network.network, examples.make_unlabelled(images, np.arange(len(images))))
    inputs = torch.zeros(TRACE_BATCH_SIZE, 3, image_size, image_size)
    outputs = [PROBABILITIES_OUTPUT, FEATURES_OUTPUT]
    outputs += [FAMILIARITY_OUTPUT] if network.familiarity is not None else []
    progress.message("exporting the network to ONNX")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                CalibratedNetwork(folded, network.temperature, network.familiarity).eval(),
                (inputs,),
                dynamo=True,
                opset_version=ONNX_OPSET,
                input_names=[NETWORK_INPUT],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
            assert program is not None
            graph = program.model_proto
    # The exporter wraps errors of any type from its passes.
    except Exception as error:
        raise ModelError(
            f"torch {torch.__version__} cannot export this network to ONNX: {get_first_line(error)}",
            advice="another network",
        ) from None
    return _strip_debug_info(graph)


def _strip_debug_info(graph: ModelProto) -> ModelProto:
    """Remove the exporter's debug info: it contains paths of this machine."""
    for node in graph.graph.node:
        node.doc_string = ""
        node.ClearField("metadata_props")
    for value in (*graph.graph.input, *graph.graph.output):
        value.ClearField("metadata_props")
    for tensor in graph.graph.initializer:
        tensor.doc_string = ""
        tensor.ClearField("metadata_props")
    for field in ("value_info", "metadata_props", "doc_string"):
        graph.graph.ClearField(field)
    graph.ClearField("metadata_props")
    graph.ir_version = ONNX_IR_VERSION
    return graph


def assemble_file(network: ModelProto, model_info: dict[str, Any]) -> bytes:
    """Build the whole file: resize graph, network, metadata and seal."""
    resize_graph = build_resize_graph(model_info["image_size"], model_info["resize"])
    prefixed = onnx.compose.add_prefix(network, "network/", rename_inputs=False, rename_outputs=False)
    model = onnx.compose.merge_models(resize_graph, prefixed, io_map=[(NETWORK_INPUT, NETWORK_INPUT)], name="ikebana")
    model.producer_name, model.producer_version = "ikebana", model_info["versions"]["ikebana"]
    _import_each_domain_once(model)
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.helper.set_model_props(model, metadata.to_entries(model_info))
    if model.ByteSize() > model_file.MAX_FILE_BYTES - model_file.SEAL_BYTES:
        raise ModelError("this network is too large for one ONNX file", advice="another network")
    return model_file.add_seal(model.SerializeToString(deterministic=True))


def _import_each_domain_once(model: ModelProto) -> None:
    """Import each operator set once: `merge_models` adds up the imports of both graphs."""
    versions = {opset.domain: opset.version for opset in model.opset_import}
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())


def summarise(output_path: Path, data: bytes, model_info: dict[str, Any]) -> str:
    """Describe the size, the agreement with the run, and the int8 figures."""
    agreement = model_info["parity"]
    precision = " (in float32)" if "int8" in model_info else ""
    lines = [
        f"{output_path.name}: {len(data) / 1e6:.1f} MB",
        f"verified on {agreement['photos']} test photos{precision}: same class for {agreement['top1_agreement']:.2%}, "
        f"probabilities within {agreement['largest_difference']:.1g}",
    ]
    if "int8" in model_info:
        lines.append(quantisation.summarise(model_info["int8"]))
    if model_info["threshold"] is None:
        lines.append(NO_THRESHOLD_MESSAGE)
    if model_info["guarantee"] is not None:
        guarantee = Guarantee(**model_info["guarantee"])
        lines.append(f'"not sure" below confidence {model_info["threshold"] or 0:.3g}: {guarantee.describe()}')
    return "\n".join(lines)
