"""Imitations of the parts of Hugging Face's and Google's servers that ikebana uses."""

import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]

    def log_message(self, format, *args):  # noqa: A002 -- the name is the standard library's
        pass

    def send_json(self, value: object, status: int = 200) -> None:
        self.send_bytes(json.dumps(value).encode(), {"Content-Type": "application/json"}, status)

    def send_bytes(self, data: bytes, headers: Mapping[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_range(self, data: bytes, headers: Mapping[str, str]) -> None:
        """Send the range that the request wants, or everything."""
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if not wanted:
            self.send_bytes(data, headers)
            return
        start, end = (int(part) for part in wanted.split("-"))
        content_range = {"Content-Range": f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"}
        self.send_bytes(data[start : end + 1], {**headers, **content_range}, 206)


class HuggingFaceHandler(_Handler):
    """A data set `user/name`, in one revision."""

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        try:
            paths = json.loads(body)["paths"]
        except ValueError:
            paths = parse_qs(body).get("paths", [])
        entries = [self._describe(path) for path in ([paths] if isinstance(paths, str) else paths)]
        self.send_json([entry for entry in entries if entry])

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if "/tree/" in path:
            _, _, folder = path.partition("/tree/")[2].partition("/")
            self.send_json(self._list(folder))
        elif "/resolve/" in path:
            _, _, name = path.partition("/resolve/")[2].partition("/")
            data = self.files.get(name)
            if data is None:
                self.send_json({"error": "Entry not found"}, 404)
                return
            self.send_range(data, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        elif path.startswith("/api/datasets/user/name"):
            self.send_json({"id": "user/name", "sha": COMMIT, "private": False, "siblings": [], "tags": []})
        else:
            self.send_json({"error": "Repository not found"}, 404)

    def _describe(self, path: str) -> dict[str, object] | None:
        if path in self.files:
            data = self.files[path]
            return {"type": "file", "path": path, "size": len(data), "oid": sha1(data).hexdigest()}
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"type": "directory", "path": path, "oid": sha1(path.encode()).hexdigest()}
        return None

    def _list(self, folder: str) -> list[dict[str, object] | None]:
        prefix = f"{folder}/" if folder else ""
        names = {prefix + name[len(prefix) :].partition("/")[0] for name in self.files if name.startswith(prefix)}
        return [self._describe(name) for name in sorted(names)]


class GoogleHandler(_Handler):
    """A bucket `garden` of Google Cloud Storage."""

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        bucket, _, name = parts.path.partition("/b/")[2].partition("/o")
        name = unquote(name.removeprefix("/"))
        if bucket != "garden":
            self.send_json({"error": {"code": 404, "message": "The specified bucket does not exist."}}, 404)
        elif not name:
            self._list(query.get("prefix", ""), query.get("delimiter", ""))
        elif name not in self.files:
            self.send_json({"error": {"code": 404, "message": "No such object"}}, 404)
        elif query.get("alt") == "media":
            self.send_range(self.files[name], {"Content-Type": "image/jpeg"})
        else:
            self.send_json(self._describe(name))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip("\"'").encode()
        _, metadata, data, *_ = body.split(b"--" + boundary)
        name = json.loads(metadata.split(b"\n\n", 1)[-1].split(b"\r\n\r\n", 1)[-1])["name"]
        separator = b"\r\n\r\n" if b"\r\n\r\n" in data else b"\n\n"
        self.files[name] = data.split(separator, 1)[1].removesuffix(b"\n").removesuffix(b"\r")
        self.send_json(self._describe(name))

    def _list(self, prefix: str, delimiter: str) -> None:
        items, prefixes = [], set()
        for name in sorted(self.files):
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(name))
        self.send_json({"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _describe(self, name: str) -> dict[str, str]:
        data = self.files[name]
        tag = sha1(data).hexdigest()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": "garden",
            "size": str(len(data)),
            "etag": tag,
            "generation": str(int(tag[:8], 16)),
            "updated": "2026-01-01T00:00:00Z",
            "timeCreated": "2026-01-01T00:00:00Z",
        }


class RefusingGoogleHandler(_Handler):
    """Google Cloud Storage that refuses each request."""

    def do_GET(self):
        self.send_json({"error": {"code": 400, "message": "Bad Request"}}, 400)


@contextmanager
def serve_hub(handler: type[_Handler], files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve files within this block; gives the address."""
    kind = type("Handler", (handler,), {"files": dict(files)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        # The default interval would delay the end of each test by half a second.
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
