"""Finished runs of `gapssg landscape` for the report. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gapssg.files import entries_in
from gapssg.report.pictures import Picture, embed
from gapssg.runs.pictures import read_picture
from gapssg.runs.results.landscape import LandscapeResult
from gapssg.safe_paths import inside

_MOST_FIGURES = 4
_LARGEST_SIDE = 1200  # pixels


@dataclass(frozen=True)
class Landscape:
    """A finished run of `landscape`."""

    name: str
    """Its name beside the other runs."""
    result: LandscapeResult
    """Its result."""
    figures: list[Picture]
    """Its contours or curves, at most four."""
    figures_left_out: int
    """The number of other figures."""

    def is_of(self, sha256: str | None) -> bool:
        """Return whether one of its surfaces is centred on the model file with this SHA-256."""
        return any(surface.model.sha256 == sha256 for surface in self.result.surfaces)


def read_landscape(path: Path, name: str) -> Landscape:
    """Read a run of `landscape`; raise `InputError` if it is not finished, or its files are damaged."""
    result = LandscapeResult.load(path)
    folder = inside(path) / "figures"
    names = [each for each in entries_in(folder) if each.endswith("-contour.png") or each == "curves.png"]
    caption = f"Loss around the weights (run {name})"
    figures = [embed(caption, read_picture(folder / each), _LARGEST_SIDE) for each in names[:_MOST_FIGURES]]
    return Landscape(name, result, figures, len(names) - len(figures))
