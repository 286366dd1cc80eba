"""Photos in buckets, tar shards and Parquet: the same collection as a folder."""

import io
import json
import tarfile

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import draw_noisy_image, encode_image, encode_photo
from support.stores import pack_samples, pack_shard, put_files, read_files, serve_store, write_parquet

import ikebana
from ikebana.data import containers, decoding, parquet_photos, sources, stores, tar_shards, unlabelled
from ikebana.data.address_patterns import expand_braces
from ikebana.data.pixel_cache import open_pixel_cache
from ikebana.errors import PhotosError, UnreadablePhoto

PHOTOS_PER_CLASS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of photos, of which some are no photos."""
    place = tmp_path_factory.mktemp("photos") / "flowers"
    for number, name in enumerate(("daisy", "rose", "tulip")):
        (place / name).mkdir(parents=True)
        for photo in range(PHOTOS_PER_CLASS):
            (place / name / f"{photo}.jpg").write_bytes(encode_photo(10 * number + photo))
    (place / "rose/6.jpg").write_bytes(b"words, not a photo")
    (place / "rose/7.jpg").write_bytes(encode_photo(3)[:300])
    (place / "tulip/.DS_Store").write_bytes(b"hidden")
    return place


@pytest.fixture(scope="module")
def files(folder):
    """The visible files of the folder by path, in the order of a scan."""
    return {path: data for path, data in read_files(folder).items() if ".DS" not in path}


def describe(source):
    """Describe the photos of a source, and their pixels."""
    dataset, cache = open_pixel_cache(sources.read(source), 32, "squash")
    columns = ("label", "status", "sha256", "bytes", "width", "height")
    order = dataset.photos.with_row_index("number").sort("label", "bytes", "sha256", nulls_last=True)
    return order.select(columns).rows(), np.array(cache.pixels)[order["number"].to_numpy()]


def assert_same(source, folder):
    rows, pixels = describe(source)
    expected_rows, expected_pixels = describe(folder)
    assert rows == expected_rows
    np.testing.assert_array_equal(pixels, expected_pixels)


def test_a_tar_pattern_of_class_folders_equals_the_folder(folder, files, tmp_path):
    parts = list(files.items())
    for number in range(3):
        (tmp_path / f"part-{number:02}.tar").write_bytes(pack_shard(parts[number::3]))
    assert_same(str(tmp_path / "part-{00..02}.tar"), folder)
    assert_same(str(tmp_path / "part-*.tar"), folder)


@pytest.mark.parametrize("kind", ["cls", "json", "txt", "json number"])
def test_labels_beside_the_photos_of_a_tar_equal_those_of_folders(kind, folder, files, tmp_path):
    members = []
    for number, (path, data) in enumerate(files.items()):
        label = path.split("/")[0]
        values = {"cls": label + "\n", "txt": label, "json": json.dumps({"id": number, "label": label})}
        values["json number"] = json.dumps({"label": ["daisy", "rose", "tulip"].index(label), "class_name": label})
        members += [(f"{number:04}.{kind.split()[0]}", values[kind].encode()), (f"{number:04}.jpg", data)]
    (tmp_path / "photos.tar").write_bytes(pack_shard(members))
    assert_same(tmp_path / "photos.tar", folder)


def test_captions_beside_photos_are_not_labels(files, tmp_path):
    members = []
    for number, (path, data) in enumerate(files.items()):
        stem = path.removesuffix(".jpg")
        members += [(path, data), (f"{stem}.txt", f"a photo of number {number}".encode())]
    (tmp_path / "photos.tar").write_bytes(pack_shard(members))
    dataset = sources.read(tmp_path / "photos.tar")
    assert dataset.classes == ("daisy", "rose", "tulip")
    assert any("captions" in note for note in dataset.notes)


@pytest.mark.parametrize("group_rows", [1, 4, 1000])
def test_parquet_with_image_bytes_equals_the_folder(group_rows, folder, files, tmp_path):
    write_parquet(tmp_path / "photos.parquet", files, group_rows)
    assert_same(tmp_path / "photos.parquet", folder)


def test_class_labels_of_hugging_face_are_the_names_in_the_metadata(folder, files, tmp_path):
    names = ["tulip", "daisy", "rose"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    rows = {
        "image": [{"bytes": data, "path": None} for data in files.values()],
        "label": [names.index(path.split("/")[0]) for path in files],
    }
    frame = pl.DataFrame(rows, schema_overrides={"image": pl.Struct({"bytes": pl.Binary, "path": pl.String})})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    frame.write_parquet(tmp_path / "train-00000-of-00001.parquet", metadata=metadata)
    assert_same(tmp_path / "train-00000-of-00001.parquet", folder)


def test_names_of_files_give_the_splits(files, tmp_path):
    parts = list(files.items())
    for split, part in (("train", parts[::2]), ("validation", parts[1::4]), ("test", parts[3::4])):
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", dict(part))
    dataset = sources.read(str(tmp_path / "*.parquet"))
    assert dict(dataset.photos["split"].value_counts().iter_rows()) == {
        "train": len(parts[::2]),
        "validation": len(parts[1::4]),
        "test": len(parts[3::4]),
    }


def test_parquet_without_labels_is_refused_with_its_columns_and_the_names_for_labels(files, tmp_path):
    rows = {"image": list(files.values()), "species": [path.split("/")[0] for path in files]}
    pl.DataFrame(rows, schema_overrides={"image": pl.Binary}).write_parquet(tmp_path / "photos.parquet")
    with pytest.raises(PhotosError, match="no labels; the columns of the Parquet file are image, species") as refusal:
        sources.read(tmp_path / "photos.parquet")
    assert str(refusal.value.advice).endswith(", ".join(parquet_photos.LABEL_COLUMNS))


@pytest.mark.parametrize(
    ("beside", "reason"),
    [
        ({"json": '{"flower": "rose", "id": %d}'}, "the .json files in the tar have no label: they have flower, id,"),
        ({"txt": "a rose with the number %d"}, "the .txt files in the tar are captions"),
        ({"txt": "a rose called %d", "json": '{"width": %d}'}, "they have width, and none of label_name, class_name"),
        ({}, "these photos have no labels"),
    ],
)
def test_shards_without_labels_are_refused_with_what_they_have_instead(beside, reason, files, tmp_path):
    members = []
    for number, data in enumerate(files.values()):
        members.append((f"{number:04}.jpg", data))
        members += [(f"{number:04}.{suffix}", (text % number).encode()) for suffix, text in beside.items()]
    (tmp_path / "photos-0.tar").write_bytes(pack_shard(members))
    with pytest.raises(PhotosError, match="these photos have no labels") as refusal:
        sources.read(f"{tmp_path}/photos-*.tar")
    assert reason in refusal.value.what
    assert ".cls or .json files beside the photos of a tar" in str(refusal.value.advice)


@pytest.mark.slow
def test_a_web_server_equals_the_folder(folder, files, tmp_path):
    (tmp_path / "photos.tar").write_bytes(pack_samples(files))
    (tmp_path / "part-0.tar").write_bytes(pack_shard(files.items()))
    write_parquet(tmp_path / "photos.parquet", files)
    with serve_store(folder.parent) as (address, _):
        assert_same(f"{address}/flowers/", folder)
    with serve_store(tmp_path) as (address, _):
        for name in ("photos.tar", "part-{0..0}.tar", "photos.parquet"):
            assert_same(f"{address}/{name}", folder)


def test_a_bucket_equals_the_folder(s3, folder, files, tmp_path):
    write_parquet(tmp_path / "photos.parquet", files)
    stored = {f"flowers/{path}": data for path, data in files.items()} | {"flowers/tulip/.DS_Store": b"hidden"}
    stored["shards/photos-000.tar"] = pack_samples(dict(list(files.items())[:7]))
    stored["shards/photos-001.tar"] = pack_samples(dict(list(files.items())[7:]))
    stored["photos.parquet"] = (tmp_path / "photos.parquet").read_bytes()
    put_files(s3[0], "garden", stored)
    for source in ("flowers", "flowers/", "shards/photos-{000..001}.tar", "shards/*.tar", "photos.parquet"):
        assert_same(f"s3://garden/{source}", folder)
    assert sources.read("s3://garden/flowers").ignored_count == 1
    with pytest.raises(PhotosError, match="only tar shards or Parquet files") as refusal:
        sources.read("s3://garden/shards")
    assert refusal.value.advice == "give the files themselves: 's3://garden/shards/*.tar'"


def test_only_the_row_groups_that_are_needed_are_requested(files, tmp_path):
    padding = [encode_image(draw_noisy_image(200, 200, seed), "PNG") for seed in range(40)]
    frame = pl.DataFrame({"image": padding, "label": ["a", "b"] * 20})
    frame.write_parquet(tmp_path / "photos.parquet", row_group_size=4, compression="uncompressed")
    size = (tmp_path / "photos.parquet").stat().st_size
    with serve_store(tmp_path) as (address, faults):
        assert parquet_photos.read_photo(f"{address}/photos.parquet", 21) == padding[21]
        ranges = [request[2].removeprefix("bytes=").split("-") for request in faults.requests if request[2]]
        assert sum(int(end) - int(start) + 1 for start, end in ranges) < size / 4
        requested = len(faults.requests)
        assert parquet_photos.read_photo(f"{address}/photos.parquet", 22) == padding[22]
        assert len(faults.requests) == requested


def test_listing_a_tar_of_a_store_does_not_request_its_photos(tmp_path):
    big = [(f"a/{number}.bin", bytes([number]) * 2**20) for number in range(8)]
    (tmp_path / "photos.tar").write_bytes(pack_shard(big))
    with serve_store(tmp_path) as (address, faults):
        file = stores.stat(f"{address}/photos.tar")
        assert file is not None
        listing = tar_shards.list_tar(file)
        ranges = [request[2].removeprefix("bytes=").split("-") for request in faults.requests if request[2]]
    assert listing is not None
    assert listing.photos.height == 8
    assert sum(int(end) - int(start) + 1 for start, end in ranges) < 0.5 * (tmp_path / "photos.tar").stat().st_size


def test_members_of_a_hostile_tar_get_the_reasons_of_an_unpacked_one(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:") as archive:
        for name, kind in (
            ("../out.jpg", tarfile.REGTYPE),
            ("/etc/a.jpg", tarfile.REGTYPE),
            ("a/link.jpg", tarfile.SYMTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        for name in ("a/1.jpg", "a/1.jpg", "A/1.jpg", "b/1.jpg"):
            data = encode_photo(len(name))
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    (tmp_path / "photos.tar").write_bytes(stream.getvalue())
    unpacked = sources.read(tmp_path / "photos.tar").photos
    listing = tar_shards.list_tar(parquet_photos.locate(str(tmp_path / "photos.tar")))
    assert listing is not None
    expected = sorted(unpacked.select(pl.col("path").str.strip_prefix("photos.tar!"), "status").rows())
    assert sorted(listing.photos.select("path", "status").rows()) == expected


@pytest.mark.parametrize(
    "folders",
    [
        ("somewhere/flowers/daisy", "somewhere/flowers/rose"),
        ("train/daisy", "train/rose", "test/daisy", "test/rose"),
        ("flowers/daisy/train", "flowers/daisy/test", "flowers/rose/train", "flowers/rose/test"),
        tuple(f"{label}/plant {number}" for label in ("daisy", "rose") for number in range(6)),
        ("images/daisy", "images/rose", "Annotations"),
    ],
)
def test_folders_in_a_shard_mean_what_they_mean_in_an_unpacked_tar(folders, tmp_path):
    names = [f"{folder}/{number}.jpg" for folder in folders for number in range(3)]
    members = [(name, encode_photo(seed)) for seed, name in enumerate(names)]
    members = [(name.replace(".jpg", ".xml") if "Annot" in name else name, data) for name, data in members]
    (tmp_path / "part-0.tar").write_bytes(pack_shard(members))
    unpacked, streamed = (sources.read(str(tmp_path / name)) for name in ("part-0.tar", "part-{0..0}.tar"))
    assert (unpacked.locations is None, streamed.locations is None) == (True, False)
    columns = ("path", "label", "split", "group", "status")
    assert streamed.photos.select(columns).rows() == unpacked.photos.select(columns).rows()
    assert streamed.classes == unpacked.classes
    assert len(set(unpacked.photos["label"].drop_nulls())) == 2


@pytest.mark.parametrize("cut", [100, 700, 5000, -600])
def test_a_cut_tar_is_damaged(cut, files, tmp_path):
    (tmp_path / "part-0.tar").write_bytes(pack_shard(files.items())[:cut])
    with pytest.raises(PhotosError, match=r"damaged|not an uncompressed tar"):
        sources.read(str(tmp_path / "part-{0..0}.tar"))


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_parquet_file_is_an_error_or_a_status_and_never_a_crash(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("damaged")
    write_parquet(
        place / "photos.parquet", {f"{'ab'[number % 2]}/{number}.jpg": bytes([number]) * 90 for number in range(12)}
    )
    content = bytearray((place / "photos.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) - 40, len(content)))]
    (place / "photos.parquet").write_bytes(content)
    with serve_store(place) as (address, _):
        for source in (f"{address}/photos.parquet", str(place / "photos.parquet")):
            try:
                dataset = sources.read(source)
                for path in dataset.photos["path"]:
                    dataset.locate(path).read()
            except PhotosError:
                pass


@given(st.binary(max_size=300))
def test_any_bytes_as_the_footer_of_parquet_are_damage(content):
    from ikebana.data.parquet_footer import DamagedFooter, parse_row_groups

    with pytest.raises(DamagedFooter):
        parse_row_groups(content, 10**6)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0, 3, 5]))
def test_a_range_in_braces_is_every_number_between(first, last, width):
    names = expand_braces(f"a-{{{str(first).zfill(width)}..{str(last).zfill(width)}}}.tar")
    numbers = [int(name.removeprefix("a-").removesuffix(".tar")) for name in names]
    assert numbers == list(range(first, last + 1) if first <= last else range(first, last - 1, -1))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        (
            "s3://b/{train,test}-{0..1}.tar",
            ["s3://b/train-0.tar", "s3://b/train-1.tar", "s3://b/test-0.tar", "s3://b/test-1.tar"],
        ),
        ("a{1}.jpg", ["a{1}.jpg"]),
        ("{09..11}", ["09", "10", "11"]),
        ("plain", ["plain"]),
    ],
)
def test_braces_expand_like_those_of_a_shell(pattern, names):
    assert expand_braces(pattern) == names


def test_a_pattern_of_too_many_names_is_refused():
    for pattern in ("{0..99999999}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(PhotosError, match="more than 1,000,000 names"):
            expand_braces(pattern)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://x.invalid/photos.zip", "compressed archives cannot be read from a store"),
        ("s3://bucket/labels.csv", "tables cannot be read from a store"),
    ],
)
def test_what_cannot_be_read_in_place_is_refused_before_any_request(name, message):
    with pytest.raises(PhotosError, match=message):
        sources.read(name)


@pytest.mark.parametrize("pattern", ["shards/part-*.tar", "*/part-[0-9]*.tar", "**/*.tar"])
def test_a_pattern_on_a_web_server_is_all_matches_in_its_index(pattern, files, tmp_path):
    parts = list(files.items())
    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / f"shards/part-{number}.tar").write_bytes(pack_shard(parts[number::3]))
    (tmp_path / "shards/other.txt").write_bytes(b"words")
    with serve_store(tmp_path) as (address, _):
        matches = containers.find_containers(f"{address}/{pattern}")
        assert [container.file for container in matches] == [
            stores.stat(f"{address}/shards/part-{number}.tar") for number in range(3)
        ]
        assert sources.read(f"{address}/{pattern}").photos.height == len(files)


def test_a_pattern_on_a_web_server_without_an_index_is_refused_with_numbers_to_use(tmp_path):
    (tmp_path / "index.html").write_text("welcome")
    (tmp_path / "part-0.tar").write_bytes(b"")
    with serve_store(tmp_path) as (address, _):
        with pytest.raises(PhotosError, match="no file matches this pattern") as refusal:
            sources.read(f"{address}/part-*.tar")
        assert "{000..127}" in str(refusal.value.advice)
        # A star in a query is no pattern.
        assert not stores.is_glob(f"{address}/photo.jpg?name=*")


def test_a_listing_has_the_columns_of_the_plan(files, tmp_path):
    (tmp_path / "part-0.tar").write_bytes(pack_shard(files.items()))
    (listing,) = containers.list_containers(containers.find_containers(str(tmp_path / "part-{0..0}.tar")))
    assert {"path", "address", "offset", "length", "row", "size", "stamp", "status"} <= set(listing.photos.columns)
    content = (tmp_path / "part-0.tar").read_bytes()
    for path, offset, length in listing.photos.select("path", "offset", "length").iter_rows():
        assert content[offset : offset + length] == files[path]


@pytest.mark.slow
def test_an_audit_of_a_bucket_and_of_shards_has_the_findings_of_the_folder(s3, drawn, tmp_path):
    folder = drawn(12)
    files = read_files(folder)
    put_files(s3[0], "meadow", {f"photos/{path}": data for path, data in files.items()})
    (tmp_path / "part-0.tar").write_bytes(pack_shard(files.items()))

    def list_findings(source, prefix=""):
        findings = ikebana.audit(source).findings
        return [
            (finding.kind, finding.severity, [path.removeprefix(prefix) for path in finding.paths])
            for finding in findings
        ]

    expected = list_findings(folder)
    assert {"exact_duplicate", "unreadable"} <= {kind for kind, _, _ in expected}
    assert list_findings("s3://meadow/photos") == expected
    assert list_findings(str(tmp_path / "part-{0..0}.tar"), "part-0.tar!") == expected


@pytest.mark.slow
def test_a_run_on_a_bucket_can_be_exported(s3, drawn, tmp_path):
    put_files(s3[0], "orchard", {f"photos/{path}": data for path, data in read_files(drawn(12)).items()})
    choices = {"image_size": 48, "batch_size": 16, "epochs": 2, "precision": "float32"}
    run = ikebana.fit("s3://orchard/photos", "baseline", run=tmp_path / "run", **choices)
    assert run.source["photos"] == "s3://orchard/photos"
    ikebana.export(run, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()


def test_a_parquet_file_with_bytes_under_another_name_is_explained(files, tmp_path):
    rows = [{"payload": data, "klass": path.split("/")[0]} for path, data in files.items()]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(PhotosError) as refusal:
        sources.read(tmp_path / "rows.parquet")
    assert "image, img, photo" in str(refusal.value)
    with pytest.raises(UnreadablePhoto, match=r"a Parquet file .* has a column of image bytes"):
        decoding.decode((tmp_path / "rows.parquet").read_bytes(), 32)


def test_labels_in_a_tar_are_not_counted_as_hidden_files(files, tmp_path):
    (tmp_path / "photos-0.tar").write_bytes(pack_samples(files))
    assert sources.read(f"{tmp_path}/photos-*.tar").ignored_count == 0


def put_containers(place, files, suffix):
    """Write the photos as two tar shards, or two Parquet files, beside a text."""
    place.mkdir()
    for number in range(2):
        part = dict(list(files.items())[number::2])
        if suffix == ".parquet":
            write_parquet(place / f"photos-{number}.parquet", part)
        else:
            (place / f"photos-{number}.tar").write_bytes(pack_samples(part, number * 100))
    (place / "README.md").write_bytes(b"words")


@pytest.mark.parametrize("suffix", containers.CONTAINER_SUFFIXES)
@pytest.mark.parametrize("kind", ["disk", "http"])
def test_a_folder_of_containers_is_refused_with_what_lists_their_photos(kind, suffix, files, tmp_path, monkeypatch):
    put_containers(tmp_path / "shards", files, suffix)
    monkeypatch.chdir(tmp_path)
    with serve_store(tmp_path) as (address, _):
        source = "shards" if kind == "disk" else f"{address}/shards/"
        for read in (sources.read, unlabelled.find_photos):
            with pytest.raises(PhotosError) as refusal:
                read(source)
            advised = str(refusal.value.advice).split("'")[1]
            assert advised == f"{source.rstrip('/')}/*{suffix}"
            assert len(list_photo_paths(read(advised))) == len(files)
        source = "." if kind == "disk" else f"{address}/"
        with pytest.raises(PhotosError) as refusal:
            unlabelled.find_photos(source)
        advised = str(refusal.value.advice).split("'")[1]
        assert advised == f"{source.rstrip('/')}/**/*{suffix}"
        assert len(list_photo_paths(unlabelled.find_photos(advised))) == len(files)
        (tmp_path / f"shards/photos-1{suffix}").unlink()
        with pytest.raises(PhotosError) as refusal:
            unlabelled.find_photos(source)
        assert refusal.value.advice == f"give the file itself: {source.rstrip('/')}/shards/photos-0{suffix}"


def list_photo_paths(photos):
    return (
        [photo.path for photo in photos] if isinstance(photos, unlabelled.UnlabelledPhotos) else photos.photos["path"]
    )


def test_a_container_beside_photos_is_skipped_with_the_way_to_read_it(files, tmp_path):
    put_containers(tmp_path / "garden", files, ".parquet")
    (tmp_path / "garden/shard.tar").write_bytes(pack_samples(files))
    (tmp_path / "garden/photo.jpg").write_bytes(encode_photo(1))
    reasons = {}
    for photo in unlabelled.find_photos(tmp_path / "garden"):
        try:
            decoding.decode(unlabelled.read_photo(photo), 32)
        except UnreadablePhoto as reason:
            reasons[photo.file.name] = reason.what
    assert reasons.keys() == {"README.md", "shard.tar", "photos-0.parquet", "photos-1.parquet"}
    assert reasons["shard.tar"] == "not a photo: a tar archive (it is read if it is given itself)"
    assert "a Parquet file (it is read if it is given itself" in reasons["photos-0.parquet"]


def test_a_folder_of_tables_is_no_folder_of_photos_in_parquet_nor_of_a_class(tmp_path):
    # Class folders beside it.
    for name in ("rose", "tulip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(encode_photo(1))
    tables = tmp_path / "tables"
    tables.mkdir()
    for name in ("train", "test"):
        pl.DataFrame({"path": ["1.jpg"], "label": ["a"]}).write_parquet(tables / f"{name}.parquet")
    with pytest.raises(PhotosError) as refusal:
        sources.read(tables)
    assert refusal.value.advice == f"if the labels are in a table, give the table: {tables}/test.parquet"


@pytest.mark.parametrize(
    ("name", "advice"),
    [("labels.csv", "download it and the photos, and give the table: "), ("more.parquet", "give the file itself: ")],
)
def test_a_table_beside_the_photos_of_a_store_is_named_by_its_address(name, advice, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / f"photos/{name}").write_bytes(b"path,label")
    (tmp_path / "photos/1.jpg").write_bytes(encode_photo(1))
    with serve_store(tmp_path) as (address, _), pytest.raises(PhotosError, match="no photos found") as refusal:
        sources.read(f"{address}/photos/")
    assert str(refusal.value.advice).endswith(f"{advice}{address}/photos/{name}")
