"""Parts of the settings of several commands."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypedDict, get_args

from pydantic import BeforeValidator, Field

from gapssg.settings.base import Settings

PaddingMode = Literal["zeros", "reflect"]
"""With what random crops are padded: 0, or the mirrored image."""

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
"""Pillow's and torchvision's names of the filters with which an image is resized, with antialiasing."""

ResizeMode = Literal["crop", "stretch"]


def _check_resize(value: Any) -> Any:
    if value not in (None, *get_args(ResizeMode)) and not (type(value) is int and 1 <= value <= 2048):
        raise ValueError("must be crop, stretch, or the pixels of the shorter side, from 1 to 2048")
    return value


Resize = Annotated[int | ResizeMode, BeforeValidator(_check_resize)]
"""How an image is brought to the input size: `crop` scales it until it covers that size and crops the centre, a number
scales its shorter side to so many pixels first, `stretch` scales height and width separately."""


class ResizeOptions(TypedDict, total=False):
    """How images are resized, as keyword arguments."""

    resize: Resize
    interpolation: Interpolation


class OptimizerSettings(Settings):
    """The optimizer and its learning-rate schedule."""

    algorithm: Literal["sgd", "muon"] = "sgd"
    """`muon` orthogonalises the updates of convolution kernels; the other weights take SGD."""
    learning_rate: float = Field(default=0.1, gt=0, le=100)
    """The highest learning rate of the schedule."""
    kernel_rate: float = Field(default=0.2, gt=0, le=100)
    """Algorithm `muon`: the learning rate of convolution kernels as a multiple of the learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of stochastic gradient descent."""
    nesterov: bool = False
    """Nesterov's form of the momentum."""
    weight_decay: float = Field(default=1e-4, ge=0, lt=1)
    """L2 penalty, applied to every weight as in the published code; `muon` decouples that of kernels."""
    schedule: Literal["cosine", "one-cycle", "step", "constant"] = "cosine"
    """How the learning rate changes over the run."""
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.6, 0.75, 0.9)
    """Schedule `step`: the fractions of the run after which the learning rate drops."""
    decay: float = Field(default=0.1, gt=0, lt=1)
    """Schedule `step`: the factor by which it is multiplied."""
    warm_up: float = Field(default=0.3, gt=0, lt=1)
    """Schedule `one-cycle`: the fraction of the run in which the learning rate rises."""


class RuntimeSettings(Settings):
    """Device, precision and compilation."""

    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d{1,3})?)$")
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 where the hardware supports it natively, else fp32."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the steps with torch.compile; `auto` compiles if the run is long enough to profit."""
    deterministic: bool = False
    """On CUDA, use only deterministic algorithms; on a CPU all are."""


MOST_ROLLBACKS = 1000


class RunSettings(Settings):
    """Checkpoints, random numbers and device of a run."""

    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints, from which `--resume` resumes; the last epoch always writes one."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes after which another checkpoint is written between two steps."""
    max_rollbacks: int = Field(default=3, ge=0, le=MOST_ROLLBACKS)
    """Most rollbacks of synthesis or training that diverges, each to half the learning rate."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random stream of the run."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


CHECKPOINTS = ("checkpoint_every", "checkpoint_minutes", "max_rollbacks")
"""The settings of a run that do not change its result, so that they may change when it is resumed."""
