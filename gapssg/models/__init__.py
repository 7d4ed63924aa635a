"""Classifiers by name, and the generator that makes images for them.

Importing this package does not import torch: settings and the command line need only the names.
A new classifier is one new file here with a builder `(num_classes, input_shape) -> nn.Module`,
and its line in `MODELS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from gapssg.errors import InputError, did_you_mean, shortened

if TYPE_CHECKING:
    from torch import nn

    ModelBuilder = Callable[[int, tuple[int, int, int]], nn.Module]

__all__ = ["MODELS", "ModelEntry", "check_model_name", "create_model", "empty_model", "model_names"]

MOST_CLASSES = 100_000
MOST_CHANNELS = 64
SMALLEST_IMAGE_SIDE = 16
LARGEST_IMAGE_SIDE = 224


@dataclass(frozen=True)
class ModelEntry:
    """Where a classifier is built, and what it is.

    Attributes:
        builder: The builder as "module:function"; the module is imported when the model is first created.
        description: One line for people.
    """

    builder: str
    description: str

    def load_builder(self) -> ModelBuilder:
        """Import the module of the builder and return the builder `(num_classes, input_shape) -> module`."""
        module_name, function_name = self.builder.split(":")
        return cast("ModelBuilder", getattr(importlib.import_module(module_name), function_name))


MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "wrn16_1": ModelEntry("gapssg.models.wide_resnet:wrn16_1", "wide ResNet, depth 16, width 1"),
        "wrn16_2": ModelEntry("gapssg.models.wide_resnet:wrn16_2", "wide ResNet, depth 16, width 2"),
        "wrn40_1": ModelEntry("gapssg.models.wide_resnet:wrn40_1", "wide ResNet, depth 40, width 1"),
        "wrn40_2": ModelEntry("gapssg.models.wide_resnet:wrn40_2", "wide ResNet, depth 40, width 2"),
        "resnet18": ModelEntry("gapssg.models.resnet:resnet18", "ResNet-18 with a 3x3 stem, no max-pool"),
        "resnet34": ModelEntry("gapssg.models.resnet:resnet34", "ResNet-34 with a 3x3 stem, no max-pool"),
        "vgg11": ModelEntry("gapssg.models.vgg:vgg11", "VGG-11 with batch norm and one linear layer"),
        "mobilenetv2": ModelEntry("gapssg.models.mobilenet:mobilenetv2", "MobileNetV2 in its ImageNet layout"),
    }
)


def model_names() -> tuple[str, ...]:
    """Return the names that `create_model` accepts."""
    return tuple(MODELS)


def check_model_name(name: str) -> str:
    """Return `name` if a model has it.

    Raises:
        InputError: No model has this name; the message gives the nearest names.
    """
    if name in MODELS:
        return name
    raise InputError(f"unknown model {shortened(repr(name))}{did_you_mean(name, MODELS)}; `gapssg models` lists all")


def create_model(name: str, *, num_classes: int, input_shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Build the classifier called `name` on the CPU, with weights that depend on `seed` alone.

    The module maps images: (N, C, H, W) float32 to logits: (N, num_classes) float32. torch's global
    random state is the same after the call as before.

    Args:
        name: One of `model_names()`.
        num_classes: Number of logits, at least 2.
        input_shape: (channels, height, width) of one image; height and width from 16 to 224 pixels.
        seed: Seed of the initial weights.

    Raises:
        InputError: The name is unknown, or the model cannot be built for these classes or images.
    """
    check_model_name(name)
    _check_task(num_classes, input_shape)

    import torch

    builder = MODELS[name].load_builder()
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed the accelerators, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        return builder(num_classes, input_shape)


def empty_model(name: str, *, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build what `create_model` does on the meta device: names, shapes and dtypes, and no memory for weights.

    Raises:
        InputError: As `create_model`.
    """
    check_model_name(name)
    _check_task(num_classes, input_shape)

    import torch

    with torch.device("meta"):
        return MODELS[name].load_builder()(num_classes, input_shape)


def _check_task(num_classes: int, input_shape: tuple[int, int, int]) -> None:
    channels, height, width = input_shape
    if not 2 <= num_classes <= MOST_CLASSES:
        raise InputError(f"a classifier needs at least 2 classes and at most {MOST_CLASSES:,}, not {num_classes}")
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(f"images need at least 1 channel and at most {MOST_CHANNELS}, not {channels}")
    if not all(SMALLEST_IMAGE_SIDE <= side <= LARGEST_IMAGE_SIDE for side in (height, width)):
        raise InputError(
            f"images of {height}x{width} pixels do not fit the built-in models; resize them so that height "
            f"and width are from {SMALLEST_IMAGE_SIDE} to {LARGEST_IMAGE_SIDE} pixels"
        )
