"""A LiteRT (TensorFlow Lite) flatbuffer, run by LiteRT's interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from gapssg.export.formats import ITSELF, Classifier, Files, Format, Subject, quiet


def write_litert(subject: Subject) -> Files:
    """Return a `.tflite` file for one image (1, C, H, W)."""
    import litert_torch

    with quiet(), tempfile.TemporaryDirectory(prefix="gapssg-export-") as folder:
        file = Path(folder) / "model.tflite"
        litert_torch.convert(subject.module, (subject.example[:1],)).export(str(file))
        return {ITSELF: file.read_bytes()}


def load_litert(files: Files) -> Classifier:
    """Return a classifier that runs a `.tflite` file image by image."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=files[ITSELF])
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()

    def logits(image: Tensor) -> Tensor:
        interpreter.set_tensor(given["index"], image.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(returned["index"]))

    def classify(images: Tensor) -> Tensor:
        return torch.cat([logits(image) for image in torch.split(images.contiguous(), 1)])

    return classify


FORMAT = Format(write_litert, load_litert, ("litert_torch", "ai_edge_litert"), extra="litert")
