"""Reads TorchScript files. Only for a child process: PyTorch's own reader, in C++, parses the file.

Loading a file runs no code of it, because files with custom states are refused before. Its code is then interpreted
here, with the operators of `OPERATORS` only.
"""

from __future__ import annotations

import operator as python
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.errors import InputError, first_line, shortened
from gapssg.files import parse_json
from gapssg.models.description import METADATA_KEY
from gapssg.models.graphs.operators import operator
from gapssg.models.graphs.record import Opened, Recorder, Traced, UnknownOperator, several_inputs, tensor_of
from gapssg.models.signature import part_of

_MOST_STEPS = 1_000_000
_LARGEST_TEXT = 2**26
# What makes loading a file run code: scripted `__setstate__`, and classes of C++ libraries.
_RUNS_CODE = (b"__setstate__", b"torch.classes")

_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    **{name: getattr(python, name) for name in ("add", "sub", "mul", "floordiv", "neg", "pow")},
    **{name: getattr(python, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{each.__name__: each for each in (len, list, all, sum, any, min, max)},
    **dict.fromkeys(("Int", "IntImplicit"), int),
    **dict.fromkeys(("Float", "FloatImplicit"), float),
    "Bool": bool,
    "ScalarImplicit": lambda value: value.item() if isinstance(value, Tensor) else value,
    "div": python.truediv,
    "remainder": python.mod,
    "__and__": python.and_,
    "__or__": python.or_,
    "__not__": python.not_,
    "__contains__": python.contains,
    "ceil": lambda value: -int(-value // 1),
    "floor": lambda value: int(value // 1),
    "sqrt": lambda value: value**0.5,
}


def _changed(change: Callable[..., object]) -> Callable[..., Any]:
    """Return a function that changes a list and returns it."""

    def changed(values: list[Any], *arguments: Any) -> list[Any]:
        change(values, *arguments)
        return values

    return changed


_ON_LISTS: dict[str, Callable[..., Any]] = {
    "append": _changed(list.append),
    "extend": _changed(list.extend),
    "insert": _changed(list.insert),
    "_set_item": _changed(python.setitem),
    "pop": list.pop,
    "copy": list,
    "add": python.add,
    "slice": lambda values, start, end, step: values[start:end:step],
}
# Of the process. With gradients, attention takes its general path.
_STATE = {"is_autocast_enabled": False, "is_autocast_cpu_enabled": False, "is_grad_enabled": True, "is_nested": False}


def check_archive(path: Path) -> None:
    """Raise `InputError` if loading a TorchScript file would run code, or the file is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [entry for entry in archive.infolist() if entry.filename.endswith((".py", ".pkl"))]
            if sum(entry.file_size for entry in texts) > _LARGEST_TEXT:
                raise InputError("it has more code than any model")
            for entry in texts:
                if any(word in archive.read(entry) for word in _RUNS_CODE):
                    raise InputError(
                        "it has quantised layers or objects of its own, which would run code when they are loaded; "
                        "save the float model without them"
                    )
            if (damaged := archive.testzip()) is not None:  # PyTorch does not look at the checksums of tensors
                raise InputError(f"it is damaged ({damaged} does not match its checksum)")
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise InputError(f"it is no complete zip archive ({shortened(error)})") from error


def load(path: Path) -> Opened:
    """Load a TorchScript file on the CPU, in float32 and evaluation mode.

    Its arguments besides the images take their defaults. Raises `InputError` if it is damaged, would run code, or has
    other inputs without a default.
    """
    check_archive(path)
    extra: dict[str, str | bytes] = {METADATA_KEY: ""}
    try:
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
        saved = next((each.dtype for each in module.parameters() if each.is_floating_point()), torch.float32)
        module.float().eval()
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise InputError(f"it is not a readable TorchScript file ({first_line(error)})") from error
    graph = module.inlined_graph
    inputs = [each.debugName() for each in graph.inputs()]
    declared = module.forward.schema.arguments[1:]
    if not declared or not all(each.has_default_value() for each in declared[1:]):
        raise several_inputs([each.name for each in declared])
    defaults = [each.default_value for each in declared[1:]]

    def read(recorder: Recorder) -> Any:
        interpreter = _Interpreter(recorder)
        environment = dict(zip(inputs, [module, recorder.images, *defaults], strict=True))
        interpreter.run(graph, environment)
        outputs = [environment[each.debugName()] for each in graph.outputs()]
        return outputs[0] if len(outputs) == 1 else outputs

    def original(images: Tensor, part: str | None) -> Tensor:
        try:
            with torch.no_grad():
                return part_of(module(images), part)
        except RuntimeError as error:
            if saved == torch.float32:
                raise
            precision = str(saved).removeprefix("torch.")
            raise InputError(
                f"it has weights in {precision} and does not run in float32, perhaps because its code casts "
                f"({first_line(error)}); save it in float32"
            ) from error

    written = extra[METADATA_KEY]
    metadata = written.decode() if isinstance(written, bytes) else written
    shape = tuple(parse_json(metadata)["input_shape"]) if metadata else None  # other files do not declare it
    return Opened(read, original, shape, metadata=metadata or None)


class _Interpreter:
    """Runs a TorchScript graph node by node."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._steps = 0

    def run(self, block: Any, environment: dict[str, Any]) -> None:
        """Run the nodes of a graph or block; `environment` has the values by name."""
        for node in block.nodes():
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise InputError(f"its code takes more than {_MOST_STEPS:,} steps")
            kind = node.kind()
            arguments = [environment[each.debugName()] for each in node.inputs()]
            names = [each.debugName() for each in node.outputs()]
            if kind == "prim::If":
                results = self._branch(node, bool(arguments[0]), environment)
            elif kind == "prim::Loop":
                results = self._loop(node, arguments, environment)
            elif kind in _STRUCTURE:
                results = list(_STRUCTURE[kind](node, arguments))
            elif kind.startswith("aten::"):
                results = [self._apply(node, kind.removeprefix("aten::"), arguments)][: len(names)]
            else:
                raise UnknownOperator([kind])
            environment.update(zip(names, results, strict=True))

    def _branch(self, node: Any, condition: bool, environment: dict[str, Any]) -> list[Any]:
        block = list(node.blocks())[0 if condition else 1]
        self.run(block, environment)
        return [environment[each.debugName()] for each in block.outputs()]

    def _loop(self, node: Any, arguments: list[Any], environment: dict[str, Any]) -> list[Any]:
        most, goes_on, *carried = arguments
        block = next(iter(node.blocks()))
        names = [each.debugName() for each in block.inputs()]
        trip = 0
        while bool(goes_on) and trip < most:
            environment.update(zip(names, [trip, *carried], strict=True))
            self.run(block, environment)
            goes_on, *carried = [environment[each.debugName()] for each in block.outputs()]
            trip += 1
        return carried

    def _apply(self, node: Any, name: str, arguments: list[Any]) -> Any:
        schema = node.schema()
        overload = schema[: schema.index("(")].partition(".")[2] or "default"
        if name in ("__is__", "__isnot__"):
            return (arguments[0] is arguments[1]) == (name == "__is__")
        if name == "__getitem__":
            return arguments[0][arguments[1]]
        if name in _ON_LISTS and isinstance(arguments[0], list):
            return _ON_LISTS[name](*arguments)
        if name in ("size", "dim") and isinstance(arguments[0], Tensor | Traced):
            shape = tuple(tensor_of(arguments[0]).shape)
            return len(shape) if name == "dim" else shape[arguments[1]] if len(arguments) > 1 else list(shape)
        if name in _STATE:
            return _STATE[name]
        if name == "is_floating_point":
            return tensor_of(arguments[0]).is_floating_point()
        if name in ("format", "warn"):
            return ""
        is_plain = not _has_tensor(arguments)
        if name in _ON_NUMBERS and (
            is_plain or name in ("Int", "Float", "Bool", "IntImplicit", "ScalarImplicit", "len")
        ):
            if any(isinstance(each, Traced) for each in arguments):
                raise InputError("its control flow depends on the values of the images, which a graph cannot express")
            return _ON_NUMBERS[name](*arguments)
        full = f"{name}.{overload}"
        positional, named = _with_dtypes(full, arguments)
        return self._recorder.call(full, *positional, **named)


def _with_dtypes(name: str, arguments: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments, with dtypes for the numbers that stand for them in TorchScript."""
    try:
        declared = operator(name)._schema.arguments
    except AttributeError:
        raise UnknownOperator([name.partition(".")[0]]) from None
    given = [
        _DTYPES.get(each) if "ScalarType" in str(argument.real_type) and isinstance(each, int) else each
        for each, argument in zip(arguments, declared, strict=True)
    ]
    split = sum(not argument.kwarg_only for argument in declared)
    return given[:split], {argument.name: each for argument, each in zip(declared[split:], given[split:], strict=True)}


# Numbers of dtypes in c10/core/ScalarType.h.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    15: torch.bfloat16,
}


def _refused(_: Any, arguments: Sequence[Any]) -> list[Any]:
    raise InputError(f"its code raises an exception for these images ({shortened(arguments[0])})")


_STRUCTURE: dict[str, Callable[[Any, Sequence[Any]], Sequence[Any]]] = {
    "prim::Constant": lambda node, _: [next(iter(node.outputs())).toIValue()],
    "prim::GetAttr": lambda node, arguments: [getattr(arguments[0], node.s("name"))],
    "prim::ListConstruct": lambda _, arguments: [list(arguments)],
    "prim::TupleConstruct": lambda _, arguments: [tuple(arguments)],
    "prim::DictConstruct": lambda _, arguments: [dict(zip(arguments[::2], arguments[1::2], strict=True))],
    "prim::ListUnpack": lambda _, arguments: arguments[0],
    "prim::TupleUnpack": lambda _, arguments: arguments[0],
    "prim::TupleIndex": lambda _, arguments: [arguments[0][arguments[1]]],
    "prim::NumToTensor": lambda _, arguments: [torch.tensor(arguments[0])],
    "prim::unchecked_cast": lambda _, arguments: arguments,
    "prim::Uninitialized": lambda _, __: [None],
    "prim::RaiseException": _refused,
    "prim::dtype": lambda _, arguments: [tensor_of(arguments[0]).dtype],
    "prim::device": lambda _, __: [torch.device("cpu")],
    "prim::type": lambda _, __: ["cpu"],
    "prim::is_cuda": lambda _, __: [False],
    "prim::is_nested": lambda _, __: [False],
    "prim::requires_grad": lambda _, __: [True],
    "prim::min": lambda _, arguments: [min(*arguments)],
    "prim::max": lambda _, arguments: [max(*arguments)],
    "prim::Print": lambda _, __: [],
}


def _has_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor | Traced)
