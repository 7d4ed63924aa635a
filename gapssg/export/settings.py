"""The settings of `gapssg export`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gapssg.data.settings import DataSettings
from gapssg.models.settings import WithFactories
from gapssg.settings.base import Settings, UserPath


class QuantizationSettings(Settings):
    """How weights and activations become 8-bit integers."""

    enabled: bool = False
    """Only ONNX files can hold such a model."""
    pool: UserPath | None = None
    """With int8: the run directory whose sample pool calibrates; without it, that of the exported run."""
    calibration_images: int = Field(default=512, ge=1, le=100_000)
    """At most so many images of the pool calibrate, and at most half of it; others measure the agreement."""
    # A student of the digits agrees on 98 to 99 % of a thousand images; chance moves that by less than half a point.
    min_agreement: float = Field(default=0.95, ge=0, le=1)
    """The least share of the other images on which the int8 model must predict what the float32 model does."""


class ExportSettings(WithFactories):
    """How a model file becomes a file for other programs."""

    model: UserPath
    """A model file or a run directory, which stands for its last weights."""
    to: Literal["onnx", "torch-export", "torchscript"]
    """The format."""
    fold_normalization: bool = False
    """Whether the normalisation becomes a part of the exported model, whose input is then pixels in [0, 1]."""
    data: DataSettings | None = None
    """Real images (the `test` split) on which the exported model is compared, too."""
    tolerance: float | None = Field(default=None, gt=0, le=1)
    """Largest difference of a logit, relative to the largest logit; without it, what float32 rounding explains."""
    int8: QuantizationSettings = QuantizationSettings()
    """Quantisation to 8-bit integers."""
    batch_size: int = Field(default=500, ge=1, le=65_536)
    """Images in a batch, where many are compared."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of the random images and of the draw from the pool."""

    @model_validator(mode="after")
    def _parts_agree(self) -> ExportSettings:
        if self.int8.enabled and self.to != "onnx":
            raise ValueError(f"int8 models are written as ONNX alone, not as {self.to}; add --to onnx")
        if self.int8.pool is not None and not self.int8.enabled:
            raise ValueError("the pool calibrates int8 models; add --int8")
        return self
