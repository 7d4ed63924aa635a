"""The kinds of teachers of `benchmarks.teachers`, and their networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from benchmarks import teacher_files as files
from benchmarks.strangers_pairs import Training
from gapssg.data import load_split
from gapssg.data.image_set import ImageSet

_CONVOLUTIONS, _ATTENTION = Training("adamw", 1e-3, 20), Training("adamw", 1e-3, 80)


@dataclass(frozen=True)
class Network:
    """A network that is trained, and its images.

    Attributes:
        name: Its architecture.
        training: How it is trained.
        arguments: Of the architecture.
        size: Height and width of the digits.
        change: Makes its images of the digits; they are then read from a folder.
    """

    name: str
    training: Training = _CONVOLUTIONS
    arguments: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (32, 32)
    change: Callable[[ImageSet], ImageSet] | None = None

    def images(self, split: Literal["train", "test"]) -> ImageSet:
        """Return its images."""
        images = load_split("digits", split, image_size=self.size)
        return self.change(images) if self.change else images


@dataclass(frozen=True)
class Kind:
    """A kind of teacher.

    Attributes:
        what: What is special about it, for the table.
        network: Its key in `NETWORKS`.
        file: Name of its file; the suffix tells whether it needs `--model`.
        write: Writes the network, an example of its images, to the file.
        options: Further options of the import.
    """

    what: str
    network: str
    file: str
    write: Callable[[nn.Module, ImageSet, Path], None]
    options: str = ""


_VIT = {"img_size": 32, "patch_size": 4, "depth": 4, "embed_dim": 96, "num_heads": 3}
_SWIN = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24}
NETWORKS = {
    "own": Network("benchmarks.homemade:network"),
    "own-two": Network("benchmarks.homemade:network", change=files.two_classes),
    "own-channels-last": Network("benchmarks.homemade:channels_last"),
    "own-two-heads": Network("benchmarks.homemade:two_heads"),
    "own-plain": Network("benchmarks.homemade:plain", Training("adamw", 2e-3, 40)),
    "resnet18": Network("torchvision:resnet18"),
    "shufflenet": Network("torchvision:shufflenet_v2_x1_0"),
    "regnet": Network("timm:regnetx_002"),
    "resnet10": Network("timm:resnet10t"),
    "resnet10-group-norm": Network("timm:resnet10t", arguments={"norm_layer": "groupnorm"}),
    "resnet10-wide": Network("timm:resnet10t", size=(32, 48)),
    "resnet10-five": Network("timm:resnet10t", change=files.five_channels),
    "convnext": Network("timm:convnext_atto", Training("adamw", 2e-3, 30), {"patch_size": 2}),
    "vit": Network("timm:vit_tiny_patch16_224", _ATTENTION, _VIT),
    "swin": Network("timm:swin_tiny_patch4_window7_224", _ATTENTION, _SWIN),
    "transformers-vit": Network("benchmarks.homemade:hugging_face_vit", _ATTENTION),
    "transformers-resnet": Network("benchmarks.homemade:hugging_face_resnet"),
}
KINDS = {
    "pth": Kind("state dict", "resnet18", "resnet18.pth", files.pth),
    "training-state": Kind("state dict beside an optimizer", "convnext", "checkpoint.pth", files.training_state),
    "lightning": Kind("Lightning checkpoint, prefix `model.`", "own", "last.ckpt", files.lightning),
    "compiled": Kind("float16, prefix `module._orig_mod.`", "resnet18", "compiled.pth", files.compiled_half),
    "safetensors": Kind("safetensors", "resnet10", "model.safetensors", files.safetensors_file),
    "plain": Kind("no normalisation", "own-plain", "plain.bin", files.pth),
    "group-norm": Kind("group norm", "resnet10-group-norm", "group_norm.pth", files.pth),
    "vit": Kind("vision transformer", "vit", "vit.safetensors", files.safetensors_file),
    "swin": Kind("Swin transformer", "swin", "swin.safetensors", files.safetensors_file),
    "transformers": Kind("returns an output object", "transformers-vit", "model.safetensors", files.safetensors_file),
    "channels-last": Kind("takes (N, H, W, C)", "own-channels-last", "channels_last.pth", files.pth),
    "two-heads": Kind("returns a dictionary of two heads", "own-two-heads", "heads.pth", files.pth),
    "not-square": Kind("images of 32 x 48 pixels", "resnet10-wide", "wide.pth", files.pth),
    "five-channels": Kind("images with 5 channels", "resnet10-five", "five.pth", files.pth),
    "onnx-transformers": Kind("ONNX", "transformers-resnet", "resnet.onnx", files.onnx_hugging_face),
    "onnx-folded": Kind("ONNX, batch norms folded away", "resnet18", "folded.onnx", files.onnx_folded),
    "onnx-channels-last": Kind("ONNX, (N, H, W, C), transposes", "own", "transposed.onnx", files.onnx_channels_last),
    "onnx-sigmoid": Kind("ONNX, two classes, one sigmoid", "own-two", "sigmoid.onnx", files.onnx_sigmoid),
    "torchscript": Kind("TorchScript", "shufflenet", "model.pt", files.torchscript),
    "torchscript-softmax": Kind("TorchScript, softmax", "own", "softmax.pt", files.torchscript_softmax),
    "exported": Kind("torch.export", "regnet", "regnet.pt2", files.exported),
    "exported-swin": Kind("torch.export, transformer", "swin", "swin.pt2", files.exported),
    "exported-pixels": Kind(
        "torch.export, takes 0 to 255, normalises itself", "own", "pixels.pt2", files.exported_with_pixels,
        "--input-range 255",
    ),
}  # fmt: skip
