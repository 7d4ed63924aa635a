"""Pre-activation wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.models.head import ClassifierHead

STEM_CHANNELS = 16


class WideResidualBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, added to the shortcut.

    The shortcut is a 1x1 convolution of the first activation where the number of channels changes, and
    the unchanged input elsewhere.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        """Build a block from `in_channels` to `out_channels` that divides height and width by `stride`."""
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map features: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = F.relu(self.norm1(features), inplace=True)
        shortcut = features if self.shortcut is None else self.shortcut(activated)
        hidden = F.relu(self.norm2(self.conv1(activated)), inplace=True)
        residual: Tensor = self.conv2(hidden)
        return residual + shortcut


class WideResNet(nn.Module):
    """A stem, three groups of (depth - 4) / 6 blocks, and a linear layer on the average-pooled features."""

    def __init__(self, depth: int, width: float, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        """Build WRN-`depth`-`width` for images of `input_shape` (C, H, W).

        The depth is 6n + 4 for n blocks in a group. The width multiplies the 16, 32 and 64 channels of the groups, not
        those of the stem; it may be a fraction such as 1/2.
        """
        super().__init__()
        blocks_per_group = (depth - 4) // 6
        self.stem = nn.Conv2d(input_shape[0], STEM_CHANNELS, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        in_channels = STEM_CHANNELS
        for group, stride in enumerate((1, 2, 2)):
            out_channels = int(STEM_CHANNELS * width) * 2**group
            for index in range(blocks_per_group):
                blocks.append(WideResidualBlock(in_channels, out_channels, stride if index == 0 else 1))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(in_channels)
        self.classifier = ClassifierHead(in_channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map images: (N, C, H, W) to logits: (N, num_classes)."""
        features = F.relu(self.norm(self.blocks(self.stem(images))), inplace=True)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


wrn10_half = partial(WideResNet, 10, 0.5)
wrn16_half = partial(WideResNet, 16, 0.5)
wrn16_1 = partial(WideResNet, 16, 1)
wrn16_2 = partial(WideResNet, 16, 2)
wrn40_1 = partial(WideResNet, 40, 1)
wrn40_2 = partial(WideResNet, 40, 2)
