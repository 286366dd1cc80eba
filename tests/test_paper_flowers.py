"""The drawn photos: reproducible, learnable, with exactly the listed defects."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFilter, ImageOps, ImageStat

from ikebana.demo_data.paper_flowers import KINDS, PlantedFaults, draw, draw_collection, draw_new

pytestmark = pytest.mark.slow

SMALL_SIZE = (80, 60)


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> tuple[Path, PlantedFaults]:
    folder = tmp_path_factory.mktemp("paper") / "flowers"
    return folder, draw_collection(folder, photos_per_kind=6, seed=3)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Compute the mean difference of two photos of one size, in 8-bit levels."""
    return float(np.mean(ImageStat.Stat(ImageChops.difference(first, second)).mean))


def redraw(path: Path, kind: str, seed: int, size: tuple[int, int]) -> Image.Image:
    """Draw the photo that a file of a collection should be, according to its number."""
    return draw(kind, 2_000_000 * seed + int(path.stem.split("_")[1]), size)


def colours(photo: Image.Image) -> np.ndarray:
    """Compute a colour histogram of 64 bins, independent of position."""
    boxes, _ = np.histogramdd(np.asarray(photo).reshape(-1, 3), bins=(4, 4, 4), range=[(0, 256)] * 3)
    return boxes.ravel() / boxes.sum()


def shape(photo: Image.Image) -> np.ndarray:
    """Compute a histogram of edge positions and directions, without colour."""
    grey = np.asarray(photo.convert("L").filter(ImageFilter.BoxBlur(1)), dtype=float)
    down, across = np.gradient(grey)
    way = (np.arctan2(down, across) % np.pi / np.pi * 6).astype(int) % 6
    strength = np.hypot(down, across)
    tall, wide = (side // 10 * 10 for side in grey.shape)
    cells = [(strength * (way == turn))[:tall, :wide].reshape(tall // 10, 10, wide // 10, 10) for turn in range(6)]
    histogram = np.concatenate([cell.sum((1, 3)).ravel() for cell in cells])
    return histogram / np.linalg.norm(histogram)


def classify_by_neighbours(known: np.ndarray, unknown: np.ndarray) -> float:
    """Classify by the 5 nearest known photos, and return the accuracy; axes: kind, photo, feature."""
    apart = np.abs(np.concatenate(unknown)[:, None] - np.concatenate(known)[None]).sum(-1)
    votes = np.argsort(apart, axis=1)[:, :5] // known.shape[1]
    predicted = np.array([np.bincount(vote, minlength=len(KINDS)).argmax() for vote in votes])
    return float((predicted == np.repeat(np.arange(len(KINDS)), unknown.shape[1])).mean())


def classify_by_average(known: np.ndarray, unknown: np.ndarray) -> float:
    """Classify by the nearest mean of the known photos, and return the accuracy."""
    apart = np.abs(unknown[:, :, None] - known.mean(1)).sum(-1)
    return float((apart.argmin(-1) == np.arange(len(KINDS))[:, None]).mean())


def test_there_are_five_kinds_in_alphabetical_order():
    assert len(set(KINDS)) == 5
    assert list(KINDS) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_is_the_same_each_time_it_is_drawn(kind):
    assert draw(kind, 7, SMALL_SIZE).tobytes() == draw(kind, 7, SMALL_SIZE).tobytes()


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (33, 33)])
def test_a_photo_has_the_requested_size(size):
    photo = draw("lotus", 1, size)
    assert (photo.size, photo.mode) == (size, "RGB")


def test_another_seed_and_another_kind_give_another_photo():
    photos = [draw(kind, seed, SMALL_SIZE) for kind in KINDS for seed in range(3)]
    assert len({photo.tobytes() for photo in photos}) == len(photos)


def test_a_photo_is_neither_black_nor_white_nor_flat():
    for kind in KINDS:
        light = ImageStat.Stat(draw(kind, 5, SMALL_SIZE).convert("L"))
        assert 25 < light.mean[0] < 230
        assert light.stddev[0] > 10


def test_an_unknown_flower_is_rejected_with_the_available_names():
    with pytest.raises(ValueError, match="pinwheel"):
        draw("tulip", 0)


@pytest.mark.slow
def test_shape_reveals_the_kind_and_colour_does_not():
    known = [[draw(kind, seed, SMALL_SIZE) for seed in range(14)] for kind in KINDS]
    unknown = [[draw(kind, 500 + seed, SMALL_SIZE) for seed in range(14)] for kind in KINDS]
    features = {
        look: [np.array([[look(photo) for photo in photos] for photos in part]) for part in (known, unknown)]
        for look in (colours, shape)
    }
    by_colour = max(classify_by_neighbours(*features[colours]), classify_by_average(*features[colours]))
    by_shape = max(classify_by_neighbours(*features[shape]), classify_by_average(*features[shape]))
    assert by_colour < 0.5
    assert by_shape > max(0.5, by_colour + 0.2)


@pytest.mark.slow
def test_a_collection_has_every_kind_in_equal_numbers(collection):
    folder, _ = collection
    assert {sub.name: len(list(sub.glob("*.jpg"))) for sub in folder.iterdir()} == dict.fromkeys(KINDS, 6)


def test_a_photo_has_at_most_one_planted_defect_and_each_defect_occurs(collection):
    _, planted = collection
    duplicates = [path for pair in planted.duplicates for path in pair]
    faulty = [*planted.broken, *duplicates, *planted.wrong_label, *planted.sideways]
    assert len(set(faulty)) == len(faulty)
    assert all((planted.broken, planted.duplicates, planted.wrong_label, planted.sideways))


def test_broken_files_do_not_open_and_all_others_do(collection):
    folder, planted = collection
    for path in sorted(folder.rglob("*.jpg")):
        with Image.open(path) as photo:
            if path.relative_to(folder).as_posix() in planted.broken:
                with pytest.raises(OSError, match="truncated"):
                    photo.load()
            else:
                photo.load()


def test_duplicates_are_the_only_files_with_equal_bytes_and_share_their_label(collection):
    folder, planted = collection
    paths_by_digest: dict[str, set[str]] = {}
    for path in folder.rglob("*.jpg"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        paths_by_digest.setdefault(digest, set()).add(path.relative_to(folder).as_posix())
    assert sorted(map(sorted, planted.duplicates)) == sorted(
        sorted(same) for same in paths_by_digest.values() if len(same) > 1
    )
    assert all(Path(first).parent == Path(second).parent for first, second in planted.duplicates)


def test_rotated_photos_are_upright_once_their_orientation_is_applied(collection):
    folder, planted = collection
    for name in planted.sideways:
        with Image.open(folder / name) as photo:
            upright = ImageOps.exif_transpose(photo)
            drawn = redraw(Path(name), Path(name).parent.name, 3, upright.size)
            assert difference(upright, drawn) < 6
            assert difference(photo.convert("RGB").resize(drawn.size), drawn) > 12


@pytest.mark.slow
def test_only_photos_with_a_wrong_label_show_another_kind_than_their_folder(collection):
    folder, planted = collection
    copies = {second for _, second in planted.duplicates}
    for path in sorted(folder.rglob("*.jpg")):
        name = path.relative_to(folder).as_posix()
        if name in planted.broken or name in copies:
            continue
        with Image.open(path) as photo:
            upright = ImageOps.exif_transpose(photo).convert("RGB")
        as_labelled = difference(upright, redraw(path, path.parent.name, 3, upright.size)) < 6
        assert as_labelled == (name not in planted.wrong_label)


def test_a_mislabelled_photo_has_no_duplicate_in_the_right_folder(collection):
    folder, planted = collection
    for name in planted.wrong_label:
        with Image.open(folder / name) as photo:
            assert all(difference(photo, redraw(Path(name), kind, 3, photo.size)) > 12 for kind in KINDS)


def test_even_the_smallest_collection_has_one_defect_of_each_kind(tmp_path):
    planted = draw_collection(tmp_path, photos_per_kind=4)
    assert [len(faults) for faults in (planted.broken, planted.duplicates, planted.wrong_label, planted.sideways)] == [
        1
    ] * 4


def test_a_collection_too_small_for_its_defects_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 4"):
        draw_collection(tmp_path, photos_per_kind=3)


def test_new_photos_have_neutral_names_and_are_in_no_collection(tmp_path, collection):
    truth = draw_new(tmp_path, photos_per_kind=2, seed=3)
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == sorted(truth)
    assert sorted(truth.values()) == sorted(KINDS * 2)
    assert not any(kind in name for kind in KINDS for name in truth)
    old = {path.read_bytes() for path in collection[0].rglob("*.jpg")}
    assert not old & {(tmp_path / name).read_bytes() for name in truth}
