"""The batch-norm statistics loss: how far the statistics of a batch are from those of the training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.core.moments import channel_moments
from gapssg.core.runtime import Runtime
from gapssg.models.profile import batch_norm_layers

Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Returns the mean and biased variance (C,) of each channel of inputs (N, C, ...)."""


def batch_moments(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance (C,), float32 or float64, of each channel of (N, C, ...).

    Inputs are of any floating type; bfloat16 is accumulated in float32.
    """
    mean, variance = _BatchMoments.apply(inputs)
    return mean, variance


def moments_by_var_mean(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same moments by `torch.var_mean`: for compiled code on a GPU, and as a reference."""
    wide = torch.promote_types(inputs.dtype, torch.float32)
    variance, mean = torch.var_mean(inputs.to(wide), dim=[0, *range(2, inputs.ndim)], correction=0)
    return mean, variance


class _BatchMoments(torch.autograd.Function):
    """Both moments in one pass over the inputs, and both gradients in one backward pass.

    The plain formula takes 30 times as long on a CPU: it converts bfloat16 to float32 in memory and reads the
    inputs five times.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if inputs.device.type == "cpu" or not torch.compiler.is_compiling():
            mean, variance = channel_moments(inputs)
        else:
            # On a GPU the compiler fuses this with the preceding operations.
            mean, variance = moments_by_var_mean(inputs)
        ctx.save_for_backward(inputs, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_gradient: Tensor, variance_gradient: Tensor) -> Tensor:
        """Return `(mean_gradient + 2 variance_gradient (inputs - mean)) / n`: affine in the inputs."""
        inputs, mean = ctx.saved_tensors
        count = inputs.numel() // inputs.shape[1]
        return F.batch_norm(
            inputs,
            running_mean=mean,
            running_var=torch.ones_like(mean),
            weight=2 * variance_gradient / count,
            bias=mean_gradient / count,
            training=False,
            eps=torch.finfo(torch.float64).tiny,  # some versions reject 0; this vanishes when added to 1
        )


def whole_batch_moments(runtime: Runtime) -> Moments:
    """Return the `batch_moments` of the whole batch, of which each process of a run has a share."""
    return lambda inputs: runtime.whole_moments(*batch_moments(inputs))


def statistics_distance(
    inputs: Tensor, running_mean: Tensor, running_var: Tensor, moments: Moments = batch_moments
) -> Tensor:
    """Return `||mean - running_mean||_2 + ||var - running_var||_2` of one batch-norm layer's inputs.

    Yin et al., "Dreaming to Distill" (DeepInversion), CVPR 2020, equation 4, without the squares, as
    GapSSG and its predecessors use it.
    """
    mean, variance = moments(inputs)
    distance: Tensor = (mean - running_mean).norm() + (variance - running_var).norm()
    return distance


def relative_statistics_distance(
    inputs: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, moments: Moments = batch_moments
) -> Tensor:
    """Return the distance of one batch-norm layer's inputs from its running statistics, relative to these.

    `mean(((m - running_mean) / s)^2) + mean((d / s - 1)^2)` over the channels, with m and d the mean and standard
    deviation of the batch and s the running standard deviation; d and s have the layer's `eps` under the root, as in
    the layer itself. The distance does not depend on the scale of the teacher's activations: for inputs that are all
    0 it is at most 1 + mean((running_mean / s)^2).
    """
    mean, variance = moments(inputs)
    expected = running_var + eps
    shift = ((mean - running_mean).square() / expected).mean()
    scale = (((variance + eps) / expected).sqrt() - 1).square().mean()
    distance: Tensor = shift + scale
    return distance


def instance_means(inputs: Tensor) -> Tensor:
    """Return the mean over the positions of each sample and channel: (N, C, ...) to (N, C) in float32 or float64."""
    wide = torch.promote_types(inputs.dtype, torch.float32)
    return inputs.to(wide).reshape(*inputs.shape[:2], -1).mean(dim=2)


@contextmanager
def observed_inputs(teacher: nn.Module, observe: Callable[[nn.Module, Tensor], None]) -> Iterator[None]:
    """Call `observe(layer, inputs)` for every batch-norm layer that the teacher executes."""

    def hook(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        observe(layer, inputs[0])

    handles = [layer.register_forward_pre_hook(hook) for layer in batch_norm_layers(teacher)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def observed_statistics(
    teacher: nn.Module, distances: list[Tensor], relative: bool = False, moments: Moments = batch_moments
) -> AbstractContextManager[None]:
    """Collect the statistics distance of every batch-norm layer that the teacher executes.

    Each forward pass appends one 0-dimensional tensor per layer to `distances`: the distance of `moments` from the
    running statistics, with `relative` in the layers' standard deviations.
    """

    def observe(layer: nn.Module, inputs: Tensor) -> None:
        running_mean, running_var = cast(Tensor, layer.running_mean), cast(Tensor, layer.running_var)
        if relative:
            eps = cast(float, layer.eps)
            distances.append(relative_statistics_distance(inputs, running_mean, running_var, eps, moments))
        else:
            distances.append(statistics_distance(inputs, running_mean, running_var, moments))

    return observed_inputs(teacher, observe)
