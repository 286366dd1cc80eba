"""Everything ikebana refuses, and what to do instead.

IkebanaError             what is wrong, where, and what to try
├── PhotosError          the photos cannot be used as they are
│   └── UnreadablePhoto  one photo cannot be used; intake sets it aside and goes on
├── RecipeError          a choice that cannot be carried out
│   └── UsageError       a command that says too little, or two different things
├── RunError             a run's folder is missing, damaged, taken, or made from other photos
├── ModelError           a model file is damaged, foreign or too new, or would not say what its run says
└── MachineError         disk or memory falls short
"""

from pathlib import Path


class IkebanaError(Exception):
    """A refusal that a person can act upon: what is wrong, where, and what to try."""

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
    """One photo cannot be used; intake sets it aside with this reason and goes on."""


class RecipeError(IkebanaError):
    """A choice that cannot be carried out."""


class UsageError(RecipeError):
    """A command that says too little, or two different things."""


class RunError(IkebanaError):
    """A run's folder is missing, damaged, taken, or made from other photos."""


class ModelError(IkebanaError):
    """A model file is damaged, foreign or too new, or would not say what its run says."""


class MachineError(IkebanaError):
    """Disk or memory falls short."""
