"""Requests of many kinds of clients: browsers, curl, libraries, apps, monitors, proxies and notebooks."""

import asyncio
import base64
import contextlib
import gzip
import json
import subprocess
import sys
import zlib

import httpx
import pytest
from support.server import BLUE, RED, assert_error, encode_square, read_response, run_server

import ikebana
from ikebana.errors import MachineError, RecipeError
from ikebana.serving import connections, cross_origin, forms

pytestmark = pytest.mark.slow

ORIGIN = "https://garden.example"


@pytest.fixture(scope="module")
def served():
    with run_server() as server:
        yield server


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def post_form(served, *parts: bytes, kind="multipart/form-data; boundary=B"):
    body = b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + b"--B--\r\n"
    return served.client.post("/predict", content=body, headers={"Content-Type": kind})


def make_part(disposition: str, content: bytes = RED, **headers: str) -> bytes:
    fields = {"Content-Disposition": disposition, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode() + b"\r\n" + content


def predict_json(served, value, **headers):
    body = json.dumps(value)  # httpx leaves out a body of `None`
    return served.client.post("/predict", content=body, headers={"Content-Type": "application/json", **headers})


def labels_of(response) -> list[tuple[str, str | None]]:
    assert response.status_code == 200, response.text
    return [(prediction["name"], prediction["label"]) for prediction in response.json()["predictions"]]


# --- monitors, proxies and people at an address bar ---


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/classes", "/healthz", "/readyz", "/metrics", "/openapi.json", "/page.css"]
)
def test_head_is_get_without_the_body(served, path):
    get, head = served.client.get(path), served.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    if path != "/metrics":  # its length grows with every request
        assert head.headers["content-length"] == str(len(get.content))


def test_head_is_refused_like_get(served):
    assert served.client.head("/predict").headers["allow"] == "POST"
    assert served.client.head("/nothing").status_code == 404
    with run_server(token="secret") as private:
        assert private.client.head("/classes").status_code == 401


@pytest.mark.parametrize(("method", "path", "allowed"), [
    ("GET", "/predict", {"POST"}), ("PUT", "/predict", {"POST"}), ("BREW", "/classes", {"GET", "HEAD"}),
    ("OPTIONS", "/classes", {"GET", "HEAD"}), ("DELETE", "/", {"GET", "HEAD"}),
])  # fmt: skip
def test_a_method_that_is_not_allowed_names_those_that_are(served, method, path, allowed):
    response = served.client.request(method, path)
    assert_error(response, 405)
    assert set(response.headers["allow"].split(", ")) == allowed


def test_a_trailing_slash_changes_nothing(served):
    assert served.client.get("/classes/").json() == served.client.get("/classes").json()
    assert labels_of(served.client.post("/predict/", content=RED)) == [("", "red")]
    # Links of a page are relative: below /docs/ they would lead nowhere.
    assert served.client.get("/docs/").is_redirect
    assert served.client.get("/docs/", follow_redirects=True).text == served.client.get("/docs").text


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "image/*;q=0.1", "*/*", ""])
def test_predictions_are_json_whatever_a_client_accepts(served, accept):
    assert labels_of(served.post(headers={"Accept": accept})) == [("", "red")]


# --- forms ---


@pytest.mark.parametrize(("part", "name"), [
    (make_part('form-data; name="photo"', Content_Type="image/jpeg"), ""),
    (make_part('form-data; name="photo"', Content_Type="application/octet-stream"), ""),
    (make_part('form-data; name="photo"'), ""),
    (make_part("form-data; name=photo; filename=rose.png"), "rose.png"),
    (make_part("form-data; name=\"photo\"; filename*=UTF-8''%E8%8A%B1.jpg"), "花.jpg"),
    (make_part("form-data; name=photo; filename*=\"utf-8'en'a%20b.png\""), "a b.png"),
    (make_part("form-data; name=photo; filename*=iso-8859-1''caf%E9.png"), "café.png"),
    (make_part("form-data; name=photo; filename*=undefined''caf%C3%A9.png"), "café.png"),
    # .NET sends a name for old servers too.
    (make_part("form-data; name=photo; filename=\"=?utf-8?B?6Iqx?=\"; filename*=utf-8''%E8%8A%B1"), "花"),
    # Python's http.client and many apps send the name in UTF-8, browsers with %22 for a quote.
    (make_part('form-data; name="photo"; filename="花.jpg"'), "花.jpg"),
    (make_part('form-data; name="photo"; filename="a%22b.jpg"'), "a%22b.jpg"),
    (make_part('form-data; name="photo"; filename="a \\"b\\".jpg"'), 'a "b".jpg'),
    (make_part('form-data; name="photo"; filename="a;b=c.jpg"'), "a;b=c.jpg"),
    (make_part('form-data; name="photo"; filename=""'), ""),
    # OkHttp and Apache's client.
    (make_part('form-data; name="p"; filename="x.png"', Content_Transfer_Encoding="binary", Content_Length="75"), "x.png"),
    (make_part('form-data; name="p"; filename="x.png"', base64.encodebytes(RED), Content_Transfer_Encoding="BASE64"), "x.png"),
    # A page sends what its canvas gives.
    (make_part('form-data; name="photo"', b"data:image/png;base64," + base64.b64encode(RED)), ""),
])  # fmt: skip
def test_a_photo_in_a_form_needs_no_file_name(served, part, name):
    assert labels_of(post_form(served, part)) == [(name, "red")]


def test_fields_and_inputs_without_a_file_are_ignored(served):
    note = make_part('form-data; name="note"', "für Ada, data:mine".encode())
    empty = make_part('form-data; name="photo"; filename=""', b"", Content_Type="application/octet-stream")
    photo = make_part('form-data; name="photo"; filename="b.png"', BLUE)
    assert labels_of(post_form(served, note, empty, photo, note)) == [("b.png", "blue")]
    assert_error(post_form(served, note, empty), 400, "no file")


@pytest.mark.parametrize("kind", ["multipart/mixed; boundary=B", 'Multipart/Form-Data; charset=utf-8; boundary="B"'])
def test_a_form_may_be_declared_in_other_ways(served, kind):
    assert labels_of(post_form(served, make_part("form-data; filename=a.png"), kind=kind)) == [("a.png", "red")]


def test_a_form_without_a_boundary_is_refused_with_advice(served):
    answer = assert_error(
        post_form(served, make_part("form-data"), kind="multipart/form-data"), 400, "malformed.*boundary"
    )
    assert "Content-Type" in answer["advice"]


@pytest.mark.parametrize(("part", "words"), [
    (make_part("form-data; filename=a.png", Content_Transfer_Encoding="uuencode"), "uuencode"),
    (make_part("form-data; filename=a.png", b"%%%", Content_Transfer_Encoding="base64"), "base64"),
    (make_part("form-data; name=a", b"data:image/png;base64,%%%"), "base64"),
])  # fmt: skip
def test_a_part_that_cannot_be_decoded_is_refused(served, part, words):
    assert_error(post_form(served, part), 400, words)


def test_photos_without_a_name_count_as_photos():
    with run_server(files=2) as served:
        assert_error(post_form(served, *[make_part('form-data; name="photo"')] * 3), 413, "more than 2 photos")


@pytest.mark.parametrize("disposition", [
    b"form-data; filename*=x; filename*0=y", b"form-data; filename*", b"", b"\xff\xfe", b'form-data; filename="',
    b"form-data; filename*=''", b"form-data" + b"; filename*=a''" * 400, b"form-data; filename*=" + b"a" * 4000,
])  # fmt: skip
def test_any_content_disposition_can_be_searched_for_a_name(disposition):
    assert forms.read_file_name(disposition) is None or len(forms.read_file_name(disposition) or "") <= 255


# --- JSON ---


def test_photos_in_json_are_base64_or_data_urls(served):
    wrapped = base64.encodebytes(RED).decode()  # lines of 76 characters, as Android makes them
    for_urls = base64.urlsafe_b64encode(RED).decode().rstrip("=")
    data_url = "data:image/png;charset=x;base64," + encode_base64(RED)
    for text in (encode_base64(RED), wrapped, for_urls, data_url):
        assert labels_of(predict_json(served, {"photo": text})) == [("", "red")]


def test_json_can_have_several_photos_and_their_names(served):
    red, blue = encode_base64(RED), {"name": "b.png", "photo": encode_base64(BLUE)}
    assert labels_of(predict_json(served, {"photo": [red, blue]})) == [("", "red"), ("b.png", "blue")]
    assert labels_of(predict_json(served, [blue, red])) == [("b.png", "blue"), ("", "red")]
    assert labels_of(predict_json(served, blue | {"more": 1})) == [("b.png", "blue")]
    response = served.client.post("/predict?name=rose.png", json={"photo": red})
    assert labels_of(response) == [("rose.png", "red")]


def test_json_is_understood_without_its_content_type(served):
    """`curl -d` declares a web form."""
    body = json.dumps({"photo": encode_base64(RED)})
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/vnd.api+json"):
        response = served.client.post("/predict", content=body, headers={"Content-Type": kind})
        assert labels_of(response) == [("", "red")]


def test_a_data_url_alone_is_a_photo(served):
    assert labels_of(served.post(b"data:image/png;base64," + base64.b64encode(RED))) == [("", "red")]


@pytest.mark.parametrize(("value", "words"), [
    ({}, "no .photo"), ({"image": "x", "size": 3}, "it has image, size"), ([], "no .photo"), ({"photo": []}, "no .photo"),
    (3, "no .photo"), ("x", "no .photo"), (None, "no .photo"), ({"photo": 3}, "photo 1 of the JSON is not text"),
    ({"photo": None}, "photo 1"), ({"photo": [encode_base64(RED), 3]}, "photo 2"), ({"photo": {"photo": "x"}}, "photo 1"),
    ({"photo": "https://garden.example/rose.jpg"}, "starts with 'https://garden.example"), ({"photo": "garden.jpg"}, "base64"),
    ({"photo": ["x"], "name": "a"}, "one name"), ({"photo": "ééé"}, "base64"),
])  # fmt: skip
def test_json_without_photos_is_refused_with_its_keys(served, value, words):
    answer = assert_error(predict_json(served, value), 400, words)
    assert "photo" in answer["advice"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe\x00", b"[" * 900, b'{"photo": 1' + b"1" * 9000 + b"}", b"{'photo': 1}", RED]
)
def test_invalid_json_is_refused(served, body):
    assert_error(
        served.client.post("/predict", content=body, headers={"Content-Type": "application/json"}), 400, "JSON"
    )


def test_json_of_many_values_is_refused_before_it_is_parsed(served):
    for body in (b"[" * 10**6, b"[" + b"0," * 10**6 + b"0]", b"[" + b"{}," * 10**6 + b"0]"):
        response = served.client.post("/predict", content=body, headers={"Content-Type": "application/json"})
        assert_error(response, 413, "too many values")
    assert served.queue.held_bytes == 0


def test_json_has_the_same_limits_as_photos():
    with run_server(files=2, megabytes=1) as served:
        assert_error(predict_json(served, [encode_base64(RED)] * 3), 413, "more than 2 photos")
        assert_error(predict_json(served, {"photo": encode_base64(bytes(2**20))}), 413, "larger than 1 MB")
    with run_server(held_megabytes=1) as served:
        assert_error(predict_json(served, {"photo": encode_base64(bytes(700_000))}), 503, "too many uploads")
        assert served.queue.held_bytes == 0


# --- compressed, chunked and announced bodies ---


def post_gzip(served, data: bytes, **headers: str):
    return served.client.post("/predict", content=data, headers={"Content-Encoding": "gzip", **headers})


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZIP", "identity"])
def test_a_body_may_be_compressed(served, encoding):
    data = RED if encoding == "identity" else gzip.compress(RED)
    response = served.client.post("/predict", content=data, headers={"Content-Encoding": encoding})
    assert labels_of(response) == [("", "red")]


def test_compressed_forms_json_and_large_photos_are_understood_too(served):
    request = httpx.Request("POST", served.url, files={"photo": ("a.png", RED)})
    response = post_gzip(served, gzip.compress(request.read()), **{"Content-Type": request.headers["Content-Type"]})
    assert labels_of(response) == [("a.png", "red")]
    body = gzip.compress(json.dumps({"photo": encode_base64(BLUE)}).encode())
    assert labels_of(post_gzip(served, body, **{"Content-Type": "application/json"})) == [("", "blue")]
    large = encode_square("blue", 900, "BMP")
    assert labels_of(post_gzip(served, gzip.compress(large))) == [("", "blue")]


def test_a_compression_bomb_is_refused_at_the_limit():
    bomb = gzip.compress(bytes(300 * 2**20), 9)
    assert len(bomb) < 2**20
    with run_server(megabytes=2) as served:
        assert_error(post_gzip(served, bomb), 413, "larger than 2 MB")
        assert_error(served.client.post("/predict", content=iter([bomb[:1000], bomb[1000:]]),
                                        headers={"Content-Encoding": "gzip"}), 413, "larger than 2 MB")  # fmt: skip
        served.wait_until(lambda: served.queue.held_bytes == 0)
        assert labels_of(served.post()) == [("", "red")]
    with run_server(held_megabytes=1) as served:
        assert_error(post_gzip(served, gzip.compress(bytes(2 * 2**20))), 503, "too many uploads")


GZIPPED = gzip.compress(RED, mtime=0)


@pytest.mark.parametrize(("data", "words"), [
    pytest.param(RED, "not gzip", id="plain"), pytest.param(b"", "truncated", id="empty"),
    pytest.param(GZIPPED[:-9], "truncated", id="truncated"), pytest.param(GZIPPED + b"x", "after its end", id="a byte more"),
    pytest.param(GZIPPED * 2, "after its end", id="twice"), pytest.param(zlib.compress(RED), "not gzip", id="zlib"),
    pytest.param(GZIPPED[:-8] + bytes(8), "not gzip", id="wrong checksum"),
])  # fmt: skip
def test_damaged_gzip_is_refused(served, data, words):
    assert_error(post_gzip(served, data), 400, words)


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip", "x" * 900])
def test_another_encoding_is_refused_with_the_supported_one(served, encoding):
    response = served.client.post("/predict", content=RED, headers={"Content-Encoding": encoding})
    assert_error(response, 415, "encoded as")
    assert response.headers["accept-encoding"] == "gzip"


def test_a_chunked_body_is_one_photo(served):
    assert labels_of(served.client.post("/predict", content=iter([RED[:9], RED[9:]]))) == [("", "red")]


def send_expecting(connection, length: int) -> None:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())


def test_a_client_that_waits_for_100_continue_gets_it(served):
    """curl does so for bodies above a megabyte."""
    with served.connect() as connection:
        send_expecting(connection, len(RED))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(RED)
        assert read_response(connection)[0] == 200


def test_a_client_that_waits_gets_413_before_it_sends_its_body(served):
    with served.connect() as connection:
        send_expecting(connection, 10**12)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_connection_survives_refused_requests(served):
    """This holds for requests that the server has read completely."""
    with httpx.Client(base_url=served.url, limits=httpx.Limits(max_connections=1)) as client:
        opened = []
        client.event_hooks["response"].append(
            lambda response: opened.append(response.extensions["network_stream"].get_extra_info("client_addr"))
        )
        for path, body in [("/predict", b"no photo"), ("/nothing", b""), ("/predict", b"{"), ("/predict", RED)]:
            client.post(path, content=body)
    assert len(opened) == 4
    assert len(set(opened)) == 1


# --- pages of other origins ---


def ask_before(served, origin: str, method: str = "POST", headers: str = "authorization, content-type"):
    asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
    return served.client.options("/predict", headers=asked)


def test_without_an_allow_list_no_other_origin_may_read(served):
    for response in (
        ask_before(served, ORIGIN),
        served.post(headers={"Origin": ORIGIN}),
        served.client.get("/classes"),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert ask_before(served, ORIGIN).status_code == 405


def test_pages_of_an_allowed_origin_may_read_predictions_and_errors():
    with run_server(token="secret", origins=[ORIGIN, "http://localhost:3000"]) as served:
        asked = ask_before(served, ORIGIN)
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert {"authorization", "content-type"} <= set(
            asked.headers["access-control-allow-headers"].lower().split(", ")
        )
        allowed, refused = {"Origin": ORIGIN, "Authorization": "Bearer secret"}, {"Origin": ORIGIN}
        for headers, status in ((allowed, 200), (refused, 401)):
            response = served.post(headers=headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert "origin" in response.headers["vary"].lower()
            assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://garden.example.evil.example", "http://garden.example", "null"]
)
def test_other_origins_are_not_allowed(origin):
    with run_server(origins=[ORIGIN]) as served:
        for response in (ask_before(served, origin), served.post(headers={"Origin": origin})):
            assert "access-control-allow-origin" not in response.headers
        assert ask_before(served, origin).status_code == 400


def test_any_origin_is_allowed_only_if_configured():
    with run_server(origins=["*"], token="secret") as served:
        assert ask_before(served, ORIGIN).headers["access-control-allow-origin"] == "*"
        assert served.post(headers={"Origin": ORIGIN}).status_code == 401


@pytest.mark.parametrize(("given", "expected"), [
    ("https://Garden.example/", ORIGIN), ("HTTPS://garden.example:443", ORIGIN), ("http://a.example:443", "http://a.example:443"),
    ("http://[::1]:8080", "http://[::1]:8080"), ("chrome-extension://abcdef", "chrome-extension://abcdef"), ("*", "*"),
])  # fmt: skip
def test_an_origin_is_compared_as_browsers_write_it(given, expected):
    assert cross_origin.normalise_origins(given) == {expected}
    assert cross_origin.normalise_origins([given, given]) == {expected}


@pytest.mark.parametrize(("origin", "advice"), [
    ("garden.example", "http://garden.example"), ("localhost:3000", "http://localhost:3000"), ("", "https://example.org"),
    ("https://garden.example/page", "https://garden.example"), ("null", "'*'"), ("https://*.example", "https://"),
    ("https://a.example,https://b.example", "https://"),
])  # fmt: skip
def test_an_invalid_origin_is_refused_with_a_valid_example(origin, advice):
    with pytest.raises(RecipeError) as refusal:
        cross_origin.normalise_origins([origin])
    assert advice in (refusal.value.advice or "")


# --- addresses ---


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_be_in_brackets(host):
    try:
        listener = connections.bind_socket(host, 0)
    except MachineError:
        pytest.skip("this machine has no IPv6")
    with contextlib.closing(listener):
        assert connections.build_url(listener).startswith("http://[::1]:")
        assert "::1" in (connections.get_allowed_hosts(listener, host) or ())


def test_an_empty_host_does_not_mean_all_addresses():
    with pytest.raises(MachineError, match="the host is empty"):
        connections.bind_socket("", 0)


# --- notebooks ---


def test_a_notebook_gets_a_server_that_it_can_stop(paper_model, good_photos):
    async def cell():
        return ikebana.serve(paper_model, port=0)

    server = asyncio.run(cell())
    assert server is not None
    try:
        response = httpx.post(f"{server.url}/predict", content=good_photos[0].read_bytes(), timeout=20)
        assert response.status_code == 200
        assert server.url in repr(server)
        assert server.url in server._repr_html_()
        assert server.is_running
    finally:
        server.stop()
    assert not server.is_running
    assert "stopped" in repr(server)
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url)


def test_a_server_ends_with_its_program(paper_model):
    code = f"import ikebana; print(ikebana.serve({str(paper_model)!r}, port=0, background=True).url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(done.stdout.strip())


# --- the terminal ---


@pytest.mark.filterwarnings("error")
def test_no_request_writes_to_the_terminal(served, capfd):
    broken = [
        lambda: post_form(served, b"no header\r\n\r\nx"), lambda: post_form(served, kind="multipart/form-data; boundary=x"),
        lambda: served.client.post("/predict", content=b"\xff" * 99, headers={"Content-Type": "multipart/form-data; boundary=B"}),
        lambda: post_gzip(served, b"no gzip"), lambda: predict_json(served, {"photo": 3}), lambda: served.post(b""),
        lambda: served.client.get("/", headers={"Connection": "Upgrade", "Upgrade": "websocket"}),
        lambda: served.client.get("/", headers={"Connection": "Upgrade", "Upgrade": "h2c"}),
        lambda: served.client.request("BREW", "/predict"), lambda: served.client.get("/%ff%00/../x"),
    ]  # fmt: skip
    for send in broken:
        assert send().status_code in range(200, 500)
    noises = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
    for noise in noises:
        with served.connect() as connection, contextlib.suppress(ConnectionError):
            connection.sendall(noise)
            connection.shutdown(1)
            while connection.recv(65536):
                pass
    assert served.post().status_code == 200
    assert capfd.readouterr() == ("", "")


# --- descriptions of the server ---


def test_openapi_names_every_content_type(served):
    body = served.client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]
    assert set(body["content"]) == {"multipart/form-data", "application/json", "image/*"}
    assert "gzip" in body["description"]
