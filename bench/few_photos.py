"""Compare `quick` with `good` on few photos per class.

    python bench/few_photos.py --photos DIR [--sizes 12,25,50] [--draws 3] [--test 80]

Of each class, a number of photos are divided as by the default split: 60% train and 20% validate.
The rest of 20% is not used: other photos are scored, the same for both recipes. The output has the
wrong photos of both, and the share of the errors of `quick` that `good` removes.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from machine import format_header

import ikebana


def draw_table(photos: Path, per_class: int, test: int, seed: int) -> pl.DataFrame:
    """Draw a table of photos with their split; per_class photos train."""
    rng = np.random.default_rng(seed)
    rows = []
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        paths = rng.permutation(sorted(str(path) for path in folder.glob("*.jpg")))
        parts = ["train"] * per_class + ["validation"] * round(per_class / 3) + ["test"] * test
        rows += [(path, folder.name, part) for path, part in zip(paths, parts, strict=False)]
    return pl.DataFrame(rows, schema=["path", "label", "split"], orient="row")


def main() -> None:
    """Train both recipes on each draw, and print one line per draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--sizes", default="12,25,50")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--test", type=int, default=80)
    options = parser.parse_args()
    print(format_header("torch", "timm"))
    for size in map(int, options.sizes.split(",")):
        totals = np.zeros(2, int)
        for seed in range(options.draws):
            table = draw_table(options.photos, size, options.test, seed)
            wrong = []
            for recipe in ("quick", "good"):
                with tempfile.TemporaryDirectory() as folder:
                    scores = ikebana.fit(table, recipe, run=Path(folder) / "run").evaluation
                    wrong.append(round((1 - scores.accuracy) * scores.n))
            totals += wrong
            print(
                f"{size:4} per class, draw {seed}: wrong of {scores.n}: quick {wrong[0]}, good {wrong[1]}", flush=True
            )
        print(f"{size:4} per class: good removes {1 - totals[1] / totals[0]:.0%} of {totals[0]} errors", flush=True)


if __name__ == "__main__":
    main()
