"""The pixels are decoded once, kept on disk, and believed only as long as they are what was written."""

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
    """Six photos, a broken file and a text, so that used rows and others stand mixed."""
    return write_files(
        tmp_path / "photos", {**two_classes(), "a/1b.jpg": encode_photo(5)[:300], "b/0 readme.txt": b"hello"}
    )


def opened(folder, side: int = SIDE, fit: Resize = "squash"):
    return pixel_cache.open_pixel_cache(sources.read(folder), side, fit)


def used_pixels(dataset, keep):
    return keep.pixels[(dataset.photos["status"] == STATUS_USED).to_numpy()]


def assert_same(one, other):
    assert_frame_equal(one[0].photos, other[0].photos)
    assert np.array_equal(used_pixels(*one), used_pixels(*other))


@pytest.fixture
def decoded(monkeypatch):
    """How many photos were decoded, counted."""
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
        dataset, keep = opened(photos, fit=fit)
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


def test_the_table_says_how_large_each_photo_is(tmp_path):
    write_files(
        tmp_path,
        {
            "a/wide.png": encode_image(draw_noisy_image(60, 20), "PNG"),
            "b/high.jpg": encode_image(draw_noisy_image(300, 700)),
        },
    )
    assert opened(tmp_path)[0].used_photos.select("width", "height").rows() == [(60, 20), (300, 700)]


def test_nobody_can_write_into_kept_pixels(photos):
    with pytest.raises(ValueError, match="read-only"):
        opened(photos)[1].pixels[0] = 0


def test_the_second_time_no_photo_is_opened(photos, decoded):
    dataset = sources.read(photos)
    assert not pixel_cache.get_cache_path(dataset, SIDE, "squash").exists()
    first = opened(photos)
    assert len(decoded) == 8
    assert pixel_cache.get_cache_path(dataset, SIDE, "squash").exists()
    assert_same(opened(photos), first)
    assert len(decoded) == 8


@pytest.mark.parametrize("reason", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_what_was_not_the_photos_fault_is_tried_again(photos, decoded, monkeypatch, reason):
    whole, read = opened(photos), decoding.decode
    pixel_cache.discard(whole[1].folder)
    poor = (photos / "a/1.jpg").read_bytes()

    def fails(data, *given):
        with decoding._translate_errors(data):
            if data == poor:
                raise reason
            return read(data, *given)

    def reads(file):
        if isinstance(reason, OSError) and file.name == "1.jpg" and file.parent.name == "a":
            raise reason
        return decoding.read_bytes(file)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", fails)
        patch.setattr(pixel_cache, "read_bytes", reads)
        first = opened(photos)
        assert first[0].used_photos.height == whole[0].used_photos.height - 1
        before = len(decoded)
        assert_same(opened(photos), first)  # still out of reach: nothing but that photo is opened again
        assert len(decoded) == before
    assert_same(opened(photos), whole)
    before = len(decoded)
    assert_same(opened(photos), whole)
    assert len(decoded) == before


def test_photos_that_need_an_extra_are_read_once_it_is_there(photos, monkeypatch):
    (photos / "b" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))

    def lacking(_):
        raise UnreadablePhoto(decoding.REASON_NO_HEIF)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_open_heif", lacking)
        before = opened(photos)
    assert decoding.REASON_NO_HEIF in before[0].photos["status"].to_list()
    shown = decoding.decode((photos / "a/0.jpg").read_bytes(), SIDE, "squash", pixel_cache.THUMBNAIL_SIZE)
    decode = decoding.decode
    monkeypatch.setattr(
        decoding, "decode", lambda data, *given: shown if data[4:8] == b"ftyp" else decode(data, *given)
    )
    after = opened(photos)
    assert after[0].used_photos.height == before[0].used_photos.height + 1


def test_another_side_fit_or_set_of_rules_is_another_array(photos, decoded, monkeypatch):
    opened(photos)
    opened(photos, side=SIDE + 1)
    opened(photos, fit="crop")
    monkeypatch.setattr(decoding, "DECODER_VERSION", decoding.DECODER_VERSION + 1)
    opened(photos)
    assert len(decoded) == 4 * 8


def bitmap(seed):
    """A photo that is as large as any other."""
    return encode_image(draw_noisy_image(20, 20, seed), "BMP")


def changed_in_size(file):
    file.write_bytes(bitmap(2) + b"more")


def changed_in_place(file):
    """Another photo of the same size, its times set back: what a careless program may do."""
    before = file.stat()
    file.write_bytes(bitmap(2))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def touched(file):
    os.utime(file, (1, 1))


@pytest.mark.parametrize("change", [changed_in_size, changed_in_place, touched, Path.unlink])
def test_a_changed_photo_makes_a_new_array(photos, decoded, change):
    (photos / "a" / "0.jpg").write_bytes(bitmap(1))
    opened(photos)
    change(photos / "a" / "0.jpg")
    dataset, keep = opened(photos)
    assert len(decoded) == 8 + dataset.photos.height
    if (photos / "a" / "0.jpg").exists():
        assert np.array_equal(keep.pixels[0], decoding.decode((photos / "a" / "0.jpg").read_bytes(), SIDE).pixels)


def flipped(file, place):
    data = bytearray(file.read_bytes())
    data[place % len(data)] ^= 0x10
    file.write_bytes(data)


DAMAGE = {
    "the first pixel": lambda cache: flipped(array_file(cache), -8 * SIDE * SIDE * 3),
    "a pixel in the middle": lambda cache: flipped(array_file(cache), -4 * SIDE * SIDE * 3 - 100),
    "the last photo": lambda cache: flipped(array_file(cache), -1),
    "the array's magic": lambda cache: flipped(array_file(cache), 1),
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
    DAMAGE[f"the index at {tenth} tenths"] = lambda cache, tenth=tenth: flipped(
        index_file(cache), index_file(cache).stat().st_size * tenth // 10
    )


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.usefixtures("terminal")
def test_a_damaged_array_is_noticed_and_made_again(photos, decoded, ikebana_cache, capsys, damage):
    first, whole = opened(photos)
    DAMAGE[damage](ikebana_cache)
    again, mended = opened(photos)
    assert "have changed on disk" in capsys.readouterr().err
    assert len(decoded) == 2 * 8
    assert_frame_equal(again.photos, first.photos)
    assert np.array_equal(used_pixels(again, mended), fresh(photos))
    assert whole.folder == mended.folder


def fresh(photos):
    """The used photos, decoded without any cache."""
    files = [photos / name for name in sorted(two_classes())]
    return np.stack([decoding.decode(file.read_bytes(), SIDE).pixels for file in files])


def test_a_disk_that_corrupts_the_cache_is_an_error_and_no_endless_loop(photos, monkeypatch, decoded):
    monkeypatch.setattr(pixel_cache, "_is_intact", lambda index, *arrays: False)
    with pytest.raises(MachineError, match="differ from what was written"):
        opened(photos)
    assert len(decoded) == 8 * pixel_cache.MAX_ATTEMPTS


def test_the_arrays_take_the_room_that_was_announced(photos, ikebana_cache):
    dataset = sources.read(photos)
    opened(photos)
    files = array_file(ikebana_cache), array_file(ikebana_cache).with_name("small.npy")
    assert 0 < sum(file.stat().st_size for file in files) - pixel_cache.compute_cache_bytes(dataset, SIDE) <= 2 * 128


def test_a_full_disk_is_refused_before_a_photo_is_opened_with_the_numbers(photos, monkeypatch, decoded):
    usage = shutil.disk_usage(photos)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=1_500_000_000))
    monkeypatch.setattr(pixel_cache, "compute_cache_bytes", lambda dataset, side: 2_700_000_000)
    with pytest.raises(MachineError, match=r"2\.7 GB are needed on the disk and 1\.5 GB are free"):
        opened(photos)
    assert not decoded


# Other processes, and interruptions

OPEN = """
import hashlib, sys, time
from pathlib import Path
from ikebana.data import decoding, pixel_cache, sources
dataset = sources.read(sys.argv[1])
decode = decoding.decode
decoding.decode = lambda *given: time.sleep(float(sys.argv[3])) or decode(*given)
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.005)
dataset, keep = pixel_cache.open_pixel_cache(dataset, 16, "squash")
print(hashlib.sha256(keep.pixels.tobytes()).hexdigest(), dataset.used_photos.height)
"""


def process(photos, start, slowness=0.0, before=""):
    command = [sys.executable, "-c", before + OPEN, str(photos), str(start), str(slowness)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    return running


@pytest.mark.slow
@pytest.mark.parametrize("beginning", ["nothing is kept", "what is kept is damaged"])
def test_two_processes_at_once_end_with_the_same_array(photos, tmp_path, ikebana_cache, beginning):
    if "damaged" in beginning:
        opened(photos)
        flipped(array_file(ikebana_cache), -1)
    both = [process(photos, tmp_path / "start", 0.01) for _ in range(2)]
    (tmp_path / "start").touch()
    results = [each.communicate(timeout=60) for each in both]
    assert [each.returncode for each in both] == [0, 0], results
    assert results[0][0] == results[1][0] == f"{hashlib.sha256(array_of(photos)).hexdigest()} 6\n"
    assert len(list((ikebana_cache / "pixels").iterdir())) == 1


def array_of(photos):
    dataset, keep = opened(photos)
    assert np.array_equal(used_pixels(dataset, keep), fresh(photos))
    return keep.pixels.tobytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL])
def test_whatever_interrupts_the_making_no_half_array_is_ever_taken_for_a_whole_one(
    photos, tmp_path, ikebana_cache, blow
):
    write_files(photos, {f"a/more {number}.jpg": encode_photo(number) for number in range(300)})
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", 0.02)
    until(lambda: list(ikebana_cache.glob("pixels/.*.partial/pixels.npy")))
    time.sleep(0.05)
    running.send_signal(blow)
    running.communicate(timeout=30)
    assert running.returncode != 0
    left = {each.suffix for each in (ikebana_cache / "pixels").iterdir()}
    assert left == ({".partial", ".lock"} if blow == signal.SIGKILL else set())
    assert opened(photos)[0].used_photos.height == 306
    assert [each.suffix for each in (ikebana_cache / "pixels").iterdir()] == [
        ""
    ]  # the half array is gone, the whole one there


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_what_a_living_process_fills_is_left_alone(photos, tmp_path, ikebana_cache):
    write_files(photos, {f"a/more {number}.jpg": encode_photo(number) for number in range(300)})
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", 0.02)
    until(lambda: list(ikebana_cache.glob("pixels/.*.partial/pixels.npy")))
    (half,) = ikebana_cache.glob("pixels/.*.partial")
    running.send_signal(signal.SIGSTOP)
    try:
        system_files.remove_stale_files(ikebana_cache / "pixels")
        assert (half / "pixels.npy").exists()
    finally:
        running.send_signal(signal.SIGCONT)
    running.communicate(timeout=60)
    assert running.returncode == 0


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_interruption_from_within_a_photo_leaves_nothing(photos, monkeypatch, ikebana_cache):
    def interrupted(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(photos)
    assert list((ikebana_cache / "pixels").iterdir()) == []
    assert opened(photos)[0].used_photos.height == 6


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes the Linux way")
def test_a_disk_that_takes_no_more_is_an_error_for_people_and_leaves_nothing(photos, tmp_path, ikebana_cache):
    (tmp_path / "start").touch()
    running = process(photos, tmp_path / "start", before=LIMITED)
    assert "MachineError: this cannot be written: File too large" in running.communicate(timeout=30)[1]
    assert list((ikebana_cache / "pixels").iterdir()) == []


def test_an_index_says_nothing_that_the_photos_do_not(photos, ikebana_cache):
    dataset, _ = opened(photos)
    index = pl.read_parquet(index_file(ikebana_cache))
    assert index["path"].to_list() == dataset.photos["path"].to_list()
    assert index.schema == pl.Schema(pixel_cache.INDEX_SCHEMA)
