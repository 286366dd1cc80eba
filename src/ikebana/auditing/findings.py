"""Findings: what a check of a photo collection reports."""

from dataclasses import dataclass
from typing import Literal, get_args

Severity = Literal["error", "warning", "note"]
# Most severe first.
SEVERITIES = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """One problem, its evidence and what to do about it.

    Attributes:
        suggested_label: the class that the photo probably shows, if its label is suspect.
        confidence: the confidence in that label, 0 to 1.
    """

    kind: str
    severity: Severity
    paths: tuple[str, ...]
    evidence: str
    advice: str
    suggested_label: str | None = None
    confidence: float | None = None
