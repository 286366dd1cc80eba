"""Copies are found whatever was done to them, other photos are not, and no split parts them."""

import io
import itertools
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps
from support.images import draw_scene, draw_two_class_scenes, encode_image, scale_image, write_files

from ikebana.auditing import dataset_checks
from ikebana.data import pixel_cache, sources, split
from ikebana.data.duplicates import candidates, cells, near_duplicates, search, similarity
from ikebana.data.pixel_cache import THUMBNAIL_SIZE
from ikebana.recipe import Recipe

pytestmark = pytest.mark.slow


def cut(photo, left, right, top, bottom):
    width, height = photo.size
    return photo.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def again(photo, quality):
    stream = io.BytesIO()
    photo.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def squares(photos):
    """Return thumbnails as the pixel cache has them: uint8 [photos, side, side, 3]."""
    return np.stack(
        [np.asarray(photo.resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BILINEAR)) for photo in photos]
    )


def find_pairs(photos):
    """Return the kind of change per pair of rows."""
    array = squares(photos)
    return {(first, second): how for first, second, how, _ in near_duplicates.find_pairs(array, np.arange(len(array)))}


OTHERS = [draw_scene(seed) for seed in range(40)]
SIDES = st.floats(0, 0.1)
TURNS = st.sampled_from([None, *(turn for turn in Image.Transpose)])


@pytest.mark.slow
@given(
    seed=st.integers(1000, 10**6),
    sides=st.tuples(SIDES, SIDES, SIDES, SIDES),
    turn=TURNS,
    share=st.floats(0.5, 1),
    quality=st.integers(50, 95),
    size=st.sampled_from([(320, 240), (240, 320), (300, 300), (400, 220)]),
)
@example(
    seed=1000, sides=(0.09375, 0.0, 0.0, 0.0), turn=None, share=1.0, quality=50, size=(400, 220)
)  # was missed once
@settings(max_examples=60)
def test_a_transformed_copy_is_found_and_no_other_photo(seed, sides, turn, share, quality, size):
    original = draw_scene(seed, size)
    copy = cut(original, *sides)
    copy = again(scale_image(copy.transpose(turn) if turn is not None else copy, share), quality)
    assert set(find_pairs([*OTHERS, original, copy])) == {(len(OTHERS), len(OTHERS) + 1)}


@pytest.mark.parametrize("turn", [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90])
def test_a_greyscale_copy_is_found_and_reported_as_such(turn):
    original = draw_scene(1000)
    turned = original.transpose(turn) if turn is not None else original
    copy = again(scale_image(ImageOps.grayscale(turned), 0.7), 80)
    pairs = find_pairs([*OTHERS, copy, original])
    assert set(pairs) == {(len(OTHERS), len(OTHERS) + 1)}
    assert "greyscale" in pairs[len(OTHERS), len(OTHERS) + 1]


def test_copies_among_greyscale_photos_are_found_as_among_colour_photos():
    scenes = [ImageOps.grayscale(draw_scene(seed)).convert("RGB") for seed in range(12)]
    assert set(find_pairs([*scenes, again(scenes[3], 60)])) == {(3, 12)}
    assert set(find_pairs([*scenes, draw_scene(100), again(scenes[3], 60)])) == {(3, 13)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda photo: again(photo, 60), ""),
        (lambda photo: scale_image(photo, 0.6), ""),
        (ImageOps.mirror, "mirrored"),
        (lambda photo: photo.rotate(90, expand=True), "rotated by 90°"),
        (lambda photo: photo.rotate(270, expand=True), "rotated by 90°"),
        (lambda photo: photo.rotate(180), "rotated by 180°"),
        (ImageOps.flip, "mirrored and rotated by 180°"),
        (lambda photo: photo.transpose(Image.Transpose.TRANSPOSE), "mirrored and rotated by 90°"),
        (lambda photo: cut(photo, 0.1, 0.02, 0.05, 0.08), "cropped"),
        (lambda photo: cut(ImageOps.mirror(photo), 0.1, 0.0, 0.0, 0.1), "mirrored, cropped"),
    ],
)
def test_the_transformation_is_reported(change, expected):
    for seed in range(5):
        original = draw_scene(seed)
        assert find_pairs([original, change(original)]) == {(0, 1): expected}
        assert find_pairs([change(original), original]) == {(0, 1): expected}


@pytest.mark.slow
def test_different_drawings_are_not_near_duplicates():
    assert find_pairs([draw_scene(seed) for seed in range(150)]) == {}


def test_the_same_scene_with_another_object_is_not_a_near_duplicate():
    for seed in range(10):
        first, second = draw_scene(seed), draw_scene(seed)
        ImageDraw.Draw(second).ellipse((110, 70, 210, 170), fill=(255, 0, 255) if seed % 2 else (0, 255, 0))
        ImageDraw.Draw(first).ellipse((110, 70, 210, 170), fill=(0, 0, 0) if seed % 2 else (255, 255, 255))
        assert find_pairs([first, second]) == {}


def textured(thing):
    """A background, and one sixth of it covered by a thing with as much detail and the same colours."""
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(70, 180, (4, 4, 3)).astype(np.uint8)).resize(
        (256, 256), Image.Resampling.BICUBIC
    )
    detail = rng.normal(0, 20, (64, 64))
    detail[20:46, 24:50] = np.random.default_rng(thing).normal(0, 20, (26, 26))
    levels = np.asarray(ground) + np.kron(detail, np.ones((4, 4)))[..., None]
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def test_different_things_before_the_same_background_are_no_near_duplicates(monkeypatch):
    things = [textured(thing) for thing in range(1, 9)]
    assert find_pairs(things) == {}
    assert set(find_pairs([things[0], again(scale_image(things[0], 0.35), 40)])) == {(0, 1)}
    monkeypatch.setattr(similarity, "MIN_UNIFORM_CORRELATION", similarity.MIN_DETAIL_CORRELATION)
    assert len(find_pairs(things)) > 10


def test_uniform_photos_are_not_near_duplicates():
    blank = [Image.new("RGB", (100, 80), (level, level, level)) for level in (0, 128, 254, 255, 255)]
    assert find_pairs([*blank, draw_scene(1)]) == {}


@pytest.mark.slow
@given(st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_the_order_of_the_photos_is_irrelevant(rng):
    photos = [
        *OTHERS[:12],
        ImageOps.mirror(OTHERS[3]),
        cut(OTHERS[5], 0.05, 0.08, 0.1, 0.0),
        scale_image(OTHERS[5], 0.5),
    ]
    order = list(range(len(photos)))
    rng.shuffle(order)
    got = find_pairs([photos[row] for row in order])
    assert {frozenset((order[first], order[second])) for first, second in got} >= {
        frozenset((3, 12)),
        frozenset((5, 13)),
    }
    assert split.find_connected_components((order[first], order[second]) for first, second in got) == [
        [3, 12],
        [5, 13, 14],
    ]


@pytest.mark.slow
def test_many_copies_of_one_photo_are_all_in_one_group():
    copies = [again(scale_image(OTHERS[0], 0.5 + 0.015 * number), 60 + number) for number in range(30)]
    got = find_pairs([*OTHERS[1:], *copies])
    first = len(OTHERS) - 1
    assert split.find_connected_components(got) == [list(range(first, first + 30))]


@given(st.integers(0, 10**6), TURNS)
@settings(max_examples=20)
def test_the_descriptor_of_a_rotated_photo_is_one_of_eight_with_the_same_norms(seed, turn):
    photo = draw_scene(seed, (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    pair = squares([photo, photo.transpose(turn) if turn is not None else photo])
    original, copy = candidates.describe_photos(pair)[:, candidates.UNCROPPED_WINDOW]
    assert np.allclose(candidates.compute_invariants(original), candidates.compute_invariants(copy), atol=1e-2)
    assert np.isclose(candidates.apply_symmetries(copy), original, atol=1e-2).all(-1).sum() == 1


def make_index(uncropped):
    shapes = candidates.describe_shapes(candidates.compute_invariants(uncropped))
    return candidates.CandidateIndex(uncropped, candidates.lift_descriptions(uncropped), shapes)


@given(st.integers(0, 10**6), st.floats(0.5, 1.5), st.floats(-30, 30))
@settings(max_examples=20)
def test_neither_brightness_nor_contrast_changes_the_shape(seed, contrast, brightness):
    photo = squares([draw_scene(seed)]).astype(np.float32)
    shapes = [
        candidates.describe_shapes(candidates.describe_photos(levels))
        for levels in (photo, photo * contrast + brightness)
    ]
    assert np.allclose(*shapes, atol=1e-3)
    assert np.allclose(np.linalg.norm(shapes[0], axis=-1), 1, atol=1e-5)


def recolour(photo, contrast, brightness):
    levels = np.asarray(photo, np.float32) * contrast + brightness
    return Image.fromarray(np.rint(levels).clip(0, 255).astype(np.uint8))


def test_a_recoloured_copy_is_a_candidate_although_more_photos_are_nearer_than_can_be_compared(monkeypatch):
    original = draw_scene(7, (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    # The same with other detail: their low frequencies are nearer to the original than those of its copy.
    rng = np.random.default_rng(0)
    levels = np.asarray(original, np.float32)
    waves = np.cos(np.pi * np.outer([4, 5], (np.arange(THUMBNAIL_SIZE) + 0.5) / THUMBNAIL_SIZE))
    others = []
    for _ in range(40):
        down, across = rng.normal(0, 6, (2, 2)) @ waves
        others.append(Image.fromarray((levels + (down[:, None] + across)[..., None]).clip(0, 255).astype(np.uint8)))
    described = candidates.describe_photos(squares([original, *others, recolour(original, 0.93, 4)]))
    monkeypatch.setattr(candidates, "MAX_SIGN_COMPARISONS", 8)
    monkeypatch.setattr(candidates, "MAX_CANDIDATES_PER_PHOTO", 4)

    def find_copy():
        index = make_index(described[:, candidates.UNCROPPED_WINDOW].copy())
        return 41 in index.find_candidates(range(1), described[:1]).second

    assert find_copy()
    with monkeypatch.context() as patch:
        patch.setattr(candidates, "_take_highest", lambda values, scores, count: values[:count])
        assert not find_copy()


# Missing at the left, right, top and bottom.
SHARES = ((0, 0, 0, 0), (0.1, 0, 0, 0.05), (0.03, 0.08, 0, 0.1), (0.07, 0.02, 0.06, 0.01))
PARTITIONS = st.lists(st.integers(0, 24), max_size=6).map(lambda cuts: [0, *sorted(cuts), 24])


@pytest.fixture(scope="module")
def photos_with_copies():
    """24 photos, of which six are copies, some without colours."""
    originals = [draw_scene(seed) for seed in range(18)]
    grey = [ImageOps.grayscale(originals[seed]).convert("RGB") for seed in (3, 4)]
    turned = [cut(originals[5], 0.05, 0, 0.1, 0), originals[6].transpose(Image.Transpose.ROTATE_90), originals[7]]
    photos = [grey[0], *originals, *turned, grey[1], ImageOps.mirror(grey[1])]
    return squares(photos), np.arange(24)


@given(PARTITIONS, st.sampled_from([1, candidates.MIN_DIVIDED_PHOTOS]))
@settings(max_examples=15)
def test_ranges_of_queries_find_together_what_one_search_finds(photos_with_copies, cuts, min_divided):
    photos, rows = photos_with_copies
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "MIN_DIVIDED_PHOTOS", min_divided)
        expected = search.find_pairs(photos, rows)
        parts = [search.find_matches(photos, rows, range(*ends)) for ends in itertools.pairwise(cuts)]
    assert len(expected) >= 6
    assert search.list_pairs(parts) == search.list_pairs(reversed(parts)) == expected


def test_photos_in_cells_have_the_pairs_of_a_search_of_all(monkeypatch):
    photos = [draw_scene(seed) for seed in range(300)]
    copies = [again(cut(photos[number], *SHARES[number % 4]), 80) for number in range(60)]
    blank = [Image.new("RGB", (THUMBNAIL_SIZE, THUMBNAIL_SIZE), (level,) * 3) for level in (0, 90, 255)]
    array = squares([blank[0], *photos, *copies, *blank[1:]])
    rows, all_pairs = np.arange(len(array)), search.find_pairs(array, np.arange(len(array)))
    monkeypatch.setattr(candidates, "MIN_DIVIDED_PHOTOS", 1)
    counts, find_places = [], cells.Cells.find_places

    def count_photos(self, shapes):
        places = find_places(self, shapes)
        counts.append(len(places))
        return places

    monkeypatch.setattr(cells.Cells, "find_places", count_photos)
    assert search.find_pairs(array, rows) == all_pairs
    assert len(all_pairs) >= 55
    assert len(counts) == len(photos) + len(copies)
    # Among so few photos, a cell holds a larger share of them than among many.
    assert np.mean(counts) < len(array) / 2


@given(st.integers(1, 300), st.integers(0, 10**6))
@settings(max_examples=30)
def test_a_photo_is_found_in_its_own_cell(count, seed):
    rng = np.random.default_rng(seed)
    shapes = rng.normal(size=(count, 5)).astype(np.float32)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    rows = np.flatnonzero(rng.random(count) < 0.8)
    divided = cells.Cells(shapes, rows)
    for row in rows:
        places = divided.find_places(np.stack([shapes[row], rng.permutation(shapes[row])]))
        assert row in divided.order[places]
        assert (np.diff(places) > 0).all()
    assert sorted(divided.order) == list(rows)


def test_cells_without_photos_are_possible():
    assert cells.Cells(np.zeros((3, 5), np.float32), np.zeros(0, np.int64))


@given(PARTITIONS)
@settings(max_examples=5)
def test_ranges_of_one_search_find_what_each_finds_alone(photos_with_copies, cuts):
    photos, rows = photos_with_copies
    with search.CopySearch(photos, rows) as copies:
        for ends in itertools.pairwise(cuts):
            assert copies.find_matches(range(*ends)) == search.find_matches(photos, rows, range(*ends))


def test_photos_are_described_once_for_several_ranges(photos_with_copies, stages):
    photos, rows = photos_with_copies
    with search.CopySearch(photos, rows) as copies:
        for start in range(0, 24, 6):
            copies.find_matches(range(start, start + 6))
        assert (stages.count("index photos"), stages.count("index photos (greyscale)")) == (1, 1)
        copies.close()
        copies.find_by_colour(range(5))
    assert (stages.count("index photos"), stages.count("index photos (greyscale)")) == (2, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="lists mapped files the Linux way")
def test_a_closed_search_gives_its_disk_space_back(photos_with_copies, ikebana_cache):
    photos, rows = photos_with_copies
    with search.CopySearch(photos, rows) as copies:
        copies.find_matches(range(24))
        assert str(ikebana_cache) in Path("/proc/self/maps").read_text()
    assert str(ikebana_cache) not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from([(4096, 8 * 4096), (5, 15)]))
@settings(max_examples=10)
def test_no_photo_within_the_search_radius_is_missed(seed, at_a_time):
    rng = np.random.default_rng(seed)
    photos = squares([cut(OTHERS[number % 3], *rng.uniform(0, 0.1, 4)) for number in range(12)] + OTHERS)
    described = candidates.describe_photos(photos)
    described_photos = described[:, candidates.UNCROPPED_WINDOW].copy()
    index = make_index(described_photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "BLOCK_PHOTOS", at_a_time[0])
        patch.setattr(candidates, "MAX_PENDING_PHOTOS", at_a_time[1])
        near = index.find_candidates(range(len(photos)), described)
    searched = described[..., : candidates.SEARCHED_COUNT]
    turned = candidates.apply_symmetries(searched[:, candidates.UNCROPPED_WINDOW])
    away = searched[:, None, :, None] - turned[None, :, None]
    away = np.sqrt((away**2).sum(-1)).min((2, 3)) + np.diag([np.inf] * len(photos))
    expected = away < candidates.compute_search_radius(described)[:, None]
    assert expected.sum(1).max() <= candidates.MAX_CANDIDATES_PER_PHOTO
    got = np.zeros_like(expected)
    got[near.first, near.second] = True
    clear = np.abs(away - candidates.compute_search_radius(described)[:, None]) > 1e-2  # what rounding cannot change
    assert (got == expected)[clear].all()
    assert expected.any()


@pytest.mark.slow
@given(st.tuples(SIDES, SIDES, SIDES, SIDES), st.integers(0, 10**6))
@settings(max_examples=20)
def test_the_window_of_a_cropped_copy_is_found(sides, seed):
    original = draw_scene(seed, (512, 512))
    copy = cut(original, *sides)
    pair = [
        similarity.ReducedImages(
            np.rint(photo.mean(3)).astype(np.uint8), np.rint(similarity.average_blocks(photo, 16)).astype(np.uint8)
        )
        for photo in (squares([original]), squares([copy]))
    ]
    begun = np.array([[0.025 if side < 0.05 else 0.075 for side in sides]])
    like = similarity.compare_pairs(pair[0], pair[1], begun, np.zeros(1, np.int64))
    assert np.abs(like.window[0] - sides).max() < 0.01
    assert like.is_duplicate[0]


# In a folder


def folder_of(place, files):
    return write_files(place, {name: encode_image(photo, "JPEG", quality=92) for name, photo in files.items()})


def figure(seed):
    """A drawing of one figure on an even ground: two of the same shape differ by where it is, and by a shade."""
    rng = np.random.default_rng(seed)
    ground, ink = (tuple(int(level) for level in rng.integers(low, low + 25, 3)) for low in (215, 40))
    drawing, radius = Image.new("RGB", (96, 96), ground), int(rng.integers(16, 20))
    x, y = (int(value) for value in rng.integers(38, 59, 2))
    shape = ImageDraw.Draw(drawing).ellipse if seed % 2 else ImageDraw.Draw(drawing).rectangle
    shape((x - radius, y - radius, x + radius, y + radius), fill=ink)
    return drawing


@pytest.mark.slow
def test_two_drawings_of_one_shape_are_rarely_near_duplicates(monkeypatch):
    drawn = [figure(seed) for seed in range(60)]
    assert find_pairs([figure(1), again(scale_image(figure(1), 0.7), 75)])
    pairs = len(find_pairs(drawn))
    monkeypatch.setattr(similarity, "MIN_DETAIL_SPREAD", 0.0)
    assert len(find_pairs(drawn)) > 3 * pairs


def split_folder(folder, recipe=None):
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(folder), 16, "squash")
    return split.split_photos(
        sources.assign_classes(near_duplicates.find_near_duplicates(dataset, keep), ()), recipe or Recipe()
    ), keep


def of_kind(findings, kind):
    return [finding for finding in findings if finding.kind == kind]


def test_near_duplicates_in_a_folder_are_reported_with_their_transformation(tmp_path):
    files = draw_two_class_scenes()
    files |= {"a/again.jpg": ImageOps.mirror(files["a/3.jpg"]), "a/small.jpg": scale_image(files["a/5.jpg"], 0.5)}
    files |= {"b/wrong.jpg": cut(files["a/7.jpg"], 0.08, 0.0, 0.06, 0.0)}
    dataset, _ = split_folder(folder_of(tmp_path, files))
    findings = dataset_checks.check_dataset(dataset)
    assert {finding.paths: finding.evidence.split(",")[0] for finding in of_kind(findings, "near_duplicate")} == {
        ("a/3.jpg", "a/again.jpg"): "mirrored",
        ("a/5.jpg", "a/small.jpg"): "resized",
    }
    (second,) = of_kind(findings, "near_duplicate_conflicting_label")
    assert second.paths == ("a/7.jpg", "b/wrong.jpg")
    assert "a and b" in second.evidence
    assert not of_kind(findings, "leakage")
    assert all(
        len(line) <= dataset_checks.SUMMARY_COLUMNS
        for line in dataset_checks.summarise(dataset, findings, "audit.json").split("\n")
    )


@pytest.mark.slow
def test_a_chain_of_near_and_exact_duplicates_is_one_group_and_one_finding(tmp_path):
    files = draw_two_class_scenes()
    files |= {
        "a/half.jpg": scale_image(files["a/0.jpg"], 0.5),
        "a/turned.jpg": files["a/0.jpg"].rotate(90, expand=True),
    }
    folder = folder_of(tmp_path, files)
    (folder / "b" / "half again.jpg").write_bytes((folder / "a" / "half.jpg").read_bytes())
    dataset, _ = split_folder(folder)
    chain = {"a/0.jpg", "a/half.jpg", "a/turned.jpg", "b/half again.jpg"}
    assert {
        finding.paths for finding in of_kind(dataset_checks.check_dataset(dataset), "near_duplicate_conflicting_label")
    } == {tuple(sorted(chain))}
    group = dict(zip(dataset.photos["path"], split.find_groups(dataset.photos), strict=True))
    assert {path for path, number in group.items() if number == group["a/0.jpg"]} == chain
    assert dataset.photos.filter(pl.col("duplicate_of").is_not_null())["path"].to_list() == sorted(chain)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_default_split_never_separates_near_duplicates(seed, tmp_path):
    rng, files = random.Random(seed), draw_two_class_scenes(16)
    for number, name in enumerate(rng.sample(sorted(files), 8)):
        change = rng.choice((ImageOps.mirror, ImageOps.flip, lambda photo: scale_image(photo, 0.6)))
        files[f"{name[0]}/copy {number}.jpg"] = change(files[name])
    dataset, _ = split_folder(folder_of(tmp_path, files), Recipe(split_seed=seed))
    where = defaultdict(set)
    for name, part in dataset.used_photos.select("duplicate_of", "split").drop_nulls().iter_rows():
        where[name].add(part)
    assert len(where) == 8
    assert all(len(splits) == 1 for splits in where.values())
    assert not of_kind(dataset_checks.check_dataset(dataset), "leakage")


@pytest.mark.slow
def test_near_duplicates_across_given_splits_are_leakage(tmp_path):
    later = {path: draw_scene(50_000 + row) for row, path in enumerate(draw_two_class_scenes(4))}
    files = {
        f"{part}/{path}": photo
        for part, photos in (("train", draw_two_class_scenes(8)), ("test", later))
        for path, photo in photos.items()
    }
    files["test/a/known.jpg"] = ImageOps.mirror(files["train/a/0.jpg"])
    dataset, _ = split_folder(folder_of(tmp_path, files))
    parts = dict(dataset.photos.select("path", "split").iter_rows())
    if parts["train/a/0.jpg"] == "test":  # the given parts are kept
        pytest.fail("a given part was changed")
    findings = dataset_checks.check_dataset(dataset)
    (leak,) = of_kind(findings, "leakage")
    assert leak.paths == ("test/a/known.jpg", "train/a/0.jpg")
    assert "mirrored" in leak.evidence
    assert findings[0] is leak


@pytest.mark.slow
def test_a_class_of_duplicates_alone_is_reported_and_still_tested(tmp_path):
    files = draw_two_class_scenes(20) | {f"c/{row}.jpg": again(draw_scene(77), 60 + row) for row in range(20)}
    dataset, _ = split_folder(folder_of(tmp_path, files))
    assert set(dataset.used_photos.filter(label="c")["split"]) == {"train", "validation", "test"}
    findings = dataset_checks.check_dataset(dataset)
    (alike,) = of_kind(findings, "near_duplicate")
    assert alike.severity == "warning"
    assert len(alike.paths) == 20


@pytest.mark.slow
def test_near_duplicates_are_cached_beside_the_pixels_and_damage_is_detected(tmp_path, monkeypatch):
    files = draw_two_class_scenes(6)
    folder = folder_of(tmp_path / "photos", files | {"a/m.jpg": ImageOps.mirror(files["a/0.jpg"])})
    first, keep = split_folder(folder)
    (file,) = keep.folder.glob("near_duplicates.*.json")
    with monkeypatch.context() as patch:
        patch.setattr(near_duplicates, "find_pairs", lambda *_: pytest.fail("it was looked for again"))
        assert split_folder(folder)[0].near_duplicates == first.near_duplicates
    listed = json.loads(file.read_text())
    listed[0][2] = "never found"
    for damage in (
        json.dumps(listed),
        "",
        "{",
        "[[0]]",
        "[[5, 999, 'x', 1]]",
        '[[5, 999, "x", 1]]',
        '[[3, 3, "x", 1]]',
    ):
        file.write_text(damage)
        assert split_folder(folder)[0].near_duplicates == first.near_duplicates


def test_the_copies_among_the_flowers_are_found(flowers):
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(flowers), 16, "squash")
    dataset = split.split_photos(
        sources.assign_classes(near_duplicates.find_near_duplicates(dataset, keep), ()), Recipe()
    )
    findings = dataset_checks.check_dataset(dataset)
    assert len(of_kind(findings, "exact_duplicate")) == 2
    contradictions = of_kind(findings, "exact_duplicate_conflicting_label")
    assert len(contradictions) == 4
    assert all({path.split("/")[0] for path in finding.paths} == {"rose", "tulip"} for finding in contradictions)
    same_picture = {
        path
        for path in dataset.photos["path"]
        if path.endswith("_n.jpg") and path[:-6] + ".jpg" in set(dataset.photos["path"])
    }
    joined = {path for finding in of_kind(findings, "near_duplicate") for path in finding.paths}
    assert len(same_picture & joined) >= 6  # the same photo in two sizes, by the name that the site gave it
    # A rose and its copy without colours, by eye.
    assert {"rose/13279526615_a3b0059bec.jpg", "rose/13342823005_16d3df58df_n.jpg"} <= joined
    assert not of_kind(findings, "leakage")


@pytest.mark.parametrize("photos", [[], [draw_scene(1)], [draw_scene(1), draw_scene(2)], [Image.new("RGB", (50, 50))]])
def test_few_photos_or_none_have_no_near_duplicates(photos):
    array = squares(photos) if photos else np.zeros((0, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), np.uint8)
    assert near_duplicates.find_pairs(array, np.arange(len(array))) == []


def test_near_duplicates_found_while_a_photo_was_unreadable_are_not_reused_later(tmp_path):
    """Another process rebuilds the pixel cache while this one searches it for near-duplicates."""
    files = draw_two_class_scenes(6)
    folder = folder_of(tmp_path / "photos", files | {"a/m.jpg": ImageOps.mirror(files["a/0.jpg"])})
    complete, keep = split_folder(folder)
    (file,) = keep.folder.glob("near_duplicates.*.json")
    file.unlink()
    gone = pl.when(pl.col("path") == "a/m.jpg").then(pl.lit("Input/output error")).otherwise(pl.col("status"))
    assert not near_duplicates.find_near_duplicates(
        complete.with_photos(complete.photos.with_columns(gone.alias("status"))), keep
    ).near_duplicates
    assert split_folder(folder)[0].near_duplicates == complete.near_duplicates
