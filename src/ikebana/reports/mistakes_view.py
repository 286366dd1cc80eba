"""The misclassified test photos of a run, as a table with thumbnails."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ikebana.runs.run import Run
from ikebana.system.notebook_html import Markup, render_picture, render_table, render_view

# Thumbnails that the view embeds, of about 10 kB each.
MAX_SHOWN_MISTAKES = 30


@dataclass(frozen=True)
class Mistakes:
    """The misclassified test photos of a run, the most confident first."""

    run: Run

    @functools.cached_property
    def frame(self) -> pl.DataFrame:
        """The path, label, predicted class and its confidence of each photo."""
        test = self.run.predictions.filter(split="test").filter(pl.col("predicted") != pl.col("label"))
        return test.select("path", "label", "predicted", "confidence").sort(
            "confidence", "path", descending=[True, False]
        )

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a row as a dictionary; iteration uses it too."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} mistakes")
        return self.frame.row(index, named=True)

    def __repr__(self) -> str:
        return f"{self._describe()}\n{self.frame}"

    def _repr_html_(self) -> str:
        rows = [
            (self._render_thumbnail(path), path, label, predicted, f"{confidence:.1%}")
            for path, label, predicted, confidence in self.frame.head(MAX_SHOWN_MISTAKES).iter_rows()
        ]
        headers = ("photo", "path", "label", "predicted", "confidence")
        hidden = len(self) - len(rows)
        more = f"and {hidden:,} less confident ones: run.mistakes.frame has all" if hidden else ""
        return render_view(self._describe(), render_table(headers, rows) if rows else Markup(), more)

    def _describe(self) -> str:
        total = self.run.predictions["split"].eq("test").sum()
        return f"{len(self):,} of {total:,} test photos misclassified, the most confident first"

    def _render_thumbnail(self, path: str) -> Markup:
        """Render a photo's thumbnail; an empty cell if the run has none."""
        file = self._thumbnails.get(path)
        try:
            return render_picture(file.read_bytes(), path) if file is not None else Markup()
        except OSError:
            return Markup()

    @functools.cached_property
    def _thumbnails(self) -> dict[str, Path]:
        """The file of the thumbnail per path."""
        used = self.run.dataset.filter(pl.col("split") == "test").select("path", "sha256")
        return {path: self.run.folder / "thumbnails" / f"{sha256}.jpg" for path, sha256 in used.iter_rows()}
