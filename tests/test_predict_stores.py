"""Predictions of photos in stores and containers: the rows of a folder."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support.stores import pack_samples, pack_shard, put_files, read_files, serve_store, write_parquet

import ikebana
from ikebana.commands import predict_shards
from ikebana.commands.predict import predict_to_table
from ikebana.commands.predict_shards import ShardOptions, predict_to_shards
from ikebana.data import store_errors, stores
from ikebana.data.decoding import REASON_STORE_UNAVAILABLE
from ikebana.data.listing import STATUS_CHANGED
from ikebana.data.store_errors import StoreError
from ikebana.errors import IkebanaError, IncompleteShard, PhotosError, UsageError
from ikebana.inference.shards import compute_shard

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("immediate_retries")]

# Of probabilities, between batches of different photos.
TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def files(paper_photos):
    """Photos by path in the order of a scan; some cannot be read."""
    listed = list(read_files(paper_photos).items())
    return dict(listed[::2]) | {"zz/empty.jpg": b"", "zz/words.jpg": b"no photo"}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    place = tmp_path_factory.mktemp("photos") / "flowers"
    for path, data in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    return place


@pytest.fixture(scope="module")
def expected(paper_model, folder, tmp_path_factory):
    """The table of the folder, without its paths."""
    table = tmp_path_factory.mktemp("table") / "table.parquet"
    ikebana.predict(paper_model, folder, table)
    return pl.read_parquet(table).drop("path")


@pytest.fixture
def containers(files, tmp_path):
    """The photos in shards and in Parquet."""
    place, parts = tmp_path / "containers", list(files.items())
    place.mkdir()
    (place / "photos-000.tar").write_bytes(pack_samples(dict(parts[:9])))
    (place / "photos-001.tar").write_bytes(pack_samples(dict(parts[9:]), first=9))
    (place / "part-0.tar").write_bytes(pack_shard(parts))
    write_parquet(place / "photos.parquet", files)
    return place


def assert_same_rows(table, expected):
    assert_frame_equal(table.drop("path"), expected, check_exact=False, abs_tol=TOLERANCE, rel_tol=0)


def predict(model, source, tmp_path):
    out = tmp_path / "out.parquet"
    predict_to_table(model, [str(source)], out=out)
    table = pl.read_parquet(out)
    out.unlink()
    return table


SOURCES = ("photos-{000..001}.tar", "photos-*.tar", "part-{0..0}.tar", "photos.parquet")


@pytest.mark.parametrize("name", SOURCES)
def test_shards_and_parquet_give_the_rows_of_the_folder(name, paper_model, containers, expected, tmp_path):
    assert_same_rows(predict(paper_model, containers / name, tmp_path), expected)


def test_a_bucket_gives_the_rows_of_the_folder(s3, paper_model, files, containers, expected, tmp_path):
    stored = {f"flowers/{path}": data for path, data in files.items()}
    put_files(s3[0], "field", stored | {file.name: file.read_bytes() for file in containers.iterdir()})
    for name in ("flowers", *SOURCES):
        assert_same_rows(predict(paper_model, f"s3://field/{name}", tmp_path), expected)
    paths = predict(paper_model, "s3://field/flowers", tmp_path)["path"].to_list()
    assert paths == [f"s3://field/flowers/{path}" for path in files]


def test_a_web_server_gives_the_rows_of_the_folder(paper_model, folder, containers, expected, tmp_path):
    with serve_store(folder.parent) as (address, _):
        assert_same_rows(predict(paper_model, f"{address}/flowers/", tmp_path), expected)
    with serve_store(containers) as (address, _):
        for name in ("photos-{000..001}.tar", "photos.parquet"):
            assert_same_rows(predict(paper_model, f"{address}/{name}", tmp_path), expected)


def test_addresses_from_standard_input_are_photos(s3, paper_model, files, expected, tmp_path):
    put_files(s3[0], "lines", files)
    lines = iter([f"s3://lines/{path}\n" for path in files])
    predict_to_table(paper_model, [], lines, tmp_path / "out.parquet")
    assert_same_rows(pl.read_parquet(tmp_path / "out.parquet"), expected)
    (missing,) = ikebana.predict(paper_model, [*[f"s3://lines/{path}" for path in files], "s3://lines/none.jpg"])[-1:]
    assert missing.status == "there is no such file, folder or bucket"


def test_photos_of_an_overloaded_store_have_a_transient_reason(s3, paper_model, files, expected, tmp_path):
    put_files(s3[0], "busy", files)
    victim = next(path for path, status in zip(files, expected["status"], strict=True) if status == "ok")
    s3[1].failures, s3[1].pattern = 1000, f"/{victim}$"
    table = predict(paper_model, "s3://busy", tmp_path)
    index = list(files).index(victim)
    assert table["status"][index] == REASON_STORE_UNAVAILABLE
    others = pl.arange(table.height, eager=True) != index
    assert_same_rows(table.filter(others), expected.filter(others))


def test_an_interrupted_table_does_not_request_predicted_photos_again(s3, paper_model, files, tmp_path):
    put_files(s3[0], "again", files)
    out = tmp_path / "out.csv"
    predict_to_table(paper_model, ["s3://again"], out=out)
    first = out.read_text()

    class Stopped(Exception):
        pass

    def stop(*_):
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ikebana.inference.prediction_table.Table.finish", stop)
        out.unlink()
        with pytest.raises(Stopped):
            predict_to_table(paper_model, ["s3://again"], out=out)
    s3[1].requests.clear()
    predict_to_table(paper_model, ["s3://again"], out=out)
    usable = [path for path, status in pl.read_csv(out).select("path", "status").iter_rows() if status == "ok"]
    requested = {path for method, path, _ in s3[1].requests if method == "GET"}
    assert not requested & {path.removeprefix("s3:/") for path in usable}
    assert out.read_text() == first


def test_photos_in_a_store_cannot_be_copied(s3, paper_model, files, tmp_path):
    put_files(s3[0], "copies", files)
    with pytest.raises(UsageError, match="only files on this computer"):
        predict_to_table(paper_model, ["s3://copies"], out=tmp_path / "x.csv", sort_into=tmp_path / "sorted")


def test_shards_of_a_bucket_are_those_of_the_folder(s3, paper_model, files, expected, tmp_path):
    put_files(s3[0], "many", files)
    for share in ((1, 2), (2, 2), None):
        predict_to_shards(paper_model, ["s3://many"], None, tmp_path / "out", ShardOptions(share, 5))
    assert_same_rows(pl.read_parquet(sorted((tmp_path / "out").glob("part-*.parquet"))), expected)
    assert (tmp_path / "out/_SUCCESS.json").exists()


def test_a_photo_that_changed_since_the_plan_has_that_status(s3, paper_model, files, tmp_path):
    put_files(s3[0], "changed", files)
    plan = ikebana.plan_shards(paper_model, "s3://changed", tmp_path / "out")
    victim = list(files)[2]
    put_files(s3[0], "changed", {victim: list(files.values())[3]})
    ikebana.predict_shard(plan, 0)
    assert pl.read_parquet(plan.get_path(0))["status"][2] == STATUS_CHANGED


def test_the_command_reads_a_bucket_and_says_which_credentials_are_missing(
    s3, paper_model, files, monkeypatch, tmp_path
):
    put_files(s3[0], "command", files)
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "s3://command"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == len(files) + 1
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    failed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "AWS_ACCESS_KEY_ID" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_explain_reads_a_photo_of_a_bucket(s3, paper_run, files):
    put_files(s3[0], "reasons", files)
    photo = next(path for path in files if path.endswith(".jpg"))
    (explanation,) = ikebana.explain(paper_run, [f"s3://reasons/{photo}"])
    assert explanation.prediction.label is not None


def test_a_bucket_without_photos_is_an_error(s3, paper_model, tmp_path):
    put_files(s3[0], "empty", {})
    with pytest.raises(PhotosError):
        predict(paper_model, "s3://empty", tmp_path)


# --- results in a store ---


def read_stored(s3, bucket, prefix=""):
    """Read the shards of a bucket, and list all names."""
    listed = {file.address: stores.read(file) for file in stores.list_files(f"s3://{bucket}/{prefix}")}
    shards = [pl.read_parquet(data) for name, data in listed.items() if "part-" in name]
    return pl.concat(shards), {name.rpartition("/")[2] for name in listed}


def test_shards_in_a_bucket_are_those_in_a_folder(s3, paper_model, folder, expected, tmp_path):
    put_files(s3[0], "shards", {})
    predict_to_shards(paper_model, [str(folder)], None, tmp_path / "out", ShardOptions(None, 5))
    for share in ((1, 2), (2, 2), None):
        predict_to_shards(paper_model, [str(folder)], None, "s3://shards/flowers/", ShardOptions(share, 5))
    table, names = read_stored(s3, "shards")
    assert_same_rows(table, expected)
    assert names == {file.name for file in (tmp_path / "out").iterdir()}


def test_each_shard_is_one_put_and_success_comes_last(s3, paper_model, folder):
    put_files(s3[0], "order", {})
    s3[1].requests.clear()
    predict_to_shards(paper_model, [str(folder)], None, "s3://order/out", ShardOptions(None, 5))
    written = [path.rpartition("/")[2] for method, path, _ in s3[1].requests if method in ("PUT", "POST")]
    _, names = read_stored(s3, "order")
    assert sorted(written) == sorted(names)
    assert (written[0], written[-1]) == ("_plan.parquet", "_SUCCESS.json")


def test_shards_that_exist_in_the_bucket_are_not_computed_again(s3, paper_model, folder):
    put_files(s3[0], "resume", {})
    predict_to_shards(paper_model, [str(folder)], None, "s3://resume/out", ShardOptions((1, 2), 5))
    s3[1].requests.clear()
    predict_to_shards(paper_model, [str(folder)], None, "s3://resume/out", ShardOptions(None, 5))
    written = [path.rpartition("/")[2] for method, path, _ in s3[1].requests if method == "PUT"]
    assert all("part-" not in name or int(name.split("-")[1]) % 2 for name in written)
    s3[1].requests.clear()
    predict_to_shards(paper_model, [str(folder)], None, "s3://resume/out", ShardOptions(None, 5))
    assert {path.rpartition("/")[2] for method, path, _ in s3[1].requests if method == "PUT"} == {"_SUCCESS.json"}


def test_a_damaged_shard_of_a_bucket_is_computed_again(s3, paper_model, folder, expected):
    put_files(s3[0], "damage", {})
    predict_to_shards(paper_model, [str(folder)], None, "s3://damage/out", ShardOptions(None, 5))
    name = next(name for name in stores.list_names("s3://damage/out") if "part-00001" in name)
    stores.write(f"s3://damage/out/{name}", b"damaged")
    predict_to_shards(paper_model, [str(folder)], None, "s3://damage/out", ShardOptions(None, 5))
    assert_same_rows(read_stored(s3, "damage")[0], expected)


def test_two_processes_that_plan_at_once_use_the_first_plan(s3, paper_model, folder, expected):
    put_files(s3[0], "race", {})
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), str(folder), "--shard-photos", "5"]
    processes = [subprocess.Popen([*command, "--out", "s3://race/out/"], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert_same_rows(read_stored(s3, "race")[0], expected)


def test_functions_for_engines_accept_a_folder_in_a_bucket(s3, paper_model, folder, expected, tmp_path):
    put_files(s3[0], "engine", {})
    plan = ikebana.plan_shards(paper_model, folder, "s3://engine/out", shard_photos=7)
    copied = pickle.loads(pickle.dumps(plan))
    places = [ikebana.predict_shard(copied, number) for number in copied.shards]
    assert places == [f"s3://engine/out/{name}" for name in plan.names]
    assert ikebana.join_shards("s3://engine/out", tmp_path / "all.parquet") == tmp_path / "all.parquet"
    assert_same_rows(pl.read_parquet(tmp_path / "all.parquet"), expected)


def test_an_overloaded_bucket_gets_all_shards_in_the_end(s3, paper_model, folder, expected):
    put_files(s3[0], "slow", {})
    s3[1].failures, s3[1].pattern = 3, "part-00000"
    predict_to_shards(paper_model, [str(folder)], None, "s3://slow/out", ShardOptions(None, 5))
    assert_same_rows(read_stored(s3, "slow")[0], expected)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://missing-bucket/out/", "there is no such file, folder or bucket"),
        ("s3://results/out.csv", "a bucket gets shards, not a single table"),
        ("https://x.invalid/out/", "a web server takes no files"),
    ],
)
def test_a_place_that_takes_no_shards_is_an_error(s3, paper_model, folder, out, message):
    with pytest.raises(IkebanaError, match=message):
        predict_to_shards(paper_model, [str(folder)], None, out, ShardOptions(None, 5))


def test_a_bucket_that_does_not_exist_is_an_error_before_photos_are_listed(s3, paper_model, folder, stages):
    with pytest.raises(StoreError, match="there is no such file, folder or bucket") as refusal:
        predict_to_shards(paper_model, [str(folder)], None, "s3://gardn/out/", ShardOptions(None, 5))
    assert refusal.value.where == "s3://gardn"
    assert not stages


def test_planning_again_in_a_bucket_keeps_the_size_of_the_shards(s3, paper_model, folder):
    put_files(s3[0], "replan", {})
    predict_to_shards(paper_model, [str(folder)], None, "s3://replan/out", ShardOptions(None, 5))
    names = stores.list_names("s3://replan/out")
    predict_to_shards(paper_model, [str(folder)], None, "s3://replan/out", ShardOptions(replan=True))
    assert stores.list_names("s3://replan/out") == names


def test_the_address_of_a_web_folder_without_a_slash_is_explained(paper_model, folder, tmp_path):
    with serve_store(folder.parent) as (address, _):
        for work in (
            lambda: ikebana.predict(paper_model, f"{address}/flowers"),
            lambda: ikebana.audit(f"{address}/flowers"),
        ):
            with pytest.raises(PhotosError, match="end the address of a folder with /"):
                work()


# --- photos that cannot be read now ---


@pytest.mark.parametrize("status", [503, 403])
def test_a_shard_with_a_photo_that_cannot_be_read_now_is_computed_by_the_next_call(
    status, s3, paper_model, files, expected, tmp_path
):
    put_files(s3[0], f"later-{status}", files)
    victim = next(path for path, status in zip(files, expected["status"], strict=True) if status == "ok")
    s3[1].failures, s3[1].status, s3[1].pattern = 1000, status, f"/{victim}$"
    out, options = tmp_path / "out", ShardOptions(None, 5)
    with pytest.raises(PhotosError, match="1 photo could not be read, so 1 of 6 shards is missing") as refusal:
        predict_to_shards(paper_model, [f"s3://later-{status}"], None, out, options)
    assert refusal.value.where == f"s3://later-{status}/{victim}"
    assert len(list(out.glob("part-*"))) == 5
    assert not (out / "_SUCCESS.json").exists()
    s3[1].reset()
    predict_to_shards(paper_model, [f"s3://later-{status}"], None, out, options)
    assert_same_rows(pl.read_parquet(sorted(out.glob("part-*"))), expected)
    assert (out / "_SUCCESS.json").exists()


def test_a_store_that_is_down_ends_the_command_after_the_first_shards(s3, paper_model, files, tmp_path):
    put_files(s3[0], "down", files)
    plan = ikebana.plan_shards(paper_model, "s3://down", tmp_path / "out", shard_photos=3)
    assert len(plan.shards) > 4
    s3[1].requests.clear()
    s3[1].failures, s3[1].pattern = 100_000, r"\.jpg$"
    with pytest.raises(PhotosError, match=f"so {len(plan.shards)} of {len(plan.shards)} shards are missing"):
        predict_to_shards(paper_model, ["s3://down"], None, tmp_path / "out", ShardOptions())
    requested = {path for method, path, _ in s3[1].requests if method == "GET" and path.endswith(".jpg")}
    assert requested == {
        photo.address.removeprefix("s3:/") for number in (0, 1, 2) for photo in plan.read_photos(number)
    }
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_denied_access_to_all_photos_ends_the_command_at_once(kind, s3, paper_model, folder, files, tmp_path):
    put_files(s3[0], "closed", files)
    with serve_store(folder) as (address, web_faults):
        source, faults = ("s3://closed", s3[1]) if kind == "s3" else (f"{address}/", web_faults)
        plan = ikebana.plan_shards(paper_model, source, tmp_path / "out", shard_photos=5)
        faults.requests.clear()
        faults.failures, faults.status, faults.pattern = 100_000, 403, r"\.jpg$"
        with pytest.raises(StoreError, match=r"^access denied \(HTTP 403\)") as refusal:
            predict_to_shards(paper_model, [source], None, tmp_path / "out", ShardOptions())
        assert ("AWS_ACCESS_KEY_ID" in str(refusal.value)) == (kind == "s3")
        photos = {stores.get_name(photo.address) for photo in plan.read_photos(0)}
        assert {stores.get_name(path) for _, path, _ in faults.requests} <= photos
        with pytest.raises(StoreError, match="access denied"):
            ikebana.predict_shard(plan, 0)
        assert not list((tmp_path / "out").glob("part-*"))


def test_the_command_reports_unread_photos_by_its_exit_status_and_computes_them_when_repeated(
    s3, paper_model, files, expected, tmp_path
):
    put_files(s3[0], "status", {**files, "results/none": b""})
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "s3://status/a", "--shard-photos", "5"]
    put_files(s3[0], "status", {f"a/{path}": data for path, data in files.items()})
    command += ["--out", "s3://status/results/"]
    s3[1].failures, s3[1].status, s3[1].pattern = 100_000, 403, rf"/a/{list(files)[7]}$"
    for share in (["--shard", "2/3"], []):
        failed = subprocess.run([*command, *share], capture_output=True, text=True, check=False)
        assert (failed.returncode, failed.stdout) == (1, "")
        assert "1 photo could not be read" in failed.stderr
        assert "Traceback" not in failed.stderr
        assert "_SUCCESS.json" not in stores.list_names("s3://status/results")
    s3[1].reset()
    subprocess.run(command, capture_output=True, check=True)
    table, names = read_stored(s3, "status", "results/")
    assert_same_rows(table, expected)
    assert "_SUCCESS.json" in names


def test_a_photo_that_cannot_be_read_now_has_a_row_if_the_user_accepts_it(s3, paper_model, files, expected, tmp_path):
    put_files(s3[0], "accepted", files)
    victim = next(path for path, status in zip(files, expected["status"], strict=True) if status == "ok")
    s3[1].failures, s3[1].status, s3[1].pattern = 1000, 403, f"/{victim}$"
    plan = ikebana.plan_shards(paper_model, "s3://accepted", tmp_path / "out", shard_photos=40)
    with pytest.raises(IncompleteShard, match="shard 0 is not written: 1 photo could not be read"):
        ikebana.predict_shard(pickle.loads(pickle.dumps(plan)), 0)
    plan = ikebana.plan_shards(paper_model, "s3://accepted", tmp_path / "out", accept_unreadable=True)
    ikebana.predict_shard(pickle.loads(pickle.dumps(plan)), 0)
    ikebana.join_shards(plan)
    statuses = pl.read_parquet(plan.get_path(0))["status"]
    assert statuses[list(files).index(victim)].startswith("unreadable: access denied (HTTP 403)")


def test_the_lines_of_the_docs_delete_the_shards_of_accepted_photos_and_no_others(
    s3, paper_model, files, expected, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    put_files(s3[0], "outage", files)
    victim = next(path for path, status in zip(files, expected["status"], strict=True) if status == "ok")
    s3[1].failures, s3[1].status, s3[1].pattern = 100_000, 403, f"/{victim}$"
    options = ShardOptions(None, 5, accept_unreadable=True)
    predict_to_shards(paper_model, ["s3://outage"], None, "predictions", options)
    s3[1].reset()
    names = set(os.listdir("predictions"))
    page = (Path(__file__).parents[1] / "docs/many-photos.md").read_text("utf-8")
    (code,) = (code for code in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "unlink()" in code)
    exec(code, {})
    assert len(names - set(os.listdir("predictions"))) == 1
    predict_to_shards(paper_model, ["s3://outage"], None, "predictions", ShardOptions())
    assert set(os.listdir("predictions")) == names
    assert_same_rows(pl.read_parquet(sorted(Path("predictions").glob("part-*"))), expected)


def test_a_photo_that_is_gone_since_it_was_listed_has_a_row(s3, paper_model, files, tmp_path):
    put_files(s3[0], "gone", files)
    plan = ikebana.plan_shards(paper_model, "s3://gone", tmp_path / "out", shard_photos=5)
    stores.remove(f"s3://gone/{list(files)[1]}")
    ikebana.predict_shard(plan, 0)
    assert pl.read_parquet(plan.get_path(0))["status"][1] == "unreadable: there is no such file, folder or bucket"


def test_shards_are_written_although_a_store_does_not_answer_for_a_while(
    s3, paper_model, folder, expected, monkeypatch, caplog
):
    put_files(s3[0], "down", {})
    monkeypatch.setattr(predict_shards, "STORE_DELAYS_SECONDS", (0, 0, 0))
    # The first shard fails three times, after four requests each.
    s3[1].failures, s3[1].pattern = 3 * (1 + len(store_errors.RETRY_DELAYS_SECONDS)), "part-"
    predict_to_shards(paper_model, [str(folder)], None, "s3://down/out/", ShardOptions(None, 5))
    assert s3[1].failures == 0
    assert caplog.text.count("the store does not answer (HTTP 503)") == 3
    table, names = read_stored(s3, "down")
    assert_same_rows(table, expected)
    assert "_SUCCESS.json" in names


def test_a_store_that_never_answers_ends_the_command(s3, paper_model, folder, monkeypatch):
    put_files(s3[0], "silent", {})
    monkeypatch.setattr(predict_shards, "STORE_DELAYS_SECONDS", (0, 0, 0))
    s3[1].failures, s3[1].pattern = 1000, "part-"
    with pytest.raises(StoreError, match="the store does not answer"):
        predict_to_shards(paper_model, [str(folder)], None, "s3://silent/out/", ShardOptions(None, 5))
    assert s3[1].failures == 1000 - 4 * (1 + len(store_errors.RETRY_DELAYS_SECONDS))


def test_any_number_of_outages_is_waited_for_while_shards_are_completed(
    paper_model, folder, expected, tmp_path, monkeypatch
):
    # The second of them is never reached.
    monkeypatch.setattr(predict_shards, "STORE_DELAYS_SECONDS", (0, 1e9))
    computed = []

    def compute_one_then_fail(model_classifier, plan, numbers, advance):
        compute_shard(model_classifier, plan, numbers[0], advance)
        computed.append(numbers[0])
        if len(numbers) > 1:
            error = StoreError("the store does not answer")
            error.is_transient = True
            raise error

    out = tmp_path / "out"
    predict_to_shards(paper_model, [str(folder)], None, out, ShardOptions(None, 5), compute=compute_one_then_fail)
    assert computed == list(range(len(computed)))
    assert len(computed) > 4
    assert_same_rows(pl.read_parquet(sorted(out.glob("part-*"))), expected)
