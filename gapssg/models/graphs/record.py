"""Records the operators that a foreign file applies to images, as a graph that accepts any number of them.

A reader runs its file on real tensors, once with two images and once with three, and calls every operator by way of a
`Recorder`. What depends on no image is computed on the way and becomes a constant. Integers that differ between both
runs are multiples of the number of images. So shapes that a file computes, its branches on shapes and its loops need no
symbolic analysis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gapssg.errors import InputError, shortened
from gapssg.models.description import InputLayout
from gapssg.models.foreign import foreign_code
from gapssg.models.graphs.operators import CREATION, OPERATORS, operator
from gapssg.models.signature import permuted

_MOST_STEPS = 100_000
_MOST_NUMBERS = 3 * 2**24  # of three images
_COLOURS = (1, 3, 4)  # channels by which a layout (N, H, W, C) is recognised
_IGNORED = {"device", "layout", "pin_memory", "memory_format", "non_blocking", "copy", "implicit"}
_WIDE = (torch.float16, torch.bfloat16, torch.float64)
# Of one argument, whose result has its values.
_COPIES = {
    *("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "lift_fresh", "lift", "requires_grad_", "cpu"),
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "identity"),
}
_OWN_MEMORY = {"clone", "lift_fresh_copy"}
_SHAPED = {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_as", "reshape_as"}
_EXPANDED = {"expand", "expand_as", "broadcast_to"}
_CONSTANT_OF_SHAPE = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_empty"}
_MAY_BE_NUMBERS = {"add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"}
_BATCH_NORMS = {
    *("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_batch_norm_impl_index"),
    *("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
}


class UnknownOperator(InputError):
    """A file has operators that a graph may not have.

    Attributes:
        names: Their names.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(set(names))
        listed = shortened(", ".join(self.names), 200)
        plural = "s" if len(self.names) > 1 else ""
        super().__init__(
            f"it has the operator{plural} {listed}, which gapssg does not know; import the weights into the model's "
            "own code instead (--model package.module:factory)"
        )


@dataclass(frozen=True)
class Reference:
    """The result of a step, or one of its results."""

    step: int
    item: int | None = None


@dataclass
class Step:
    """An operator that was applied to something that depends on the images."""

    name: str
    """Its name in `OPERATORS`."""
    arguments: list[Any]
    """Positional arguments, in which a `Reference` stands for a traced value."""
    named: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments."""
    shape: tuple[int, ...] | None = None
    """Shape of the result; None if there are several."""


class Opened(NamedTuple):
    """A file that a reader has read."""

    read: Callable[[Any], Any]
    """Applies it to the images of a `Recorder`."""
    original: Callable[[Tensor, str | None], Tensor]
    """Computes logits (N, K), those of a name or index among several outputs, of images (N, C, H, W) with the file's
    own library; for torch.export, whose reader can run code of the file, with its operators as they are."""
    input_shape: tuple[int | None, ...] | None = None
    """The dimensions of an image that it declares, in the order of the layout; None if it does not, or one is dynamic.
    """
    batch: int | None = None
    """The batch size that it declares; None if it does not, or it is dynamic."""
    roundoff: float = 2.0**-24
    """The unit roundoff of its numbers."""
    layout: InputLayout = "NCHW"
    """Order of the dimensions of its images; `read` and `original` take images (N, C, H, W) in any case."""
    metadata: str | None = None
    """What `gapssg export` wrote under `METADATA_KEY`; None in a file of another program."""


def laid_out(opened: Opened, layout: InputLayout | None) -> Opened:
    """Return a file whose images have this layout, as one that takes images (N, C, H, W).

    None recognises the layout by the dimensions that the file declares.
    """
    shape = opened.input_shape or ()
    if layout is None and len(shape) == 3 and shape[2] in _COLOURS and shape[0] not in _COLOURS:
        layout = "NHWC"
    known = tuple(size for size in shape if size)
    declared = known if shape and len(known) == len(shape) else None
    if layout != "NHWC":
        return opened._replace(input_shape=declared)

    def read(recorder: Any) -> Any:
        recorder.images = recorder.call("permute.default", recorder.images, [0, 2, 3, 1])
        return opened.read(recorder)

    return opened._replace(
        read=read,
        original=lambda images, part: opened.original(permuted(images, "NHWC"), part),
        input_shape=declared and (*declared[-1:], *declared[:-1]),
        layout="NHWC",
    )


def several_inputs(names: Sequence[str]) -> InputError:
    """Return the refusal of a file that has inputs of these names, not only images."""
    listed = f" ({shortened(', '.join(names), 200)})" if names else ""
    return InputError(
        f"it has {len(names)} inputs{listed}; wrap the model in one whose only input is the images, and save that"
    )


class _Memory:
    """The memory that a tensor shares with its views.

    Attributes:
        changes: How often it was changed in place.
    """

    def __init__(self) -> None:
        self.changes = 0


class Traced:
    """A tensor that depends on the images, and the step that computed it."""

    def __init__(self, tensor: Tensor, source: Reference, memory: _Memory | None = None) -> None:
        self.tensor = tensor
        self.source = source
        self.memory = memory or _Memory()
        self.seen = self.memory.changes

    def copy(self) -> Traced:
        """Return the same value in memory of its own."""
        return Traced(self.tensor, self.source)

    def replace(self, other: Traced) -> None:
        """Take another value in place; views of the former value are then out of date."""
        self.tensor, self.source = other.tensor, other.source
        self.memory.changes += 1
        self.seen = self.memory.changes

    def check(self) -> None:
        """Raise `InputError` if a view of this value has changed it in place, or it one of its views."""
        if self.seen != self.memory.changes:
            raise InputError("it changes a part of a tensor in place, which a graph cannot express")

    def __bool__(self) -> bool:
        """Refuse a branch on values of the images."""
        raise InputError("its control flow depends on the values of the images, which a graph cannot express")


class Recorder:
    """Applies operators and records those that depend on the images.

    Attributes:
        images: The images, (N, C, H, W) float32; step 0.
        steps: What was recorded.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = Traced(images, Reference(0))
        self.steps = [Step("images", [], shape=tuple(images.shape))]
        self._applied = 0

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Apply an operator, such as `add.Tensor`, to traced values and constants, and record it.

        An operator in place, such as `add_.Tensor`, replaces its first argument.

        Returns:
            A `Traced` value, or a constant if no argument is traced; a tuple or list of them where the operator has
            several results.

        Raises:
            InputError: The operator is unknown, random, in training mode, or refuses its arguments.
        """
        self._applied += 1
        for each in _traced((arguments, named)):
            each.check()
        if self._applied > _MOST_STEPS:
            raise InputError(f"it applies more than {_MOST_STEPS:,} operators")
        base, _, overload = name.partition(".")
        in_place = base.endswith("_") and not base.endswith("__")
        if in_place and base not in _COPIES:
            base = base.removesuffix("_")
        if in_place and not _is_traced((arguments, named)):
            return self._constant(base, overload, arguments, named, suffix="_")
        result = self._apply(base, overload or "default", arguments, named)
        if in_place and isinstance(arguments[0], Traced) and isinstance(result, Traced):
            if result is not arguments[0]:
                arguments[0].replace(result)
            return arguments[0]
        return result

    def _apply(self, base: str, overload: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if base in _COPIES:
            _refuse_training(base, arguments, named)
            value = arguments[0]
            return (value.copy() if isinstance(value, Traced) else value.clone()) if base in _OWN_MEMORY else value
        if base in ("to", "_to_copy", "type_as", "float"):
            return self._cast(base, overload, arguments, named)
        if not _is_traced((arguments, named)):
            return self._constant(base, overload, arguments, named)
        if base in ("size", "sym_size", "dim", "numel", "sym_numel"):
            return getattr(arguments[0].tensor, base.removeprefix("sym_"))(*arguments[1:], **named)
        if base in _CONSTANT_OF_SHAPE:
            return self._constant(base, overload, (arguments[0].tensor, *arguments[1:]), named)
        if base in _SHAPED | _EXPANDED:
            return self._reshape(base, overload, arguments, named)
        if base in _BATCH_NORMS:
            return self._batch_norm(base, overload, arguments, named)
        if base in _REWRITTEN:
            return _REWRITTEN[base](self, *arguments, **named)
        if f"{base}.{overload}" not in OPERATORS:
            raise UnknownOperator([base])
        return self.record(f"{base}.{overload}", arguments, named)

    def record(self, name: str, arguments: Sequence[Any], named: dict[str, Any]) -> Any:
        """Apply an operator of `OPERATORS` as it is."""
        function = operator(name)
        arguments, named = _bound(function, arguments, named)
        if name in _MAY_BE_NUMBERS:
            rank = max(each.tensor.ndim for each in arguments if isinstance(each, Traced))
            arguments = [_number(each, rank) for each in arguments]
        step = Step(name, _map(_reference, arguments), _map(_reference, named))
        with foreign_code(f"its operator {name.partition('.')[0]} fails"), torch.no_grad():
            _check_size(function, arguments, named)
            result = function(*_map(tensor_of, arguments), **_map(tensor_of, named))
        self.steps.append(step)
        number = len(self.steps) - 1
        memory = {_address(each.tensor): each.memory for each in _traced((arguments, named))}
        if isinstance(result, Tensor):
            step.shape = tuple(result.shape)
            return Traced(result, Reference(number), memory.get(_address(result)))
        return type(result)(
            Traced(each, Reference(number, item), memory.get(_address(each))) for item, each in enumerate(result)
        )

    def _constant(
        self, base: str, overload: str, arguments: Sequence[Any], named: dict[str, Any], suffix: str = ""
    ) -> Any:
        """Compute a constant; with the suffix `_`, in place, so that its views change, too."""
        name = f"{base}.{overload}"
        if base == "copy" and suffix:  # TorchScript also copies numbers
            return arguments[0].copy_(torch.as_tensor(arguments[1]))
        if base not in _SHAPED | _EXPANDED and name not in OPERATORS | CREATION:
            raise UnknownOperator([base])
        named = {key: value for key, value in named.items() if key not in _IGNORED}
        with foreign_code(f"its operator {base} fails on constants"), torch.no_grad():
            function, named = operator(f"{base}{suffix}.{overload}"), _map(_narrow, named)
            _check_size(function, arguments, named)
            return function(*arguments, **named)

    def _cast(self, base: str, overload: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        value, *others = arguments
        wanted = named.get("dtype")
        if base == "float":
            wanted = torch.float32
        for other in others:
            other = tensor_of(other)
            wanted = other if isinstance(other, torch.dtype) else other.dtype if isinstance(other, Tensor) else wanted
        tensor = tensor_of(value)
        if wanted is None or (wanted := _narrow(wanted)) == tensor.dtype:
            return value.copy() if base == "_to_copy" and isinstance(value, Traced) else value
        if not isinstance(value, Traced):
            return tensor.to(wanted)
        return self.record("_to_copy.default", [value], {"dtype": wanted})

    def _reshape(self, base: str, overload: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Record every change of shape by the shape of its result."""
        value = arguments[0]
        if not isinstance(value, Traced):  # expanded to the shape of something traced
            return self._constant(base, overload, _map(tensor_of, arguments), named)
        safe = "reshape" if base in ("view", "_unsafe_view") else base
        overload = "default" if safe == "reshape" else overload
        named = {key: each for key, each in named.items() if key not in _IGNORED}
        with foreign_code(f"its operator {base} fails"), torch.no_grad():
            function = operator(f"{safe}.{overload}")
            _check_size(function, arguments, named)
            result = function(*_map(tensor_of, arguments), **_map(tensor_of, named))
        if result.shape == value.tensor.shape:
            return value
        if base not in _EXPANDED:
            return self.record("reshape.default", [value, list(result.shape)], {})
        old = [0] * (result.ndim - value.tensor.ndim) + list(value.tensor.shape)
        sizes = [-1 if size == kept else size for size, kept in zip(result.shape, old, strict=True)]
        return self.record("expand.default", [value, sizes], {})

    def _batch_norm(self, base: str, overload: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Record any batch norm as `batch_norm`."""
        names = [argument.name for argument in operator(f"{base}.{overload}")._schema.arguments]
        given = dict(zip(names, arguments, strict=False)) | named
        inputs, mean, variance = given["input"], given["running_mean"], given["running_var"]
        if given.get("training"):
            raise InputError("it was saved in training mode; save it in evaluation mode")
        if mean is None or variance is None:
            raise InputError("a batch norm has no running statistics, so that an image's logits depend on its batch")
        weight, bias = (given.get(key) for key in ("weight", "bias"))
        weight = torch.ones_like(mean) if weight is None else weight
        bias = torch.zeros_like(mean) if bias is None else bias
        eps = float(given.get("eps", given.get("epsilon", 1e-5)))
        result = self.record("batch_norm.default", [inputs, weight, bias, mean, variance, False, 0.1, eps, False], {})
        return result if base == "batch_norm" else (result, None, None)


class Executor:
    """Applies the same operators as a `Recorder` as they are, also in place, so that a graph can be compared with them.

    Attributes:
        images: The images, (N, C, H, W) float32.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Apply an operator to tensors and numbers, in float32; raise `InputError` if it is unknown."""
        base, _, overload = name.partition(".")
        if base.removesuffix("_") not in _EXECUTED and base not in _EXECUTED:
            raise UnknownOperator([base])
        with torch.no_grad():
            return operator(f"{base}.{overload or 'default'}")(*_map(_narrow, arguments), **_map(_narrow, named))


def in_batches(run: Callable[[Tensor], Tensor], images: Tensor, size: int | None) -> Tensor:
    """Return logits of images in batches of a size, the last of which is filled up; of any size if that is None."""
    missing = -len(images) % size if size else 0
    filled = torch.cat([images, images[:1].expand(missing, *images.shape[1:])])
    return torch.cat([run(batch) for batch in torch.split(filled, size or len(images))])[: len(images)]


def _convolution(
    recorder: Recorder,
    inputs: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: object,
    **__: object,
) -> Any:
    """Record a convolution of images as `conv2d`, so that it can be a layer."""
    if not transposed and inputs.tensor.ndim == 4 and not any(output_padding):
        return recorder.record("conv2d.default", [inputs, weight, bias, stride, padding, dilation, groups], {})
    every = [inputs, weight, bias, stride, padding, dilation, transposed, output_padding, groups]
    return recorder.record("convolution.default", every, {})


def _addmm(recorder: Recorder, bias: Any, inputs: Any, matrix: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """Record a product with a constant matrix as `linear`, so that it can be a layer."""
    if isinstance(matrix, Tensor) and isinstance(bias, Tensor) and bias.ndim == 1 and beta == alpha == 1:
        return recorder.record("linear.default", [inputs, matrix.t().contiguous(), bias], {})
    product = recorder.call("mm.default", inputs, matrix)
    scaled = recorder.call("mul.Tensor", product, alpha) if alpha != 1 else product
    return recorder.call("add.Tensor", scaled, recorder.call("mul.Tensor", bias, beta) if beta != 1 else bias)


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "constant_gradient": lambda recorder, value: recorder.record("detach.default", [value], {}),
    "convolution": _convolution,
    "_convolution": _convolution,
    "addmm": _addmm,
    "native_layer_norm": lambda recorder, inputs, shape, weight, bias, eps: (
        recorder.record("layer_norm.default", [inputs, shape, weight, bias, eps, False], {}),
        None,
        None,
    ),
    "max_pool2d_with_indices": lambda recorder, *given, **named: (
        recorder.record("max_pool2d.default", given, named),
        None,
    ),
    "_adaptive_avg_pool2d": lambda recorder, *given, **named: recorder.record(
        "adaptive_avg_pool2d.default", given, named
    ),
}


def _check_size(function: Any, arguments: Any, named: dict[str, Any]) -> None:
    """Refuse a result that is larger than those of any classifier, before memory is allocated for it."""
    try:
        with torch.device("meta"), torch.no_grad():
            result = function(*_map(_on_meta, arguments), **_map(_on_meta, named))
    except (RuntimeError, NotImplementedError):  # a number, which needs values, or what the operator itself refuses
        return
    for each in result if isinstance(result, list | tuple) else [result]:
        if isinstance(each, Tensor) and each.numel() > _MOST_NUMBERS:
            raise InputError("it computes a larger tensor than any classifier")


def _on_meta(value: Any) -> Any:
    value = tensor_of(value)
    return value.to("meta") if isinstance(value, Tensor) else value


_EXECUTED = {name.partition(".")[0] for name in OPERATORS | CREATION} | {
    *("to", "_to_copy", "type_as", "float", "size", "sym_size", "dim", "numel", "sym_numel"),
    *_COPIES,
    *_SHAPED,
    *_EXPANDED,
    *_CONSTANT_OF_SHAPE,
    *_BATCH_NORMS,
    *_REWRITTEN,
}


def _refuse_training(base: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    if base.endswith("dropout") and (named.get("train") or (len(arguments) > 2 and arguments[2])):
        raise InputError("it was saved in training mode; save it in evaluation mode")


def _bound(function: Any, arguments: Sequence[Any], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return positional and keyword arguments without trailing defaults and without those that change no values."""
    schema = [argument for argument in function._schema.arguments if not argument.kwarg_only]
    optional = {argument.name: argument for argument in function._schema.arguments if argument.kwarg_only}
    given = dict(zip((argument.name for argument in schema), arguments, strict=False)) | named
    values = [given.pop(each.name) if each.name in given else each.default_value for each in schema]
    while values and schema[len(values) - 1].has_default_value() and _equal(values[-1], schema[len(values) - 1]):
        values.pop()
    rest = {
        name: value
        for name, value in given.items()
        if name not in _IGNORED and not (name in optional and _equal(value, optional[name]))
    }
    return _map(_narrow, values), _map(_narrow, rest)


def _equal(value: Any, argument: Any) -> bool:
    """Tell whether an argument has its default value."""
    return not isinstance(value, Tensor | Traced) and bool(value == argument.default_value)


def _number(value: Any, rank: int) -> Any:
    """Return a constant of one element as a number if that broadcasts in the same way."""
    is_scalar = isinstance(value, Tensor) and value.numel() == 1 and value.ndim <= rank
    return value.item() if is_scalar else value


def _traced(value: Any) -> list[Traced]:
    """Return the traced values among arguments."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [traced for each in value for traced in _traced(each)]
    return [value] if isinstance(value, Traced) else []


def _is_traced(value: Any) -> bool:
    return bool(_traced(value))


def _address(tensor: Tensor) -> int:
    """Return where the memory of a tensor begins, which views share."""
    return tensor.untyped_storage().data_ptr()


def _map(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to the leaves of lists, tuples and dictionaries."""
    if isinstance(value, dict):
        return {key: _map(function, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_map(function, each) for each in value]
    return function(value)


def tensor_of(value: Any) -> Any:
    """Return the tensor of a traced value, and others unchanged."""
    return value.tensor if isinstance(value, Traced) else value


def _reference(value: Any) -> Any:
    return value.source if isinstance(value, Traced) else value


def _narrow(value: Any) -> Any:
    """Replace other floating dtypes by float32, in which a graph computes."""
    if isinstance(value, torch.dtype) and value in _WIDE:
        return torch.float32
    return value.float() if isinstance(value, Tensor) and value.dtype in _WIDE else value
