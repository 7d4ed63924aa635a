"""Names of classifiers and the bounds of what they take. Imports no torch.

A new built-in classifier is a new file in this package with a builder `(num_classes, input_shape) -> nn.Module`, and
its line in `MODELS`. Other names refer to models of libraries (`torchvision:NAME`, `timm:NAME`) and to factories of
users (`package.module:factory`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING

from gapssg.errors import InputError, did_you_mean, shortened
from gapssg.models.graphs.description import is_graph
from gapssg.models.reference import is_factory, library_model

if TYPE_CHECKING:
    from torch import nn

    ModelBuilder = Callable[[int, tuple[int, int, int]], nn.Module]

LONGEST_NAME = 200
MOST_CLASSES = 100_000
MOST_CHANNELS = 64
SMALLEST_IMAGE_SIDE = 8
LARGEST_IMAGE_SIDE = 1024


@dataclass(frozen=True)
class ModelEntry:
    """A built-in classifier."""

    builder: str
    """The builder as "module:function"; the module is imported when the model is first created."""
    description: str
    """One line for `gapssg models`."""

    def load_builder(self) -> ModelBuilder:
        """Import the module of the builder and return the builder `(num_classes, input_shape) -> module`."""
        builder: ModelBuilder = resolve_name(self.builder)
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


def built_in_model(name: str) -> ModelEntry | None:
    """Return the built-in model of this name; None if there is none."""
    return MODELS.get(name)


def check_model_name(name: str) -> str:
    """Return `name` if it is a built-in model or a reference; raise `InputError` if not. Nothing is imported."""
    if name in MODELS or (len(name) <= LONGEST_NAME and (library_model(name) or is_factory(name))):
        return name
    if is_graph(name):
        raise InputError(f"{name} is a graph, which only its model file holds; name an architecture")
    forms = "torchvision:NAME, timm:NAME or package.module:factory"
    if ":" in name:
        raise InputError(f"{shortened(repr(name))} is not a model reference; write {forms}")
    raise InputError(
        f"unknown model {shortened(repr(name))}{did_you_mean(name, MODELS)}; `gapssg models` lists the built-in ones, "
        f"others are {forms}"
    )
