"""The settings of `pretrain-teacher` and `distill`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import is_file
from gapssg.models.names import check_model_name
from gapssg.models.reference import MODULE
from gapssg.models.settings import ModelSettings, WithFactories
from gapssg.safe_paths import inside
from gapssg.settings.base import UserPath, as_validator
from gapssg.settings.load import SETTINGS, read_toml
from gapssg.settings.parts import OptimizerSettings, PaddingMode, RunSettings
from gapssg.synthesis import MethodSettings
from gapssg.synthesis.gapssg_fast import GapSSGFastSettings


class PretrainSettings(RunSettings):
    """Training of a teacher on real data."""

    data: DataSettings
    """The real images: `train` for training, `test` for evaluation after each epoch."""
    model: ModelSettings
    """The teacher's architecture."""
    epochs: int = Field(default=200, ge=1, le=100_000)
    """Passes over the training images."""
    batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images in a training step."""
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=5e-4, nesterov=True, schedule="one-cycle")
    """The optimizer; the schedule advances each step."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target probability that is distributed over all classes."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of zero padding for random crops; by default an eighth of the shorter side."""
    flip: bool | None = None
    """Random horizontal flips; by default on, except for `digits`."""


def _check_student_name(name: str) -> str:
    return name if name == MODULE else check_model_name(name)


class StudentSettings(ModelSettings):
    """The student: an architecture and, optionally, initial weights."""

    name: Annotated[str, AfterValidator(as_validator(_check_student_name))]
    """A model that `gapssg models` lists, `torchvision:NAME`, `timm:NAME` or `package.module:factory`."""
    weights: UserPath | None = None
    """Initial weights, a model file or safetensors file; by default random."""


class DistillSettings(RunSettings, WithFactories):
    """Distillation of a student from a teacher without its data."""

    teacher: UserPath = Path(MODULE)
    """The teacher's model file."""
    student: StudentSettings = StudentSettings(name=MODULE)
    """The student to train."""
    method: MethodSettings = GapSSGFastSettings()
    """The method that synthesises the images."""
    pool: UserPath | None = None
    """A run directory whose sample pool is used instead of synthesising."""
    grow_pool: bool = False
    """Whether synthesis adds images to those of `pool`, with which the run starts."""
    epochs: int = Field(default=32, ge=1, le=100_000)
    """Epochs, each of a synthesis and a distillation."""
    until_settled: bool = False
    """End earlier, once the student's predicted disagreement with its teacher no longer falls."""
    batch_size: int = Field(default=128, ge=2, le=65_536)
    """Samples in a distillation step."""
    optimizer: OptimizerSettings = OptimizerSettings(
        algorithm="muon", weight_decay=5e-4, nesterov=True, schedule="one-cycle", warm_up=0.1
    )
    """The optimizer of the student; the schedule advances each epoch."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of padding for random crops of synthetic images; by default that of the teacher's file."""
    crop_padding_mode: PaddingMode | None = None
    """Padding of random crops of synthetic images, 0 or the mirrored image; by default that of the teacher's file, else
    that of the method."""
    flip: bool | None = None
    """Random horizontal flips of synthetic images; by default as in the teacher's file."""
    eval_data: DataSettings | None = None
    """Real images for evaluation only; by default no real images are read."""
    evaluate_every: int = Field(default=1, ge=1)
    """Epochs between evaluations; the last epoch is always evaluated."""
    snapshot_every: int | None = Field(default=None, ge=1)
    """Epochs between weight snapshots (for loss landscapes); by default none are kept."""
    samples: bool = True
    """Whether to write a grid of the newest images after each epoch."""
    keep_pool: bool = True
    """Whether to write the sample pool to the disk, for `--pool`."""


def distillation_of(run: Path) -> DistillSettings | None:
    """Return the settings of a `distill` run; None for a folder with only a model and for runs of other commands."""
    file = inside(run) / SETTINGS
    try:
        return DistillSettings.model_validate(read_toml(file)) if is_file(file) else None
    except (InputError, ValidationError):
        return None


def _refuse_module(value: Any) -> Any:
    if MODULE in (str(value), getattr(value, "name", "")):
        raise InputError(
            "it is a module of a Python program, which a command cannot have; "
            "use gapssg.distill(settings, output, teacher=..., student=...)"
        )
    return value


class DistillCommandSettings(DistillSettings):
    """Distillation as the command runs it, with a teacher and a student that have names."""

    teacher: Annotated[UserPath, AfterValidator(as_validator(_refuse_module))]
    """The teacher's model file."""
    student: Annotated[StudentSettings, AfterValidator(as_validator(_refuse_module))]
    """The student to train."""
