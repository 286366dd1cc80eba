"""Predictions in shards: any processes together give the table of one process, whatever happens to them."""

import dataclasses
import errno
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import ikebana
from ikebana.commands import predict_shards
from ikebana.commands.predict_shards import ShardOptions, predict_to_shards
from ikebana.data import listing, photo_file, unlabelled
from ikebana.data.listing import STATUS_CHANGED
from ikebana.errors import MachineError, ModelError, PhotosError, UsageError
from ikebana.inference import shard_plan
from ikebana.system.files import PARTIAL_SUFFIX, STALE_SECONDS

# The rounding of probabilities, and the difference between batches of different sizes.
TOLERANCE = 2e-6


@pytest.fixture
def photos(good_photos, tmp_path):
    """Twenty paths, of which two cannot be used."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        shutil.copy(good_photos[number % len(good_photos)], folder / f"{number:02}.jpg")
    (folder / "07.jpg").write_text("no photo")
    (folder / "13.jpg").write_bytes(b"")
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "shards"


def predict(model, photos, out, share=None, **options):
    predict_to_shards(model, [str(photos)], None, out, ShardOptions(share, **options))


def read_shards(folder):
    return pl.read_parquet(sorted(folder.glob("part-*.parquet")))


def describe_shards(folder):
    return {file.name: (file.read_bytes(), file.stat().st_ino) for file in folder.glob("part-*.parquet")}


def assert_same_rows(table, expected):
    assert_frame_equal(table, expected, check_exact=False, abs_tol=TOLERANCE, rel_tol=0)


@pytest.fixture
def one_table(paper_model, photos, tmp_path):
    ikebana.predict(paper_model, photos, tmp_path / "one.parquet")
    return pl.read_parquet(tmp_path / "one.parquet")


def start_command(*arguments):
    command = [sys.executable, "-m", "ikebana", "predict", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# --- all shards together are one table ---


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shard_photos=st.integers(1, 25), shares=st.integers(1, 5), order=st.randoms(use_true_random=False))
def test_shares_in_any_order_are_one_table(
    paper_model, photos, tmp_path_factory, one_table, shard_photos, shares, order
):
    out = tmp_path_factory.mktemp("shares") / "shards"
    numbers = list(range(1, shares + 1))
    order.shuffle(numbers)
    for number in numbers:
        predict(paper_model, photos, out, (number, shares), shard_photos=shard_photos)
    assert len(list(out.glob("part-*"))) == -(-20 // shard_photos)
    assert_same_rows(read_shards(out), one_table)
    assert json.loads((out / "_SUCCESS.json").read_text("utf-8"))["rows"] == 20


def test_shares_that_would_have_no_shard_are_reported(paper_model, photos, out, caplog):
    predict(paper_model, photos, out, (1, 4), shard_photos=10)
    assert "2 shards cannot keep 4 processes busy: --shard-photos 5" in caplog.text
    caplog.clear()
    predict(paper_model, photos, out, (2, 2), shard_photos=10)
    assert "cannot keep" not in caplog.text


def test_the_joined_table_has_the_rows_of_the_shards(paper_model, photos, out, tmp_path, one_table):
    for suffix, read in (("csv", pl.read_csv), ("jsonl", pl.read_ndjson), ("parquet", pl.read_parquet)):
        joined, single = tmp_path / f"joined.{suffix}", tmp_path / f"single.{suffix}"
        predict(paper_model, photos, out, shard_photos=16, join=joined)
        ikebana.predict(paper_model, photos, single)
        if suffix == "parquet":
            assert_same_rows(read(joined), one_table)
        else:
            assert joined.read_bytes() == single.read_bytes()


def test_unusable_photos_keep_their_rows_and_are_counted(paper_model, photos, out):
    predict(paper_model, photos, out, shard_photos=3)
    by_name = {Path(path).name: status for path, status in read_shards(out).select("path", "status").iter_rows()}
    assert (by_name["07.jpg"], by_name["13.jpg"]) == ("not a photo: text", "empty file")
    success = json.loads((out / "_SUCCESS.json").read_text("utf-8"))
    assert success["statuses"]["unusable"] == 2
    assert sum(success["statuses"].values()) == success["rows"] == 20
    assert success["files"] == sorted(file.name for file in out.glob("part-*"))


def test_a_list_of_paths_and_the_members_of_an_archive_are_predicted(paper_model, photos, out, tmp_path):
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(photos / "00.jpg", "a/00.jpg")
    lines = [f"{photos}/01.jpg\n", f"{tmp_path}/gone.jpg\n", f"{tmp_path}/more.zip\n"]
    for _ in range(2):
        predict_to_shards(paper_model, [], iter(lines), out, ShardOptions())
    table = read_shards(out)
    assert table["path"].to_list() == [f"{photos}/01.jpg", f"{tmp_path}/gone.jpg", f"{tmp_path}/more.zip!a/00.jpg"]
    assert table["status"].to_list() == ["ok", "there is no such file", "ok"]
    with pytest.raises(PhotosError, match="predictions of other photos"):
        predict_to_shards(paper_model, [], iter(lines[:1]), out, ShardOptions())
    with pytest.raises(PhotosError, match="there is no such file or folder"):
        predict_to_shards(paper_model, [f"{photos}x"], None, out, ShardOptions())


def test_an_archive_that_another_machine_unpacked_is_not_a_missing_photo(paper_model, photos, out, tmp_path):
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(photos / "00.jpg", "00.jpg")
    plan = ikebana.plan_shards(paper_model, tmp_path / "more.zip", out)
    shutil.rmtree(plan.unpacked_folders[0])
    with pytest.raises(MachineError, match="the photos of an archive were unpacked here"):
        ikebana.predict_shard(plan, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_name_that_is_no_unicode_has_its_row(paper_model, photos, out):
    os.rename(photos / "00.jpg", os.fsencode(photos) + b"/\xff.jpg")
    predict(paper_model, photos, out)
    ikebana.predict(paper_model, photos, out.parent / "one.parquet")
    assert_same_rows(read_shards(out), pl.read_parquet(out.parent / "one.parquet"))


# --- interruptions ---


def test_a_killed_process_leaves_complete_shards_that_are_not_predicted_again(paper_model, photos, out, one_table):
    process = start_command(paper_model, photos, "--out", f"{out}/", "--shard-photos", 1)
    deadline = time.monotonic() + 60
    while len(list(out.glob("part-*"))) < 3:
        assert process.poll() is None, "predict ended before it was killed"
        assert time.monotonic() < deadline, "no shards within 60 s"
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    before = describe_shards(out)
    assert not (out / "_SUCCESS.json").exists()
    predict(paper_model, photos, out)
    assert before.items() <= describe_shards(out).items()
    assert_same_rows(read_shards(out), one_table)
    assert (out / "_SUCCESS.json").exists()


def test_two_processes_that_start_at_once_have_one_plan_and_one_result(paper_model, photos, out, one_table):
    processes = [start_command(paper_model, photos, "--out", f"{out}/", "--shard-photos", 2) for _ in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert len(describe_shards(out)) == 10
    assert_same_rows(read_shards(out), one_table)
    assert {name for name in os.listdir(out) if not name.startswith("part-")} == {"_SUCCESS.json", "_plan.parquet"}


def test_of_processes_that_start_at_once_one_lists_the_photos(photos, out, monkeypatch):
    header = shard_plan.PlanHeader("model", ("a", "b"), {}, "sources")
    listings = []

    def list_slowly(listed_photos):
        listings.append(1)
        time.sleep(0.2)
        yield from listing.list_photos(listed_photos)

    monkeypatch.setattr(shard_plan, "list_photos", list_slowly)
    with ThreadPoolExecutor(4) as pool:
        plans = [
            pool.submit(shard_plan.prepare_plan, out, header, lambda: unlabelled.find_photos(photos)) for _ in range(4)
        ]
        assert len({plan.result().names for plan in plans}) == 1
    assert len(listings) == 1


def test_a_writer_that_returns_late_renames_an_identical_file_into_place(paper_model, photos, out):
    plan = ikebana.plan_shards(paper_model, photos, out, shard_photos=10)
    file = Path(ikebana.predict_shard(plan, 1))
    first = file.read_bytes()
    file.unlink()
    assert Path(ikebana.predict_shard(plan, 1)).read_bytes() == first


def test_a_full_disk_leaves_no_partial_shard_and_the_call_can_be_repeated(paper_model, photos, small_disk, one_table):
    place, remount = small_disk
    out = place / "shards"
    ikebana.plan_shards(paper_model, photos, out, shard_photos=1)
    used = 4096 * 16
    (place / "filler").write_bytes(bytes(2**20))
    assert remount(f"size={2**20 + used}")
    with pytest.raises(MachineError, match="the disk is full"):
        predict(paper_model, photos, out)
    assert not list(out.glob(f".*{PARTIAL_SUFFIX}"))
    assert 0 < len(list(out.glob("part-*"))) < 20
    before = describe_shards(out)
    assert remount("size=1g")
    predict(paper_model, photos, out)
    assert before.items() <= describe_shards(out).items()
    assert_same_rows(read_shards(out), one_table)


def test_partial_files_of_killed_processes_are_removed_at_the_end(paper_model, photos, out):
    plan = ikebana.plan_shards(paper_model, photos, out)
    ikebana.predict_shard(plan, 0)
    old, new = (out / f".{plan.names[0]}.{name}{PARTIAL_SUFFIX}" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"half a shard")
    long_ago = time.time() - STALE_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    predict(paper_model, photos, out)
    assert (old.exists(), new.exists()) == (False, True)


# --- what is complete ---


def test_the_mark_of_success_exists_only_while_all_shards_do(paper_model, photos, out):
    mark = out / "_SUCCESS.json"
    predict(paper_model, photos, out, (1, 2), shard_photos=7)
    assert not mark.exists()
    with pytest.raises(MachineError, match="1 of 3 shards are missing; the first is number 1"):
        ikebana.join_shards(out)
    predict(paper_model, photos, out, (2, 2))
    assert mark.exists()
    next(out.glob("part-00000-*")).unlink()
    predict(paper_model, photos, out, (2, 2))
    assert not mark.exists()
    predict(paper_model, photos, out)
    assert mark.exists()


def test_a_damaged_shard_is_refused_or_predicted_again(paper_model, photos, out, one_table):
    plan = ikebana.plan_shards(paper_model, photos, out, shard_photos=10)
    first, second = (Path(ikebana.predict_shard(plan, number)) for number in plan.shards)
    intact = first.read_bytes()
    for damage in (intact[:-10], second.read_bytes(), b""):
        first.write_bytes(damage)
        with pytest.raises(MachineError, match="this shard is damaged"):
            ikebana.join_shards(plan)
        predict(paper_model, photos, out)
        assert first.read_bytes() == intact
    assert_same_rows(pl.read_parquet(ikebana.join_shards(plan, out.parent / "all.parquet")), one_table)


def test_a_photo_that_changed_since_the_plan_is_reported_and_predicted_after_planning_again(
    paper_model, photos, out, good_photos
):
    plan = ikebana.plan_shards(paper_model, photos, out, shard_photos=5)
    first = Path(ikebana.predict_shard(plan, 0))
    shutil.copy(good_photos[1], photos / "17.jpg")
    os.utime(photos / "17.jpg", ns=(1, 1))
    (photos / "18.jpg").unlink()
    predict(paper_model, photos, out)
    by_name = {Path(path).name: status for path, status in read_shards(out).select("path", "status").iter_rows()}
    assert by_name["17.jpg"] == STATUS_CHANGED
    assert by_name["18.jpg"] == "there is no such file"
    before = describe_shards(out)
    predict(paper_model, photos, out, replan=True, shard_photos=5)
    table = read_shards(out)
    assert (table.height, table.filter(status=STATUS_CHANGED).height) == (19, 0)
    after = describe_shards(out)
    assert after[first.name] == before[first.name]
    assert (len(after), len(after.keys() - before.keys())) == (4, 1)


def test_planning_again_keeps_the_size_of_the_shards(paper_model, photos, out):
    predict(paper_model, photos, out, shard_photos=5)
    before = describe_shards(out)
    predict(paper_model, photos, out, replan=True)
    assert describe_shards(out) == before
    predict(paper_model, photos, out, replan=True, shard_photos=10)
    assert len(describe_shards(out)) == 2
    (out / "_plan.parquet").write_bytes(b"damaged")
    predict(paper_model, photos, out, replan=True)
    assert len(describe_shards(out)) == 1


def test_a_photo_on_a_disk_that_fails_is_predicted_by_the_next_call(paper_model, photos, out, one_table, monkeypatch):
    read, faults = listing.read_photo_file, {"05.jpg": errno.EIO}

    def read_faultily(file):
        if file.name in faults:
            raise photo_file.describe_disk_error(OSError(faults[file.name], "failed"), file)
        return read(file)

    monkeypatch.setattr(listing, "read_photo_file", read_faultily)
    with pytest.raises(PhotosError, match="1 photo could not be read, so 1 of 4 shards is missing"):
        predict(paper_model, photos, out, shard_photos=5)
    assert len(describe_shards(out)) == 3
    assert not (out / "_SUCCESS.json").exists()
    faults.clear()
    predict(paper_model, photos, out)
    assert_same_rows(read_shards(out), one_table)
    assert (out / "_SUCCESS.json").exists()


def test_a_photo_that_the_user_may_not_read_has_a_row(paper_model, photos, out, monkeypatch):
    def refuse(file):
        raise photo_file.describe_disk_error(OSError(errno.EACCES, "Permission denied"), file)

    plan = ikebana.plan_shards(paper_model, photos, out)
    monkeypatch.setattr(listing, "read_photo_file", refuse)
    ikebana.predict_shard(plan, 0)
    assert set(read_shards(out)["status"].to_list()) == {"unreadable: Permission denied"}


# --- refusals ---


def test_a_folder_of_another_model_other_photos_or_other_versions_is_refused(
    paper_model, paper_run, photos, out, monkeypatch
):
    predict(paper_model, photos, out, shard_photos=10)
    before = describe_shards(out)
    with pytest.raises(ModelError, match="another model"):
        predict(paper_run, photos, out)
    with pytest.raises(PhotosError, match="other photos"):
        predict(paper_model, photos / "00.jpg", out)
    with pytest.raises(PhotosError, match="have 10 photos, not 9"):
        predict(paper_model, photos, out, shard_photos=9)
    with monkeypatch.context() as patch:
        patch.setattr(shard_plan.decoding, "DECODER_VERSION", 99)
        with pytest.raises(MachineError, match="planned with decoder 4, and this process has 99"):
            predict(paper_model, photos, out)
    assert describe_shards(out) == before
    predict(paper_run, photos, out, replan=True)
    assert len(describe_shards(out)) == 2
    assert not describe_shards(out).keys() & before.keys()


def test_a_folder_with_other_files_is_refused(paper_model, photos):
    with pytest.raises(MachineError, match=r"a folder of their own, and this one contains 00\.jpg"):
        predict(paper_model, photos, photos)
    assert len(os.listdir(photos)) == 20


@pytest.mark.parametrize("kind", ["file", "photos", "/proc/ikebana"])
def test_the_advice_for_a_folder_that_takes_no_shards_is_another_folder(kind, paper_model, photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError) as refusal:
        predict(paper_model, photos, tmp_path / kind)
    if kind.startswith("/proc"):
        assert refusal.value.what.startswith("this cannot be written")
        assert refusal.value.advice == "a folder that you may write to"
    else:
        assert refusal.value.advice == f"a new folder, such as --out {tmp_path}/{kind}-predictions/"


def test_the_command_names_the_table_that_it_joined(paper_model, photos, out, tmp_path):
    process = start_command(paper_model, photos, "--out", f"{out}/", "--join", tmp_path / "all.csv")
    output, errors = process.communicate(timeout=300)
    assert (process.returncode, output) == (0, f"{tmp_path / 'all.csv'}\n"), errors


def test_shards_inside_the_folder_of_the_photos_are_no_photos(paper_model, photos):
    for _ in range(2):
        predict(paper_model, photos, photos / "shards", replan=True)
    assert read_shards(photos / "shards").height == 20


def test_a_folder_without_usable_photos_is_an_error(paper_model, tmp_path, out):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("no photo")
    with pytest.raises(PhotosError, match="none of 1 paths is usable"):
        predict(paper_model, tmp_path / "photos", out)
    assert not (out / "_SUCCESS.json").exists()


def test_a_damaged_plan_is_refused_and_can_be_replaced(paper_model, photos, out):
    predict(paper_model, photos, out)
    (out / "_plan.parquet").write_bytes(b"no plan")
    with pytest.raises(MachineError, match="this plan is damaged"):
        predict(paper_model, photos, out)
    predict(paper_model, photos, out, replan=True)
    assert read_shards(out).height == 20


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1", "not a share"), ("0/2", "the shares are 1/2 to 2/2"), ("3/2", "the shares"), ("a/b", "not a share")],
)
def test_an_impossible_share_is_refused(text, reason):
    with pytest.raises(UsageError, match=reason):
        predict_shards.parse_share(text)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "shards"], "shards/, for shards"),
        (["--out", "a.csv", "--shard", "1/2"], "--shard needs a folder for shards\n  try  --out predictions/"),
        (["--out", "new", "--shard", "1/2"], "--shard needs a folder for shards\n  try  --out new/"),
        (["--replan"], "--replan needs a folder"),
        (["--out", "shards/", "--shard", "1/2", "--join", "a.csv"], "--join needs all shards"),
        (["--out", "shards/", "--shard", "1/2", "--replan"], "remove _plan.parquet"),
        (["--out", "shards/", "--shard-photos", "0"], "too small"),
        (["--out", "shards/", "--join", "all/"], "all is not a supported table file"),
        (["--out", "shards/", "--copy-to", "sorted"], "need a table"),
    ],
)
def test_contradicting_flags_are_refused_before_any_work(arguments, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = start_command("no-model.onnx", "no-photo.jpg", *arguments)
    _, errors = process.communicate(timeout=60)
    assert reason in errors
    assert "Traceback" not in errors
    assert process.returncode in (1, 2)
    assert not os.listdir(tmp_path)


# --- other processes ---


def test_a_classifier_is_the_same_in_another_process(paper_classifier, good_photos):
    changed = dataclasses.replace(paper_classifier, threshold=0.999)
    paths = [str(path) for path in good_photos[:3]]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(paper_classifier.predict, paths).result() == paper_classifier.predict(paths)
        assert pool.submit(changed.predict, paths).result() == changed.predict(paths)


def test_the_classifier_of_a_run_refuses_to_be_pickled(paper_run):
    from ikebana.commands.predict import open_classifier

    with open_classifier(paper_run) as (run_classifier, _), pytest.raises(ModelError, match="another process"):
        pickle.dumps(run_classifier)


def test_a_process_pool_predicts_the_shards_of_a_plan(paper_model, photos, out, one_table):
    plan = ikebana.plan_shards(paper_model, photos, out, shard_photos=5)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        files = list(pool.map(ikebana.predict_shard, itertools.repeat(plan), plan.shards))
    assert files == [plan.get_path(number) for number in plan.shards]
    assert_same_rows(pl.read_parquet(ikebana.join_shards(plan, out.parent / "all.parquet")), one_table)


def test_a_plan_by_a_model_without_a_path_needs_the_model_in_each_process(paper_model, photos, out):
    model = ikebana.load(paper_model.read_bytes())
    plan = ikebana.plan_shards(model, photos, out)
    with pytest.raises(ModelError, match="in no file"):
        ikebana.predict_shard(plan, 0)
    ikebana.predict_shard(out, 0, model=model)
    assert ikebana.join_shards(out) == out / "_SUCCESS.json"
    with pytest.raises(UsageError, match="there is no shard 1"):
        ikebana.predict_shard(out, 1)
