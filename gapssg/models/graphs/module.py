"""Builds the module of a graph. No code of the file is run: the operators are those of `OPERATORS`."""

from __future__ import annotations

import copy
import operator as arithmetic
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from gapssg.errors import InputError, shortened
from gapssg.models.foreign import foreign_code
from gapssg.models.graphs.description import ITEM, TENSOR
from gapssg.models.graphs.operators import OPERATORS, operator
from gapssg.models.head import ClassifierHead

_MOST_NUMBERS = 2**24  # of a result, for one image; ResNet-50 at 224 x 224 pixels has 2**20
_MOST_NUMBERS_TOGETHER = 2**29
_MOST_RESULTS = 4096
_SPLITTING = ("unbind.", "split.", "split_with_sizes.", "chunk.")
_TRACED = 2  # images
_STATE = ("weight", "bias", "running_mean", "running_var")
_CONVOLUTIONS = {"conv2d.default", "conv2d.padding"}


def build_graph(
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    num_classes: int,
    input_shape: tuple[int, int, int],
) -> nn.Module:
    """Build the module of a graph on the meta device: images (N, C, H, W) to logits (N, K).

    Convolutions of images, linear layers and batch norms with constant weights are layers; the last linear layer
    ignores autocast. Other operators are called as functions.

    Args:
        description: A graph that `check_graph` accepts.
        tensors: The tensors that it names, of which only shapes and dtypes are used.
        num_classes: Number of classes; for two, the graph may return one logit or probability.
        input_shape: Channels, height and width of an image.

    Raises:
        InputError: An operator is unknown or refuses its arguments, a result is larger than those of any classifier, a
            tensor is missing, or the output is not logits of this shape.
    """
    on_meta = {name: tensor.to("meta") for name, tensor in tensors.items()}
    builder = _Builder(on_meta, num_classes, input_shape)
    for number, (name, arguments, named) in enumerate(description["nodes"]):
        with foreign_code(f"node {number} of the graph, {shortened(name)}, cannot be applied"):
            builder.add(name, arguments, named)
    logits = builder.values[description["output"]]
    columns = (num_classes, 1) if num_classes == 2 else (num_classes,)
    shapes = [(_TRACED, each) for each in columns]
    if not isinstance(logits, Tensor) or logits.shape not in shapes or not logits.is_floating_point():
        raise InputError(f"the output of the graph is not {num_classes} logits for each image")
    return builder.module(description["output"])


class _Graph(fx.GraphModule):
    """A graph whose copies keep its forward hooks, by which `adapt` converts images and outputs; fx drops them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        copied = super().__deepcopy__(memo)
        copied._forward_pre_hooks = copy.deepcopy(self._forward_pre_hooks, memo)
        copied._forward_hooks = copy.deepcopy(self._forward_hooks, memo)
        return copied


class _Builder:
    """Adds nodes one by one, with the shapes of their results."""

    def __init__(self, tensors: dict[str, Tensor], num_classes: int, input_shape: tuple[int, int, int]) -> None:
        self.values: list[Any] = [torch.empty(_TRACED, *input_shape, device="meta")]
        self._tensors = tensors
        self._num_classes = num_classes
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._nodes: list[Any] = [self._graph.placeholder("images")]
        self._multiples: dict[int, Any] = {}
        self._together = 0

    def add(self, name: str, arguments: list[Any], named: dict[str, Any]) -> None:
        """Add a node and compute the shape of its result."""
        if name not in OPERATORS:
            raise InputError("it is not among the operators of a classifier")
        given = [self._value(each) for each in arguments]
        given_named = {key: self._value(each) for key, each in named.items()}
        if name.startswith(_SPLITTING) and max(given[0].shape, default=0) > _MOST_RESULTS:
            raise InputError("it would have more results than in any classifier")
        with torch.no_grad():
            result = operator(name)(*given, **given_named)
        self._bound(result)
        self.values.append(result)
        layer = self._layer(name, arguments, given)
        if layer is not None:
            self._nodes.append(self._graph.call_module(layer, (self._node(arguments[0]),)))
            return
        nodes: list[Any] = [self._node(each) for each in arguments]
        nodes_named = {key: self._node(each) for key, each in named.items()}
        if name == "expand.default":  # as a method, TorchScript can trace its sizes
            self._nodes.append(self._graph.call_method("expand", (nodes[0], *nodes[1])))
        else:
            self._nodes.append(self._graph.call_function(operator(name), (*nodes,), nodes_named))

    def module(self, output: int) -> nn.Module:
        self._graph.output(self._nodes[output])
        return _Graph(self._root, self._graph)

    def _bound(self, result: Any) -> None:
        for tensor in result if isinstance(result, list | tuple) else [result]:
            numbers = tensor.numel() // _TRACED
            self._together += numbers
            if not 0 <= numbers <= _MOST_NUMBERS or self._together > _MOST_NUMBERS_TOGETHER:
                raise InputError("its result is larger than that of any classifier")

    def _layer(self, name: str, arguments: list[Any], given: list[Any]) -> str | None:
        """Add the layer of a node to the module, if it is one, and return its name."""
        named = [each.get(TENSOR) if isinstance(each, dict) else None for each in arguments[1:5]]
        layer_name = (named[0] or "").removesuffix(".weight") if named else ""
        if not layer_name or layer_name == named[0] or hasattr(self._root, layer_name):
            return None
        layer = self._made(name, given)
        if layer is None:
            return None
        own = {key for key, _ in (*layer.named_parameters(), *layer.named_buffers())} - {"num_batches_tracked"}
        state = {each for each, tensor in zip(_STATE, named, strict=False) if tensor == f"{layer_name}.{each}"}
        if state != own:
            raise InputError(f"the tensors of {layer_name} have other names")
        self._root.add_module(layer_name, layer)
        return layer_name

    def _made(self, name: str, given: list[Any]) -> nn.Module | None:
        """Return the layer that an operator with its arguments is; None if it is no layer."""
        inputs, weight, *others = given
        bias = others[0] if others else None
        with torch.device("meta"):
            if name in _CONVOLUTIONS and inputs.ndim == 4:
                _, _, _, stride, padding, dilation, groups = (*given, *(None,) * 5)[:7]
                return nn.Conv2d(
                    weight.shape[1] * (groups or 1),
                    weight.shape[0],
                    tuple(weight.shape[2:]),
                    _pair(stride, 1),
                    padding if isinstance(padding, str) else _pair(padding, 0),
                    _pair(dilation, 1),
                    groups or 1,
                    bias is not None,
                )
            if name == "linear.default" and weight.ndim == 2:
                kind = ClassifierHead if weight.shape[0] == self._num_classes else nn.Linear
                return kind(weight.shape[1], weight.shape[0], bias is not None)
            if name == "batch_norm.default" and inputs.ndim in (2, 3, 4):
                norm = nn.BatchNorm2d if inputs.ndim == 4 else nn.BatchNorm1d
                return norm(weight.shape[0], eps=given[7])
        return None

    def _value(self, argument: Any) -> Any:
        match argument:
            case list():
                return [self._value(each) for each in argument]
            case {"value": value, **item}:
                return self.values[value][item[ITEM]] if item else self.values[value]
            case {"tensor": name}:
                if name not in self._tensors:
                    raise InputError(f"the file has no tensor {name}")
                return self._tensors[name]
            case {"batch": factor}:
                return factor * _TRACED
            case {"float": number}:
                return float(number)
            case {"dtype": name}:
                return getattr(torch, name)
        return argument

    def _node(self, argument: Any) -> Any:
        """Return the node or number of an argument."""
        match argument:
            case list():
                return [self._node(each) for each in argument]
            case {"value": value, **item}:
                node, place = self._nodes[value], cast(int, item.get(ITEM))
                return self._graph.call_function(arithmetic.getitem, (node, place)) if item else node
            case {"tensor": name}:
                return self._attribute(name)
            case {"batch": factor}:
                return self._multiple(factor)
        return self._value(argument)

    def _attribute(self, name: str) -> fx.Node:
        flat = name.replace(".", "_")
        if flat != name:
            raise InputError(f"{name} is of no layer")
        if not hasattr(self._root, name):
            tensor = self._tensors[name]
            if tensor.is_floating_point() and tensor.numel() > 1:
                self._root.register_parameter(name, nn.Parameter(tensor))
            else:
                self._root.register_buffer(name, tensor)
        return self._graph.get_attr(name)

    def _multiple(self, factor: int) -> Any:
        """Return the node of a multiple of the number of images."""
        if factor not in self._multiples:
            images = self._nodes[0]
            count = self._graph.call_method("size", (images, 0))
            self._multiples[factor] = (
                self._graph.call_function(arithmetic.mul, (count, factor)) if factor > 1 else count
            )
        return self._multiples[factor]


def _pair(value: Any, default: int) -> tuple[int, int]:
    pair = [default] if not value and value != 0 else [value] if isinstance(value, int) else list(value)
    height, width = pair * 2 if len(pair) == 1 else pair
    return height, width
