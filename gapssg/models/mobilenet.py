"""MobileNetV2 in its ImageNet layout (Sandler et al. 2018, arXiv:1801.04381)."""

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from gapssg.models.head import ClassifierHead


def mobilenetv2(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build MobileNetV2 with total stride 32 and dropout 0.2 for images of `input_shape` (C, H, W)."""
    model = MobileNetV2(num_classes=num_classes, dropout=0.2)
    channels = input_shape[0]
    if channels != 3:
        stem = nn.Conv2d(channels, 32, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out")
        model.features[0][0] = stem
    if min(input_shape[1:]) <= 16:
        strided = model.features[14].conv[1]
        strided[0] = _Float32DepthwiseConv2d.like(strided[0])
    head = ClassifierHead(model.last_channel, num_classes)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    model.classifier[1] = head
    module: nn.Module = model
    return module


class _Float32DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that autocast does not touch.

    On maps of one pixel, as images of 16 pixels give here, oneDNN's bfloat16 kernel for the weight gradient with
    stride 2 leaves the outer taps uninitialised: seen with torch 2.15 as gradients of any size, different from run
    to run, where 0 is right.
    """

    @classmethod
    def like(cls, layer: nn.Conv2d) -> nn.Conv2d:
        """Make one with the shape and the weights of `layer`."""
        channels, stride = layer.in_channels, layer.stride[0]
        made = cls(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        made.load_state_dict(layer.state_dict())
        return made

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W) in the precision of the weights."""
        if input.device.type == "meta":  # shapes without numbers, which know no autocast
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))
