"""Memory and time of a verb, stage by stage, as the number of photos grows.

    python bench/memory.py [--numbers 10000,200000] [--verb fit|audit|read] [--recipe quick] [--image-size 32] [--epochs N]
                           [--network NAME] [--batch-size N] [--table] [--photos DIR] [--threads N] [--folder DIR]
                           [--keep]

Draws so many small photos of five classes, no two alike, and runs the command in a process of its own with a cache of its
own. Every 50 ms the kernel is asked how much memory the process holds that no file backs (RssAnon); pages of mapped files
do not count, since the system takes them back when it needs them. A line a stage: seconds, ms a photo, the most of it.

`read` is intake alone: what photos there are. With --table they come as a CSV of `path,label` instead of a folder; its
paths are then links to a thousand drawings, so that a million of them are quickly made (for `read`: `fit` would find copies).
--photos looks at a folder of yours instead. The drawings stay in --folder for the next time; what the command makes there is
removed, unless --keep says otherwise.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from machine import format_header
from PIL import Image

CLASSES = 5
DRAWN = 1000  # different ones among those that a table names
SIDE = 64  # pixels of a drawing
EVERY = 0.05  # seconds
BEGIN = "start-up"
FIELDS = ("RssAnon", "RssFile", "VmHWM")


def drawn(folder: Path, number: int) -> Path:
    """A folder of class folders with so many drawings, made if it is not there: soft fields, light and contrast by chance."""
    place = folder / f"{number}-drawings"
    if place.exists():
        return place
    half, dice = folder / f".{number}-half", np.random.default_rng(number)
    shutil.rmtree(half, ignore_errors=True)
    for name in range(CLASSES):
        (half / f"class-{name}").mkdir(parents=True)
    for each in range(number):
        name = each % CLASSES
        cells, least = dice.integers(2, 7), dice.integers(0, 160, 3)
        field = dice.integers(least, least + dice.integers(20, 96, 3), (cells, cells, 3), np.uint8)
        field[..., name % 3] //= 2  # a tint: something to learn
        picture = Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(half / f"class-{name}" / f"{each:07}.jpg", quality=80)
    half.rename(place)
    return place


def table(folder: Path, number: int) -> Path:
    """A CSV with so many rows, each the path of a link to a drawing."""
    file = folder / f"{number}-links" / "photos.csv"
    if file.exists():
        return file
    originals = sorted(drawn(folder, DRAWN).rglob("*.jpg"))
    shutil.rmtree(file.parent, ignore_errors=True)
    lines = ["path,label"]
    for each in range(number):
        if each % 10_000 == 0:
            (file.parent / f"{each // 10_000:04}").mkdir(parents=True)
        original = originals[each % len(originals)]
        path = f"{each // 10_000:04}/{each:07}.jpg"
        os.link(original, file.parent / path)
        lines.append(f"{path},{original.parent.name}")
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file


READ = "import sys; from ikebana.system import progress; from ikebana.data import sources\n"
READ += "progress.set_reporter(progress.JsonReporter())\nwith progress.stage('intake', 0): found = sources.read(sys.argv[1])\n"
READ += "progress.event('read', rows=found.photos.height, bytes=found.photos.estimated_size())"


SMALLER = """
from dataclasses import replace
from ikebana import cli, recipes
recipes.RECIPES[recipes.DEFAULT_RECIPE] = replace(recipes.RECIPES[recipes.DEFAULT_RECIPE], image_size={side})
cli.main()
"""


def command(options: argparse.Namespace, photos: Path, run: Path) -> list[str]:
    """What is run."""
    if options.verb == "read":
        return [sys.executable, "-c", READ, str(photos)]
    verb = [sys.executable, "-m", "ikebana", options.verb, str(photos), "--json"]
    if options.verb == "audit":
        if options.image_size:  # it has no such flag: the side is that of the recipe whose features it looks at
            verb[1:3] = ["-c", SMALLER.format(side=options.image_size)]
        return [*verb, "--out", str(run)]
    verb += ["--recipe", options.recipe, "--run", str(run)]
    for name in ("network", "image_size", "epochs", "batch_size"):
        if getattr(options, name):
            verb += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return verb


class Watched:
    """A process, the stage that it is in by its own words, and the most memory it held in each."""

    def __init__(self, arguments: list[str], environment: dict[str, str]):
        self.stage, self.said = BEGIN, ""
        self.most: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(FIELDS, 0))
        self.seconds: dict[str, float] = defaultdict(float)
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            if told["event"] == "stage":
                self.stage = told["stage"]
            elif told["event"] == "stage_end":
                self.stage = f"after: {told['stage']}"
            elif told["event"] == "message" and told["text"].startswith("expected"):
                self.said = told["text"]
            elif told["event"] == "error":
                self.said = json.dumps(told)
            elif told["event"] == "read":
                self.said = f"{told['rows']:,} rows, {told['bytes'] / told['rows']:.0f} bytes a row in the table"

    def watch(self) -> int:
        """Until it ends: its exit status."""
        last = time.monotonic()
        while self.process.poll() is None:
            time.sleep(EVERY)
            now, stage = time.monotonic(), self.stage
            self.seconds[stage] += now - last
            last = now
            for name, bytes_held in held(self.process.pid).items():
                self.most[stage][name] = max(self.most[stage][name], bytes_held)
        self.listener.join()
        return self.process.returncode


def held(process: int) -> dict[str, int]:
    """What the kernel says the process holds, in bytes; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text("ascii").splitlines()
    except OSError:
        return {}
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: int(told[name].split()[0]) * 1024 for name in FIELDS if name in told}


def size(folder: Path) -> int:
    """Bytes of blocks that a folder takes."""
    return sum(os.lstat(each).st_blocks * 512 for each in folder.rglob("*"))


def measured(options: argparse.Namespace, number: int) -> None:
    """Run the command on so many photos, and print what it took."""
    photos = options.photos or (table if options.table else drawn)(options.folder, number)
    number = number or sum(1 for each in photos.rglob("*") if each.is_file())
    made = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        cache, run = made / "cache", made / "run"
        environment = {**os.environ, "IKEBANA_CACHE": str(cache)}
        if options.threads:
            environment["OMP_NUM_THREADS"] = str(options.threads)
        watched = Watched(command(options, photos, run), environment)
        status = watched.watch()
        kept = "" if options.verb == "read" else f", cache {size(cache) / 1e9:.2f} GB, run {size(run) / 1e9:.2f} GB"
    finally:
        if not options.keep:
            shutil.rmtree(made, ignore_errors=True)
    total, most = sum(watched.seconds.values()), dict.fromkeys(FIELDS, 0)
    print(f"{number:,} photos: {watched.said}{f'  (ended with {status})' if status else ''}", flush=True)
    for stage, seconds in watched.seconds.items():
        most = {name: max(most[name], watched.most[stage][name]) for name in FIELDS}
        anon = watched.most[stage]["RssAnon"] / 1e6
        print(f"  {stage:<24}{seconds:>8.1f} s{1000 * seconds / number:>9.3f} ms a photo{anon:>8.0f} MB")
    print(
        f"  {'all':<24}{total:>8.1f} s{1000 * total / number:>9.3f} ms a photo{most['RssAnon'] / 1e6:>8.0f} MB "
        f"anonymous at the most; mapped files up to {most['RssFile'] / 1e6:.0f} MB{kept}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", default="10000,200000")
    parser.add_argument("--verb", choices=("fit", "audit", "read"), default="fit")
    parser.add_argument("--recipe", default="quick")
    for name in ("image_size", "epochs", "batch_size", "threads"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--network")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    print(format_header("torch", "numpy", "polars", "scikit-learn"), flush=True)
    print(" ".join(sys.argv[1:]), flush=True)
    given = options.folder is not None
    options.folder = options.folder if given else Path(tempfile.mkdtemp())
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        for number in [0] if options.photos else map(int, options.numbers.split(",")):
            measured(options, number)
    finally:
        if not given:
            shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
