"""The operators of ONNX, each as operators of PyTorch. Imports no ONNX library."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial, reduce
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError
from gapssg.models.graphs.record import Traced, tensor_of

_DTYPES = {1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64}
_DTYPES |= {9: torch.bool, 10: torch.float32, 11: torch.float32, 16: torch.float32}


class Node(NamedTuple):
    """An operator of the file with its inputs; a missing optional input is None."""

    call: Callable[..., Any]
    """Applies and records an operator of PyTorch."""
    inputs: list[Any]
    """Traced values and constants."""
    attributes: dict[str, Any]
    """By name."""
    outputs: int
    """The number of its results."""
    version: int
    """Version of the operator set."""

    def input(self, place: int) -> Any:
        """Return an input; None if it is missing."""
        return self.inputs[place] if place < len(self.inputs) else None

    def constant(self, place: int, name: str) -> Any:
        """Return a constant that is an input, or an attribute in older operator sets, as numbers; None if missing."""
        value = self.input(place)
        if isinstance(value, Traced):
            raise InputError(f"the {name} of an operator depends on the values of the images")
        return self.attributes.get(name) if value is None else value.tolist()


def _shape(value: Any) -> list[int]:
    return list(tensor_of(value).shape)


def _rank(value: Any) -> int:
    return len(_shape(value))


def _same(name: str) -> Callable[[Node], Any]:
    """Return an operator of which PyTorch has one with the same inputs and no attributes."""
    return lambda node: node.call(name, *node.inputs)


def _with(name: str, attribute: str, default: float) -> Callable[[Node], Any]:
    """Return an operator of one input and one attribute, which PyTorch takes as the second argument."""
    return lambda node: node.call(name, node.inputs[0], node.attributes.get(attribute, default))


def _variadic(name: str) -> Callable[[Node], Any]:
    return lambda node: reduce(partial(node.call, name), node.inputs)


def _div(node: Node) -> Any:
    if tensor_of(node.inputs[0]).is_floating_point():
        return node.call("div.Tensor", *node.inputs)
    return node.call("div.Tensor_mode", *node.inputs, rounding_mode="trunc")


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


def _rms_norm(node: Node) -> Any:
    inputs, weight = node.inputs
    shape = _shape(inputs)[node.attributes.get("axis", -1) :]
    return node.call("rms_norm.default", inputs, shape, weight, node.attributes.get("epsilon", 1e-5))


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
    return node.call("reshape.default", inputs, [math.prod(shape[:axis]), math.prod(shape[axis:])])


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
    is_all = torch.equal(places.flatten(), torch.arange(size))
    found = value if is_all else node.call("index_select.default", value, axis, places.flatten())
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


def _constant_node(node: Node) -> Any:
    ((name, value),) = node.attributes.items()
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float32 if name.startswith("value_float") else torch.int64)


def _constant_of_shape(node: Node) -> Any:
    value = node.attributes.get("value", torch.zeros(1))
    return node.call("full.default", node.constant(0, "shape"), value.item()).to(value.dtype)


def _shape_of(node: Node) -> Any:
    shape = _shape(node.inputs[0])
    start, end = node.attributes.get("start", 0), node.attributes.get("end", len(shape))
    return torch.tensor(shape[start:end], dtype=torch.int64)


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


_CUBIC = -0.75  # the usual coefficient


def _resize(node: Node) -> Any:
    """Interpolate along one dimension after another, as weighted sums of selected places."""
    value, attributes = node.inputs[0], node.attributes
    is_old = node.version < 11  # Upsample, and Resize of version 10
    scales = node.constant(1 if is_old else 2, "scales")
    sizes = None if is_old else node.constant(3, "sizes")
    axes = attributes.get("axes") or list(range(_rank(value)))
    before = _shape(value)
    sizes = sizes or [int(before[axis] * scale) for axis, scale in zip(axes, scales, strict=True)]
    scales = scales or [size / before[axis] for axis, size in zip(axes, sizes, strict=True)]
    method = attributes.get("coordinate_transformation_mode", "asymmetric" if is_old else "half_pixel")
    rounding = attributes.get("nearest_mode", "floor" if is_old else "round_prefer_floor")
    if (
        method not in _COORDINATES
        or any(attributes.get(each) for each in ("antialias", "exclude_outside"))
        or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        or attributes.get("cubic_coeff_a", _CUBIC) != _CUBIC
    ):
        raise InputError("its Resize crops, smooths or keeps an aspect ratio; resize before the model instead")
    for axis, size, scale in zip(axes, sizes, scales, strict=True):
        length = before[axis]
        if size != length:
            places = _COORDINATES[method](torch.arange(size, dtype=torch.float32), scale, length, size)
            value = _interpolated(node, value, axis, places, attributes.get("mode", "nearest"), rounding)
    return value


_COORDINATES: dict[str, Callable[[Tensor, float, int, int], Tensor]] = {
    "half_pixel": lambda places, scale, _, __: (places + 0.5) / scale - 0.5,
    "pytorch_half_pixel": lambda places, scale, _, size: (places + 0.5) / scale - 0.5 if size > 1 else 0 * places,
    "asymmetric": lambda places, scale, _, __: places / scale,
    "align_corners": lambda places, _, length, size: places * (length - 1) / max(1, size - 1),
}
_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda places: (places - 0.5).ceil(),
    "round_prefer_ceil": lambda places: (places + 0.5).floor(),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _interpolated(node: Node, value: Any, axis: int, places: Tensor, mode: str, rounding: str) -> Any:
    """Return the values at fractional places along an axis."""
    last = _shape(value)[axis] - 1
    if mode == "nearest":
        nearest = _ROUNDINGS[rounding](places).clamp(0, last)
        return node.call("index_select.default", value, axis, nearest.long())
    low = places.floor()
    share = places - low
    if mode == "cubic":
        near, far = ((_CUBIC + 2, -_CUBIC - 3, 0, 1), (_CUBIC, -5 * _CUBIC, 8 * _CUBIC, -4 * _CUBIC))
        distances = ((share + 1, far), (share, near), (1 - share, near), (2 - share, far))
        weights = [((a * x + b) * x + c) * x + d for x, (a, b, c, d) in distances]
    else:
        weights = [1 - share, share]
    total = None
    for offset, weight in enumerate(weights, start=-1 if mode == "cubic" else 0):
        chosen = node.call("index_select.default", value, axis, (low + offset).clamp(0, last).long())
        shape = [len(places) if place == axis else 1 for place in range(_rank(value))]
        part = node.call("mul.Tensor", chosen, weight.reshape(shape))
        total = part if total is None else node.call("add.Tensor", total, part)
    return total


def _attention(node: Node) -> Any:
    """Attend with queries, keys and values (N, H, L, D), or (N, L, H D) whose numbers of heads are attributes."""
    if any(node.input(place) is not None for place in (4, 5)) or node.outputs > 1 or node.attributes.get("softcap"):
        raise InputError("its Attention keeps keys or caps its logits, as in models of language")
    queries, keys, values = node.inputs[:3]
    is_flat = _rank(queries) == 3
    if is_flat:
        heads = [node.attributes[name] for name in ("q_num_heads", *["kv_num_heads"] * 2)]
        queries, keys, values = (
            node.call("transpose.int", node.call("reshape.default", each, [*_shape(each)[:2], count, -1]), 1, 2)
            for each, count in zip((queries, keys, values), heads, strict=True)
        )
    causal, scale = bool(node.attributes.get("is_causal", 0)), node.attributes.get("scale")
    name = "scaled_dot_product_attention.default"
    result = node.call(name, queries, keys, values, node.input(3), 0.0, causal, scale=scale)
    if not is_flat:
        return result
    result = node.call("transpose.int", result, 1, 2)
    return node.call("reshape.default", result, [*_shape(result)[:2], -1])


def _gelu(node: Node) -> Any:
    return node.call("gelu.default", node.inputs[0], approximate=node.attributes.get("approximate", "none"))


def _dropout(node: Node) -> Any:
    mode = node.input(2)
    if mode is not None and (isinstance(mode, Traced) or bool(mode)):
        raise InputError("it was saved in training mode; export it in evaluation mode")
    return node.inputs[0]


def _scale_and_zero(node: Node) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of a quantisation in the shape of the values, the latter in its own dtype."""
    value, scale, zero = node.inputs[0], node.inputs[1], node.input(2)
    if isinstance(scale, Traced) or node.attributes.get("block_size", 0):
        raise InputError("its numbers are quantised in blocks, or by scales that depend on the images")
    rank = _rank(value)
    axis = node.attributes.get("axis", 1) % max(1, rank)
    shape = [-1 if place == axis else 1 for place in range(rank)] if scale.numel() > 1 else []
    zero = torch.zeros(scale.shape, dtype=torch.uint8) if zero is None else zero
    return scale.reshape(shape), zero.reshape(shape)


def _quantize(node: Node) -> Any:
    """Round constants to integers, and activations to what these stand for, with the gradient of a clamp."""
    value = node.inputs[0]
    scale, zero = _scale_and_zero(node)
    limits = torch.iinfo(zero.dtype)
    if not isinstance(value, Traced):
        return ((value / scale).round() + zero).clamp(limits.min, limits.max).to(zero.dtype)
    low, high = ((limit - zero.to(scale.dtype)) * scale for limit in (limits.min, limits.max))
    clamped = node.call("clamp.Tensor", value, low, high)
    rounded = node.call("mul.Tensor", node.call("round.default", node.call("div.Tensor", clamped, scale)), scale)
    change = node.call("constant_gradient.default", node.call("sub.Tensor", rounded, clamped))
    return node.call("add.Tensor", clamped, change)


def _dequantize(node: Node) -> Any:
    """Return the numbers that integers stand for; `_quantize` has done so for activations."""
    value = node.inputs[0]
    scale, zero = _scale_and_zero(node)
    return value if isinstance(value, Traced) else (value.to(scale.dtype) - zero.to(scale.dtype)) * scale


def _trilu(node: Node) -> Any:
    diagonal = node.constant(1, "k") or 0
    return node.call("triu.default" if node.attributes.get("upper", 1) else "tril.default", node.inputs[0], diagonal)


def _fused(apply: Callable[[Node], Any], others: int) -> Callable[[Node], Any]:
    """Return an operator that adds a further input to its result, if there is one, and then applies an activation."""

    def fused(node: Node) -> Any:
        result = apply(node)
        if node.input(others) is not None:
            result = node.call("add.Tensor", result, node.input(others))
        activation = node.attributes.get("activation")
        if not activation:
            return result
        parameters = node.attributes.get("activation_params", [])
        alpha = parameters[0] if parameters else node.attributes.get("activation_alpha", 0.01)
        low, high = (torch.tensor(each) for each in (*parameters, 0.0, 0.0)[:2])
        inputs = [result, low, high] if activation == "Clip" else [result]
        attributes = dict(zip(("alpha", "beta"), parameters, strict=False)) or {"alpha": alpha}
        return ONNX_OPERATORS[activation](node._replace(inputs=inputs, attributes=attributes))

    return fused


def _fused_matmul(node: Node) -> Any:
    if node.attributes.get("transBatchA", 0) or node.attributes.get("transBatchB", 0):
        raise InputError("its operator FusedMatMul transposes batches; save it without optimisation")
    pair = list(node.inputs)
    for place, name in enumerate(("transA", "transB")):
        if node.attributes.get(name, 0):
            pair[place] = node.call("transpose.int", pair[place], -2, -1)
    product = _matmul(node._replace(inputs=pair))
    alpha = node.attributes.get("alpha", 1.0)
    return product if alpha == 1 else node.call("mul.Scalar", product, alpha)


def _bias_gelu(approximate: str) -> Callable[[Node], Any]:
    def apply(node: Node) -> Any:
        bias = node.input(1)
        inputs = node.inputs[0] if bias is None else node.call("add.Tensor", node.inputs[0], bias)
        return node.call("gelu.default", inputs, approximate=approximate)

    return apply


def _skip_layer_norm(node: Node) -> Any:
    """Normalise the sum of two inputs and a bias; the fourth result is the sum."""
    total = node.call("add.Tensor", node.inputs[0], node.inputs[1])
    if node.input(4) is not None:
        total = node.call("add.Tensor", total, node.input(4))
    normalised = _layer_norm(node._replace(inputs=[total, node.input(2), node.input(3)]))
    return normalised, None, None, total


ONNX_OPERATORS: Mapping[str, Callable[[Node], Any]] = MappingProxyType(
    {
        **{
            kind: _same(f"{kind.lower()}.default")
            for kind in (
                *("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs", "Floor", "Ceil", "Round"),
                *("Reciprocal", "Sin", "Cos", "Atan", "Sign", "Mish", "Selu", "HardSwish", "Softplus"),
            )
        },
        **{kind: _same(f"{kind.lower()}.Tensor") for kind in ("Add", "Sub", "Mul")},
        **{kind: _same(f"logical_{kind.lower()}.default") for kind in ("And", "Or", "Xor", "Not")},
        "Equal": _same("eq.Tensor"),
        "Greater": _same("gt.Tensor"),
        "GreaterOrEqual": _same("ge.Tensor"),
        "Less": _same("lt.Tensor"),
        "LessOrEqual": _same("le.Tensor"),
        "Max": _variadic("maximum.default"),
        "Min": _variadic("minimum.default"),
        "Sum": _variadic("add.Tensor"),
        "Mean": lambda node: node.call("div.Tensor", _variadic("add.Tensor")(node), float(len(node.inputs))),
        "Div": _div,
        "Mod": _same("remainder.Tensor"),
        "Pow": _pow,
        "Where": _same("where.self"),
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Gemm": _gemm,
        "MatMul": _matmul,
        "Einsum": lambda node: node.call("einsum.default", node.attributes["equation"], list(node.inputs)),
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _global_average_pool,
        "GlobalMaxPool": _global_max_pool,
        "BatchNormalization": _batch_norm,
        "LayerNormalization": _layer_norm,
        "RMSNormalization": _rms_norm,
        "InstanceNormalization": _instance_norm,
        "GroupNormalization": _group_norm,
        "LRN": _local_response_norm,
        "LpNormalization": _lp_norm,
        "Softmax": _softmax("softmax"),
        "LogSoftmax": _softmax("log_softmax"),
        "Clip": _clip,
        "LeakyRelu": _with("leaky_relu.default", "alpha", 0.01),
        "PRelu": _prelu,
        "Elu": _with("elu.default", "alpha", 1.0),
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
        "CumSum": lambda node: node.call("cumsum.default", node.inputs[0], node.constant(1, "axis")),
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Transpose": _transpose,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Concat": lambda node: node.call("cat.default", list(node.inputs), node.attributes["axis"]),
        "Split": _split,
        "Slice": _slice,
        "Gather": _gather,
        "Expand": _expand,
        "Tile": lambda node: node.call("repeat.default", node.inputs[0], node.constant(1, "repeats")),
        "Pad": _pad,
        "Trilu": _trilu,
        "Resize": _resize,
        "Upsample": _resize,
        "Attention": _attention,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
        "Cast": lambda node: node.call("to.dtype", node.inputs[0], _DTYPES[node.attributes["to"]]),
        "CastLike": lambda node: node.call("to.dtype", node.inputs[0], tensor_of(node.inputs[1]).dtype),
        "Constant": _constant_node,
        "ConstantOfShape": _constant_of_shape,
        "Range": lambda node: node.call("arange.start_step", *(node.constant(place, "range") for place in range(3))),
        "Shape": _shape_of,
        "Size": lambda node: torch.tensor(math.prod(_shape(node.inputs[0]))),
        "Dropout": _dropout,
        "QuantizeLinear": _quantize,
        "DequantizeLinear": _dequantize,
        "Identity": lambda node: node.inputs[0],
        # Of onnxruntime's optimiser.
        "com.microsoft.FusedConv": _fused(_conv, others=3),
        "com.microsoft.FusedGemm": _fused(_gemm, others=3),
        "com.microsoft.FusedMatMul": _fused_matmul,
        "com.microsoft.Gelu": _gelu,
        "com.microsoft.BiasGelu": _bias_gelu("none"),
        "com.microsoft.FastGelu": _bias_gelu("tanh"),
        "com.microsoft.QuickGelu": _swish,
        "com.microsoft.SkipLayerNormalization": _skip_layer_norm,
    }
)
