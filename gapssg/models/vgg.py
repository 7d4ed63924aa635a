"""VGG-11 with batch norm for small images (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.models.head import ClassifierHead

BLOCKS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
LARGE_IMAGE_SIDE = 64


class VGG(nn.Module):
    """Blocks of 3x3 convolution, batch norm and ReLU; average pooling; one linear layer."""

    def __init__(self, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        """Build VGG-11 for images of `input_shape` (C, H, W)."""
        super().__init__()
        in_channels, height, width = input_shape
        max_pools = 4 if min(height, width) >= LARGE_IMAGE_SIDE else 3
        layers: list[nn.Module] = []
        for index, block in enumerate(BLOCKS):
            for out_channels in block:
                layers += [
                    nn.Conv2d(in_channels, out_channels, 3, padding=1),
                    nn.BatchNorm2d(out_channels),
                    nn.ReLU(inplace=True),
                ]
                in_channels = out_channels
            if index < max_pools:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = ClassifierHead(in_channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images: (N, C, H, W) to logits: (N, num_classes)."""
        features = F.adaptive_avg_pool2d(self.features(images), 1)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits
