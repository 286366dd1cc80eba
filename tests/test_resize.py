"""The graph resizes photos as Pillow does, to the bit, in every runtime."""

import functools

import numpy as np
import onnxruntime
import PIL
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from ikebana.data import decoding
from ikebana.exporting import resize_graph

# Pillow resizes rows first where many rows are lost; older versions always resized columns first.
ROWS_FIRST = int(PIL.__version__.split(".")[0]) >= 13
SIDES = (16, 45, 96)


@functools.cache
def session(side, fit):
    return onnxruntime.InferenceSession(
        resize_graph.build_resize_graph(side, fit).SerializeToString(), providers=["CPUExecutionProvider"]
    )


def resize_by_graph(photos, side, fit):
    (squares,) = session(side, fit).run(None, {"photos": photos})
    return np.asarray(squares).transpose(0, 2, 3, 1)


def draw_noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


lengths = st.integers(1, 400)


@pytest.mark.slow
@given(height=lengths, width=lengths, side=st.sampled_from(SIDES), fit=st.sampled_from(["squash", "crop"]))
@example(height=1, width=1, side=16, fit="crop")
@example(height=1, width=400, side=96, fit="squash")
@example(height=45, width=46, side=45, fit="crop")
@example(height=192, width=288, side=96, fit="squash")  # integer ratios: many sums are halfway between two grey levels
def test_the_resize_of_the_graph_equals_pillow_to_the_bit(height, width, side, fit):
    assume(ROWS_FIRST or not (height > side and height - side > 2 * (width - side)))
    photo = draw_noise(height, width)
    expected = decoding.convert_image(Image.fromarray(photo), side, fit).pixels
    assert np.array_equal(resize_by_graph(photo[None], side, fit)[0], expected)


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(1500, 2000), (2400, 900)])
def test_the_resize_of_camera_photos_equals_pillow_to_the_bit(fit, shape):
    photo = draw_noise(*shape)
    expected = decoding.convert_image(Image.fromarray(photo), 96, fit).pixels
    assert np.array_equal(resize_by_graph(photo[None], 96, fit)[0], expected)


@pytest.mark.parametrize("levels", [0, 255])
def test_black_stays_black_and_white_stays_white(levels):
    photo = np.full((1, 131, 77, 3), levels, np.uint8)
    assert (resize_by_graph(photo, 45, "crop") == levels).all()


def test_a_square_of_the_right_size_is_not_changed():
    photos = np.stack([draw_noise(45, 45, seed) for seed in range(3)])
    assert np.array_equal(resize_by_graph(photos, 45, "crop"), photos)


def test_photos_of_one_batch_do_not_affect_each_other():
    photos = np.stack([draw_noise(70, 120, seed) for seed in range(3)])
    together = resize_by_graph(photos, 45, "squash")
    assert all(np.array_equal(together[[row]], resize_by_graph(photos[[row]], 45, "squash")) for row in range(3))


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_openvino_resizes_to_the_same_bits(fit):
    openvino = pytest.importorskip("openvino")
    precise = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = openvino.Core().read_model(resize_graph.build_resize_graph(45, fit).SerializeToString())
    model = openvino.Core().compile_model(graph, "CPU", precise)
    for shape in ((45, 45), (300, 200), (900, 200), (20, 90), (700, 900)):
        photo = draw_noise(*shape)[None]
        assert np.array_equal(model(photo)[0].transpose(0, 2, 3, 1), resize_by_graph(photo, 45, fit))
