"""Computing a shard of a prediction, and checking the file of one."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from ikebana.data import listing
from ikebana.data.listing import ListedPhoto
from ikebana.data.read_ahead import read_ahead
from ikebana.errors import MachineError, get_first_line
from ikebana.evaluation.drift import FamiliarityCounts
from ikebana.inference import classifier, table_formats
from ikebana.inference.classifier import Classifier
from ikebana.inference.prediction import Prediction
from ikebana.inference.shard_plan import ShardPlan
from ikebana.inference.shard_reading import ShardReader
from ikebana.system.files import atomic_write

if TYPE_CHECKING:
    import polars as pl

# The status, in counts, of all photos that cannot be used.
UNUSABLE = "unusable"
# Unusable photos that a summary lists.
MAX_NAMED_PHOTOS = 20


def compute_shard(
    model_classifier: Classifier,
    plan: ShardPlan,
    number: int,
    advance: Callable[[int], object] | None = None,
    *,
    unusable: Mapping[int, str] = MappingProxyType({}),
) -> Path | str:
    """Predict the photos of a shard and write its file; a file that exists stays.

    Args:
        model_classifier: of the plan's model, which the caller has checked by `plan.require`.
        advance: called with the number of photos that were predicted since the last call.
        unusable: the status of photos that must not be opened, by their position in the shard.
    Raises:
        MachineError: the disk is full, the folder cannot be written, or the photos of an archive
            are on another machine.
        IncompleteShard: photos cannot be read now, and the plan does not accept that.
        StoreError: the store denies access to all photos.
    """
    import polars as pl

    file = plan.get_path(number)
    if plan.has(number):
        return plan.get_place(number)
    _require_archives(plan)
    photos = plan.read_photos(number)
    for position, status in unusable.items():
        photos[position] = photos[position]._replace(status=status)
    rows, reader = [], ShardReader(number, accepts_unreadable=plan.accepts_unreadable)
    for prediction in predict_listed(model_classifier, photos, reader.read):
        rows.append(table_formats.to_row(prediction, plan.header.classes))
        if advance is not None:
            advance(1)
    reader.require_all()
    schema = table_formats.get_parquet_schema(plan.header.classes)
    try:
        with atomic_write(file, create_parent=False) as partial_file:
            pl.DataFrame(rows, schema=schema, orient="row").write_parquet(partial_file)
            _flush(partial_file)
    except MachineError:
        # Another process may have written the same shard, and cleaned up after this one.
        if not plan.has(number):
            raise
    plan.publish(file.name)
    return plan.get_place(number)


def predict_listed(
    model_classifier: Classifier,
    photos: Iterable[ListedPhoto],
    read: Callable[[ListedPhoto], bytes] = listing.read_photo,
) -> Iterator[Prediction]:
    """Yield a prediction for each photo of a plan, in order."""
    contents = read_ahead(photos, read, listing.is_in_store)
    named = ((photo.path, partial(_preprocess, model_classifier, get_bytes)) for photo, get_bytes in contents)
    return classifier.predict_photos(model_classifier, named)


def _preprocess(model_classifier: Classifier, read: Callable[[], bytes]) -> np.ndarray:
    return model_classifier.preprocess(read())


def _flush(file: Path) -> None:
    """Wait until a file is on the disk.

    After a power failure, the name of a shard must not stand for half a file.
    """
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _require_archives(plan: ShardPlan) -> None:
    """Raise MachineError if this machine lacks the unpacked photos of an archive."""
    for folder in plan.unpacked_folders:
        if not os.path.isdir(folder):
            raise MachineError(
                "the photos of an archive were unpacked here, and this folder does not exist",
                where=folder,
                advice="IKEBANA_CACHE=DIR on a disk that all machines share, or unpack the archive; then --replan",
            )


@dataclass
class ShardSummary:
    """The outcome of the photos of one or several shards."""

    # Photos per status: "ok", "not sure", "unknown", "unusable".
    statuses: Counter[str] = field(default_factory=Counter)
    # Unusable photos per reason.
    reasons: Counter[str] = field(default_factory=Counter)
    # The first unusable photos, with the reason.
    examples: list[str] = field(default_factory=list)
    familiarity: FamiliarityCounts = field(default_factory=FamiliarityCounts)

    def add(self, other: "ShardSummary") -> None:
        """Add the photos of other shards, which come later."""
        self.statuses.update(other.statuses)
        self.reasons.update(other.reasons)
        self.examples = [*self.examples, *other.examples][:MAX_NAMED_PHOTOS]
        self.familiarity.counts += other.familiarity.counts


def check_shard(plan: ShardPlan, number: int) -> ShardSummary | str:
    """Check that a shard has a row for each of its photos, in order.

    Returns:
        What the shard contains, or what is wrong with it.
    """
    import polars as pl

    try:
        file = pl.scan_parquet(plan.get_path(number), glob=False)
        if file.collect_schema() != pl.Schema(table_formats.get_parquet_schema(plan.header.classes)):
            return "its columns are not those of a prediction table"
        table = file.select("path", "status", "confidence", "familiarity").collect()
    # polars raises errors of many kinds.
    except Exception as error:
        return f"it cannot be read: {get_first_line(error)}"
    if not table["path"].equals(plan.read_paths(number)):
        return "its rows are not the photos of the plan"
    return _summarise(table)


def _summarise(table: "pl.DataFrame") -> ShardSummary:
    import polars as pl

    is_usable = pl.col("confidence").is_not_null()
    usable, unusable = table.filter(is_usable), table.filter(~is_usable)
    statuses = Counter(usable["status"].to_list())
    statuses[UNUSABLE] += unusable.height
    examples = [f"{path or 'a photo without a path'}: {status}" for path, status, *_ in unusable.iter_rows()]
    familiarity = FamiliarityCounts(usable["familiarity"].to_list())
    return ShardSummary(statuses, Counter(unusable["status"].to_list()), examples[:MAX_NAMED_PHOTOS], familiarity)
