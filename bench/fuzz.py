"""Fuzz everything in ikebana that opens a file with broken and hostile input.

    python bench/fuzz.py --model FILE.onnx --run RUN [--each 40] [--seed 0] [--targets photo,archive,...]

FILE and RUN come from `ikebana demo` and `ikebana export`. Targets: photo, archive, table, model,
weights, run, serve. Valid files of each format are generated and then broken: truncated at every 5
%, with flipped bits, with ranges zeroed, duplicated or removed, with the header of another format,
or with huge declared sizes. A worker process opens each of them. A finding is:
  - an exception other than `IkebanaError`
  - no answer within 10 s
  - a worker that died
  - memory of --megabytes above that of an idle worker
  - a file written outside the expected folders
The input of every finding is saved in --keep.
"""

import argparse
import io
import json
import os
import random
import resource
import selectors
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from machine import format_header
from PIL import Image

MAX_SECONDS = 10.0
# A run whose evaluation is missing is evaluated again.
MAX_SECONDS_BY_TARGET = {"run": 120.0}
NETWORK = "tf_efficientnet_lite0"
JSON_FILES = ("recipe.json", "calibration.json", "source.json", "evaluation.json", "environment.json", "epochs.jsonl")


# --- valid files ---


def draw_photo(rng: random.Random, kind: str, **options: object) -> bytes:
    """Draw a picture and encode it in this format."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (9, 12, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((160, 120))
    stream = io.BytesIO()
    picture.convert(str(options.pop("mode", "RGB"))).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def draw_photos(rng: random.Random) -> dict[str, bytes]:
    """Draw one photo in each common format."""
    return {
        "jpeg": draw_photo(rng, "JPEG"),
        "progressive": draw_photo(rng, "JPEG", progressive=True),
        "cmyk": draw_photo(rng, "JPEG", mode="CMYK"),
        "png": draw_photo(rng, "PNG"),
        "palette": draw_photo(rng, "PNG", mode="P"),
        "webp": draw_photo(rng, "WEBP"),
        "gif": draw_photo(rng, "GIF", mode="P"),
        "tiff": draw_photo(rng, "TIFF", compression="tiff_lzw"),
        "bmp": draw_photo(rng, "BMP"),
    }


def draw_archive(rng: random.Random, kind: str) -> bytes:
    """Build an archive of two classes with six photos each."""
    stream = io.BytesIO()
    files = {f"{name}/{number}.png": draw_photo(rng, "PNG") for name in ("a", "b") for number in range(6)}
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as writer:
            for name, data in files.items():
                writer.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as writer:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                writer.addfile(member, io.BytesIO(data))
    return stream.getvalue()


# --- broken files ---


def break_file(good: bytes, others: list[bytes], rng: random.Random, n_variants: int) -> Iterator[tuple[str, bytes]]:
    """Truncate a file at every 5 %, and break it `n_variants` times in other ways."""
    for percent in range(0, 100, 5):
        yield f"cut at {percent} %", good[: len(good) * percent // 100]
    for _ in range(n_variants):
        n_bits = rng.choice((1, 3, 10, 100))
        yield f"{n_bits} bits flipped", flip_bits(good, n_bits, rng)
        start, length = rng.randrange(len(good)), rng.randrange(1, 200)
        yield "a stretch of zeros", good[:start] + bytes(length) + good[start + length :]
        yield "a stretch twice", good[: start + length] + good[start:]
        yield "a stretch gone", good[:start] + good[start + length :]
        yield "numbers made huge", enlarge_numbers(good, rng)
        other = rng.choice(others)
        head = rng.choice((2, 4, 8, 16, 64))
        yield "another's head", other[:head] + good[head:]


def flip_bits(good: bytes, n_bits: int, rng: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(n_bits):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def enlarge_numbers(good: bytes, rng: random.Random) -> bytes:
    """Set two or four bytes near the beginning to huge values, where headers declare sizes."""
    data, at = bytearray(good), rng.randrange(min(len(good), 64))
    value = rng.choice((b"\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", struct.pack("<I", 2**31)))
    data[at : at + len(value)] = value
    return bytes(data)


def generate_inputs(target: str, options: argparse.Namespace, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Generate the inputs of a target: a name and the bytes of a file."""
    n_variants = options.each
    if target in ("photo", "serve"):
        yield from break_files(draw_photos(rng), rng, n_variants if target == "photo" else max(n_variants // 8, 1))
    elif target == "archive":
        yield from break_files({kind: draw_archive(rng, kind) for kind in ("zip", "tar.gz")}, rng, n_variants // 2)
    elif target == "table":
        rows = "".join(f"{name}/{number}.png,{name},,g{number}\n" for name in "ab" for number in range(6))
        yield from break_file(
            f"path,label,split,group\n{rows}".encode(), [b"PAR1", b"\xef\xbb\xbf", b"\0\0"], rng, n_variants
        )
    elif target == "model":
        yield from break_file(options.model.read_bytes(), [b"\x08\x08", b"PK\x03\x04"], rng, n_variants // 2)
    elif target == "weights":
        yield from break_file(
            (options.run / "weights.safetensors").read_bytes(), [b"PK\x03\x04", bytes(8)], rng, n_variants // 4
        )
    else:
        files = {name: (options.run / name).read_bytes() for name in JSON_FILES if (options.run / name).exists()}
        yield from break_files(files, rng, max(n_variants // 8, 1))


def break_files(good: dict[str, bytes], rng: random.Random, n_variants: int) -> Iterator[tuple[str, bytes]]:
    for kind, data in good.items():
        for change, broken in break_file(data, list(good.values()), rng, n_variants):
            yield f"{kind}: {change}", broken


# --- opening the files ---


def run_worker(target: str, scratch: Path, model: str, run: str) -> None:
    """Open each file named on standard input, and report the outcome on standard output."""
    open_file = make_opener(target, scratch, Path(model), Path(run))
    from ikebana.errors import IkebanaError
    from ikebana.system import progress

    progress.set_reporter(progress.SilentReporter())
    print(json.dumps({"memory": measure_peak_megabytes()}), flush=True)
    for line in sys.stdin:
        name, file = json.loads(line)
        outcome = "used"
        try:
            open_file(name, Path(file))
        except IkebanaError as error:
            outcome = f"refused: {error.what}"
        except BaseException as error:
            outcome = f"FINDING {type(error).__name__}: {error}"
        print(json.dumps({"outcome": outcome, "memory": measure_peak_megabytes()}), flush=True)


def measure_peak_megabytes() -> float:
    """Measure the peak memory of this process in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Opener = Callable[[str, Path], object]


def make_opener(target: str, scratch: Path, model: Path, run: Path) -> Opener:
    """Return the function that opens a file of this target."""
    from ikebana.data import decoding
    from ikebana.learning.models import pretrained_weights

    if target == "photo":
        return lambda _, file: decoding.decode(file.read_bytes(), 224)
    if target == "weights":
        return lambda _, file: pretrained_weights.load_tensors(
            pretrained_weights.find_weights(NETWORK, file.rename(file.with_suffix(".safetensors")))
        )
    makers = {
        "archive": make_archive_opener,
        "table": make_table_opener,
        "model": make_model_opener,
        "run": make_run_opener,
    }
    return makers[target](scratch, run)


def make_archive_opener(_: Path, __: Path) -> Opener:
    from ikebana.data import pixel_cache, sources

    def open_archive(name: str, file: Path) -> None:
        archive_file = file.rename(file.with_suffix(".zip" if name.startswith("zip") else ".tar.gz"))
        pixel_cache.open_pixel_cache(sources.read(archive_file), 32, "squash")

    return open_archive


def make_table_opener(scratch: Path, _: Path) -> Opener:
    from ikebana.data import pixel_cache, sources

    for name in ("a", "b"):
        (scratch / name).mkdir(exist_ok=True)
        for number in range(6):
            (scratch / name / f"{number}.png").write_bytes(draw_photo(random.Random(number), "PNG"))

    def open_table(_: str, file: Path) -> None:
        table_file = file.rename(scratch / "photos.csv")
        pixel_cache.open_pixel_cache(sources.read(table_file), 32, "squash")

    return open_table


def make_model_opener(_: Path, __: Path) -> Opener:
    import ikebana

    grey = np.full((50, 60, 3), 128, np.uint8)
    return lambda _, file: ikebana.load(file).predict(grey)


def make_run_opener(scratch: Path, run: Path) -> Opener:
    import ikebana

    run_copy, grey = scratch / "run", scratch / "grey.png"
    shutil.copytree(run, run_copy, dirs_exist_ok=True)
    Image.new("RGB", (60, 50), "grey").save(grey)

    def open_broken_run(name: str, file: Path) -> None:
        broken_file = run_copy / name.split(":", maxsplit=1)[0]
        original = broken_file.read_bytes()
        broken_file.write_bytes(file.read_bytes())
        try:
            opened_run = ikebana.open_run(run_copy)
            ikebana.predict(opened_run, grey)
            ikebana.resume(run_copy)
        finally:
            shutil.copytree(run, run_copy, dirs_exist_ok=True)
            broken_file.write_bytes(original)

    return open_broken_run


class Worker:
    """A process that opens files. The caller replaces it when a file has killed it."""

    def __init__(self, target: str, scratch: Path, options: argparse.Namespace):
        self.max_seconds = MAX_SECONDS_BY_TARGET.get(target, MAX_SECONDS)
        folders = {"HOME": scratch / "home", "IKEBANA_CACHE": scratch / "cache", "TMPDIR": scratch / "tmp"}
        for folder in (*folders.values(), scratch / "cwd", scratch / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            __file__,
            "--work",
            target,
            str(scratch / "work"),
            str(options.model),
            str(options.run),
        ]
        environment = {**os.environ, **{name: str(folder) for name, folder in folders.items()}}
        self.log = (scratch / "stderr.txt").open("ab")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=scratch / "cwd",
            env=environment,
        )
        self.idle = self._answer(300)["memory"]
        if not self.idle:
            raise SystemExit(f"the worker did not start: {(scratch / 'stderr.txt').read_text()[-2000:]}")

    def ask(self, name: str, file: Path) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps([name, str(file)]) + "\n").encode())
        self.process.stdin.flush()
        return self._answer(self.max_seconds)

    def _answer(self, max_seconds: float) -> dict:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(max_seconds):
                self.stop()
                return {"outcome": f"FINDING no answer within {max_seconds:.0f} s", "memory": 0.0, "dead": True}
        line = self.process.stdout.readline()
        if not line:
            return {"outcome": f"FINDING the process died: {self.process.wait()}", "memory": 0.0, "dead": True}
        return json.loads(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def fuzz_target(target: str, options: argparse.Namespace, rng: random.Random) -> tuple[Counter, list[str]]:
    """Open every input of a target.

    Returns: the number of used and refused files, and the findings
    """
    counts: Counter = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        worker = Worker(target, scratch, options)
        memory_limit = worker.idle + options.megabytes
        for number, (name, data) in enumerate(generate_inputs(target, options, rng)):
            file = scratch / "work" / f"input-{number}"
            file.write_bytes(data)
            answer = worker.ask(name, file)
            outcome = answer["outcome"]
            if answer["memory"] > memory_limit:
                outcome, memory_limit = (
                    f"FINDING memory: {answer['memory'] - worker.idle:.0f} MB",
                    answer["memory"] + options.megabytes,
                )
            counts[outcome.split(":")[0].split(" ")[0]] += 1
            if outcome.startswith("FINDING"):
                findings.append(f"{target} {number}, {name}: {outcome}")
                (options.keep / f"{target}-{options.seed}-{number}").write_bytes(data)
            for leftover in (scratch / "work").glob(f"input-{number}*"):
                leftover.unlink()
            if answer.get("dead"):
                worker = Worker(target, scratch, options)
        worker.stop()
        stray_files = [file for place in ("cwd", "home") for file in (scratch / place).rglob("*") if file.is_file()]
        findings += [
            f"{target}: file written outside the expected folders: {file.relative_to(scratch)}" for file in stray_files
        ]
    return counts, findings


def fuzz_server(options: argparse.Namespace, rng: random.Random) -> tuple[Counter, list[str]]:
    """Post the broken photos to `ikebana serve`, as request bodies and in broken forms."""
    counts: Counter = Counter()
    findings: list[str] = []
    command = [sys.executable, "-m", "ikebana", "serve", str(options.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip() + "/predict"
        try:
            for number, (name, data) in enumerate(generate_inputs("serve", options, rng)):
                status, seconds = post(url, data, rng)
                counts[str(status)] += 1
                if status >= 500 or status == 0 or seconds > MAX_SECONDS:
                    findings.append(f"serve {number}, {name}: FINDING {status} after {seconds:.1f} s")
                    (options.keep / f"serve-{options.seed}-{number}").write_bytes(data)
        finally:
            process.terminate()
    return counts, findings


def post(url: str, data: bytes, rng: random.Random) -> tuple[int, float]:
    """Post a file, half of the time in a form with flipped bits.

    Returns: HTTP status (0 without an answer), seconds
    """
    content_type = "application/octet-stream"
    if rng.random() < 0.5:
        content_type = "multipart/form-data; boundary=x"
        form_body = (
            b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"
        )
        data = flip_bits(form_body, rng.choice((0, 0, 1, 10)), rng)
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": content_type}), timeout=4 * MAX_SECONDS
        ) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except OSError:
        status = 0
    return status, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--megabytes", type=float, default=600)
    parser.add_argument("--targets", default="photo,archive,table,model,weights,run,serve")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "ikebana-fuzz")
    options = parser.parse_args()
    options.model, options.run = options.model.resolve(), options.run.resolve()
    options.keep.mkdir(parents=True, exist_ok=True)
    print(format_header("pillow", "onnxruntime", "safetensors", "polars"), flush=True)
    for target in options.targets.split(","):
        start, rng = time.perf_counter(), random.Random(f"{options.seed} {target}")
        counts, findings = fuzz_server(options, rng) if target == "serve" else fuzz_target(target, options, rng)
        summary = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
        print(
            f"{target}: {sum(counts.values()):,} inputs in {time.perf_counter() - start:.0f} s: {summary}", flush=True
        )
        for finding in findings:
            print(f"  {finding[:400]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        run_worker(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:6])
    else:
        main()
