"""The last step of a prediction in shards: checking and joining all.

`_SUCCESS.json` exists only while every shard of the plan exists and has been checked.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ikebana.data.store_errors import StoreError
from ikebana.errors import MachineError
from ikebana.inference import table_formats
from ikebana.inference.shard_plan import PLAN_FILE, ShardPlan
from ikebana.inference.shards import ShardSummary, check_shard
from ikebana.system import progress
from ikebana.system.files import atomic_write, discard, remove_stale_files, write_json
from ikebana.system.versions import find_versions

SUCCESS_FILE = "_SUCCESS.json"
SHARD_NAME = re.compile(r"part-\d+-[0-9a-f]+\.parquet")


def remove_success(plan: ShardPlan) -> None:
    """Remove the mark of a complete result, because shards are missing."""
    plan.remove(SUCCESS_FILE)


def check_shards(plan: ShardPlan, compute: Callable[[int], object] | None = None) -> ShardSummary:
    """Check all shards.

    Args:
        compute: computes a shard; a damaged one is then discarded and computed again.
    Raises:
        MachineError: shards are missing or damaged, or another process has replaced the plan.
    """
    missing = plan.list_missing()
    if missing:
        raise MachineError(
            f"{len(missing)} of {len(plan.names)} shards are missing; the first is number {missing[0]}",
            where=plan.folder,
            advice="ikebana predict without --shard, or predict_shard for each missing number",
        )
    current = plan.reopen()
    if current is None or current.names != plan.names:
        raise MachineError(
            "another process has replaced the plan meanwhile",
            where=plan.folder / PLAN_FILE,
            advice="run the same command again",
        )
    total = ShardSummary()
    with progress.stage("check", plan.photos) as bar:
        for number in plan.shards:
            total.add(_check_or_repair(plan, number, compute))
            bar.advance(plan.count_photos(number))
    return total


def _check_or_repair(plan: ShardPlan, number: int, compute: Callable[[int], object] | None) -> ShardSummary:
    outcome = _check_shard(plan, number)
    if isinstance(outcome, str) and compute is not None:
        progress.warn(f"{plan.names[number]} is damaged ({outcome}): predicting its photos again")
        remove_success(plan)
        discard(plan.get_path(number))
        plan.remove(plan.names[number])
        compute(number)
        outcome = _check_shard(plan, number)
    if isinstance(outcome, str):
        raise MachineError(
            f"this shard is damaged: {outcome}", where=plan.get_place(number), advice="remove it and predict it again"
        )
    return outcome


def _check_shard(plan: ShardPlan, number: int) -> ShardSummary | str:
    plan.fetch(plan.names[number])
    try:
        return check_shard(plan, number)
    finally:
        plan.release(plan.names[number])


def write_success(plan: ShardPlan, summary: ShardSummary) -> Path | str:
    """Write `_SUCCESS.json`, and remove shards of earlier plans and of killed processes.

    Args:
        summary: what `check_shards` returned.
    """
    names = set(plan.names)
    for name in plan.list_names():
        if SHARD_NAME.fullmatch(name) and name not in names:
            with suppress(MachineError, StoreError):
                plan.remove(name)
    remove_stale_files(plan.folder)
    file = plan.folder / SUCCESS_FILE
    write_json(file, _describe(plan, summary), create_parent=False)
    plan.publish(file.name)
    return plan.locate(file.name)


def _describe(plan: ShardPlan, summary: ShardSummary) -> dict[str, Any]:
    return {
        "rows": plan.photos,
        "shards": len(plan.names),
        "statuses": dict(sorted(summary.statuses.items())),
        "model": plan.header.model,
        "classes": plan.header.classes,
        "versions": {**find_versions(["ikebana"]), **plan.header.rules},
        "files": plan.names,
    }


def write_joined_table(plan: ShardPlan, out: Path) -> None:
    """Write the rows of all shards, which have been checked, as one table.

    Args:
        out: .csv, .jsonl or .parquet.
    """
    import polars as pl

    with atomic_write(out) as partial_file, progress.stage("join", plan.photos) as bar:
        for name in plan.names:
            plan.fetch(name)
        if out.suffix.lower() == ".parquet":
            paths = [plan.get_path(number) for number in plan.shards]
            pl.scan_parquet(paths, glob=False).sink_parquet(partial_file)
            bar.advance(plan.photos)
        else:
            rows = _iterate_rows(plan, bar.advance)
            table_formats.write_table(partial_file, out.suffix, plan.header.classes, rows)
        for name in plan.names:
            plan.release(name)


def _iterate_rows(plan: ShardPlan, advance: Callable[[int], object]) -> Iterator[tuple[Any, ...]]:
    import polars as pl

    for number in plan.shards:
        yield from pl.read_parquet(plan.get_path(number), glob=False).iter_rows()
        advance(plan.count_photos(number))
