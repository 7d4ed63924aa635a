"""Builds a classifier of any name. Imports torch when it builds one, not before."""

from __future__ import annotations

from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from gapssg.errors import InputError, shortened
from gapssg.models.names import (
    LARGEST_IMAGE_SIDE,
    MOST_CHANNELS,
    MOST_CLASSES,
    SMALLEST_IMAGE_SIDE,
    built_in_model,
    check_model_name,
)
from gapssg.models.reference import Arguments, check_arguments, library_model

if TYPE_CHECKING:
    from torch import nn

    from gapssg.models.names import ModelBuilder


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
        input_shape: (channels, height, width) of one image; height and width from 8 to 1,024 pixels.
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

    Not for factories, whose code may do anything. Raises `InputError` as `create_model`.
    """
    builder = _builder(name, num_classes, input_shape, arguments)

    import torch

    from gapssg.models.foreign import check_classifier

    with torch.device("meta"):
        module = builder(num_classes, input_shape)
        if library_model(name) is None:
            return module
        try:
            return check_classifier(module, name, num_classes, input_shape)
        except InputError as error:
            raise InputError(f"{error}{_advice_on_size(module, input_shape, arguments)}") from error


def _advice_on_size(module: nn.Module, input_shape: tuple[int, int, int], arguments: Arguments) -> str:
    """Return how to build a timm model that is fixed to other images for these squares; else nothing."""
    about = getattr(module, "pretrained_cfg", None) or {}
    _, height, width = input_shape
    if not about.get("fixed_input_size") or "img_size" in arguments or height != width:
        return ""
    built_for = "x".join(map(str, about["input_size"][1:]))
    argument = f"arguments.img_size={height}"
    return f"; it is built for images of {built_for}: add --set model.{argument}, of a student --set student.{argument}"


def _builder(
    name: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    arguments: Arguments,
    weights_follow: bool = False,
) -> ModelBuilder:
    """Validate the request and return the builder of the model."""
    check_model_name(name)
    check_task(num_classes, input_shape)
    check_arguments(arguments)
    if (entry := built_in_model(name)) is not None:
        if arguments:
            raise InputError(f"{name} takes no arguments, but was given {shortened(', '.join(arguments))}")
        return entry.load_builder()
    if library := library_model(name):
        from gapssg.models.libraries import build_library_model

        return partial(build_library_model, *library, arguments)

    from gapssg.models.factory import build_from_factory

    return partial(build_from_factory, name, arguments, weights_follow)


def check_task(num_classes: int, input_shape: tuple[int, int, int]) -> None:
    """Raise `InputError` if a classifier cannot have so many classes, or images (C, H, W) of such a shape."""
    channels, height, width = input_shape
    if not 2 <= num_classes <= MOST_CLASSES:
        raise InputError(f"a classifier needs at least 2 classes and at most {MOST_CLASSES:,}, not {num_classes}")
    if not 1 <= channels <= MOST_CHANNELS:
        raise InputError(f"images need at least 1 channel and at most {MOST_CHANNELS}, not {channels}")
    if not all(SMALLEST_IMAGE_SIDE <= side <= LARGEST_IMAGE_SIDE for side in (height, width)):
        raise InputError(
            f"images of {height}x{width} pixels do not fit the models; resize them so that height "
            f"and width are from {SMALLEST_IMAGE_SIDE} to {LARGEST_IMAGE_SIDE:,} pixels"
        )
