"""ResNet-18 and ResNet-34 for small images (He et al. 2016, arXiv:1512.03385)."""

from functools import partial

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from gapssg.models.head import ClassifierHead


def _small_image_resnet(blocks_per_stage: list[int], num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build a ResNet with a 3x3 stem and no max-pool for images of `input_shape` (C, H, W)."""
    model = ResNet(BasicBlock, blocks_per_stage, num_classes=num_classes)
    stem = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem
    model.maxpool = nn.Identity()
    model.fc = ClassifierHead(model.fc.in_features, num_classes)
    module: nn.Module = model
    return module


resnet18 = partial(_small_image_resnet, [2, 2, 2, 2])
resnet34 = partial(_small_image_resnet, [3, 4, 6, 3])
