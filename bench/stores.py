"""Seconds to list and to read photos in a folder, a bucket, shards and Parquet.

    python bench/stores.py --photos 20000 --delay-ms 20

The bucket is moto's server on this machine, which answers each request after a delay, as a real
store does. Its speed is that of this machine's processors, so only the other columns compare.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.images import encode_photo  # pyright: ignore[reportMissingImports]
from support.stores import CREDENTIALS, pack_shard, put_files, serve_s3, write_parquet  # pyright: ignore[reportMissingImports]

from ikebana.data import unlabelled
from ikebana.data.read_ahead import read_ahead

SHARD_PHOTOS = 1000
CLASSES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--delay-ms", type=float, default=20, help="of each answer of the bucket")
    options = parser.parse_args()
    print(f"{'source':30} {'list s':>8} {'read s':>8} {'photos/s':>9} {'requests':>9}")
    with tempfile.TemporaryDirectory() as folder, serve_s3() as (endpoint, faults):
        os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=endpoint)
        sources = _write(Path(folder), options.photos, endpoint)
        faults.delay_seconds = options.delay_ms / 1000
        for name, source in sources.items():
            faults.requests.clear()
            _measure(name, source, lambda: len(faults.requests))


def _write(folder: Path, count: int, endpoint: str) -> dict[str, str]:
    """Write the photos in all forms; returns the source per name."""
    variants = [encode_photo(seed) for seed in range(50)]
    files = {f"{number % CLASSES}/{number:07}.jpg": variants[number % 50] for number in range(count)}
    stored = {f"photos/{path}": data for path, data in files.items()}
    for path, data in files.items():
        (folder / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / path).write_bytes(data)
    rows = list(files.items())
    for number, start in enumerate(range(0, count, SHARD_PHOTOS)):
        shard = pack_shard(rows[start : start + SHARD_PHOTOS])
        (folder / f"part-{number:04}.tar").write_bytes(shard)
        stored[f"part-{number:04}.tar"] = shard
    write_parquet(folder / "photos.parquet", files, 100)
    stored["photos.parquet"] = (folder / "photos.parquet").read_bytes()
    put_files(endpoint, "bench", stored)
    places = {"folder": str(folder), "bucket": "s3://bench"}
    names = {"photos": "photos", "tar shards": "part-*.tar", "Parquet": "photos.parquet"}
    return {f"{place}, {name}": f"{root}/{path}" for place, root in places.items() for name, path in names.items()}


def _measure(name: str, source: str, count_requests: Callable[[], int]) -> None:
    started = time.perf_counter()
    photos = list(unlabelled.find_photos(source))
    listed = time.perf_counter()
    total = sum(len(read()) for _, read in read_ahead(photos, unlabelled.read_photo, unlabelled.is_in_store))
    seconds = time.perf_counter() - listed
    assert total > 0
    print(f"{name:30} {listed - started:8.2f} {seconds:8.2f} {len(photos) / seconds:9.0f} {count_requests():9}")


if __name__ == "__main__":
    main()
