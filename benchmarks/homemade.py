"""Networks that users write themselves, as factories for `--model-factory`."""

from __future__ import annotations

import importlib

from torch import Tensor, nn
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


class _TwoHeads(nn.Module):
    def __init__(self, features: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier, self.auxiliary = (nn.Linear(128, num_classes) for _ in range(2))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {"auxiliary": self.auxiliary(features), "logits": self.classifier(features)}


def two_heads(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build `network` with an auxiliary head beside its last layer; it returns a dictionary.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
    """
    return _TwoHeads(nn.Sequential(*list(network(num_classes, input_shape).children())[:-1]), num_classes)


class ChannelsLast(nn.Module):
    """A classifier of images (N, H, W, C) from one of images (N, C, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network returns for the images."""
        logits: Tensor = self.network(images.permute(0, 3, 1, 2))
        return logits


def channels_last(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build `network` for images (N, H, W, C).

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
    """
    return ChannelsLast(network(num_classes, input_shape))


def hugging_face_vit(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build a small vision transformer of Hugging Face's transformers.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
    """
    transformers = importlib.import_module("transformers")
    channels, height, _ = input_shape
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 384}
    config = transformers.ViTConfig(
        image_size=height, patch_size=4, num_channels=channels, num_labels=num_classes, **sizes
    )
    model: nn.Module = transformers.ViTForImageClassification(config)
    return model


def hugging_face_resnet(num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Build a ResNet-10 of Hugging Face's transformers.

    Args:
        num_classes: Number of logits.
        input_shape: Channels, height and width of an image.
    """
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_sizes": [64, 128, 256, 512], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = transformers.ResNetConfig(num_channels=input_shape[0], num_labels=num_classes, **sizes)
    model: nn.Module = transformers.ResNetForImageClassification(config)
    return model


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
