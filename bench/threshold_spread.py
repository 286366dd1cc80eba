"""Measure how much the threshold of "not sure" depends on which calibration photos there are.

    cd bench; python threshold_spread.py RUN

Draws some of the validation photos of a finished run without replacement, chooses the threshold on
them, and applies it to the other validation photos. No test photo is used.
"""

import argparse

import numpy as np

from ikebana.evaluation.calibration import choose_threshold
from ikebana.evaluation.metrics import score_answered
from ikebana.reports.mistakes import read_held_out
from ikebana.runs.run import open_run

SIZES = (25, 50, 100, 200, 400)
DRAWS = 400


def main() -> None:
    """Print a line of the table per number of photos."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    held_out = read_held_out(open_run(parser.parse_args().run))
    is_validation = ~held_out.is_test
    probabilities, labels = held_out.probabilities[is_validation], held_out.labels[is_validation]
    rng = np.random.default_rng(0)
    for size in SIZES:
        rows = []
        for _ in range(DRAWS):
            order = rng.permutation(len(labels))
            chosen, others = order[:size], order[size:]
            threshold = choose_threshold(probabilities[chosen], labels[chosen])
            answered, right = score_answered(probabilities[others], labels[others], threshold)
            rows.append((threshold, answered, right if right is not None else np.nan))
        columns = np.nanquantile(np.array(rows), (0.1, 0.5, 0.9), axis=0).T
        print(
            f"| {size} | "
            + " | ".join(f"{middle:.3f} ({low:.3f} to {high:.3f})" for low, middle, high in columns)
            + " |"
        )


if __name__ == "__main__":
    main()
