"""Files of small classifiers, as other teams write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gapssg.export.formats import quiet
from gapssg.models.graphs.child import read_file
from gapssg.models.graphs.description import check_graph
from gapssg.models.graphs.module import build_graph
from gapssg.models.graphs.trace import Graph, graph_of
from tests.models.graphs.small_models import INPUT_SHAPE, images

SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "torch.export": ".pt2"}
KEEPING = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
ANY_BATCH: Any = ({0: torch.export.Dim("batch")},)


def write(form: str, module: nn.Module, folder: Path, channels_last: bool = False) -> Path:
    """Write a module, such as in the form `onnx-folded`, and return the file."""
    kind, _, variant = form.partition("-")
    path = folder / f"{form}{SUFFIXES[kind]}"
    pair, one = images(2, channels_last), images(1, channels_last)
    if form == "onnx-optimised":
        return optimised(write("onnx-folded", module, folder), path)
    with quiet():
        if form == "onnx-dynamo":
            torch.onnx.export(module, (pair,), path, dynamo=True, dynamic_shapes=ANY_BATCH, verbose=False)
        elif form == "onnx-fixed":
            torch.onnx.export(module, (one,), path, dynamo=False)
        elif kind == "onnx":
            options: dict[str, Any] = KEEPING if variant == "kept" else {}
            any_batch = {"images": {0: "batch"}}
            torch.onnx.export(
                module, (pair,), path, dynamo=False, input_names=["images"], dynamic_axes=any_batch, **options
            )
        elif form == "torchscript-traced":
            torch.jit.save(torch.jit.trace(module, pair), path)
        elif form == "torchscript-scripted":
            torch.jit.save(torch.jit.script(module), path)
        else:
            dynamic = None if variant == "fixed" else ANY_BATCH
            example = one if variant == "fixed" else pair
            torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), path)
    return path


def optimised(path: Path, output: Path) -> Path:
    """Write an ONNX file as onnxruntime fuses its operators, and return the new file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(output)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return output


def read(path: Path) -> Graph:
    """Return the graph of a file, in this process."""
    with quiet():
        opened = read_file(next(kind for kind, suffix in SUFFIXES.items() if suffix == path.suffix), path)
        return graph_of(opened.read, INPUT_SHAPE, opened.batch)


def built(graph: Graph) -> nn.Module:
    """Return the module of a graph, as a model file builds it."""
    module = build_graph(check_graph(graph.description), graph.tensors, graph.num_classes, INPUT_SHAPE)
    module.to_empty(device="cpu").load_state_dict(graph.tensors)
    return module.eval().requires_grad_(False)
