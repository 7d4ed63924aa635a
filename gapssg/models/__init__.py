"""Classifiers by name, and the generator of synthetic images.

Importing this package does not import torch, because settings and the command line need only the names. A new
classifier is a file here with a builder `(num_classes, input_shape) -> nn.Module`, and a line in `MODELS`. Other names
refer to library models (`torchvision:NAME`, `timm:NAME`) and to user factories (`package.module:factory`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from gapssg.errors import InputError, did_you_mean, shortened
from gapssg.models.reference import Arguments, check_arguments, is_factory, library_model

if TYPE_CHECKING:
    from torch import nn

    ModelBuilder = Callable[[int, tuple[int, int, int]], nn.Module]

__all__ = ["MODELS", "ModelEntry", "check_model_name", "create_model", "empty_model", "model_names"]

LONGEST_NAME = 200
MOST_CLASSES = 100_000
MOST_CHANNELS = 64
SMALLEST_IMAGE_SIDE = 16
LARGEST_IMAGE_SIDE = 224


@dataclass(frozen=True)
class ModelEntry:
    """A built-in classifier.

    Attributes:
        builder: The builder as "module:function"; the module is imported when the model is first created.
        description: One line for `gapssg models`.
    """

    builder: str
    description: str

    def load_builder(self) -> ModelBuilder:
        """Import the module of the builder and return the builder `(num_classes, input_shape) -> module`."""
        builder: ModelBuilder = pkgutil.resolve_name(self.builder)
        return builder


MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "wrn10_half": ModelEntry("gapssg.models.wide_resnet:wrn10_half", "wide ResNet, depth 10, width 1/2"),
        "wrn16_half": ModelEntry("gapssg.models.wide_resnet:wrn16_half", "wide ResNet, depth 16, width 1/2"),
        "wrn16_1": ModelEntry("gapssg.models.wide_resnet:wrn16_1", "wide ResNet, depth 16, width 1"),
        "wrn16_2": ModelEntry("gapssg.models.wide_resnet:wrn16_2", "wide ResNet, depth 16, width 2"),
        "wrn40_1": ModelEntry("gapssg.models.wide_resnet:wrn40_1", "wide ResNet, depth 40, width 1"),
        "wrn40_2": ModelEntry("gapssg.models.wide_resnet:wrn40_2", "wide ResNet, depth 40, width 2"),
        "resnet18": ModelEntry("gapssg.models.resnet:resnet18", "ResNet-18 with a 3x3 stem, no max-pool"),
        "resnet34": ModelEntry("gapssg.models.resnet:resnet34", "ResNet-34 with a 3x3 stem, no max-pool"),
        "vgg11": ModelEntry("gapssg.models.vgg:VGG", "VGG-11 with batch norm and one linear layer"),
        "mobilenetv2": ModelEntry("gapssg.models.mobilenet:mobilenetv2", "MobileNetV2 in its ImageNet layout"),
    }
)


def model_names() -> tuple[str, ...]:
    """Return the names of the built-in models."""
    return tuple(MODELS)


def check_model_name(name: str) -> str:
    """Return `name` if it is a built-in model or has the form of a model reference; nothing is imported.

    Raises:
        InputError: It is neither; the message suggests similar names.
    """
    if name in MODELS or (len(name) <= LONGEST_NAME and (library_model(name) or is_factory(name))):
        return name
    if ":" in name:
        forms = "torchvision:NAME, timm:NAME or package.module:factory"
        raise InputError(f"{shortened(repr(name))} is not a model reference; write {forms}")
    raise InputError(f"unknown model {shortened(repr(name))}{did_you_mean(name, MODELS)}; `gapssg models` lists all")


def create_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int = 0,
    arguments: Arguments = MappingProxyType({}),
    weights_follow: bool = False,
) -> nn.Module:
    """Build the classifier `name` on the CPU with weights that depend only on `seed`.

    The module maps images: (N, C, H, W) float32 to logits: (N, num_classes) float32. The global random state of torch
    is left unchanged.

    Args:
        name: One of `model_names()`, `torchvision:NAME`, `timm:NAME`, or `package.module:factory`, whose code is run.
        num_classes: Number of logits, at least 2.
        input_shape: (channels, height, width) of one image; height and width from 16 to 224 pixels.
        seed: Seed of the initial weights.
        arguments: Keyword arguments for a model that is not built in.
        weights_follow: Do not check the model of a factory by forward passes; the caller does after loading weights.

    Raises:
        InputError: The name is unknown, or the model cannot be built for these classes, images and arguments.
    """
    if library_model(name):  # a refusal must come before memory is allocated for weights
        empty_model(name, num_classes=num_classes, input_shape=input_shape, arguments=arguments)
    builder = _builder(name, num_classes, input_shape, arguments, weights_follow)

    import torch

    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would also seed the accelerators, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        return builder(num_classes, input_shape)


def empty_model(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, int, int],
    arguments: Arguments = MappingProxyType({}),
) -> nn.Module:
    """Build the model of `create_model` on the meta device, without memory for weights.

    Not for factories, whose code may do anything.

    Raises:
        InputError: As `create_model`.
    """
    builder = _builder(name, num_classes, input_shape, arguments)

    import torch

    from gapssg.models.foreign import check_classifier

    with torch.device("meta"):
        module = builder(num_classes, input_shape)
        return check_classifier(module, name, num_classes, input_shape) if library_model(name) else module


def _builder(
    name: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    arguments: Arguments,
    weights_follow: bool = False,
) -> ModelBuilder:
    """Validate the request and return the builder of the model."""
    check_model_name(name)
    _check_task(num_classes, input_shape)
    check_arguments(arguments)
    if name in MODELS:
        if arguments:
            raise InputError(f"{name} takes no arguments, but was given {shortened(', '.join(arguments))}")
        return MODELS[name].load_builder()
    if library := library_model(name):
        from gapssg.models.libraries import build_library_model

        return partial(build_library_model, *library, arguments)

    from gapssg.models.factory import build_from_factory

    return partial(build_from_factory, name, arguments, weights_follow)


def _check_task(num_classes: int, input_shape: tuple[int, int, int]) -> None:
    channels, height, width = input_shape
    if not 2 <= num_classes <= MOST_CLASSES:
        raise InputError(f"a classifier needs at least 2 classes and at most {MOST_CLASSES:,}, not {num_classes}")
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(f"images need at least 1 channel and at most {MOST_CHANNELS}, not {channels}")
    if not all(SMALLEST_IMAGE_SIDE <= side <= LARGEST_IMAGE_SIDE for side in (height, width)):
        raise InputError(
            f"images of {height}x{width} pixels do not fit the models; resize them so that height "
            f"and width are from {SMALLEST_IMAGE_SIDE} to {LARGEST_IMAGE_SIDE} pixels"
        )
