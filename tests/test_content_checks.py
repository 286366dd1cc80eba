"""What the audit says of whole collections, and what it leaves behind for `fit`."""

import numpy as np
import pytest
from support.images import two_classes, write_files

import ikebana
from ikebana import recipes
from ikebana.auditing import label_confidence
from ikebana.auditing import label_errors as doubts
from ikebana.commands import audit as audit_command
from ikebana.demo_data import paper_flowers
from ikebana.errors import PhotosError
from ikebana.learning.features import out_of_fold
from ikebana.learning.features.feature_rows import FeatureRows
from ikebana.learning.training import logistic_head

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The default recipe on small photos, in the one number format that needs no measuring."""
    smaller = recipes.get_recipe("quick", image_size=64, precision="float32")
    monkeypatch.setattr(audit_command, "RECIPES", {**recipes.RECIPES, "quick": smaller})
    return smaller


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=14)
    return folder


def test_fit_computes_no_features_after_an_audit(drawn, small, tmp_path, stages):
    ikebana.audit(drawn)
    assert "extract features" in stages
    stages.clear()
    run = ikebana.fit(drawn, small, run=tmp_path / "run")
    assert "extract features" not in stages
    assert run.evaluation.n > 0


def test_an_audit_computes_no_features_after_fit(drawn, small, tmp_path, stages):
    ikebana.fit(drawn, small, run=tmp_path / "run")
    assert "extract features" in stages
    stages.clear()
    ikebana.audit(drawn)
    assert stages
    assert "extract features" not in stages


def test_the_same_photos_give_the_same_findings(drawn):
    assert ikebana.audit(drawn).findings == ikebana.audit(drawn).findings


def test_wrong_labels_are_reported_with_the_right_class(tmp_path):
    folder = tmp_path / "photos"
    paper_flowers.draw_collection(folder, photos_per_kind=30)
    kinds = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    source, target = folder / kinds[0], folder / kinds[1]
    moved = sorted(photo for photo in source.iterdir() if photo.suffix == ".jpg")[:2]
    for file in moved:
        file.rename(target / f"moved-{file.name}")
    findings = [finding for finding in ikebana.audit(folder).findings if finding.kind == "suspect_label"]
    named = {finding.paths[0]: finding for finding in findings}
    for file in moved:
        finding = named[f"{kinds[1]}/moved-{file.name}"]
        assert finding.suggested_label == kinds[0]
        assert finding.confidence is not None
        assert 0.2 < finding.confidence < 1
    stated = [finding.confidence or 0 for finding in findings]
    assert stated == sorted(stated, reverse=True)
    assert all(
        (finding.severity == "warning") == (confidence > 0.5)
        for finding, confidence in zip(findings, stated, strict=True)
    )


def test_a_class_in_a_single_group_has_no_suspects_and_hides_none():
    """No head learns such a class from other groups, and no neighbour belongs to it, which is no evidence."""
    truth = np.repeat([0, 1, 2], [60, 60, 6])
    features = (9 * np.eye(3, 24)[truth] + np.random.default_rng(0).normal(0, 1, (126, 24))).astype(np.float32)
    labels, wrong = truth.copy(), [3, 70, 80]
    labels[wrong] = 1 - truth[wrong]
    groups = np.where(truth == 2, 120, np.arange(126))
    features_seen = out_of_fold.LabelledFeatures(FeatureRows([features], [np.arange(126)]), np.arange(126), labels)
    alone, heard = out_of_fold.predict_out_of_fold(features_seen, groups, 3, "drawn")
    assert heard.tolist() == (labels != 2).tolist()
    vote = doubts.vote(doubts.find_neighbours(features, labels, groups), labels, 3)
    judged = doubts.combine_probabilities(alone, vote, labels, heard)
    errors = label_confidence.estimate_errors(judged, labels, groups, heard)
    assert {suspect.photo for suspect in doubts.find_suspect_labels(judged, labels, errors)} == set(wrong)
    assert (judged[truth == 2] == np.eye(3)[2]).all()


def test_heads_are_trained_on_a_sample_of_large_classes_and_all_of_a_rare_one(monkeypatch):
    labels = np.repeat([0, 1, 2], [900, 600, 5])
    photos = np.arange(len(labels))
    heads = []

    def note(left, features, taught, classes, _):
        chosen = features[:][:, 0].astype(int)  # the only feature of a photo is its number
        assert taught.tolist() == labels[chosen].tolist()
        heads.append((set(left[:][:, 0].astype(int).tolist()), chosen.tolist()))
        return np.zeros((len(left), classes))

    monkeypatch.setattr(out_of_fold, "MAX_TRAINING_PHOTOS", 200)
    monkeypatch.setattr(logistic_head, "fit_and_predict_logits", note)
    numbered = out_of_fold.LabelledFeatures(FeatureRows([photos[:, None].astype(np.float32)], [photos]), photos, labels)
    out_of_fold.predict_out_of_fold(numbered, photos, 3, "drawn")
    assert set.union(*(judged for judged, _ in heads)) == set(photos.tolist())
    for judged, chosen in heads:
        rare = [photo for photo in range(1500, 1505) if photo not in judged]
        assert np.bincount(labels[chosen]).tolist() == [120, 80, len(rare)]
        assert set(rare) < set(chosen)
        assert len(set(chosen)) == len(chosen)
        assert not judged & set(chosen)


@pytest.mark.usefixtures("terminal")
def test_a_few_photos_are_audited_and_skipped_checks_are_reported(tmp_path, capsys):
    looked = ikebana.audit(write_files(tmp_path / "photos", two_classes(3)))
    assert not [finding for finding in looked.findings if finding.kind in ("suspect_label", "outlier", "shortcut")]
    assert looked.dataset.used_photos.height == 6
    assert np.isfinite(looked.dataset.used_photos["width"].to_numpy()).all()
    assert "photos used" in capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_photos_that_fit_cannot_split_are_audited_anyway(drawn, tmp_path, capsys):
    table = tmp_path / "photos.csv"
    named = [f"{photo},{photo.parent.name},one" for photo in sorted(drawn.glob("*/*.jpg"))]
    table.write_text("\n".join(["path,label,group", *named]), "utf-8")
    audit = ikebana.audit(table, out=tmp_path / "page")
    assert [(finding.severity, finding.kind) for finding in audit.split_errors] == [("error", "cannot_split")]
    assert audit.findings[0] is audit.split_errors[0]
    assert "unreadable" in {finding.kind for finding in audit.findings}
    assert "fit would refuse" in capsys.readouterr().err
    assert (tmp_path / "page" / "index.html").exists()
    with pytest.raises(PhotosError) as refused:
        ikebana.fit(table)
    assert (refused.value.what, refused.value.advice) == (audit.split_errors[0].evidence, audit.split_errors[0].advice)
