"""`ikebana serve` under load, beside the handler that people write: 64 clients, good photos among what breaks servers.

    python bench/serve_load.py --model flowers.onnx --photos FOLDER [--awkward FOLDER] [--clients 64] [--seconds 60]

FILE is what `ikebana export` made of a recipe on EfficientNet-Lite0 (`quick`, `good`): the bare handler runs a network of that
shape in torch. FOLDER holds good photos. Two loads, each against both servers in turn: good photos alone, and the mix below.
The server and its clients share this machine's processors. Memory is RssAnon, read every half second.
"""

import argparse
import asyncio
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from machine import format_header

from ikebana.serving.limits import BYTES_PER_MEGABYTE, Limits

BARE = """
import io, sys, timm, torch, uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from torchvision import transforms

app = FastAPI()
network = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
prepare = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

@app.post("/predict")
async def predict(photo: UploadFile):
    image = Image.open(io.BytesIO(await photo.read())).convert("RGB")
    with torch.no_grad():
        return torch.softmax(network(prepare(image)[None]), 1)[0].tolist()

uvicorn.run(app, port=int(sys.argv[1]), log_level="critical")
"""
SHARES = {  # of the requests in the mixed load
    "good": 0.55, "form of four": 0.1, "awkward": 0.15, "random bytes": 0.06, "no HTTP": 0.02,
    "cut off": 0.05, "slow": 0.04, "oversized": 0.03,
}  # fmt: skip
PATIENCE = 90.0  # seconds after which an answer counts as none
NO_ANSWER = 0


@dataclass
class Tally:
    """What came back."""

    statuses: Counter = field(default_factory=Counter)  # (kind, status)
    seconds: list[float] = field(default_factory=list)  # of good photos that were answered

    @property
    def answered(self) -> int:
        """Requests that got what they asked for."""
        return sum(count for (_, status), count in self.statuses.items() if status == 200)


@dataclass
class Ammunition:
    """What is sent."""

    good: list[bytes]
    awkward: list[bytes]
    address: tuple[str, int]

    def one(self, dice: random.Random) -> bytes:
        return dice.choice(self.good)


def body(photos: list[bytes]) -> tuple[bytes, bytes]:
    """A form of these photos, and its content type."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n"
        for photo in photos
    ]
    return b"".join(parts) + b"--limit--\r\n", b"multipart/form-data; boundary=limit"


def head(length: int, kind: bytes) -> bytes:
    return (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        % (
            kind,
            length,
        )
    )


async def told(reader: asyncio.StreamReader) -> tuple[int, float]:
    """An answer's status, and the seconds after which to come again."""
    text = await asyncio.wait_for(reader.read(), PATIENCE)
    found = re.match(rb"HTTP/1\.1 (\d{3})", text)
    again = re.search(rb"(?i)retry-after: (\d+)", text)
    return int(found[1]) if found else NO_ANSWER, float(again[1]) if again else 0.0


Send = Callable[[asyncio.StreamWriter, Ammunition, random.Random], Awaitable[None]]


async def _form(writer: asyncio.StreamWriter, photos: list[bytes]) -> None:
    data, kind = body(photos)
    writer.write(head(len(data), kind) + data)
    await writer.drain()


async def _slow(writer: asyncio.StreamWriter, shot: Ammunition, dice: random.Random) -> None:
    """A phone in a tunnel: the photo comes in pieces over some seconds, and half of the time it stops."""
    data, kind = body([shot.one(dice)])
    writer.write(head(len(data), kind))
    pieces = 8
    for number in range(pieces if dice.random() < 0.5 else pieces // 2):
        writer.write(data[number * len(data) // pieces : (number + 1) * len(data) // pieces])
        await writer.drain()
        await asyncio.sleep(0.5)


async def _cut_off(writer: asyncio.StreamWriter, shot: Ammunition, dice: random.Random) -> None:
    data, kind = body([shot.one(dice)])
    writer.write(head(len(data), kind) + data[: len(data) // 2])
    await writer.drain()
    writer.close()


async def _oversized(writer: asyncio.StreamWriter, _: Ammunition, dice: random.Random) -> None:
    """More than the limit, half of the time without saying so beforehand."""
    if dice.random() < 0.5:
        writer.write(head(200 * BYTES_PER_MEGABYTE, b"image/jpeg") + b"x" * BYTES_PER_MEGABYTE)
        await writer.drain()
        return
    writer.write(
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    for _megabyte in range(Limits().megabytes + 8):
        writer.write(b"%x\r\n" % BYTES_PER_MEGABYTE + b"x" * BYTES_PER_MEGABYTE + b"\r\n")
        await writer.drain()


async def _noise(writer: asyncio.StreamWriter, _: Ammunition, dice: random.Random) -> None:
    writer.write(dice.randbytes(2_000) + b"\r\n\r\n")
    await writer.drain()


KINDS: dict[str, Send] = {
    "good": lambda writer, shot, dice: _form(writer, [shot.one(dice)]),
    "form of four": lambda writer, shot, dice: _form(writer, [shot.one(dice) for _ in range(4)]),
    "awkward": lambda writer, shot, dice: _form(writer, [dice.choice(shot.awkward)]),
    "random bytes": lambda writer, shot, dice: _form(writer, [dice.randbytes(20_000)]),
    "no HTTP": _noise,
    "cut off": _cut_off,
    "slow": _slow,
    "oversized": _oversized,
}


async def shoot(kind: str, shot: Ammunition, dice: random.Random, tally: Tally) -> None:
    """One request of this kind, counted."""
    start, again = time.perf_counter(), 0.0
    status = NO_ANSWER
    with suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection(*shot.address)
        try:
            with suppress(ConnectionError):  # refused while it sends: the reason may be there to be read
                await KINDS[kind](writer, shot, dice)
            if kind != "cut off":
                status, again = await told(reader)
        finally:
            writer.close()
    tally.statuses[kind, status] += 1
    if kind == "good" and status == 200:
        tally.seconds.append(time.perf_counter() - start)
    if status == 503 or (status == NO_ANSWER and kind == "good"):
        await asyncio.sleep(again or 0.1)


async def client(
    number: int, clients: int, shares: dict[str, float], shot: Ammunition, end: float, tally: Tally
) -> None:
    dice = random.Random(number)
    kinds, weights = list(shares), list(shares.values())
    if "awkward" in shares:  # together the clients send each of them at least once
        for file in shot.awkward[number::clients]:
            await shoot("awkward", replace(shot, awkward=[file]), dice, tally)
    while time.perf_counter() < end:
        await shoot(dice.choices(kinds, weights)[0], shot, dice, tally)


async def load(shares: dict[str, float], shot: Ammunition, clients: int, seconds: float, process: int) -> tuple:
    """All clients at once, and what memory the server had meanwhile."""
    tally, end, memory = Tally(), time.perf_counter() + seconds, [anonymous(process)]
    tasks = [asyncio.create_task(client(number, clients, shares, shot, end, tally)) for number in range(clients)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.5)
        memory.append(anonymous(process))
    await asyncio.gather(*tasks)
    return tally, memory


def anonymous(process: int) -> float:
    """Megabytes of RssAnon of a process."""
    text = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


@contextmanager
def served(command: list[str], port: int) -> Iterator[int]:
    """A server on this port, as soon as it listens; its process number."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 120
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"this server does not start: {command[:5]}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def report(name: str, tally: Tally, memory: list[float], seconds: float) -> None:
    requests = sum(tally.statuses.values())
    print(
        f"\n{name}: {requests / seconds:.1f} requests a second, {tally.answered / seconds:.1f} of them answered with 200"
    )
    if tally.seconds:
        cuts = statistics.quantiles(tally.seconds, n=100) if len(tally.seconds) > 1 else tally.seconds * 99
        print(f"  a good photo: p50 {cuts[49]:.3f} s, p99 {cuts[98]:.3f} s (n = {len(tally.seconds)})")
    third = max(len(memory) // 3, 1)
    middle, end = statistics.median(memory[third : 2 * third]), statistics.median(memory[2 * third :])
    print(
        f"  memory, MB: {memory[0]:.0f} at the start; median of the second third {middle:.0f}, of the last {end:.0f}; "
        f"at most {max(memory):.0f}"
    )
    broken = sum(count for (_, status), count in tally.statuses.items() if status >= 500 and status != 503)
    print(f"  answers of 5xx other than 503: {broken}")
    for kind in SHARES:
        found = {status or "none": count for (one, status), count in sorted(tally.statuses.items()) if one == kind}
        if found:
            print(f"  {kind}: " + ", ".join(f"{status} {count}" for status, count in found.items()))
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--awkward", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--port", type=int, default=8731)
    options = parser.parse_args()
    print(
        format_header("fastapi", "uvicorn", "onnxruntime", "torch", "pillow"),
        len(os.sched_getaffinity(0)),
        "of them allowed",
    )
    good = [each.read_bytes() for each in sorted(options.photos.rglob("*.jpg"))[::20]]
    awkward = [each.read_bytes() for each in sorted(options.awkward.iterdir())] if options.awkward else [b"no photo"]
    port = options.port
    servers = {
        "ikebana serve": [sys.executable, "-m", "ikebana", "serve", str(options.model), "--port", str(port)],
        "bare FastAPI and torch": [sys.executable, "-c", BARE, str(port)],
    }
    for load_name, shares in {"good photos alone": {"good": 1.0}, "the mix": SHARES}.items():
        for name, command in servers.items():
            with served(command, port) as process:
                shot = Ammunition(good, awkward, ("127.0.0.1", port))
                tally, memory = asyncio.run(load(shares, shot, options.clients, options.seconds, process))
                report(f"{name}, {load_name}", tally, memory, options.seconds)


if __name__ == "__main__":
    main()
