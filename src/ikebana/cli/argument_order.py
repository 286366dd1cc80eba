"""Arguments that were given in the wrong order."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from ikebana.data.output_folders import is_run
from ikebana.errors import UsageError

# Photos that the corrected command names; a pattern may stand for thousands.
MAX_NAMED_PHOTOS = 3


def refuse_photos_first(command: str, model: Path, photos: Sequence[str]) -> None:
    """Raise UsageError with the corrected command if a model follows the photos.

    Args:
        command: its name, such as `predict`.
        model: the first argument, which may be a photo or a folder of photos.
        photos: the other arguments, one of which may be the model.
    """
    if _may_be_model(model):
        return
    models = [photo for photo in photos if _may_be_model(Path(photo))]
    if not models:
        return
    given = [str(model), *(photo for photo in photos if photo not in models)]
    more = " …" if len(given) > MAX_NAMED_PHOTOS else ""
    corrected = shlex.join(["ikebana", command, models[0], *given[:MAX_NAMED_PHOTOS]])
    raise UsageError("the model comes first, then the photos", where=model, advice=corrected + more)


def refuse_file_first(file: Path, run: Path) -> None:
    """Raise UsageError with the corrected command if `export` was given its run last."""
    if not is_run(file) and is_run(run):
        corrected = shlex.join(["ikebana", "export", str(run), str(file)])
        raise UsageError("the run comes first, then the file to write", where=file, advice=corrected)


def _may_be_model(path: Path) -> bool:
    return path.suffix.lower() == ".onnx" or is_run(path)
