"""Flags of `predict` that write shards to a folder."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ikebana.cli.app import SHARDS
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
    shard_photos: Annotated[int | None, Parameter(group=SHARDS, help="photos per shard; 1,000 by default")] = None
    replan: Annotated[
        bool,
        Parameter(negative=(), group=SHARDS, show_default=False, help="list the photos of the folder again"),
    ] = False
    join: Annotated[
        Path | None, Parameter(group=SHARDS, help="a table that gets the rows of all shards: .csv, .jsonl or .parquet")
    ] = None

    def to_options(self) -> "ShardOptions":
        """Parse and check the flags; UsageError if they contradict each other."""
        from ikebana.commands.predict_shards import ShardOptions, parse_share

        share = None if self.shard is None else parse_share(self.shard)
        return ShardOptions(share, self.shard_photos, self.replan, self.join)

    def refuse_for_table(self) -> None:
        """Raise UsageError if a flag was given without a folder."""
        for field in fields(self):
            if getattr(self, field.name) != field.default:
                raise UsageError(
                    f"--{field.name.replace('_', '-')} needs a folder for shards", advice="--out predictions/"
                )


ShardFlags = Annotated[ShardOptionFlags, Parameter(name="*")]
DEFAULT_SHARDS = ShardOptionFlags()


def is_folder(out: str) -> bool:
    """Return whether the output is a folder for shards.

    It is one if its name ends in a slash, or if it exists.
    """
    return out.endswith(("/", os.sep)) or os.path.isdir(os.path.expanduser(out))
