"""The settings of `eval`, `inspect` and `import-teacher`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import check_output_file, user_path
from gapssg.models import LARGEST_IMAGE_SIDE, MOST_CHANNELS, MOST_CLASSES, SMALLEST_IMAGE_SIDE
from gapssg.models.settings import ModelSettings, WithFactories
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.parts import PaddingMode, RuntimeSettings

InputShape = tuple[
    Annotated[int, Field(ge=1, le=MOST_CHANNELS)],
    Annotated[int, Field(ge=SMALLEST_IMAGE_SIDE, le=LARGEST_IMAGE_SIDE)],
    Annotated[int, Field(ge=SMALLEST_IMAGE_SIDE, le=LARGEST_IMAGE_SIDE)],
]
DEFAULT_WEIGHTS = "default"


def _check_weights(name: str) -> str:
    return name if name == DEFAULT_WEIGHTS else str(user_path(name))


class EvaluateSettings(WithFactories):
    """How model files are evaluated on real images."""

    models: tuple[UserPath, ...] = Field(min_length=1)
    """Model files; their images must have one shape and the same classes."""
    data: DataSettings
    """The real images; the `test` split is read."""
    teacher: UserPath | None = None
    """A model file to compare each of the others with: adds the agreement and the reality gap with it."""
    batch_size: int = Field(default=500, ge=1, le=65_536)
    """Images in a batch."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


class InspectSettings(WithFactories):
    """Which model is looked at: a file, or an architecture with random weights."""

    file: UserPath | None = None
    """A model file."""
    model: ModelSettings | None = None
    """An architecture."""
    num_classes: int | None = Field(default=None, ge=2, le=MOST_CLASSES)
    """Of an architecture: number of classes; without it, 10."""
    input_shape: InputShape | None = None
    """Of an architecture: channels, height and width of an image; without it, 3, 32 and 32."""

    @model_validator(mode="after")
    def _one_model(self) -> InspectSettings:
        if (self.file is None) == (self.model is None):
            raise ValueError("give a model file or an architecture")
        if self.file is not None and (self.num_classes is not None or self.input_shape is not None):
            raise ValueError("a model file says its classes and images; leave --num-classes and --input-shape out")
        return self


class ImportSettings(Settings):
    """How a classifier that was trained elsewhere becomes a model file."""

    model: ModelSettings
    """The architecture."""
    weights: Annotated[str, AfterValidator(as_validator(_check_weights))] | None = None
    """A safetensors file, or `default`: those that torchvision or timm has; without it, those of the factory."""
    input_shape: InputShape
    """Channels, height and width of an image."""
    num_classes: int | None = Field(default=None, ge=2, le=MOST_CLASSES)
    """Number of classes; without it, as many as there are names, given or of torchvision's own weights."""
    class_names: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] | None = None
    """Names of the classes in the order of the logits; without them, those of torchvision's own weights, or 0, 1, 2 and
    so on."""
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] | None = None
    """Mean that is subtracted from images in [0, 1]: one a channel, or one for all; without it, that of the library's
    own weights."""
    deviation: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] | None = None
    """Standard deviation that they are divided by: one a channel, or one for all; without it, that of the library's
    own weights."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of padding for random crops of synthetic images; without it, an eighth of the shorter side."""
    crop_padding_mode: PaddingMode | None = None
    """What random crops were padded with when the model was trained, 0 or the mirrored image, if it is known."""
    flip: bool = False
    """Whether a mirrored image still belongs to its class."""
    data: DataSettings | None = None
    """Labelled images whose `test` split the model is evaluated on before it is written."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of weights that the factory draws."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device and precision of the evaluation."""


def check_teacher_file(output: Path, settings: ImportSettings, overwrite: bool) -> None:
    """Check that an imported teacher can be written.

    Raises:
        InputError: Its name is not that of a model file, or it cannot be written.
    """
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} is to be a file whose name ends with .safetensors")
    weights = [] if settings.weights in (None, DEFAULT_WEIGHTS) else [Path(settings.weights)]
    check_output_file(output, overwrite, makes_folder=True, inputs=weights)
