"""The engines of docs/many-photos.md do what the page says, with its own lines."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import ikebana

PAGE = Path(__file__).parents[1] / "docs" / "many-photos.md"
# The rounding of probabilities, and the difference between batches of different sizes.
TOLERANCE = 2e-6


@pytest.mark.parametrize(("engine", "module"), [("ProcessPoolExecutor", "concurrent"), ("dask.compute", "dask")])
def test_an_engine_predicts_all_photos(engine, module, paper_model, good_photos, tmp_path, monkeypatch):
    pytest.importorskip(module)
    (code,) = (
        code for code in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S) if engine in code
    )
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(10):
        shutil.copy(good_photos[number], f"photos/{number}.jpg")
    Path("photos/4.jpg").write_text("no photo")
    shutil.copy(paper_model, "flowers.onnx")
    # Several shards.
    ikebana.plan_shards("flowers.onnx", "photos/", "predictions/", shard_photos=4)
    Path("script.py").write_text(code, "utf-8")
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("predictions").glob("part-*"))) == 3
    ikebana.predict("flowers.onnx", "photos/", "one.parquet")
    assert_frame_equal(
        pl.read_parquet("predictions.parquet"), pl.read_parquet("one.parquet"), abs_tol=TOLERANCE, rel_tol=0
    )
