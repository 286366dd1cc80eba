"""Photos of Hugging Face and Google Cloud Storage, on imitations of their servers."""

import os
import subprocess
import sys

import pytest
from support.hubs import GoogleHandler, HuggingFaceHandler, RefusingGoogleHandler, serve_hub
from support.images import encode_photo
from support.stores import write_parquet

pytestmark = pytest.mark.slow

FILES = {f"flowers/{name}/{number}.jpg": encode_photo(number) for name in ("daisy", "rose") for number in range(3)}
# gcsfs asks real servers by gRPC whether folders of the bucket exist by themselves.
GOOGLE = {"FSSPEC_GS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
# In a process of its own, because both clients read their environment when they are imported.
LIST = """
import sys
from ikebana.data import sources
dataset = sources.read(sys.argv[1])
for path, label in dataset.photos.select("path", "label").iter_rows():
    print(path, label, len(dataset.locate(path).read()))
"""


def list_photos(source, **environment):
    variables = {**os.environ, **environment}
    command = [sys.executable, "-c", LIST, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(line.split()) for line in done.stdout.splitlines()]


EXPECTED = [(path.removeprefix("flowers/"), path.split("/")[1], str(len(data))) for path, data in sorted(FILES.items())]


def test_a_folder_of_a_data_set_of_hugging_face_is_a_collection(tmp_path):
    with serve_hub(HuggingFaceHandler, FILES) as address:
        rows = list_photos("hf://datasets/user/name/flowers", HF_ENDPOINT=address, HF_HOME=str(tmp_path))
    assert rows == EXPECTED


def test_parquet_of_a_data_set_of_hugging_face_is_a_collection(tmp_path):
    write_parquet(tmp_path / "train.parquet", {path.removeprefix("flowers/"): data for path, data in FILES.items()})
    files = {"data/train-00000-of-00001.parquet": (tmp_path / "train.parquet").read_bytes()}
    with serve_hub(HuggingFaceHandler, files) as address:
        for source in ("data/train-00000-of-00001.parquet", "data/*.parquet"):
            rows = list_photos(f"hf://datasets/user/name/{source}", HF_ENDPOINT=address, HF_HOME=str(tmp_path / "hf"))
            assert [row[1:] for row in rows] == [row[1:] for row in EXPECTED]


def test_hugging_face_without_a_connection_does_not_answer(tmp_path):
    # No server listens on this port.
    variables = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "ikebana", "audit", "hf://datasets/user/name"]
    failed = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert failed.returncode == 1
    assert failed.stderr.startswith("StoreError: the store does not answer"), failed.stderr
    assert "check the connection" in failed.stderr


def test_a_folder_of_google_cloud_storage_is_a_collection():
    with serve_hub(GoogleHandler, FILES) as address:
        rows = list_photos("gs://garden/flowers", STORAGE_EMULATOR_HOST=address, **GOOGLE)
    assert rows == EXPECTED


WRITE = """
from ikebana.data import stores
print(stores.write("gs://garden/out/a.parquet", b"rows"), stores.write("gs://garden/out/a.parquet", b"more", is_new=True))
print(stores.list_names("gs://garden/out"), stores.read(stores.stat("gs://garden/out/a.parquet")))
"""


def test_a_file_of_google_cloud_storage_is_written_once():
    with serve_hub(GoogleHandler, FILES) as address:
        variables = {**os.environ, "STORAGE_EMULATOR_HOST": address, **GOOGLE}
        done = subprocess.run([sys.executable, "-c", WRITE], capture_output=True, text=True, check=False, env=variables)
    assert done.stdout.split("\n")[:2] == ["True False", "{'a.parquet'} b'rows'"], done.stderr[-3000:]


def test_a_refusal_of_google_cloud_storage_is_an_error_and_no_traceback():
    with serve_hub(RefusingGoogleHandler, FILES) as address:
        variables = {**os.environ, "STORAGE_EMULATOR_HOST": address, **GOOGLE}
        command = [sys.executable, "-m", "ikebana", "audit", "gs://garden/flowers"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 1
    assert done.stderr.startswith("StoreError: the store refused the request"), done.stderr[-3000:]
