"""Broken and hostile files by the thousand, against everything that opens one: what is neither used nor refused in words is a
finding.

    python bench/fuzz.py --model FILE.onnx --run RUN [--each 40] [--seed 0] [--targets photo,archive,...]

FILE and RUN are the project's own (`ikebana demo` and `ikebana export` make both). Targets: photo, archive, table, model,
weights, run, serve. Good files of each format are drawn, then cut off at every 5 %, have bits flipped, stretches zeroed,
repeated or taken out, heads exchanged between formats, and sizes declared that nobody could hold. Each is given to a worker
process; a finding is any exception but an `IkebanaError`, more than 10 s, a dead worker, more than --megabytes of memory beyond
what an idle worker has, or a file anywhere but where it belongs. What led to one is kept in --keep.
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

HANG = 10.0  # seconds
PATIENCE = {"run": 120.0}  # a run whose score is gone is scored again, as it should be
NETWORK = "tf_efficientnet_lite0"
JSON_FILES = ("recipe.json", "calibration.json", "source.json", "evaluation.json", "environment.json", "epochs.jsonl")


# --- what is good ---


def photo(dice: random.Random, kind: str, **options: object) -> bytes:
    """A drawing in this format."""
    pixels = np.random.default_rng(dice.randrange(2**32)).integers(0, 256, (9, 12, 3), np.uint8)
    picture = Image.fromarray(pixels).resize((160, 120))
    stream = io.BytesIO()
    picture.convert(str(options.pop("mode", "RGB"))).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def photos(dice: random.Random) -> dict[str, bytes]:
    """One of each format that people have."""
    return {
        "jpeg": photo(dice, "JPEG"),
        "progressive": photo(dice, "JPEG", progressive=True),
        "cmyk": photo(dice, "JPEG", mode="CMYK"),
        "png": photo(dice, "PNG"),
        "palette": photo(dice, "PNG", mode="P"),
        "webp": photo(dice, "WEBP"),
        "gif": photo(dice, "GIF", mode="P"),
        "tiff": photo(dice, "TIFF", compression="tiff_lzw"),
        "bmp": photo(dice, "BMP"),
    }


def archive(dice: random.Random, kind: str) -> bytes:
    """Two classes of six photos."""
    stream = io.BytesIO()
    files = {f"{name}/{number}.png": photo(dice, "PNG") for name in ("a", "b") for number in range(6)}
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as made:
            for name, data in files.items():
                made.writestr(name, data)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz") as made:
            for name, data in files.items():
                told = tarfile.TarInfo(name)
                told.size = len(data)
                made.addfile(told, io.BytesIO(data))
    return stream.getvalue()


# --- what is made of it ---


def broken(good: bytes, others: list[bytes], dice: random.Random, each: int) -> Iterator[tuple[str, bytes]]:
    """Cut at every 5 %, and so many of each other kind."""
    for share in range(0, 100, 5):
        yield f"cut at {share} %", good[: len(good) * share // 100]
    for _ in range(each):
        many = dice.choice((1, 3, 10, 100))
        yield f"{many} bits flipped", flipped(good, many, dice)
        start, length = dice.randrange(len(good)), dice.randrange(1, 200)
        yield "a stretch of zeros", good[:start] + bytes(length) + good[start + length :]
        yield "a stretch twice", good[: start + length] + good[start:]
        yield "a stretch gone", good[:start] + good[start + length :]
        yield "numbers made huge", huge(good, dice)
        other = dice.choice(others)
        head = dice.choice((2, 4, 8, 16, 64))
        yield "another's head", other[:head] + good[head:]


def flipped(good: bytes, many: int, dice: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(many):
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(data)


def huge(good: bytes, dice: random.Random) -> bytes:
    """Two or four bytes near the beginning say the most that they can: sizes live there."""
    data, at = bytearray(good), dice.randrange(min(len(good), 64))
    value = dice.choice((b"\xff\xff", b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", struct.pack("<I", 2**31)))
    data[at : at + len(value)] = value
    return bytes(data)


def inputs(target: str, options: argparse.Namespace, dice: random.Random) -> Iterator[tuple[str, bytes]]:
    """What a target gets: a name, and a file's bytes."""
    each = options.each
    if target in ("photo", "serve"):
        yield from of_each(photos(dice), dice, each if target == "photo" else max(each // 8, 1))
    elif target == "archive":
        yield from of_each({kind: archive(dice, kind) for kind in ("zip", "tar.gz")}, dice, each // 2)
    elif target == "table":
        rows = "".join(f"{name}/{number}.png,{name},,g{number}\n" for name in "ab" for number in range(6))
        yield from broken(f"path,label,split,group\n{rows}".encode(), [b"PAR1", b"\xef\xbb\xbf", b"\0\0"], dice, each)
    elif target == "model":
        yield from broken(options.model.read_bytes(), [b"\x08\x08", b"PK\x03\x04"], dice, each // 2)
    elif target == "weights":
        yield from broken(
            (options.run / "weights.safetensors").read_bytes(), [b"PK\x03\x04", bytes(8)], dice, each // 4
        )
    else:
        files = {name: (options.run / name).read_bytes() for name in JSON_FILES if (options.run / name).exists()}
        yield from of_each(files, dice, max(each // 8, 1))


def of_each(good: dict[str, bytes], dice: random.Random, each: int) -> Iterator[tuple[str, bytes]]:
    for kind, data in good.items():
        for how, made in broken(data, list(good.values()), dice, each):
            yield f"{kind}: {how}", made


# --- who opens it ---


def work(target: str, scratch: Path, model: str, run: str) -> None:
    """Open each file that is named on standard input; say on standard output what became of it."""
    open_one = opener(target, scratch, Path(model), Path(run))
    from ikebana.errors import IkebanaError
    from ikebana.system import progress

    progress.set_reporter(progress.SilentReporter())
    print(json.dumps({"memory": peak()}), flush=True)
    for line in sys.stdin:
        name, file = json.loads(line)
        outcome = "used"
        try:
            open_one(name, Path(file))
        except IkebanaError as error:
            outcome = f"refused: {error.what}"
        except BaseException as error:
            outcome = f"FINDING {type(error).__name__}: {error}"
        print(json.dumps({"outcome": outcome, "memory": peak()}), flush=True)


def peak() -> float:
    """Megabytes, the most that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


Opener = Callable[[str, Path], object]


def opener(target: str, scratch: Path, model: Path, run: Path) -> Opener:
    """What a target does with a file."""
    from ikebana.data import decoding
    from ikebana.learning.models import pretrained_weights

    if target == "photo":
        return lambda _, file: decoding.decode(file.read_bytes(), 224)
    if target == "weights":
        return lambda _, file: pretrained_weights.load_tensors(
            pretrained_weights.find_weights(NETWORK, file.rename(file.with_suffix(".safetensors")))
        )
    makers = {"archive": archives, "table": tables, "model": models, "run": runs}
    return makers[target](scratch, run)


def archives(_: Path, __: Path) -> Opener:
    from ikebana.data import pixel_cache, sources

    def opened(name: str, file: Path) -> None:
        place = file.rename(file.with_suffix(".zip" if name.startswith("zip") else ".tar.gz"))
        pixel_cache.open_pixel_cache(sources.read(place), 32, "squash")

    return opened


def tables(scratch: Path, _: Path) -> Opener:
    from ikebana.data import pixel_cache, sources

    for name in ("a", "b"):
        (scratch / name).mkdir(exist_ok=True)
        for number in range(6):
            (scratch / name / f"{number}.png").write_bytes(photo(random.Random(number), "PNG"))

    def opened(_: str, file: Path) -> None:
        place = file.rename(scratch / "photos.csv")
        pixel_cache.open_pixel_cache(sources.read(place), 32, "squash")

    return opened


def models(_: Path, __: Path) -> Opener:
    import ikebana

    grey = np.full((50, 60, 3), 128, np.uint8)
    return lambda _, file: ikebana.load(file).predict(grey)


def runs(scratch: Path, run: Path) -> Opener:
    import ikebana

    copy, grey = scratch / "run", scratch / "grey.png"
    shutil.copytree(run, copy, dirs_exist_ok=True)
    Image.new("RGB", (60, 50), "grey").save(grey)

    def opened(name: str, file: Path) -> None:
        changed = copy / name.split(":", maxsplit=1)[0]
        whole = changed.read_bytes()
        changed.write_bytes(file.read_bytes())
        try:
            there = ikebana.open_run(copy)
            ikebana.predict(there, grey)
            ikebana.resume(copy)
        finally:
            shutil.copytree(run, copy, dirs_exist_ok=True)
            changed.write_bytes(whole)

    return opened


class Worker:
    """A process that opens files, begun anew when one was too much for it."""

    def __init__(self, target: str, scratch: Path, options: argparse.Namespace):
        self.patience = PATIENCE.get(target, HANG)
        places = {"HOME": scratch / "home", "IKEBANA_CACHE": scratch / "cache", "TMPDIR": scratch / "tmp"}
        for each in (*places.values(), scratch / "cwd", scratch / "work"):
            each.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable,
            __file__,
            "--work",
            target,
            str(scratch / "work"),
            str(options.model),
            str(options.run),
        ]
        environment = {**os.environ, **{name: str(place) for name, place in places.items()}}
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
            raise SystemExit(f"the worker does not start: {(scratch / 'stderr.txt').read_text()[-2000:]}")

    def ask(self, name: str, file: Path) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps([name, str(file)]) + "\n").encode())
        self.process.stdin.flush()
        return self._answer(self.patience)

    def _answer(self, patience: float) -> dict:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            if not ready.select(patience):
                self.stop()
                return {"outcome": f"FINDING hangs for more than {patience:.0f} s", "memory": 0.0, "dead": True}
        line = self.process.stdout.readline()
        if not line:
            return {"outcome": f"FINDING the process died: {self.process.wait()}", "memory": 0.0, "dead": True}
        return json.loads(line)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def tried(target: str, options: argparse.Namespace, dice: random.Random) -> tuple[Counter, list[str]]:
    """Every input of a target: how many were used and refused, and the findings."""
    counts: Counter = Counter()
    findings: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        worker = Worker(target, scratch, options)
        bound = worker.idle + options.megabytes
        for number, (name, data) in enumerate(inputs(target, options, dice)):
            file = scratch / "work" / f"input-{number}"
            file.write_bytes(data)
            answer = worker.ask(name, file)
            outcome = answer["outcome"]
            if answer["memory"] > bound:
                outcome, bound = (
                    f"FINDING memory: {answer['memory'] - worker.idle:.0f} MB",
                    answer["memory"] + options.megabytes,
                )
            counts[outcome.split(":")[0].split(" ")[0]] += 1
            if outcome.startswith("FINDING"):
                findings.append(f"{target} {number}, {name}: {outcome}")
                (options.keep / f"{target}-{options.seed}-{number}").write_bytes(data)
            for left in (scratch / "work").glob(f"input-{number}*"):
                left.unlink()
            if answer.get("dead"):
                worker = Worker(target, scratch, options)
        worker.stop()
        strays = [each for place in ("cwd", "home") for each in (scratch / place).rglob("*") if each.is_file()]
        findings += [f"{target}: a file where none belongs: {each.relative_to(scratch)}" for each in strays]
    return counts, findings


def served(options: argparse.Namespace, dice: random.Random) -> tuple[Counter, list[str]]:
    """The same photos by HTTP, as bodies and in forms that are broken themselves."""
    counts: Counter = Counter()
    findings: list[str] = []
    command = [sys.executable, "-m", "ikebana", "serve", str(options.model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip() + "/predict"
        try:
            for number, (name, data) in enumerate(inputs("serve", options, dice)):
                status, seconds = posted(url, data, dice)
                counts[str(status)] += 1
                if status >= 500 or status == 0 or seconds > HANG:
                    findings.append(f"serve {number}, {name}: FINDING {status} after {seconds:.1f} s")
                    (options.keep / f"serve-{options.seed}-{number}").write_bytes(data)
        finally:
            process.terminate()
    return counts, findings


def posted(url: str, data: bytes, dice: random.Random) -> tuple[int, float]:
    """Status and seconds; half of the time in a form, some of whose bits are flipped."""
    kind = "application/octet-stream"
    if dice.random() < 0.5:
        kind = "multipart/form-data; boundary=x"
        form = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"
        data = flipped(form, dice.choice((0, 0, 1, 10)), dice)
    start = time.perf_counter()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": kind}), timeout=4 * HANG
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
        start, dice = time.perf_counter(), random.Random(f"{options.seed} {target}")
        counts, findings = served(options, dice) if target == "serve" else tried(target, options, dice)
        told = ", ".join(f"{count:,} {name}" for name, count in counts.most_common())
        print(f"{target}: {sum(counts.values()):,} inputs in {time.perf_counter() - start:.0f} s: {told}", flush=True)
        for each in findings:
            print(f"  {each[:400]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], Path(sys.argv[3]), *sys.argv[4:6])
    else:
        main()
