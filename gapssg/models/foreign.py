"""Code that is not ours: what it raises becomes one sentence, and what it returns is checked to be a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from gapssg.errors import GapssgError, InputError, shortened
from gapssg.models.frozen import frozen

_BATCH = 2


@contextmanager
def foreign_code(complaint: str) -> Iterator[None]:
    """Turn whatever the code in the block raises into an InputError that begins with `complaint`."""
    try:
        yield
    except GapssgError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses its arguments leaves
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        raise InputError(f"{complaint} ({shortened(reason, 300)})") from error


@contextmanager
def at_most_parameters(most: int) -> Iterator[None]:
    """Stop the building of a model in the block when it has made more than `most` parameters.

    Raises:
        InputError: It has; the depth may be a stranger's number.
    """
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1
        if made > most:
            raise InputError(f"its model has many more layers than the file has tensors (stopped at {made:,})")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_classifier(module: object, name: str, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return `module` if it is a classifier of such images, by two forward passes in evaluation mode.

    Args:
        module: What a builder returned, on any device. On the meta device the values of the logits are not looked at.
        name: What it is called in messages.
        num_classes: K.
        input_shape: (C, H, W).

    Raises:
        InputError: It is no module, has nothing to learn, refuses the images, or does not map images
            (N, C, H, W) float32 to finite floating logits (N, K), the same each time.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"{name} returned {_described(module)} instead of a torch.nn.Module")
    if not any(True for _ in module.parameters()):
        raise InputError(f"{name} has no weights, so there is nothing to learn")
    first, second = (_logits(module, name, num_classes, input_shape) for _ in range(2))
    if first.is_meta:
        return module
    if not first.isfinite().all():
        raise InputError(f"{name} maps images of {_shape(input_shape)} to logits that are not finite")
    if not torch.equal(first, second):
        raise InputError(
            f"{name} gives the same images other logits each time, although it is in evaluation mode; "
            "let its dropout follow module.training"
        )
    return module


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the sub-module called `name`."""
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)


def _logits(module: nn.Module, name: str, num_classes: int, input_shape: tuple[int, int, int]) -> Tensor:
    device = next(chain(module.parameters(), module.buffers())).device
    images = torch.linspace(-1, 1, _BATCH * math.prod(input_shape), device=device).view(_BATCH, *input_shape)
    with foreign_code(f"{name} does not take images of {_shape(input_shape)}"), frozen(module), torch.no_grad():
        logits = module(images)
    if isinstance(logits, Tensor) and logits.shape == (_BATCH, num_classes) and logits.is_floating_point():
        return logits
    raise InputError(
        f"{name} maps {_BATCH} images of {_shape(input_shape)} to {_described(logits)} instead of floating logits "
        f"of shape ({_BATCH}, {num_classes}); it must return one logit for each of {num_classes} classes"
    )


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _shape(input_shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, input_shape))
