"""Predict on a Ray cluster of two machines while machines, links, drivers and disks fail.

    python bench/cluster.py --place DIR                                    # as root: 600 photos, all scenarios
    python bench/cluster.py --place DIR --photos 20000 --recipe quick --scenarios plain    # processor seconds
    python bench/cluster.py --place DIR --photos 200000 --shard-photos 1000 --scenarios plain,node,driver,link

The machines are network namespaces with one CPU each (`cluster_nodes.py`). Photos are paper flowers;
each has bytes of its own. After each scenario, every photo must have exactly one row, in order, with
probabilities within 1e-6 of one process (`ikebana predict` without a cluster).

    plain     processor seconds of driver, workers and Ray from start to end, and of one process
    node      the second machine is killed at a third of the shards
    driver    the driver is killed at a third, and repeated
    link      the second machine is cut off at a third; it returns at the end, and still writes
    drivers   two drivers write to one folder
    disk      the disk is full at a third; the command is repeated with space
    crash     one more photo kills each process that reads it
    bucket    photos and shards are in a bucket (moto's server); one path in ten is first answered with 503

`--default-health-check` runs with Ray's own health check, to see how long `link` takes then.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import fsspec
import numpy as np
import polars as pl
from cluster_nodes import HOST, Machines, adopt_orphans, reap
from processor_time import ProcessorTime

from ikebana.demo_data import paper_flowers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.stores import CREDENTIALS, Faults, put_files, serve_s3  # pyright: ignore[reportMissingImports]

FAULTS = Path(__file__).resolve().parent.parent / "tests/support/node_faults"
# Probabilities have six decimals, so two that differ by less than 1e-6 may differ by one unit.
TOLERANCE = 1.5e-6
RETURN_SECONDS = 15
JPEG_COMMENT = b"\xff\xfe"


def draw_photos(folder: Path, count: int) -> None:
    """Write JPEGs that differ in a comment at least."""
    paper_flowers.draw_collection(folder.parent / "drawn", photos_per_kind=10)
    originals = [file.read_bytes() for file in sorted((folder.parent / "drawn").rglob("*.jpg"))]
    originals = [data for data in originals if data[:2] == b"\xff\xd8"]
    folder.mkdir()
    for number in range(count):
        data, comment = originals[number % len(originals)], f"{number:012}".encode()
        header = JPEG_COMMENT + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{number:07}.jpg").write_bytes(data[:2] + header + data[2:])


def train_model(place: Path, recipe: str) -> Path:
    """Train on paper flowers and export."""
    options = ["--image-size", "48", "--epochs", "20", "--batch-size", "16"] if recipe == "baseline" else []
    # In other processes: a child's largest memory begins with that of the process that forked it.
    for arguments in (
        ["fit", place / "drawn", "--recipe", recipe, "--run", place / "run", *options],
        ["export", place / "run", place / "model.onnx"],
    ):
        command = [sys.executable, "-m", "ikebana", *map(str, arguments), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return place / "model.onnx"


class Bench:
    """The photos, the model, the machines, and the table of one process."""

    def __init__(self, place: Path, options: argparse.Namespace):
        self.place, self.options = place, options
        self.photos, self.table = place / "photos", place / "one.parquet"
        self.out, self.log = place / "shards", place / "driver-plain.log"
        draw_photos(self.photos, options.photos)
        self.model = train_model(place, options.recipe)
        self.environment = {
            **os.environ,
            "IKEBANA_CACHE": str(place / "cache"),
            "PYTHONPATH": os.pathsep.join([str(FAULTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        }
        self.shards = -(-options.photos // options.shard_photos)
        self.machines = Machines(2, self.environment, place)
        self.one_process_seconds = 0.0
        self.driver_kilobytes = 0
        self.bucket = Faults()

    def predict_in_one_process(self) -> None:
        """Predict all photos without a cluster."""
        started = time.monotonic()
        command = [sys.executable, "-m", "ikebana", "predict", self.model, self.photos, "--out", self.table, "--quiet"]
        with ProcessorTime() as processor_time:
            subprocess.run(list(map(str, command)), check=True, env=self.environment, stdout=subprocess.DEVNULL)
        self.one_process_seconds = processor_time.seconds
        print(f"one process: {time.monotonic() - started:.1f} s, {self.one_process_seconds:.1f} processor seconds")

    def start_driver(self, *more: Path) -> "Driver":
        """Start the command on the head, with more photos."""
        return self.start_driver_on(self.photos, *more, out=self.out)

    def start_driver_on(self, *photos: str | Path, out: str | Path) -> "Driver":
        """Start the command on the head, with these photos only."""
        arguments = [self.model, *photos, "--out", f"{out}/", "--backend", "ray"]
        arguments += ["--shard-photos", self.options.shard_photos, "--quiet"]
        command = [sys.executable, "-m", "ikebana", "predict", *map(str, arguments)]
        # The faults are in the workers only.
        environment = {**os.environ, "IKEBANA_CACHE": self.environment["IKEBANA_CACHE"]}
        environment["RAY_ADDRESS"] = self.machines.ray_address
        return Driver(self, self.machines.head.popen(command, environment, self.log))

    def check_rows(self, killers: int = 0, photos: str | None = None) -> str:
        """Compare the shards with the table of one process.

        Args:
            killers: photos at the end that kill their process.
            photos: where the photos were read; by default in the folder.
        """
        files = json.loads((self.out / "_SUCCESS.json").read_text("utf-8"))["files"]
        assert sorted(file.name for file in self.out.glob("part-*")) == files, "other files than the plan's"
        rows = pl.read_parquet([self.out / name for name in files])
        if killers:
            tail = rows[-killers:]
            assert set(tail["status"]) == {"the process crashed while decoding this photo"}, tail["status"]
            rows = rows[:-killers]
        expected = pl.read_parquet(self.table)
        if photos is not None:
            path = pl.col("path").str.replace(str(self.photos), photos, literal=True)
            expected = expected.with_columns(path)
        for column in ("path", "label", "status"):
            assert rows[column].equals(expected[column]), f"{column} differs"
        numbers = [name for name in rows.columns if name.startswith("p:")]
        # Photos that cannot be used have no probabilities in either table.
        difference = float(np.nanmax(np.abs(rows.select(numbers).to_numpy() - expected.select(numbers).to_numpy())))
        assert difference <= TOLERANCE, difference
        return f"{rows.height} rows in order, largest difference {difference:.1e}"

    def wait_for_shards(self, count: int, driver: "Driver") -> None:
        """Wait until so many shards exist."""
        while len(list(self.out.glob("part-*"))) < count:
            assert driver.process.poll() is None, f"the driver has ended; see {self.log}"
            time.sleep(0.05)


class Driver:
    """A running `ikebana predict --backend ray`."""

    def __init__(self, bench: Bench, process: subprocess.Popen[bytes]):
        self.bench, self.process = bench, process

    def finish(self, status: int = 0) -> None:
        """Wait for the end, and note the largest memory."""
        _, raw, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(raw)
        assert self.process.returncode == status, f"exit status {self.process.returncode}; see {self.bench.log}"
        self.bench.driver_kilobytes = max(self.bench.driver_kilobytes, usage.ru_maxrss)


def run_plain(bench: Bench) -> str:
    bench.start_driver().finish()
    return ""


def run_node(bench: Bench) -> str:
    driver = bench.start_driver()
    bench.wait_for_shards(bench.shards // 3, driver)
    bench.machines.others[0].kill_ray()
    driver.finish()
    return ""


def run_driver(bench: Bench) -> str:
    driver = bench.start_driver()
    bench.wait_for_shards(bench.shards // 3, driver)
    driver.process.send_signal(signal.SIGKILL)
    driver.finish(-signal.SIGKILL)
    before = {file.name: file.stat().st_ino for file in bench.out.glob("part-*")}
    bench.start_driver().finish()
    after = {file.name: file.stat().st_ino for file in bench.out.glob("part-*")}
    assert before.items() <= after.items(), "shards were computed again"
    return f"{len(before)} shards kept"


def run_link(bench: Bench) -> str:
    driver = bench.start_driver()
    bench.wait_for_shards(bench.shards // 3, driver)
    machine = bench.machines.others[0]
    machine.cut()
    started = time.monotonic()
    driver.finish()
    took = time.monotonic() - started
    bench.check_rows()
    machine.reconnect()
    time.sleep(RETURN_SECONDS)
    return f"{took:.1f} s from the cut to the end"


def run_drivers(bench: Bench) -> str:
    # Both on the head: in another namespace, Ray would use the head's socket on the shared disk.
    drivers = [bench.start_driver() for _ in range(2)]
    for driver in drivers:
        driver.finish()
    return ""


def run_disk(bench: Bench) -> str:
    driver = bench.start_driver()
    bench.wait_for_shards(bench.shards // 3, driver)
    # A page more than is used: the next shard does not fit.
    used = shutil.disk_usage(bench.out).used
    subprocess.run(["mount", "-o", f"remount,size={used + 4096}", str(bench.out)], check=True)
    driver.finish(status=1)
    assert "the disk is full" in bench.log.read_text("utf-8"), "no error about the disk"
    complete = len(list(bench.out.glob("part-*")))
    subprocess.run(["mount", "-o", "remount,size=1g", str(bench.out)], check=True)
    bench.start_driver().finish()
    return f"{complete} shards before the disk was full"


def run_crash(bench: Bench) -> str:
    killer = bench.place / "kills.jpg"
    shutil.copy(next(bench.photos.iterdir()), killer)
    bench.start_driver(killer).finish()
    return bench.check_rows(killers=1)


@contextmanager
def serve_bucket(bench: Bench) -> Iterator[None]:
    """Serve the photos from a bucket that the machines reach, within this block."""
    with serve_s3(HOST) as (endpoint, bench.bucket):
        variables = {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}
        put_files(endpoint, "photos", {file.name: file.read_bytes() for file in sorted(bench.photos.iterdir())})
        put_files(endpoint, "results", {})
        # One photo and one shard in ten.
        bench.bucket.fails_first, bench.bucket.pattern = True, r"0\.jpg$|part-\d+0-"
        bench.environment.update(variables)
        os.environ.update(variables)
        try:
            yield
        finally:
            for name in variables:
                del bench.environment[name], os.environ[name]


def run_bucket(bench: Bench) -> str:
    bench.start_driver_on("s3://photos", out="s3://results/shards").finish()
    bucket = fsspec.filesystem("s3")
    bucket.get("results/shards", str(bench.out), recursive=True)
    return f"{len(bench.bucket.failed)} requests answered with 503"


@contextmanager
def limit_disk(bench: Bench) -> Iterator[None]:
    """Give the shards a disk of their own within this block."""
    bench.out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(bench.out)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(bench.out)], check=False, capture_output=True)


SCENARIOS: dict[str, Callable[[Bench], str]] = {
    "plain": run_plain,
    "node": run_node,
    "driver": run_driver,
    "link": run_link,
    "drivers": run_drivers,
    "disk": run_disk,
    "crash": run_crash,
    "bucket": run_bucket,
}
# What must exist before the machines, which see no later mounts and no later variables.
SURROUNDINGS: dict[str, Callable[[Bench], AbstractContextManager[None]]] = {"disk": limit_disk, "bucket": serve_bucket}


def run_scenario(bench: Bench, name: str) -> bool:
    """Run one scenario on a fresh cluster; return whether the rows were right."""
    bench.log = bench.place / f"driver-{name}.log"
    bench.driver_kilobytes = 0
    with SURROUNDINGS.get(name, lambda _: nullcontext())(bench), ProcessorTime() as processor_time:
        bench.machines.start({} if bench.options.default_health_check else None)
        started = time.monotonic()
        problem = ""
        try:
            details = SCENARIOS[name](bench)
            took = time.monotonic() - started
            rows = bench.check_rows(photos="s3://photos" if name == "bucket" else None) if name != "crash" else ""
        except AssertionError as error:
            details, rows, took, problem = "", "", time.monotonic() - started, f"FAILED: {error}"
        bench.machines.stop()
        reap()
        if problem and bench.out.exists():
            shutil.copytree(bench.out, bench.place / f"shards-{name}")
    seconds = processor_time.seconds
    facts = [f"{took:.1f} s", f"{seconds:.1f} processor seconds with Ray"]
    if name == "plain":
        facts.append(f"{seconds / bench.one_process_seconds:.2f} times one process")
    # With the bucket in this process, a child's largest memory begins with the photos.
    if name != "bucket":
        facts.append(f"driver {bench.driver_kilobytes / 1024:.0f} MB")
    print(f"{name}: {'; '.join(filter(None, [*facts, details, rows, problem]))}", flush=True)
    shutil.rmtree(bench.out, ignore_errors=True)
    return not problem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=600)
    parser.add_argument("--shard-photos", type=int, default=0, help="default: 30 shards")
    parser.add_argument("--recipe", choices=("baseline", "quick"), default="baseline")
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--default-health-check", action="store_true")
    parser.add_argument("--place", type=Path, required=True, help="an empty folder for photos and results")
    options = parser.parse_args()
    options.shard_photos = options.shard_photos or max(1, options.photos // 30)
    names = options.scenarios.split(",")
    unknown = set(names) - set(SCENARIOS)
    if unknown:
        raise SystemExit(f"there is no scenario {', '.join(unknown)}")
    options.place = options.place.absolute()
    options.place.mkdir(parents=True, exist_ok=True)
    os.environ["IKEBANA_CACHE"] = str(options.place / "cache")
    # `ray start` would otherwise want a token wherever the user has one.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    adopt_orphans()
    bench = Bench(options.place, options)
    try:
        bench.predict_in_one_process()
        outcomes = [run_scenario(bench, name) for name in names]
    finally:
        bench.machines.close()
    sys.exit(not all(outcomes))


if __name__ == "__main__":
    main()
