"""The result of `landscape`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gapssg.runs.results.common import ModelFile, RunResult
from gapssg.stored import Count, Many, PositiveCount, Seconds, Share, Stored, Text

Coordinates = Annotated[tuple[float, ...], Field(max_length=2, fail_fast=True)]  # one number per axis
_Weight = Annotated[float, Field(ge=0, le=1.001)]  # with a margin for rounding
_Quadrature = Annotated[tuple[tuple[float, _Weight], ...], Field(min_length=1, max_length=200, fail_fast=True)]


class Measurement(Stored):
    """A number and its error; None where not finite."""

    value: float | None = None
    error: float | None = None


class SpectralDensity(Stored):
    """The density of the eigenvalues of the Hessian, by stochastic Lanczos quadrature."""

    parameters: PositiveCount
    """Number of eigenvalues."""
    starts: Annotated[tuple[_Quadrature, ...], Field(min_length=2, max_length=100, fail_fast=True)]
    """For each random start the nodes, which are estimates of eigenvalues, and their weights, which sum to 1."""


class Curvature(Stored):
    """The curvature of the loss at the centre of a surface."""

    samples: Count
    largest_eigenvalue: Measurement
    """Of the Hessian, with its residual as the error."""
    trace: Measurement
    """Of the Hessian, with its standard error."""
    epsilon_sharpness: float | None = None
    """Relative increase of the loss in a small box; None if not finite."""
    epsilon: float
    """Half the side of the box, relative to |weight| + 1."""
    spectral_density: SpectralDensity | None = None
    """Of the Hessian; None if it was not asked for or is not finite."""
    missing: Text | None = None
    """What could not be measured, and why; None if everything was."""


class Bf16Error(Stored):
    """Difference between some points of a bfloat16 grid and the same points in float32."""

    points: Count
    loss_relative: float | None = None
    """Largest relative difference; None if none is finite."""
    accuracy: float


class CentreFacts(Stored):
    """Measurements around the centre of a surface, besides the grid."""

    radius_of_doubling: float | None = None
    """Distance at which the loss first reaches twice that of the centre; None if not within the grid."""
    curvature: Curvature | None = None
    bf16_error: Bf16Error | None = None
    axis_eigenvalues: Annotated[tuple[Measurement, ...], Field(max_length=2, fail_fast=True)] = ()
    """Of axes along eigenvectors of the Hessian, the eigenvalues, with their residuals as errors."""


class CentreScores(Stored):
    """Loss and accuracy at a centre."""

    loss: float | None
    """None if not finite."""
    accuracy: Share | None


class LocalMinimum(Stored):
    """A local minimum of a grid."""

    coordinates: Coordinates
    loss: float
    at_edge: bool
    """Whether it is at the edge of the grid, so that the loss may be lower outside."""


class Mark(Stored):
    """A marked point."""

    label: Text
    coordinates: Coordinates
    loss: float | None
    """Loss of the marked model itself; None if not finite."""


class SurfaceFacts(CentreFacts):
    """A measured surface."""

    label: Text
    name: Text
    epoch: Count | None
    """Epoch of a snapshot."""
    file: Text
    model: ModelFile
    """The model at the centre."""
    centre: CentreScores
    centre_is_global_minimum: bool
    """Whether no point of the grid is lower."""
    lowest_loss: float | None
    highest_loss: float | None
    points_not_finite: Count
    minima: Many[LocalMinimum]
    marks: Many[Mark]
    explained_variance: Coordinates
    """Share of the training route's variance along each axis, for principal components."""


class LandscapeTiming(Stored):
    """Duration of a landscape."""

    total: Seconds
    surfaces: Seconds
    points_per_second: Seconds | None


class LandscapeResult(RunResult):
    """The result of `landscape`."""

    command: Literal["landscape"] = "landscape"
    data: Text
    """The images on which the loss was measured."""
    samples: PositiveCount
    loss: Text
    """The kind of loss, in words."""
    accuracy: Text
    """The kind of accuracy, in words."""
    surfaces: Annotated[tuple[SurfaceFacts, ...], Field(min_length=1, max_length=1000, fail_fast=True)]
    shared_directions: bool
    """Whether all surfaces have the same directions, each scaled to its own weights."""
    figures: Many[Text]
    timing: LandscapeTiming
