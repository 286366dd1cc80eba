"""Check that `ikebana fit` completes with awkward files among the photos, and measure its memory.

    python bench/awkward.py --photos DIR --awkward DIR [--classes daisy,tulip] [--epochs 1]

Runs `ikebana fit` twice in a separate process, without and with the awkward files, and compares the
peak resident memory (and the peak of the anonymous pages, sampled). Files are linked, never
changed. Prints the status of every awkward file.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil
from machine import format_header

import ikebana


def link_photos(photos: Path, classes: list[str], awkward: Path | None, target_folder: Path) -> Path:
    """Link the photos of the classes, and distribute the awkward files among them."""
    for name in classes:
        (target_folder / name).mkdir(parents=True)
        for file in (photos / name).iterdir():
            (target_folder / name / file.name).symlink_to(file.resolve())
    for number, file in enumerate(sorted(awkward.iterdir()) if awkward else ()):
        (target_folder / classes[number % len(classes)] / file.name).symlink_to(file.resolve())
    return target_folder


def fit(folder: Path, run: Path, cache: Path, epochs: int) -> tuple[int, float, float, str]:
    """Run `ikebana fit`.

    Returns: exit status, peak resident memory in MB, peak anonymous memory in MB, standard error
    """
    command = [sys.executable, "-m", "ikebana", "fit", str(folder), "--run", str(run), "--epochs", str(epochs)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"IKEBANA_CACHE": str(cache)}
    )
    peaks = [0.0, 0.0]

    def sample_memory() -> None:
        observed = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                memory = observed.memory_info()
            except psutil.NoSuchProcess:
                return
            peaks[0] = max(peaks[0], memory.rss / 1e6)
            peaks[1] = max(peaks[1], (memory.rss - memory.shared) / 1e6)
            threading.Event().wait(0.01)

    watcher = threading.Thread(target=sample_memory)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    return process.returncode, peaks[0], peaks[1], errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--awkward", type=Path, required=True)
    parser.add_argument("--classes", default="daisy,tulip")
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    classes = options.classes.split(",")
    print(format_header("torch", "pillow"))
    with tempfile.TemporaryDirectory() as folder_name:
        scratch = Path(folder_name)
        fit(link_photos(options.photos, classes, None, scratch / "warm"), scratch / "warm-run", scratch / "cache", 1)
        clean = link_photos(options.photos, classes, None, scratch / "clean")
        mixed = link_photos(options.photos, classes, options.awkward, scratch / "mixed")
        for folder in (clean, mixed):
            run = scratch / f"{folder.name}-run"
            status, resident, anonymous, errors = fit(folder, run, scratch / "cache", options.epochs)
            traceback = "a traceback" if "Traceback" in errors else "no traceback"
            peaks = f"peak {resident:.0f} MB resident, {anonymous:.0f} MB anonymous"
            print(f"{folder.name}: status {status}, {traceback}, {peaks}")
        audit = json.loads((scratch / "mixed-run" / "audit.json").read_text("utf-8"))
        print({key: audit[key] for key in ("paths", "used", "set_aside", "ignored")})
        awkward = {file.name for file in options.awkward.iterdir()}
        table = ikebana.open_run(scratch / "mixed-run").dataset
        for path, status in table.select("path", "status").iter_rows():
            if Path(path).name in awkward:
                print(f"  {Path(path).name:<50} {status}")


if __name__ == "__main__":
    main()
