"""Makes one graph of two recordings of a file: with two and with three images, or with a batch that the file fixes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.models.graphs.description import BATCH, DTYPE, FLOAT, ITEM, TENSOR, VALUE, GraphJson
from gapssg.models.graphs.record import Recorder, Reference, Step, Traced, UnknownOperator
from gapssg.models.signature import LOGITS, parts_of

Reader = Callable[[Recorder], Any]
"""Applies the operators of a file to `recorder.images` and returns the traced logits, or a container that has them."""

_BATCHES = (2, 3)
_STATE = ("weight", "bias", "running_mean", "running_var")
_LAYERS = {"conv2d.default": "conv", "conv2d.padding": "conv", "linear.default": "linear", "batch_norm.default": "norm"}


class NotANumber(InputError):
    """A constant of a file is NaN."""

    def __init__(self) -> None:
        super().__init__("it computes with a constant that is not a number (NaN); check its weights")


class Graph(NamedTuple):
    """A graph as a model file has it."""

    description: GraphJson
    """Its JSON, see `description.py`."""
    tensors: dict[str, Tensor]
    """The tensors that it names."""
    num_classes: int
    """Number of logits."""
    part: str | None = None
    """Name or index of the logits among several outputs."""


class _Recording(NamedTuple):
    steps: list[Step]
    output: Reference
    shape: tuple[int, ...]
    part: str | None


def graph_of(
    read: Reader, input_shape: tuple[int, int, int], fixed_batch: int | None = None, part: str | None = None
) -> Graph:
    """Return the graph of a file, which `read` applies to images of this shape (C, H, W), for any number of images.

    If it has several outputs, the logits are that of the name or index `part`, or None recognises them by their name
    and shape. Raises `InputError` if the file cannot be applied to such images, has unknown operators, does not return
    logits (N, K), or several that may be, or works with one batch size only; `fixed_batch` is the one that it declares,
    if it declares one.
    """
    try:
        return _unified(*(_record(read, count, input_shape, part) for count in _BATCHES))
    except (UnknownOperator, NotANumber):
        raise
    except InputError as error:
        count = fixed_batch or 1
        try:
            recording = _record(read, count, input_shape, part)
        except InputError as other:
            raise (error if fixed_batch is None else other) from error
        try:
            graph = _unified(*(_record(_replay(recording, count), each, input_shape) for each in _BATCHES))
            return graph._replace(part=recording.part)
        except InputError:
            raise InputError(
                f"it works only with batches of {count} ({error}); save it again with a dynamic batch size"
            ) from error


def _record(read: Reader, count: int, input_shape: tuple[int, int, int], known: str | None = None) -> _Recording:
    generator = torch.Generator().manual_seed(0)
    recorder = Recorder(torch.randn(count, *input_shape, generator=generator))
    part, output = _logits_in(read(recorder), count, known)
    if not isinstance(output, Traced):
        raise InputError("its output does not depend on the images")
    output.check()
    shape = tuple(output.tensor.shape)
    if not _are_logits(output, count):
        raise InputError(f"it returns {'x'.join(map(str, shape))} for {count} images instead of logits of {count} x K")
    if len(shape) == 1:
        output, shape = recorder.call("unsqueeze.default", output, 1), (count, 1)
    return _Recording(recorder.steps, output.source, shape, part)


def _logits_in(output: Any, count: int, known: str | None) -> tuple[str | None, Any]:
    """Return the name or index of the logits for so many images in what a file returns, and the logits."""
    parts = parts_of(output) if isinstance(output, list | tuple | dict) else {}
    listed = shortened(", ".join(parts), 200)
    if known is not None and known not in parts:
        raise InputError(f"it has no output {known} among several ({listed}); correct or omit --output-part")
    if not parts:
        return None, output
    found = [known] if known else [name for name, value in parts.items() if _are_logits(value, count)]
    found = [LOGITS] if LOGITS in found else found
    if len(found) != 1:
        raise InputError(
            f"{len(found) or 'none'} of its {len(parts)} outputs ({listed}) may be the logits; "
            + (f"choose one with --output-part {found[0]}" if found else "save a model that returns logits (N, K)")
        )
    return found[0], parts[found[0]]


def _are_logits(value: Any, count: int) -> bool:
    """Tell whether this is (N, K), or (N,) of a single logit."""
    shape = tuple(value.tensor.shape) if isinstance(value, Traced) else ()
    return shape[:1] == (count,) and len(shape) <= 2 and value.tensor.is_floating_point()


def _replay(recording: _Recording, count: int) -> Reader:
    """Return a reader of recorded steps that adapts constant batch sizes: of shapes, and of constants in a `cat`."""

    def read(recorder: Recorder) -> Traced:
        results: list[Any] = [recorder.images]

        def value(argument: Any) -> Any:
            if isinstance(argument, list):
                return [value(each) for each in argument]
            if isinstance(argument, Reference):
                result = results[argument.step]
                return result if argument.item is None else result[argument.item]
            return argument

        for step in recording.steps[1:]:
            arguments = [value(each) for each in step.arguments]
            if step.name == "reshape.default":
                new = tuple(arguments[0].tensor.shape)
                old = recording.steps[step.arguments[0].step].shape or new
                arguments[1] = _scaled(arguments[1], old, new, count)
            if step.name == "cat.default":
                arguments[0] = _widened(arguments[0], count, len(recorder.images.tensor), arguments[1:] or [0])
            results.append(recorder.call(step.name, *arguments, **{k: value(v) for k, v in step.named.items()}))
        traced: Traced = value(recording.output)
        return traced

    return read


def _scaled(shape: list[int], old: tuple[int, ...], new: tuple[int, ...], count: int) -> list[int]:
    """Return the recorded shape of a result, made with a batch of `count`, for an input of another number of images.

    The dimension that grows is the one of the size of the batch; if there is none, one that combines the batch with
    another: in `(L, 1, heads * D)` to `(L, heads, D)` that of the heads, in `(L, 1, D)` to `(L, D)` the first.
    """
    growth = math.prod(new) / math.prod(old)
    if growth == 1 or old == new:
        return shape
    grown = [place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
    inner = math.prod(old[grown[0] + 1 :])
    inners = [math.prod(shape[place + 1 :]) for place in range(len(shape))]
    alone = [place for place, size in enumerate(shape) if size == count]
    beside = [place for place in alone if inners[place] == inner]
    combined = [place for place in range(len(shape) - 1) if inners[place] < inner <= inners[place] * shape[place]]
    before = [place for place in range(len(shape) - 1) if inners[place] == inner]
    place = (*beside, *alone, *(combined if old[grown[0]] == count else ()), *before, 0)[0]
    return [int(size * growth) if each == place else size for each, size in enumerate(shape)]


def _widened(parts: list[Any], count: int, images: int, dimension: list[int]) -> list[Any]:
    """Repeat constants that were made for one batch size to the number of images."""
    return [
        part.expand(images, *part.shape[1:]) if isinstance(part, Tensor) and dimension[0] and len(part) == count == 1
        else part
        for part in parts
    ]  # fmt: skip


def _unified(two: _Recording, three: _Recording) -> Graph:
    """Return the graph of recordings with two and three images."""
    if [step.name for step in two.steps] != [step.name for step in three.steps]:
        raise InputError("it applies other operators to another number of images")
    if two.shape[1] != three.shape[1]:
        raise InputError("its number of logits depends on the number of images")
    maker = _Maker(two, three)
    return Graph({"nodes": maker.nodes, "output": maker.number(two.output)}, maker.tensors, two.shape[1], two.part)


class _Maker:
    """Encodes the steps that the output needs."""

    def __init__(self, two: _Recording, three: _Recording) -> None:
        self.nodes: list[list[Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self._numbers = {0: 0}
        self._names: dict[int, str] = {}
        needed = _needed(two)
        for number, (step, other) in enumerate(zip(two.steps, three.steps, strict=True)):
            if number and number in needed:
                self._encode(number, step, other)

    def number(self, reference: Reference) -> int:
        if reference.item is not None:
            raise InputError("its logits are one of several results of an operator")
        return self._numbers[reference.step]

    def _encode(self, number: int, step: Step, other: Step) -> None:
        arguments, others = list(step.arguments), list(other.arguments)
        kind = _LAYERS.get(step.name)
        if kind and all(each is None or isinstance(each, Tensor) for each in arguments[1:3]):
            self._name_state(f"{kind}_{number}", arguments)
            others = [mine if isinstance(mine, dict) else each for mine, each in zip(arguments, others, strict=True)]
        if step.name == "reshape.default":
            arguments[1], others[1] = _free_dimension(arguments[1], others[1])
        encoded = [self._argument(*pair) for pair in zip(arguments, others, strict=True)]
        named = {key: self._argument(value, other.named.get(key)) for key, value in step.named.items()}
        self.nodes.append([step.name, encoded, named])
        self._numbers[number] = len(self.nodes)

    def _name_state(self, name: str, arguments: list[Any]) -> None:
        """Put the tensors of a layer under the names of its state dict."""
        for place, key in enumerate(_STATE, start=1):
            if place < len(arguments) and isinstance(arguments[place], Tensor):
                self.tensors[f"{name}.{key}"] = arguments[place]
                arguments[place] = {TENSOR: f"{name}.{key}"}
        if f"{name}.running_var" in self.tensors:
            self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(0)

    def _argument(self, two: Any, three: Any) -> Any:
        if isinstance(two, float) and math.isnan(two):
            raise NotANumber
        if isinstance(two, Tensor) and isinstance(three, Tensor):
            return self._constant(two, three)
        if isinstance(two, Reference):
            if two != three:
                raise InputError("it uses other values for another number of images")
            item = {} if two.item is None else {ITEM: two.item}
            return {VALUE: self._numbers[two.step], **item}
        if isinstance(two, list) and isinstance(three, list) and len(two) == len(three):
            return [self._argument(*pair) for pair in zip(two, three, strict=True)]
        if isinstance(two, torch.dtype) and two == three:
            return {DTYPE: str(two).removeprefix("torch.")}
        if isinstance(two, float) and two == three and abs(two) == float("inf"):
            return {FLOAT: "inf" if two > 0 else "-inf"}
        if type(two) is type(three) and two == three:
            return two
        if isinstance(two, int) and isinstance(three, int) and two * _BATCHES[1] == three * _BATCHES[0]:
            return {BATCH: two // _BATCHES[0]}
        raise InputError(f"its constants depend on the number of images ({two!r} for two images, {three!r} for three)")

    def _constant(self, two: Tensor, three: Tensor) -> Any:
        if two.isnan().any():
            raise NotANumber
        name = self._names.setdefault(id(two), f"tensor_{len(self._names)}")
        if two.shape == three.shape and torch.equal(two, three):
            self.tensors[name] = two.contiguous()
            return {TENSOR: name}
        rows = two.shape[1:] == three.shape[1:] and (two.shape[:1], three.shape[:1]) == tuple((n,) for n in _BATCHES)
        if not rows or not all(torch.equal(row, two[0]) for row in (*two, *three)):
            raise InputError("its constants depend on the number of images")
        self.tensors[name] = two[:1].contiguous()
        self.nodes.append(["expand.default", [{TENSOR: name}, [{BATCH: 1}, *two.shape[1:]]], {}])
        return {VALUE: len(self.nodes)}


def _free_dimension(two: list[int], three: list[int]) -> tuple[list[int], list[int]]:
    """Replace the only dimension that depends on the number of images by -1."""
    places = [place for place, pair in enumerate(zip(two, three, strict=True)) if pair[0] != pair[1]]
    if len(places) != 1:
        return two, three
    return ([-1 if place in places else size for place, size in enumerate(shape)] for shape in (two, three))  # type: ignore[return-value]


def _needed(recording: _Recording) -> set[int]:
    """Return the numbers of the steps that the output depends on."""
    needed = {recording.output.step}
    for number in range(len(recording.steps) - 1, 0, -1):
        if number in needed:
            step = recording.steps[number]
            needed |= {each.step for each in _references((step.arguments, list(step.named.values())))}
    return needed


def _references(value: Any) -> list[Reference]:
    if isinstance(value, list | tuple):
        return [reference for each in value for reference in _references(each)]
    return [value] if isinstance(value, Reference) else []
