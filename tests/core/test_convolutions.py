"""The convolutions whose weight gradient torch computes wrongly on a processor; see gapssg/core/convolutions.py."""

from __future__ import annotations

import copy
import ctypes.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.regnet import BlockParams, RegNet

from gapssg.core.runtime import Runtime, computes_bf16_natively
from gapssg.models import create_model

CPU = torch.device("cpu")
MALLOC_CHECK = ctypes.util.find_library("c_malloc_debug")
TRAIN = """
import sys
import torch
from torch import nn
from gapssg.core.runtime import Runtime

runtime = Runtime(torch.device("cpu"), sys.argv[1], False, 0)
layer = runtime.place(nn.Conv2d(8, 16, 1, stride=2, bias=False))
images = torch.randn(32, 8, 128, 128).contiguous(memory_format=torch.channels_last)
for _ in range(20):
    layer.zero_grad()
    with runtime.autocast():
        features = layer(images)
    features.sum().backward()
"""


class Strides(TorchDispatchMode):
    """Records the stride and the input channels of every 1x1 convolution that torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].shape[2:] == (1, 1):
            self.seen.add((args[3][0], args[1].shape[1]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(CPU, "bf16", False, 0)


def gradients(module: nn.Module, images: Tensor) -> list[Any]:
    module.zero_grad()
    module(images).square().sum().backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.slow
@pytest.mark.skipif(MALLOC_CHECK is None, reason="the C library has no malloc check here")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_strided_convolution_of_few_channels_trains_without_corrupting_the_heap(precision):
    if precision == "bf16" and not computes_bf16_natively(CPU):
        pytest.skip("the processor has no bfloat16 instructions")
    assert MALLOC_CHECK is not None
    checked = {**os.environ, "LD_PRELOAD": MALLOC_CHECK, "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", TRAIN, precision], env=checked, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_affected_layers_of_any_model_are_computed_with_stride_1_and_others_unchanged(runtime):
    blocks = BlockParams([1, 1], widths=[8, 24], group_widths=[8, 8], bottleneck_multipliers=[1.0, 1.0], strides=[2, 2])
    foreign = RegNet(blocks, num_classes=3, stem_width=12)
    wide = nn.Conv2d(16, 8, 1, stride=2)
    normed = parametrizations.weight_norm(nn.Conv2d(4, 16, 1, stride=(1, 2)))
    images = torch.rand(2, 3, 32, 32)
    with Strides() as before:
        foreign(images)
    assert {(2, 12), (2, 8)} <= before.seen
    runtime.place(foreign)
    with Strides() as after:
        foreign(images)
        runtime.place(normed)(torch.rand(2, 4, 8, 8))
        runtime.place(wide)(torch.rand(2, 16, 8, 8))
    assert {seen for seen in after.seen if seen[0] != 1} == {(2, 16)}
    assert (1, 4) in after.seen


def test_subsampling_pixels_gives_the_same_layer(runtime):
    layer = nn.Conv2d(8, 16, 1, stride=(2, 3)).double()
    images = torch.randn(2, 8, 13, 12, dtype=torch.float64)
    expected, expected_gradients = layer(images), gradients(layer, images)
    state = copy.deepcopy(layer.state_dict())
    for placed in (runtime.place(layer), copy.deepcopy(runtime.place(layer))):
        torch.testing.assert_close(placed(images), expected)
        torch.testing.assert_close(gradients(placed, images), expected_gradients)
        assert repr(placed) == "Conv2d(8, 16, kernel_size=(1, 1), stride=(2, 3))"
        assert all(torch.equal(tensor, state[name]) for name, tensor in placed.state_dict().items())


def test_a_copy_of_a_placed_layer_has_weights_of_its_own(runtime):
    layer = runtime.place(nn.Conv2d(8, 16, 1, stride=2, bias=False))
    copied = copy.deepcopy(layer)
    nn.init.zeros_(layer.weight)
    assert not layer(torch.ones(1, 8, 4, 4)).any()
    assert copied(torch.ones(1, 8, 4, 4)).any()


def test_a_placed_model_traces_as_one_graph(runtime):
    model = runtime.place(create_model("wrn10_half", num_classes=10, input_shape=(3, 16, 16)))
    images = torch.rand(2, 3, 16, 16)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    for one, other in zip(gradients(compiled, images), gradients(model, images), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2", "torchvision:mobilenet_v2"])
def test_mobilenetv2_on_16_pixels_has_sound_gradients_in_bfloat16(name, runtime):
    model = runtime.place(create_model(name, num_classes=4, input_shape=(1, 16, 16))).train()
    for _ in range(3):
        images = torch.randn(64, 1, 16, 16).contiguous(memory_format=torch.channels_last)
        with runtime.autocast():
            logits = model(images)
        model.zero_grad()
        logits.sum().backward()
        gradient = dict(model.named_parameters())["features.14.conv.1.0.weight"].grad
        assert gradient is not None
        outer = gradient.clone()
        outer[:, :, 1, 1] = 0
        # On a map of one pixel the outer taps see only padding.
        assert not outer.any()


@pytest.mark.parametrize(("height", "width", "stride"), [(4, 1, 2), (2, 2, 3)])
def test_depthwise_convolutions_of_narrow_maps_have_sound_gradients_in_bfloat16(height, width, stride, runtime):
    layer = runtime.place(nn.Conv2d(96, 96, 5, stride=stride, padding=2, groups=96, bias=False))
    images = torch.randn(8, 96, height, width).contiguous(memory_format=torch.channels_last)
    for _ in range(3):
        with runtime.autocast():
            features = layer(images)
        (found,) = torch.autograd.grad(features.float().square().sum(), layer.weight)
        (exact,) = torch.autograd.grad(layer(images).square().sum(), layer.weight)
        torch.testing.assert_close(found, exact, rtol=0.02, atol=0.02 * exact.abs().max().item())


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_convolutions_compute_in_float32(stride, runtime):
    layer = runtime.place(nn.Conv2d(8, 8, 3, stride=stride, padding=1, groups=8))
    images = torch.randn(2, 8, 12, 12)
    expected = layer(images)
    with runtime.autocast():
        assert torch.equal(layer(images), expected)
        assert layer(images.bfloat16()).dtype == torch.float32
