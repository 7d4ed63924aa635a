"""Ways in which other programs write a classifier, and images that differ from those of the digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.homemade import ChannelsLast, fold, hugging_face_resnet
from gapssg.data.image_set import ImageSet


def pth(network: nn.Module, _: ImageSet, path: Path) -> None:
    """Write a state dict."""
    torch.save(network.state_dict(), path)


def training_state(network: nn.Module, _: ImageSet, path: Path) -> None:
    """Write what training scripts write to resume: the state dict beside that of the optimizer."""
    optimizer = torch.optim.AdamW(network.parameters()).state_dict()
    torch.save({"epoch": 30, "model": network.state_dict(), "optimizer": optimizer, "best_acc": 0.99}, path)


def lightning(network: nn.Module, _: ImageSet, path: Path) -> None:
    """Write the layout of a Lightning checkpoint whose module keeps the network as `self.model`."""
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    head = {"epoch": 20, "global_step": 420, "pytorch-lightning_version": "2.6.0", "hyper_parameters": {"lr": 1e-3}}
    torch.save({**head, "state_dict": state, "optimizer_states": [], "lr_schedulers": []}, path)


def compiled_half(network: nn.Module, _: ImageSet, path: Path) -> None:
    """Write a compiled network that was trained with DataParallel, in half precision."""
    state = network.half().state_dict()
    torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, path)


def safetensors_file(network: nn.Module, _: ImageSet, path: Path) -> None:
    """Write a safetensors file."""
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def onnx(network: nn.Module, images: ImageSet, path: Path, channels_last: bool = False) -> None:
    """Write an ONNX file with PyTorch's exporter, for any number of images."""
    example = images.images[:2].float()
    example = example.permute(0, 2, 3, 1) if channels_last else example
    sizes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        network.eval(), (example,), path, dynamo=True, dynamic_shapes=sizes, external_data=False, verbose=False
    )


def onnx_folded(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a ResNet without its batch norms, as it is deployed."""
    onnx(fold(network), images, path)


def onnx_channels_last(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write images (N, H, W, C) and transposes around every layer, as converters from TensorFlow do."""
    spatial = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.Flatten)
    layers = [_Transposed(layer) if isinstance(layer, spatial) else layer for layer in network.children()]
    onnx(nn.Sequential(*layers), images, path, channels_last=True)


def onnx_sigmoid(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a network of two classes with one output, the probability of the second."""
    onnx(_Sigmoid(network), images, path)


def onnx_hugging_face(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a model that returns an output object of transformers."""
    model = hugging_face_resnet(images.num_classes, images.input_shape)
    model.load_state_dict(network.state_dict())
    onnx(model, images, path)


def torchscript(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a TorchScript file."""
    torch.jit.save(torch.jit.trace(network.eval(), images.images[:2].float()), path)


def torchscript_softmax(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a TorchScript file that returns probabilities."""
    torchscript(nn.Sequential(network, nn.Softmax(dim=1)), images, path)


def exported(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a file of torch.export."""
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(network.eval(), (images.images[:2].float(),), dynamic_shapes=sizes)
    torch.export.save(program, path)


def exported_with_pixels(network: nn.Module, images: ImageSet, path: Path) -> None:
    """Write a file of torch.export that takes pixels of 0 to 255 and normalises them itself."""
    mean, deviation = (torch.tensor(each).view(1, -1, 1, 1) for each in statistics_of(images))
    exported(_Normalised(network, 255 * mean, 255 * deviation), images, path)


class _Transposed(ChannelsLast):
    def forward(self, images: Tensor) -> Tensor:
        result = super().forward(images)
        return result.permute(0, 2, 3, 1) if result.ndim == 4 else result


class _Sigmoid(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.network(images).split(1, dim=1)
        return torch.sigmoid(second - first)


class _Normalised(nn.Module):
    def __init__(self, network: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("offset", mean)
        self.register_buffer("scale", deviation)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.offset) / self.scale)
        return logits


def two_classes(images: ImageSet) -> ImageSet:
    """Return the digits below five and the others as two classes."""
    return ImageSet(images.images, (images.labels >= 5).long(), ("0-to-4", "5-to-9"))


def five_channels(images: ImageSet) -> ImageSet:
    """Return the digits in five exposures, one a channel."""
    grey = images.images.float() / 255
    exposures = [(255 * grey**gamma).round().to(torch.uint8) for gamma in (0.5, 0.7, 1.0, 1.5, 2.0)]
    return ImageSet(torch.cat(exposures, dim=1), images.labels, images.class_names)


def statistics_of(images: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, as they are typed."""
    mean, deviation = images.channel_statistics()
    return tuple(round(each, 4) for each in mean), tuple(round(each, 4) for each in deviation)


def write_folder(images: ImageSet, folder: Path) -> None:
    """Write images as arrays (H, W, C) in a folder for each class."""
    for number, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        path = folder / images.class_names[label] / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, image.permute(1, 2, 0).numpy())
