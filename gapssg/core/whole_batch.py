"""Layers whose outputs depend on the whole batch, where every process has only a share of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from gapssg.core.moments import channel_moments, combined_moments
from gapssg.core.processes import Processes

_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


class WholeBatchLayers(TorchFunctionMode):
    """Let every batch norm and dropout, of any class of module, act in the block as on the whole batch.

    Batch norms in training mode use the statistics of the whole batch, with gradients, for normalisation and running
    statistics. Dropout draws the mask of the whole batch, so that torch's global generators, which are seeded alike,
    stay alike.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.batch_norm:
            return _batch_norm(self._processes, *args, **(kwargs or {}))
        if func in _DROPOUTS:
            return _dropout(self._processes, func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _batch_norm(
    processes: Processes,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    outputs, mean, variance = _BatchNorm.apply(input, weight, bias, eps, processes)
    if running_mean is not None and running_var is not None:
        count = processes.world * input.numel() // input.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(variance.to(running_var.dtype) * (count / (count - 1)), momentum)
    result: Tensor = outputs
    return result


class _BatchNorm(torch.autograd.Function):
    """Batch norm of the whole batch, by one exchange forward and one backward, around the kernels of torch."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, processes: Processes
    ) -> tuple[Tensor, Tensor, Tensor]:
        moments = torch.stack(channel_moments(inputs))
        mean, variance = combined_moments(*processes.gather(moments[None]).unbind(1))
        ctx.save_for_backward(inputs, weight, mean, variance)
        ctx.eps, ctx.processes = eps, processes
        ctx.mark_non_differentiable(mean, variance)
        return F.batch_norm(inputs, mean, variance, weight, bias, False, 0.0, eps), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Add to the gradient for fixed statistics that by way of the statistics, which is affine in the inputs."""
        inputs, weight, mean, variance = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        inverse = (variance + ctx.eps).rsqrt()
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, inputs, scale, mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
        )
        sums = ctx.processes.sum(torch.stack([of_weight, of_bias]))
        factors = -scale * inverse * sums / (ctx.processes.world * (inputs.numel() // inputs.shape[1]))
        indirect = F.batch_norm(inputs, mean, variance, factors[0], factors[1], False, 0.0, ctx.eps)
        needs_weight, needs_bias = ctx.needs_input_grad[1:3]
        return direct + indirect, of_weight if needs_weight else None, of_bias if needs_bias else None, None, None


def _dropout(
    processes: Processes,
    dropout: Callable[..., Tensor],
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    if not training or p == 0:
        return dropout(input, p, training, inplace)
    ones = torch.ones_like(input, requires_grad=False)
    mask = processes.share(dropout(torch.cat([ones] * processes.world), p))
    return input.mul_(mask) if inplace else input * mask
