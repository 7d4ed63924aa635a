"""Reads ONNX files: each operator as operators of PyTorch.

Only for a child process: a library in C++ parses the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.reference
import torch
from onnx import numpy_helper
from torch import Tensor

from gapssg.errors import InputError, first_line, shortened
from gapssg.files import LARGEST_FILE, open_regular
from gapssg.models.description import METADATA_KEY
from gapssg.models.graphs.onnx_operators import ONNX_OPERATORS, Node
from gapssg.models.graphs.record import Opened, Recorder, Traced, UnknownOperator, in_batches, several_inputs

_STANDARD = ("", "ai.onnx")
_CONTROL_FLOW = {"Loop", "Scan", "SequenceMap"}
_DEEPEST = 8
_FLOATING = {onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.FLOAT16: torch.float16}
_ROUNDOFF_OF_HALF, _ROUNDOFF_OF_8_BITS = 2.0**-11, 2.0**-9


def load(path: Path) -> Opened:
    """Read an ONNX file and the files of weights beside it that it names.

    Raises `InputError` if it is damaged, has several inputs, or operators that are not known here.
    """
    try:
        model = onnx.load_model(str(path), load_external_data=False)
        _read_external_data(model, path.parent)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        _to_float32(model)
        metadata = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)
        return _opened(model)._replace(metadata=metadata)
    except InputError:
        raise
    except Exception as error:  # of the library's many parts, each has its own
        raise InputError(f"it is not a readable ONNX file ({first_line(error)})") from error


def _to_float32(model: onnx.ModelProto) -> None:
    """Replace bfloat16, and float64 of the images, by float32: onnxruntime has few operators for them."""
    graphs = _graphs_of(model.graph)
    replaced = {onnx.TensorProto.BFLOAT16, *(each.type.tensor_type.elem_type for each in model.graph.input)}
    replaced &= {onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    for tensor in _tensors_of(model.graph):
        if tensor.data_type in replaced:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for graph in graphs:
        for each in (*graph.input, *graph.output, *graph.value_info):
            if each.type.tensor_type.elem_type in replaced:
                each.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        for attribute in (attribute for node in graph.node for attribute in node.attribute):
            if attribute.name in ("to", "dtype") and attribute.i in replaced:
                attribute.i = onnx.TensorProto.FLOAT


def _graphs_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return a graph and those of its branches."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [graph, *(each for branch in inner for each in _graphs_of(branch))]


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


def _opened(model: onnx.ModelProto) -> Opened:
    graph = model.graph
    if graph.sparse_initializer:
        raise InputError("it has sparse weights; save it with dense weights")
    versions = {opset.domain: opset.version for opset in model.opset_import}
    unknown = {each for each in _kinds(graph) if each not in ONNX_OPERATORS and each != "If"}
    if unknown & _CONTROL_FLOW:
        raise InputError(
            f"it has control flow ({', '.join(sorted(unknown & _CONTROL_FLOW))}), which a graph cannot express"
        )
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [each for each in graph.input if each.name not in stored]
    if len(inputs) != 1:
        raise several_inputs([each.name for each in inputs])
    sizes = [size.dim_value or None for size in inputs[0].type.tensor_type.shape.dim]
    if len(sizes) != 4:
        raise InputError(f"its input has {len(sizes)} dimensions instead of the 4 of images")
    constants = {tensor.name: _constant(tensor) for tensor in graph.initializer}
    version = max(versions.get(domain, 0) for domain in _STANDARD)

    def read(recorder: Recorder) -> Any:
        reader = _Reader(recorder, version, unknown)
        results = reader.run(graph, {**constants, "": None, inputs[0].name: recorder.images})
        return results[0] if len(results) == 1 else {each.name: results[i] for i, each in enumerate(graph.output)}

    kind = inputs[0].type.tensor_type.elem_type
    if kind not in _FLOATING:
        name = onnx.TensorProto.DataType.Name(kind).lower()
        raise InputError(f"its images are {name}; save a model of floating images")

    def original(values: Tensor, part: str | None) -> Tensor:
        session = _session(model)
        output = part or session.get_outputs()[0].name

        def run(batch: Tensor) -> Tensor:
            return torch.from_numpy(session.run([output], {inputs[0].name: batch.numpy()})[0])

        return in_batches(run, values.to(_FLOATING[kind]).contiguous(), sizes[0])

    is_half = onnx.TensorProto.FLOAT16 in (kind, *(each.data_type for each in graph.initializer))
    opened = Opened(read, original, tuple(sizes[1:]), sizes[0])
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return opened._replace(roundoff=_ROUNDOFF_OF_8_BITS)
    return opened._replace(roundoff=_ROUNDOFF_OF_HALF) if is_half else opened


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as the file says
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


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
    array = numpy_helper.to_array(tensor)
    values = torch.from_numpy(np.ascontiguousarray(array).copy())
    return values.reshape(tuple(tensor.dims)).to(torch.float32 if values.is_floating_point() else values.dtype)


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
                    result = ONNX_OPERATORS[_name(each)](node)
                except InputError:
                    raise
                except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
                    raise InputError(f"its operator {each.op_type} cannot be applied ({first_line(error)})") from error
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
