"""Copies of models on the meta device, which have shapes but compute nothing."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.nn.modules.batchnorm import _BatchNorm


def hollow_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device, with weights in float32.

    PyTorch's batch norms take most of the time of a forward pass there, so their copies only return a tensor of the
    shape of their input. They keep for the backward pass what PyTorch's keep: the input, a mean and a deviation.
    """
    hollow = copy.deepcopy(module).to(device="meta", dtype=torch.float32)
    for layer in hollow.modules():
        if isinstance(layer, _BatchNorm) and type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            layer.forward = partial(_normalise, layer)  # type: ignore[method-assign]
    return hollow


def _normalise(layer: _BatchNorm, images: Tensor) -> Tensor:
    layer._check_input_dim(images)  # type: ignore[no-untyped-call]
    if images.shape[1] != layer.num_features:
        raise ValueError(f"a batch norm of {layer.num_features} channels does not accept {images.shape[1]}")
    result: Tensor = _Hollow.apply(images)
    return result


class _Hollow(Function):
    @staticmethod
    def forward(context: Any, images: Tensor) -> Tensor:
        statistics = images.new_empty(images.shape[1])
        context.save_for_backward(images, statistics, torch.empty_like(statistics))
        return torch.empty_like(images)
