"""Muon: stochastic gradient descent that orthogonalises the updates of convolution kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

# Of Jordan et al.: small singular values grow fastest, at the price of not converging to 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_UPDATE_SIZE = 0.2
_EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """SGD with momentum; the updates of convolution kernels are orthogonalised.

    A kernel (O, I, ...) is a matrix (O, I * ...). Its update is `kernel_rate * lr * 0.2 * sqrt(max(rows, columns)) *
    orthogonalise(momentum)`, so the root mean square of its elements is about `0.2 * kernel_rate * lr` for every shape,
    and its weight decay is decoupled. Every other parameter, and the kernels of grouped convolutions and of those of
    one input channel, take plain SGD with an L2 penalty.

    Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size of the update, Liu
    et al., "Muon is scalable for LLM training", 2025.

    Attributes:
        found_inf: 0-dimensional; a step changes nothing where it is 1, as in torch's fused optimizers.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        model: nn.Module,
        lr: Tensor,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        kernel_rate: float,
    ) -> None:
        """Update the parameters of a model; `lr` is 0-dimensional and may be changed in place."""
        settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self._kernels = {id(kernel) for kernel in _kernels(model)}
        super().__init__(model.parameters(), {"lr": lr, "kernel_rate": kernel_rate, **settings})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, without synchronising."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                # Kernels of equal shapes are neighbours, and are orthogonalised together.
                self._update(sorted(parameters, key=self._shape_of_kernel), group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters, of which the kernels come last, in few operations: a GPU is limited by their number."""
        lr, decay, momentum_factor = group["lr"], group["weight_decay"], group["momentum"]
        momenta = [self._momentum(parameter) for parameter in parameters]
        gradients = [each.grad for each in parameters if each.grad is not None]
        weights, gradient, before = _flat(parameters), _flat(gradients), _flat(momenta)
        first_kernel = sum(each.numel() for each in parameters if id(each) not in self._kernels)
        gradient[:first_kernel] += decay * weights[:first_kernel]
        momentum = momentum_factor * before + gradient
        update = gradient + momentum_factor * momentum if group["nesterov"] else momentum.clone()
        start = first_kernel
        for (rows, columns), kernels in groupby(parameters, self._shape_of_kernel):
            if rows:
                end = start + rows * columns * sum(1 for _ in kernels)
                size = group["kernel_rate"] * _UPDATE_SIZE * math.sqrt(max(rows, columns))
                # Every process repeats this, because it costs little beside the gradients.
                matrices = update[start:end].view(-1, rows, columns)
                matrices.copy_(size * orthogonalise(matrices))
                start = end
        update[first_kernel:] += decay * weights[first_kernel:]
        after = weights - lr * update
        if self.found_inf is not None:
            is_finite = self.found_inf == 0
            momentum, after = torch.where(is_finite, momentum, before), torch.where(is_finite, after, weights)
        for places, values in ((momenta, momentum), (parameters, after)):
            parts = values.split([place.numel() for place in places])
            torch._foreach_copy_(places, [part.view(place.shape) for part, place in zip(parts, places, strict=True)])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum

    def _shape_of_kernel(self, parameter: Tensor) -> tuple[int, int]:
        """Return the shape of a kernel as a matrix, and (0, 0) for any other parameter."""
        if id(parameter) not in self._kernels:
            return 0, 0
        return len(parameter), parameter.numel() // len(parameter)


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return about U V^T of the singular value decomposition U S V^T of matrices (..., R, C), float32 or float64.

    Five Newton-Schulz iterations: singular values of at least 0.003 of the Frobenius norm become 0.68 to 1.21.
    """
    first, third, fifth = _COEFFICIENTS
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    estimate = matrix.mT if is_tall else matrix
    estimate = estimate / (estimate.norm(dim=(-2, -1), keepdim=True) + _EPSILON)
    for _ in range(_ITERATIONS):
        gram = estimate @ estimate.mT
        estimate = first * estimate + (third * gram + fifth * gram @ gram) @ estimate
    result: Tensor = estimate.mT if is_tall else estimate
    return result


def products_per_step(model: nn.Module) -> int:
    """Return the floating-point operations of the matrix products in a step; other operations are not counted."""
    shapes = (sorted(kernel.flatten(1).shape) for kernel in _kernels(model))
    return 2 * _ITERATIONS * sum(2 * low * low * high + low**3 for low, high in shapes)


def _kernels(model: nn.Module) -> Iterator[nn.Parameter]:
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1 and layer.in_channels > 1:
            yield from (weight for name, weight in layer.named_parameters(recurse=False) if name == "weight")
