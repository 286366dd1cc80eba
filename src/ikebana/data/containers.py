"""Photos in stores and in containers: a folder of a bucket, tar shards, Parquet files.

They are listed once, without being opened, and read where they are.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ikebana.data import parquet_photos, stores, tar_shards
from ikebana.data.address_patterns import expand_braces, has_braces
from ikebana.data.archive_notes import ARCHIVE_SUFFIXES, DOCUMENT_SUFFIXES, FOREIGN_SUFFIXES
from ikebana.data.dataset import STATUS_UNOPENED, collect_rows
from ikebana.data.folder import is_hidden, to_printable
from ikebana.data.photo_listing import LISTING_SCHEMA, PhotoListing, join_listings
from ikebana.data.store_errors import ChangedFile
from ikebana.data.stores import StoredFile
from ikebana.errors import PhotosError
from ikebana.system import progress

TAR_SUFFIX, PARQUET_SUFFIX = ".tar", ".parquet"
CONTAINER_SUFFIXES = (TAR_SUFFIX, PARQUET_SUFFIX)
# Files of a store that neither are photos nor contain any.
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
ADVICE_WEB_PATTERN = (
    "check the pattern; if the web server shows no index with links, number the files: photos-{000..127}.tar"
)
REASON_ONLY_CONTAINERS = "this folder contains only tar shards or Parquet files, which are not searched in a folder"
NO_PHOTOS_ADVICE = "give a folder of photos, .tar shards, or Parquet files with image bytes"


@dataclass(frozen=True)
class Container:
    """A folder or a file in a store, or a file that contains photos.

    Attributes:
        file: a tar or a Parquet file, or a photo in a store; None for a folder of a store.
        address: of the file or the folder.
    """

    file: StoredFile | None
    address: str

    @property
    def is_archive(self) -> bool:
        """Whether the file contains photos, and is not a photo itself."""
        return self.file is not None and stores.get_name(self.address).lower().endswith(CONTAINER_SUFFIXES)

    @property
    def is_folder(self) -> bool:
        return self.file is None

    @property
    def photo_prefix(self) -> str:
        """What to show before the paths of its photos."""
        address = stores.decode_path(self.address)
        if self.is_archive:
            return f"{address}!"
        return f"{address.rstrip('/')}/" if self.is_folder else address.removesuffix(stores.get_name(address))


def is_container_source(source: object) -> bool:
    """Return whether this module reads a source, in place."""
    text = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    if not isinstance(text, str) or not text or "\0" in text:
        return False
    if stores.is_address(text):
        return True
    name, path = text.lower(), os.path.expanduser(text)
    if os.path.isfile(path):
        if name.endswith(PARQUET_SUFFIX):
            return parquet_photos.has_photos(Path(path))
        return name.endswith(TAR_SUFFIX) and tar_shards.is_shard(parquet_photos.locate(path))
    return _has_pattern(text) and name.endswith(CONTAINER_SUFFIXES) and not os.path.lexists(path)


def is_photo_address(text: str) -> bool:
    """Return whether this is the address of a photo, by its name."""
    name = stores.get_name(text).lower() if stores.is_address(text) and not text.endswith("/") else ""
    return "." in name and not name.endswith((*CONTAINER_SUFFIXES, *ARCHIVE_SUFFIXES)) and not _has_pattern(text)


def advise_files(folder: str, paths: Iterable[str]) -> str | None:
    """Suggest how to give the tars or Parquet files of a folder.

    None if it has other files too, except documents.

    Args:
        folder: as the user gave it.
        paths: all paths in it, which begin with the folder.
    """
    files = []
    for path in paths:
        if path.lower().endswith(CONTAINER_SUFFIXES):
            files.append(path)
        elif not path.lower().endswith(DOCUMENT_SUFFIXES):
            return None
    suffixes = {os.path.splitext(path)[1].lower() for path in files}
    if len(suffixes) != 1 or (suffixes == {PARQUET_SUFFIX} and not is_container_source(files[0])):
        return None
    if len(files) == 1:
        return f"give the file itself: {files[0]}"
    place = folder.rstrip("/")
    is_nested = any("/" in path.removeprefix(f"{place}/") for path in files)
    return f"give the files themselves: '{place}/{'**/' * is_nested}*{suffixes.pop()}'"


def _has_pattern(text: str) -> bool:
    return stores.is_glob(text) or has_braces(text)


def find_containers(source: str) -> list[Container]:
    """Find the containers of an address, a path or a pattern, in order.

    Raises:
        PhotosError: one does not exist, or is of a kind that cannot be read in place.
    """
    names = expand_braces(source) if not _exists(source) else [source]
    return [container for matches in stores.map_requests(_find_matches, names) for container in matches]


def _exists(source: str) -> bool:
    return not stores.is_address(source) and os.path.lexists(os.path.expanduser(source))


def _find_matches(name: str) -> list[Container]:
    is_pattern = stores.is_glob(name)
    if not stores.is_address(name):
        path = os.path.expanduser(name)
        paths = [path] if os.path.lexists(path) or not is_pattern else sorted(glob.glob(path, recursive=True))
        if not paths:
            raise PhotosError("no file matches this pattern", where=name, advice="check the pattern")
        return [Container(_locate(path), path) for path in paths]
    if is_pattern:
        files = stores.find_matches(name)
        if not files:
            advice = ADVICE_WEB_PATTERN if name.lower().startswith("http") else "check the pattern"
            raise PhotosError("no file matches this pattern", where=name, advice=advice)
        return [Container(file, file.address) for file in files]
    _refuse_foreign(name)
    # A web server does not tell a folder from a file.
    file = None if name.lower().startswith("http") and name.endswith("/") else stores.stat(name)
    return [Container(file, name)]


def _locate(path: str) -> StoredFile:
    try:
        return parquet_photos.locate(path)
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else f"unreadable: {error.strerror}"
        raise PhotosError(what, where=path, advice="check the path") from None


def _refuse_foreign(address: str) -> None:
    name = stores.get_name(address).lower()
    if name.endswith(TAR_SUFFIX) or not name.endswith((*ARCHIVE_SUFFIXES, *FOREIGN_SUFFIXES, *TABLE_SUFFIXES)):
        return
    kind = "tables" if name.endswith(TABLE_SUFFIXES) else "compressed archives"
    raise PhotosError(
        f"{kind} cannot be read from a store", where=address, advice=f"download it, or {NO_PHOTOS_ADVICE}"
    )


def list_containers(containers: Sequence[Container]) -> list[PhotoListing]:
    """List the photos of containers, several at a time; a listing per container.

    Raises:
        PhotosError: one is damaged, or its store refused the request.
    """
    with progress.stage("list photos", 0, "photos") as bar:

        def list_container(container: Container) -> PhotoListing:
            listing = _list_container(container, bar.advance)
            if not container.is_folder:
                bar.advance(listing.photos.height)
            return listing

        return stores.map_requests(list_container, containers)


def _list_container(container: Container, advance: Callable[[int], None]) -> PhotoListing:
    if container.file is None:
        return _list_folder(container.address, advance)
    name = stores.get_name(container.address).lower()
    if name.endswith(TAR_SUFFIX):
        listing = tar_shards.list_tar(container.file)
        if listing is None:
            advice = "pack it without compression, as name.tar"
            raise PhotosError("this is not an uncompressed tar", where=container.address, advice=advice)
        return listing
    if name.endswith(PARQUET_SUFFIX):
        return _list_parquet(container.file)
    row = {"path": stores.get_name(container.address), "address": container.address, "status": STATUS_UNOPENED}
    return PhotoListing(_to_frame([{**row, "size": container.file.size, "stamp": container.file.stamp}]))


def _list_folder(folder: str, advance: Callable[[int], None]) -> PhotoListing:
    """List a folder of a store, in the order of `folder.scan`."""
    start = len(stores.decode_path(folder.rstrip("/"))) + 1
    rows, ignored_count = [], 0
    for file in stores.list_files(folder, advance):
        path = stores.decode_path(file.address)[start:]
        if any(map(is_hidden, path.split("/"))):
            ignored_count += 1
            continue
        values = {"address": file.address, "size": file.size, "stamp": file.stamp, "status": STATUS_UNOPENED}
        rows.append({"path": to_printable(path), **values})
    rows.sort(key=lambda row: make_scan_key(row["path"]))
    return PhotoListing(_to_frame(rows), ignored_count)


def make_scan_key(path: str) -> tuple[tuple[bool, str], ...]:
    """Make a key that sorts paths as `folder.scan`: files before sub-folders."""
    *folders, name = path.split("/")
    return (*((True, folder) for folder in folders), (False, name))


def _list_parquet(file: StoredFile) -> PhotoListing:
    try:
        photos = parquet_photos.open_file(file)
        labels = photos.read_labels()
    except ChangedFile:
        raise PhotosError("this file changed while it was listed", where=file.address, advice="try again") from None
    frame = pl.DataFrame({"row": pl.int_range(photos.rows, eager=True), "label": pl.Series(labels, dtype=pl.String)})
    frame = frame.with_columns(
        # With leading zeros, the order of the paths is that of the rows.
        path=pl.col("row").cast(pl.String).str.zfill(len(str(photos.rows))),
        address=pl.lit(file.address),
        stamp=pl.lit(file.stamp),
        status=pl.lit(STATUS_UNOPENED),
        **{name: pl.lit(None) for name in ("offset", "length", "size", "prefix")},
    )
    if photos.label_column:
        note = f"labels are read from the column {photos.label_column!r}"
    else:
        note = f"the columns of the Parquet file are {', '.join(photos.columns)}"
    return PhotoListing(frame.select(*LISTING_SCHEMA).cast(LISTING_SCHEMA), notes=(note,))  # type: ignore[arg-type]


def _to_frame(rows: Sequence[dict[str, object]]) -> pl.DataFrame:
    """Make a listing of rows that have some of the columns."""
    return collect_rows(({**dict.fromkeys(LISTING_SCHEMA), **row} for row in rows), LISTING_SCHEMA)


def join(containers: Sequence[Container], listings: Sequence[PhotoListing]) -> PhotoListing:
    """Join the listings of a collection; prefixes tell the containers apart."""
    prefixes = _name_containers([container.address for container in containers])
    named = [
        PhotoListing(
            listing.photos.with_columns(prefix=pl.lit(f"{prefix}!" if container.is_archive else "")),
            listing.ignored_count,
            listing.notes,
        )
        for container, listing, prefix in zip(containers, listings, prefixes, strict=True)
    ]
    return join_listings(named)


def _name_containers(addresses: Sequence[str]) -> Iterator[str]:
    """Yield the file's name of each address, or all that follows their common folder."""
    names = [stores.get_name(address) for address in addresses]
    if len(set(names)) == len(names):
        yield from names
        return
    shown = [stores.decode_path(address) for address in addresses]
    pairs = zip(min(shown), max(shown), strict=False)
    length = next((number for number, (left, right) in enumerate(pairs) if left != right), len(min(shown)))
    start = shown[0].rfind("/", 0, length) + 1
    yield from (address[start:] for address in shown)
