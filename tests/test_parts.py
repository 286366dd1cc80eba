"""Any division of a computation into parts gives the result of one process, and parts survive it."""

import itertools
import os

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from support.images import encode_photo, two_classes, write_files

from ikebana.data import parts, pixel_cache, pixel_cache_parts, sources
from ikebana.data.dataset import STATUS_USED
from ikebana.data.pixel_cache_parts import PixelParts
from ikebana.errors import MachineError

SIDE = 16
CRASHED = "the process crashed"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photos and two unusable files."""
    files = {**two_classes(), "a/1b.jpg": encode_photo(5)[:300], "b/0 readme.txt": b"hello"}
    return write_files(tmp_path_factory.mktemp("photos") / "photos", files)


def prepare(dataset, part_photos=3):
    target = pixel_cache.get_cache_path(dataset, SIDE, "squash")
    return pixel_cache_parts.prepare(dataset, target, SIDE, "squash", part_photos)


def compute(pixel_parts: PixelParts, dataset, number, unusable=None):
    chosen = pixel_cache_parts.select_photos(dataset, pixel_parts.parts.get_rows(number))
    pixel_cache_parts.compute_part(pixel_parts, number, chosen, unusable or {})


def build(dataset, part_photos=3):
    pixel_parts = prepare(dataset, part_photos)
    for number in pixel_parts.parts.list_missing():
        compute(pixel_parts, dataset, number)
    pixel_cache_parts.join(pixel_parts, dataset)
    return pixel_parts


def read_files(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- files of parts ---


@given(rows=st.integers(0, 50), part_rows=st.integers(1, 60))
def test_parts_divide_all_rows_in_order(rows, part_rows, tmp_path_factory):
    divided = parts.Parts(tmp_path_factory.getbasetemp(), rows, part_rows)
    assert list(itertools.chain(*map(divided.get_rows, divided.numbers))) == list(range(rows))
    assert all(divided.get_rows(number) for number in divided.numbers)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:20] + b"x" + data[21:]]
)
def test_a_damaged_part_is_missing(tmp_path, damage):
    divided = parts.prepare_parts(tmp_path / "parts", 5, 2)
    for number in divided.numbers:
        divided.write(number, b"content of part %d" % number)
    assert divided.list_missing() == []
    file = divided.get_path(1)
    file.write_bytes(damage(file.read_bytes()))
    assert divided.list_missing() == [1]
    with pytest.raises(MachineError, match="missing or damaged"):
        divided.read_all()


def test_a_later_process_divides_the_rows_as_the_first(tmp_path):
    first = parts.prepare_parts(tmp_path / "parts", 10, 4)
    first.write(2, b"content")
    assert parts.prepare_parts(tmp_path / "parts", 10, 3) == first
    assert first.list_missing() == [0, 1]


@pytest.mark.parametrize("plan", ["", "{}", '{"rows": 10, "part_rows": 0}', '{"rows": 11, "part_rows": 4}', "[1]"])
def test_parts_of_a_damaged_or_another_plan_are_not_used(tmp_path, plan):
    parts.prepare_parts(tmp_path / "parts", 10, 4).write(0, b"content")
    (tmp_path / "parts" / parts.PLAN_FILE).write_text(plan)
    again = parts.prepare_parts(tmp_path / "parts", 10, 3)
    assert (again.part_rows, again.list_missing()) == (3, [0, 1, 2, 3])


def test_parts_that_were_used_and_removed_count_as_done(tmp_path):
    divided = parts.prepare_parts(tmp_path / "parts", 10, 4)
    assert not divided.is_done(0)
    divided.remove()
    assert divided.is_done(0)
    assert divided.read_all() is None


# --- the pixel cache ---


@given(part_photos=st.integers(1, 9))
@settings(max_examples=9)
def test_any_division_gives_the_files_of_one_process(photos, part_photos, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("one")))
        dataset = sources.read(photos)
        expected, cache = pixel_cache.open_pixel_cache(dataset, SIDE, "squash")
        patch.setenv("IKEBANA_CACHE", str(tmp_path_factory.mktemp("several")))
        built = build(dataset, part_photos)
        assert read_files(built.target) == read_files(cache.folder)
        assert [entry.name for entry in built.target.parent.iterdir()] == [built.target.name]
        assert_frame_equal(pixel_cache.open_pixel_cache(dataset, SIDE, "squash")[0].photos, expected.photos)


def test_only_missing_parts_are_computed_after_an_interruption(photos):
    dataset = sources.read(photos)
    first = prepare(dataset)
    compute(first, dataset, 1)
    before = first.parts.get_path(1).stat()
    again = prepare(dataset, 1)
    assert again == first
    assert again.parts.list_missing() == [0, 2]
    assert again.parts.get_path(1).stat() == before


def test_a_cache_with_a_missing_part_is_not_joined(photos):
    dataset = sources.read(photos)
    pixel_parts = prepare(dataset)
    compute(pixel_parts, dataset, 0)
    with pytest.raises(MachineError, match="missing or damaged"):
        pixel_cache_parts.join(pixel_parts, dataset)
    assert not pixel_parts.target.exists()


def test_two_processes_that_join_the_same_parts_leave_one_cache(photos):
    dataset = sources.read(photos)
    slower = prepare(dataset)
    built = build(dataset)
    assert all(slower.parts.is_done(number) for number in slower.parts.numbers)
    with pytest.raises(MachineError):
        compute(slower, dataset, 0)
    pixel_cache_parts.join(slower, dataset)
    assert pixel_cache.load_current(dataset, SIDE, "squash", built.target) is not None


def test_a_cache_of_one_process_replaces_the_parts(photos):
    dataset = sources.read(photos)
    pixel_parts = prepare(dataset)
    compute(pixel_parts, dataset, 0)
    pixel_cache.open_pixel_cache(dataset, SIDE, "squash")
    assert not pixel_parts.folder.exists()
    pixel_cache_parts.join(pixel_parts, dataset)


def test_a_photo_that_crashed_is_set_aside_and_never_opened_again(photos, monkeypatch):
    dataset = sources.read(photos)
    pixel_parts = prepare(dataset)
    for number in pixel_parts.parts.numbers:
        compute(pixel_parts, dataset, number, {1: CRASHED} if number == 0 else {})
    monkeypatch.setattr(pixel_cache.decoding, "decode", lambda *_: pytest.fail("a photo was opened"))
    pixel_cache_parts.join(pixel_parts, dataset)
    opened, cache = pixel_cache.open_pixel_cache(dataset, SIDE, "squash")
    assert opened.photos["status"][1] == CRASHED
    assert opened.used_photos.height == 5
    assert not cache.pixels[1].any()


def test_photos_that_another_machine_could_not_read_are_read_when_parts_are_joined(photos, tmp_path):
    dataset = sources.read(photos)
    expected, cache = pixel_cache.open_pixel_cache(dataset, SIDE, "squash")
    pixels = np.asarray(cache.pixels)
    pixel_cache.discard(cache.folder)
    pixel_parts = prepare(dataset)
    os.rename(photos, tmp_path / "elsewhere")
    compute(pixel_parts, dataset, 0)
    os.rename(tmp_path / "elsewhere", photos)
    for number in (1, 2):
        compute(pixel_parts, dataset, number)
    pixel_cache_parts.join(pixel_parts, dataset)
    (index,) = pixel_parts.target.glob("index.*.parquet")
    assert not pl.read_parquet(index)["passing"].any()
    opened, cache = pixel_cache.open_pixel_cache(dataset, SIDE, "squash")
    assert_frame_equal(opened.photos, expected.photos)
    assert np.array_equal(np.asarray(cache.pixels), pixels)


def test_a_row_torn_by_another_machine_is_decoded_again(photos):
    dataset = sources.read(photos)
    built = build(dataset)
    array = np.load(built.target / "pixels.npy", mmap_mode="r+")
    used = np.flatnonzero(pixel_cache.open_pixel_cache(dataset, SIDE, "squash")[0].photos["status"] == STATUS_USED)
    row = int(used[-1])
    expected = array[row].copy()
    array[row, SIDE // 2 :] = 0
    array.flush()
    everywhere = pixel_cache_parts.select_photos(dataset, None)
    cache = pixel_cache.reopen_pixel_cache(everywhere, dataset.photos.height, SIDE, "squash", built.target)
    assert np.array_equal(cache.pixels[row], expected)


def test_photos_in_containers_are_located_with_absolute_paths(photos, tmp_path, monkeypatch):
    table = pl.DataFrame(
        {"image": [{"bytes": (photos / name).read_bytes()} for name in sorted(two_classes())], "label": list("aaabbb")}
    )
    table.write_parquet(tmp_path / "photos.parquet")
    monkeypatch.chdir(tmp_path)
    dataset = sources.read("photos.parquet")
    assert dataset.locations is not None
    chosen = pixel_cache_parts.select_photos(dataset, range(2, 4))
    monkeypatch.chdir("/")
    paths = dataset.photos["path"][2:4].to_list()
    assert chosen.locations is not None
    assert chosen.locations["path"].to_list() == chosen.photos["path"].to_list() == paths
    contents = [(photos / name).read_bytes() for name in sorted(two_classes())][2:4]
    assert [chosen.locate(path).read() for path in paths] == contents
