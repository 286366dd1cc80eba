"""What the server takes and what it refuses: every bound in one place, each with its reason."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ikebana.errors import RecipeError

MEGA = 2**20  # bytes


def bound(default: float, explanation: str) -> Any:
    """A limit, with the sentence that the command line and the docs show for it."""
    return field(default=default, metadata={"explanation": explanation})


@dataclass(frozen=True)
class Limits:
    """How much of the machine others may use. A phone's largest photos pass; memory stays flat whatever comes."""

    megabytes: int = bound(64, "of one request")
    files: int = bound(32, "photos in one request")
    megapixels: int = bound(64, "of one photo, as its header declares them")
    waiting: int = bound(128, "photos that are accepted and not answered yet; beyond it 503, and when to come again")
    held_megabytes: int = bound(512, "of all uploads that are in memory at a time; beyond it 503")
    connections: int = bound(512, "open at a time; beyond it 503")
    silence_seconds: float = bound(10, "without a byte, after which an upload or a request line is given up")
    upload_seconds: float = bound(60, "that one upload may take")
    answer_seconds: float = bound(60, "from the last byte of an upload to its answer")
    grace_seconds: float = bound(25, "to finish what was accepted when the server is told to stop")

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), 0 if each.name == "grace_seconds" else 1e-3
            if not least <= value < math.inf:  # neither is NaN
                flag = f"--{each.name.replace('_', '-')}"
                what = f"{flag} is {value:g}; it must be {'at least' if least == 0 else 'above'} 0"
                raise RecipeError(what, advice=f"{flag} {each.default:g}: {each.metadata['explanation']}")


class Refusal(Exception):
    """A request that is answered with 4xx, or with 503 and the time to come again: what is wrong, and what to try."""

    def __init__(
        self, status: int, what: str, advice: str = "", *, again: int | None = None, kind: dict[str, str] | None = None
    ):
        super().__init__(what)
        self.status, self.what, self.advice = status, what, advice
        self.headers = {**(kind or {}), **({"Retry-After": str(again)} if again is not None else {})}


class Gone(Exception):
    """Whoever sent the request has hung up: nobody is there to be answered."""
