"""Flags of `predict` that write shards to a folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ikebana.cli.app import SHARDS, Integer
from ikebana.errors import UsageError

if TYPE_CHECKING:
    from ikebana.commands.predict_shards import ShardOptions


@dataclass(frozen=True)
class ShardOptionFlags:
    """Flags that need `--out DIR/`."""

    shard: Annotated[
        str | None,
        Parameter(group=SHARDS, help="K/N: compute the K-th of N shares only, on one of several machines"),
    ] = None
    shard_photos: Annotated[Integer | None, Parameter(group=SHARDS, help="photos per shard; 1,000 by default")] = None
    replan: Annotated[
        bool,
        Parameter(negative=(), group=SHARDS, show_default=False, help="list the photos of the folder again"),
    ] = False
    accept_unreadable: Annotated[
        bool,
        Parameter(
            negative=(),
            group=SHARDS,
            show_default=False,
            help="write a row with the reason for photos whose store does not answer or denies access",
        ),
    ] = False
    join: Annotated[
        Path | None, Parameter(group=SHARDS, help="a table that gets the rows of all shards: .csv, .jsonl or .parquet")
    ] = None

    backend: Annotated[
        Literal["ray"] | None,
        Parameter(group=SHARDS, help="compute the shards on the Ray cluster that this machine belongs to"),
    ] = None

    def to_options(self) -> "ShardOptions":
        """Parse and check the flags; UsageError if they contradict each other."""
        from ikebana.commands.predict_shards import ShardOptions, parse_share

        share = None if self.shard is None else parse_share(self.shard)
        if share is not None and self.backend is not None:
            raise UsageError(
                "--shard and --backend exclude each other: a cluster divides the shards itself",
                advice=f"--backend {self.backend} without --shard",
            )
        return ShardOptions(
            share, self.shard_photos, self.replan, join=self.join, accept_unreadable=self.accept_unreadable
        )

    def import_predictor(self) -> Callable[..., None]:
        """Import the function that predicts photos to shards."""
        if self.backend == "ray":
            from ikebana.cluster.predict import predict_to_shards
        else:
            from ikebana.commands.predict_shards import predict_to_shards
        return predict_to_shards

    def refuse_for_table(self, out: str | None) -> None:
        """Raise UsageError if a flag was given without a folder."""
        from ikebana.inference.table_formats import TABLE_SUFFIXES

        folder = "predictions" if out is None or out.lower().endswith(TABLE_SUFFIXES) else out
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                raise UsageError(
                    f"--{field.name.replace('_', '-')} needs a folder for shards", advice=f"--out {folder}/"
                )


ShardFlags = Annotated[ShardOptionFlags, Parameter(name="*")]
DEFAULT_SHARDS = ShardOptionFlags()


def is_folder(out: str) -> bool:
    """Return whether the output is a folder for shards.

    It is one if its name ends in a slash, if it exists, or if it is in a store.
    """
    from ikebana.data.stores import is_address

    if is_address(out):
        return True
    return out.endswith(("/", os.sep)) or os.path.isdir(os.path.expanduser(out))
