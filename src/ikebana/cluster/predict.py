"""`ikebana predict --backend ray`: the shards of a prediction, computed on a Ray cluster."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ikebana.cluster.connection import connect
from ikebana.commands import predict_shards
from ikebana.commands.predict import Model, open_model
from ikebana.commands.predict_shards import ShardOptions
from ikebana.errors import ModelError
from ikebana.inference.classifier import Classifier
from ikebana.inference.shard_plan import ShardPlan
from ikebana.runs.run import Run


def predict_to_shards(
    model: Model, photos: Sequence[str], path_lines: Iterator[str] | None, out: str | Path, options: ShardOptions
) -> None:
    """Predict photos to a folder of Parquet files, as `commands.predict_shards.predict_to_shards` does.

    Raises:
        MachineError: there is no cluster, or a node differs from this machine.
        ModelError: the model is a run, which cannot be sent to other machines.
    """
    opened_model = open_model(model)
    if isinstance(opened_model, Run):
        raise ModelError(
            "a run cannot be sent to other machines",
            where=opened_model.folder,
            advice=f"ikebana export {opened_model.folder} FILE.onnx, and predict with that file",
        )
    # First, so that no hour of listing photos is spent without a cluster.
    with connect():
        predict_shards.predict_to_shards(opened_model, photos, path_lines, out, options, compute=_compute)


def _compute(classifier: Classifier, plan: ShardPlan, numbers: Sequence[int], advance: Callable[[int], object]) -> None:
    from ikebana.cluster.shard_tasks import compute_shards

    compute_shards(classifier, plan, numbers, advance)
