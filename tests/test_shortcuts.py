"""What could tell a class without a look at its subject: found where it was planted, and only there."""

import numpy as np
import pytest
from PIL import ImageOps
from support.images import draw_noisy_image, encode_image, write_files

from ikebana.auditing import file_facts, shortcuts
from ikebana.data import decoding, pixel_cache, sources
from ikebana.errors import UnreadablePhoto

EACH = 40


def judged(folder, made):
    """What facts tell about photos of two classes; `made` gives a photo's bytes for its class and number."""
    rng = np.random.default_rng(3)
    files = {}
    for place, name in enumerate("ab"):
        for number in range(EACH):
            size = (int(rng.integers(100, 160)), int(rng.integers(100, 160)))
            files[f"{name}/{number}"] = made(name, draw_noisy_image(*size, seed=1000 * place + number))
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(write_files(folder / "photos", files)), 96, "crop")
    dataset = sources.assign_classes(dataset, ())
    labels = np.array([dataset.classes.index(name) for name in dataset.used_photos["label"]])
    assert dataset.used_photos.height == 2 * EACH
    return shortcuts.evaluate_facts(file_facts.extract_file_facts(dataset, keep.pixels), labels, np.arange(len(labels)))


def jpeg(picture):
    return encode_image(picture, "JPEG", quality=88)


def bordered(picture):
    return ImageOps.expand(picture, 4, (20, 20, 20))


@pytest.mark.slow
def test_photos_made_alike_have_no_shortcut(tmp_path):
    assert shortcuts.find_shortcuts(judged(tmp_path, lambda _, picture: jpeg(picture))) == []


@pytest.mark.slow
def test_a_border_around_every_photo_is_none_either(tmp_path):
    assert shortcuts.find_shortcuts(judged(tmp_path, lambda _, picture: jpeg(bordered(picture)))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fact", "made"),
    [
        ("border", lambda name, picture: jpeg(bordered(picture) if name == "a" else picture)),
        ("JPEG quality", lambda name, picture: encode_image(picture, "JPEG", quality=70 if name == "a" else 71)),
        ("file type", lambda name, picture: encode_image(picture, "PNG" if name == "a" else "JPEG")),
        ("aspect ratio", lambda name, picture: jpeg(picture.resize((120, 100) if name == "a" else (100, 120)))),
        (
            "metadata markers",
            lambda name, picture: encode_image(picture, "JPEG", quality=88, progressive=name == "a"),
        ),
    ],
)
def test_what_only_one_class_has_is_found_and_named(fact, made, tmp_path):
    found = shortcuts.find_shortcuts(judged(tmp_path, made))
    assert {each.label for each in found} == {0, 1}
    assert all(each.auc > 0.97 for each in found)
    # A format changes more than its own fact: whatever is named must tell the classes on its own.
    assert all(each.fact_auc > 0.95 for each in found)
    assert fact in {each.fact for each in found} or fact in ("file type", "aspect ratio")


def test_classes_of_too_few_photos_are_not_judged():
    told = shortcuts.evaluate_facts({"size": np.arange(8.0)[:, None]}, np.repeat([0, 1], 4), np.arange(8))
    assert told.per_class == ()


def test_copies_of_one_photo_prove_nothing():
    """One photo, twenty times, would be told by anything."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    sizes = np.where(labels == 0, 500.0, rng.integers(1, 400, 80))[:, None]
    groups = np.where(labels == 0, 0, np.arange(80))
    assert shortcuts.evaluate_facts({"size": sizes}, labels, groups).per_class == ()
    assert shortcuts.find_shortcuts(shortcuts.evaluate_facts({"size": sizes}, labels, np.arange(80)))


@pytest.mark.slow
def test_labels_by_chance_have_no_shortcut():
    rng = np.random.default_rng(1)
    told = shortcuts.evaluate_facts({"size": rng.normal(0, 1, (400, 3))}, rng.integers(0, 4, 400), np.arange(400))
    assert shortcuts.find_shortcuts(told) == []
    assert all(0.35 < each.auc < 0.65 for each in told.per_class)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "each"), [(2, 12), (2, 15), (3, 12)])
def test_few_photos_have_hardly_ever_a_shortcut_by_chance(classes, each):
    labels, found = np.repeat(np.arange(classes), each), 0
    for seed in range(20):
        facts = {"size": np.random.default_rng(seed).normal(0, 1, (len(labels), 3))}
        found += bool(shortcuts.find_shortcuts(shortcuts.evaluate_facts(facts, labels, np.arange(len(labels)))))
    assert found <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_header_tells_the_kind_of_file(kind, tmp_path):
    file = tmp_path / "photo"
    file.write_bytes(encode_image(draw_noisy_image(30, 20), kind))
    assert decoding.read_header(file).format == kind
    assert (decoding.read_header(file).mean_quantisation > 0) == (kind == "JPEG")


def test_a_header_of_no_photo_is_refused_in_plain_words(tmp_path):
    file = tmp_path / "photo.jpg"
    file.write_bytes(b"words " * 40)
    with pytest.raises(UnreadablePhoto):
        decoding.read_header(file)
