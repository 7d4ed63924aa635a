"""The settings of `eval`, `predict`, `inspect` and `import-teacher`.

Imports no torch, so that their errors are instant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from gapssg.data.settings import DataSettings
from gapssg.files import check_ending, check_output_file, user_path
from gapssg.models.description import InputLayout, OutputPart, Outputs
from gapssg.models.names import LARGEST_IMAGE_SIDE, MOST_CHANNELS, MOST_CLASSES, SMALLEST_IMAGE_SIDE
from gapssg.models.settings import ModelSettings, WithFactories
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.parts import Interpolation, PaddingMode, Resize, RuntimeSettings

InputShape = tuple[
    Annotated[int, Field(ge=1, le=MOST_CHANNELS)],
    Annotated[int, Field(ge=SMALLEST_IMAGE_SIDE, le=LARGEST_IMAGE_SIDE)],
    Annotated[int, Field(ge=SMALLEST_IMAGE_SIDE, le=LARGEST_IMAGE_SIDE)],
]
DEFAULT_WEIGHTS = "default"
PREDICTIONS = ".csv"
"""How the name of the output of `predict` ends."""
MODEL_FILE = ".safetensors"
"""How the name of the output of `import-teacher` ends."""


def _check_weights(name: str) -> str:
    return name if name == DEFAULT_WEIGHTS else str(user_path(name))


class EvaluateSettings(WithFactories):
    """The evaluation of model files on real images."""

    omitted_defaults: ClassVar[tuple[str, ...]] = (*WithFactories.omitted_defaults, "latency")
    models: tuple[UserPath, ...] = Field(min_length=1)
    """Model files with the same input shape and classes."""
    data: DataSettings
    """The real images; the `test` split is read."""
    teacher: UserPath | None = None
    """A model file to compare the others with: adds agreement and reality gap."""
    latency: bool = False
    """Measure how long a forward pass of 1 image and of 64 takes: median and 95th percentile."""
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Images per batch; by default 500, or fewer if they have more than 64x64 pixels."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


class PredictSettings(WithFactories):
    """The classification of images by a model."""

    model: UserPath
    """A model file, or an ONNX, TorchScript or torch.export file of `gapssg export`."""
    images: tuple[UserPath, ...] = Field(min_length=1)
    """Images, or folders of images at any depth, which are read as a folder of images for `eval` is."""
    top: int = Field(default=1, ge=1, le=1000)
    """Number of the most probable classes of each image to show."""
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Images per batch; by default 500, or fewer if they have more than 64x64 pixels."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


class ProposeSettings(WithFactories):
    """The search for students that are smaller than a teacher."""

    teacher: UserPath
    """The teacher's model file."""
    max_latency_ms: float | None = Field(default=None, gt=0, le=1e6)
    """Leave students out of which the median forward pass of one image takes more milliseconds."""
    seconds: float = Field(default=120.0, gt=0, le=3600)
    """After these no further candidate is built, and no forward pass is started."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""


class InspectSettings(WithFactories):
    """The model to describe: a file, or an architecture with random weights."""

    file: UserPath | None = None
    """A model file."""
    model: ModelSettings | None = None
    """An architecture."""
    num_classes: int | None = Field(default=None, ge=2, le=MOST_CLASSES)
    """Of an architecture: number of classes; by default 10."""
    input_shape: InputShape | None = None
    """Of an architecture: channels, height and width of an image; by default 3, 32 and 32."""

    @model_validator(mode="after")
    def _one_model(self) -> InspectSettings:
        if (self.file is None) == (self.model is None):
            raise ValueError("give a model file or an architecture")
        if self.file is not None and (self.num_classes is not None or self.input_shape is not None):
            raise ValueError("a model file has its own classes and images; leave --num-classes and --input-shape out")
        return self


class DescriptionSettings(Settings):
    """What the weights of a classifier do not show, besides its image size."""

    num_classes: int | None = Field(default=None, ge=2, le=MOST_CLASSES)
    """Number of classes; by default that of the class names, given or of torchvision's weights, or of the graph."""
    class_names: tuple[Annotated[str, Field(min_length=1, max_length=255)], ...] | None = None
    """Names of the classes in the order of the logits; by default those of torchvision's weights, or 0, 1, 2, ..."""
    mean: tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...] | None = None
    """Mean of images in [0, 1], one per channel or one for all; by default that of the library's weights."""
    deviation: tuple[Annotated[float, Field(ge=1e-6, le=1e6)], ...] | None = None
    """Standard deviation of images, one per channel or one for all; by default that of the library's weights."""
    input_range: Literal[1, 255] = 1
    """Largest value of a pixel before the normalisation; with 255, mean and std are those of such pixels, by default 0
    and 1."""
    input_layout: InputLayout | None = None
    """Order of the dimensions of the images that the model takes; by default recognised."""
    output_kind: Outputs | None = None
    """What the model returns: of two classes it may be one logit, or the probability of one sigmoid; by default
    recognised."""
    output_part: OutputPart | None = None
    """Key, field or index of the outputs, if the model returns several; by default recognised."""
    resize: Resize | None = None
    """How images were resized for the training: `stretch` to the input size, or the pixels of the shorter side before a
    crop of the centre; by default that of the library's weights, or `crop`, which scales them to cover the input."""
    interpolation: Interpolation | None = None
    """Filter with which they were resized, such as `bicubic`; by default that of the library's weights, or
    `bilinear`."""
    crop_padding: int | None = Field(default=None, ge=0, le=256)
    """Pixels of padding for random crops of synthetic images; by default an eighth of the shorter side."""
    crop_padding_mode: PaddingMode | None = None
    """How random crops were padded when the model was trained, with 0 or the mirrored image, if known."""
    flip: bool = False
    """Whether a mirrored image still belongs to its class."""


class ClassifierSettings(DescriptionSettings):
    """What the weights of a classifier do not show."""

    input_shape: InputShape
    """Channels, height and width of an image."""


class ImportSettings(DescriptionSettings):
    """The import of a classifier that was trained elsewhere."""

    model: ModelSettings | None = None
    """The architecture; without it, `weights` is a file that holds a graph."""
    weights: Annotated[str, AfterValidator(as_validator(_check_weights))] | None = None
    """A safetensors file or PyTorch checkpoint; an ONNX, TorchScript or torch.export file (`.pt2`), without `model`; or
    `default` for the weights of torchvision or timm. Without it, those of the factory."""
    weights_key: str | None = None
    """Dotted key of the state dict in a checkpoint that holds several, such as `ema`; without it, the usual one."""
    input_shape: InputShape | None = None
    """Channels, height and width of an image; not needed for a graph whose file declares them."""
    data: DataSettings | None = None
    """Labelled images; the model is evaluated on their `test` split before it is written."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The seed of weights that the factory draws."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device and precision of the evaluation."""

    @model_validator(mode="after")
    def _model_or_graph(self) -> ImportSettings:
        if self.model is None and self.weights_file is None:
            raise ValueError("model.name is missing: add --model, or --weights with an ONNX file or another graph")
        if self.model is not None and self.input_shape is None:
            raise ValueError("input_shape is missing: add --input-shape C,H,W")
        return self

    @property
    def weights_file(self) -> Path | None:
        """The file that `weights` names, if it names one."""
        return None if self.weights in (None, DEFAULT_WEIGHTS) else Path(self.weights)


def check_predictions_file(output: Path, settings: PredictSettings, overwrite: bool) -> None:
    """Raise `InputError` if predictions cannot be written to this file, or its name does not end with .csv."""
    check_ending(output, PREDICTIONS)
    check_output_file(output, overwrite, inputs=[settings.model, *settings.images])


def check_teacher_file(output: Path, settings: ImportSettings, overwrite: bool) -> None:
    """Raise `InputError` if a teacher cannot be written to this file, or its name does not end with .safetensors."""
    check_ending(output, MODEL_FILE)
    weights = [] if settings.weights_file is None else [settings.weights_file]
    check_output_file(output, overwrite, makes_folder=True, inputs=weights)
