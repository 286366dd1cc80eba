"""A bucket, and a web server that can fail in the ways of real ones."""

import http.server
import io
import logging
import os
import re
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path
from typing import Any

import polars as pl
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class Faults:
    """What a server does wrong, and what it was asked.

    Attributes:
        failures: requests that are still to be answered with `status`.
        fails_first: whether the first request for each path is answered with `status` too.
        pattern: only of paths that match.
        has_ranges: whether it can send a part of a file.
        delay_seconds: of each answer.
        requests: method, path and range of each request.
    """

    failures: int = 0
    fails_first: bool = False
    status: int = 503
    pattern: str = ""
    has_ranges: bool = True
    delay_seconds: float = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)

    def reset(self) -> None:
        """Answer correctly again, and forget what was asked."""
        self.failures, self.fails_first, self.status, self.pattern, self.has_ranges = 0, False, 503, "", True
        self.requests.clear()
        self.failed.clear()

    def is_due(self, path: str) -> bool:
        """Return whether to fail this request, after the delay."""
        time.sleep(self.delay_seconds)
        if not re.search(self.pattern, path):
            return False
        is_first = self.fails_first and path not in self.failed
        if not (self.failures or is_first):
            return False
        self.failures = max(0, self.failures - 1)
        self.failed.add(path)
        return True


class StoreRequestHandler(http.server.SimpleHTTPRequestHandler):
    """Serve a folder with ETags and ranges."""

    faults: Faults

    def do_GET(self):
        self._answer(with_body=True)

    def do_HEAD(self):
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.faults.requests.append((self.command, self.path, wanted))
        if self.faults.is_due(self.path):
            self.send_error(self.faults.status)
            return
        file = self.translate_path(self.path)
        if not os.path.isfile(file):
            super().do_GET() if with_body else super().do_HEAD()
            return
        data = Path(file).read_bytes()
        tag, total = md5(data).hexdigest(), len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        has_range = match is not None and self.faults.has_ranges
        if match is not None and has_range:
            data = data[int(match[1]) : int(match[2]) + 1]
        self.send_response(206 if has_range else 200)
        if match is not None and has_range:
            self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{total}")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{tag}"')
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format, *args):  # noqa: A002
        pass


@contextmanager
def serve_store(folder: Path) -> Iterator[tuple[str, Faults]]:
    """Serve a folder within this block; gives the address and the faults to set."""
    faults = Faults()
    kind = type("Handler", (StoreRequestHandler,), {"faults": faults})

    def handler(*arguments: Any) -> StoreRequestHandler:
        return kind(*arguments, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        # The default interval would delay the end of each test by half a second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", faults
        server.shutdown()


@contextmanager
def serve_s3(host: str = "127.0.0.1") -> Iterator[tuple[str, Faults]]:
    """Run moto's S3 server within this block, behind faults; gives the endpoint."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[s3]' flask flask-cors")
    import werkzeug.serving

    faults, application = Faults(), moto.DomainDispatcherApplication(moto.create_backend_app)

    def answer(environ, start_response):
        path = environ["PATH_INFO"]
        faults.requests.append((environ["REQUEST_METHOD"], path, environ.get("HTTP_RANGE", "")))
        if faults.is_due(path):
            start_response(f"{faults.status} Slow Down", [("Content-Length", "0")])
            return [b""]
        return application(environ, start_response)

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = werkzeug.serving.make_server(host, 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{host}:{server.server_port}", faults
    server.shutdown()


def put_files(endpoint: str, bucket: str, files: Mapping[str, bytes]) -> None:
    """Put files into a bucket of `serve_s3`."""
    import boto3

    names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **names)
    # In this region, creating a bucket that exists changes nothing.
    client.create_bucket(Bucket=bucket)
    for name, data in files.items():
        client.put_object(Bucket=bucket, Key=name, Body=data)
    client.close()


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder, by their paths, in the order of a scan."""
    from ikebana.data.containers import make_scan_key

    paths = sorted(
        (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()), key=make_scan_key
    )
    return {path: (folder / path).read_bytes() for path in paths}


def pack_shard(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Pack files into an uncompressed tar, in order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def pack_samples(files: Mapping[str, bytes], first: int = 0) -> bytes:
    """Pack photos in class folders as samples of a WebDataset shard: 000000.jpg beside 000000.cls."""
    members: list[tuple[str, bytes]] = []
    for number, (path, data) in enumerate(files.items(), first):
        members += [(f"{number:06}.jpg", data), (f"{number:06}.cls", path.split("/")[0].encode())]
    return pack_shard(members)


def write_parquet(file: Path, files: Mapping[str, bytes], group_rows: int = 7) -> None:
    """Write photos in class folders as Parquet with `image` (bytes and path) and `label`."""
    rows = [
        {"image": {"bytes": data, "path": path.rpartition("/")[2]}, "label": path.split("/")[0]}
        for path, data in files.items()
    ]
    schema = {"image": pl.Struct({"bytes": pl.Binary, "path": pl.String}), "label": pl.String}
    pl.DataFrame(rows, schema=schema).write_parquet(file, row_group_size=group_rows)
