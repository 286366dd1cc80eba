"""Zip and tar archives with any members, and what ikebana reads from them."""

import io
import struct
import tarfile
import warnings
import zipfile
import zlib

from ikebana.data import sources

from .images import encode_photo, two_classes


def make_zip(members, compression=zipfile.ZIP_STORED) -> bytes:
    """Make a zip of these (name, bytes, Unix mode) as they are, however malformed."""
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", compression) as archive:
        # Tests need duplicate names.
        warnings.simplefilter("ignore")
        for name, data, mode in members:
            entry = zipfile.ZipInfo("x")
            entry.filename, entry.compress_type, entry.create_system = name, compression, 3
            entry.external_attr = mode << 16
            archive.writestr(entry, data)
    return stream.getvalue()


def make_tar(members, mode="w:") -> bytes:
    """Make a tar of these (name, bytes, type); a link's bytes are its target."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=tarfile.GNU_FORMAT) as archive:  # pyright: ignore
        for name, data, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(data) if kind == tarfile.REGTYPE else 0
            entry.linkname = data.decode() if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            archive.addfile(entry, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return stream.getvalue()


def make_archive(names, kind: str) -> bytes:
    """Make an archive of two classes, and of photos under these names."""
    files = [*two_classes().items(), *((name, encode_photo(200 + row)) for row, name in enumerate(names))]
    return (
        make_zip([(*file, 0o100644) for file in files])
        if kind == "zip"
        else make_tar([(*file, tarfile.REGTYPE) for file in files])
    )


def read_statuses(tmp_path, data: bytes, name: str = "photos.zip") -> dict[str, str]:
    """Read {member: status} from an archive; assert that only the cache was written."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / name).write_bytes(data)
    dataset = sources.read(home / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["home"]
    assert [entry.name for entry in home.iterdir()] == [name]
    return {
        path.removeprefix(f"{name}!"): status for path, status in dataset.photos.select("path", "status").iter_rows()
    }


def make_raw_zip(members, flags: int = 0, system: int = 3, disk: int = 0) -> bytes:
    """Make a zip of these (name in bytes, data, extra field).

    It can be as programs of any system write it; APPNOTE 4.3. `flags` and `system` are those of
    all members, and `disk` is the number of the last part.
    """
    content = directory = b""
    for name, data, *rest in members:
        extra = b"".join(rest)
        sizes = (zlib.crc32(data), len(data), len(data), len(name), len(extra))
        header = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0x6000, 0x5A21, *sizes)
        place = struct.pack("<HHHII", 0, disk, 0, 0o100644 << 16, len(content))
        directory += b"PK\1\2" + struct.pack("<BB", 20, system) + header + place + name + extra
        content += b"PK\3\4" + header + name + extra + data
    count, size = len(members), len(directory)
    end = struct.pack("<HHHHIIH", disk, disk, count, count, size, len(content), 0)
    return content + directory + b"PK\5\6" + end


def make_unicode_path(raw_name: bytes, name: str) -> bytes:
    """Make Info-ZIP's extra field that gives a member's name in UTF-8; APPNOTE 4.6.9."""
    content = struct.pack("<BI", 1, zlib.crc32(raw_name)) + name.encode()
    return struct.pack("<HH", 0x7075, len(content)) + content
