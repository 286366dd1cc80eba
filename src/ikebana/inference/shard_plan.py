"""The plan of a prediction in shards: which photos, which shards, which model.

A shard is a Parquet file with the predictions of some photos in order. Its name contains a hash of
all that determines its rows: the model, the engine, the decoding rules, and path, size and time of
each photo. A file with the right name is therefore complete and right, whichever process wrote it,
and any process can continue the work of another.

The photos are listed once, into `_plan.parquet`. Readers of Parquet folders, such as Spark's, skip
names that begin with an underscore.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from ikebana.data import decoding
from ikebana.data.listing import ListedPhoto, list_photos
from ikebana.data.unlabelled import UnlabelledPhotos
from ikebana.errors import MachineError, ModelError, PhotosError
from ikebana.inference.classifier import Classifier
from ikebana.system import progress
from ikebana.system.files import atomic_write, write_error
from ikebana.system.versions import find_versions

if TYPE_CHECKING:
    import polars as pl

PLAN_FILE = "_plan.parquet"
# Held by the process that lists the photos.
LOCK_FILE = ".plan.lock"
# Increase when plans or shards change: older ones are then refused.
PLAN_VERSION = 1
DEFAULT_SHARD_PHOTOS = 1000
# Digits of a shard's number in its name, at least.
MIN_NUMBER_DIGITS = 5
# Bytes of the hash in a shard's name.
HASH_BYTES = 8
# Photos that are held as Python objects while a plan is written, and per row group of the plan.
CHUNK_PHOTOS = 50_000
METADATA_KEY = "ikebana"
ADVICE_REPLAN = "another --out folder, or --replan to list the photos again"


@dataclass(frozen=True)
class PlanHeader:
    """What determines the rows of all shards, apart from the photos."""

    # Identifies the weights and the calibration.
    model: str
    classes: tuple[str, ...]
    # Versions of what decodes and computes, and the options of preprocessing.
    rules: Mapping[str, str]
    # Identifies the photos that the user gave, by their names.
    sources: str
    shard_photos: int = DEFAULT_SHARD_PHOTOS
    # Where a process finds the model; None if it was not given as a path.
    model_path: str | None = None


@dataclass(frozen=True)
class ShardPlan:
    """A plan; small enough to be sent to each worker."""

    # The folder of the plan and of the shards.
    folder: Path
    header: PlanHeader
    # The file of each shard.
    names: tuple[str, ...]
    photos: int
    # Hidden files among the photos.
    ignored: int = 0
    # Folders in the cache of the machine that listed the photos, with the photos of archives.
    unpacked_folders: tuple[str, ...] = ()
    # Whether photos that cannot be read now get a row; a choice of this call, which is not saved.
    accepts_unreadable: bool = False

    @property
    def shards(self) -> range:
        """The numbers of the shards, from 0."""
        return range(len(self.names))

    def get_path(self, number: int) -> Path:
        """Get the file of a shard."""
        return self.folder / self.names[number]

    def locate(self, name: str) -> Path | str:
        """Return the path of a file, or its address in a store."""
        return self.folder / name

    def describe_target(self) -> str:
        """Return the folder, or its address in a store."""
        return str(self.folder)

    def get_place(self, number: int) -> Path | str:
        """Return the path of a shard, or its address in a store."""
        return self.locate(self.names[number])

    def has(self, number: int) -> bool:
        """Return whether a shard exists."""
        return self.get_path(number).is_file()

    def list_names(self) -> list[str]:
        """List the files beside the shards, and the shards."""
        return os.listdir(self.folder)

    def publish(self, name: str) -> None:
        """Show a complete file to other processes; in a folder, they see it already."""

    def fetch(self, name: str) -> None:
        """Make a file readable at its path; in a folder, it is."""

    def release(self, name: str) -> None:
        """Give up what `fetch` made."""

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(error, self.folder / name) from error

    def reopen(self) -> "ShardPlan | None":
        """Open the plan that is there now."""
        self.fetch(PLAN_FILE)
        return open_plan(self.folder)

    def list_missing(self, numbers: Iterable[int] | None = None) -> list[int]:
        """List the shards, of all or of these, that do not exist yet."""
        return [
            number for number in (self.shards if numbers is None else numbers) if not self.get_path(number).is_file()
        ]

    def count_photos(self, number: int) -> int:
        """Count the photos of a shard."""
        return min(self.header.shard_photos, self.photos - number * self.header.shard_photos)

    def read_photos(self, number: int) -> list[ListedPhoto]:
        """Read the photos of a shard from the plan."""
        return [ListedPhoto(*row) for row in self._scan(number).collect().iter_rows()]

    def read_paths(self, number: int) -> "pl.Series":
        """Read the paths of a shard's photos from the plan."""
        return self._scan(number).select("path").collect()["path"]

    def _scan(self, number: int) -> "pl.LazyFrame":
        import polars as pl

        size = self.header.shard_photos
        return pl.scan_parquet(self.folder / PLAN_FILE, glob=False).slice(number * size, size)

    def require(self, model: str, classifier: Classifier) -> None:
        """Raise an error unless this classifier, in this process, would compute the planned rows.

        Args:
            model: identifies the classifier.
        Raises:
            ModelError: the model is another.
            MachineError: a library has another version.
        """
        if (self.header.model, self.header.classes) != (model, classifier.classes):
            raise ModelError(
                "this folder has the predictions of another model", where=self.folder, advice=ADVICE_REPLAN
            )
        rules = describe_rules(classifier)
        differences = [
            f"{name} {self.header.rules.get(name) or 'none'}, and this process has {rules.get(name) or 'none'}"
            for name in sorted({*self.header.rules, *rules})
            if self.header.rules.get(name) != rules.get(name)
        ]
        if differences:
            raise MachineError(
                f"these predictions were planned with {'; '.join(differences)}",
                where=self.folder,
                advice="the same versions on all machines, or --replan to predict all photos again",
            )


def describe_rules(classifier: Classifier) -> dict[str, str]:
    """Describe what determines a prediction besides the model and the photo."""
    engine = "torch" if classifier.source is None else "onnxruntime"
    return {
        engine: version(engine),
        "Pillow": version("pillow"),
        "pillow-heif": find_versions(["pillow-heif"])["pillow-heif"] or "",
        "decoder": str(decoding.DECODER_VERSION),
        "image size": str(classifier.image_size),
        "resize": classifier.resize,
    }


def open_plan(folder: Path) -> ShardPlan | None:
    """Open the plan of a folder; None if it has none.

    Raises:
        MachineError: the plan is damaged, or of another version of ikebana.
    """
    import polars as pl

    file = folder / PLAN_FILE
    if not file.is_file():
        return None
    try:
        values = json.loads(pl.read_parquet_metadata(file)[METADATA_KEY])
        if values.pop("version") == PLAN_VERSION:
            header = values.pop("header")
            header = PlanHeader(**{**header, "classes": tuple(header["classes"])})
            lists = {name: tuple(values.pop(name)) for name in ("names", "unpacked_folders")}
            return ShardPlan(folder, header, **lists, **values)
        what = "this plan was made by another version of ikebana"
    # polars raises errors of many kinds.
    except Exception as error:
        what = f"this plan is damaged: {error}"
    raise MachineError(what, where=file, advice="--replan to list the photos again; or remove the file")


def prepare_plan(
    folder: Path,
    header: PlanHeader,
    find_photos: Callable[[], UnlabelledPhotos],
    *,
    shard_photos: int | None = None,
    replan: bool = False,
    accepts_unreadable: bool = False,
) -> ShardPlan:
    """Open the plan of a folder, or list the photos and write it.

    Of processes that start at once, one lists the photos and the others wait for its plan.

    Args:
        find_photos: called only if there is no plan yet.
        shard_photos: the number that the user wants; None for that of the plan, or the default.
        replan: replace an existing plan, with as many photos per shard. Shards of photos that did not
            change keep their names.
        accepts_unreadable: whether photos that cannot be read now get a row with the reason.
    Raises:
        PhotosError: the plan is one of other photos, or there is no photo.
        MachineError: the plan cannot be read, or the folder cannot be written.
    """
    size = shard_photos or (_find_shard_photos(folder) if replan else None) or DEFAULT_SHARD_PHOTOS
    header = replace(header, shard_photos=size)
    plan = None if replan else open_plan(folder)
    if plan is None:
        _require_folder(folder)
        with _lock_plan(folder):
            plan = None if replan else open_plan(folder)
            plan = plan or write_plan(folder, header, find_photos())
    if plan.header.model == header.model and plan.header.sources != header.sources:
        # A misspelt path is reported as such.
        find_photos()
        raise PhotosError("this folder has the predictions of other photos", where=folder, advice=ADVICE_REPLAN)
    if shard_photos not in (None, plan.header.shard_photos):
        what = f"the shards of this folder have {plan.header.shard_photos} photos, not {shard_photos}"
        raise PhotosError(what, where=folder, advice=f"--shard-photos {plan.header.shard_photos}, or --replan")
    return replace(plan, accepts_unreadable=accepts_unreadable)


def _find_shard_photos(folder: Path) -> int | None:
    """Find the photos per shard of an existing plan; None without a readable one."""
    try:
        plan = open_plan(folder)
    # Planning again replaces such a plan.
    except MachineError:
        return None
    return None if plan is None else plan.header.shard_photos


def _require_folder(folder: Path) -> None:
    """Make the folder; refuse one with files of other programs, such as the photos themselves."""
    advice = f"a new folder, such as --out {folder.parent / f'{folder.name}-predictions'}/"
    if folder.exists() and not folder.is_dir():
        raise MachineError("shards need a folder, and this is a file", where=folder, advice=advice)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in os.listdir(folder) if not name.startswith((".", "_", "part-"))]
    except OSError as error:
        raise write_error(error, folder) from error
    if names:
        what = f"shards need a folder of their own, and this one contains {min(names)}"
        raise MachineError(what, where=folder, advice=advice)


@contextmanager
def _lock_plan(folder: Path) -> Iterator[None]:
    """Wait while another process lists the photos.

    A file system may have no locks. Processes then list the photos at the same time, with the same
    result unless a photo changes in between, which the last step notices.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        _acquire(lock)
    except NotImplementedError:
        yield
        return
    except OSError as error:
        raise write_error(error, folder / LOCK_FILE) from error
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
        lock.release()


def _acquire(lock: FileLock) -> None:
    try:
        lock.acquire(timeout=0)
    except TimeoutError:
        progress.message("waiting for another process that lists the photos")
        lock.acquire()


def write_plan(folder: Path, header: PlanHeader, photos: UnlabelledPhotos) -> ShardPlan:
    """Write the plan of these photos, which replaces another.

    Raises:
        PhotosError: there is no photo.
        MachineError: the folder cannot be written.
    """
    import polars as pl

    digests, frames, schema = [], [], _get_schema()
    shards_per_chunk = max(1, CHUNK_PHOTOS // header.shard_photos)
    # Photos in stores and containers have been listed before.
    with progress.stage("plan shards" if photos.has_containers else "list photos", 0) as bar:
        rows = list_photos(photos)
        while chunk := list(islice(rows, shards_per_chunk * header.shard_photos)):
            starts = range(0, len(chunk), header.shard_photos)
            digests.extend(_hash_shard(header, chunk[start : start + header.shard_photos]) for start in starts)
            frames.append(pl.DataFrame(chunk, schema=schema, orient="row"))
            bar.advance(len(chunk))
    if not frames:
        raise PhotosError("no photos found", advice="give photos, folders or archives")
    digits = max(MIN_NUMBER_DIGITS, len(str(len(digests) - 1)))
    names = tuple(f"part-{number:0{digits}}-{digest}.parquet" for number, digest in enumerate(digests))
    table = pl.concat(frames)
    unpacked = tuple(str(archive.folder) for archive in photos.unpacked_archives.values())
    plan = ShardPlan(folder, header, names, table.height, len(photos.ignored_paths), unpacked)
    _save(plan, table)
    return plan


def _save(plan: ShardPlan, table: "pl.DataFrame") -> None:
    values = {"version": PLAN_VERSION, **asdict(plan)}
    del values["folder"], values["accepts_unreadable"]
    metadata = {METADATA_KEY: json.dumps(values)}
    with atomic_write(plan.folder / PLAN_FILE) as partial_file:
        table.write_parquet(partial_file, metadata=metadata, row_group_size=CHUNK_PHOTOS)


def _hash_shard(header: PlanHeader, photos: Iterable[ListedPhoto]) -> str:
    """Hash all that determines the rows of a shard."""
    of_model = [PLAN_VERSION, header.model, header.classes, sorted(header.rules.items())]
    digest = hashlib.blake2b(json.dumps(of_model).encode(), digest_size=HASH_BYTES)
    for photo in photos:
        digest.update(json.dumps(photo).encode())
    return digest.hexdigest()


def _get_schema() -> "dict[str, pl.DataType | type[pl.DataType]]":
    import polars as pl

    texts, integers = ("path", "address", "stamp", "status"), ("offset", "length", "row", "size")
    types = {**dict.fromkeys(texts, pl.String), **dict.fromkeys(integers, pl.Int64)}
    return {name: types[name] for name in ListedPhoto._fields}
