"""What runs on the nodes of a cluster for `ikebana sweep`."""

import time
from collections.abc import Mapping
from pathlib import Path
from socket import gethostname

from ikebana.cluster import jobs
from ikebana.data.sources import PhotoSource
from ikebana.errors import IkebanaError, MachineError
from ikebana.recipe import Recipe


def train(
    versions: Mapping[str, str], photos: PhotoSource, recipe: Recipe, place: str, device: str
) -> tuple[IkebanaError | None, float]:
    """Train a run or continue it; return the error, if it fails, and the seconds."""
    started = time.monotonic()
    error = _train(versions, photos, recipe, place, device)
    return error, time.monotonic() - started


def _train(
    versions: Mapping[str, str], photos: PhotoSource, recipe: Recipe, place: str, device: str
) -> IkebanaError | None:
    # Loading torch and timm takes seconds, in which the versions are compared.
    differences = jobs.compare_versions(versions, jobs.describe_all_versions())
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
