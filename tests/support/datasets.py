"""Datasets without files, and hypothesis strategies for them."""

from pathlib import Path

import polars as pl
from hypothesis import strategies as st

from ikebana.data.dataset import SCHEMA, STATUS_USED, Dataset

SEEDS = st.integers(0, 2**31)
LABELS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=60)


def make_dataset(labels, **columns) -> Dataset:
    """Make a dataset of opened photos, all with different bytes unless `sha256` is given."""
    assert set(columns) <= set(SCHEMA), columns
    names = [f"{row:05}.jpg" for row in range(len(labels))]
    values = {"path": names, "label": labels, "status": [STATUS_USED] * len(names), "sha256": names, **columns}
    empty = {name: [None] * len(names) for name in SCHEMA if name not in values}
    photos = pl.DataFrame({**values, **empty}, schema_overrides=SCHEMA).select(list(SCHEMA))
    return Dataset("drawn", Path(), photos, tuple(sorted(set(labels))))
