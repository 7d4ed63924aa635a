"""Networks that users write themselves, as factories for `--model-factory`."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gapssg.models import create_model


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


def plain(num_classes: int, input_shape: tuple[int, int, int], width: int = 32) -> nn.Module:
    """Build six convolutions without any normalisation, with max-pooling, mean-pooling and a linear layer.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
        width: Channels of the first convolution.
    """
    channels = input_shape[0]
    layers: list[nn.Module] = []
    for number in range(6):
        out_channels = width * 2 ** (number // 2)
        layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU()]
        if number % 2 == 1:
            layers.append(nn.MaxPool2d(2))
        channels = out_channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def folded_resnet18(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build torchvision's ResNet-18 as it is deployed: every batch norm is folded into its convolution.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
    """
    return fold(create_model("torchvision:resnet18", num_classes=num_classes, input_shape=input_shape))


def fold(resnet: nn.Module) -> nn.Module:
    """Fold the batch norms of a ResNet of basic blocks into its convolutions, in place; return it in eval mode."""
    resnet.eval()
    for module in [*resnet.modules()]:
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            first, second = getattr(module, convolution, None), getattr(module, norm, None)
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                setattr(module, convolution, fuse_conv_bn_eval(first, second))
                setattr(module, norm, nn.Identity())
    return resnet
