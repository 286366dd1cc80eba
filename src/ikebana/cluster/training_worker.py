"""What runs on the nodes of a cluster for `ikebana sweep`."""

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from socket import gethostname

from ikebana.cluster import worker
from ikebana.data.sources import PhotoSource
from ikebana.errors import IkebanaError, MachineError, get_first_line
from ikebana.recipe import Recipe
from ikebana.system.files import atomic_write
from ikebana.system.versions import find_versions

# In the folder of the runs while nodes are checked.
MARK_FILE = ".nodes-check"
LIBRARIES = ("torch", "timm", "numpy", "pillow")


def describe_versions() -> dict[str, str]:
    """Describe what must be equal on all nodes."""
    return {
        **worker.describe_versions(),
        **{name: str(installed) for name, installed in find_versions(LIBRARIES).items()},
    }


def inspect(versions: Mapping[str, str], photos: PhotoSource, folder: str) -> list[str]:
    """Describe why this node cannot train the runs; an empty list if it can."""
    problems = worker.compare_versions(versions, describe_versions())
    if isinstance(photos, str) and not os.path.exists(photos):
        problems.append(f"{photos} does not exist")
    if not (Path(folder) / MARK_FILE).exists():
        return [*problems, f"{folder} is not the folder of the driver"]
    try:
        trial = Path(folder) / f".trial-{secrets.token_hex(4)}"
        with atomic_write(trial, create_parent=False) as partial_file:
            partial_file.write_bytes(b"trial")
        with suppress(OSError):
            trial.unlink()
    except IkebanaError as error:
        problems.append(f"{folder} cannot be used: {get_first_line(error)}")
    return problems


def train(
    versions: Mapping[str, str], photos: PhotoSource, recipe: Recipe, place: str, device: str
) -> IkebanaError | None:
    """Train a run or continue it; return the error if it fails."""
    # Loading torch and timm takes seconds, in which the versions are compared.
    differences = worker.compare_versions(versions, describe_versions())
    if differences:
        return MachineError(
            f"{', '.join(differences)} (on node {gethostname()})", advice="the same versions on all nodes"
        )
    from ikebana.commands.run_series import fit_or_resume

    try:
        fit_or_resume(photos, recipe, Path(place), device=device)
    except IkebanaError as error:
        return error
    return None
