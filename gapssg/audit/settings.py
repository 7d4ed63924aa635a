"""The settings of `gapssg audit`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import check_output_file
from gapssg.models.settings import WithFactories
from gapssg.report.settings import check_page
from gapssg.settings.base import Settings, UserPath
from gapssg.settings.parts import OptimizerSettings, RuntimeSettings


class MembersSettings(DataSettings):
    """The images that the teacher was trained on."""

    split: Literal["train", "test"] = "train"
    """The split that is read; in a folder, `test` may also be called `val`."""


class NonMembersSettings(DataSettings):
    """Images of the same kind that neither teacher nor student has seen."""

    split: Literal["train", "test"] = "test"
    """The split that is read; in a folder, `test` may also be called `val`."""


class ShadowSettings(Settings):
    """Training of the shadow models of the likelihood-ratio attack."""

    models: int = Field(default=0, ge=0, le=256)
    """Shadow models to train for the likelihood-ratio attack, an even number; 0 leaves the attack out."""
    epochs: int = Field(default=30, ge=1, le=100_000)
    """Epochs of each shadow model; the attack is strongest if the teacher was trained for as many."""
    batch_size: int = Field(default=256, ge=2, le=65_536)
    """Images in a training step of a shadow model."""
    optimizer: OptimizerSettings = OptimizerSettings(weight_decay=5e-4, nesterov=True, schedule="one-cycle")
    """The optimizer of a shadow model; the schedule advances each step."""

    @field_validator("models")
    @classmethod
    def _in_pairs(cls, models: int) -> int:
        if models % 2:
            raise ValueError("must be even: the models of a pair are trained on the two halves of the images")
        return models


class AuditSettings(WithFactories):
    """The audit of a run or a model with images whose membership is known."""

    model: UserPath
    """A run directory of `distill`, for its student, teacher and sample pool, or a model file."""
    members: MembersSettings
    """The images that the teacher was trained on; their `train` split."""
    non_members: NonMembersSettings
    """Images of the same kind that neither teacher nor student has seen; their `test` split."""
    teacher: UserPath | None = None
    """The teacher's model file, if a file is audited or the teacher was moved since the run."""
    shadow: ShadowSettings = ShadowSettings()
    """The shadow models."""
    pool_images: int = Field(default=5000, ge=1, le=1_000_000)
    """Largest number of images of the pool that are compared; of more, these are drawn at random."""
    batch_size: int = Field(default=500, ge=1, le=65_536)
    """Images per batch of the predictions."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of every random choice, and of the shadow models."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


def check_outputs(page: Path | None, sheet: Path | None, overwrite: bool) -> None:
    """Raise `InputError` if a page or sheet is wanted and its name has the wrong ending, or it cannot be written."""
    if page is not None:
        check_page(page, overwrite)
    if sheet is not None:
        if sheet.suffix.lower() != ".png":
            raise InputError(f"--sheet {sheet} is not a picture; its name must end in .png")
        check_output_file(sheet, overwrite)
