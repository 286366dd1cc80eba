"""Every photo is in one split, reproducibly, stratified, and never separated from its duplicates."""

import random
from collections import Counter, defaultdict

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import LABELS, SEEDS, make_dataset
from support.images import draw_noisy_image, encode_image, encode_photo, write_files

from ikebana.data import pixel_cache, sources, split
from ikebana.data.dataset import SPLITS
from ikebana.errors import PhotosError
from ikebana.recipe import Recipe
from ikebana.recipes import TUTORIAL_CLASS_ORDER

FRACTIONS = st.sampled_from(
    [(0.6, 0.2, 0.2), (0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (0.7, 0.15, 0.15), (0.34, 0.33, 0.33), (0.9, 0.0, 0.1)]
)
CLASSES = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1)


def expand_groups(classes):
    """Convert {class: sizes of its groups} to a label and a group number per photo."""
    labels, groups = [], []
    for name, sizes in classes.items():
        for size in sizes:
            groups += [len(set(groups))] * size
            labels += [name] * size
    return labels, groups


def list_splits(dataset):
    return dataset.used_photos["split"].to_list()


# Stratified


@given(labels=LABELS, shares=FRACTIONS, seed=SEEDS)
def test_every_photo_is_in_exactly_one_requested_split(labels, shares, seed):
    splits = split.assign_stratified(labels, range(len(labels)), shares, seed)
    assert len(splits) == len(labels)
    assert set(splits) <= {part for part, share in zip(SPLITS, shares, strict=True) if share > 0}


@given(labels=LABELS, shares=FRACTIONS, seed=SEEDS)
def test_without_groups_each_class_has_its_fractions_to_within_one_photo(labels, shares, seed):
    splits = split.assign_stratified(labels, range(len(labels)), shares, seed)
    for name, number in Counter(labels).items():
        got = Counter(part for part, label in zip(splits, labels, strict=True) if label == name)
        for part, share in zip(SPLITS, shares, strict=True):
            if min(fraction for fraction in shares if fraction > 0) * number >= 1:
                assert abs(got[part] - share * number) < 1 + 1e-9


@given(classes=CLASSES, shares=FRACTIONS, seed=SEEDS)
def test_a_group_is_in_one_split_and_no_split_lacks_a_class_with_enough_groups(classes, shares, seed):
    labels, groups = expand_groups(classes)
    splits = split.assign_stratified(labels, groups, shares, seed)
    where = defaultdict(set)
    for group, part in zip(groups, splits, strict=True):
        where[group].add(part)
    assert all(len(dataset) == 1 for dataset in where.values())
    asked = [
        part
        for part, share in zip(("train", "test", "validation"), (shares[0], shares[2], shares[1]), strict=True)
        if share
    ]
    for name, sizes in classes.items():
        got = {part for part, label in zip(splits, labels, strict=True) if label == name}
        assert got >= set(asked[: len(sizes)])


@given(labels=LABELS, groups=st.lists(st.integers(0, 5), min_size=60, max_size=60), shares=FRACTIONS, seed=SEEDS)
def test_groups_across_classes_are_not_separated(labels, groups, shares, seed):
    splits = split.assign_stratified(labels, groups[: len(labels)], shares, seed)
    assert len(set(zip(groups, splits, strict=False))) == len(set(groups[: len(labels)]))
    assert set(splits) <= {part for part, share in zip(SPLITS, shares, strict=True) if share > 0}


@pytest.mark.parametrize(
    ("photos", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, set(SPLITS)), (5, set(SPLITS))]
)
def test_small_classes_go_to_training_first_and_then_to_test(photos, expected):
    for seed in range(20):
        splits = split.assign_stratified(["rare"] * photos + ["usual"] * 50, range(50 + photos), (0.6, 0.2, 0.2), seed)
        assert set(splits[:photos]) == expected


@pytest.mark.slow
@given(labels=LABELS, seed=SEEDS)
def test_the_split_seed_determines_the_split_and_the_training_seed_does_not(labels, seed):
    drawn = make_dataset(labels + ["a", "b"] * 3)
    once = split.split_photos(drawn, Recipe(split_seed=seed, seed=1))
    assert list_splits(split.split_photos(drawn, Recipe(split_seed=seed, seed=2))) == list_splits(once)


@pytest.mark.parametrize("kind", ["stratified", "shuffle"])
def test_another_split_seed_gives_another_split(kind):
    drawn = make_dataset(["a", "b"] * 20)
    assert (
        len({tuple(list_splits(split.split_photos(drawn, Recipe(split=kind, split_seed=seed)))) for seed in range(10)})
        == 10
    )


# Duplicates and groups


@pytest.mark.slow
@given(st.data())
def test_duplicates_near_duplicates_and_given_groups_are_joined_transitively(data):
    number = data.draw(st.integers(6, 40))
    letters = st.lists(st.sampled_from("uvwxyz"), min_size=number, max_size=number)
    labels, bytes_, group, near = (data.draw(letters) for _ in range(4))
    some = [[None if key in "uvw" else key for key in column] for column in (group, near)]
    drawn = make_dataset(labels, sha256=bytes_, group=some[0], duplicate_of=some[1])
    groups = split.find_groups(drawn.photos)
    for column in ("sha256", "group", "duplicate_of"):
        for key in set(drawn.photos[column].drop_nulls()):
            assert len({groups[row] for row in range(number) if drawn.photos[column][row] == key}) == 1
    assert len(set(groups)) == count_components(bytes_, *some)
    splits = split.assign_stratified(labels, groups, (0.6, 0.2, 0.2), 0)
    assert len(set(zip(groups, splits, strict=True))) == len(set(groups))


def count_components(*columns):
    """Count connected components by breadth-first search, as a reference."""
    left, components = set(range(len(columns[0]))), 0
    while left:
        components, border = components + 1, [left.pop()]
        while border:
            row = border.pop()
            near = {other for other in left if any(keys[row] and keys[other] == keys[row] for keys in columns)}
            left -= near
            border += near
    return components


@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20), order=st.randoms())
def test_connected_components_do_not_depend_on_the_order_of_the_pairs(pairs, order):
    components = split.find_connected_components(pairs)
    turned = [pair[::-1] if order.random() < 0.5 else pair for pair in order.sample(pairs, len(pairs))]
    assert split.find_connected_components(turned) == components
    assert sorted(row for component in components for row in component) == sorted(
        {row for pair in pairs for row in pair}
    )
    where = {row: number for number, component in enumerate(components) for row in component}
    assert all(where[first] == where[second] for first, second in pairs)


@pytest.mark.slow
@given(labels=LABELS, groups=st.lists(st.integers(0, 20), min_size=60, max_size=60), seed=SEEDS)
def test_the_default_split_leaks_no_duplicates_and_those_of_a_shuffle_are_counted(labels, groups, seed):
    groups = groups[: len(labels)]
    splits = split.assign_stratified(labels, groups, (0.6, 0.2, 0.2), seed)
    assert not any(split.flag_leaked(groups, splits))
    shuffled = split.assign_shuffled(labels, sorted(set(labels)), (0.6, 0.2, 0.2), seed)
    tested = [row for row, part in enumerate(shuffled) if part == "test"]
    expected = [
        any(groups[row] == groups[other] for other in range(len(labels)) if shuffled[other] != "test") for row in tested
    ]
    assert split.flag_leaked(groups, shuffled) == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_photo_under_two_labels_keeps_both_and_is_in_one_split(tmp_path, seed):
    names = [f"{name}/{number}.png" for name in "ab" for number in range(9)]
    files = {name: encode_image(draw_noisy_image(8, 8, row), "PNG") for row, name in enumerate(names)}
    files["b/as a 3.png"] = files["a/3.png"]
    dataset = split.split_photos(
        pixel_cache.open_pixel_cache(sources.read(write_files(tmp_path, files)), 8, "squash")[0],
        Recipe(split_seed=seed),
    )
    assert dataset.used_photos.height == 19
    duplicates = dataset.used_photos.filter(pl.col("path").is_in(["a/3.png", "b/as a 3.png"]))
    assert duplicates["label"].to_list() == ["a", "b"]
    assert duplicates["split"].n_unique() == 1


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=4, max_size=60), SEEDS)
@settings(max_examples=60)
def test_every_class_has_a_training_photo_with_any_groups_across_classes(drawn, seed):
    labels, group = [f"class {name}" for name, _ in drawn], [number for _, number in drawn]
    splits = split.assign_stratified(labels, group, (0.6, 0.2, 0.2), seed)
    assert {label for label, part in zip(labels, splits, strict=True) if part == "train"} == set(labels)
    assert all(len({splits[row] for row in range(len(group)) if group[row] == name}) == 1 for name in set(group))


def test_a_photo_that_was_set_aside_is_in_no_split(tmp_path):
    write_files(tmp_path, {f"{name}/{number}.jpg": encode_photo(number) for name in "ab" for number in range(5)})
    write_files(tmp_path, {"a/broken.jpg": b"x", "b/empty.jpg": b""})
    dataset = split.split_photos(pixel_cache.open_pixel_cache(sources.read(tmp_path), 8, "squash")[0], Recipe())
    assert dataset.set_aside_photos["split"].to_list() == [None, None]
    assert dataset.used_photos["split"].null_count() == 0


def test_the_order_of_the_photos_does_not_change_the_split(tmp_path):
    names = [f"{name}{number}.jpg" for name in "ab" for number in range(12)]
    write_files(tmp_path, {name: encode_photo(row) for row, name in enumerate(names)})
    for kind in ("stratified", "shuffle"):
        variants = set()
        for seed in range(4):
            random.Random(seed).shuffle(names)
            (tmp_path / "table.csv").write_text("path,label\n" + "".join(f"{name},{name[0]}\n" for name in names))
            split_dataset = split.split_photos(
                pixel_cache.open_pixel_cache(sources.read(tmp_path / "table.csv"), 8, "squash")[0], Recipe(split=kind)
            )
            variants.add(tuple(split_dataset.used_photos.select("path", "split").iter_rows()))
        assert len(variants) == 1


# The tutorial's shuffle


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=4), seed=SEEDS, data=st.data())
def test_the_shuffle_is_that_of_the_tutorial(counts, seed, data):
    classes = data.draw(st.permutations("wxyz"[: len(counts)]))
    labels = data.draw(
        st.permutations([name for name, count in zip(classes, counts, strict=True) for _ in range(count)])
    )
    listed = [(row, name) for name in classes for row, label in enumerate(labels) if label == name]
    state = random.getstate()
    random.seed(seed)
    random.shuffle(listed)
    random.setstate(state)
    first, second = int(0.6 * len(listed)), int(0.8 * len(listed))
    expected = {row: "train" for row, _ in listed[:first]}
    expected |= {row: "validation" for row, _ in listed[first:second]} | {row: "test" for row, _ in listed[second:]}
    assert split.assign_shuffled(labels, classes, (0.6, 0.2, 0.2), seed) == [
        expected[row] for row in range(len(labels))
    ]


def test_the_flowers_are_split_as_in_the_tutorial(flowers):
    dataset = sources.read(flowers, TUTORIAL_CLASS_ORDER)
    opened = sources.assign_classes(pixel_cache.open_pixel_cache(dataset, 32, "squash")[0], TUTORIAL_CLASS_ORDER)
    split_dataset = split.split_photos(opened, Recipe(split="shuffle", class_order=TUTORIAL_CLASS_ORDER, image_size=32))
    assert Counter(list_splits(split_dataset)) == {"train": 2590, "validation": 863, "test": 864}
    tested = {name: counts["test"] for name, counts in split_dataset.count_photos().items()}
    assert tested == {"sunflower": 166, "tulip": 199, "rose": 151, "daisy": 139, "dandelion": 209}
    assert list(tested) == list(TUTORIAL_CLASS_ORDER)


# Given splits


@given(
    labels=st.lists(st.sampled_from("ab"), min_size=12, max_size=40),
    missing=st.sampled_from([None, "validation", "test"]),
    seed=SEEDS,
)
@settings(max_examples=50)
def test_given_splits_are_kept_and_a_missing_one_is_taken_from_training(labels, missing, seed):
    names = [name for name in SPLITS if name != missing]
    given_parts = [names[row // 3 % len(names)] if row % 3 == 0 else "train" for row in range(len(labels))]
    drawn = make_dataset(labels, split=given_parts)
    splits = list_splits(split.split_photos(drawn, Recipe(split_seed=seed)))
    moved = [new for new, old in zip(splits, given_parts, strict=True) if new != old]
    assert set(moved) <= {missing}
    assert all(old == "train" for new, old in zip(splits, given_parts, strict=True) if new != old)
    expected = 0.0 if missing is None else given_parts.count("train") * 0.25  # 0.2 of 0.6 + 0.2
    assert abs(len(moved) - expected) <= len(set(labels))


@pytest.mark.usefixtures("terminal")
def test_split_options_are_reported_to_have_no_effect_on_a_given_split(capsys):
    drawn = make_dataset("ab" * 10, split=["train"] * 14 + ["test"] * 6)
    split.split_photos(drawn, Recipe())
    assert not capsys.readouterr().err
    split.split_photos(drawn, Recipe(split_seed=3))
    assert "have no effect" in capsys.readouterr().err


def test_duplicates_in_training_go_to_the_missing_split_together():
    given_parts = ["train"] * 20 + ["test"] * 5
    drawn = make_dataset(["a", "b"] * 12 + ["a"], split=given_parts, sha256=[f"{row // 2}" for row in range(25)])
    splits = list_splits(split.split_photos(drawn, Recipe()))
    assert splits[20:] == ["test"] * 5
    assert splits[0:20:2] == splits[1:20:2]
    assert "validation" in splits


@pytest.mark.parametrize(
    ("labels", "given_parts", "match"),
    [
        ("aabb", ["train", "train", "test", "test"], "only class a has training photos"),
        ("aabbBBB", ["train", "train", "train", "test", "test", "test", "test"], r"3 of 4 .*: B \(b has some\)"),
        ("aabbccc", ["train", "train", "train", "test", "test", "test", "test"], "3 of 4 test photos .*: c"),
    ],
)
def test_a_split_that_cannot_be_scored_is_refused(labels, given_parts, match):
    with pytest.raises(PhotosError, match=match):
        split.check_training_classes(make_dataset(list(labels), split=given_parts))


@given(labels=LABELS, seed=SEEDS)
def test_no_default_split_is_refused_for_its_classes(labels, seed):
    names = [*labels, "a", "b", "a", "b", "a", "b"]
    split.check_training_classes(split.split_photos(make_dataset(names), Recipe(split_seed=seed)))


def test_a_few_test_photos_of_an_untrained_class_are_allowed():
    split.check_training_classes(make_dataset(list("abababc"), split=["train"] * 4 + ["test"] * 3))


def test_too_few_photos_are_refused_with_the_split_that_stays_empty():
    with pytest.raises(PhotosError, match=r"none of the \d is left for the test split"):
        split.split_photos(make_dataset(["a", "b"]), Recipe())
    with pytest.raises(PhotosError, match=r"none of the \d is left for the train split"):
        split.split_photos(make_dataset(["a", "b", "b"], split=["test", "test", "validation"]), Recipe())


@given(st.permutations([f"{number:064x}" for number in range(5)]))
def test_the_fingerprint_of_photos_depends_on_their_contents_alone(hashes):
    assert split.fingerprint(hashes) == split.fingerprint(sorted(hashes))
    assert split.fingerprint(hashes) != split.fingerprint(hashes[1:])


# Folders inside classes


def make_folders(sizes, splits=("",)):
    """Make photos of two classes, so many in each folder inside a class."""
    return {
        f"{part}{name}/{folder}/{row}.jpg": encode_photo(10_000 * number + 100 * ord(name) + 10 * ord(folder) + row)
        for number, part in enumerate(splits)
        for name in "ab"
        for folder, size in zip("pqrstuvw", sizes, strict=False)
        for row in range(size)
    }


def read(folder):
    return pixel_cache.open_pixel_cache(sources.read(folder), 8, "squash")[0]


@pytest.mark.parametrize("seed", range(5))
def test_photos_of_one_folder_inside_a_class_stay_together(seed, tmp_path):
    dataset = split.split_photos(read(write_files(tmp_path, make_folders((3, 3, 2, 2, 2, 1)))), Recipe(split_seed=seed))
    assert dataset.photos["group"].n_unique() == 12
    assert all(path.startswith(f"{group}/") for path, group in dataset.photos.select("path", "group").iter_rows())
    assert dataset.used_photos.group_by("group").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 12
    assert set(dataset.used_photos.select("label", "split").iter_rows()) == {
        (name, part) for name in "ab" for part in SPLITS
    }
    assert any("12 folders" in note for note in dataset.notes)


@pytest.mark.parametrize("sizes", [(5, 5), (3, 3, 3, 3), (12, 1, 1, 1, 1, 1)])
def test_folders_inside_classes_that_cannot_be_split_are_not_groups(sizes, tmp_path):
    dataset = read(write_files(tmp_path, make_folders(sizes)))
    assert dataset.photos["group"].is_null().all()
    assert any("not used as groups" in note for note in dataset.notes)


def test_photos_beside_the_folders_of_a_class_are_separate_groups(tmp_path):
    files = make_folders((3, 3)) | {
        f"{name}/{row}.jpg": encode_photo(7000 + 100 * ord(name) + row) for name in "ab" for row in range(5)
    }
    dataset = read(write_files(tmp_path, files))
    assert dataset.photos["group"].drop_nulls().n_unique() == 4
    assert dataset.photos.filter(pl.col("group").is_null()).height == 10


def test_a_folder_inside_a_class_in_two_given_splits_is_leakage_and_noted(tmp_path):
    from ikebana.auditing import dataset_checks

    dataset = split.split_photos(
        read(write_files(tmp_path, make_folders((2, 2, 2, 2, 2), ("train/", "test/")))), Recipe()
    )
    assert dataset.photos["group"].n_unique() == 10
    assert len([finding for finding in dataset_checks.check_dataset(dataset) if finding.kind == "leakage"]) == 10
    (note,) = (note for note in dataset.notes if "used as groups" in note)
    assert note == "10 folders inside classes are used as groups: 10 of them are in several given splits"


def test_a_given_group_across_given_splits_is_leakage(tmp_path):
    from ikebana.auditing import dataset_checks

    names = [f"{row}.jpg" for row in range(12)]
    write_files(tmp_path, {name: encode_photo(row) for row, name in enumerate(names)})
    rows = [f"{name},{'ab'[row % 2]},{'train' if row < 8 else 'test'},g{min(row, 8)}" for row, name in enumerate(names)]
    rows[3] = "3.jpg,b,train,g8"
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split,group", *rows]))
    (leak,) = [
        finding
        for finding in dataset_checks.check_dataset(split.split_photos(read(tmp_path / "table.csv"), Recipe()))
        if finding.kind == "leakage"
    ]
    assert set(leak.paths) == {"3.jpg", "8.jpg", "9.jpg", "10.jpg", "11.jpg"}
    assert "g8" in leak.evidence
