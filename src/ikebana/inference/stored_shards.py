"""Shards in a store: each is written with one PUT, and names tell which exist.

The plan and the shards have the names and the contents of those in a folder. A process computes a
shard in a temporary folder and puts it into the store: readers see all of it or nothing.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ikebana.data import stores
from ikebana.data.store_errors import StoreError
from ikebana.data.unlabelled import UnlabelledPhotos
from ikebana.errors import MachineError
from ikebana.inference import shard_plan
from ikebana.inference.shard_plan import PLAN_FILE, PlanHeader, ShardPlan

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class StoredShardPlan(ShardPlan):
    """A plan whose shards are in a store; `folder` is a temporary one.

    Another process that gets the plan opens it again from the store.
    """

    # The folder in the store, without a slash at its end.
    address: str = ""

    def __reduce__(self) -> tuple[Callable[..., ShardPlan], tuple[Any, ...]]:
        return _open_required, (self.address, self.accepts_unreadable)

    def locate(self, name: str) -> str:
        """Return the address of a file."""
        return f"{self.address}/{name}"

    def describe_target(self) -> str:
        """Return the address of the folder."""
        return self.address

    def has(self, number: int) -> bool:
        """Return whether a shard is in the store."""
        try:
            return stores.stat(self.locate(self.names[number])) is not None
        except StoreError as error:
            if error.is_missing:
                return False
            raise

    def list_missing(self, numbers: Iterable[int] | None = None) -> list[int]:
        """List the shards, of all or of these, that are not in the store yet."""
        names = stores.list_names(self.address)
        return [number for number in (self.shards if numbers is None else numbers) if self.names[number] not in names]

    def list_names(self) -> list[str]:
        """List the files in the store."""
        return sorted(stores.list_names(self.address))

    def publish(self, name: str) -> None:
        """Put a file into the store, and remove it here."""
        _put(self.address, self.folder / name)
        self.release(name)

    def fetch(self, name: str) -> None:
        """Copy a file of the store to the temporary folder; it may be missing then."""
        _fetch(self.locate(name), self.folder / name)

    def release(self, name: str) -> None:
        """Remove the copy of a file."""
        (self.folder / name).unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file from the store."""
        stores.remove(self.locate(name))

    def _scan(self, number: int) -> "pl.LazyFrame":
        if not (self.folder / PLAN_FILE).exists():
            self.fetch(PLAN_FILE)
        return super()._scan(number)


def _put(address: str, file: Path, *, is_new: bool = False) -> bool:
    return stores.write(f"{address}/{file.name}", file.read_bytes(), is_new=is_new)


def _fetch(address: str, file: Path) -> bool:
    """Copy a file of the store; False if there is none."""
    try:
        stored = stores.stat(address)
    except StoreError as error:
        if error.is_missing:
            return False
        raise
    if stored is None:
        return False
    file.write_bytes(stores.read(stored))
    return True


def prepare_plan(
    address: str,
    header: PlanHeader,
    find_photos: Callable[[], UnlabelledPhotos],
    *,
    shard_photos: int | None = None,
    replan: bool = False,
    accepts_unreadable: bool = False,
) -> ShardPlan:
    """Open the plan of a folder in a store, or list the photos.

    Processes that start at once all list the photos. The first plan in the store counts.

    Raises:
        PhotosError, MachineError: as `shard_plan.prepare_plan`.
        StoreError: the store refused a request.
    """
    stores.refuse_web_server(address)
    address, folder = address.rstrip("/"), _make_folder()
    exists = _fetch(f"{address}/{PLAN_FILE}", folder / PLAN_FILE)
    if not exists:
        stores.require_bucket(address)
    plan = shard_plan.prepare_plan(folder, header, find_photos, shard_photos=shard_photos, replan=replan)
    is_listed = replan or not exists
    if is_listed and not _put(address, folder / PLAN_FILE, is_new=not replan):
        _fetch(f"{address}/{PLAN_FILE}", folder / PLAN_FILE)
        plan = shard_plan.prepare_plan(folder, header, find_photos, shard_photos=shard_photos)
    return _to_stored(replace(plan, accepts_unreadable=accepts_unreadable), address)


def open_plan(address: str, *, accepts_unreadable: bool = False) -> ShardPlan | None:
    """Open the plan of a folder in a store; None if it has none.

    Raises:
        MachineError: the plan is damaged, or of another version of ikebana; StoreError.
    """
    address, folder = address.rstrip("/"), _make_folder()
    _fetch(f"{address}/{PLAN_FILE}", folder / PLAN_FILE)
    plan = shard_plan.open_plan(folder)
    return None if plan is None else _to_stored(replace(plan, accepts_unreadable=accepts_unreadable), address)


def _open_required(address: str, accepts_unreadable: bool) -> ShardPlan:
    plan = open_plan(address, accepts_unreadable=accepts_unreadable)
    if plan is None:
        raise MachineError(
            "this folder has no plan", where=address, advice="ikebana.plan_shards(model, photos, folder)"
        )
    return plan


def _make_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="ikebana-shards-"))


def _to_stored(plan: ShardPlan, address: str) -> StoredShardPlan:
    stored = StoredShardPlan(**{field.name: getattr(plan, field.name) for field in fields(plan)}, address=address)
    # When the plan is no longer used, or at the end of the process.
    weakref.finalize(stored, shutil.rmtree, stored.folder, ignore_errors=True)
    return stored
