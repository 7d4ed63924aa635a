"""MobileNetV2 in its ImageNet layout (Sandler et al. 2018, arXiv:1801.04381)."""

from torch import nn
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
    head = ClassifierHead(model.last_channel, num_classes)
    nn.init.normal_(head.weight, 0, 0.01)
    nn.init.zeros_(head.bias)
    model.classifier[1] = head
    module: nn.Module = model
    return module
