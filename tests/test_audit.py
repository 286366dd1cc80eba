"""Checks of files and tables: exactly the planted defects are found."""

import shutil

import polars as pl
import pytest
from support.images import draw_image, encode_image, encode_photo, write_files

from ikebana import recipes
from ikebana.auditing import dataset_checks
from ikebana.auditing.findings import Finding
from ikebana.data import labels, pixel_cache, sources, split
from ikebana.data.duplicates import near_duplicates, search


def audit_folder(folder, **choices):
    """Return the dataset of a folder, opened and split, and its findings."""
    chosen = recipes.get_recipe("baseline", **choices)
    opened, _ = pixel_cache.open_pixel_cache(sources.read(folder), 32, "squash")
    dataset = split.split_photos(sources.assign_classes(opened, ()), chosen)
    return dataset, dataset_checks.check_dataset(dataset)


def list_kinds(findings):
    return sorted(finding.kind for finding in findings)


def make_clean_photos(photos=24):
    return {
        f"{name}/{number}.jpg": encode_photo(1000 * row + number)
        for row, name in enumerate("ab")
        for number in range(photos)
    }


def test_clean_photos_have_no_findings(tmp_path):
    _, findings = audit_folder(write_files(tmp_path / "photos", make_clean_photos()))
    assert findings == []


def test_exactly_the_planted_defects_are_found(tmp_path):
    files = (
        make_clean_photos()
        | {
            "a/copy.jpg": encode_photo(0),  # of a/0.jpg
            "b/other.jpg": encode_photo(1),  # of a/1.jpg
            "b/broken.jpg": encode_photo(7)[:300],
        }
    )
    folder = write_files(tmp_path / "photos", files)
    (folder / "empty").mkdir()
    dataset, findings = audit_folder(folder)
    assert list_kinds(findings) == ["empty_class", "exact_duplicate", "exact_duplicate_conflicting_label", "unreadable"]
    by_kind = {finding.kind: finding for finding in findings}
    assert by_kind["exact_duplicate"].paths == ("a/0.jpg", "a/copy.jpg")
    assert by_kind["exact_duplicate_conflicting_label"].paths == ("a/1.jpg", "b/other.jpg")
    assert by_kind["unreadable"].paths == ("b/broken.jpg",)
    assert "empty" in by_kind["empty_class"].evidence
    parts = dict(dataset.used_photos.select("path", "split").iter_rows())
    assert parts["a/1.jpg"] == parts["b/other.jpg"]


def test_duplicates_across_given_splits_are_leakage_and_listed_first(tmp_path):
    files = {
        f"{part}/{path}": data for part in ("train", "val", "test") for path, data in make_clean_photos(20).items()
    }
    files = {path: data if path.endswith("/a/0.jpg") else data + path.encode() for path, data in files.items()}
    _, findings = audit_folder(write_files(tmp_path / "photos", files))
    assert findings[0].kind == "leakage"
    assert findings[0].severity == "error"
    assert findings[0].paths == ("test/a/0.jpg", "train/a/0.jpg", "val/a/0.jpg")


@pytest.mark.parametrize(
    ("small", "expected"), [(19, ["small_class"]), (20, []), (3, ["class_imbalance", "small_class"])]
)
def test_small_classes_and_imbalance_are_reported(small, expected, tmp_path):
    files = {
        path: data for path, data in make_clean_photos(30).items() if not (path[0] == "b" and int(path[2:-4]) >= small)
    }
    _, findings = audit_folder(write_files(tmp_path / "photos", files))
    assert list_kinds(findings) == expected


def test_the_counts_add_up_and_the_summary_names_the_photos_set_aside(tmp_path):
    files = make_clean_photos() | {
        "a/.hidden": b"x",
        "a/notes.txt": b"words",
        "b/empty.jpg": b"",
        "loose.jpg": encode_photo(5000),
    }
    dataset, findings = audit_folder(write_files(tmp_path / "photos", files))
    values = dataset_checks.to_json(dataset, findings)
    assert (values["paths"], values["used"], values["set_aside"], values["ignored"]) == (51, 48, 3, 1)
    assert sum(values["reasons"].values()) == values["set_aside"]
    assert sum(sum(parts.values()) for parts in values["classes"].values()) == values["used"]
    summary = dataset_checks.summarise(dataset, findings, "audit.json")
    for path, status in dataset.set_aside_photos.select("path", "status").iter_rows():
        assert f"{path}: {status}" in summary


def test_examples_have_their_own_column_and_are_not_truncated(tmp_path):
    dataset, _ = audit_folder(write_files(tmp_path / "photos", make_clean_photos()))
    words = [f"word{number:03}" for number in range(30)]
    long_findings = [
        Finding("outlier", "note", (), " ".join(words), "none"),
        Finding("small_class", "note", (), "x " * 400, "none"),
    ]
    lines = dataset_checks.summarise(dataset, long_findings, "audit.json").split("\n")
    assert [word for line in lines for word in line.split() if word.startswith("word")] == words
    assert all(len(line) <= dataset_checks.SUMMARY_COLUMNS for line in lines)
    assert sum(line.count("x") for line in lines) < 400
    assert any(line.endswith("…") for line in lines)


def test_duplicates_do_not_count_towards_the_size_of_a_class(tmp_path):
    photo = encode_photo(3)
    _, findings = audit_folder(
        write_files(tmp_path / "photos", make_clean_photos(25) | {f"c/{number}.jpg": photo for number in range(30)})
    )
    (few,) = [finding for finding in findings if finding.kind == "small_class"]
    assert few.evidence == "class c has 30 photos, only 1 of them distinct"


def test_a_thousand_unreadable_files_are_summarised_in_a_few_lines(tmp_path):
    files = make_clean_photos() | {f"a/{number:04}.jpg": b"x%d" % number for number in range(1000)}
    dataset, findings = audit_folder(write_files(tmp_path / "photos", files))
    assert dataset_checks.summarise(dataset, findings, "audit.json").count("\n") < 20
    assert "992 more" in dataset_checks.summarise(dataset, findings, "audit.json")
    assert dataset.set_aside_photos.height == 1000


def test_an_unreadable_photo_is_listed_among_many_without_labels(tmp_path):
    files = {f"train/{path}": data for path, data in make_clean_photos().items()} | {
        "train/b/broken.jpg": encode_photo(7)[:300]
    }
    files |= {f"test/{number}.jpg": encode_photo(5000 + number) for number in range(20)}
    dataset, findings = audit_folder(write_files(tmp_path / "photos", files))
    assert "skipped: train/b/broken.jpg: unreadable" in dataset_checks.summarise(dataset, findings, "audit.json")


def test_the_estimated_time_is_printed_before_a_run_begins(tmp_path):
    from ikebana.learning import device
    from ikebana.learning.estimate import estimate_cost
    from ikebana.learning.models.assembly import assemble

    folder = write_files(
        tmp_path / "photos", make_clean_photos(10) | {"a/large.png": encode_image(draw_image(200), "PNG")}
    )
    chosen = recipes.get_recipe("baseline", image_size=46, epochs=10)
    setting = device.DeviceSettings("cpu", "float32", 2, "system default", {}, seconds_per_photo=0.5)
    dataset = sources.read(folder)
    built = assemble(chosen, len(dataset.classes))
    before = estimate_cost(dataset, built, setting)
    assert before.cache_bytes == 21 * (46 * 46 + pixel_cache.THUMBNAIL_SIZE**2) * 3 + search.compute_scratch_bytes(21)
    assert 10 * 21 * 0.6 * 0.5 < before.seconds < 2 * 10 * 21 * 0.6 * 0.5
    near_duplicates.find_near_duplicates(*pixel_cache.open_pixel_cache(dataset, 46, "squash"))
    again = estimate_cost(dataset, built, setting)
    assert again.cache_bytes == 0
    assert "GB of disk" in before.text
    assert "GB of disk" not in again.text
    assert pl.Series([before.memory_bytes, again.memory_bytes]).n_unique() == 1
    unlabelled = {f"{number}.jpg": encode_photo(number) for number in range(100)}
    write_files(tmp_path / "more", {f"train/{path}": data for path, data in make_clean_photos(10).items()})
    shutil.copy(folder / "a/large.png", tmp_path / "more/train/a")
    write_files(tmp_path / "more/test", unlabelled)
    with_others = estimate_cost(sources.read(tmp_path / "more"), built, setting)
    assert with_others.seconds == pytest.approx(before.seconds)


def test_a_class_without_training_photos_is_an_error_that_suggests_a_similar_name(tmp_path):
    files = {f"train/{path}": data for path, data in make_clean_photos(20).items()}
    files |= {f"test/a/{number}.jpg": encode_photo(5000 + number) for number in range(20)}
    files |= {f"test/B/{number}.jpg": encode_photo(6000 + number) for number in range(20)}
    dataset, findings = audit_folder(write_files(tmp_path / "photos", files))
    assert dataset.classes == ("B", "a", "b")
    (untrained,) = (photo for photo in findings if photo.kind == "class_without_training_photos")
    assert untrained.severity == "error"
    assert untrained.evidence == "class B has no training photos, but there is also a class b"


def test_similar_class_names_are_reported(tmp_path):
    names = ("Rose", "rose", "red  rose", "Red-rose", "tulip", "tulip 2", "type 2", "type 3")
    folder = write_files(tmp_path / "photos", {f"{number}.jpg": encode_photo(number) for number in range(16)})
    # Some file systems cannot have both Rose and rose.
    rows = "".join(f"{number}.jpg,{names[number % 8]}\n" for number in range(16))
    (folder / "photos.csv").write_text(f"path,label\n{rows}")
    _, findings = audit_folder(folder / "photos.csv")
    evidence = {field.evidence for field in findings if field.kind == "similar_class_names"}
    assert evidence == {
        "'Red-rose' and 'red  rose' differ only in case, spaces, punctuation or Unicode form",
        "'Rose' and 'rose' differ only in case, spaces, punctuation or Unicode form",
        "'tulip 2' is named like a copy of 'tulip'",
    }


@pytest.mark.parametrize(
    "spellings",
    [
        ("t-shirt", "t\u2011shirt", "T shirt", "tshirt", "t_shirt"),
        ("baby's", "baby\u2019s"),
        ("CAR", "\uff23\uff21\uff32", "c\u00adar", "c\u200bar", "car.", "'car'", "\u201ccar\u201d"),
        ("black & white", "black &amp; white", "black\xa0&white"),
    ],
)
def test_spellings_of_one_name_are_similar(spellings):
    assert labels.find_similar_names(spellings) == [list(spellings)]


def test_names_that_differ_in_numbers_or_symbols_are_not_similar():
    names = [
        "1.0",
        "10",
        "1-0",
        "-1",
        "1",
        "A",
        "A-",
        "A+",
        "C",
        "C#",
        "C++",
        "<5",
        "5",
        "-",
        "?",
        "\U0001f642",
        "\u2639",
    ]
    assert not labels.find_similar_names(names)
