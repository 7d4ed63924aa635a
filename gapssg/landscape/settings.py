"""The settings of `gapssg landscape`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gapssg.data import check_data_name, describe_names
from gapssg.data.settings import DataSettings
from gapssg.models.settings import WithFactories
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.parts import RuntimeSettings

POOL = "pool"


def _check_data_or_pool(name: str) -> str:
    return name if name == POOL else check_data_name(name)


class LandscapeDataSettings(DataSettings):
    """The samples of the loss: real images, or the run's own synthetic samples."""

    name: Annotated[str, AfterValidator(as_validator(_check_data_or_pool))] = Field(
        description=f"`pool`, or the `test` split of {describe_names()}."
    )


class CurvatureSettings(Settings):
    """The estimation of the Hessian and the sharpness at the centre."""

    enabled: bool = True
    """Estimate them, which takes about as long as a hundred points of the grid."""
    samples: int = Field(default=512, ge=1, le=1_000_000)
    """Largest number of samples; each step passes over all of them several times."""
    lanczos_steps: int = Field(default=12, ge=2, le=500)
    """Steps of the Lanczos iteration for the largest eigenvalue, each one Hessian-vector product."""
    trace_samples: int = Field(default=12, ge=2, le=10_000)
    """Random vectors for Hutchinson's estimate of the trace, each one Hessian-vector product."""
    spectrum: bool = False
    """Also estimate the spectral density of the Hessian, by `spectrum_starts` times `spectrum_steps` products."""
    spectrum_starts: int = Field(default=6, ge=2, le=100)
    """Random vectors for the spectral density."""
    spectrum_steps: int = Field(default=40, ge=2, le=200)
    """Lanczos steps from each of them; the basis takes 8 bytes for each step and parameter."""
    epsilon: float = Field(default=1e-3, gt=0, le=1)
    """Epsilon-sharpness: half the side of the box, relative to |weight| + 1."""
    ascent_steps: int = Field(default=10, ge=1, le=1000)
    """Epsilon-sharpness: gradient steps towards the highest loss in the box."""


class LandscapeSettings(WithFactories):
    """The measurement and the figures of the loss around the weights of models."""

    models: tuple[UserPath, ...] = Field(min_length=1, max_length=100)
    """Model files, and run directories for their final weights."""
    data: LandscapeDataSettings
    """The samples of the loss."""
    teacher: UserPath | None = None
    """With data `pool`: the teacher's model file, if it is no longer where the run read it."""
    samples: int = Field(default=2000, ge=1, le=10_000_000)
    """Largest number of samples; of more, these are drawn at random, the same for all models."""
    dimensions: Literal[1, 2] = 2
    """A curve along one direction, or a surface along two."""
    grid: int = Field(default=25, ge=2, le=1001)
    """Points along each direction; with an odd number, the centre is one of them."""
    range: float = Field(default=1.0, gt=0, le=1000)
    """Half the width of the grid: in filter norms, in extents of the route or of the models, or, for eigenvectors, in
    Euclidean distance."""
    directions: Literal["random", "pca", "models", "eigenvectors"] = "random"
    """Filter-normalised random directions, principal components of a run's snapshots, through 2 or 3 models, or
    eigenvectors of the Hessian's largest eigenvalues."""
    biases_and_norms: bool = False
    """Whether random directions also change biases and batch-norm parameters; other directions always do."""
    snapshots: bool = False
    """Measure each snapshot of the runs instead of their final weights, for a sheet with one column per epoch."""
    epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """With `snapshots`: only these epochs."""
    recalibrate: bool = False
    """Re-estimate the batch-norm statistics at each point from the samples."""
    own_scale: bool = False
    """Draw each surface with its own colour scale instead of a common one."""
    curvature: CurvatureSettings = CurvatureSettings()
    """Eigenvalue and trace of the Hessian, and sharpness, at each centre."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Images per batch; on a CPU, small batches stay in its cache."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of the random directions and of every other random stream."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""

    @model_validator(mode="after")
    def _parts_agree(self) -> LandscapeSettings:
        needed = self.dimensions + 1
        if self.directions == "models" and len(self.models) != needed:
            word = "a line takes two" if self.dimensions == 1 else "a plane takes three"
            raise ValueError(f"directions through models: {word} models, not {len(self.models)} (see --dimensions)")
        if self.directions == "models" and self.snapshots:
            raise ValueError("directions through models give one surface without snapshots; leave --snapshots out")
        if self.directions == "pca" and self.snapshots:
            raise ValueError("principal components show a run's whole route on one surface; leave --snapshots out")
        if self.epochs is not None and not self.snapshots:
            raise ValueError("epochs select snapshots; add --snapshots")
        return self
