"""A folder of two classes with awkward files strewn among them: does a run complete, and what does it cost in memory?

    python bench/awkward.py --photos DIR --awkward DIR [--classes daisy,tulip] [--epochs 1]

Runs `ikebana fit` twice as a process of its own, without and with the awkward files, and compares the peaks of its
resident memory (and of its anonymous pages, sampled). Files are linked, never changed. Prints what became of each.
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
from machine import header

import ikebana


def folder_of(photos: Path, classes: list[str], awkward: Path | None, place: Path) -> Path:
    """Links to the photos of the classes; the awkward files in turn among them."""
    for name in classes:
        (place / name).mkdir(parents=True)
        for file in (photos / name).iterdir():
            (place / name / file.name).symlink_to(file.resolve())
    for number, file in enumerate(sorted(awkward.iterdir()) if awkward else ()):
        (place / classes[number % len(classes)] / file.name).symlink_to(file.resolve())
    return place


def fit(folder: Path, run: Path, cache: Path, epochs: int) -> tuple[int, float, float, str]:
    """One `ikebana fit`: its status, the peaks of resident and of anonymous memory in MB, and its standard error."""
    command = [sys.executable, "-m", "ikebana", "fit", str(folder), "--run", str(run), "--epochs", str(epochs)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"IKEBANA_CACHE": str(cache)}
    )
    peaks = [0.0, 0.0]

    def watch() -> None:
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                told = seen.memory_info()
            except psutil.NoSuchProcess:
                return
            peaks[0] = max(peaks[0], told.rss / 1e6)
            peaks[1] = max(peaks[1], (told.rss - told.shared) / 1e6)
            threading.Event().wait(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    return process.returncode, peaks[0], peaks[1], errors


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--photos", type=Path, required=True)
    flags.add_argument("--awkward", type=Path, required=True)
    flags.add_argument("--classes", default="daisy,tulip")
    flags.add_argument("--epochs", type=int, default=1)
    chosen = flags.parse_args()
    classes = chosen.classes.split(",")
    print(header("torch", "pillow"))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        fit(folder_of(chosen.photos, classes, None, scratch / "warm"), scratch / "warm-run", scratch / "cache", 1)
        clean = folder_of(chosen.photos, classes, None, scratch / "clean")
        mixed = folder_of(chosen.photos, classes, chosen.awkward, scratch / "mixed")
        for folder in (clean, mixed):
            run = scratch / f"{folder.name}-run"
            status, resident, anonymous, errors = fit(folder, run, scratch / "cache", chosen.epochs)
            traceback = "a traceback" if "Traceback" in errors else "no traceback"
            peaks = f"peak {resident:.0f} MB resident, {anonymous:.0f} MB anonymous"
            print(f"{folder.name}: status {status}, {traceback}, {peaks}")
        audit = json.loads((scratch / "mixed-run" / "audit.json").read_text("utf-8"))
        print({key: audit[key] for key in ("paths", "used", "set_aside", "ignored")})
        awkward = {each.name for each in chosen.awkward.iterdir()}
        table = ikebana.open_run(scratch / "mixed-run").dataset
        for path, status in table.select("path", "status").iter_rows():
            if Path(path).name in awkward:
                print(f"  {Path(path).name:<50} {status}")


if __name__ == "__main__":
    main()
