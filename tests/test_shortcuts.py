"""What could tell a class without a look at its subject: found where it was planted, and only there."""

import io
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import ImageOps
from support.images import draw_noisy_image, encode_image, write_files

from ikebana.auditing import content_checks, file_facts, shortcuts
from ikebana.data import decoding, pixel_cache, sources
from ikebana.errors import UnreadablePhoto

PHOTOS_PER_CLASS = 40


def judged(folder, make_bytes):
    """What facts tell about photos of two classes; `make_bytes` gives a photo's bytes for its class and number."""
    rng = np.random.default_rng(3)
    files = {}
    for place, name in enumerate("ab"):
        for number in range(PHOTOS_PER_CLASS):
            size = (int(rng.integers(100, 160)), int(rng.integers(100, 160)))
            files[f"{name}/{number}"] = make_bytes(name, draw_noisy_image(*size, seed=1000 * place + number))
    dataset, keep = pixel_cache.open_pixel_cache(sources.read(write_files(folder / "photos", files)), 96, "crop")
    dataset = sources.assign_classes(dataset, ())
    labels = np.array([dataset.classes.index(name) for name in dataset.used_photos["label"]])
    assert dataset.used_photos.height == 2 * PHOTOS_PER_CLASS
    return shortcuts.evaluate_facts(file_facts.extract_file_facts(dataset, keep.pixels), labels, np.arange(len(labels)))


def jpeg(picture):
    return encode_image(picture, "JPEG", quality=88)


def bordered(picture):
    return ImageOps.expand(picture, 4, (20, 20, 20))


@pytest.mark.slow
def test_photos_with_equal_properties_have_no_shortcut(tmp_path):
    assert shortcuts.find_shortcuts(judged(tmp_path, lambda _, picture: jpeg(picture))) == []


@pytest.mark.slow
def test_a_border_around_every_photo_is_not_a_shortcut(tmp_path):
    assert shortcuts.find_shortcuts(judged(tmp_path, lambda _, picture: jpeg(bordered(picture)))) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fact", "make_bytes"),
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
def test_a_property_of_only_one_class_is_found_and_named(fact, make_bytes, tmp_path):
    found_shortcuts = shortcuts.find_shortcuts(judged(tmp_path, make_bytes))
    assert {shortcut.label for shortcut in found_shortcuts} == {0, 1}
    assert all(shortcut.auc > 0.97 for shortcut in found_shortcuts)
    (cause,) = shortcuts.group_by_cause(found_shortcuts)
    assert cause.shortcuts == tuple(found_shortcuts)
    # A format changes more than its own fact: whatever is named must tell the classes on its own.
    assert all(shortcut.fact_auc > 0.95 for shortcut in found_shortcuts)
    assert fact in {shortcut.fact for shortcut in found_shortcuts} or fact in ("file type", "aspect ratio")


def test_classes_of_too_few_photos_are_not_checked():
    evidence = shortcuts.evaluate_facts({"size": np.arange(8.0)[:, None]}, np.repeat([0, 1], 4), np.arange(8))
    assert evidence.per_class == ()


def test_duplicates_of_one_photo_are_not_evidence():
    """One photo, twenty times, would be told by anything."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    sizes = np.where(labels == 0, 500.0, rng.integers(1, 400, 80))[:, None]
    groups = np.where(labels == 0, 0, np.arange(80))
    assert shortcuts.evaluate_facts({"size": sizes}, labels, groups).per_class == ()
    assert shortcuts.find_shortcuts(shortcuts.evaluate_facts({"size": sizes}, labels, np.arange(80)))


@pytest.mark.slow
def test_random_labels_have_no_shortcut():
    rng = np.random.default_rng(1)
    evidence = shortcuts.evaluate_facts({"size": rng.normal(0, 1, (400, 3))}, rng.integers(0, 4, 400), np.arange(400))
    assert shortcuts.find_shortcuts(evidence) == []
    assert all(0.35 < shortcut.auc < 0.65 for shortcut in evidence.per_class)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "photos_per_class"), [(2, 12), (2, 15), (3, 12)])
def test_few_photos_rarely_have_a_shortcut_by_chance(classes, photos_per_class):
    labels, false_alarms = np.repeat(np.arange(classes), photos_per_class), 0
    for seed in range(20):
        facts = {"size": np.random.default_rng(seed).normal(0, 1, (len(labels), 3))}
        false_alarms += bool(shortcuts.find_shortcuts(shortcuts.evaluate_facts(facts, labels, np.arange(len(labels)))))
    assert false_alarms <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_the_file_type_is_recognised_from_the_header(kind):
    header = decoding.read_header(io.BytesIO(encode_image(draw_noisy_image(30, 20), kind)))
    assert header.format == kind
    assert (header.mean_quantisation > 0) == (kind == "JPEG")


def test_a_header_of_another_file_type_is_refused_with_a_message():
    with pytest.raises(UnreadablePhoto):
        decoding.read_header(io.BytesIO(b"words " * 40))


def revealed(label, **aucs):
    named = {name.replace("_", " "): auc for name, auc in aucs.items()}
    return shortcuts.Shortcut(label, max(named.values()), 0.5, 20, named)


def test_one_fact_that_reveals_every_class_is_one_cause():
    results = [
        revealed(0, size=0.97, file_size=0.99, border=0.5),
        revealed(1, size=0.93, file_size=0.80, border=0.6),
        revealed(2, size=0.95, file_size=0.5, border=0.5),
        revealed(3, size=0.90, file_size=0.94, border=0.5),
    ]
    (cause,) = shortcuts.group_by_cause(results)
    assert cause.fact == "size"
    assert cause.shortcuts == tuple(results)


def test_classes_with_different_facts_have_different_causes():
    bordered, small = revealed(0, border=1.0, size=0.6), revealed(1, border=0.7, size=0.98)
    causes = shortcuts.group_by_cause([bordered, small])
    assert {cause.fact: cause.shortcuts for cause in causes} == {"border": (bordered,), "size": (small,)}
    assert shortcuts.group_by_cause([]) == []


def test_a_class_that_only_all_facts_together_reveal_has_a_cause_too():
    (cause,) = shortcuts.group_by_cause([shortcuts.Shortcut(0, 0.93, 0.1, 3, {"size": 0.7, "border": 0.8})])
    assert cause.fact == "border"


@pytest.mark.parametrize(
    ("count", "named"), [(1, "a from"), (2, "a and b from"), (9, "a, b, c, d, e, f and 3 more from")]
)
def test_the_finding_names_the_classes_of_its_cause(count, named, monkeypatch):
    results = tuple(revealed(label, size=0.95 - label / 1000, border=0.5) for label in range(count))
    evaluation = shortcuts.FactsEvaluation(0.9, 0.5, results)
    monkeypatch.setattr(content_checks, "evaluate_file_facts", lambda *_: evaluation)
    monkeypatch.setattr(content_checks.image_quality, "check_image_quality", lambda *_: [])
    dataset, cache = SimpleNamespace(classes=tuple("abcdefghi")), SimpleNamespace(pixels=None)
    (finding,) = content_checks.check_content(cast(Any, dataset), cast(Any, cache), None)
    assert f"distinguish {named} the other classes" in finding.evidence
    assert "the size similar" in finding.advice
