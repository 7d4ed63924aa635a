"""Correction of the biases of int8 ONNX files: rounding moves the mean outputs of layers, biases move them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gapssg.export.formats import INPUT_NAME, calibration_batches

if TYPE_CHECKING:
    from onnx import ModelProto

Means = Mapping[str, NDArray[np.float64]]
"""The mean outputs (C,) of layers, by name."""

_ERRORS_ONLY = 4  # log level of onnxruntime, whose errors are also raised


def biased_layers(model: ModelProto) -> list[str]:
    """Return the convolutions and dense layers with a constant bias, in the order in which they are computed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    return [node.name for node in nodes if len(node.input) == 3 and node.input[2] in constants]


def correct_biases(quantized: ModelProto, means: Means, images: Tensor) -> None:
    """Change the biases of an int8 model so that the mean outputs of its layers are those of the float32 model.

    This is the empirical bias correction of Nagel et al. (ICCV 2019, appendix D). Each layer is measured with the
    layers before it corrected. Its mean is then off by at most half a step of its bias, which is the product of the
    steps of its input and of its weights.

    Args:
        quantized: The model with QuantizeLinear and DequantizeLinear around its layers; its biases are changed.
        means: Of the layers to correct, in the order in which they are computed: the means in the float32 model.
        images: Inputs (N, C, H, W) float32 of which the means are.
    """
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    nodes = {node.name: node for node in quantized.graph.node}
    producers = {node.output[0]: node for node in quantized.graph.node}
    limits = np.iinfo(np.int32)
    for layer, expected in means.items():
        name, scale = producers[nodes[layer].input[2]].input[:2]  # of the DequantizeLinear of the bias
        error = expected - channel_means(quantized, [layer], images)[layer]
        bias = numpy_helper.to_array(constants[name]) + np.rint(error / numpy_helper.to_array(constants[scale]))
        constants[name].CopyFrom(numpy_helper.from_array(bias.clip(limits.min, limits.max).astype(np.int32), name))


def channel_means(model: ModelProto, layers: Sequence[str], images: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return the mean outputs (C,) of layers, computing only what the last of them needs.

    Args:
        model: Any ONNX model.
        layers: The names of nodes `Conv` and `Gemm`, in the order in which they are computed.
        images: Inputs (N, C, H, W) float32.
    """
    import onnx
    import onnxruntime

    if not layers:
        return {}
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    places = {node.name: place for place, node in enumerate(graph.node)}
    del graph.node[places[layers[-1]] + 1 :]
    del graph.output[:]
    for layer in layers:
        node = graph.node[places[layer]]
        output = node.output[0]
        if node.op_type == "Conv":  # all outputs of all layers would not fit into memory
            output = f"{output} by image"
            graph.node.append(onnx.helper.make_node("GlobalAveragePool", node.output, [output]))
        graph.output.append(onnx.ValueInfoProto(name=output))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    session = onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    batches: list[Any] = [session.run(None, {INPUT_NAME: batch}) for batch in calibration_batches(images)]
    by_image = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    means = [values.reshape(len(values), -1).mean(0, dtype=np.float64) for values in by_image]
    return dict(zip(layers, means, strict=True))
