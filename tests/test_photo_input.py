"""Photos given from Python: open files, arrays, images and tensors, and unusable ones among many."""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support.images import draw_noisy_image, encode_image

import ikebana
from ikebana.errors import ModelError, PhotosError, RecipeError, UnreadablePhoto
from ikebana.inference import open_files, photo_input

PICTURE = draw_noisy_image(61, 40)
PIXELS = np.asarray(PICTURE)
DATA = encode_image(PICTURE, "PNG")
EXPECTED = photo_input.decode(DATA, 32, "crop")


def decode(photo):
    return photo_input.decode(photo, 32, "crop")


def get_reason(photo):
    with pytest.raises(UnreadablePhoto) as refusal:
        decode(photo)
    return refusal.value.what


class Upload:
    """An upload of Flask, with a `filename` and lines to iterate over."""

    name, filename = "photo", "garden.png"

    def __init__(self, data):
        self.stream = io.BytesIO(data)

    def read(self, size=-1):
        return self.stream.read(size)

    def __iter__(self):
        return iter(self.stream)


class AsyncUpload:
    """An upload of FastAPI."""

    def __init__(self, data):
        self.stream = io.BytesIO(data)

    async def read(self, size=-1):
        await asyncio.sleep(0)
        return self.stream.read(size)


# --- one photo ---


def test_an_open_file_its_bytes_its_image_and_its_pixels_are_the_same_photo(tmp_path):
    file = tmp_path / "photo.png"
    file.write_bytes(DATA)
    with file.open("rb") as stream:
        photos = [str(file), file, DATA, bytearray(DATA), memoryview(DATA), io.BytesIO(DATA), stream, Upload(DATA)]
        for photo in [*photos, PICTURE, PIXELS, np.asfortranarray(PIXELS), ("name", DATA)]:
            assert photo_input.is_single(photo) or isinstance(photo, tuple)
            assert np.array_equal(decode(photo), EXPECTED)


def test_an_open_file_is_read_from_its_start_and_its_position_restored():
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG")
    end = stream.tell()
    assert np.array_equal(decode(stream), EXPECTED)
    assert stream.tell() == end


@pytest.mark.parametrize(
    ("photo", "name"),
    [
        ("a.jpg", "a.jpg"), (Upload(DATA), "garden.png"), (io.BytesIO(DATA), ""), (DATA, ""), (PICTURE, ""), (PIXELS, ""),
        (("mine", DATA), "mine"), ((1, DATA), ""), (None, ""),
    ],
)  # fmt: skip
def test_a_photo_has_the_name_given_by_the_caller(photo, name):
    assert photo_input.get_name(photo) == name


def test_an_open_file_has_its_path_as_its_name(tmp_path):
    (tmp_path / "x.png").write_bytes(DATA)
    with (tmp_path / "x.png").open("rb") as stream:
        assert photo_input.get_name(stream) == str(tmp_path / "x.png")


@pytest.mark.parametrize("grey", [PIXELS[..., 0], PIXELS[..., :1]])
def test_a_grey_array_is_the_grey_image(grey):
    assert np.array_equal(decode(grey), decode(Image.fromarray(PIXELS[..., 0])))


def test_a_tensor_is_the_array_of_its_values():
    torch = pytest.importorskip("torch")
    assert np.array_equal(decode(torch.from_numpy(PIXELS.copy())), EXPECTED)
    assert "grad" in get_reason(torch.zeros(4, 4, 3, requires_grad=True))
    assert "channels first" in get_reason(torch.zeros(3, 8, 9, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 3)), "from 0 to 1 or from 0 to 255"),
        (np.zeros((4, 5, 3), np.float32), "from 0 to 1 or from 0 to 255"),
        (np.zeros((4, 5, 3), np.uint16), "255, 4095 or 65535"),
        (np.zeros((4, 5), np.int64), "255, 4095 or 65535"),
        (np.zeros((4, 5), bool), "convert it to uint8"),
        (np.zeros((4, 5, 4), np.uint8), "RGBA or CMYK"),
        (np.zeros((3, 5, 6), np.uint8), "channels first"),
        (np.zeros((7, 5, 6), np.uint8), "last dimension"),
        (np.zeros(5, np.uint8), "two or three dimensions"),
        (np.uint8(7), "two or three dimensions"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 0), np.uint8), "no pixels"),
    ],
)
def test_an_ambiguous_array_is_refused_with_its_possible_meanings(array, words):
    assert words in get_reason(np.asarray(array))


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 5)), PICTURE.crop((9, 9, 9, 30)), Image.new("L", (0, 0))])
def test_an_image_without_pixels_is_refused(image):
    assert "no pixels" in get_reason(image)


def test_files_that_yield_no_bytes_are_refused_with_advice(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    closed = io.BytesIO(DATA)
    closed.close()
    with (tmp_path / "x.txt").open() as text:
        assert "opened as text" in get_reason(text)
    assert "opened as text" in get_reason(io.StringIO("x"))
    assert "asynchronously" in get_reason(AsyncUpload(DATA))
    assert "closed" in get_reason(closed)
    assert "empty" in get_reason(io.BytesIO())


def test_a_file_beyond_the_limit_is_refused_before_it_is_in_memory():
    with pytest.raises(UnreadablePhoto, match="too large"):
        open_files.read(io.BytesIO(bytes(11)), 10)
    assert open_files.read(io.BytesIO(bytes(10)), 10) == bytes(10)


def test_a_response_of_an_http_client_is_read_or_refused_with_the_attribute_to_pass(paper_classifier):
    class Response:
        """Like that of httpx: `read` takes no size."""

        def read(self):
            return DATA

    class ChunkedResponse:
        """Like that of requests: it yields chunks of bytes."""

        def iter_content(self, size):
            yield DATA[:size]

        def __iter__(self):
            return self.iter_content(128)

    assert np.array_equal(decode(Response()), EXPECTED)
    with pytest.raises(PhotosError) as refusal:
        paper_classifier.predict(ChunkedResponse())
    assert "response.content" in (refusal.value.advice or "")


def test_many_threads_can_read_one_open_file():
    stream = io.BytesIO(DATA)
    with ThreadPoolExecutor(8) as pool:
        assert all(np.array_equal(pixels, EXPECTED) for pixels in pool.map(decode, [stream] * 64))


@pytest.mark.parametrize("name", ["~gone-user/1.jpg", "a\0b.jpg", "n" * 300, ""])
def test_an_impossible_path_is_refused_like_a_missing_one(name):
    assert get_reason(name)


# --- several photos ---


def test_unusable_photos_are_in_the_list_in_order_with_a_reason(paper_classifier, good_photos):
    wrong = [
        PIXELS[..., [0, 1, 2, 0]],
        None,
        7,
        np.float64(3),
        {"a": 1},
        [good_photos[0]],
        (1, 2, 3),
        (1, DATA),
        "",
        "gone.jpg",
    ]
    photos = [photo for wrong_value in wrong for photo in (good_photos[0], wrong_value)]
    predictions = paper_classifier.predict(photos)
    assert [prediction.is_usable for prediction in predictions] == [True, False] * len(wrong)
    assert all(prediction.status not in ("ok", "") for prediction in predictions[1::2])
    assert [prediction.path for prediction in predictions[::2]] == [str(good_photos[0])] * len(wrong)


def test_an_array_of_photos_and_an_array_of_paths_are_lists(paper_classifier, good_photos):
    batch = np.stack([PIXELS, PIXELS[::-1]])
    alone = [paper_classifier.predict(pixels) for pixels in batch]
    together = paper_classifier.predict(batch)
    for first, second in zip(together, alone, strict=True):
        assert first.probabilities == pytest.approx(second.probabilities, abs=1e-5)
    assert paper_classifier.predict(batch[:0]) == []
    for paths in (np.array([str(path) for path in good_photos[:2]]), np.array(good_photos[:2], object)):
        assert [prediction.path for prediction in paper_classifier.predict(paths)] == [
            str(path) for path in good_photos[:2]
        ]


def test_one_photo_in_a_stream_is_one_prediction(paper_classifier, good_photos):
    """A path is no list of letters, and a file no list of lines."""
    for photo in (str(good_photos[0]), good_photos[0].read_bytes(), io.BytesIO(good_photos[0].read_bytes())):
        (prediction,) = paper_classifier.stream(photo)
        assert prediction.probabilities == paper_classifier.predict(photo).probabilities
    with pytest.raises(RecipeError, match="batch size of 0"):
        paper_classifier.stream(good_photos, batch_size=0)


@pytest.mark.parametrize(
    "photos", [7, None, {"a.jpg": 1}, np.zeros((2, 4, 5, 3)), np.zeros((2, 3, 4, 5), np.uint8), np.zeros(3)]
)
def test_a_value_that_is_neither_a_photo_nor_photos_is_refused(paper_classifier, photos):
    with pytest.raises(PhotosError) as refusal:
        paper_classifier.predict(photos)
    assert "uint8 [height, width, 3]" in (refusal.value.advice or "")


def test_a_frame_is_refused_with_its_column(paper_classifier):
    polars = pytest.importorskip("polars")
    with pytest.raises(PhotosError) as refusal:
        paper_classifier.predict(polars.DataFrame({"path": ["a.jpg"]}))
    assert 'frame["path"]' in (refusal.value.advice or "")


def test_the_network_refuses_arrays_that_it_would_misread(paper_classifier):
    for batch in (np.zeros((1, 48, 48, 3), np.float32), np.zeros((48, 48, 3), np.uint8), [PIXELS]):
        with pytest.raises(PhotosError, match=r"uint8 \[photos, height, width, 3\]"):
            paper_classifier.forward(batch)


# --- the function and the model ---


def test_the_verb_predicts_what_the_classifier_predicts(paper_classifier, paper_model, good_photos, tmp_path):
    expected = paper_classifier.predict(good_photos[0]).probabilities
    data = good_photos[0].read_bytes()
    for photo in (data, io.BytesIO(data), np.asarray(PICTURE), PICTURE, [("mine", data)], (data for _ in range(1))):
        (prediction,) = ikebana.predict(paper_model, photo, out=tmp_path / "out.csv")
        if photo is not PICTURE and not isinstance(photo, np.ndarray):
            assert prediction.probabilities == pytest.approx(expected, abs=1e-5)
    mixed = ikebana.predict(paper_classifier, [good_photos[0], PICTURE, "gone.jpg", None])  # pyright: ignore[reportArgumentType]
    assert [prediction.is_usable for prediction in mixed] == [True, True, False, False]


def test_a_path_that_is_gone_among_several_is_a_prediction_with_the_reason(paper_classifier, good_photos, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/1.jpg").write_bytes(good_photos[0].read_bytes())
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    sources = [
        good_photos[0],
        tmp_path / "gone.jpg",
        str(tmp_path / "*.jpeg"),
        tmp_path / "cut.zip",
        tmp_path / "folder",
    ]
    predictions = ikebana.predict(paper_classifier, sources)
    assert [prediction.is_usable for prediction in predictions] == [True, False, False, False, True]
    assert predictions[1].status == "there is no such file"
    with pytest.raises(PhotosError, match="no such file"):
        ikebana.predict(paper_classifier, tmp_path / "gone.jpg")
    with pytest.raises(PhotosError, match="none of 1"):
        ikebana.predict(paper_classifier, [tmp_path / "gone.jpg"])
    with pytest.raises(PhotosError, match="none of 1"):
        ikebana.predict(paper_classifier, b"")


def test_a_model_is_loaded_from_its_bytes_and_from_an_open_file(paper_model, paper_classifier, good_photos):
    data = paper_model.read_bytes()
    expected = paper_classifier.predict(good_photos[0])
    with paper_model.open("rb") as stream:
        for model in (data, bytearray(data), io.BytesIO(data), stream):
            assert ikebana.load(model).predict(good_photos[0]) == expected
            assert ikebana.predict(model, good_photos[0]) == [expected]
    for nonsense in (b"", b"no model", 7, None, {"a": 1}, io.StringIO("x")):
        with pytest.raises(ModelError) as refusal:
            ikebana.load(nonsense)  # pyright: ignore[reportArgumentType]
        assert refusal.value.advice
