"""The settings of `pretrain-teacher` and `distill`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from pydantic import Field

from gapssg.data.settings import DataSettings
from gapssg.models.settings import ModelSettings, WithFactories
from gapssg.settings.base import Settings, UserPath
from gapssg.settings.parts import OptimizerSettings, PaddingMode, RuntimeSettings
from gapssg.synthesis import GapSSGFastSettings, MethodSettings


class PretrainSettings(Settings):
    """How a teacher is trained on real data."""

    data: DataSettings
    """The real images: `train` to learn from, `test` to evaluate each epoch."""
    model: ModelSettings
    """The teacher's architecture."""
    epochs: int = Field(default=200, ge=1, le=100_000)
    """Passes over the training images."""
    batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images in a training step."""
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=5e-4, nesterov=True, schedule="one-cycle")
    """Stochastic gradient descent; the schedule advances each step."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is spread over all classes."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints, from which `--resume` continues; the last epoch always writes one."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes after the last checkpoint when another is written between two steps."""
    max_rollbacks: int = Field(default=3, ge=0, le=1000)
    """How often training that diverges may be taken back, each time to go on at half the learning rate."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of zero padding for random crops; without it, an eighth of the shorter side."""
    flip: bool | None = None
    """Random horizontal flips; without it, as is usual for the data: none for `digits`, flips for all others."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random stream of the run."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


class StudentSettings(ModelSettings):
    """The student: an architecture, and weights to start from."""

    weights: UserPath | None = None
    """A model file or safetensors file to start from; without it, random weights."""


class DistillSettings(WithFactories):
    """How a student is distilled from a teacher without its data."""

    teacher: UserPath
    """The teacher's model file."""
    student: StudentSettings
    """The student's architecture and, if any, its first weights."""
    method: MethodSettings = GapSSGFastSettings()
    """How images are synthesised, and how much the student learns from them."""
    pool: UserPath | None = None
    """The run directory whose sample pool is distilled from instead of synthesising."""
    epochs: int = Field(default=32, ge=1, le=100_000)
    """Epochs of one synthesis and the distillation after it."""
    batch_size: int = Field(default=64, ge=2, le=65_536)
    """Samples in a distillation step."""
    optimizer: OptimizerSettings = OptimizerSettings(
        weight_decay=5e-4, nesterov=True, schedule="one-cycle", warm_up=0.1
    )
    """Stochastic gradient descent of the student; the schedule advances each epoch."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of padding for random crops of synthetic images; without it, as the teacher's file says."""
    crop_padding_mode: PaddingMode | None = None
    """What random crops of synthetic images are padded with, 0 or the mirrored image; without it, as the teacher's file
    says, or else as suits the method."""
    flip: bool | None = None
    """Random horizontal flips of synthetic images; without it, as the teacher's file says."""
    eval_data: DataSettings | None = None
    """Real images that only evaluation reads; without them nothing real is read at all."""
    evaluate_every: int = Field(default=1, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every: int = Field(default=1, ge=1)
    """Epochs between checkpoints, from which `--resume` continues; the last epoch always writes one."""
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    """Minutes after the last checkpoint when another is written between two steps."""
    max_rollbacks: int = Field(default=3, ge=0, le=1000)
    """How often synthesis or training that diverges may each be taken back, to go on at half the learning rate."""
    snapshot_every: int | None = Field(default=None, ge=1)
    """Epochs between weight snapshots (for loss landscapes); without it, none are kept."""
    samples: bool = True
    """Whether a grid of the newest images is written each epoch."""
    keep_pool: bool = True
    """Whether the sample pool is written to disk, for `--pool`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random stream of the run."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""
