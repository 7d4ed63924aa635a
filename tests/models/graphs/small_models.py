"""Small classifiers of 3x16x16 images as other teams export them; TorchScript reads their source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE = (3, 16, 16)
CLASSES = 5


class Block(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.second_norm(self.second(self.relu(self.first_norm(self.first(inputs)))))
        outputs += self.shortcut(inputs)
        return self.relu(outputs)


class Residual(nn.Sequential):
    """A ResNet: 5 batch norms, additions and activations in place."""

    def __init__(self) -> None:
        stem = (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, CLASSES))
        super().__init__(*stem, Block(4, 4, 1), Block(4, 8, 2), *head)


class Mobile(nn.Sequential):
    """A MobileNet: depthwise convolutions, ReLU6, hard swish, a mean over positions; 3 batch norms."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(inplace=True),
            nn.Conv2d(8, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            _Mean(),
            nn.Linear(12, CLASSES),
        )


class _Mean(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean([2, 3])


class Transformer(nn.Module):
    """A vision transformer: class token, attention, layer norm, GELU; its shapes depend on the batch."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        count, length, width = patches.shape
        tokens = torch.cat([self.token.expand(count, -1, -1), patches], dim=1) + self.positions
        shape = [count, length + 1, 3, self.heads, width // self.heads]
        query, key, value = self.attention(self.norms[0](tokens)).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(count, length + 1, width)
        tokens = tokens + self.projection(attended)
        tokens = tokens + self.narrow(F.gelu(self.wide(self.norms[1](tokens))))
        logits: Tensor = self.head(self.norms[2](tokens)[:, 0])
        return logits


class Convnext(nn.Module):
    """A ConvNeXt: layer norms over channels, by permutations to channels last and back, and a layer scale."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.rand(width, 1, 1))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        inputs = self.stem(images)
        rows = self.norm(self.depthwise(inputs).permute(0, 2, 3, 1))
        outputs = self.narrow(F.gelu(self.wide(rows))).permute(0, 3, 1, 2)
        pooled = (inputs + self.scale * outputs).mean((-2, -1), keepdim=True)
        logits: Tensor = self.head(torch.flatten(pooled, 1))
        return logits


class ChannelsLast(nn.Module):
    """A residual network whose input is (N, H, W, C), as TensorFlow stores images."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images.permute(0, 3, 1, 2))
        return logits


BATCH_NORMS = {Residual: 5, Mobile: 3, Transformer: 0, Convnext: 0}


def trained(kind: type[nn.Module]) -> nn.Module:
    """Return a model in evaluation mode whose batch-norm statistics are those of random images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = kind().train()
        with torch.no_grad():
            for _ in range(3):
                module(images(16, channels_last=kind is ChannelsLast))
    return module.eval().requires_grad_(False)


def images(count: int, channels_last: bool = False) -> Tensor:
    """Return random images, normalised."""
    drawn = torch.randn(count, *INPUT_SHAPE, generator=torch.Generator().manual_seed(1))
    return drawn.permute(0, 2, 3, 1) if channels_last else drawn
