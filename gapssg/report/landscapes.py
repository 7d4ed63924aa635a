"""Finished runs of `gapssg landscape` as they are reported on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gapssg.files import entries_in
from gapssg.runs.pictures import read_picture
from gapssg.runs.results import LandscapeResult
from gapssg.safe_paths import inside

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_FIGURES = 4


@dataclass(frozen=True)
class Landscape:
    """A finished run of `landscape`.

    Attributes:
        name: What it is called beside the other runs.
        path: Its directory.
        result: What it found.
        figures: Its contours or curves, at most four.
        figures_left_out: How many more there are.
    """

    name: str
    path: Path
    result: LandscapeResult
    figures: list[Image]
    figures_left_out: int

    def is_of(self, sha256: str | None) -> bool:
        """Whether one of its surfaces is centred on the model file with this SHA-256."""
        return any(surface.model.sha256 == sha256 for surface in self.result.surfaces)


def read_landscape(path: Path, name: str) -> Landscape:
    """Read a run of `landscape`.

    Raises:
        InputError: It is not finished, or its files are damaged.
    """
    result = LandscapeResult.load(path)
    folder = inside(path) / "figures"
    names = [each for each in entries_in(folder) if each.endswith("-contour.png") or each == "curves.png"]
    figures = [read_picture(folder / each) for each in names[:_MOST_FIGURES]]
    return Landscape(name, path, result, figures, len(names) - len(figures))
