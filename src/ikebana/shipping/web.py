"""Run → a folder that classifies in a browser: the page, the model file, and onnxruntime's WebAssembly build.

Any server of files will do, without settings: the network runs on one thread, which needs no special headers. Photos stay in
the browser.
"""

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ikebana import progress
from ikebana.errors import MachineError, ModelError
from ikebana.places import cache_folder, filled, set_aside, to_write
from ikebana.run import Run
from ikebana.shipping import pages
from ikebana.shipping.classifier import Classifier
from ikebana.shipping.export import export

RUNTIME = "onnxruntime-web"  # MIT
VERSION = "1.30.0"
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"  # all of it that WebAssembly needs
INTEGRITY = {  # of that version, as the npm package has them; browsers check them too
    SCRIPT: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
ELSEWHERE = f"https://cdn.jsdelivr.net/npm/{RUNTIME}@{VERSION}/dist/"  # where browsers get it if it cannot be copied in
SECONDS = 180  # that npm may take
# What may go wrong on the way: npm or its package is not as it should be, or the cache cannot be written to.
UNAVAILABLE = (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError, ValueError, MachineError)
ENGINE = {"engine-server.js": "engine-browser.js"}  # the one word in which the two pages differ
HEAD = '<meta charset="utf-8">'
# As the server's policy, less what a page itself cannot say; the worker has the browser's own freedom to compile WebAssembly.
POLICY = (
    "; ".join(rule for rule in pages.POLICY.split("; ") if not rule.startswith("frame-ancestors"))
    + "; worker-src 'self'"
)


def export_web(
    run: Run | str | Path, folder: str | Path, *, int8: bool = False, photos: str | Path | None = None
) -> Classifier:
    """A folder that classifies photos in whoever's browser opens it, with nothing sent anywhere. It holds what `export` makes.

    folder  appears by rename when all is there
    int8    as for `export`: a quarter of the size to load
    photos  where the run's photos are, if they have moved
    raises  ModelError if the folder is taken, or for what `export` refuses; RunError, PhotosError as `export` does
    """
    place = to_write(folder, appears=True)
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ModelError("this place is taken", where=folder, advice="a folder that is not there yet")
    with filled(place, shared=False) as beside:
        shipped = export(run, beside / "model.onnx", int8=int8, photos=photos)
        runtime = _runtime(beside)
        about = asdict(pages.facts(shipped)) | {"side": shipped.side, "runtime": runtime}
        (beside / "model.json").write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")
        for name in (*pages.COMMON, *pages.ALONE):
            (beside / name).write_bytes(pages.read(name))
        (beside / "index.html").write_text(_index(), "utf-8")
    progress.say(f"{place}: open it with any web server, say  python3 -m http.server --directory {place} 8080")
    return shipped


def _index() -> str:
    """The server's page with the other engine, and the policy in the page, since nobody knows the host's headers."""
    text = pages.read("index.html").decode()
    for served, alone in ENGINE.items():
        text = text.replace(served, alone)
    reason = "If this stays: browsers run such a page from a web server, not from a file."
    text = text.replace("If this stays, the page's scripts could not be loaded.", reason)
    return text.replace(HEAD, f'{HEAD}\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">')


def _runtime(folder: Path) -> dict[str, Any]:
    """Where the page finds onnxruntime: copied into the folder, or else on a public server, whose bytes browsers check."""
    found, place = kept_runtime(), ELSEWHERE
    if found is None:
        progress.say(
            f"npm cannot give {RUNTIME} {VERSION} now, so the page will load it from {ELSEWHERE.split('/')[2]}; photos stay"
        )
    else:
        place = "onnxruntime/"
        shutil.copytree(found, folder / place)
    return {"place": place, "script": SCRIPT, "wasm": WASM, "integrity": INTEGRITY, "version": VERSION}


def kept_runtime() -> Path | None:
    """The folder of the cache with onnxruntime's two files, fetched by npm if they are not there; None if they cannot be had."""
    kept = cache_folder() / RUNTIME / VERSION
    if _all_whole(kept):
        return kept
    npm = shutil.which("npm")
    if npm is None:
        return None
    progress.say(f"fetch {RUNTIME} {VERSION} with npm")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            # Said here, since a user's own .npmrc may name another place.
            command = [npm, "pack", "--silent", "--pack-destination", ".", f"{RUNTIME}@{VERSION}"]
            subprocess.run(command, cwd=scratch, capture_output=True, check=True, timeout=SECONDS)
            packages = list(Path(scratch).glob("*.tgz"))
            if len(packages) != 1:
                raise ValueError(f"npm pack made {len(packages)} packages")
            _keep(packages[0], kept)
    except UNAVAILABLE as error:
        progress.say(f"{RUNTIME} could not be had: {error}")
    return kept if _all_whole(kept) else None


def _keep(package: Path, kept: Path) -> None:
    """The package's files in the cache, unless another process has put them there meanwhile."""
    if not _all_whole(kept):
        set_aside(kept)
        with filled(kept) as beside:
            _unpack(package, beside)


def _all_whole(folder: Path) -> bool:
    return all(_is_whole(folder / name) for name in INTEGRITY)


def _unpack(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        for name in INTEGRITY:
            member = archive.extractfile(f"package/dist/{name}")
            if member is not None:
                (folder / name).write_bytes(member.read())


def _is_whole(file: Path) -> bool:
    """Whether it is that file, to the bit."""
    if not file.is_file():
        return False
    digest = base64.b64encode(hashlib.sha384(file.read_bytes()).digest()).decode()
    return INTEGRITY[file.name] == f"sha384-{digest}"
