"""Finished runs of `gapssg landscape` as they are reported on. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from gapssg.engine.record import Stored, read_picture
from gapssg.errors import InputError
from gapssg.stored import Number, Share, Text

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST_SURFACES = 1000
_MOST_FIGURES = 4


class SurfaceModel(Stored):
    """The model at the centre of a surface."""

    sha256: Text
    """SHA-256 of its file."""


class Centre(Stored):
    """What was measured at the centre."""

    loss: Number | None
    """None if it is not finite."""
    accuracy: Share | None
    """The accuracy there."""


class Estimate(Stored):
    """A number and how far it may be off."""

    value: Number | None
    """None if it is not finite."""


class Curvature(Stored):
    """The curvature of the loss at the centre."""

    largest_eigenvalue: Estimate
    """Of the Hessian."""


class Surface(Stored):
    """What is said of a surface."""

    label: Text
    """Whose it is."""
    model: SurfaceModel
    """The model at its centre."""
    centre: Centre
    """What was measured there."""
    centre_is_global_minimum: bool
    """Whether no point of the grid is lower."""
    minima: Annotated[list[Stored], Field(max_length=1_100_000)]
    """Local minima of the grid."""
    radius_of_doubling: Number | None = None
    """In which the loss stays under twice that of the centre."""
    curvature: Curvature | None = None
    """None if it was not measured."""


class LandscapeResult(Stored):
    """`result.json` of `landscape`."""

    command: Literal["landscape"]
    """The command."""
    data: Text
    """What the loss was measured on."""
    samples: PositiveInt
    """On how many samples."""
    loss: Text
    """What the loss is."""
    surfaces: Annotated[list[Surface], Field(min_length=1, max_length=_MOST_SURFACES)]
    """One entry a surface."""
    seed: NonNegativeInt
    """Of its directions."""


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
    result = LandscapeResult.read_result(path)
    try:
        files = sorted(file for pattern in ("*-contour.png", "curves.png") for file in (path / "figures").glob(pattern))
    except OSError as error:
        raise InputError(f"{path / 'figures'} cannot be read: {error.strerror or error}") from error
    figures = [read_picture(file) for file in files[:_MOST_FIGURES]]
    return Landscape(name, path, result, figures, len(files) - len(figures))
