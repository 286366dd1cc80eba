"""`fit --split-from RUN`: known photos keep their split, new ones never leak into the test split."""

import polars as pl
import pytest
from support.images import draw_scene, encode_image, write_files
from support.runs import make_photos, write_run

import ikebana
from ikebana.data.dataset import Dataset
from ikebana.data.known_split import STATUS_TEST_DUPLICATE, KnownSplit, split_like
from ikebana.errors import PhotosError, RunError
from ikebana.recipes import RECIPES
from ikebana.runs.earlier_split import read_earlier_split, read_own_split

RECIPE = RECIPES["quick"]
COLUMNS = ("path", "label", "split", "sha256")
KNOWN = make_photos(30, train=40).with_columns(
    split=pl.when(pl.int_range(pl.len()) < 10).then(pl.lit("validation")).otherwise("split")
)


def make_dataset(photos, tmp_path):
    return Dataset("photos", tmp_path, photos.with_columns(split=pl.lit(None, pl.String)), ("daisy", "rose", "tulip"))


def split_again(photos, tmp_path, known=KNOWN):
    return split_like(make_dataset(photos, tmp_path), RECIPE, KnownSplit(known.select(COLUMNS), "runs/earlier")).photos


def make_new(count=40, **columns):
    new = make_photos(0, train=count, prefix="abc")
    return new.with_columns(**columns) if columns else new


def test_known_photos_keep_their_split_and_new_ones_are_for_training_and_validation(tmp_path, messages):
    photos = split_again(pl.concat([KNOWN, make_new()]), tmp_path)
    assert photos["split"][: KNOWN.height].to_list() == KNOWN["split"].to_list()
    new = photos["split"][KNOWN.height :].value_counts()
    assert dict(new.iter_rows()) == {"train": 30, "validation": 10}
    assert messages == [
        "split of runs/earlier: 70 photos keep theirs; of 40 new ones, 30 are for training, 10 for validation"
    ]


def test_a_renamed_photo_is_known_by_its_content(tmp_path, messages):
    renamed = KNOWN.with_columns(path="moved/" + pl.col("path")).sample(fraction=1, shuffle=True, seed=0)
    photos = split_again(renamed, tmp_path)
    before = dict(KNOWN.select("sha256", "split").iter_rows())
    assert dict(photos.select("sha256", "split").iter_rows()) == before
    assert messages == ["split of runs/earlier: 70 photos keep theirs"]


def join_group(row_in_known, new_rows=1):
    """New photos that are near-duplicates of a known one."""
    known = KNOWN.with_columns(
        duplicate_of=pl.when(pl.int_range(pl.len()) == row_in_known).then(pl.lit("same")).otherwise(None)
    )
    return pl.concat([known, make_new(new_rows, duplicate_of=pl.lit("same"))])


@pytest.mark.parametrize(("row", "split"), [(3, "validation"), (20, "train")])
def test_a_near_duplicate_of_a_known_photo_joins_its_split(row, split, tmp_path):
    assert split_again(join_group(row, 3), tmp_path)["split"][-3:].to_list() == [split] * 3


def test_a_near_duplicate_of_a_test_photo_is_set_aside_with_a_reason(tmp_path, messages):
    photos = split_again(join_group(60, 2), tmp_path)
    assert photos["status"][-2:].to_list() == [STATUS_TEST_DUPLICATE] * 2
    assert photos["split"][-2:].to_list() == [None, None]
    assert photos.filter(split="test").height == 30
    assert any("duplicates of its test photos, and are not used: 2" in text for text in messages)


def test_a_copy_of_a_test_photo_is_set_aside_and_the_photo_itself_is_kept(tmp_path):
    copy = KNOWN[60].with_columns(path=pl.lit("rose/copy.jpg"))
    photos = split_again(pl.concat([KNOWN, copy]), tmp_path)
    assert photos["status"][-1] == STATUS_TEST_DUPLICATE
    assert photos["split"][60] == "test"


def test_a_new_photo_that_joins_photos_of_several_splits_is_reported(tmp_path, messages):
    groups = pl.when(pl.int_range(pl.len()).is_in((3, 20))).then(pl.lit("same")).otherwise(None)
    photos = pl.concat([KNOWN.with_columns(duplicate_of=groups), make_new(1, duplicate_of=pl.lit("same"))])
    assert split_again(photos, tmp_path)["split"][-1] == "train"
    assert any("in several splits before: 1" in text for text in messages)


def test_missing_and_relabelled_test_photos_are_reported(tmp_path, messages):
    label = pl.when(pl.int_range(pl.len()) == 65).then(pl.lit("rose")).otherwise("label")
    split_again(KNOWN.with_columns(label=label)[:-2], tmp_path)
    assert "2 test photos of runs/earlier are missing now: the runs cannot be compared" in messages
    assert "1 test photos of runs/earlier have another label now: the runs cannot be compared" in messages


def test_without_a_known_test_photo_it_is_refused(tmp_path):
    with pytest.raises(PhotosError, match="no test photo of the run given by --split-from"):
        split_again(KNOWN.filter(split="train"), tmp_path)
    with pytest.raises(PhotosError, match="no train photo"):
        split_again(KNOWN.filter(split="test"), tmp_path)


def test_photos_that_come_with_a_split_are_refused(tmp_path):
    dataset = Dataset("photos", tmp_path, KNOWN, ("daisy", "rose", "tulip"))
    with pytest.raises(PhotosError, match="come with a split"):
        split_like(dataset, RECIPE, KnownSplit(KNOWN.select(COLUMNS)))


def test_a_run_that_kept_a_split_resumes_with_its_own_table(tmp_path):
    assert read_own_split(write_run(tmp_path / "plain")) is None
    earlier = read_earlier_split(write_run(tmp_path / "earlier", is_finished=False).folder)
    assert earlier.photos.height == 42
    with pytest.raises(RunError, match="no such run folder"):
        read_earlier_split(tmp_path / "nowhere")


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_new_photos_are_compared_with_the_run_before_and_the_run_resumes(tmp_path):
    options = {"image_size": 48, "batch_size": 16, "epochs": 1, "precision": "float32"}
    files = {f"{name}/{row}.jpg": encode_image(draw_scene(97 * ord(name) + row)) for name in "ab" for row in range(20)}
    photos = write_files(tmp_path / "photos", files)
    before = ikebana.fit(photos, "baseline", run=tmp_path / "before", **options)
    test = before.dataset.filter(split="test")
    # Ten new photos, a copy of a test photo, and a renamed one.
    new = {
        f"{name}/new{row}.jpg": encode_image(draw_scene(7000 + 97 * ord(name) + row))
        for name in "ab"
        for row in range(5)
    }
    write_files(photos, new | {"a/copy.jpg": (photos / test["path"][0]).read_bytes()})
    (photos / test["path"][1]).rename((photos / test["path"][1]).with_name("renamed.jpg"))
    after = ikebana.fit(photos, "baseline", run=tmp_path / "after", split_from=before, **options)
    assert set(after.dataset.filter(split="test")["sha256"]) == set(test["sha256"])
    assert after.dataset.filter(status=STATUS_TEST_DUPLICATE)["path"].to_list() == ["a/copy.jpg"]
    assert after.dataset.filter(split="train").height > before.dataset.filter(split="train").height
    (pair,) = ikebana.compare(before, after).pairs
    assert (pair.first, pair.second, pair.difference.n) == ("before", "after", test.height)
    # An interrupted run: everything after its split is missing.
    (after.folder / "evaluation.json").unlink()
    (tmp_path / "before").rename(tmp_path / "gone")
    again = ikebana.resume(after.folder)
    assert again.dataset.equals(after.dataset)
    assert again.evaluation.accuracy == pytest.approx(after.evaluation.accuracy)
