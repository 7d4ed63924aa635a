"""A typical hand-written convolutional network, as a factory for `--model-factory`."""

from __future__ import annotations

from torch import nn


def network(num_classes: int, input_shape: tuple[int, int, int], width: int = 32) -> nn.Module:
    """Build four convolutions with batch norm, max-pooling, dropout and two linear layers.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
        width: Channels of the first convolution.
    """
    channels, height, width_of_image = input_shape
    layers: list[nn.Module] = []
    for number in range(4):
        out_channels = width * 2 ** (number // 2)
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU()]
        if number % 2 == 1:
            layers.append(nn.MaxPool2d(2))
        channels = out_channels
    features = channels * (height // 4) * (width_of_image // 4)
    head = [nn.Flatten(), nn.Linear(features, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, num_classes)]
    return nn.Sequential(*layers, *head)
