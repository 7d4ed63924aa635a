"""Networks that are only evaluated: no weight gradients, no change to their buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Put a network into eval mode without weight gradients, and restore its modes and gradient flags afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    module.eval().requires_grad_(False)
    try:
        yield module
    finally:
        for part, training in modes:
            part.training = training
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
