"""A measured surface, and its file: safetensors with a canonical JSON object in the header."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError, model_validator
from safetensors.torch import save
from torch import Tensor

from gapssg.errors import InputError
from gapssg.files import canonical_json, write_atomically
from gapssg.landscape.minima import local_minima
from gapssg.landscape.sharpness import finite
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.results.common import ModelFile
from gapssg.runs.results.landscape import CentreFacts, CentreScores, LocalMinimum, Mark, SpectralDensity, SurfaceFacts
from gapssg.settings.base import Settings
from gapssg.stored import Stored

_METADATA_KEY = "gapssg-surface"
_LARGEST_GRID = 1001


class SurfaceCard(Settings):
    """The description of a surface: what was measured, and how."""

    format_version: Literal[1] = 1
    """Version of this description."""
    name: str
    """Name of the subject; snapshots of one run share it."""
    epoch: int | None = None
    """The epoch of a snapshot."""
    model_file: str
    """The file of the weights at the centre."""
    model_sha256: str
    """SHA-256 of that file."""
    architecture: str
    """The model's architecture."""
    directions: Literal["random", "pca", "models", "eigenvectors"]
    """The kind of the axes."""
    axis_labels: tuple[str, ...]
    """One label per axis, with its unit."""
    explained: tuple[float, ...] = ()
    """For principal components: each axis's share of the route's variance."""
    biases_and_norms: bool
    """Whether biases and batch-norm parameters changed."""
    seed: int
    """The seed of the directions and of the choice of samples."""
    range: float
    """The value of `--range`."""
    data: str
    """The data of the loss."""
    samples: int = Field(ge=1)
    """Number of samples."""
    samples_sha256: str
    """SHA-256 of their images and labels."""
    loss_name: str
    """Name of the loss."""
    accuracy_name: str
    """Name of the accuracy."""
    teacher_sha256: str | None = None
    """SHA-256 of the file of the teacher that labelled the samples, or else of the student's own teacher."""
    recalibrated: bool
    """Whether batch-norm statistics were re-estimated at each point."""
    precision: str
    """fp32 or bf16."""
    marks: tuple[str, ...] = ()
    """Labels of the marked points: epochs of the route, or models."""
    marks_sha256: tuple[str, ...] = ()
    """SHA-256 of the file of each marked model."""
    settings_sha256: str | None = None
    """SHA-256 of the settings."""

    @property
    def label(self) -> str:
        """The name and, of a snapshot, the epoch."""
        return self.name if self.epoch is None else f"{self.name}, epoch {self.epoch}"


@dataclass(eq=False)
class Surface:
    """Loss and accuracy on a grid with one or two axes.

    Attributes:
        card: Its description.
        axes: (D, G) float64, the coordinates along each axis.
        loss: (G,) or (G, G) float32; the first index belongs to the first axis. May be infinite or NaN; NaN where it
            is not measured yet.
        accuracy: As `loss`, in [0, 1].
        centre_loss: () float32, at coordinates 0.
        centre_accuracy: () float32.
        mark_coordinates: (M, D) float64, of the marked points.
        mark_loss: (M,) float32, of the marked models with their own batch-norm statistics.
        measured: Number of measured points, in the order of `points`.
        around: Other measurements around the centre; None until these and the marks are measured.
    """

    card: SurfaceCard
    axes: Tensor
    loss: Tensor
    accuracy: Tensor
    centre_loss: Tensor
    centre_accuracy: Tensor
    mark_coordinates: Tensor
    mark_loss: Tensor
    measured: int = 0
    around: CentreFacts | None = None

    @classmethod
    def empty(cls, card: SurfaceCard, axes: Tensor, mark_coordinates: Tensor | None = None) -> Surface:
        """Create a surface without measured points."""
        shape = (axes.shape[1],) * len(axes)
        marks = torch.zeros(0, len(axes), dtype=torch.float64) if mark_coordinates is None else mark_coordinates
        loss, accuracy = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        centre = torch.tensor(torch.nan), torch.tensor(torch.nan)
        return cls(card, axes, loss, accuracy, *centre, marks, torch.full((len(marks),), torch.nan))

    @property
    def is_complete(self) -> bool:
        """Whether all points are measured."""
        return self.measured == self.loss.numel()

    @property
    def spectral_density(self) -> SpectralDensity | None:
        """The spectral density of the Hessian at the centre, if it was measured."""
        curvature = self.around.curvature if self.around else None
        return curvature.spectral_density if curvature else None

    @property
    def has_route(self) -> bool:
        """Whether the marked points are a training route, which ends at the centre."""
        return self.card.directions == "pca"

    def points(self) -> list[tuple[float, ...]]:
        """Return the coordinates of all points, with the last axis fastest."""
        return list(itertools.product(*self.axes.tolist()))

    def add(self, losses: Tensor, accuracies: Tensor) -> None:
        """Store the values at the next points, (M,) each."""
        end = self.measured + len(losses)
        self.loss.view(-1)[self.measured : end] = losses
        self.accuracy.view(-1)[self.measured : end] = accuracies
        self.measured = end

    def minima(self) -> tuple[LocalMinimum, ...]:
        """Return the local minima of the grid, lowest first."""
        return local_minima(self.loss, self.axes)

    def facts(self, file: Path) -> SurfaceFacts:
        """Return the entry of a result for this surface, whose file is `file`.

        Values that are not finite become None; a centre without a finite loss is not a minimum.
        """
        card, centre = self.card, finite(self.centre_loss.item())
        losses = self.loss[self.loss.isfinite()]
        lowest = losses.min().item() if len(losses) else None
        marks = zip(card.marks, self.mark_coordinates.tolist(), self.mark_loss.tolist(), strict=True)
        return SurfaceFacts(
            label=card.label,
            name=card.name,
            epoch=card.epoch,
            file=str(file),
            model=ModelFile(file=card.model_file, sha256=card.model_sha256, architecture=card.architecture),
            centre=CentreScores(loss=centre, accuracy=finite(self.centre_accuracy.item())),
            centre_is_global_minimum=centre is not None and (lowest is None or centre <= lowest),
            lowest_loss=lowest,
            highest_loss=losses.max().item() if len(losses) else None,
            points_not_finite=self.loss.numel() - len(losses),
            minima=self.minima(),
            marks=tuple(Mark(label=label, coordinates=tuple(at), loss=finite(loss)) for label, at, loss in marks),
            explained_variance=card.explained,
            **dict(self.around or CentreFacts()),
        )


_TENSORS = ("axes", "loss", "accuracy", "centre_loss", "centre_accuracy", "mark_coordinates", "mark_loss")
_COORDINATES = ("axes", "mark_coordinates")


class _Header(Stored):
    card: SurfaceCard
    measured: int = Field(ge=0)
    around: CentreFacts | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> _Header:
        if len(self.card.axis_labels) not in (1, 2):
            raise ValueError("a surface has one or two axes")
        if len(self.card.marks_sha256) != len(self.card.marks):
            raise ValueError("each mark has a SHA-256")
        return self


def save_surface(path: Path, surface: Surface) -> None:
    """Write a surface atomically, whether or not it is complete; raise `RunError` if it cannot be written."""
    tensors = {name: getattr(surface, name).contiguous() for name in _TENSORS}
    header = _Header(card=surface.card, measured=surface.measured, around=surface.around)
    metadata = {_METADATA_KEY: canonical_json(header.model_dump(mode="json", exclude_none=True))}
    write_atomically(path, save(tensors, metadata=metadata))


def load_surface(path: str | Path) -> Surface:
    """Read a surface; no code in it is run.

    Raises `InputError` if the file is missing, truncated, not a surface, or does not match its own description.
    """
    path = path if isinstance(path, Path) else Path(path)  # an `InsidePath` must stay one
    file = read_safetensors(path)
    if _METADATA_KEY not in file.metadata:
        raise InputError(f"{path} is not a surface of `gapssg landscape`; name a file in surfaces/")
    try:
        header = _Header.model_validate_json(file.metadata[_METADATA_KEY])
    except ValidationError as error:
        raise InputError(f"{path}: its description is not valid; measure the surface again") from error
    tensors = file.tensors
    dimensions, marks = len(header.card.axis_labels), len(header.card.marks)
    grid = tensors["axes"].shape[-1] if "axes" in tensors and tensors["axes"].ndim == 2 else 0
    shape = (grid,) * dimensions
    shapes = {"axes": (dimensions, grid), "loss": shape, "accuracy": shape, "centre_loss": (), "centre_accuracy": ()}
    shapes |= {"mark_coordinates": (marks, dimensions), "mark_loss": (marks,)}
    fits = all(
        name in tensors
        and tuple(tensors[name].shape) == shapes[name]
        and tensors[name].dtype == (torch.float64 if name in _COORDINATES else torch.float32)
        for name in _TENSORS
    )
    if not fits or not 2 <= grid <= _LARGEST_GRID:
        raise InputError(f"{path}: its tensors do not match its description; measure the surface again")
    if not all(tensors[name].isfinite().all() for name in _COORDINATES) or not (tensors["axes"].diff() > 0).all():
        raise InputError(f"{path}: its coordinates are not finite or not ascending; measure the surface again")
    if header.measured > tensors["loss"].numel():
        raise InputError(f"{path}: its description is not valid; measure the surface again")
    parts = {name: tensors[name] for name in _TENSORS}
    return Surface(header.card, **parts, measured=header.measured, around=header.around)
