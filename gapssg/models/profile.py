"""The size of a model: parameters, multiply-adds, batch-norm layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from gapssg.errors import GapssgError
from gapssg.models.description import LayerProfile, ModelProfile
from gapssg.models.foreign import device_of, foreign_code
from gapssg.models.frozen import frozen
from gapssg.models.hollow import hollow_copy


def profile_model(module: nn.Module, input_shape: tuple[int, ...]) -> ModelProfile:
    """Count parameters, multiply-adds and batch norms for one input of `input_shape` (without the batch dimension).

    If possible, a copy on the meta device is traced, so that nothing is computed. `module` is left unchanged. Raises
    `InputError` if the module does not accept a single input.
    """
    return ModelProfile(
        parameters=parameters_of(module),
        macs=_trace(module, input_shape).operations.total() // 2,
        batch_norm_layers=len(batch_norm_layers(module)),
    )


def parameters_of(module: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in module.parameters())


def profile_layers(module: nn.Module, input_shape: tuple[int, ...]) -> list[LayerProfile]:
    """Describe the layers that have parameters, or that one input passes through and have statistics or multiply-adds.

    A layer is a module without sub-modules or with parameters of its own. Layers are in the order in which their
    forward pass ends, followed by those that are never called but whose parameters other layers may use. Multiply-adds
    between layers have a row of their own, so that the rows add up to the model. Raises `InputError` if the module does
    not accept a single input.
    """
    trace = _trace(module, input_shape)
    parts = dict(module.named_modules())
    seen: set[nn.Parameter] = set()
    layers = []
    for name in (*trace.shapes, *(name for name in parts if name not in trace.shapes)):
        layer = parts[name]
        own = list(layer.parameters(recurse=False))
        is_layer = bool(own) or is_parametrized(layer) or not any(True for _ in layer.children())
        parameters = sum(parameter.numel() for parameter in own if parameter not in seen)
        seen.update(own)
        macs = trace.operations[name] // 2 if is_layer else 0
        observed = name in trace.shapes and _has_batch_statistics(layer)
        if own or macs or observed:
            shape = trace.shapes.get(name)
            layers.append(LayerProfile(name, type(layer).__name__, shape, parameters, macs, observed))
    rest = trace.operations.total() // 2 - sum(layer.macs for layer in layers)
    if rest:
        layers.append(LayerProfile("(rest)", "operations between layers", None, 0, rest, False))
    return layers


def batch_norm_layers(module: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of `module` that have running statistics, in the order of registration.

    Frozen batch norms, which are classes of their own with the same buffers, are included.
    """
    return [layer for layer in module.modules() if _has_batch_statistics(layer)]


def has_seen_images(module: nn.Module) -> bool:
    """Tell whether a batch norm of `module` has other statistics than new ones: means of 0 and variances of 1."""
    statistics = [
        (getattr(layer, name, None), start)
        for layer in batch_norm_layers(module)
        for name, start in (("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0))
    ]
    return any(isinstance(each, Tensor) and bool((each != start).any()) for each, start in statistics)


def executed_layers(
    module: nn.Module, input_shape: tuple[int, ...], is_wanted: Callable[[nn.Module], bool]
) -> list[nn.Module]:
    """Return the layers that one input of `input_shape` passes through, in the order of execution, with repetitions.

    The module is left unchanged. Raises `InputError` if the module does not accept a single input.
    """
    executed: list[nn.Module] = []
    with ExitStack() as hooks:
        for layer in module.modules():
            if is_wanted(layer):
                hooks.callback(layer.register_forward_pre_hook(lambda each, _: executed.append(each)).remove)
        with _one_input(input_shape):
            _run_once(module, input_shape)
    return executed


def executed_batch_norm_layers(module: nn.Module, input_shape: tuple[int, ...]) -> list[nn.Module]:
    """Return the executed batch-norm layers with running statistics, as `executed_layers` does."""
    return executed_layers(module, input_shape, _has_batch_statistics)


def last_linear_layer(module: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> nn.Module | None:
    """Return the linear layer that computes the logits and whose inputs are the features; None if there is none."""
    layers = executed_layers(module, input_shape, lambda layer: isinstance(layer, nn.Linear))
    return layers[-1] if layers and layers[-1].out_features == num_classes else None


def _has_batch_statistics(layer: nn.Module) -> bool:
    statistics = (getattr(layer, "running_mean", None), getattr(layer, "running_var", None))
    return all(isinstance(each, Tensor) for each in statistics) and not isinstance(layer, _InstanceNorm)


class _Trace(NamedTuple):
    """The trace of one input through a model."""

    shapes: dict[str, tuple[int, ...] | None]
    """Output shape by the name of each called module, in the order in which their forward passes end."""
    operations: Counter[str]
    """Floating-point operations by the name of the innermost module."""


def _trace(module: nn.Module, input_shape: tuple[int, ...]) -> _Trace:
    try:
        return _traced(hollow_copy(module).eval(), input_shape)
    except GapssgError:  # such as a request to stop
        raise
    except Exception:  # a forward pass may depend on values, which the meta device does not have
        with _one_input(input_shape):
            return _traced(module, input_shape)


def _traced(module: nn.Module, input_shape: tuple[int, ...]) -> _Trace:
    names = {part: name for name, part in module.named_modules()}
    counter = FlopCounterMode(display=False)
    trace = _Trace({}, Counter())
    running = [""]
    counted = 0

    def count_for_innermost() -> None:
        nonlocal counted
        trace.operations[running[-1]] += counter.get_total_flops() - counted
        counted = counter.get_total_flops()

    def begin(part: nn.Module, _: Any) -> None:
        count_for_innermost()
        running.append(names[part])

    def end(part: nn.Module, _: Any, output: Any) -> None:
        count_for_innermost()
        running.pop()
        trace.shapes[names[part]] = tuple(output.shape[1:]) if isinstance(output, Tensor) else None

    with ExitStack() as hooks:
        for part in names:
            hooks.callback(part.register_forward_pre_hook(begin).remove)
            hooks.callback(part.register_forward_hook(end).remove)
        with counter:
            _run_once(module, input_shape)
    return trace


def _one_input(input_shape: tuple[int, ...]) -> AbstractContextManager[None]:
    return foreign_code(f"the model does not accept a single image of {'x'.join(map(str, input_shape))}")


def _run_once(module: nn.Module, input_shape: tuple[int, ...]) -> None:
    with frozen(module), torch.no_grad():
        module(torch.zeros(1, *input_shape, device=device_of(module)))
