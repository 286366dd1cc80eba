"""How a notebook shows an audit: totals, and the findings by kind."""

from collections.abc import Sequence
from pathlib import Path

from ikebana.auditing.dataset_checks import describe
from ikebana.auditing.findings import Finding
from ikebana.data.dataset import SPLITS, Dataset
from ikebana.system.notebook_html import Markup, render_paragraph, render_table, render_view


def render_audit(dataset: Dataset, findings: Sequence[Finding], page: Path | None, *more: str) -> str:
    """Render the totals, the classes, and one row per kind of finding.

    Args:
        findings: the most severe first.
        page: the audit page, if one was written.
        more: further texts, such as the recommendation.
    """
    used, paths = dataset.used_photos, dataset.photos.height
    title = f"{used.height:,} of {paths:,} photos used, {len(dataset.classes):,} classes"
    details = f"all findings: {page}" if page is not None else "all findings: .findings"
    notes = [render_paragraph(note) for note in dataset.notes]
    return render_view(title, *notes, _render_splits(dataset), _render_findings(findings), *more, details)


def _render_splits(dataset: Dataset) -> Markup:
    counts = dataset.count_photos().values()
    return render_paragraph(
        ", ".join(f"{sum(of_class[split] for of_class in counts):,} {split}" for split in SPLITS) + " photos",
        is_quiet=True,
    )


def _render_findings(findings: Sequence[Finding]) -> Markup:
    if not findings:
        return render_paragraph("no problems found")
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.severity, finding.kind), []).append(finding)
    rows = [
        (kind.replace("_", " "), severity, len(of_kind), describe(of_kind[0]), of_kind[0].advice)
        for (severity, kind), of_kind in kinds.items()
    ]
    return render_table(("finding", "severity", "number", "the first one", "what to do"), rows)
