"""The description of a graph in a model file: canonical JSON with bounds. Imports no torch.

    {"nodes": [[operator, [argument, ...], {name: argument, ...}], ...], "output": number}

Value 0 is the images, value i the result of node i - 1. An argument is a number, a string, a Boolean, null, a list, or
an object with one of the keys of `KEYS`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, TypedDict

from gapssg.errors import InputError, shortened
from gapssg.files import canonical_json

GRAPH = "graph"
VALUE, ITEM, TENSOR, BATCH, FLOAT, DTYPE = KEYS = ("value", "item", "tensor", "batch", "float", "dtype")
"""The result of a node (and which of several), a tensor of the file, a multiple of the number of images, an infinite
number, a dtype."""
_MOST_NODES = 20_000
_MOST_ARGUMENTS = 64
_LONGEST_LIST = 1000
_LONGEST_STRING = 100
_DEEPEST = 3
_LARGEST_INTEGER = 2**63
_LARGEST_FLOAT = 2.0**128  # more than any float32
_TENSOR = re.compile(
    r"tensor_\d{1,6}|(conv|linear|norm)_\d{1,6}\.(weight|bias|running_mean|running_var|num_batches_tracked)", re.ASCII
)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,50}", re.ASCII)
_ARCHITECTURE = re.compile(rf"{GRAPH}:[0-9a-f]{{12}}", re.ASCII)


class GraphJson(TypedDict):
    """A graph as a model file has it."""

    nodes: list[list[Any]]
    """For each node its operator, its arguments, and its arguments by name."""
    output: int
    """The number of the value that is the logits."""


def is_graph(architecture: str) -> bool:
    """Tell whether `architecture` is the name of a graph, which only a model file can hold."""
    return _ARCHITECTURE.fullmatch(architecture) is not None


def graph_name(graph: Mapping[str, object]) -> str:
    """Return the architecture's name of a graph, `graph:` and the start of its SHA-256: equal graphs, equal names."""
    return f"{GRAPH}:{hashlib.sha256(canonical_json(graph).encode()).hexdigest()[:12]}"


def check_graph(graph: object) -> GraphJson:
    """Return `graph` if it has the form of a graph; whether its operators are known, `build_graph` tells.

    Raises `InputError` if it has not, or exceeds a bound.
    """
    match graph:
        case {"nodes": list() as nodes, "output": output, **others} if not others and 1 <= len(nodes) <= _MOST_NODES:
            pass
        case _:
            raise InputError(f"the graph is not a list of 1 to {_MOST_NODES:,} nodes and an output")
    for number, node in enumerate(nodes):
        match node:
            case [str(), list() as arguments, dict() as named] if len(arguments) + len(named) <= _MOST_ARGUMENTS:
                if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in named):
                    raise InputError(f"node {number} of the graph has an invalid argument name")
                for argument in (*arguments, *named.values()):
                    _check_argument(argument, number)
            case _:
                raise InputError(f"node {number} of the graph is not an operator with its arguments")
    if not _is_number(output, len(nodes)):
        raise InputError("the output of the graph is not one of its nodes")
    return {"nodes": nodes, "output": output}


def _check_argument(argument: object, node: int, depth: int = 0) -> None:
    match argument:
        case None | bool():
            return
        case int() if -_LARGEST_INTEGER <= argument < _LARGEST_INTEGER:
            return
        case float() if abs(argument) < _LARGEST_FLOAT:  # not NaN
            return
        case str() if len(argument) <= _LONGEST_STRING and argument.isascii() and argument.isprintable():
            return
        case list() if depth < _DEEPEST and len(argument) <= _LONGEST_LIST:
            for each in argument:
                _check_argument(each, node, depth + 1)
            return
        case {"value": value, **others} if _is_number(value, node) and others.keys() <= {ITEM}:
            if _is_number(others.get(ITEM, 0), _LONGEST_LIST):
                return
        case {"tensor": str(name), **others} if not others and _TENSOR.fullmatch(name):
            return
        case {"batch": factor, **others} if not others and _is_number(factor, _LARGEST_INTEGER) and factor:
            return
        case {"float": "inf" | "-inf", **others} if not others:
            return
        case {"dtype": "float32" | "int64" | "int32" | "bool", **others} if not others:
            return
    raise InputError(f"node {node} of the graph has an invalid argument, {shortened(repr(argument), 50)}")


def _is_number(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
