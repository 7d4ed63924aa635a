"""One update of a model's weights: the place where a step is compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gapssg.runtime import Runtime


class TrainingStep:
    """Loss, gradients, optimizer: called with the tensors of one batch."""

    def __init__(self, loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, runtime: Runtime) -> None:
        """Update what `optimizer` holds by the gradient of `loss`, a function of tensors of fixed sizes."""
        self._loss = runtime.compile(loss)
        self._optimizer = optimizer

    def __call__(self, *tensors: object) -> Tensor:
        """Make one update; return the loss before it, 0-dimensional, on the device, without gradient."""
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(*tensors)
        torch.autograd.backward(loss)
        self._optimizer.step()
        return loss.detach()
