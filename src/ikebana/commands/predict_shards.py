"""Predictions in shards: `ikebana predict --out DIR/`, and the functions for engines such as Dask."""

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ikebana.commands import predict as predict_command
from ikebana.commands.predict import Counts, Model, open_classifier, open_model
from ikebana.commands.run_paths import resolve_run_paths
from ikebana.data import unlabelled
from ikebana.data.frame import Frame
from ikebana.data.listing import STATUS_CHANGED
from ikebana.data.store_errors import StoreError
from ikebana.data.stores import is_address
from ikebana.data.unlabelled import UnlabelledPhotos
from ikebana.errors import IncompleteShard, MachineError, ModelError, PhotosError, UsageError
from ikebana.inference import classifier, prediction_table, shard_join, shard_plan, stored_shards
from ikebana.inference.classifier import Classifier
from ikebana.inference.prediction import NOT_SURE, STATUS_OK, UNKNOWN
from ikebana.inference.shard_plan import DEFAULT_SHARD_PHOTOS, PlanHeader, ShardPlan
from ikebana.inference.shard_reading import ADVICE_AGAIN, describe_count
from ikebana.inference.shards import UNUSABLE, ShardSummary, compute_shard
from ikebana.runs.run import Run
from ikebana.system import progress
from ikebana.system.files import resolve_output_path

# Computes shards with these numbers, and reports the photos that are done.
ComputeShards: TypeAlias = Callable[[Classifier, ShardPlan, Sequence[int], Callable[[int], object]], None]

# Sources of which the absolute path is none.
ADDRESS_MARK = "://"
# Shards in a row whose photos cannot be read; after them, the store counts as down.
MAX_INCOMPLETE_IN_A_ROW = 3
# Seconds before shards are computed again, after a store has not answered to several requests.
STORE_DELAYS_SECONDS = (15.0, 30.0, 60.0)


@dataclass(frozen=True)
class ShardOptions:
    """Flags of `predict` that only matter with shards."""

    # (K, N): compute the K-th of N shares, from 1; None for all shards.
    share: tuple[int, int] | None = None
    # Photos per shard; None for those of the plan, or 1,000.
    shard_photos: int | None = None
    # List the photos again.
    replan: bool = False
    # Write a row with the reason for a photo that cannot be read now.
    accept_unreadable: bool = False
    # A single table with all rows.
    join: Path | None = None

    def __post_init__(self) -> None:
        if self.shard_photos is not None and self.shard_photos < 1:
            raise UsageError(f"--shard-photos {self.shard_photos} is too small", advice=f"{DEFAULT_SHARD_PHOTOS}")
        if self.share is not None and self.join is not None:
            raise UsageError(
                "--join needs all shards, and --shard computes a share of them",
                advice="--join in a later call without --shard",
            )
        if self.share is not None and self.replan:
            raise UsageError(
                "--replan with --shard would list the photos once per share",
                advice=f"remove {shard_plan.PLAN_FILE} from the folder before the shares start",
            )


def parse_share(text: str) -> tuple[int, int]:
    """Parse "K/N", such as 1/8 to 8/8."""
    first, _, second = text.partition("/")
    if not (first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
        raise UsageError(f"--shard {text} is not a share", advice="--shard 1/8 for the first of eight shares")
    share, shares = int(first), int(second)
    if not 1 <= share <= shares:
        advice = f"--shard {shares}/{shares} for the last share" if share > shares else "count from 1"
        raise UsageError(f"--shard {text}: the shares are 1/{shares} to {shares}/{shares}", advice=advice)
    return share, shares


def _compute_here(
    model_classifier: Classifier, plan: ShardPlan, numbers: Sequence[int], advance: Callable[[int], object]
) -> None:
    """Compute shards in this process, one after the other."""
    for number in numbers:
        compute_shard(model_classifier, plan, number, advance)


def predict_to_shards(
    model: Model,
    photos: Sequence[str],
    path_lines: Iterator[str] | None,
    out: str | Path,
    options: ShardOptions,
    *,
    compute: ComputeShards = _compute_here,
) -> None:
    """Predict any number of photos to shards; each call continues the earlier ones.

    Args:
        path_lines: more photos, one path per line.
        compute: computes the missing shards, here or on other machines.
    Raises:
        PhotosError: there is no usable photo, or the folder has the predictions of other photos.
        ModelError, MachineError: the folder has the predictions of another model or by other versions.
        PhotosError, StoreError: photos cannot be read now, so shards are missing.
    """
    table = prediction_table.resolve_table_path(options.join) if options.join is not None else None
    folder = _resolve_folder(out)
    opened_model = open_model(model)
    lines = None if path_lines is None else [line.rstrip("\r\n") for line in path_lines]
    with open_classifier(opened_model) as (model_classifier, identity):
        plan = _prepare_plan(
            (model_classifier, identity, _find_path(model)),
            folder,
            _describe_sources(photos, lines),
            lambda: unlabelled.find_photos(
                resolve_run_paths(opened_model, photos),
                None if lines is None else iter(lines),
                folder if isinstance(folder, Path) else None,
            ),
            options,
        )
        try:
            _predict_share(model_classifier, plan, options, compute)
            summary = _complete(model_classifier, plan)
        except KeyboardInterrupt:
            progress.message("interrupted; nothing was lost. Run the same command again to resume.")
            raise
        if summary is not None:
            _report(model_classifier, plan, summary)
    if table is not None:
        shard_join.write_joined_table(plan, table)


def _predict_share(
    model_classifier: Classifier, plan: ShardPlan, options: ShardOptions, compute: ComputeShards
) -> None:
    """Compute the missing shards of a share, every N-th of all."""
    first, step = (options.share[0] - 1, options.share[1]) if options.share is not None else (0, 1)
    if step > len(plan.names):
        size = -(-plan.photos // step)
        progress.warn(
            f"{len(plan.names)} shard{'s' * (len(plan.names) != 1)} cannot keep {step} processes busy: "
            f"--shard-photos {size} in a new folder divides the work evenly"
        )
    numbers = plan.shards[first::step]
    missing = plan.list_missing(numbers)
    if len(missing) < len(numbers):
        earlier = len(numbers) - len(missing)
        progress.message(
            f"{_describe_part(earlier, len(numbers))} {'was' if earlier == 1 else 'were'} predicted earlier"
        )
    elif options.replan:
        progress.message("no earlier shard has the same photos in the same order: all photos are predicted")
    if not missing:
        return
    shard_join.remove_success(plan)
    with progress.stage("predict", sum(map(plan.count_photos, missing))) as bar:
        incomplete = _compute_all(compute, model_classifier, plan, missing, bar.advance)
    if incomplete:
        raise _describe_incomplete(plan, numbers, incomplete)


def _compute_all(
    compute: ComputeShards,
    model_classifier: Classifier,
    plan: ShardPlan,
    numbers: Sequence[int],
    advance: Callable[[int], object],
) -> list[IncompleteShard]:
    """Compute shards; go on after one whose photos cannot be read, unless nothing else succeeds.

    Returns:
        The shards that were not written.
    """
    incomplete: dict[int, IncompleteShard] = {}
    in_a_row, remaining = 0, list(numbers)
    while remaining and in_a_row < MAX_INCOMPLETE_IN_A_ROW:
        try:
            _compute_while_store_fails(compute, model_classifier, plan, remaining, advance)
            break
        except IncompleteShard as error:
            progress.warn(error.what)
            incomplete[error.number] = error
        still_missing = [number for number in plan.list_missing(remaining) if number not in incomplete]
        in_a_row = in_a_row + 1 if len(still_missing) == len(remaining) - 1 else 1
        remaining = still_missing
    return list(incomplete.values())


def _compute_while_store_fails(
    compute: ComputeShards,
    model_classifier: Classifier,
    plan: ShardPlan,
    numbers: Sequence[int],
    advance: Callable[[int], object],
) -> None:
    """Compute shards; go on after a store has not answered, unless nothing succeeds for minutes.

    Raises:
        StoreError: the store still does not answer.
    """
    missing, failures = list(numbers), 0
    while True:
        try:
            if failures:
                still_missing = plan.list_missing(missing)
                failures = 0 if len(still_missing) < len(missing) else failures
                missing = still_missing
            return compute(model_classifier, plan, missing, advance)
        except StoreError as error:
            if not error.is_transient or failures == len(STORE_DELAYS_SECONDS):
                raise
            delay = STORE_DELAYS_SECONDS[failures]
            progress.warn(f"{error.what}: going on in {delay:.0f} s")
            time.sleep(delay)
            failures += 1


def _describe_incomplete(plan: ShardPlan, numbers: Sequence[int], incomplete: Sequence[IncompleteShard]) -> PhotosError:
    """Describe which photos could not be read, and how many shards that leaves."""
    count, missing = describe_count([error.photos for error in incomplete]), len(plan.list_missing(numbers))
    return PhotosError(
        f"{count} could not be read, so {_describe_part(missing, len(numbers))} {'is' if missing == 1 else 'are'} "
        f"missing; the first is {incomplete[0].reason}",
        where=incomplete[0].where,
        advice=f"{ADVICE_AGAIN}. --accept-unreadable writes them with the reason in place of a prediction",
    )


def _describe_part(count: int, shards: int) -> str:
    return f"{count} of {shards} shard{'s' * (shards != 1)}"


def _complete(model_classifier: Classifier, plan: ShardPlan) -> ShardSummary | None:
    """Check all shards and write `_SUCCESS.json`; None if other processes still compute some."""
    missing = plan.list_missing()
    progress.event("shards", complete=len(plan.names) - len(missing), total=len(plan.names))
    if missing:
        shard_join.remove_success(plan)
        progress.message(
            f"{_describe_part(len(missing), len(plan.names))} {'is' if len(missing) == 1 else 'are'} left to other "
            "processes. Once these have ended, run the same command without --shard: it computes what is missing."
        )
        return None
    summary = shard_join.check_shards(plan, partial(compute_shard, model_classifier, plan))
    counts = _to_counts(summary)
    predict_command.require_usable(counts)
    shard_join.write_success(plan, summary)
    return summary


def _report(model_classifier: Classifier, plan: ShardPlan, summary: ShardSummary) -> None:
    predict_command.report(_to_counts(summary), plan.ignored, model_classifier)
    changed = summary.reasons[STATUS_CHANGED]
    if changed:
        what = "1 photo changed since it was" if changed == 1 else f"{changed} photos changed since they were"
        progress.warn(f"{what} listed: --replan predicts {'it' if changed == 1 else 'them'} again")


def _to_counts(summary: ShardSummary) -> Counts:
    statuses = summary.statuses
    return Counts(
        sure=statuses[STATUS_OK],
        unsure=statuses[NOT_SURE],
        unknown=statuses[UNKNOWN],
        unusable=statuses[UNUSABLE],
        reasons=summary.examples,
        familiarity=summary.familiarity,
    )


def _prepare_plan(
    model: tuple[Classifier, str, str | None],
    out: Path | str,
    sources: str,
    find_photos: Callable[[], UnlabelledPhotos],
    options: ShardOptions,
) -> ShardPlan:
    """Open or write the plan, and check that this model computes it.

    Args:
        model: the classifier, what identifies it, and its path.
    """
    model_classifier, identity, path = model
    rules = shard_plan.describe_rules(model_classifier)
    header = PlanHeader(identity, model_classifier.classes, rules, sources, model_path=path)
    choices = {
        "shard_photos": options.shard_photos,
        "replan": options.replan,
        "accepts_unreadable": options.accept_unreadable,
    }
    if isinstance(out, Path):
        plan = shard_plan.prepare_plan(out, header, find_photos, **choices)
    else:
        plan = stored_shards.prepare_plan(out, header, find_photos, **choices)
    plan.require(identity, model_classifier)
    return plan


def _resolve_folder(out: str | Path) -> Path | str:
    """Return the absolute path, or the address, of the folder for shards."""
    if isinstance(out, str) and is_address(out):
        if out.lower().endswith(prediction_table.TABLE_SUFFIXES):
            raise UsageError(
                "a bucket gets shards, not a single table",
                where=out,
                advice=f"--out {out.rpartition('/')[0]}/predictions/",
            )
        return out
    return Path(os.path.abspath(resolve_output_path(out)))


def _describe_sources(photos: Iterable[str | Path], lines: Iterable[str] | None) -> str:
    """Identify the photos that the user gave, as they are shown and where they are."""
    texts = [str(photo) if ADDRESS_MARK in str(photo) else str(Path(photo)) for photo in photos]
    places = [text if ADDRESS_MARK in text else os.path.abspath(os.path.expanduser(text)) for text in texts]
    listed = None if lines is None else [os.getcwd(), *lines]
    return hashlib.sha256(json.dumps([texts, places, listed]).encode()).hexdigest()


def _find_path(model: Model | Classifier | Run) -> str | None:
    """Find the path of a model for other processes; None without a file."""
    if isinstance(model, Run):
        return os.path.abspath(model.folder)
    if isinstance(model, Classifier):
        where = model.source and model.source.where
        return None if where is None else os.path.abspath(os.path.expanduser(where))
    return os.path.abspath(os.path.expanduser(os.fsdecode(model))) if isinstance(model, str | os.PathLike) else None


def plan_shards(
    model: Model,
    photos: str | Path | Frame | Iterable[str | Path],
    out: str | Path,
    *,
    shard_photos: int | None = None,
    replan: bool = False,
    accept_unreadable: bool = False,
) -> ShardPlan:
    """List photos and cut them into shards, which any process can predict.

    Args:
        model: a model file, or a run or its folder, at a path that all processes can read.
        photos: files, folders, globs or archives, or a frame with a column `path`.
        out: the folder for the plan and the shards, here or in a store. A plan that it has is used again.
        shard_photos: photos per shard; by default 1,000.
        replan: list the photos again.
        accept_unreadable: write a row with the reason for a photo that cannot be read now, because its
            store does not answer or denies access. By default, its shard is not written.
    Returns:
        The plan, whose `shards` are the numbers for `predict_shard`.
    Raises:
        PhotosError: there are no photos, or the folder has the predictions of others.
        ModelError, MachineError: the folder has the predictions of another model or by other versions.
    """
    paths, items = predict_command.separate_paths(photos)
    if items is not None:
        raise PhotosError("photos in memory cannot be predicted in shards", advice="their paths; or ikebana.predict")
    folder = _resolve_folder(out)
    opened_model = open_model(model)
    is_list = not isinstance(photos, str | os.PathLike)
    with open_classifier(opened_model) as (model_classifier, identity):
        return _prepare_plan(
            (model_classifier, identity, _find_path(model)),
            folder,
            _describe_sources(paths, None),
            lambda: unlabelled.find_photos(
                paths if is_list else resolve_run_paths(opened_model, paths),
                excluded_folder=folder if isinstance(folder, Path) else None,
                reports_errors=is_list,
            ),
            ShardOptions(shard_photos=shard_photos, replan=replan, accept_unreadable=accept_unreadable),
        )


def predict_shard(plan: ShardPlan | str | Path, number: int, *, model: Model | None = None) -> Path | str:
    """Predict one shard, in any process on any machine that can read the photos.

    Args:
        plan: what `plan_shards` returned, or its folder.
        number: one of `plan.shards`.
        model: the same model; by default the file that the plan was made with.
    Returns:
        The Parquet file of the shard, or its address in a store. One that exists is not computed again.
    Raises:
        ModelError, MachineError: the model or the version of a library differs from the plan.
        IncompleteShard: photos cannot be read now; the same call later may succeed.
        StoreError: access to all photos is denied.
    """
    plan = _to_plan(plan)
    if number not in plan.shards:
        raise UsageError(f"there is no shard {number}", where=plan.folder, advice=f"0 to {len(plan.names) - 1}")
    if plan.list_missing([number]):
        with _open_worker_model(plan, model) as (model_classifier, identity):
            plan.require(identity, model_classifier)
            compute_shard(model_classifier, plan, number)
    return plan.get_place(number)


def join_shards(plan: ShardPlan | str | Path, out: str | Path | None = None) -> Path | str:
    """Check that all shards are complete, write `_SUCCESS.json`, and join them to one table.

    Args:
        plan: what `plan_shards` returned, or its folder.
        out: a table, .csv, .jsonl or .parquet; None to leave the shards as they are.
    Returns:
        The table, or `_SUCCESS.json`.
    Raises:
        MachineError: a shard is missing or damaged.
        PhotosError: no photo could be used.
    """
    table = prediction_table.resolve_table_path(Path(out)) if out is not None else None
    plan = _to_plan(plan)
    summary = shard_join.check_shards(plan)
    predict_command.require_usable(_to_counts(summary))
    file = shard_join.write_success(plan, summary)
    if table is None:
        return file
    shard_join.write_joined_table(plan, table)
    return table


def _to_plan(plan: ShardPlan | str | Path) -> ShardPlan:
    if isinstance(plan, ShardPlan):
        return plan
    if isinstance(plan, str) and is_address(plan):
        opened = stored_shards.open_plan(plan)
    else:
        opened = shard_plan.open_plan(Path(os.path.abspath(os.path.expanduser(plan))))
    if opened is None:
        raise MachineError("this folder has no plan", where=plan, advice="ikebana.plan_shards(model, photos, folder)")
    return opened


@contextmanager
def _open_worker_model(plan: ShardPlan, model: Model | None) -> Iterator[tuple[Classifier, str]]:
    """Provide the classifier of a plan and what identifies it.

    A model file is loaded once per process.
    """
    given = plan.header.model_path if model is None else model
    if given is None:
        raise ModelError(
            "the plan was made with a model that is in no file", advice="predict_shard(plan, number, model=…)"
        )
    if isinstance(given, str | os.PathLike) and os.path.isfile(given):
        given = _load_once(os.fspath(given), os.stat(given).st_mtime_ns)
    with open_classifier(open_model(given)) as opened:
        yield opened


@functools.lru_cache(maxsize=1)
def _load_once(path: str, modified: int) -> Classifier:
    """Load a model file; one that was modified since is loaded again."""
    return classifier.load(path)
