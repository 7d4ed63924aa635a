"""What a model costs: parameters, multiply-adds, batch-norm layers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from gapssg.errors import GapssgError
from gapssg.models.frozen import frozen


@dataclass(frozen=True)
class ModelProfile:
    """The size of a model and its work for one image.

    Attributes:
        parameters: Number of learned scalars.
        macs: Multiply-adds of convolutions and linear layers for one image.
        batch_norm_layers: Number of batch-norm layers.
    """

    parameters: int
    macs: int
    batch_norm_layers: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class LayerProfile:
    """One layer of a model.

    Attributes:
        name: In the model.
        type: Name of its class.
        output_shape: For one image, without the batch dimension; None where it returns no tensor.
        parameters: Number of its own learned scalars.
        macs: Multiply-adds for one image.
        observed: Whether its batch-norm statistics are observed.
    """

    name: str
    type: str
    output_shape: tuple[int, ...] | None
    parameters: int
    macs: int
    observed: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the attributes by name."""
        return dataclasses.asdict(self)


def profile_model(module: nn.Module, input_shape: tuple[int, ...]) -> ModelProfile:
    """Count what `module` costs for one input of `input_shape` (without the batch dimension).

    Nothing is computed if possible: a copy without data is traced in evaluation mode, and `module` is left as it is.
    """
    return ModelProfile(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=_count_operations(module, input_shape)["Global"] // 2,
        batch_norm_layers=len(batch_norm_layers(module)),
    )


def profile_layers(module: nn.Module, input_shape: tuple[int, ...]) -> list[LayerProfile]:
    """Describe the layers that one input runs through and that have parameters, statistics or multiply-adds.

    They are the modules without sub-modules, and those with parameters of their own, in the order in which they run.
    """
    names = {part: name for name, part in module.named_modules()}
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def note(layer: nn.Module, _: Any, output: Any) -> None:
        shapes[layer] = tuple(output.shape[1:]) if isinstance(output, Tensor) else None

    with ExitStack() as hooks:
        for part in module.modules():
            hooks.callback(part.register_forward_hook(note).remove)
        _run_once(module, input_shape)
    operations = _count_operations(module, input_shape)
    layers = []
    for layer, shape in shapes.items():
        own = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        is_leaf = not any(True for _ in layer.children())
        macs = operations.get(".".join(filter(None, (type(module).__name__, names[layer]))), 0) // 2 if is_leaf else 0
        observed = _has_batch_statistics(layer)
        if own or macs or observed:
            layers.append(LayerProfile(names[layer], type(layer).__name__, shape, own, macs, observed))
    return layers


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of `module` that keep statistics, in the order of their registration.

    Also frozen forms, which are no batch norm to torch but have its buffers.
    """
    return [layer for layer in module.modules() if _has_batch_statistics(layer)]


def executed_layers(
    module: nn.Module, input_shape: tuple[int, ...], is_wanted: Callable[[nn.Module], bool]
) -> list[nn.Module]:
    """Return the layers that one input of `input_shape` runs through, each as often and in the order as it does.

    That need not be the order of their registration, and some may not run at all. The module is left as it is.
    """
    executed: list[nn.Module] = []
    with ExitStack() as hooks:
        for layer in module.modules():
            if is_wanted(layer):
                hooks.callback(layer.register_forward_pre_hook(lambda each, _: executed.append(each)).remove)
        _run_once(module, input_shape)
    return executed


def executed_batch_norm_layers(module: nn.Module, input_shape: tuple[int, ...]) -> list[nn.Module]:
    """Return the batch-norm layers whose inputs can be observed, as `executed_layers` does."""
    return executed_layers(module, input_shape, _has_batch_statistics)


def last_linear_layer(module: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> nn.Module | None:
    """Return the linear layer that makes the logits, whose inputs are the features; None if another layer does."""
    layers = executed_layers(module, input_shape, lambda layer: isinstance(layer, nn.Linear))
    return layers[-1] if layers and layers[-1].out_features == num_classes else None


def _has_batch_statistics(layer: nn.Module) -> bool:
    statistics = (getattr(layer, "running_mean", None), getattr(layer, "running_var", None))
    return all(isinstance(each, Tensor) for each in statistics) and not isinstance(layer, _InstanceNorm)


def _run_once(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    device = next(chain(module.parameters(), module.buffers())).device
    with frozen(module), torch.no_grad():
        module(torch.zeros(1, *input_shape, device=device))


def _count_operations(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Return the floating-point operations by the dotted name of each part; `Global` is the whole."""
    try:
        hollow = copy.deepcopy(module).to(device="meta", dtype=torch.float32).eval()
        return _counted(hollow, input_shape)
    except GapssgError:  # being asked to stop
        raise
    except Exception:  # whose module it is may look at numbers, which a copy without data has not
        return _counted(module, input_shape)


def _counted(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    with counter:
        _run_once(module, input_shape)
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()} | {
        "Global": counter.get_total_flops()
    }
