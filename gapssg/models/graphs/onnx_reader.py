"""Reads ONNX files: each operator as operators of PyTorch.

Only for a child process: a library in C++ parses the file.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import torch
from onnx import numpy_helper
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import LARGEST_FILE, open_regular
from gapssg.models.graphs.record import Recorder, Traced, UnknownOperator

_STANDARD = ("", "ai.onnx")
_CONTROL_FLOW = {"Loop", "Scan", "SequenceMap"}
_COLOURS = (1, 3, 4)  # channels by which a layout (N, H, W, C) is recognised
_DEEPEST = 8
_DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
_DTYPES |= {9: torch.bool, 10: torch.float32, 11: torch.float32, 16: torch.float32}
_FLOATING = {1: torch.float32, 10: torch.float16, 11: torch.float64}


class OnnxFile(NamedTuple):
    """An ONNX file.

    Attributes:
        read: Applies it to the images of a recorder.
        input_shape: Channels, height and width that it declares; None where they are dynamic.
        batch: The batch size that it declares; None if it is dynamic.
        channels_last: Whether its images are (N, H, W, C).
        model: The file's content, with its weights.
    """

    read: Callable[[Recorder], Any]
    input_shape: tuple[int, ...] | None
    batch: int | None
    channels_last: bool
    model: onnx.ModelProto


def load(path: Path) -> OnnxFile:
    """Read an ONNX file and the files of weights beside it that it names.

    Raises:
        InputError: It is damaged, has several inputs or outputs, or operators that are not known here.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
        _read_external_data(model, path.parent)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        return _opened(model)
    except InputError:
        raise
    except Exception as error:  # of the library's many parts, each has its own
        raise InputError(f"it is not a readable ONNX file ({_first_line(error)})") from error


def _read_external_data(model: onnx.ModelProto, folder: Path) -> None:
    """Read the weights that are in files of the same folder, without following a path elsewhere."""
    for tensor in _tensors_of(model.graph):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        name = where.get("location", "")
        if not name or Path(name).name != name or (folder / name).is_symlink():
            raise InputError(f"its weights are in {shortened(name)}, which is not a file beside it")
        with open_regular(folder / name, LARGEST_FILE) as file:
            file.seek(int(where.get("offset", 0)))
            tensor.raw_data = file.read(int(where["length"])) if "length" in where else file.read()
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors_of(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    inner = [attribute for node in graph.node for attribute in node.attribute]
    return [
        *graph.initializer,
        *(attribute.t for attribute in inner if attribute.HasField("t")),
        *(tensor for attribute in inner if attribute.HasField("g") for tensor in _tensors_of(attribute.g)),
    ]


def _opened(model: onnx.ModelProto) -> OnnxFile:
    graph = model.graph
    if graph.sparse_initializer:
        raise InputError("it has sparse weights; save it with dense weights")
    versions = {opset.domain: opset.version for opset in model.opset_import}
    unknown = {each for each in _kinds(graph) if each not in _OPERATORS and each != "If"}
    if unknown & _CONTROL_FLOW:
        raise InputError(
            f"it has control flow ({', '.join(sorted(unknown & _CONTROL_FLOW))}), which a graph cannot express"
        )
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in stored]
    if len(inputs) != 1:
        raise InputError(f"it has {len(inputs)} inputs; save a model whose only input is the images")
    if len(graph.output) != 1:
        names = shortened(", ".join(each.name for each in graph.output))
        raise InputError(f"it has {len(graph.output)} outputs ({names}); save a model that returns only its logits")
    sizes = [size.dim_value or None for size in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise InputError(f"its input has {len(sizes)} dimensions instead of the 4 of images")
    channels_last = sizes[3] in _COLOURS and sizes[1] not in _COLOURS
    shape = (sizes[3], sizes[1], sizes[2]) if channels_last else tuple(sizes[1:])
    constants = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    version = max(versions.get(domain, 0) for domain in _STANDARD)

    def read(recorder: Recorder) -> Any:
        images = recorder.images
        if channels_last:
            images = recorder.call("permute.default", images, [0, 2, 3, 1])
        reader = _Reader(recorder, version, unknown)
        return reader.run(graph, {**constants, "": None, inputs[0].name: images})[0]

    known = tuple(size for size in shape if size)
    return OnnxFile(read, known if len(known) == 3 else None, sizes[0], channels_last, model)


def _kinds(graph: onnx.GraphProto) -> set[str]:
    """Return the operators of a graph and of its branches; those of other domains with the domain."""
    found = set()
    for node in graph.node:
        found.add(_name(node))
        for attribute in node.attribute:
            if attribute.HasField("g") and node.op_type == "If":
                found |= _kinds(attribute.g)
    return found


def _name(node: onnx.NodeProto) -> str:
    """Return the name of an operator, with the domain if that is another."""
    return str(node.op_type if node.domain in _STANDARD else f"{node.domain}.{node.op_type}")


def _constants_of(node: onnx.NodeProto, inputs: list[Any], version: int) -> list[Tensor]:
    """Apply any operator to constants, with the reference implementation of the ONNX library."""
    given = {name: value.numpy() for name, value in zip(node.input, inputs, strict=True) if value is not None}
    kinds = onnx.helper.np_dtype_to_tensor_dtype
    declared = [onnx.helper.make_tensor_value_info(key, kinds(each.dtype), each.shape) for key, each in given.items()]
    results = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = onnx.helper.make_graph([node], "constants", declared, results)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
    computed = onnx.reference.ReferenceEvaluator(model).run(None, given)
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in computed]


def _constant(tensor: onnx.TensorProto) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(numpy_helper.to_array(tensor)).copy())
    return values.reshape(tuple(tensor.dims)).to(torch.float32 if values.is_floating_point() else values.dtype)


class Node(NamedTuple):
    """An operator of the file with its inputs; a missing optional input is None.

    Attributes:
        call: Applies and records an operator of PyTorch.
        inputs: Traced values and constants.
        attributes: By name.
        outputs: The number of its results.
        version: Version of the operator set.
    """

    call: Callable[..., Any]
    inputs: list[Any]
    attributes: dict[str, Any]
    outputs: int
    version: int

    def input(self, place: int) -> Any:
        """Return an input; None if it is missing."""
        return self.inputs[place] if place < len(self.inputs) else None

    def constant(self, place: int, name: str) -> Any:
        """Return a constant that is an input, or an attribute in older operator sets, as numbers; None if missing."""
        value = self.input(place)
        if isinstance(value, Traced):
            raise InputError(f"the {name} of an operator depends on the values of the images")
        return self.attributes.get(name) if value is None else value.tolist()


class _Reader:
    """Applies a graph node by node."""

    def __init__(self, recorder: Recorder, version: int, unknown: set[str]) -> None:
        self._recorder = recorder
        self._version = version
        self._unknown = unknown  # known are only those of constants

    def run(self, graph: onnx.GraphProto, values: dict[str, Any], depth: int = 0) -> list[Any]:
        """Apply the nodes of a graph and return its outputs; `values` has its inputs by name."""
        for each in graph.node:
            attributes = {attribute.name: _attribute(attribute) for attribute in each.attribute}
            inputs = [values[name] for name in each.input]
            if each.op_type == "If":
                results = self._branch(inputs[0], attributes, values, depth)
            elif _name(each) in self._unknown:
                if any(isinstance(value, Traced) for value in inputs):
                    raise UnknownOperator(self._unknown)
                results = _constants_of(each, inputs, self._version)
            else:
                node = Node(self._recorder.call, inputs, attributes, len(each.output), self._version)
                try:
                    result = _OPERATORS[each.op_type](node)
                except InputError:
                    raise
                except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
                    raise InputError(f"its operator {each.op_type} cannot be applied ({_first_line(error)})") from error
                results = list(result) if isinstance(result, list | tuple) else [result]
            values.update(zip(each.output, results, strict=False))
        return [values[each.name] for each in graph.output]

    def _branch(self, condition: Any, branches: dict[str, Any], values: dict[str, Any], depth: int) -> list[Any]:
        if depth > _DEEPEST:
            raise InputError("its branches are nested too deeply")
        branch = branches["then_branch" if bool(condition) else "else_branch"]
        inner = values | {tensor.name: _constant(tensor) for tensor in branch.initializer}
        return self.run(branch, inner, depth + 1)


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _constant(value)
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if not isinstance(value, int | float | str | onnx.GraphProto) else value


def _shape(value: Any) -> list[int]:
    return list((value.tensor if isinstance(value, Traced) else value).shape)


def _rank(value: Any) -> int:
    return len(_shape(value))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shortened(lines[0] if lines else type(error).__name__, 150)


# Operators with one input and no attributes, and binary ones; the last two columns are for opsets and names.
def _unary(name: str) -> Callable[[Node], Any]:
    return lambda node: node.call(f"{name}.default", node.inputs[0])


def _binary(name: str) -> Callable[[Node], Any]:
    return lambda node: node.call(f"{name}.Tensor", node.inputs[0], node.inputs[1])


def _logical(name: str) -> Callable[[Node], Any]:
    return lambda node: node.call(f"{name}.default", *node.inputs)


def _variadic(name: str) -> Callable[[Node], Any]:
    return lambda node: reduce(partial(node.call, name), node.inputs)


def _div(node: Node) -> Any:
    first = node.inputs[0].tensor if isinstance(node.inputs[0], Traced) else node.inputs[0]
    if first.is_floating_point():
        return node.call("div.Tensor", *node.inputs)
    return node.call("div.Tensor_mode", *node.inputs, rounding_mode="trunc")


def _mod(node: Node) -> Any:
    return node.call("remainder.Tensor", *node.inputs)


def _pow(node: Node) -> Any:
    base, exponent = node.inputs
    if isinstance(exponent, Tensor) and exponent.numel() == 1 and isinstance(base, Traced):
        return node.call("pow.Tensor_Scalar", base, exponent.item())
    return node.call("pow.Tensor_Tensor", base, exponent)


def _pads(node: Node, values: Any, size: int, inputs: Any, kernel: list[int]) -> tuple[Any, list[int]]:
    """Pad asymmetric borders explicitly with a value; return the inputs and the symmetric padding that is left."""
    pads = node.attributes.get("pads", [0] * 2 * size)
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        strides = node.attributes.get("strides", [1] * size)
        dilations = node.attributes.get("dilations", [1] * size)
        begins, ends = [], []
        for each, length, stride, dilation in zip(_shape(inputs)[2:], kernel, strides, dilations, strict=True):
            total = max(0, (-(-each // stride) - 1) * stride + (length - 1) * dilation + 1 - each)
            smaller, larger = total // 2, total - total // 2
            begins.append(smaller if mode == "SAME_UPPER" else larger)
            ends.append(larger if mode == "SAME_UPPER" else smaller)
        pads = [*begins, *ends]
    begins, ends = pads[:size], pads[size:]
    if begins == ends:
        return inputs, begins
    flat = [each for pair in zip(reversed(begins), reversed(ends), strict=True) for each in pair]
    return node.call("constant_pad_nd.default", inputs, flat, values), [0] * size


def _conv(node: Node) -> Any:
    inputs, weight, bias = node.input(0), node.input(1), node.input(2)
    size = _rank(weight) - 2
    inputs, padding = _pads(node, 0.0, size, inputs, _shape(weight)[2:])
    strides, dilations = (node.attributes.get(key, [1] * size) for key in ("strides", "dilations"))
    groups = node.attributes.get("group", 1)
    zeros = [0] * size
    return node.call("convolution.default", inputs, weight, bias, strides, padding, dilations, False, zeros, groups)


def _conv_transpose(node: Node) -> Any:
    inputs, weight, bias = node.input(0), node.input(1), node.input(2)
    size = _rank(weight) - 2
    pads = node.attributes.get("pads", [0] * 2 * size)
    if pads[:size] != pads[size:] or "output_shape" in node.attributes:
        raise InputError("its transposed convolution has an asymmetric padding")
    strides, dilations = (node.attributes.get(key, [1] * size) for key in ("strides", "dilations"))
    extra = node.attributes.get("output_padding", [0] * size)
    groups = node.attributes.get("group", 1)
    return node.call("convolution.default", inputs, weight, bias, strides, pads[:size], dilations, True, extra, groups)


def _max_pool(node: Node) -> Any:
    kernel = node.attributes["kernel_shape"]
    size = len(kernel)
    inputs, padding = _pads(node, float("-inf"), size, node.inputs[0], kernel)
    strides, dilations = (node.attributes.get(key, [1] * size) for key in ("strides", "dilations"))
    ceil = bool(node.attributes.get("ceil_mode", 0))
    return node.call(f"max_pool{size}d.default", inputs, kernel, strides, padding, dilations, ceil)


def _average_pool(node: Node) -> Any:
    kernel = node.attributes["kernel_shape"]
    size = len(kernel)
    counts_padding = bool(node.attributes.get("count_include_pad", 0))
    before = node.inputs[0]
    inputs, padding = _pads(node, 0.0, size, before, kernel)
    strides = node.attributes.get("strides", [1] * size)
    ceil = bool(node.attributes.get("ceil_mode", 0))

    def pooled(value: Any, counted: bool) -> Any:
        return node.call(f"avg_pool{size}d.default", value, kernel, strides, padding, ceil, counted)

    if inputs is before or counts_padding:
        return pooled(inputs, counts_padding)
    ones = torch.ones(1, 1, *_shape(before)[2:])
    shares = pooled(_pads(node, 0.0, size, ones, kernel)[0], True)
    return node.call("div.Tensor", pooled(inputs, True), shares)


def _global_average_pool(node: Node) -> Any:
    inputs = node.inputs[0]
    if _rank(inputs) == 4:
        return node.call("adaptive_avg_pool2d.default", inputs, [1, 1])
    return node.call("mean.dim", inputs, list(range(2, _rank(inputs))), True)


def _global_max_pool(node: Node) -> Any:
    return node.call("amax.default", node.inputs[0], list(range(2, _rank(node.inputs[0]))), True)


def _batch_norm(node: Node) -> Any:
    inputs, weight, bias, mean, variance = node.inputs
    if node.attributes.get("training_mode", 0) or (node.outputs > 1 and node.version < 14):
        raise InputError("it was saved in training mode; export it in evaluation mode")
    eps = node.attributes.get("epsilon", 1e-5)
    return node.call("batch_norm.default", inputs, weight, bias, mean, variance, False, 0.1, eps, False)


def _layer_norm(node: Node) -> Any:
    inputs = node.inputs[0]
    shape = _shape(inputs)[node.attributes.get("axis", -1) :]
    weight, bias = node.input(1), node.input(2)
    return node.call("layer_norm.default", inputs, shape, weight, bias, node.attributes.get("epsilon", 1e-5), False)


def _instance_norm(node: Node) -> Any:
    eps = node.attributes.get("epsilon", 1e-5)
    inputs, weight, bias = node.inputs
    return node.call("instance_norm.default", inputs, weight, bias, None, None, True, 0.0, eps, False)


def _group_norm(node: Node) -> Any:
    inputs, weight, bias = node.inputs
    groups, eps = node.attributes["num_groups"], node.attributes.get("epsilon", 1e-5)
    channels = _shape(inputs)[1]
    if len(weight) != channels:  # one number a group, before operator set 21
        weight, bias = (each.repeat_interleave(channels // groups) for each in (weight, bias))
    return node.call("group_norm.default", inputs, groups, weight, bias, eps, False)


def _local_response_norm(node: Node) -> Any:
    inputs, size = node.inputs[0], node.attributes["size"]
    alpha, beta, bias = (node.attributes.get(*each) for each in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    squares = node.call("unsqueeze.default", node.call("square.default", inputs), 1)
    padded = node.call("constant_pad_nd.default", squares, [0, 0, 0, 0, (size - 1) // 2, size // 2], 0.0)
    means = node.call("squeeze.dim", node.call("avg_pool3d.default", padded, [size, 1, 1], [1, 1, 1]), 1)
    base = node.call("add.Scalar", node.call("mul.Scalar", means, alpha), bias)
    return node.call("div.Tensor", inputs, node.call("pow.Tensor_Scalar", base, beta))


def _lp_norm(node: Node) -> Any:
    order, axis = node.attributes.get("p", 2), node.attributes.get("axis", -1)
    return node.call(
        "div.Tensor", node.inputs[0], node.call("linalg_vector_norm.default", node.inputs[0], order, [axis], True)
    )


def _gemm(node: Node) -> Any:
    first, second, bias = node.input(0), node.input(1), node.input(2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if node.attributes.get("transA", 0):
        first = node.call("t.default", first)
    if node.attributes.get("transB", 0):
        second = node.call("t.default", second)
    flat = isinstance(bias, Tensor) and bias.ndim == 2 and len(bias) == 1
    bias = bias[0] if flat else bias
    if isinstance(second, Tensor) and alpha == 1 and (bias is None or (isinstance(bias, Tensor) and bias.ndim == 1)):
        scaled = bias * beta if bias is not None and beta != 1 else bias
        return node.call("linear.default", first, second.t().contiguous(), scaled)
    product = node.call("mm.default", first, second)
    product = node.call("mul.Tensor", product, alpha) if alpha != 1 else product
    if bias is None:
        return product
    return node.call("add.Tensor", product, node.call("mul.Tensor", bias, beta) if beta != 1 else bias)


def _matmul(node: Node) -> Any:
    first, second = node.inputs
    if isinstance(second, Tensor) and second.ndim == 2 and isinstance(first, Traced):
        return node.call("linear.default", first, second.t().contiguous())
    return node.call("matmul.default", first, second)


def _softmax(name: str) -> Callable[[Node], Any]:
    def apply(node: Node) -> Any:
        inputs = node.inputs[0]
        if node.version >= 13:
            return node.call(f"{name}.int", inputs, node.attributes.get("axis", -1))
        axis, shape = node.attributes.get("axis", 1), _shape(inputs)
        rows = node.call("flatten.using_ints", inputs, axis, -1) if axis < len(shape) - 1 else inputs
        return node.call("reshape.default", node.call(f"{name}.int", rows, -1), shape)

    return apply


def _clip(node: Node) -> Any:
    low, high = node.constant(1, "min"), node.constant(2, "max")
    low, high = (each[0] if isinstance(each, list) else each for each in (low, high))
    if (low, high) == (0, 6):
        return node.call("relu6.default", node.inputs[0])
    return node.call("clamp.default", node.inputs[0], low, high)


def _prelu(node: Node) -> Any:
    inputs, slope = node.inputs
    if isinstance(slope, Tensor) and slope.numel() in (1, _shape(inputs)[1]):
        return node.call("prelu.default", inputs, slope.flatten())
    negative = node.call("mul.Tensor", node.call("clamp_max.default", inputs, 0.0), slope)
    return node.call("add.Tensor", node.call("relu.default", inputs), negative)


def _hard_sigmoid(node: Node) -> Any:
    alpha, beta = node.attributes.get("alpha", 0.2), node.attributes.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return node.call("hardsigmoid.default", node.inputs[0])
    scaled = node.call("add.Scalar", node.call("mul.Scalar", node.inputs[0], alpha), beta)
    return node.call("clamp.default", scaled, 0.0, 1.0)


def _swish(node: Node) -> Any:
    scaled = node.call("mul.Scalar", node.inputs[0], node.attributes.get("alpha", 1.0))
    return node.call("mul.Tensor", node.inputs[0], node.call("sigmoid.default", scaled))


def _softsign(node: Node) -> Any:
    inputs = node.inputs[0]
    return node.call("div.Tensor", inputs, node.call("add.Scalar", node.call("abs.default", inputs), 1.0))


def _reduce(name: str) -> Callable[[Node], Any]:
    def apply(node: Node) -> Any:
        inputs, keeps = node.inputs[0], bool(node.attributes.get("keepdims", 1))
        axes = node.constant(1, "axes")
        if not axes:
            if node.attributes.get("noop_with_empty_axes", 0):
                return inputs
            axes = list(range(_rank(inputs)))
        if name == "norm":
            return node.call("linalg_vector_norm.default", inputs, 2, axes, keeps)
        if name == "square":
            return node.call("sum.dim_IntList", node.call("square.default", inputs), axes, keeps)
        return node.call(name, inputs, axes, keeps)

    return apply


def _reshape(node: Node) -> Any:
    inputs, shape = node.inputs[0], node.constant(1, "shape")
    if not node.attributes.get("allowzero", 0):
        shape = [_shape(inputs)[place] if size == 0 else size for place, size in enumerate(shape)]
    return node.call("reshape.default", inputs, shape)


def _flatten(node: Node) -> Any:
    inputs, axis = node.inputs[0], node.attributes.get("axis", 1)
    shape = _shape(inputs)
    axis = axis + len(shape) if axis < 0 else axis
    rows = reduce(python.mul, shape[:axis], 1)
    return node.call("reshape.default", inputs, [rows, reduce(python.mul, shape[axis:], 1)])


def _transpose(node: Node) -> Any:
    order = node.attributes.get("perm") or list(reversed(range(_rank(node.inputs[0]))))
    return node.call("permute.default", node.inputs[0], order)


def _squeeze(node: Node) -> Any:
    axes = node.constant(1, "axes")
    if axes is None:
        axes = [place for place, size in enumerate(_shape(node.inputs[0])) if size == 1]
    return node.call("squeeze.dims", node.inputs[0], axes)


def _unsqueeze(node: Node) -> Any:
    value, axes = node.inputs[0], node.constant(1, "axes")
    rank = _rank(value) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        value = node.call("unsqueeze.default", value, axis)
    return value


def _split(node: Node) -> Any:
    value, axis = node.inputs[0], node.attributes.get("axis", 0)
    sizes = node.constant(1, "split")
    if sizes is None:
        return node.call("split.Tensor", value, -(-_shape(value)[axis] // node.outputs), axis)
    return node.call("split_with_sizes.default", value, sizes, axis)


def _slice(node: Node) -> Any:
    value = node.inputs[0]
    starts, ends = node.constant(1, "starts"), node.constant(2, "ends")
    axes = node.constant(3, "axes") or list(range(len(starts)))
    steps = node.constant(4, "steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            size = _shape(value)[axis]
            value = node.call("flip.default", value, [axis])
            start, end = (size - 1 - (each + size if each < 0 else min(each, size - 1)) for each in (start, end))
            end, step = max(end, start), -step
        value = node.call("slice.Tensor", value, axis, start, min(end, 2**62), step)
    return value


def _gather(node: Node) -> Any:
    value, places = node.inputs
    axis = node.attributes.get("axis", 0)
    if isinstance(places, Traced):
        raise InputError("it looks values up by those of the images, which has no gradient")
    size = _shape(value)[axis]
    places = torch.where(places < 0, places + size, places).long()
    if places.ndim == 0:
        return node.call("select.int", value, axis, int(places))
    found = node.call("index_select.default", value, axis, places.flatten())
    if places.ndim == 1:
        return found
    axis = axis % _rank(value)
    return node.call("reshape.default", found, [*_shape(value)[:axis], *places.shape, *_shape(value)[axis + 1 :]])


def _broadcast(first: list[int], second: list[int]) -> list[int]:
    rank = max(len(first), len(second))
    padded = ([1] * (rank - len(shape)) + shape for shape in (first, second))
    return [max(pair) if 1 in pair else pair[0] for pair in zip(*padded, strict=True)]


def _expand(node: Node) -> Any:
    value, wanted = node.inputs[0], node.constant(1, "shape")
    return node.call("expand.default", value, _broadcast(_shape(value), wanted))


def _tile(node: Node) -> Any:
    return node.call("repeat.default", node.inputs[0], node.constant(1, "repeats"))


def _pad(node: Node) -> Any:
    value, pads = node.inputs[0], node.constant(1, "pads")
    axes = node.constant(3, "axes") or list(range(len(pads) // 2))
    amounts = dict.fromkeys(range(_rank(value)), (0, 0))
    for place, axis in enumerate(axes):
        amounts[axis % _rank(value)] = (pads[place], pads[place + len(axes)])
    flat = [each for axis in sorted(amounts, reverse=True) for each in amounts[axis]]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    mode = node.attributes.get("mode", "constant")
    if mode == "constant":
        number = node.constant(2, "value") or 0.0
        return node.call("constant_pad_nd.default", value, flat, number[0] if isinstance(number, list) else number)
    return node.call("pad.default", value, flat, {"edge": "replicate", "wrap": "circular"}.get(mode, mode))


def _where(node: Node) -> Any:
    return node.call("where.self", *node.inputs)


def _cast(node: Node) -> Any:
    return node.call("to.dtype", node.inputs[0], _DTYPES[node.attributes["to"]])


def _cast_like(node: Node) -> Any:
    other = node.inputs[1]
    return node.call("to.dtype", node.inputs[0], (other.tensor if isinstance(other, Traced) else other).dtype)


def _constant_node(node: Node) -> Any:
    ((name, value),) = node.attributes.items()
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32 if name.startswith("value_float") else torch.int64)


def _constant_of_shape(node: Node) -> Any:
    value = node.attributes.get("value", torch.zeros(1))
    return node.call("full.default", node.constant(0, "shape"), value.item()).to(value.dtype)


def _range(node: Node) -> Any:
    start, end, step = (node.constant(place, "range") for place in range(3))
    return node.call("arange.start_step", start, end, step)


def _shape_of(node: Node) -> Any:
    shape = _shape(node.inputs[0])
    start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
    return torch.tensor(shape[start:end], dtype=torch.int64)


def _size(node: Node) -> Any:
    return torch.tensor(reduce(python.mul, _shape(node.inputs[0]), 1))


def _depth_to_space(node: Node) -> Any:
    value, block = node.inputs[0], node.attributes["blocksize"]
    if node.attributes.get("mode", "DCR") == "CRD":
        return node.call("pixel_shuffle.default", value, block)
    count, channels, height, width = _shape(value)
    parts = node.call("reshape.default", value, [count, block, block, channels // block**2, height, width])
    moved = node.call("permute.default", parts, [0, 3, 4, 1, 5, 2])
    return node.call("reshape.default", moved, [count, channels // block**2, height * block, width * block])


def _space_to_depth(node: Node) -> Any:
    value, block = node.inputs[0], node.attributes["blocksize"]
    count, channels, height, width = _shape(value)
    parts = node.call("reshape.default", value, [count, channels, height // block, block, width // block, block])
    moved = node.call("permute.default", parts, [0, 3, 5, 1, 2, 4])
    return node.call("reshape.default", moved, [count, channels * block**2, height // block, width // block])


def _sum(node: Node) -> Any:
    return reduce(partial(node.call, "add.Tensor"), node.inputs)


def _mean(node: Node) -> Any:
    return node.call("div.Tensor", _sum(node), float(len(node.inputs)))


def _gelu(node: Node) -> Any:
    return node.call("gelu.default", node.inputs[0], approximate=node.attributes.get("approximate", "none"))


def _dropout(node: Node) -> Any:
    mode = node.input(2)
    if mode is not None and (isinstance(mode, Traced) or bool(mode)):
        raise InputError("it was saved in training mode; export it in evaluation mode")
    return node.inputs[0]


def _leaky_relu(node: Node) -> Any:
    return node.call("leaky_relu.default", node.inputs[0], node.attributes.get("alpha", 0.01))


def _elu(node: Node) -> Any:
    return node.call("elu.default", node.inputs[0], node.attributes.get("alpha", 1.0))


def _einsum(node: Node) -> Any:
    return node.call("einsum.default", node.attributes["equation"], list(node.inputs))


def _trilu(node: Node) -> Any:
    diagonal = node.constant(1, "k") or 0
    return node.call("triu.default" if node.attributes.get("upper", 1) else "tril.default", node.inputs[0], diagonal)


def _concat(node: Node) -> Any:
    return node.call("cat.default", list(node.inputs), node.attributes["axis"])


def _cumsum(node: Node) -> Any:
    return node.call("cumsum.default", node.inputs[0], node.constant(1, "axis"))


def _identity(node: Node) -> Any:
    return node.inputs[0]


_OPERATORS: dict[str, Callable[[Node], Any]] = {
    **{kind: _unary(kind.lower()) for kind in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs")},
    **{kind: _unary(kind.lower()) for kind in ("Floor", "Ceil", "Round", "Reciprocal", "Sin", "Cos", "Atan", "Sign")},
    **{kind: _unary(kind.lower()) for kind in ("Mish", "Selu", "HardSwish", "Softplus")},
    **{kind: _binary(kind.lower()) for kind in ("Add", "Sub", "Mul")},
    **{kind: _logical(f"logical_{kind.lower()}") for kind in ("And", "Or", "Xor", "Not")},
    "Equal": _binary("eq"),
    "Greater": _binary("gt"),
    "GreaterOrEqual": _binary("ge"),
    "Less": _binary("lt"),
    "LessOrEqual": _binary("le"),
    "Max": _variadic("maximum.default"),
    "Min": _variadic("minimum.default"),
    "Sum": _sum,
    "Mean": _mean,
    "Div": _div,
    "Mod": _mod,
    "Pow": _pow,
    "Where": _where,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LRN": _local_response_norm,
    "LpNormalization": _lp_norm,
    "Softmax": _softmax("softmax"),
    "LogSoftmax": _softmax("log_softmax"),
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "PRelu": _prelu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Swish": _swish,
    "HardSigmoid": _hard_sigmoid,
    "Softsign": _softsign,
    "ReduceMean": _reduce("mean.dim"),
    "ReduceSum": _reduce("sum.dim_IntList"),
    "ReduceMax": _reduce("amax.default"),
    "ReduceMin": _reduce("amin.default"),
    "ReduceL2": _reduce("norm"),
    "ReduceSumSquare": _reduce("square"),
    "CumSum": _cumsum,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Trilu": _trilu,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Constant": _constant_node,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Shape": _shape_of,
    "Size": _size,
    "Dropout": _dropout,
    "Identity": _identity,
}


def input_of(model: onnx.ModelProto) -> tuple[str, torch.dtype]:
    """Return the name and the dtype of the images."""
    stored = {tensor.name for tensor in model.graph.initializer}
    images = next(each for each in model.graph.input if each.name not in stored)
    kind = images.type.tensor_type.elem_type
    if kind not in _FLOATING:
        raise InputError("its images are integers; save a model of floating images")
    return images.name, _FLOATING[kind]


def is_half(model: onnx.ModelProto) -> bool:
    """Tell whether a file computes in half precision, at least in part."""
    half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    return input_of(model)[1] == torch.float16 or any(each.data_type in half for each in model.graph.initializer)
