"""Errors for users: what happened, where, and what to try.

IkebanaError             the base class
├── PhotosError          the photos cannot be used as they are
│   ├── UnreadablePhoto  one photo cannot be used; it is reported and skipped
│   │   └── UnavailablePhoto  it cannot be read now, but may be readable later
│   └── IncompleteShard  a shard of predictions has photos that cannot be read now
├── RecipeError          an option is invalid
│   └── UsageError       a command is incomplete or contradictory
├── RunError             a run folder is missing, damaged, locked, not empty, or its photos changed
├── ModelError           a model file is damaged, foreign, too new, or differs from its run
└── MachineError         too little disk space or memory, or a file or port is unusable
    └── PeerError        another process of the same training has failed
"""

from pathlib import Path


class IkebanaError(Exception):
    """An error that the user can act on.

    Args:
        what: what happened, with the value.
        where: the file, folder or photo.
        advice: what to try.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, advice: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = where
        self.advice = advice

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  in   {self.where}")
        if self.advice is not None:
            lines.append(f"  try  {self.advice}")
        return "\n".join(lines)


class PhotosError(IkebanaError):
    """The photos cannot be used as they are."""


class UnreadablePhoto(PhotosError):
    """One photo cannot be used; it is reported with this reason and skipped."""


class UnavailablePhoto(UnreadablePhoto):
    """One photo cannot be read now: its store or its disk fails, or denies access.

    Attributes:
        is_denied: whether the credentials are missing, wrong or lack the permission.
    """

    is_denied = False


class IncompleteShard(PhotosError):
    """A shard of predictions is not written, because photos of it cannot be read now.

    Attributes:
        number: of the shard.
        photos: how many cannot be read, at least.
        reason: of the first of them.
    """

    number = -1
    photos = 0
    reason = ""


class RecipeError(IkebanaError):
    """An option is invalid."""


class UsageError(RecipeError):
    """A command is incomplete or contradictory."""


class RunError(IkebanaError):
    """A run folder is missing, damaged, locked, not empty, or its photos have changed."""


class ModelError(IkebanaError):
    """A model file is damaged, foreign, too new, or predicts differently from its run."""


class MachineError(IkebanaError):
    """Too little disk space or memory, or a file or port is unusable."""


class PeerError(MachineError):
    """Another process of the same training has failed or ended.

    Args:
        is_reported: whether other processes report it already.
    """

    def __init__(self, what: str, *, advice: str, is_reported: bool = False):
        super().__init__(what, advice=advice)
        self.is_reported = is_reported


def advise_extra(extra: str) -> str:
    """Return the command that installs an optional part of ikebana."""
    return f"pip install -c requirements.lock '.[{extra}]' in ikebana's folder"


def get_first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
