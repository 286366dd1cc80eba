"""Do heat maps show what the class depends on? Deletion and insertion over test photos.

For each photo, the Grad-CAM map of a run is compared with random cells, with itself moved elsewhere, and
with a map that only assumes that what matters is in the centre. The centre map is also put to the
same check. A moved map that passes is a false alarm of the check.

    python bench/heat_maps.py RUN [--photos 100] [--out heat_maps.json]
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from machine import format_header

from ikebana.data import decoding
from ikebana.evaluation.statistics import wilson_interval
from ikebana.explanation import faithfulness, grad_cam, torch_prediction
from ikebana.explanation.faithfulness import DISPLACEMENTS, RANDOM_ORDERS
from ikebana.explanation.masking import CELLS, Predict
from ikebana.exporting import onnx_file, run_photos
from ikebana.learning.process_state import preserve_process_state
from ikebana.runs.run import Run, open_run

# Standard deviation of the centre map in cells: a quarter of the side.
CENTRE_CELLS = CELLS / 4


def make_centre_map() -> np.ndarray:
    """A Gaussian around the centre: float64 [CELLS, CELLS]."""
    distances = np.arange(CELLS) - (CELLS - 1) / 2
    profile = np.exp(-(distances**2) / (2 * CENTRE_CELLS**2))
    return np.outer(profile, profile)


def measure(predict: Predict, photo: np.ndarray, class_index: int, values: np.ndarray, seed: int) -> dict[str, float]:
    """Measure the gains of all maps of one photo."""
    rng = np.random.default_rng(seed)
    cells, centre = faithfulness.resize_to_cells(values), make_centre_map()
    random = [rng.random((CELLS, CELLS)) for _ in range(RANDOM_ORDERS)]
    moved = [faithfulness.displace(cells, *displacement) for displacement in DISPLACEMENTS]
    moved_centre = [faithfulness.displace(centre, *displacement) for displacement in DISPLACEMENTS]
    maps = [cells, centre, *random, *moved, *moved_centre]
    insertion, deletion = faithfulness.measure_orders(predict, photo, class_index, maps)
    gain = insertion - deletion
    of_random, rest = gain[2 : 2 + len(random)], gain[2 + len(random) :]
    of_moved, of_moved_centre = rest[: len(moved)], rest[len(moved) :]
    # The first moved map among the others, in place of the map itself.
    others = max(gain[0], *of_moved[1:], *of_random)
    return {
        "gain": gain[0],
        "insertion": insertion[0],
        "deletion": deletion[0],
        "centre": gain[1],
        "centre_insertion": insertion[1],
        "centre_deletion": deletion[1],
        "random": float(of_random.mean()),
        "random_insertion": float(insertion[2 : 2 + len(random)].mean()),
        "random_deletion": float(deletion[2 : 2 + len(random)].mean()),
        "moved": float(of_moved.mean()),
        "is_trusted": bool(gain[0] > max(*of_moved, *of_random)),
        "centre_is_trusted": bool(gain[1] > max(*of_moved_centre, *of_random)),
        "moved_is_trusted": bool(of_moved[0] > others),
    }


@preserve_process_state()
def measure_run(run: Run, count: int) -> list[dict[str, float]]:
    """Measure evenly spaced test photos of a run."""
    network = onnx_file.load_network(run, run.calibration.temperature)
    photos = run_photos.sample_evenly(run_photos.find_photos(run)["test"], count)
    size, resize = run.recipe.image_size, run.recipe.resize
    rows = []
    predict = torch_prediction.make_predict(network)
    for number, photo in enumerate(photos):
        pixels = decoding.decode(run_photos.read_photo(photo), size, resize).pixels[None]
        class_index = int(predict(pixels)[0].argmax())
        start = time.perf_counter()
        maps = grad_cam.compute_maps(network, pixels, np.array([class_index]))
        assert maps is not None
        map_seconds = time.perf_counter() - start
        row = measure(predict, pixels[0], class_index, maps[0], seed=number)
        rows.append(row | {"map_seconds": map_seconds, "is_correct": class_index == photo.label})
        print(f"{number + 1}/{len(photos)}  trusted {np.mean([row['is_trusted'] for row in rows]):.2f}", flush=True)
    return rows


def format_share(values: list[bool]) -> str:
    """Format a share with its 95% interval."""
    low, high = wilson_interval(sum(values), len(values))
    return f"{np.mean(values):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=int, default=100)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    print(format_header("torch", "captum"), flush=True)
    rows = measure_run(open_run(arguments.run), arguments.photos)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, default=float))
    column = {name: [row[name] for row in rows] for name in rows[0]}
    for name in ("is_trusted", "centre_is_trusted", "moved_is_trusted"):
        print(f"{name:<20} {format_share([bool(value) for value in column[name]])}")
    for name in ("random", "centre", "moved"):
        better = [gain > other for gain, other in zip(column["gain"], column[name], strict=True)]
        print(f"better than {name:<8} {format_share(better)}")
    for name in ("insertion", "deletion", "gain"):
        others = [("map", name), ("centre", f"centre_{name}" if name != "gain" else "centre")]
        others += [("random", f"random_{name}" if name != "gain" else "random")]
        print(f"{name:<10}" + "  ".join(f"{label} {np.mean(column[key]):6.2f}" for label, key in others))
    print(f"seconds per map: median {np.median(column['map_seconds']):.3f}")


if __name__ == "__main__":
    main()
