"""Compare `ikebana serve` under load with a simple FastAPI server.

    python bench/serve_load.py --model flowers.onnx --photos FOLDER [--awkward FOLDER] [--clients 64] [--seconds 60]

FILE is what `ikebana export` made of a recipe on EfficientNet-Lite0 (`quick`, `good`): the bare
handler runs a network of that architecture in torch. FOLDER holds good photos. Each server runs
under two loads: good photos alone, and the mix of valid and invalid requests in MIXED_LOAD. The
server and its clients share this machine's processors. Memory is RssAnon, read every half second.
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

BARE_SERVER = """
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
# Fraction of the requests in the mixed load.
MIXED_LOAD = {
    "good": 0.55, "form of four": 0.1, "awkward": 0.15, "random bytes": 0.06, "no HTTP": 0.02,
    "cut off": 0.05, "slow": 0.04, "oversized": 0.03,
}  # fmt: skip
TIMEOUT_SECONDS = 90.0
NO_ANSWER = 0


@dataclass
class Tally:
    """Statuses of the requests, and latencies of good photos that were answered.

    `statuses` counts (kind, status).
    """

    statuses: Counter = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Count the requests answered with 200."""
        return sum(count for (_, status), count in self.statuses.items() if status == 200)


@dataclass
class Requests:
    """The photos to send, and the address of the server."""

    good: list[bytes]
    awkward: list[bytes]
    address: tuple[str, int]

    def choose_good(self, rng: random.Random) -> bytes:
        return rng.choice(self.good)


def encode_form(photos: list[bytes]) -> tuple[bytes, bytes]:
    """Encode photos as a form, and return it with its content type."""
    parts = [
        b'--limit\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n"
        for photo in photos
    ]
    return b"".join(parts) + b"--limit--\r\n", b"multipart/form-data; boundary=limit"


def format_request_head(length: int, kind: bytes) -> bytes:
    return (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        % (
            kind,
            length,
        )
    )


async def read_response(reader: asyncio.StreamReader) -> tuple[int, float]:
    """Read the status of a response, and the seconds of its Retry-After header."""
    text = await asyncio.wait_for(reader.read(), TIMEOUT_SECONDS)
    match = re.match(rb"HTTP/1\.1 (\d{3})", text)
    retry_after = re.search(rb"(?i)retry-after: (\d+)", text)
    return int(match[1]) if match else NO_ANSWER, float(retry_after[1]) if retry_after else 0.0


Send = Callable[[asyncio.StreamWriter, Requests, random.Random], Awaitable[None]]


async def _form(writer: asyncio.StreamWriter, photos: list[bytes]) -> None:
    data, kind = encode_form(photos)
    writer.write(format_request_head(len(data), kind) + data)
    await writer.drain()


async def _slow(writer: asyncio.StreamWriter, requests: Requests, rng: random.Random) -> None:
    """Send a photo slowly over some seconds, and stop halfway in half of the cases."""
    data, kind = encode_form([requests.choose_good(rng)])
    writer.write(format_request_head(len(data), kind))
    pieces = 8
    for number in range(pieces if rng.random() < 0.5 else pieces // 2):
        writer.write(data[number * len(data) // pieces : (number + 1) * len(data) // pieces])
        await writer.drain()
        await asyncio.sleep(0.5)


async def _cut_off(writer: asyncio.StreamWriter, requests: Requests, rng: random.Random) -> None:
    data, kind = encode_form([requests.choose_good(rng)])
    writer.write(format_request_head(len(data), kind) + data[: len(data) // 2])
    await writer.drain()
    writer.close()


async def _oversized(writer: asyncio.StreamWriter, _: Requests, rng: random.Random) -> None:
    """Send more than the limit, half of the time without a Content-Length."""
    if rng.random() < 0.5:
        writer.write(format_request_head(200 * BYTES_PER_MEGABYTE, b"image/jpeg") + b"x" * BYTES_PER_MEGABYTE)
        await writer.drain()
        return
    writer.write(
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    for _megabyte in range(Limits().megabytes + 8):
        writer.write(b"%x\r\n" % BYTES_PER_MEGABYTE + b"x" * BYTES_PER_MEGABYTE + b"\r\n")
        await writer.drain()


async def _noise(writer: asyncio.StreamWriter, _: Requests, rng: random.Random) -> None:
    writer.write(rng.randbytes(2_000) + b"\r\n\r\n")
    await writer.drain()


SENDERS: dict[str, Send] = {
    "good": lambda writer, requests, rng: _form(writer, [requests.choose_good(rng)]),
    "form of four": lambda writer, requests, rng: _form(writer, [requests.choose_good(rng) for _ in range(4)]),
    "awkward": lambda writer, requests, rng: _form(writer, [rng.choice(requests.awkward)]),
    "random bytes": lambda writer, requests, rng: _form(writer, [rng.randbytes(20_000)]),
    "no HTTP": _noise,
    "cut off": _cut_off,
    "slow": _slow,
    "oversized": _oversized,
}


async def send_request(kind: str, requests: Requests, rng: random.Random, tally: Tally) -> None:
    """Send one request of this kind, and count its status."""
    start, retry_after = time.perf_counter(), 0.0
    status = NO_ANSWER
    with suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection(*requests.address)
        try:
            # The server may refuse a request while it is sent; its response can still be read.
            with suppress(ConnectionError):
                await SENDERS[kind](writer, requests, rng)
            if kind != "cut off":
                status, retry_after = await read_response(reader)
        finally:
            writer.close()
    tally.statuses[kind, status] += 1
    if kind == "good" and status == 200:
        tally.seconds.append(time.perf_counter() - start)
    if status == 503 or (status == NO_ANSWER and kind == "good"):
        await asyncio.sleep(retry_after or 0.1)


async def run_client(
    number: int, clients: int, shares: dict[str, float], requests: Requests, end: float, tally: Tally
) -> None:
    rng = random.Random(number)
    kinds, weights = list(shares), list(shares.values())
    # Together the clients send every awkward file at least once.
    if "awkward" in shares:
        for file in requests.awkward[number::clients]:
            await send_request("awkward", replace(requests, awkward=[file]), rng, tally)
    while time.perf_counter() < end:
        await send_request(rng.choices(kinds, weights)[0], requests, rng, tally)


async def run_load(shares: dict[str, float], requests: Requests, clients: int, seconds: float, process: int) -> tuple:
    """Run all clients at once, and sample the memory of the server."""
    tally, end, memory = Tally(), time.perf_counter() + seconds, [read_anonymous_megabytes(process)]
    tasks = [
        asyncio.create_task(run_client(number, clients, shares, requests, end, tally)) for number in range(clients)
    ]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.5)
        memory.append(read_anonymous_megabytes(process))
    await asyncio.gather(*tasks)
    return tally, memory


def read_anonymous_megabytes(process: int) -> float:
    """Read the anonymous memory of a process in megabytes."""
    text = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"RssAnon:\s+(\d+) kB", text)
    return int(match[1]) / 1024 if match else 0.0


@contextmanager
def run_server(command: list[str], port: int) -> Iterator[int]:
    """Start a server, wait until it listens on the port, and yield its PID."""
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
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def report(name: str, tally: Tally, memory: list[float], seconds: float) -> None:
    requests = sum(tally.statuses.values())
    print(
        f"\n{name}: {requests / seconds:.1f} requests per second, {tally.answered / seconds:.1f} of them answered with 200"
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
    for kind in MIXED_LOAD:
        counts = {
            status or "none": count
            for (choose_good, status), count in sorted(tally.statuses.items())
            if choose_good == kind
        }
        if counts:
            print(f"  {kind}: " + ", ".join(f"{status} {count}" for status, count in counts.items()))
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
    good = [file.read_bytes() for file in sorted(options.photos.rglob("*.jpg"))[::20]]
    awkward = [file.read_bytes() for file in sorted(options.awkward.iterdir())] if options.awkward else [b"no photo"]
    port = options.port
    servers = {
        "ikebana serve": [sys.executable, "-m", "ikebana", "serve", str(options.model), "--port", str(port)],
        "bare FastAPI and torch": [sys.executable, "-c", BARE_SERVER, str(port)],
    }
    for load_name, shares in {"good photos alone": {"good": 1.0}, "the mix": MIXED_LOAD}.items():
        for name, command in servers.items():
            with run_server(command, port) as process:
                requests = Requests(good, awkward, ("127.0.0.1", port))
                tally, memory = asyncio.run(run_load(shares, requests, options.clients, options.seconds, process))
                report(f"{name}, {load_name}", tally, memory, options.seconds)


if __name__ == "__main__":
    main()
