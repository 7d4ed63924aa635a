"""Reads files of `torch.export.save` (.pt2) without `torch.export.load`, which can run code of the file.

`torch.export.load` unpickles parts without restriction and evaluates expressions. The graph is JSON, and the weights
are raw bytes; PyTorch up to 2.8 pickled the weights, which the restricted unpickler reads. Only for a child process.
"""

from __future__ import annotations

import io
import operator as python
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.files import parse_json
from gapssg.models.description import METADATA_KEY
from gapssg.models.graphs.operators import operator
from gapssg.models.graphs.record import Executor, Opened, Recorder, Traced, UnknownOperator, in_batches, several_inputs
from gapssg.models.signature import part_of

_LARGEST_JSON = 2**26
_ATEN = "torch.ops.aten."
# Numbers of dtypes in torch/_export/serde/schema.py.
_DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
_ON_NUMBERS: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(python, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
_CHECKS = ("_assert", "sym_constrain_range", "_assert_tensor_metadata", "_assert_scalar")
_BLOCKS = ("torch.ops.higher_order.wrap_with_autocast", "torch.ops.higher_order.wrap_with_set_grad_enabled")
# Arguments that a graph on a processor does without.
_IGNORED = {"as_memory_format", "as_layout", "as_device"}


def load(path: Path) -> Opened:
    """Read an exported program.

    Raises `InputError` if it is damaged or too large, or has several inputs or outputs, custom objects or training.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = _Archive(archive)
            return _exported(*parts.content())._replace(metadata=parts.metadata())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError, RuntimeError) as error:
        raise InputError(f"it is damaged or of an unknown version ({shortened(error, 150)})") from error
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise InputError(f"it is no complete zip archive ({shortened(error, 150)})") from error


def names_below_root(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the names in an archive without the folder that has all of them, which PyTorch names after the file."""
    names = archive.namelist()
    roots = {name.partition("/")[0] + "/" for name in names}
    root = roots.pop() if len(roots) == 1 else ""
    return {name.removeprefix(root): name for name in names}


class _Archive:
    """The parts of an archive, in its present layout and in the two before it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._size = sum(entry.compress_size for entry in archive.infolist())
        self._names = names_below_root(archive)

    def content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the program's JSON and its weights and constants by name."""
        if "serialized_exported_program.json" in self._names:
            state = self._pickled("serialized_state_dict.pt") | self._pickled("serialized_constants.pt")
            return self._json("serialized_exported_program.json"), state
        models = [name for name in self._names if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise InputError(f"it holds {len(models)} models; save one model a file")
        model = models[0].removeprefix("models/").removesuffix(".json")
        return self._json(models[0]), self._tensors("weights", model) | self._tensors("constants", model)

    def metadata(self) -> str | None:
        """Return what `gapssg export` wrote; PyTorch up to 2.7 names the folder otherwise."""
        found = [name for name in (f"extra/{METADATA_KEY}", f"extra_files/{METADATA_KEY}") if name in self._names]
        return self._read(found[0], _LARGEST_JSON).decode() if found else None

    def _read(self, name: str, most: int) -> bytes:
        entry = self._archive.getinfo(self._names[name])
        if entry.file_size > most:
            raise InputError(f"its part {shortened(name)} is larger than in any model")
        return self._archive.read(entry)

    def _json(self, name: str) -> dict[str, Any]:
        value = parse_json(self._read(name, _LARGEST_JSON))
        if not isinstance(value, dict):
            raise InputError(f"its part {shortened(name)} is not a JSON object")
        return value

    def _pickled(self, name: str) -> dict[str, Tensor]:
        content = self._read(name, 2 * self._size + 1024)
        if not content:
            return {}
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}

    def _tensors(self, kind: str, model: str) -> dict[str, Tensor]:
        if f"data/{kind}/{model}.pt" in self._names:
            return self._pickled(f"data/{kind}/{model}.pt")
        config = self._json(f"data/{kind}/{model}_{kind}_config.json")["config"]
        tensors, storages = {}, {}
        for name, entry in config.items():
            if entry["use_pickle"] or entry["tensor_meta"] is None:
                raise InputError(f"its {shortened(name)} is not a plain tensor; save the model without it")
            place, meta = entry["path_name"], entry["tensor_meta"]
            if place not in storages:
                storages[place] = self._read(f"data/{kind}/{place}", 2 * self._size + 1024)
            tensors[name] = _tensor(storages[place], meta)
        return tensors


def _tensor(content: bytes, meta: Mapping[str, Any]) -> Tensor:
    """Return a tensor of raw bytes, which must have all of its numbers."""
    sizes, strides = ([each["as_int"] for each in meta[key]] for key in ("sizes", "strides"))
    dtype = _DTYPES[meta["dtype"]]
    if 0 in sizes:
        return torch.empty(sizes, dtype=dtype)
    storage = torch.frombuffer(bytearray(content), dtype=dtype)
    tensor = torch.as_strided(storage, sizes, strides, meta["storage_offset"]["as_int"])
    if tensor.numel() > storage.numel():
        raise InputError("a tensor has more numbers than the file")
    return tensor.contiguous()


def _exported(program: Mapping[str, Any], state: Mapping[str, Tensor]) -> Opened:
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    constants: dict[str, Any] = {}
    images: list[str] = []
    others: list[str] = []
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            ((form, value),) = content["arg"].items()
            if form == "as_tensor":
                images.append(value["name"])
            elif form.startswith("as_sym"):
                others.append(str(value.get("as_name")))
        elif kind == "constant_input":  # None, a number or a text, for which the graph was exported
            continue
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = next(
                content[key] for key in ("parameter_name", "buffer_name", "tensor_constant_name") if key in content
            )
            constants[content["arg"]["name"]] = state[name]
        else:
            raise InputError(f"it has an input of the kind {shortened(kind)}; save a model of tensors only")
    outputs = []
    for spec in signature["output_specs"]:
        ((kind, content),) = spec.items()
        if kind != "user_output":
            raise InputError("it changes its buffers; export it in evaluation mode")
        outputs.append(content["arg"])
    if len(images) != 1 or others:
        raise several_inputs([*images, *others])
    sizes = [each.get("as_int") for each in graph["tensor_values"][images[0]]["sizes"]]
    batch = sizes[0] if sizes else None

    def read(recorder: Recorder | Executor) -> Any:
        return _apply(graph, {**constants, images[0]: recorder.images}, outputs, recorder)

    def original(values: Tensor, part: str | None) -> Tensor:
        return in_batches(lambda each: part_of(read(Executor(each)), part), values, batch)

    return Opened(read, original, tuple(sizes[1:]), batch)


def _apply(graph: Mapping[str, Any], values: dict[str, Any], outputs: list[Any], recorder: Recorder | Executor) -> Any:
    """Apply the nodes of a graph one by one; `values` has its inputs by name."""
    for node in graph["nodes"]:
        target = str(node["target"])
        base, _, overload = target.removeprefix(_ATEN).partition(".")
        if base in _CHECKS:
            continue
        if target in _BLOCKS:
            _bind(node["outputs"], _apply_block(node, values, recorder), values)
            continue
        arguments, named = _arguments(node, values)
        if target in _ON_NUMBERS:
            result = _ON_NUMBERS[target](*arguments, *named.values())
        elif target.startswith(_ATEN):
            result = recorder.call(f"{base}.{overload}", *arguments, **named)
        else:
            raise UnknownOperator([shortened(target.removeprefix("torch.ops."))])
        _bind(node["outputs"], result, values)
    found = [_value(output, values) for output in outputs]
    return found[0] if len(found) == 1 else found


def _apply_block(node: Mapping[str, Any], values: Mapping[str, Any], recorder: Recorder | Executor) -> Any:
    """Apply the nodes inside `torch.autocast` or `torch.no_grad` like all others: in float32, with gradients."""
    arguments = [each["arg"] for each in node["inputs"]]
    place = next(place for place, argument in enumerate(arguments) if "as_graph" in argument)
    graph = arguments[place]["as_graph"]["graph"]
    given = [_value(argument, values) for argument in arguments[place + 1 :]]
    inner: dict[str, Any] = {}
    _bind(graph["inputs"], given, inner)
    return _apply(graph, inner, graph["outputs"], recorder)


def _arguments(node: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return arguments by position, up to the first that is not given, and the others by name."""
    given = {each["name"]: each["arg"] for each in node["inputs"] if not each["arg"].keys() & _IGNORED}
    try:
        declared = operator(str(node["target"]).removeprefix(_ATEN))._schema.arguments
    except AttributeError:
        return [_value(argument, values) for argument in given.values()], {}
    arguments: list[Any] = []
    for argument in declared:
        if argument.kwarg_only or argument.name not in given:
            break
        arguments.append(_value(given.pop(argument.name), values))
    return arguments, {name: _value(argument, values) for name, argument in given.items()}


def _value(argument: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    ((kind, content),) = argument.items()
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return values[content["name"]]
        case "as_tensors":
            return [values[each["name"]] for each in content]
        case "as_optional_tensor":
            return _value(content, values)
        case "as_optional_tensors":
            return [_value(each, values) for each in content]
        case "as_sym_int" | "as_sym_bool" | "as_sym_float" | "as_sym_ints":
            parts = content if isinstance(content, list) else [content]
            found = [values[each["as_name"]] if "as_name" in each else next(iter(each.values())) for each in parts]
            return found if isinstance(content, list) else found[0]
        case "as_scalar_type":
            return _DTYPES[content]
        case "as_float":
            return float(content)
        case "as_floats":
            return [float(each) for each in content]
        case "as_int" | "as_ints" | "as_string" | "as_bool" | "as_bools":
            return content
    raise InputError(
        f"it has an argument of the kind {shortened(kind)}, such as a branch, which a graph cannot express"
    )


def _bind(outputs: list[Mapping[str, Any]], result: Any, values: dict[str, Any]) -> None:
    """Put the results of a node under their names."""
    names: list[Any] = []
    for output in outputs:
        ((kind, content),) = output.items()
        if kind == "as_tensors":
            names += [each["name"] for each in content]
        elif kind != "as_none":
            names.append(content["name"] if "name" in content else content.get("as_name"))
    several = isinstance(result, list | tuple) and not isinstance(result, Traced)
    values.update(zip(names, result if several else [result], strict=True))
