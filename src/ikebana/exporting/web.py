"""Export of a run to a web folder: page, model file and onnxruntime's WebAssembly build.

Any file server works without settings: the network runs on one thread, which needs no special
headers. Photos stay in the browser.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ikebana.errors import MachineError
from ikebana.inference import page_files
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_directory, discard

# MIT licence.
RUNTIME_PACKAGE = "onnxruntime-web"
RUNTIME_VERSION = "1.30.0"
# All files that the WebAssembly backend needs.
RUNTIME_SCRIPT, RUNTIME_WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
# Subresource integrity of these files in the npm package; browsers check it too.
RUNTIME_INTEGRITY = {
    RUNTIME_SCRIPT: "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    RUNTIME_WASM: "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
}
# Where browsers load the runtime from if it cannot be copied into the folder.
RUNTIME_CDN_URL = f"https://cdn.jsdelivr.net/npm/{RUNTIME_PACKAGE}@{RUNTIME_VERSION}/dist/"
NPM_TIMEOUT_SECONDS = 180
# Errors of npm, of a damaged package, and of a cache that cannot be written.
FETCH_ERRORS = (OSError, subprocess.SubprocessError, tarfile.TarError, KeyError, ValueError, MachineError)
# The only difference between the served page and the exported one.
ENGINE_SCRIPTS = {"engine-server.js": "engine-browser.js"}
CHARSET_TAG = '<meta charset="utf-8">'
# The server's policy without frame-ancestors, which a page cannot set for itself. The worker may
# compile WebAssembly.
CONTENT_SECURITY_POLICY = (
    "; ".join(rule for rule in page_files.CONTENT_SECURITY_POLICY.split("; ") if not rule.startswith("frame-ancestors"))
    + "; worker-src 'self'"
)


def build_index() -> str:
    """Adapt the server's page: the engine, the content security policy, a notice for file:// URLs.

    The file server's headers are unknown, so they cannot carry the policy.
    """
    text = page_files.read("index.html").decode()
    for server_script, browser_script in ENGINE_SCRIPTS.items():
        text = text.replace(server_script, browser_script)
    # Not a module: browsers load no modules from file:// URLs.
    text = text.replace("</head>", '<script src="file-notice.js" defer></script>\n</head>')
    policy_tag = f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'
    return text.replace(CHARSET_TAG, f"{CHARSET_TAG}\n{policy_tag}")


def add_runtime(folder: Path) -> dict[str, Any]:
    """Copy onnxruntime into the folder, or refer to a CDN whose bytes browsers verify."""
    cached, place = fetch_runtime(), RUNTIME_CDN_URL
    if cached is None:
        progress.message(
            f"{RUNTIME_PACKAGE} {RUNTIME_VERSION} could not be downloaded with npm: the page will load it from "
            f"{RUNTIME_CDN_URL.split('/')[2]}. Photos still stay in the browser."
        )
    else:
        place = "onnxruntime/"
        shutil.copytree(cached, folder / place)
    return {
        "place": place,
        "script": RUNTIME_SCRIPT,
        "wasm": RUNTIME_WASM,
        "integrity": RUNTIME_INTEGRITY,
        "version": RUNTIME_VERSION,
    }


def fetch_runtime() -> Path | None:
    """Return the cached onnxruntime files, fetched by npm if missing; None if unavailable."""
    cached = cache_folder() / RUNTIME_PACKAGE / RUNTIME_VERSION
    if _are_intact(cached):
        return cached
    npm = shutil.which("npm")
    if npm is None:
        return None
    progress.message(f"downloading {RUNTIME_PACKAGE} {RUNTIME_VERSION} with npm")
    try:
        with tempfile.TemporaryDirectory() as scratch:
            # The destination is explicit, since a user's own .npmrc may name another one.
            command = [npm, "pack", "--silent", "--pack-destination", ".", f"{RUNTIME_PACKAGE}@{RUNTIME_VERSION}"]
            subprocess.run(command, cwd=scratch, capture_output=True, check=True, timeout=NPM_TIMEOUT_SECONDS)
            packages = list(Path(scratch).glob("*.tgz"))
            if len(packages) != 1:
                raise ValueError(f"npm pack wrote {len(packages)} packages instead of 1")
            _add_to_cache(packages[0], cached)
    except FETCH_ERRORS as error:
        progress.warn(f"{RUNTIME_PACKAGE} could not be downloaded: {error}")
    return cached if _are_intact(cached) else None


def _add_to_cache(package: Path, cached: Path) -> None:
    """Unpack the package into the cache, unless another process has done so meanwhile."""
    if not _are_intact(cached):
        discard(cached)
        with atomic_directory(cached) as partial_folder:
            _unpack(package, partial_folder)


def _are_intact(folder: Path) -> bool:
    return all(_is_intact(folder / name) for name in RUNTIME_INTEGRITY)


def _unpack(package: Path, folder: Path) -> None:
    with tarfile.open(package) as archive:
        for name in RUNTIME_INTEGRITY:
            member = archive.extractfile(f"package/dist/{name}")
            if member is not None:
                (folder / name).write_bytes(member.read())


def _is_intact(file: Path) -> bool:
    """Return whether the file has the expected checksum."""
    if not file.is_file():
        return False
    digest = base64.b64encode(hashlib.sha384(file.read_bytes()).digest()).decode()
    return RUNTIME_INTEGRITY[file.name] == f"sha384-{digest}"
