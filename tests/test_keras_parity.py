"""The tutorial's recipes compared with Keras 3 on its torch backend, and with its ImageDataGenerator."""

import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ikebana import recipes
from ikebana.learning import augmentation, device
from ikebana.learning.models import layer_table, networks
from ikebana.learning.training import optimisers
from ikebana.learning.training.trainer import Trainer, plan_phases

os.environ["KERAS_BACKEND"], os.environ["KERAS_TORCH_DEVICE"] = "torch", "cpu"
keras = pytest.importorskip("keras", reason="Keras is a development dependency: pip install 'ikebana[dev]'")

# Keras 3.15 calls numpy in a way that numpy 2 deprecates, and scipy as well.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please import `affine_transform`:DeprecationWarning"),
]

CLASSES = 5
SETTING = device.DeviceSettings("cpu", "float32", 2, "system default")


@pytest.fixture(params=["baseline", "augmented"])
def recipe(request):
    return recipes.get_recipe(request.param)


def keras_network(recipe, seed=0):
    """Build the network as in the tutorial's code."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = [keras.Input((150, 150, 3))]
    for width in (32, 64, 128, 128):
        model += [layers.Conv2D(width, (3, 3), activation="relu"), layers.MaxPooling2D((2, 2))]
    model.append(layers.Flatten())
    if recipe.method.dropout:
        model.append(layers.Dropout(recipe.method.dropout))
    model += [layers.Dense(512, activation="relu"), layers.Dense(CLASSES, activation="softmax")]
    return keras.Sequential(model)


def with_weights(layers):
    return [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)]


def copied(model, network):
    """Copy weights from Keras: convolutions from (rows, columns, in, out), dense layers from (in, out)."""
    ours = with_weights(network.modules())
    theirs = [layer for layer in model.layers if layer.weights]
    with torch.no_grad():
        for mine, yours in zip(ours, theirs, strict=True):
            kernel, bias = (torch.from_numpy(np.array(value)) for value in yours.get_weights())
            mine.weight.copy_(kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T)
            assert mine.bias is not None
            mine.bias.copy_(bias)
    return network


def photos(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 150, 150, 3), dtype=np.uint8)


def as_ours(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_every_layer_has_the_parameters_and_output_shape_of_keras(recipe):
    table = [
        layer
        for layer in layer_table.summarise_layers(networks.build_network(recipe, CLASSES), 150)
        if layer.parameters
    ]
    theirs = [layer for layer in keras_network(recipe).layers if layer.weights]
    assert [layer.parameters for layer in table] == [layer.count_params() for layer in theirs]
    assert [layer.output_shape[0] for layer in table] == [layer.output.shape[-1] for layer in theirs]
    assert sum(layer.parameters for layer in table) == 3_455_173


def test_with_the_weights_of_keras_our_network_predicts_the_same(recipe):
    model = keras_network(recipe)
    network = copied(model, networks.build_network(recipe, CLASSES)).eval()
    pixels = photos(4)
    with torch.no_grad():
        ours = torch.softmax(network(as_ours(pixels)), 1).numpy()
    np.testing.assert_allclose(ours, model.predict(pixels.astype(np.float32) / 255, verbose=0), atol=1e-6)


def test_initial_weights_have_the_distribution_of_keras(recipe):
    ours = with_weights(networks.build_network(recipe, CLASSES).modules())
    theirs = [layer for layer in keras_network(recipe).layers if layer.weights]
    for mine, yours in zip(ours, theirs, strict=True):
        kernel = np.array(yours.get_weights()[0])
        n = kernel.size
        reach = np.abs(kernel).max()
        weight = mine.weight.detach()
        assert mine.bias is not None
        assert not mine.bias.detach().any()
        # The largest of n uniform draws is within a few n-ths of the limit, so equal maxima mean equal limits.
        assert float(weight.abs().max()) == pytest.approx(reach, rel=20 / n)
        assert float(weight.std()) == pytest.approx(kernel.std(), rel=6 / n**0.5)


@pytest.fixture
def in_float64():
    """Use float64.

    In float32, the first steps of RMSprop (loss from 1.6 to 8) amplify rounding to percents.
    """
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(("learning_rate", "apart"), [(1e-5, 1e-5), (1e-3, 0.02)])
def test_five_training_steps_change_the_weights_as_in_keras(in_float64, learning_rate, apart):
    recipe = recipes.get_recipe("baseline", learning_rate=learning_rate)
    model = keras_network(recipe)
    network = copied(model, networks.build_network(recipe, CLASSES).double()).train()
    start = [weight.detach().clone() for weight in network.parameters()]
    model.compile(keras.optimizers.RMSprop(learning_rate), "categorical_crossentropy")
    learner = Trainer(network, recipe, plan_phases(recipe)[0], np.zeros(16, np.int64))
    for number in range(5):
        pixels = photos(16, seed=number).astype(np.float64)
        labels = np.random.default_rng(number).integers(0, CLASSES, 16)
        their_loss = float(np.asarray(model.train_on_batch(pixels / 255, np.eye(CLASSES)[labels])))
        loss, _ = learner.step(as_ours(pixels), torch.from_numpy(labels), SETTING)
        assert float(loss) == pytest.approx(their_loss, rel=apart)
    expected = copied(model, networks.build_network(recipe, CLASSES).double())
    with torch.no_grad():
        for ours, theirs, began in zip(network.parameters(), expected.parameters(), start, strict=True):
            moved = float((theirs - began).norm())
            assert moved > 0
            assert float((ours - theirs).norm()) / moved < apart


@pytest.mark.parametrize("learning_rate", [1e-3, 1e-5])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-8])
def test_rmsprop_equals_that_of_keras_for_gradients_of_any_size(learning_rate, size):
    numbers = np.random.default_rng(0)
    ours = nn.Parameter(torch.from_numpy(numbers.normal(size=40).astype(np.float32)))
    theirs = keras.Variable(ours.detach().numpy().copy())
    optimizer = keras.optimizers.RMSprop(learning_rate)
    optimizer.build([theirs])
    velocity = torch.zeros_like(ours)
    start = ours.detach().clone()
    for _ in range(5):
        gradient = (size * numbers.normal(size=40)).astype(np.float32)
        ours.grad = torch.from_numpy(gradient)
        optimisers.update_rmsprop_([(ours, velocity)], learning_rate)
        optimizer.apply([torch.from_numpy(gradient)])
    moved = keras.ops.convert_to_numpy(theirs) - start.numpy()
    np.testing.assert_allclose(ours.detach().numpy() - start.numpy(), moved, rtol=1e-4, atol=2e-7)


@pytest.fixture(scope="module")
def image_data_generator():
    with warnings.catch_warnings():  # deprecated, but the tutorial uses it
        warnings.simplefilter("ignore")
        from keras.src.legacy.preprocessing import image

        tutorial = recipes.TUTORIAL_AUGMENTATION
        generator = image.ImageDataGenerator(
            rotation_range=int(tutorial.rotation),
            width_shift_range=tutorial.shift[1],
            height_shift_range=tutorial.shift[0],
            shear_range=tutorial.shear,
            zoom_range=tutorial.zoom,
            horizontal_flip=tutorial.flip,
            fill_mode="nearest",
        )
    return image, generator


def smooth_photo(seed):
    """Draw a smooth photo, in which a wrong position is visible and rounding is not."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (1, 3, 12, 12)))
    fine = nn.functional.interpolate(coarse, (150, 150), mode="bicubic").clamp(0, 255)
    return fine[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def our_maps(drawn):
    """Return our map for parameters drawn by Keras, without the flip."""
    values = drawn | {name: np.deg2rad(drawn[name]) for name in ("theta", "shear")}
    return augmentation.compose_affine_maps(
        *(torch.tensor([values[name]], dtype=torch.float64) for name in ("theta", "tx", "ty", "shear", "zx", "zy"))
    )


def test_each_augmentation_moves_pixels_as_in_keras(image_data_generator):
    _, generator = image_data_generator
    for seed in range(12):
        drawn = generator.get_random_transform((150, 150, 3), seed=seed)
        photo = smooth_photo(seed)
        theirs = generator.apply_transform(photo.astype(np.float32), drawn)
        maps = our_maps(drawn)
        if drawn["flip_horizontal"]:
            maps[:, :, 0] *= -1
        ours = augmentation.warp(as_ours(photo[None]), maps)[0].permute(1, 2, 0).numpy()
        assert np.abs(ours - theirs).max() < 0.05  # of 255 grey levels: float32 against float64 positions


def test_the_affine_matrix_equals_that_of_keras(image_data_generator, monkeypatch):
    image, generator = image_data_generator
    pairs = []
    real = image.transform_matrix_offset_center
    monkeypatch.setattr(image, "transform_matrix_offset_center", lambda m, *a: (pairs.append(m.copy()), real(m, *a))[1])
    drawn = generator.get_random_transform((150, 150, 3), seed=3)
    generator.apply_transform(smooth_photo(0).astype(np.float32), drawn | {"flip_horizontal": False})
    ours = our_maps(drawn)
    np.testing.assert_allclose(ours[0].numpy(), pairs[0][:2], atol=1e-12)


def test_augmentations_are_drawn_from_the_ranges_of_keras(image_data_generator):
    _, generator = image_data_generator
    count = 4000
    drawn = [generator.get_random_transform((150, 150, 3), seed=seed) for seed in range(count)]
    ours = augmentation.draw_affine_maps(
        count, 150, recipes.TUTORIAL_AUGMENTATION, torch.Generator().manual_seed(0)
    ).numpy()
    flipped = np.array([parameters["flip_horizontal"] for parameters in drawn])
    # A flip makes the determinant negative; its size is the product of the zooms.
    assert (np.linalg.det(ours[:, :, :2]) < 0).mean() == pytest.approx(flipped.mean(), abs=0.03)
    area = np.array([parameters["zx"] * parameters["zy"] for parameters in drawn])
    for share in (0.01, 0.25, 0.5, 0.75, 0.99):
        quantile = np.quantile(np.abs(np.linalg.det(ours[:, :, :2])), share)
        assert quantile == pytest.approx(np.quantile(area, share), abs=0.02)
    angle = np.degrees(np.arctan2(ours[:, 1, 0], ours[:, 0, 0]))
    upright = np.where(np.abs(angle) > 90, angle - 180 * np.sign(angle), angle)
    assert np.abs(upright).max() <= 40.0 + 1e-9
    assert np.abs(upright).max() > 39
    reach = np.hypot(ours[:, 0, 2], ours[:, 1, 2])  # rotation keeps the length of a shift
    theirs = np.hypot([parameters["tx"] for parameters in drawn], [parameters["ty"] for parameters in drawn])
    assert np.quantile(reach, 0.5) == pytest.approx(np.quantile(theirs, 0.5), rel=0.03)
