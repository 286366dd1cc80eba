"""A Ray cluster reads photos from a bucket and writes shards to it, while the bucket answers 503."""

import json
import os
import subprocess
import sys

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from support.stores import put_files, read_files

import ikebana
from ikebana.data import stores

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ikebana[cluster]'")

from support.ray_cluster import RayCluster  # noqa: E402

pytestmark = pytest.mark.slow

# The audit, in float32: which precision is faster would depend on the load.
AUDIT = """
import sys
from ikebana import recipes
from ikebana.cluster import cache_tasks
from ikebana.commands import audit
audit.RECIPES = {"quick": recipes.with_options(recipes.RECIPES["quick"], precision="float32")}
cache_tasks.MIN_PART_PHOTOS = 10
from ikebana.cli import main
main(["audit", *sys.argv[1:]])
"""

# Of probabilities, between batches of different photos.
TOLERANCE = 2e-6


def test_a_bucket_that_answers_503_gives_every_photo_one_row_in_order(s3, paper_model, paper_photos, tmp_path):
    endpoint, faults = s3
    put_files(endpoint, "photos", read_files(paper_photos))
    put_files(endpoint, "results", {})
    ikebana.predict(paper_model, "s3://photos", tmp_path / "one.parquet")
    # The nodes get the credentials and the endpoint from their environment.
    cluster = RayCluster(tmp_path / "ray.log")
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "s3://photos"]
    command += ["--out", "s3://results/out/", "--shard-photos", "10", "--backend", "ray"]
    try:
        cluster.add_node("second")
        faults.fails_first, faults.pattern = True, r"(part-0000\d|\.jpg$)"
        done = subprocess.run(
            command,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    finally:
        cluster.close()
    assert (done.returncode, done.stdout) == (0, "s3://results/out/\n"), done.stderr
    assert sum(path.endswith(".jpg") for path in faults.failed) > 20
    assert sum("part-0000" in path for path in faults.failed) == 5
    names = [name for name in sorted(stores.list_names("s3://results/out")) if name.startswith("part-")]
    parts = [stores.read(stored) for name in names if (stored := stores.stat(f"s3://results/out/{name}"))]
    table = pl.concat([pl.read_parquet(part) for part in parts])
    assert_frame_equal(
        table, pl.read_parquet(tmp_path / "one.parquet"), check_exact=False, abs_tol=TOLERANCE, rel_tol=0
    )


def test_shards_of_a_cluster_with_photos_that_cannot_be_read_are_computed_by_the_next_call(
    s3, paper_model, paper_photos, tmp_path
):
    endpoint, faults = s3
    photos = read_files(paper_photos)
    put_files(endpoint, "denied", photos)
    ikebana.predict(paper_model, "s3://denied", tmp_path / "one.parquet")
    cluster = RayCluster(tmp_path / "ray.log")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "s3://denied", "--out", f"{out}/"]
    command += ["--shard-photos", "10", "--backend", "ray"]
    options = {"env": {**os.environ, "RAY_ADDRESS": cluster.address}, "capture_output": True, "text": True}
    try:
        # In the second shard.
        faults.failures, faults.status, faults.pattern = 100_000, 403, rf"/{list(photos)[12]}$"
        failed = subprocess.run(command, check=False, timeout=240, **options)
        written = sorted(out.glob("part-*"))
        faults.reset()
        done = subprocess.run(command, check=False, timeout=240, **options)
    finally:
        cluster.close()
    assert (failed.returncode, failed.stdout) == (1, ""), failed.stderr
    assert "1 photo could not be read, so 1 of" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not [file for file in written if file.name.startswith("part-00001")]
    assert len(written) == len(list(out.glob("part-*"))) - 1
    assert (done.returncode, done.stdout) == (0, f"{out}/\n"), done.stderr
    assert (out / "_SUCCESS.json").exists()
    table, expected = pl.read_parquet(sorted(out.glob("part-*"))), pl.read_parquet(tmp_path / "one.parquet")
    assert_frame_equal(table, expected, check_exact=False, abs_tol=TOLERANCE, rel_tol=0)


def test_nodes_without_credentials_are_refused_with_the_reason_and_the_folder(s3, paper_model, paper_photos, tmp_path):
    put_files(s3[0], "private", {**read_files(paper_photos), "results/none": b""})
    cluster = RayCluster(tmp_path / "ray.log")
    command = [sys.executable, "-m", "ikebana", "predict", str(paper_model), "s3://private", "--backend", "ray"]
    errors = {}
    try:
        cluster.add_node("second", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
        for out in (f"{tmp_path}/out/", "s3://private/results/"):
            refused = subprocess.run(
                [*command, "--out", out],
                env={**os.environ, "RAY_ADDRESS": cluster.address},
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
            assert refused.returncode == 1
            assert "Traceback" not in refused.stderr
            errors[out] = refused.stderr
    finally:
        cluster.close()
    folder, bucket = errors.values()
    assert "node second" in folder
    assert "the photo s3://private/" in folder
    assert "cannot be read: access denied" in folder
    assert "s3://private/results cannot be used: access denied" in bucket
    for text in errors.values():
        assert "AWS_ACCESS_KEY_ID" in text
        assert "node first" not in text


def test_an_audit_of_a_bucket_on_a_cluster_is_that_of_one_machine(s3, paper_photos, tmp_path):
    endpoint, faults = s3
    put_files(endpoint, "audited", {**read_files(paper_photos), "rose/empty.jpg": b"", "rose/words.jpg": b"no photo"})
    cluster = RayCluster(tmp_path / "ray.log")
    audits = {}
    try:
        cluster.add_node("second")
        for name, flags in (("cluster", ["--backend", "ray"]), ("here", [])):
            faults.reset()
            faults.fails_first, faults.pattern = True, r"\.jpg$"
            variables = {"RAY_ADDRESS": cluster.address, "IKEBANA_CACHE": str(tmp_path / f"cache-{name}")}
            done = subprocess.run(
                [sys.executable, "-c", AUDIT, "s3://audited", "--out", str(tmp_path / name), *flags],
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                check=False,
                timeout=240,
            )
            assert done.returncode == 0, done.stderr
            assert len(faults.failed) >= 40
            audits[name] = json.loads((tmp_path / name / "audit.json").read_text("utf-8"))
    finally:
        cluster.close()
    assert "unreadable" in {finding["kind"] for finding in audits["here"]["findings"]}
    assert audits["cluster"] == audits["here"]
