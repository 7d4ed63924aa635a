"""The part of `import-teacher` for files that hold a graph: ONNX, TorchScript, torch.export."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gapssg.core.augment import Normalization
from gapssg.core.runtime import to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError
from gapssg.evaluation.settings import ImportSettings
from gapssg.models.description import ModelCard
from gapssg.models.graphs.file import GraphFile, check_same_logits, kind_of_graph, original_logits, read_graph_file
from gapssg.models.graphs.module import build_graph
from gapssg.models.model_file import load_weights
from gapssg.models.profile import batch_norm_layers
from gapssg.runs.directory import Display
from gapssg.runs.events import Note

_MOST_COMPARED = 16
_OTHER_NORMS = ("layer_norm.", "group_norm.", "instance_norm.", "rms_norm.")


def read_graph(settings: ImportSettings) -> GraphFile | None:
    """Read the graph in the file that `settings.weights` names; None if it is weights for `settings.model`.

    Raises `InputError` if the file cannot be read, holds a graph although a model is named, or none although none is.
    """
    path = settings.weights_file
    if path is None:
        return None
    kind = kind_of_graph(path)
    if kind is None:
        if settings.model is None:
            raise InputError(
                f"{path} is no graph that can be imported (ONNX, TorchScript or torch.export); if it has weights, add "
                "--model NAME and --input-shape C,H,W, and convert a model of another framework to ONNX"
            )
        return None
    if settings.model is not None:
        raise InputError(f"{path} has the graph of a model ({kind}); leave --model {settings.model.name} out")
    if settings.weights_key is not None:
        raise InputError(f"--weights-key: {path} is not a PyTorch checkpoint; leave --weights-key out")
    return read_graph_file(path, kind, settings.input_shape, settings.output_part, settings.input_layout)


def build_imported_graph(graph: GraphFile, card: ModelCard, display: Display) -> nn.Module:
    """Return the module of a graph with its weights, on the CPU, after comparing it with the file's own library.

    The display gets a note of how many batch norms it has, of its layout, and of which output was taken. Raises
    `InputError` if it cannot be built, its weights are not finite, or it has other logits.
    """
    path: Path = graph.path
    try:
        module = build_graph(graph.description, graph.tensors, card.num_classes, card.input_shape)
    except InputError as error:
        raise InputError(f"{path} cannot be imported as a graph: {error}") from error
    module.to_empty(device="cpu")
    load_weights(module, graph.tensors, path)
    module.eval()
    check_same_logits(graph, module, graph.images, graph.logits, "random images")
    if graph.layout == "NHWC":
        display.event(Note(message=f"{path} takes images (N, H, W, C); those of gapssg are permuted (--input-layout)"))
    if graph.part is not None:
        display.event(Note(message=f"{path} has several outputs; its logits are {graph.part!r} (--output-part)"))
    operators, norms = len(graph.description["nodes"]), len(batch_norm_layers(module))
    message = f"{path} ({graph.kind}) has a graph of {operators:,} operators with {norms} batch norms"
    if not norms and not any(node[0].startswith(_OTHER_NORMS) for node in graph.description["nodes"]):
        message += "; a student learns more if it is exported with its batch norms (docs/importing.md)"
    display.event(Note(message=message))
    return module


def compare_on_images(graph: GraphFile, module: nn.Module, card: ModelCard, images: ImageSet) -> None:
    """Raise `InputError` if a graph and the file's own library have other logits for some real images."""
    normalization = Normalization.from_statistics(card.mean, card.deviation, torch.device("cpu"))
    some = normalization(to_unit_range(images.images[:_MOST_COMPARED]))
    check_same_logits(graph, module, some, original_logits(graph, some), "images of the data")
