"""The nearest training photos of a run."""

from ikebana.errors import RunError
from ikebana.inference.neighbours import NeighbourIndex
from ikebana.runs.run import DAMAGED_ADVICE, Run

NO_NEIGHBOURS_MESSAGE = (
    "the nearest training photos of this run are not known: it had too few calibration photos, or an older version of "
    "ikebana wrote it"
)
ADVICE = "train again with more photos: ikebana fit PHOTOS"


def load(run: Run) -> NeighbourIndex | None:
    """Load the training photos that a run compares others with; None if it has none.

    Raises:
        RunError: its files are damaged.
    """
    model, photos = run.familiarity, run.reference_photos
    if model is None or photos is None:
        return None
    if photos.height != len(model.references):
        what = f"references.parquet has {photos.height} photos instead of {len(model.references)}"
        raise RunError(f"{what}: it is damaged", where=run.folder, advice=DAMAGED_ADVICE)
    return NeighbourIndex(tuple(photos["path"]), tuple(photos["label"]), model.projection, model.references)
