"""The settings of `gapssg export`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, model_validator

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.models.settings import WithFactories
from gapssg.settings.base import Settings, UserPath

FormatName = Literal["onnx", "torch-export", "torchscript", "openvino", "executorch", "litert", "coreml", "calibration"]
FORMAT_NAMES: tuple[str, ...] = get_args(FormatName)
"""Each is a module of `gapssg.export.formats`."""
FORMAT_OF_SUFFIX: Mapping[str, FormatName] = {
    ".onnx": "onnx",
    ".pt2": "torch-export",
    ".pt": "torchscript",
    ".ts": "torchscript",
    ".pte": "executorch",
    ".tflite": "litert",
    ".mlpackage": "coreml",
}
"""What `--to` is by default, by the suffix of the output. Folders of OpenVINO and of images have none."""
_MODEL_FILES = ".safetensors"


def check_suffix(to: str, output: Path) -> None:
    """Raise `InputError` if the suffix of an output is that of another format, or of model files."""
    suffix = output.suffix.lower()
    if suffix == _MODEL_FILES:
        raise InputError(f"{output} has the suffix of model files, but --to is {to}; change the suffix")
    of_suffix = FORMAT_OF_SUFFIX.get(suffix, to)
    if of_suffix != to:
        raise InputError(f"{output} has the suffix of --to {of_suffix}, but --to is {to}; change one of them")


def format_by_suffix(to: object, output: Path | None) -> dict[str, FormatName]:
    """Return `to`, which is not validated yet, by the suffix of an output if it is not given.

    Raises `InputError` if neither names a format, or as `check_suffix`.
    """
    if to is None:
        of_suffix = None if output is None else FORMAT_OF_SUFFIX.get(output.suffix.lower())
        if of_suffix is None:
            raise InputError("to is missing: add --to, or a suffix to --output that names the format, such as .onnx")
        return {"to": of_suffix}
    if output is not None and to in FORMAT_NAMES:  # the settings refuse another one
        check_suffix(str(to), output)
    return {}


class QuantizationSettings(Settings):
    """Quantisation of weights and activations to 8-bit integers."""

    enabled: bool = False
    """Quantise; for some formats."""
    pool: UserPath | None = None
    """The run directory whose sample pool is used for calibration; by default that of the exported run."""
    calibration_images: int = Field(default=512, ge=1, le=100_000)
    """Largest number of calibration images; for int8, at most half of the pool: other images measure the agreement."""
    # A student of the digits agrees on 98 to 99 % of a thousand images, with a standard error of half a point.
    min_agreement: float = Field(default=0.95, ge=0, le=1)
    """Smallest share of the other images on which the int8 model must agree with the float32 model."""
    max_drop_points: float | None = Field(default=None, ge=0, le=100)
    """Largest loss in percentage points: of top-1 on `--data`, else of the agreement; layers that lose most stay
    float32 until it holds."""


class ExportSettings(WithFactories):
    """The export of a model file for other programs."""

    model: UserPath
    """A model file, or a run directory for its final weights."""
    to: FormatName
    """The format; `calibration` is the pool of a run, for other quantisation tools."""
    fold_normalization: bool = False
    """Include the normalisation in the exported model, whose input is then pixels in [0, 1]."""
    data: DataSettings | None = None
    """Real images (the `test` split) on which the exported model is also compared."""
    tolerance: float | None = Field(default=None, gt=0, le=1)
    """Largest difference of a logit, relative to the largest logit; by default what float32 rounding explains."""
    int8: QuantizationSettings = QuantizationSettings()
    """Quantisation to 8-bit integers."""
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Images per batch; by default 500, or fewer if they have more than 64x64 pixels."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of the random images and of the draw from the pool."""

    @model_validator(mode="after")
    def _parts_agree(self) -> ExportSettings:
        if self.int8.pool is not None and not self.int8.enabled and self.to != "calibration":
            raise ValueError("the pool is only used to calibrate int8 models; add --int8")
        if self.int8.max_drop_points is not None and not self.int8.enabled:
            raise ValueError("--max-drop limits what int8 loses; add --int8")
        return self
