"""The settings of `gapssg landscape`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from gapssg.data import check_data_name
from gapssg.data.settings import DataSettings
from gapssg.models.settings import WithFactories
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.parts import RuntimeSettings

POOL = "pool"


def _check_data_or_pool(name: str) -> str:
    return name if name == POOL else check_data_name(name)


class LandscapeDataSettings(DataSettings):
    """What the loss is measured on: real images, or the run's own synthetic samples."""

    name: Annotated[str, AfterValidator(as_validator(_check_data_or_pool))]
    """`digits`, `cifar10`, `cifar100`, `folder:PATH` (the `test` split of each), or `pool`."""


class CurvatureSettings(Settings):
    """How the Hessian and the sharpness at the centre are estimated."""

    enabled: bool = True
    """It takes about as long as a hundred points of the grid."""
    samples: int = Field(default=512, ge=1, le=1_000_000)
    """At most so many of the samples, because each step goes through all of them several times."""
    lanczos_steps: int = Field(default=12, ge=2, le=500)
    """Steps of the Lanczos iteration for the largest eigenvalue, each one Hessian-vector product."""
    trace_samples: int = Field(default=12, ge=2, le=10_000)
    """Random vectors of Hutchinson's estimate of the trace, each one Hessian-vector product."""
    epsilon: float = Field(default=1e-3, gt=0, le=1)
    """Epsilon-sharpness: half the side of the box, relative to |weight| + 1."""
    ascent_steps: int = Field(default=10, ge=1, le=1000)
    """Epsilon-sharpness: gradient steps towards the highest loss in the box."""


class LandscapeSettings(WithFactories):
    """How the loss around the weights of models is measured and drawn."""

    models: tuple[UserPath, ...] = Field(min_length=1, max_length=100)
    """Model files and run directories; a run stands for its last weights."""
    data: LandscapeDataSettings
    """What the loss is measured on."""
    teacher: UserPath | None = None
    """With data `pool`: the teacher's model file, if it is no longer where the run read it."""
    samples: int = Field(default=2000, ge=1, le=10_000_000)
    """At most so many samples; of more, these many are drawn once, the same for all models."""
    dimensions: Literal[1, 2] = 2
    """A curve along one direction, or a surface along two."""
    grid: int = Field(default=25, ge=2, le=1001)
    """Points along each direction; with an odd number, the centre is one of them."""
    range: float = Field(default=1.0, gt=0, le=1000)
    """Half the width of the grid: of each filter's norm, or of the extent of the route or of the models."""
    directions: Literal["random", "pca", "models"] = "random"
    """Filter-normalised random directions; principal components of a run's snapshots; through two or three models."""
    biases_and_norms: bool = False
    """Whether random directions move biases and batch-norm parameters, too; other directions always do."""
    snapshots: bool = False
    """Measure each snapshot of the runs instead of their last weights, for a sheet with one column an epoch."""
    epochs: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """With `snapshots`: only these epochs."""
    recalibrate: bool = False
    """Estimate the batch-norm statistics anew, from the samples, at each point."""
    own_scale: bool = False
    """Draw each surface with a colour scale of its own instead of one for all."""
    curvature: CurvatureSettings = CurvatureSettings()
    """Eigenvalue and trace of the Hessian, and sharpness, at each centre."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Images at a time; on a processor, few stay in its cache."""
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
            raise ValueError("directions through models measure one surface, so there are no snapshots to measure")
        if self.directions == "pca" and self.snapshots:
            raise ValueError("principal components show a run's whole route on one surface; leave --snapshots out")
        if self.epochs is not None and not self.snapshots:
            raise ValueError("epochs choose among snapshots; add --snapshots")
        return self
