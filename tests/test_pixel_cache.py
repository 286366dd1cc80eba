"""Pixels are decoded once, cached on disk, and used only if they are unchanged."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support.images import draw_noisy_image, encode_image, encode_photo, two_classes, write_files

from ikebana.data import decoding, pixel_cache, sources
from ikebana.data.dataset import STATUS_USED
from ikebana.errors import MachineError, UnreadablePhoto
from ikebana.recipe import Resize
from ikebana.system import files as system_files

SIDE = 16


@pytest.fixture
def photos(tmp_path):
    """Six photos and two unusable files, so that used rows are not contiguous."""
    return write_files(
        tmp_path / "photos", {**two_classes(), "a/1b.jpg": encode_photo(5)[:300], "b/0 readme.txt": b"hello"}
    )


def open_folder(folder, side: int = SIDE, fit: Resize = "squash"):
    return pixel_cache.open_pixel_cache(sources.read(folder), side, fit)


def used_pixels(dataset, keep):
    return keep.pixels[(dataset.photos["status"] == STATUS_USED).to_numpy()]


def assert_same(first, second):
    assert_frame_equal(first[0].photos, second[0].photos)
    assert np.array_equal(used_pixels(*first), used_pixels(*second))


@pytest.fixture
def decode_count(monkeypatch):
    """Count the photos that are decoded."""
    count, decode = [], decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *given: count.append(1) or decode(*given))
    return count


def array_file(cache):
    (file,) = cache.glob("pixels/*/pixels.npy")
    return file


def index_file(cache):
    (file,) = cache.glob("pixels/*/index.*.parquet")
    return file


def test_each_row_of_the_array_is_the_photo_of_that_row(photos):
    for fit in ("squash", "crop"):
        dataset, keep = open_folder(photos, fit=fit)
        assert keep.pixels.shape == (8, SIDE, SIDE, 3)
        assert dataset.photos["path"].is_sorted()
        for row, (path, status, sha256, size) in enumerate(
            dataset.photos.select("path", "status", "sha256", "bytes").iter_rows()
        ):
            data = (photos / path).read_bytes()
            assert (sha256, size) == (hashlib.sha256(data).hexdigest(), len(data))
            if status == STATUS_USED:
                assert np.array_equal(keep.pixels[row], decoding.decode(data, SIDE, fit).pixels)
        assert dataset.used_photos.height == 6


def test_the_table_has_the_size_of_each_photo(tmp_path):
    write_files(
        tmp_path,
        {
            "a/wide.png": encode_image(draw_noisy_image(60, 20), "PNG"),
            "b/high.jpg": encode_image(draw_noisy_image(300, 700)),
        },
    )
    assert open_folder(tmp_path)[0].used_photos.select("width", "height").rows() == [(60, 20), (300, 700)]


def test_cached_pixels_are_read_only(photos):
    with pytest.raises(ValueError, match="read-only"):
        open_folder(photos)[1].pixels[0][:] = 0


def test_cached_photos_are_not_opened_again(photos, decode_count):
    dataset = sources.read(photos)
    assert not pixel_cache.get_cache_path(dataset, SIDE, "squash").exists()
    first = open_folder(photos)
    assert len(decode_count) == 8
    assert pixel_cache.get_cache_path(dataset, SIDE, "squash").exists()
    assert_same(open_folder(photos), first)
    assert len(decode_count) == 8


@pytest.mark.parametrize("reason", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_errors_unrelated_to_the_photo_are_retried(photos, decode_count, monkeypatch, reason):
    complete, read, read_bytes = open_folder(photos), decoding.decode, decoding.read_bytes
    pixel_cache.discard(complete[1].folder)
    poor = (photos / "a/1.jpg").read_bytes()

    def fails(data, *given):
        with decoding._translate_errors(data):
            if data == poor:
                raise reason
            return read(data, *given)

    def reads(file):
        if isinstance(reason, OSError) and Path(file).parts[-2:] == ("a", "1.jpg"):
            raise reason
        return read_bytes(file)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", fails)
        patch.setattr(decoding, "read_bytes", reads)
        first = open_folder(photos)
        assert first[0].used_photos.height == complete[0].used_photos.height - 1
        before = len(decode_count)
        assert_same(open_folder(photos), first)  # still unreadable: only that photo is opened again
        assert len(decode_count) == before
    assert_same(open_folder(photos), complete)
    before = len(decode_count)
    assert_same(open_folder(photos), complete)
    assert len(decode_count) == before


def test_photos_that_need_an_extra_are_read_after_it_is_installed(photos, monkeypatch):
    (photos / "b" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))

    def raise_missing(_):
        raise UnreadablePhoto(decoding.REASON_NO_HEIF)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_open_heif", raise_missing)
        before = open_folder(photos)
    assert decoding.REASON_NO_HEIF in before[0].photos["status"].to_list()
    shown = decoding.decode((photos / "a/0.jpg").read_bytes(), SIDE, "squash", pixel_cache.THUMBNAIL_SIZE)
    decode = decoding.decode
    monkeypatch.setattr(
        decoding, "decode", lambda data, *given: shown if data[4:8] == b"ftyp" else decode(data, *given)
    )
    after = open_folder(photos)
    assert after[0].used_photos.height == before[0].used_photos.height + 1


def test_another_size_resize_mode_or_version_is_another_array(photos, decode_count, monkeypatch):
    open_folder(photos)
    open_folder(photos, side=SIDE + 1)
    open_folder(photos, fit="crop")
    monkeypatch.setattr(decoding, "DECODER_VERSION", decoding.DECODER_VERSION + 1)
    open_folder(photos)
    assert len(decode_count) == 4 * 8


def encode_bitmap(seed):
    """Encode a photo whose file has the same size for every seed."""
    return encode_image(draw_noisy_image(20, 20, seed), "BMP")


def change_size(file):
    file.write_bytes(encode_bitmap(2) + b"more")


def change_in_place(file):
    """Replace the photo by one of the same size, and restore its times."""
    before = file.stat()
    file.write_bytes(encode_bitmap(2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def touch(file):
    os.utime(file, (1, 1))


@pytest.mark.parametrize("change", [change_size, change_in_place, touch, Path.unlink])
def test_a_changed_photo_makes_a_new_array(photos, decode_count, change):
    (photos / "a" / "0.jpg").write_bytes(encode_bitmap(1))
    open_folder(photos)
    change(photos / "a" / "0.jpg")
    dataset, keep = open_folder(photos)
    assert len(decode_count) == 8 + dataset.photos.height
    if (photos / "a" / "0.jpg").exists():
        assert np.array_equal(keep.pixels[0], decoding.decode((photos / "a" / "0.jpg").read_bytes(), SIDE).pixels)


def flip_byte(file, place):
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 0x10
    file.write_bytes(data)


DAMAGED_ROWS = {
    "the first pixel": (lambda cache: flip_byte(array_file(cache), -8 * SIDE * SIDE * 3), 1),
    "a pixel in the middle": (lambda cache: flip_byte(array_file(cache), -4 * SIDE * SIDE * 3 - 100), 1),
    "the last photo": (lambda cache: flip_byte(array_file(cache), -1), 1),
    "all pixels": (lambda cache: write_zeros(array_file(cache), 8 * SIDE * SIDE * 3), 6),
}  # fmt: skip

DAMAGED_FILES = {
    "the array's magic": lambda cache: flip_byte(array_file(cache), 1),
    "the array's kind": lambda cache: array_file(cache).write_bytes(array_file(cache).read_bytes().replace(b"|u1", b"|i1")),
    "the array's shape": lambda cache: array_file(cache).write_bytes(array_file(cache).read_bytes().replace(b"(8,", b"(4,")),
    "the array's end": lambda cache: os.truncate(array_file(cache), array_file(cache).stat().st_size - 1),
    "the whole array": lambda cache: array_file(cache).write_bytes(b""),
    "no array": lambda cache: array_file(cache).unlink(),
    "the index' end": lambda cache: os.truncate(index_file(cache), 100),
    "a text as index": lambda cache: index_file(cache).write_text("path,status"),
    "no index": lambda cache: index_file(cache).unlink(),
}  # fmt: skip

for tenth in range(10):
    DAMAGED_FILES[f"the index at {tenth} tenths"] = lambda cache, tenth=tenth: flip_byte(
        index_file(cache), index_file(cache).stat().st_size * tenth // 10
    )


def write_zeros(file, count):
    data = file.read_bytes()
    file.write_bytes(data[:-count] + bytes(count))


@pytest.mark.parametrize("damage", DAMAGED_FILES)
@pytest.mark.usefixtures("terminal")
def test_a_damaged_file_is_detected_and_all_photos_are_read_again(photos, decode_count, ikebana_cache, capsys, damage):
    first, complete = open_folder(photos)
    DAMAGED_FILES[damage](ikebana_cache)
    again, mended = open_folder(photos)
    assert "have changed on disk" in capsys.readouterr().err
    assert len(decode_count) == 2 * 8
    assert_frame_equal(again.photos, first.photos)
    assert np.array_equal(used_pixels(again, mended), decode_without_cache(photos))
    assert complete.folder == mended.folder


@pytest.mark.parametrize("damage", DAMAGED_ROWS)
@pytest.mark.usefixtures("terminal")
def test_damaged_pixels_are_detected_on_use_and_only_their_photos_read_again(
    photos, decode_count, ikebana_cache, capsys, damage
):
    first, expected = open_folder(photos)[0], decode_without_cache(photos)
    break_rows, count = DAMAGED_ROWS[damage]
    break_rows(ikebana_cache)
    decode_count.clear()
    again, cache = open_folder(photos)
    assert "have changed on disk" not in capsys.readouterr().err
    assert np.array_equal(used_pixels(again, cache), expected)
    assert "have changed on disk" in capsys.readouterr().err
    assert len(decode_count) == count
    assert_frame_equal(again.photos, first.photos)
    # The file is whole again as well.
    assert np.array_equal(used_pixels(*open_folder(photos)), expected)
    assert len(decode_count) == count
    assert "have changed on disk" not in capsys.readouterr().err


def test_a_damaged_thumbnail_is_detected_on_use(photos, decode_count, ikebana_cache):
    dataset, cache = open_folder(photos)
    rows = np.flatnonzero((dataset.photos["status"] == STATUS_USED).to_numpy())
    expected = cache.thumbnails[rows]
    flip_byte(array_file(ikebana_cache).with_name("small.npy"), -1)
    assert np.array_equal(open_folder(photos)[1].thumbnails[rows], expected)
    assert len(decode_count) == 8 + 1


def test_damaged_pixels_of_a_photo_that_has_gone_are_an_error_that_names_it(photos, ikebana_cache):
    open_folder(photos)
    flip_byte(array_file(ikebana_cache), -1)
    dataset, cache = open_folder(photos)
    last = dataset.photos["path"][-1]
    (photos / last).unlink()
    assert cache.pixels[0].shape == (SIDE, SIDE, 3)
    with pytest.raises(MachineError, match=f"pixels of {last} are damaged"):
        cache.pixels[[-1]]


def test_a_disk_that_does_not_keep_repaired_pixels_is_an_error(photos, ikebana_cache, monkeypatch):
    open_folder(photos)
    flip_byte(array_file(ikebana_cache), -1)
    monkeypatch.setattr(pixel_cache, "_write_rows", lambda file, first, rows: None)
    with pytest.raises(MachineError, match="differ from what was written"):
        np.asarray(open_folder(photos)[1].pixels)


def decode_without_cache(photos):
    """Decode the used photos without a cache."""
    files = [photos / name for name in sorted(two_classes())]
    return np.stack([decoding.decode(file.read_bytes(), SIDE).pixels for file in files])


def test_a_disk_that_corrupts_the_cache_is_an_error_and_not_an_endless_loop(photos, monkeypatch, decode_count):
    monkeypatch.setattr(pixel_cache, "_load_if_complete", lambda *given: None)
    with pytest.raises(MachineError, match="differ from what was written"):
        open_folder(photos)
    assert len(decode_count) == 8 * pixel_cache.MAX_ATTEMPTS


def test_the_arrays_need_the_announced_space(photos, ikebana_cache):
    dataset = sources.read(photos)
    open_folder(photos)
    files = array_file(ikebana_cache), array_file(ikebana_cache).with_name("small.npy")
    assert 0 < sum(file.stat().st_size for file in files) - pixel_cache.compute_cache_bytes(dataset, SIDE) <= 2 * 128


def test_a_full_disk_is_refused_before_a_photo_is_opened_with_both_sizes(photos, monkeypatch, decode_count):
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_500_000_000))
    monkeypatch.setattr(pixel_cache, "compute_cache_bytes", lambda dataset, side: 2_700_000_000)
    with pytest.raises(MachineError, match=r"2\.7 GB are needed on the disk and 1\.5 GB are free"):
        open_folder(photos)
    assert not decode_count


# Other processes, and interruptions

OPEN = """
import hashlib, sys, time
from pathlib import Path
import numpy as np
from ikebana.data import decoding, pixel_cache, sources
dataset = sources.read(sys.argv[1])
decode = decoding.decode
decoding.decode = lambda *given: time.sleep(float(sys.argv[3])) or decode(*given)
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.005)
dataset, keep = pixel_cache.open_pixel_cache(dataset, 16, "squash")
print(hashlib.sha256(np.asarray(keep.pixels).tobytes()).hexdigest(), dataset.used_photos.height)
"""


def process(photos, start, slowness=0.0, before=""):
    command = [sys.executable, "-c", before + OPEN, str(photos), str(start), str(slowness)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    return running


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["nothing is kept", "what is kept is damaged"])
def test_two_processes_at_the_same_time_get_the_same_array(photos, tmp_path, ikebana_cache, beginning):
    if "damaged" in beginning:
        open_folder(photos)
        flip_byte(array_file(ikebana_cache), -1)
    both = [process(photos, tmp_path / "start", 0.01) for _ in range(2)]
    (tmp_path / "start").touch()
    results = [running.communicate(timeout=60) for running in both]
    assert [running.returncode for running in both] == [0, 0], results
    assert results[0][0] == results[1][0] == f"{hashlib.sha256(hash_array(photos)).hexdigest()} 6\n"
    assert len(list((ikebana_cache / "pixels").iterdir())) == 1


def hash_array(photos):
    dataset, keep = open_folder(photos)
    assert np.array_equal(used_pixels(dataset, keep), decode_without_cache(photos))
    return np.asarray(keep.pixels).tobytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_a_partial_array_is_never_used_after_any_interruption(photos, tmp_path, ikebana_cache, blow):
    write_files(photos, {f"a/more {number}.jpg": encode_photo(number) for number in range(300)})
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", 0.02)
    wait_until(lambda: list(ikebana_cache.glob("pixels/.*.partial/pixels.npy")))
    time.sleep(0.05)
    running.send_signal(blow)
    running.communicate(timeout=30)
    assert running.returncode != 0
    left = {path.suffix for path in (ikebana_cache / "pixels").iterdir()}
    assert left == ({".partial", ".lock"} if blow == signal.SIGKILL else set())
    assert open_folder(photos)[0].used_photos.height == 306
    # The partial array is gone, and the complete one is there.
    assert [path.suffix for path in (ikebana_cache / "pixels").iterdir()] == [""]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_an_array_that_a_running_runningfills_is_left_alone(photos, tmp_path, ikebana_cache):
    write_files(photos, {f"a/more {number}.jpg": encode_photo(number) for number in range(300)})
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", 0.02)
    wait_until(lambda: list(ikebana_cache.glob("pixels/.*.partial/pixels.npy")))
    (half,) = ikebana_cache.glob("pixels/.*.partial")
    running.send_signal(signal.SIGSTOP)
    try:
        system_files.remove_stale_files(ikebana_cache / "pixels")
        assert (half / "pixels.npy").exists()
    finally:
        running.send_signal(signal.SIGCONT)
    running.communicate(timeout=60)
    assert running.returncode == 0


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_interruption_while_decoding_leaves_no_files(photos, monkeypatch, ikebana_cache):
    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_folder(photos)
    assert list((ikebana_cache / "pixels").iterdir()) == []
    assert open_folder(photos)[0].used_photos.height == 6


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes the Linux way")
def test_a_full_disk_is_an_error_message_and_leaves_no_files(photos, tmp_path, ikebana_cache):
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", before=LIMITED)
    assert "MachineError: this cannot be written: File too large" in running.communicate(timeout=30)[1]
    assert list((ikebana_cache / "pixels").iterdir()) == []


def test_an_index_that_contradicts_the_photos_is_not_used(photos, ikebana_cache):
    dataset, _ = open_folder(photos)
    index = pl.read_parquet(index_file(ikebana_cache))
    assert index["path"].to_list() == dataset.photos["path"].to_list()
    assert index.schema == pl.Schema(pixel_cache.INDEX_SCHEMA)
