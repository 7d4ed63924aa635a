"""Workarounds for convolutions whose gradients torch computes wrongly or slowly on a processor."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The widest channel block of oneDNN's kernels: 16 float32 numbers of AVX-512. With as many channels they are correct.
_CHANNEL_BLOCK = 16


def avoid_unsound_kernels(module: nn.Module) -> None:
    """Make the convolutions of a network avoid two unsound gradient kernels of oneDNN on a processor.

    Seen with torch 2.14 and 2.15:

    - The kernel of a strided 1x1 convolution in channels_last copies the strided pixels into a workspace of
      `in_channels` numbers per pixel, but in whole channel blocks. With fewer channels than a block it writes beyond
      the workspace, in float32 and bfloat16: from about 80 pixels on it corrupts the heap. Such layers subsample the
      pixels and convolve with stride 1, which is the same layer without a workspace.
    - The kernels of a depthwise convolution in bfloat16 are slower than those in float32. With a stride, they
      also leave taps of the weight gradient uninitialised where the map is narrower than the stride, as on images of 16
      pixels: arbitrary gradients instead of 0. So depthwise convolutions compute in float32.

    Layers keep their classes, attributes and state dicts.
    """
    for layer in module.modules():
        if not isinstance(layer, nn.Conv2d):
            continue
        # Copying the layer copies a partial too; a closure would still convolve with the original.
        if _overruns_its_workspace(layer):
            layer._conv_forward = partial(_convolve_without_stride, layer)  # type: ignore[method-assign]
        elif layer.groups == layer.in_channels > 1:
            layer._conv_forward = partial(_convolve_in_float32, layer)  # type: ignore[method-assign]


def _overruns_its_workspace(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.padding in ((0, 0), "valid")
        and layer.groups == 1
        and layer.in_channels < _CHANNEL_BLOCK
    )


def _convolve_without_stride(layer: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows, columns = layer.stride
    return F.conv2d(input[..., ::rows, ::columns], weight, bias)


def _convolve_in_float32(layer: nn.Conv2d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        convolved: Tensor = nn.Conv2d._conv_forward(layer, input.to(weight.dtype), weight, bias)
    return convolved
