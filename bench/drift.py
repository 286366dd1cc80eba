"""Drift of a run's own held-out photos, and of some of them after a change.

python bench/drift.py --run RUN [--brightness 0.12] [--step 8]
"""

import argparse
import tempfile
from pathlib import Path

import polars as pl
from PIL import Image

import ikebana
from ikebana.data import decoding
from ikebana.evaluation.drift import FamiliarityCounts


def main() -> None:
    """Print a table: photos, number, median familiarity, p-value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--brightness", type=float, default=0.12)
    parser.add_argument("--step", type=int, default=8, help="every which validation photo is darkened")
    arguments = parser.parse_args()
    run = ikebana.open_run(arguments.run)
    model, root = run.familiarity, Path(run.source["photos"])
    assert model is not None
    samples: dict[str, list[float | None]] = {
        split: run.predictions.filter(pl.col("split") == split)["familiarity"].to_list()
        for split in ("validation", "test")
    }
    paths = run.predictions.filter(pl.col("split") == "validation")["path"].gather_every(arguments.step)
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            pixels = decoding.decode_full_size((root / path).read_bytes()) * arguments.brightness
            Image.fromarray(pixels.astype("uint8")).save(f"{folder}/{number:04}.png")
        predictions = ikebana.predict(run, folder)
    samples[f"darkened to {arguments.brightness}"] = [prediction.familiarity for prediction in predictions]
    for name, values in samples.items():
        print(f"{name}: {FamiliarityCounts(values).compare(model.known_photos)}")


if __name__ == "__main__":
    main()
