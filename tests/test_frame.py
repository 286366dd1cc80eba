"""A data frame as PHOTOS is treated like a table in a file."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support.images import two_classes, write_files
from support.interrupts import interrupt_after_steps
from support.tables import ROWS

import ikebana
from ikebana.data import sources
from ikebana.errors import PhotosError, RunError
from ikebana.exporting import run_photos

SMALL_OPTIONS = {"image_size": 48, "batch_size": 16, "epochs": 2, "precision": "float32"}
FRAME = pl.DataFrame(ROWS, schema=["path", "label"], orient="row")


class ArrowOnly:
    """A frame with only Arrow's C interface, as pyarrow, pandas and others have."""

    def __init__(self, frame: pl.DataFrame):
        self.frame, self.schema = frame, frame.schema

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


def to_pandas(frame: pl.DataFrame):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame(frame.to_dict(as_series=False))


KINDS = {"polars": pl.DataFrame, "lazy": pl.DataFrame.lazy, "arrow": ArrowOnly, "pandas": to_pandas}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The working directory, with six photos."""
    write_files(tmp_path / "photos", two_classes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what a frame means ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_same_as_its_csv_file(photos, kind):
    frame = FRAME.with_columns(split=pl.Series(["train", "val", "test"] * 2), group=pl.lit(3), remark=pl.lit("x"))
    frame.write_csv(photos / "photos.csv")
    by_file, by_frame = sources.read(photos / "photos.csv"), sources.read(KINDS[kind](frame))
    assert_frame_equal(by_frame.photos, by_file.photos)
    assert (by_frame.classes, by_frame.notes) == (by_file.classes, by_file.notes)


def test_relative_paths_start_at_the_working_directory_of_the_call(photos, tmp_path_factory, monkeypatch):
    dataset = sources.read(FRAME)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert dataset.resolve_path(ROWS[0][0]).samefile(photos / ROWS[0][0])
    with pytest.raises(PhotosError, match="no photos found"):
        sources.read(FRAME)


def test_paths_may_be_path_objects_and_absolute(photos):
    frame = pl.DataFrame({"path": [photos / path for path, _ in ROWS], "label": [label for _, label in ROWS]})
    assert frame.schema["path"] == pl.Object
    assert sources.read(frame).photos["path"].to_list() == [str(photos / path) for path, _ in ROWS]


def test_a_frame_is_not_changed(photos):
    frame = FRAME.with_columns(path=pl.col("path").str.replace("/", r"\\", literal=True), label=pl.col("label") + " ")
    before = frame.clone()
    sources.read(frame)
    assert_frame_equal(frame, before)


@pytest.mark.usefixtures("photos")
def test_a_frame_that_cannot_be_used_is_refused_with_its_type():
    with pytest.raises(PhotosError, match="no column 'label'") as refusal:
        sources.read(FRAME.drop("label"))
    assert refusal.value.where == "polars.DataFrame"
    with pytest.raises(PhotosError, match="cannot be read"):
        sources.read(FRAME.lazy().select("gone"))
    with pytest.raises(PhotosError, match="different types: int, str"):
        sources.read(pl.DataFrame({"path": FRAME["path"], "label": pl.Series([1, "a"] * 3, dtype=pl.Object)}))


@pytest.mark.parametrize("photos", [7, None, b"flowers/", {"path": [], "label": []}, FRAME["path"], [("a.jpg", "a")]])
def test_a_value_that_is_neither_a_path_nor_a_frame_is_refused_with_advice(photos):
    with pytest.raises(PhotosError, match=f"cannot be given as {type(photos).__name__}") as refusal:
        ikebana.Plan.from_photos(photos)
    assert "columns path and label" in (refusal.value.advice or "")


# --- pandas ---


@pytest.mark.usefixtures("photos")
def test_an_index_with_a_name_is_a_column_of_pandas():
    frame = to_pandas(FRAME)
    assert_frame_equal(sources.read(frame.set_index("path")).photos, sources.read(FRAME).photos)


@pytest.mark.usefixtures("photos")
def test_missing_values_and_categories_of_pandas_are_what_they_are_in_polars():
    frame = to_pandas(FRAME)
    frame["label"] = [0, None, 1, 1, float("nan"), 0]
    before = frame.copy()
    dataset = sources.read(frame)
    assert dataset.classes == ("0", "1")
    assert dataset.photos["status"].to_list().count("no label in this row") == 2
    assert frame.equals(before)
    frame["label"] = frame["path"].str.slice(7, 8).astype("category")
    assert_frame_equal(sources.read(frame).photos, sources.read(FRAME).photos)


@pytest.mark.usefixtures("photos")
def test_two_columns_of_one_name_in_pandas_are_refused():
    frame = to_pandas(FRAME)
    frame.insert(2, "label", "x", allow_duplicates=True)
    with pytest.raises(PhotosError, match="2 columns named 'label'"):
        sources.read(frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("others", [{"score": [1, 2]}, {"note": ["a", None]}, {"score": [1, 2], "note": ["a", "b"]}])
def test_a_missing_label_column_is_named_whatever_the_other_columns_hold(kind, others):
    frame = KINDS[kind](pl.DataFrame({"path": ["a.jpg", "b.jpg"], **others}))
    with pytest.raises(PhotosError, match="no column 'label'; it has path") as refusal:
        sources.read(frame)
    assert "columns path and label" in (refusal.value.advice or "")


# --- commands ---


@pytest.fixture(scope="module")
def folder(drawn):
    """A folder of drawn photos, where the paths of the frame start."""
    return drawn(8)


@pytest.fixture(scope="module")
def frame(folder):
    """The rows of its photos."""
    return sources.read(folder).photos.filter(pl.col("label").is_not_null()).select("path", "label")


@pytest.fixture(scope="module")
def finished_run(folder, frame, cache, tmp_path_factory):
    """A run from the frame."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IKEBANA_CACHE", str(cache))
        patch.chdir(folder)
        return ikebana.fit(frame, "baseline", run=tmp_path_factory.mktemp("runs") / "run", **SMALL_OPTIONS)


@pytest.fixture
def unfinished_run(finished_run, tmp_path):
    """A copy of the run, without its scores."""
    shutil.copytree(finished_run.folder, tmp_path / "unfinished")
    (tmp_path / "unfinished/evaluation.json").unlink()
    return tmp_path / "unfinished"


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_run_from_a_frame_resumes_in_another_folder_to_the_same_bits(
    folder, frame, finished_run, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder)
    with interrupt_after_steps(1):
        ikebana.fit(frame.lazy(), "baseline", run=tmp_path / "stopped", **SMALL_OPTIONS)
    monkeypatch.chdir(tmp_path)
    # The run holds its rows, so its folder may move.
    shutil.move(tmp_path / "stopped", tmp_path / "moved")
    resumed = ikebana.resume(tmp_path / "moved")
    assert resumed.weights.read_bytes() == finished_run.weights.read_bytes()
    assert_frame_equal(resumed.predictions, finished_run.predictions)
    # The same paths as in the frame, so that both can be joined.
    assert set(finished_run.predictions["path"]) <= set(frame["path"])


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_the_photos_of_a_run_from_a_frame_are_found_even_if_moved(folder, frame, finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = run_photos.find_photos(finished_run)
    shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    for photos in (frame, tmp_path / "moved"):
        there = run_photos.find_photos(finished_run, photos)
        assert [photo.path for photo in there["test"]] == [photo.path for photo in here["test"]]
        assert all(run_photos.read_photo(photo) for photo in (*here["test"], *there["test"]))
        assert Path(there["test"][0].location.address).resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
@pytest.mark.parametrize("is_absolute", [False, True])
def test_a_run_resumes_with_a_frame_of_photos_that_moved(
    is_absolute, folder, frame, finished_run, unfinished_run, tmp_path, monkeypatch
):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    monkeypatch.chdir(moved)
    given = frame.with_columns(path=pl.lit(f"{moved}/") + pl.col("path")) if is_absolute else frame
    resumed = ikebana.resume(unfinished_run, photos=given)
    assert resumed.weights.read_bytes() == finished_run.weights.read_bytes()
    assert_frame_equal(resumed.predictions, finished_run.predictions)
    monkeypatch.chdir(tmp_path)
    photos = run_photos.find_photos(ikebana.open_run(unfinished_run))
    assert all(
        Path(photo.location.address).is_relative_to(moved) and run_photos.read_photo(photo) for photo in photos["test"]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_a_run_is_the_same_from_a_frame_and_from_its_table(folder, frame, finished_run, tmp_path):
    frame.with_columns(path=pl.lit(f"{folder}/") + pl.col("path")).write_parquet(tmp_path / "photos.parquet")
    by_table = ikebana.fit(tmp_path / "photos.parquet", "baseline", run=tmp_path / "table", **SMALL_OPTIONS)
    assert finished_run.weights.read_bytes() == by_table.weights.read_bytes()
    assert finished_run.source["fingerprint"] == by_table.source["fingerprint"]


@pytest.mark.slow
def test_a_damaged_copy_of_the_frame_is_refused_by_the_name_of_its_file(unfinished_run):
    (unfinished_run / "photos.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"photos\.parquet cannot be read"):
        ikebana.resume(unfinished_run)


@pytest.mark.slow
def test_photos_of_a_frame_that_are_gone_are_reported_with_their_folder(unfinished_run, tmp_path):
    source = json.loads((unfinished_run / "source.json").read_text("utf-8"))
    (unfinished_run / "source.json").write_text(json.dumps({**source, "root": str(tmp_path)}), "utf-8")
    with pytest.raises(PhotosError, match="photos of this run were not found") as refusal:
        ikebana.resume(unfinished_run)
    assert str(refusal.value.where) == str(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cache")
def test_audit_and_plan_take_a_frame(folder, frame, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    audit = ikebana.audit(frame, write=tmp_path / "cleaned.csv")
    assert audit.dataset.photos.height == frame.height
    assert sources.read(tmp_path / "cleaned.csv").classes == audit.dataset.classes
    plan = ikebana.Plan.from_photos(frame, "baseline", **SMALL_OPTIONS)
    assert plan.dataset.photos["path"].to_list() == sorted(frame["path"])


@pytest.mark.slow
def test_predictions_of_a_frame_are_one_per_row_in_its_order(paper_classifier, good_photos):
    paths = [str(good_photos[1]), "gone.jpg", None, str(good_photos[0])]
    predictions = ikebana.predict(paper_classifier, pl.DataFrame({"filename": paths}))
    assert [prediction.path for prediction in predictions] == [path or "" for path in paths]
    assert [prediction.status for prediction in predictions][1:3] == [
        "there is no such file",
        "an empty path was given",
    ]
    assert predictions[3].probabilities == pytest.approx(
        paper_classifier.predict(good_photos[0]).probabilities, abs=1e-5
    )


def test_a_frame_without_the_columns_is_refused_with_advice_for_frames():
    with pytest.raises(PhotosError) as refusal:
        sources.read(FRAME.rename({"label": "breed"}))
    assert refusal.value.advice == "name the columns path and label (optionally also split or group)"


@pytest.mark.parametrize("kind", ["polars", "pandas"])
def test_boolean_labels_of_a_frame_are_those_of_its_csv_file(kind, photos):
    labels = [label == "a" for _, label in ROWS]
    frame = KINDS[kind](FRAME.with_columns(pl.Series("label", labels)))
    if kind == "polars":
        frame.write_csv(photos / "photos.csv")
    else:
        frame.to_csv(photos / "photos.csv", index=False)
    assert sources.read(frame).classes == sources.read(photos / "photos.csv").classes
