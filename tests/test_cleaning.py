"""Cleaning writes a table with a reason per changed row, and changes no photo."""

import csv
import hashlib
import json
import subprocess
import sys
import zipfile

import polars as pl
import pytest
from PIL import ImageOps
from support.images import draw_scene, draw_two_class_scenes, encode_image, scale_image, write_files

import ikebana
from ikebana.auditing import cleaning, dataset_checks
from ikebana.auditing.cleaning import clean, parse_selectors
from ikebana.auditing.findings import Finding
from ikebana.commands import audit as audit_command
from ikebana.data import pixel_cache, sources, split
from ikebana.data.duplicates import near_duplicates
from ikebana.errors import PhotosError, RecipeError
from ikebana.recipe import Recipe

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path):
    """Two classes with copies, a contradiction and a broken file.

    The copies are mirrored, smaller and identical. One photo is under both labels.
    """
    drawn = draw_two_class_scenes(10)
    drawn |= {"a/mirrored.jpg": ImageOps.mirror(drawn["a/0.jpg"]), "a/smaller.jpg": scale_image(drawn["a/0.jpg"], 0.5)}
    files = {path: encode_image(photo, "JPEG", quality=92) for path, photo in drawn.items()}
    files |= {"b/copy.jpg": files["b/1.jpg"], "b/wrong.jpg": files["a/2.jpg"], "b/broken.jpg": files["b/3.jpg"][:900]}
    return write_files(tmp_path / "photos", files)


def open_and_check(folder):
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(folder), 16, "squash")
    dataset = split.split_photos(
        sources.assign_classes(near_duplicates.find_near_duplicates(dataset, keep), ()), Recipe()
    )
    return dataset, dataset_checks.check_dataset(dataset)


def parse_words(text, flag="--drop"):
    return parse_selectors(text.split(","), flag)


def list_dropped(result):
    return set(result.dropped_photos["path"])


def make_suspect(path, label, confidence):
    return Finding("suspect_label", "warning", (path,), f"looks like {label}", "look at it", label, confidence)


def test_the_largest_duplicate_is_kept_and_the_others_name_it(photos):
    dataset, findings = open_and_check(photos)
    result = clean(dataset, findings, parse_words("exact_duplicate,near_duplicate"))
    gone = dict(result.dropped_photos.select("path", "reason").iter_rows())
    assert len(gone.keys() & {"a/0.jpg", "a/mirrored.jpg", "a/smaller.jpg"}) == 2
    assert "a/smaller.jpg" in gone
    assert len(gone.keys() & {"b/1.jpg", "b/copy.jpg"}) == 1
    kept_paths = set(result.kept_photos["path"])
    for path, why in gone.items():
        if path != "b/broken.jpg":
            assert why.endswith(" is kept")
            assert why.split("; ")[-1].removesuffix(" is kept") in kept_paths


def test_a_photo_under_two_labels_stays_under_both_until_contradictions_are_dropped(photos):
    dataset, findings = open_and_check(photos)
    both = {"a/2.jpg", "b/wrong.jpg"}
    assert not list_dropped(clean(dataset, findings, parse_words("exact_duplicate,near_duplicate"))) & both
    assert (
        list_dropped(
            clean(dataset, findings, parse_words("exact_duplicate_conflicting_label,near_duplicate_conflicting_label"))
        )
        >= both
    )


def test_unreadable_files_are_never_in_the_table_and_the_rows_add_up(photos):
    dataset, findings = open_and_check(photos)
    for drop in (
        "",
        "unreadable",
        "exact_duplicate,near_duplicate,exact_duplicate_conflicting_label,near_duplicate_conflicting_label,unreadable",
    ):
        result = clean(dataset, findings, parse_words(drop))
        assert "b/broken.jpg" in list_dropped(result)
        assert result.kept_photos.height + result.dropped_photos.height == dataset.photos.height
        assert not set(result.kept_photos["path"]) & list_dropped(result)
        assert result.dropped_photos["reason"].null_count() == 0


@pytest.mark.slow
def test_of_duplicates_across_given_splits_the_test_photo_is_kept(tmp_path):
    drawn = {f"{part}/{path}": draw_scene(9000 + 100 * number + row) for number, part in enumerate(("train", "test"))
             for row, path in enumerate(draw_two_class_scenes(5))}  # fmt: skip
    drawn["test/a/small.jpg"] = scale_image(drawn["train/a/1.jpg"], 0.5)
    dataset, findings = open_and_check(
        write_files(tmp_path, {path: encode_image(photo) for path, photo in drawn.items()})
    )
    assert list_dropped(clean(dataset, findings, parse_words("exact_duplicate,near_duplicate"))) == {"train/a/1.jpg"}


@pytest.mark.slow
@pytest.mark.parametrize(("sure", "changed"), [(0.94, False), (0.95, False), (0.96, True)])
def test_only_suspects_above_the_threshold_are_relabelled_with_their_old_label(photos, sure, changed):
    dataset, findings = open_and_check(photos)
    result = clean(
        dataset, [*findings, make_suspect("a/4.jpg", "b", sure)], (), parse_words("suspect_label>0.95", "--relabel")
    )
    label, why = result.kept_photos.row(by_predicate=pl.col("path") == "a/4.jpg")[1::1]
    assert label == ("b" if changed else "a")
    assert (why is not None) == changed
    assert result.relabelled_count == int(changed)
    if changed:
        assert "was a" in why
        assert "0.96" in why
    others = result.kept_photos.filter(pl.col("path") != "a/4.jpg")
    assert all(path.split("/")[0] == label for path, label in others.select("path", "label").iter_rows())


def test_a_suspect_that_is_relabelled_is_not_dropped(photos):
    dataset, findings = open_and_check(photos)
    doubts = [make_suspect("a/4.jpg", "b", 0.99), make_suspect("a/5.jpg", "b", 0.6)]
    result = clean(
        dataset, [*findings, *doubts], parse_words("suspect_label"), parse_words("suspect_label>0.95", "--relabel")
    )
    assert list_dropped(result) & {"a/4.jpg", "a/5.jpg"} == {"a/5.jpg"}


def make_given_splits(place):
    drawn = {f"{part}/{path}": draw_scene(9000 + 100 * number + row) for number, part in enumerate(("train", "test"))
             for row, path in enumerate(draw_two_class_scenes(5))}  # fmt: skip
    dataset, findings = open_and_check(write_files(place, {path: encode_image(photo) for path, photo in drawn.items()}))
    return dataset, [*findings, make_suspect("test/a/1.jpg", "b", 0.99), make_suspect("test/a/2.jpg", "b", 0.7),
                     make_suspect("train/a/1.jpg", "b", 0.99), make_suspect("train/a/2.jpg", "b", 0.7)]  # fmt: skip


@pytest.mark.slow
def test_suspect_test_photos_of_a_given_split_are_never_dropped_or_relabelled(tmp_path):
    dataset, findings = make_given_splits(tmp_path)
    before = dataset.photos.filter(split="test").select("path", "label")
    for drop, relabel in (
        ("suspect_label", ""),
        ("", "suspect_label"),
        ("suspect_label", "suspect_label>0.95"),
        ("exact_duplicate,near_duplicate,suspect_label>0.9", ""),
    ):
        result = clean(dataset, findings, parse_words(drop), parse_words(relabel, "--relabel"), has_given_split=True)
        assert result.kept_photos.filter(split="test").select("path", "label").equals(before)
        surer = [confidence for confidence in (0.99, 0.7) if ">0.9" not in drop or confidence > 0.9]
        assert (result.protected_count, result.suspect_label_count) == (len(surer), len(surer))
    assert (
        clean(dataset, findings, parse_words("exact_duplicate,near_duplicate"), has_given_split=True).protected_count
        == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.usefixtures("terminal")
def test_cleaning_by_suspect_labels_warns_about_the_score(given, tmp_path, capsys):
    dataset, findings = make_given_splits(tmp_path / "photos")
    for drop in ("suspect_label", "near_duplicate"):
        audit_command._write_table(
            tmp_path / "cleaned.csv", dataset, clean(dataset, findings, parse_words(drop), (), given), Recipe()
        )
        output = capsys.readouterr().err
        assert ("2 test photos with a suspect label not changed" in output) == (given and drop == "suspect_label")
        assert ("4 photos dropped or relabelled because of a suspect label" in output) == (
            not given and drop == "suspect_label"
        )


def test_any_kind_of_finding_about_photos_can_be_dropped(photos):
    dataset, findings = open_and_check(photos)
    blurred = Finding("blurry", "note", ("b/4.jpg",), "no edge is sharp", "take another")
    assert list_dropped(clean(dataset, [*findings, blurred], parse_words("blurry"))) == {"b/4.jpg", "b/broken.jpg"}


@pytest.mark.parametrize(
    ("text", "flag"),
    [
        ("class_imbalance", "--drop"),
        ("leakage", "--drop"),
        ("suspect_label>high", "--drop"),
        ("a b", "--drop"),
        ("near_duplicate", "--relabel"),
    ],
)
def test_a_selector_that_cannot_be_applied_is_refused_with_an_alternative(text, flag):
    with pytest.raises(RecipeError) as refusal:
        parse_words(text, flag)
    assert text in str(refusal.value)
    assert refusal.value.advice


def test_selectors_without_findings_are_reported(photos):
    _, findings = open_and_check(photos)
    assert (
        cleaning.find_unmatched(parse_words("exact_duplicate,unreadable,exact_duplicate_conflicting_label"), findings)
        == []
    )
    assert cleaning.find_unmatched(
        parse_words("outlier, suspect_label>0.5"), [*findings, make_suspect("a/4.jpg", "b", 0.4)]
    ) == [
        "outlier",
        "suspect_label>0.5",
    ]


# The command


def read(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def describe_files(folder):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("beside", [True, False])
def test_the_written_table_can_be_read_from_any_folder(photos, tmp_path, beside):
    file = (photos if beside else tmp_path / "elsewhere") / "cleaned.csv"
    dataset, findings = open_and_check(photos)
    result = clean(dataset, findings, parse_words("exact_duplicate,near_duplicate"))
    before = describe_files(photos)
    cleaning.write(file, dataset, result)
    assert describe_files(photos).items() >= before.items()
    assert all(row["path"].startswith("/") != beside for row in read(file))
    again = pixel_cache.open_pixel_cache(sources.read(file), 16, "squash")[0]
    assert again.used_photos.height == result.kept_photos.height == len(read(file))
    assert sorted(again.used_photos["sha256"]) == sorted(
        dataset.photos.filter(pl.col("path").is_in(result.kept_photos["path"].to_list()))["sha256"]
    )
    assert {row["path"].split("/")[-1] for row in read(cleaning.dropped_table_path(file))} == {
        path.split("/")[-1] for path in result.dropped_photos["path"]
    }


def test_given_groups_and_splits_are_written_too(tmp_path):
    drawn = draw_two_class_scenes(8)
    folder = write_files(tmp_path, {path: encode_image(photo) for path, photo in drawn.items()})
    part = ("train", "train", "validation", "test")
    lines = [f"{path},{path[0]},{part[row % 4]},g{row}" for row, path in enumerate(sorted(drawn))]
    (folder / "table.csv").write_text("\n".join(["path,label,split,group", *lines]))
    dataset, findings = open_and_check(folder / "table.csv")
    for given in (True, False):
        cleaning.write(folder / "cleaned.csv", dataset, clean(dataset, findings, (), (), given))
        rows = read(folder / "cleaned.csv")
        columns = ["path", "label", *(["split"] if given else []), "group", "reason"]
        assert list(rows[0]) == columns
        expected = [line.split(",") for line in lines]
        assert [[row[name] for name in columns[:-1]] for row in rows] == [
            [cell for cell, name in zip(line, ("path", "label", "split", "group"), strict=True) if name in columns]
            for line in expected
        ]


@pytest.mark.parametrize(
    "name",
    [
        "nan",
        "NaN",
        "<NA>",
        " ",
        "daisy ",
        " daisy",
        "Blu\u0308te",
        "\u200bx",
        "a\nb",
        "a\rb",
        'a"b',
        "a,b",
        "NA",
        "1.0",
        "-",
    ],
)
def test_a_written_table_is_read_back_with_the_same_labels_for_any_class_names(name, tmp_path):
    files = {path.replace("b/", f"{name}/"): encode_image(photo) for path, photo in draw_two_class_scenes(4).items()}
    dataset, findings = open_and_check(write_files(tmp_path / "photos", files))
    cleaning.write(tmp_path / "cleaned.csv", dataset, clean(dataset, findings))
    again = sources.read(tmp_path / "cleaned.csv")
    assert again.classes == dataset.classes == tuple(sorted(("a", name)))
    assert again.photos["label"].to_list() == dataset.photos["label"].to_list()
    rows = pl.read_csv(tmp_path / "cleaned.csv", infer_schema=False).with_columns(
        pl.format("{}/{}", pl.lit(str(tmp_path)), "path").alias("path")
    )
    framed = sources.read(rows)
    assert framed.frame is not None
    assert sources.read(framed.frame).classes == dataset.classes


def test_no_existing_file_is_overwritten_not_even_a_table_of_an_earlier_audit(photos, tmp_path):
    dataset, findings = open_and_check(photos)
    file = tmp_path / "cleaned.csv"
    cleaning.check_writable(file)
    cleaning.write(file, dataset, clean(dataset, findings))
    for there in (file, cleaning.dropped_table_path(file)):
        with pytest.raises(PhotosError, match="not overwritten"):
            cleaning.check_writable(file)
        there.unlink()
    cleaning.check_writable(file)
    with pytest.raises(RecipeError, match="parquet"):
        cleaning.check_writable(tmp_path / "cleaned.parquet")


@pytest.mark.parametrize(
    "word",
    ["nonsense", "contradictions", "suspect_label>2", "suspect_label>nan", "suspect_label>-1", "class_imbalance"],
)
def test_unknown_selectors_are_refused_with_the_known_ones(word):
    with pytest.raises(RecipeError) as refusal:
        cleaning.parse_selectors([word], "--drop")
    assert "suspect_label" in str(refusal.value)


def run_command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ikebana", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_audit_writes_its_findings_and_a_table_for_fit(photos, tmp_path):
    out, table = tmp_path / "found", tmp_path / "cleaned.csv"
    before = describe_files(photos)
    done = run_command(
        "audit",
        photos,
        "--out",
        out,
        "--write",
        table,
        "--drop",
        "exact_duplicate,near_duplicate,exact_duplicate_conflicting_label,near_duplicate_conflicting_label",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(table)
    assert describe_files(photos) == before
    values = json.loads((out / "audit.json").read_text())
    listed = pl.read_csv(out / "findings.csv")
    assert listed.columns == ["kind", "severity", "paths", "evidence", "advice", "suggested_label", "confidence"]
    assert [(finding["kind"], finding["paths"]) for finding in values["findings"]] == [
        (kind, json.loads(paths)) for kind, paths in listed.select("kind", "paths").iter_rows()
    ]
    run = ikebana.fit(
        table, "baseline", run=tmp_path / "run", image_size=48, epochs=1, batch_size=8, precision="float32"
    )
    assert run.dataset.filter(status="used").height == len(read(table)) == 25 - 2 - 1 - 2 - 1
    assert not [
        finding
        for finding in json.loads((run.folder / "audit.json").read_text("utf-8"))["findings"]
        if finding["kind"] in ("near_duplicate", "exact_duplicate")
    ]


@pytest.mark.slow
def test_a_run_lists_duplicates_and_no_test_photo_has_one_in_another_split(photos, tmp_path):
    run = ikebana.fit(
        photos, "baseline", run=tmp_path / "run", image_size=48, epochs=1, batch_size=8, precision="float32"
    )
    joined = run.dataset.filter(pl.col("duplicate_of").is_not_null())
    assert joined["path"].to_list() == ["a/0.jpg", "a/mirrored.jpg", "a/smaller.jpg"]
    assert joined["duplicate_of"].n_unique() == joined["split"].n_unique() == 1
    values = json.loads((run.folder / "evaluation.json").read_text("utf-8"))["leakage"]
    assert values["photos"] == []
    assert values["accuracy_on_others"] == run.evaluation.accuracy
    assert values["naive_shuffle"]["n"] > 0
    shuffled = ikebana.fit(
        photos,
        "baseline",
        run=tmp_path / "other",
        image_size=48,
        epochs=1,
        batch_size=8,
        precision="float32",
        split="shuffle",
    )
    again = shuffled.evaluation.leakage
    assert again is not None
    assert len(again.photos) == values["naive_shuffle"]["with_duplicate"] == again.naive_shuffle.with_duplicate


def test_selectors_without_a_table_and_existing_folders_are_refused_before_photos_are_read(photos, tmp_path):
    with pytest.raises(RecipeError, match="need a table to write"):
        ikebana.audit(photos, drop=["exact_duplicate", "near_duplicate"])
    with pytest.raises(RecipeError, match="exists and is not empty"):
        ikebana.audit(photos, out=photos)
    assert not list(photos.glob("*.json"))


def test_photos_in_an_archive_cannot_be_written_as_a_table(photos, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in photos.glob("*/*.jpg"):
            archive.write(file, file.relative_to(photos))
    with pytest.raises(PhotosError, match="archive"):
        ikebana.audit(tmp_path / "photos.zip", write=tmp_path / "cleaned.csv")


def test_a_photo_listed_twice_is_kept_for_the_row_that_is_used(photos, tmp_path):
    rows = [(path.relative_to(photos).as_posix(), path.parent.name) for path in sorted(photos.glob("*/*.jpg"))]
    (photos / "all.csv").write_text(
        "path,label\n" + "".join(f"{path},{label}\n" for path, label in [*rows, ("a/0.jpg", "")])
    )
    dataset, findings = open_and_check(photos / "all.csv")
    result = clean(dataset, findings)
    assert set(result.kept_photos["path"]) == set(dataset.used_photos["path"])
    assert result.kept_photos.height == dataset.used_photos.height
    assert dict(result.dropped_photos.select("path", "reason").iter_rows())["a/0.jpg"] == "no label in this row"
    assert result.kept_photos.height + result.dropped_photos.height == len(rows) + 1


def test_an_audit_never_overwrites_other_files(photos, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    for values, other in (("{}", "findings.csv"), ('{"source": "x", "findings": []}', "recipe.json")):
        (tmp_path / "site" / "audit.json").write_text(values)
        (tmp_path / "site" / other).write_text("mine too")
        with pytest.raises(RecipeError, match="exists and is not empty"):
            ikebana.audit(photos, out=tmp_path / "site")
        (tmp_path / "site" / other).unlink()
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


def test_a_single_selector_may_be_a_string():
    assert parse_selectors("near_duplicate", "--drop") == parse_selectors(["near_duplicate"], "--drop")


@pytest.mark.parametrize("drop", ["blurry", "blurry,suspect_label", "near_duplicate,blurry"])
@pytest.mark.parametrize("spared", [None, "a", "b"])
def test_a_table_of_fewer_than_two_classes_is_neither_written_nor_recommended(photos, tmp_path, drop, spared, capsys):
    dataset, findings = open_and_check(photos)
    paths = tuple(dataset.used_photos.filter(pl.col("label") != (spared or ""))["path"])
    result = clean(
        dataset, [*findings, Finding("blurry", "note", paths, "no edge is sharp", "take others")], parse_words(drop)
    )
    with pytest.raises(PhotosError, match="no table was written") as error:
        audit_command._write_table(tmp_path / "cleaned.csv", dataset, result, Recipe())
    assert ("1 class" if spared else "0 classes") in error.value.what
    assert "blurry" in error.value.what
    assert not list(tmp_path.glob("*.csv"))
    assert "ikebana fit" not in capsys.readouterr().err


def test_relabelling_every_photo_of_a_class_leaves_no_table_of_one_class(photos, tmp_path):
    dataset, findings = open_and_check(photos)
    doubts = [make_suspect(path, "b", 0.99) for path in dataset.used_photos.filter(label="a")["path"]]
    result = clean(dataset, [*findings, *doubts], (), parse_words("suspect_label", "--relabel"))
    with pytest.raises(PhotosError, match=r"of 1 class \(b\)"):
        audit_command._write_table(tmp_path / "cleaned.csv", dataset, result, Recipe())


@pytest.mark.usefixtures("terminal")
def test_a_table_that_fit_would_refuse_is_not_recommended(tmp_path, capsys):
    dataset, findings = make_given_splits(tmp_path / "photos")
    spoilt = [
        *findings,
        Finding("dark", "note", tuple(dataset.used_photos.filter(split="train", label="a")["path"]), "dark", ""),
    ]
    assert not audit_command._write_table(
        tmp_path / "cleaned.csv", dataset, clean(dataset, spoilt, parse_words("dark"), (), True), Recipe()
    )
    output = capsys.readouterr().err
    assert "fit would refuse" in output
    assert "only class b has training photos" in output
    assert "Train on it" not in output
    with pytest.raises(PhotosError, match="only class b has training photos"):
        ikebana.fit(tmp_path / "cleaned.csv", "baseline", run=tmp_path / "run", image_size=48, epochs=1)


@pytest.mark.usefixtures("terminal")
def test_a_class_that_loses_all_its_photos_is_reported(photos, tmp_path, capsys):
    write_files(photos, {f"c/{row}.jpg": encode_image(draw_scene(7000 + row)) for row in range(3)})
    dataset, findings = open_and_check(photos)
    spoilt = [*findings, Finding("dark", "note", tuple(dataset.used_photos.filter(label="c")["path"]), "dark", "")]
    assert audit_command._write_table(
        tmp_path / "cleaned.csv", dataset, clean(dataset, spoilt, parse_words("dark")), Recipe()
    )
    assert "no photos are left of c" in capsys.readouterr().err


def test_other_columns_of_a_table_stay_in_the_cleaned_one(photos, tmp_path):
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in photos.glob("*/*.jpg"))
    columns = {"site": ["Lund", "Oslo"], "depth": [0.25, None], "reason": ["sharp", "near"]}
    rows = {name: [values[number % 2] for number in range(len(paths))] for name, values in columns.items()}
    table = pl.DataFrame({"path": paths, "label": [path.split("/")[1] for path in paths], **rows})
    table = table.with_columns(depth=pl.col("depth") * pl.int_range(pl.len()))
    table.write_csv(tmp_path / "photos.csv")
    ikebana.audit(tmp_path / "photos.csv", write=tmp_path / "cleaned.csv", drop=["near_duplicate"])
    cleaned = pl.read_csv(tmp_path / "cleaned.csv")
    assert cleaned.columns == ["path", "label", "site", "depth", "reason"]
    assert cleaned["reason"].null_count() == cleaned.height
    merged = cleaned.join(table, on="path", suffix="_before")
    assert 0 < merged.height == cleaned.height < table.height
    assert (merged["site"] == merged["site_before"]).all()
    assert merged["depth"].eq_missing(merged["depth_before"]).all()
