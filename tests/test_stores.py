"""Object stores and web servers: what is listed, read and written, and what fails how."""

import importlib
import pickle
import shutil
import socket
import subprocess
import sys

import pytest
from support.stores import CREDENTIALS, put_files, serve_store

from ikebana.data import pixel_cache, sources, store_errors, stores
from ikebana.data.decoding import REASON_STORE_UNAVAILABLE, TRANSIENT_REASONS
from ikebana.data.locations import Location
from ikebana.data.store_errors import ChangedFile, StoreError
from ikebana.errors import PhotosError, UnreadablePhoto

FILES = {
    "photos/a/1.jpg": b"one",
    "photos/a/two words.jpg": b"two" * 1000,
    "photos/b/c/ä#1.jpg": b"three",
    "top.txt": b"t",
}


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("immediate_retries")]


@pytest.fixture
def bucket(s3):
    """The faults of the server of s3://bucket, which has the files."""
    put_files(s3[0], "bucket", FILES)
    s3[1].requests.clear()
    return s3[1]


@pytest.fixture
def web(tmp_path):
    """The address of a web server with the same files, and its faults."""
    for name, data in FILES.items():
        (tmp_path / "web" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "web" / name).write_bytes(data)
    with serve_store(tmp_path / "web") as (address, faults):
        yield address, faults


def test_a_listing_has_the_size_and_the_stamp_of_every_file(bucket):
    files = stores.list_files("s3://bucket/photos")
    assert [file.address for file in files] == [f"s3://bucket/{name}" for name in sorted(FILES) if "photos" in name]
    assert [file.size for file in files] == [3, 3000, 5]
    assert len({file.stamp for file in files}) == 3
    assert all(file == stores.stat(file.address) for file in files)


def test_a_listing_of_a_web_server_has_what_its_index_links_to(web):
    files = stores.list_files(f"{web[0]}/photos/")
    listed = {stores.decode_path(file.address).removeprefix(f"{web[0]}/"): stores.read(file) for file in files}
    assert listed == {name: data for name, data in FILES.items() if name.startswith("photos")}


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 3000), (10, 20), (2999, 3000), (5, 5)])
def test_a_range_of_a_stored_file_is_that_of_its_bytes(kind, start, end, bucket, web):
    root = "s3://bucket" if kind == "s3" else web[0]
    name = "photos/a/two words.jpg"
    file = stores.stat(f"{root}/{name if kind == 's3' else name.replace(' ', '%20')}")
    assert file is not None
    assert stores.read(file, start, end) == FILES[name][start:end]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_server_without_ranges_still_sends_the_start_of_a_file(web, has_ranges):
    address, faults = web
    faults.has_ranges = has_ranges
    file = stores.stat(f"{address}/photos/a/two%20words.jpg")
    assert file is not None
    assert stores.read(file, 3, 9) == b"twotwo"


def test_a_server_without_ranges_is_not_asked_for_the_end_of_a_large_file(tmp_path):
    (tmp_path / "large.tar").write_bytes(bytes(2**25))
    with serve_store(tmp_path) as (address, faults):
        faults.has_ranges = False
        file = stores.stat(f"{address}/large.tar")
        assert file is not None
        with pytest.raises(StoreError, match="whole files only") as refusal:
            stores.read(file, 2**25 - 8, 2**25)
        assert refusal.value.advice == "download the file"


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_an_overloaded_store_is_asked_again(kind, bucket, web):
    root, faults = ("s3://bucket", bucket) if kind == "s3" else web
    file = stores.stat(f"{root}/photos/a/1.jpg")
    assert file is not None
    faults.failures = len(store_errors.RETRY_DELAYS_SECONDS)
    assert stores.read(file) == b"one"
    assert faults.failures == 0


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_store_that_stays_overloaded_is_a_transient_reason_of_the_photo(kind, bucket, web):
    root, faults = ("s3://bucket", bucket) if kind == "s3" else web
    file = stores.stat(f"{root}/photos/a/1.jpg")
    assert file is not None
    faults.failures = 1000
    with pytest.raises(UnreadablePhoto) as refusal:
        Location(file.address, size=file.size, stamp=file.stamp).read()
    assert refusal.value.what == REASON_STORE_UNAVAILABLE
    assert REASON_STORE_UNAVAILABLE in TRANSIENT_REASONS


@pytest.mark.parametrize("status", [403, 503])
def test_photos_that_a_store_denied_once_are_read_by_the_next_call(web, paper_photos, tmp_path, status, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    shutil.copytree(paper_photos, tmp_path / "web" / "paper")
    root, faults = web
    listed = sources.read(f"{root}/paper/")
    faults.status, faults.pattern, faults.failures = status, r"\.(jpg|png|webp)$", 10**6
    dataset, _ = pixel_cache.open_pixel_cache(listed, 32, "squash")
    assert dataset.used_photos.height == 0
    faults.reset()
    dataset, _ = pixel_cache.open_pixel_cache(listed, 32, "squash")
    assert dataset.used_photos.height > 0.9 * dataset.photos.height


def test_a_refused_connection_names_the_address_and_no_traceback(monkeypatch):
    monkeypatch.setattr(stores, "_filesystems", {})
    with pytest.raises(StoreError, match="does not answer") as refusal:
        stores.list_files("http://127.0.0.1:9/photos/")
    assert refusal.value.is_transient
    assert refusal.value.where == "http://127.0.0.1:9/photos/"


def test_a_name_that_cannot_be_resolved_is_a_connection_that_fails():
    def resolve():
        raise OSError("no connection") from socket.gaierror(-2, "Name or service not known")

    with pytest.raises(StoreError, match="does not answer") as refusal:
        store_errors.request(resolve, "hf://datasets/user/name")
    assert refusal.value.is_transient
    assert "check the connection" in str(refusal.value)


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_a_file_that_changed_since_it_was_listed_is_not_used(kind, bucket, web, tmp_path):
    root = "s3://bucket" if kind == "s3" else web[0]
    file = stores.stat(f"{root}/photos/a/1.jpg")
    assert file is not None
    stores.write("s3://bucket/photos/a/1.jpg", b"ONE")
    (tmp_path / "web/photos/a/1.jpg").write_bytes(b"ONE")
    try:
        with pytest.raises(ChangedFile):
            stores.read(file)
        with pytest.raises(UnreadablePhoto, match="changed since it was listed"):
            Location(file.address, size=file.size, stamp=file.stamp).read()
    finally:
        stores.write("s3://bucket/photos/a/1.jpg", b"one")


def test_a_missing_bucket_or_file_is_an_error_at_once(bucket, web):
    for address in ("s3://nowhere/photos", "s3://bucket/nothing", f"{web[0]}/nothing.jpg"):
        with pytest.raises(StoreError, match="there is no such file, folder or bucket") as refusal:
            stores.stat(address)
        assert refusal.value.is_missing
    with pytest.raises(StoreError, match="there is no such file, folder or bucket"):
        stores.list_files("s3://nowhere/photos")


def test_missing_credentials_are_an_error_that_names_the_variables(bucket, monkeypatch, tmp_path):
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="access denied") as refusal:
        stores.stat("s3://bucket/photos/a/1.jpg")
    assert "AWS_ACCESS_KEY_ID" in str(refusal.value)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_server_is_not_retried(web, status):
    address, faults = web
    faults.failures, faults.status = 1000, status
    with pytest.raises(StoreError, match=rf"access denied \(HTTP {status}\)"):
        stores.stat(f"{address}/photos/a/1.jpg")
    # HEAD, then GET, because some servers know no HEAD.
    assert len(faults.requests) == 2


def test_one_file_is_one_put(bucket):
    stores.write("s3://bucket/out/rows.parquet", bytes(2**20))
    assert [request[0] for request in bucket.requests] == ["PUT"]
    assert stores.list_names("s3://bucket/out") == {"rows.parquet"}
    assert stores.list_names("s3://bucket/none") == set()


def test_a_web_server_takes_no_files(web):
    with pytest.raises(StoreError, match="takes no files"):
        stores.write(f"{web[0]}/rows.parquet", b"")


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(stores, "_filesystems", {})
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    with pytest.raises(PhotosError, match="need another package") as refusal:
        stores.stat("s3://bucket/photos")
    assert refusal.value.advice == (
        "pip install -c requirements.lock '.[s3]' in ikebana's folder; "
        "without PyTorch: pip install -c requirements.lock s3fs"
    )


# Messages of gcsfs within a request and after it.
LOG = """
import logging, sys
from ikebana.data import store_errors
if sys.argv[1] == "configured":
    logging.basicConfig(format="%(message)s")
logger = logging.getLogger("gcsfs.credentials")
store_errors.request(lambda: logger.warning("within"), "gs://garden")
logger.warning("after")
"""


@pytest.mark.parametrize(("program", "printed"), [("plain", "after\n"), ("configured", "within\nafter\n")])
def test_gcsfs_prints_nothing_during_a_request_unless_the_program_configures_logging(program, printed):
    done = subprocess.run([sys.executable, "-c", LOG, program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", printed)


def test_a_location_can_be_read_by_another_process(bucket):
    location = Location("s3://bucket/photos/a/two words.jpg", size=3000)
    code = "import pickle, sys; print(len(pickle.loads(sys.stdin.buffer.read()).read()))"
    answer = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(location), capture_output=True, check=True)
    assert int(answer.stdout) == 3000
    assert len(pickle.dumps(location)) < 300


def test_a_stream_requests_blocks_and_not_the_whole_file(web, tmp_path):
    address, faults = web
    (tmp_path / "web/large.bin").write_bytes(bytes(range(256)) * 4096)
    file = stores.stat(f"{address}/large.bin")
    assert file is not None
    faults.requests.clear()
    with stores.open_stream(file, 1024) as stream:
        stream.seek(500_000)
        assert stream.read(3) == bytes((500_000 + step) % 256 for step in range(3))
    assert [request[2] for request in faults.requests] == ["bytes=500000-501023"]


@pytest.mark.parametrize(
    ("text", "is_address"),
    [
        ("s3://b/k", True),
        ("HTTPS://x", True),
        ("hf://datasets/a/b", True),
        ("gs://b", True),
        ("flowers", False),
        ("ftp://x/y", False),
        ("C:/photos", False),
        ("s3:/b", False),
        ("", False),
    ],
)
def test_only_the_five_kinds_of_address_are_addresses(text, is_address):
    assert stores.is_address(text) == is_address
