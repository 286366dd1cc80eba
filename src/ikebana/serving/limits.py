"""Limits of the server, each with its reason, and the errors that refuse a request."""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ikebana.errors import RecipeError

BYTES_PER_MEGABYTE = 2**20


def limit_field(default: float, explanation: str) -> Any:
    """Make a dataclass field with the explanation that `--help` shows."""
    return field(default=default, metadata={"explanation": explanation})


@dataclass(frozen=True)
class Limits:
    """How much of the machine clients may use.

    The defaults accept the largest photos of phones. They bound memory whatever clients send.
    """

    megabytes: int = limit_field(64, "maximum size of one request in MB")
    files: int = limit_field(32, "maximum number of photos per request")
    megapixels: int = limit_field(64, "maximum size of one photo in megapixels, from its header")
    waiting: int = limit_field(
        128, "maximum number of accepted, unanswered photos; beyond it status 503 with Retry-After"
    )
    held_megabytes: int = limit_field(512, "maximum memory for all current uploads in MB; beyond it status 503")
    connections: int = limit_field(512, "maximum number of open connections; beyond it status 503")
    silence_seconds: float = limit_field(10, "seconds without data after which an upload or a request line times out")
    upload_seconds: float = limit_field(60, "maximum seconds per upload")
    answer_seconds: float = limit_field(60, "maximum seconds from the end of an upload to its response")
    grace_seconds: float = limit_field(25, "seconds to finish accepted requests after a signal to stop")

    def __post_init__(self) -> None:
        for limit in fields(self):
            value, minimum = getattr(self, limit.name), 0 if limit.name == "grace_seconds" else 1e-3
            if not minimum <= value < math.inf:  # also refuses NaN
                flag = f"--{limit.name.replace('_', '-')}"
                what = f"{flag} is {value:g}; it must be {'at least' if minimum == 0 else 'above'} 0"
                raise RecipeError(what, advice=f"{flag} {limit.default:g}: {limit.metadata['explanation']}")


class Refusal(Exception):
    """An error response with status 4xx or 503: what is wrong, and what to try.

    Args:
        retry_after: seconds for the `Retry-After` header.
        headers: further headers of the response.
    """

    def __init__(
        self,
        status: int,
        what: str,
        advice: str = "",
        *,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(what)
        self.status, self.what, self.advice = status, what, advice
        self.headers = {**(headers or {}), **({"Retry-After": str(retry_after)} if retry_after is not None else {})}


class ClientDisconnected(Exception):
    """The client has disconnected, so a response cannot reach it."""
