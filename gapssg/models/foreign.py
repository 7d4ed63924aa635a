"""Third-party model code: turns its exceptions into one sentence, and verifies that a module is a classifier."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gapssg.errors import GapssgError, InputError, first_line, shortened
from gapssg.models.description import PLAIN, Signature
from gapssg.models.frozen import frozen
from gapssg.models.names import LONGEST_NAME
from gapssg.models.safetensors_file import DTYPES
from gapssg.models.signature import adapt, parts_of

_BATCHES = (2, 2, 1, 3)
_ROUNDING = 1e-2
"""Largest difference of one image's logits between batches, relative to the largest logit.

Float32 rounding is about 1e-7, 1e-5 after a hundred layers, and 1e-3 if the model rounds its activations to 8 bits;
statistics of another batch change logits by a tenth or more.
"""
_REMOVALS = {
    BasePruningMethod: "pruning (torch.nn.utils.prune.remove)",
    WeightNorm: "weight_norm (torch.nn.utils.remove_weight_norm)",
    SpectralNorm: "spectral_norm (torch.nn.utils.remove_spectral_norm)",
}
"""Hooks that keep a computed weight, which cannot be copied, and how to remove each."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_MOST_PARTS_LISTED = 5


@contextmanager
def foreign_code(complaint: str) -> Iterator[None]:
    """Turn any exception of the block into an InputError that starts with `complaint`."""
    try:
        yield
    except GapssgError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses arguments may exit
        kind, line = type(error).__name__, _COLOURS.sub("", first_line(error, 300))
        reason = line if line.startswith(kind) else f"{kind}: {line}"
        raise InputError(f"{complaint} ({shortened(reason, 300)})") from error


@contextmanager
def limit_parameters(most: int) -> Iterator[None]:
    """Raise `InputError` once a model that is built in the block, perhaps from a file, has too many parameters."""
    numbers = itertools.count(1)

    def count_parameter(*_: object) -> None:
        if (made := next(numbers)) > most:
            raise InputError(f"its model has many more layers than the file has tensors (stopped at {made:,})")

    handle = register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        handle.remove()


def check_module(module: object, name: str) -> nn.Module:
    """Return `module` if it has parameters and a state that a model file can hold, without a forward pass.

    Raises `InputError` if it is not a module, has no parameters, or `tensors_of` refuses it.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"{name} returned a {type(module).__name__} instead of a torch.nn.Module")
    if not any(True for _ in module.parameters()):
        raise InputError(f"{name} has no parameters to train")
    tensors_of(module, name)
    return module


def name_of_module(module: nn.Module) -> str:
    """Return the architecture that a model file names for a module of a Python program."""
    kind = type(_original(module))
    return f"<{shortened(f'{kind.__module__}.{kind.__qualname__}', LONGEST_NAME - 2)}>"


def check_is_module(module: object, name: str) -> nn.Module:
    """Return `module` if it is one; raise `InputError` if not."""
    if isinstance(module, nn.Module):
        return module
    raise InputError(f"{name} is a {type(module).__name__} instead of a torch.nn.Module")


def copy_module(module: object, name: str) -> nn.Module:
    """Return a copy of a module on the CPU, without gradients; of a compiled one, of the original.

    Raises `InputError` if it is not a module, has no values, or cannot be copied.
    """
    original = _original(check_is_module(module, name))
    for key, tensor in chain(original.named_parameters(), original.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"{name} has no values (meta device) in {shortened(key)}; load its weights first")
    with foreign_code(f"{name} cannot be copied; {_how_to_copy(original)}"):
        copied = copy.deepcopy(original).cpu()
        copied.zero_grad(set_to_none=True)
    return copied


def _how_to_copy(module: nn.Module) -> str:
    """Return what to do about a module that copy.deepcopy refuses."""
    for part, layer in module.named_modules():
        for hook in layer._forward_pre_hooks.values():
            for kind, removal in _REMOVALS.items():
                if isinstance(hook, kind):
                    return f"remove the {removal} of {shortened(part) or 'the module'} first"
    return "make its tensors parameters or buffers, so that copy.deepcopy works"


def _original(module: nn.Module) -> nn.Module:
    original: nn.Module = getattr(module, "_orig_mod", module)
    return original


def check_classifier(
    module: object,
    name: str,
    num_classes: int,
    input_shape: tuple[int, int, int],
    signature: Signature = PLAIN,
) -> nn.Module:
    """Return `module` if forward passes of 1 to 3 images in evaluation mode show that it is a classifier.

    With another `signature` it is adapted first. On the meta device the values of logits are not checked. `name` is for
    messages. Raises `InputError` if `check_module` refuses it, it has no evaluation mode, it raises, its logits (N, K)
    of images (N, C, H, W) float32 are not finite, are not deterministic or depend on the batch, or it changes buffers.
    """
    module = check_module(module, name)
    check_evaluation_mode(module, name)
    adapt(module, signature)
    is_meta = device_of(module).type == "meta"
    before = {} if is_meta else {key: tensor.clone() for key, tensor in _buffers(module, name).items()}
    with blaming_statistics(module, name):
        pair, again, alone, more = (logits_of(module, name, num_classes, input_shape, count) for count in _BATCHES)
    if is_meta:
        return module
    if not all(logits.isfinite().all() for logits in (pair, alone, more)):
        raise not_finite(name, input_shape)
    if not torch.equal(pair, again):
        raise InputError(
            f"{name} is not deterministic in evaluation mode: the same images get different logits; "
            "let its dropout follow module.training"
        )
    after = _buffers(module, name)
    for key, tensor in before.items():
        if key not in after or not torch.equal(tensor, after[key]):
            raise InputError(
                f"{name} changes its buffer {shortened(key)} in evaluation mode; "
                "let its batch norms follow module.training"
            )
    if any(logits_differ(fewer, more[: len(fewer)]) for fewer in (pair, alone)):
        _check_statistics(module, name)
        raise InputError(
            f"{name} gives an image different logits in different batches, also in evaluation mode; "
            "let its batch norms follow module.training"
        )
    return module


def logits_of(module: nn.Module, name: str, num_classes: int, input_shape: tuple[int, int, int], count: int) -> Tensor:
    """Return logits (count, K) of the first `count` of 3 fixed images, in evaluation mode, or raise `InputError`."""
    most = max(_BATCHES)
    images = torch.linspace(-1, 1, most * math.prod(input_shape), device=device_of(module)).view(most, *input_shape)
    return _run(module, name, num_classes, images[:count])


def check_finite_logits(module: nn.Module, name: str, num_classes: int, input_shape: tuple[int, int, int]) -> None:
    """Raise `InputError` if the logits of two fixed images are not finite, or as `logits_of`."""
    if not logits_of(module, name, num_classes, input_shape, count=2).isfinite().all():
        raise not_finite(name, input_shape)


def _run(module: nn.Module, name: str, num_classes: int, images: Tensor) -> Tensor:
    logits = answer_of(module, name, images)
    if isinstance(logits, Tensor) and logits.shape == (len(images), num_classes) and logits.is_floating_point():
        return logits
    raise no_logits(name, images, logits, num_classes)


def answer_of(module: nn.Module, name: str, images: Tensor) -> object:
    """Return what a module returns for images (N, C, H, W) in evaluation mode; raise `InputError` if it raises."""
    with not_accepting(module, name, images), frozen(module), torch.no_grad():
        return module(images)


def not_accepting(module: nn.Module, name: str, images: Tensor) -> AbstractContextManager[None]:
    """Turn any exception of a forward pass of `module` in the block into an InputError."""
    number = "a single image" if len(images) == 1 else "images"
    others = [each for each in module.parameters() if each.is_floating_point() and each.dtype != images.dtype]
    advice = ""
    if others:
        advice = f"; its weights are {_dtype(others[0])}, so convert it by .float()"
    elif len(images) > 1:
        advice = "; if it was made for images of another shape, give that"
    return foreign_code(f"{name} does not accept {number} of {_size(images)}{advice}")


def no_logits(name: str, images: Tensor, answer: object, num_classes: int) -> InputError:
    """Return the error for a module that does not return logits (N, K)."""
    count, advice = len(images), ""
    if isinstance(answer, Tensor) and answer.is_floating_point() and answer.ndim == 2 and len(answer) == count:
        advice = f"; if it was trained on {answer.shape[1]} classes, name all of them"
    return InputError(
        f"{name} maps {count} image{'' if count == 1 else 's'} of {_size(images)} to {described(answer)} instead of "
        f"floating logits of shape ({count}, {num_classes}); it must return one logit for each of {num_classes} classes"
        f"{advice}"
    )


def not_finite(name: str, input_shape: Sequence[int]) -> InputError:
    """Return the error for a module whose logits are not finite."""
    return InputError(
        f"{name} maps images of {'x'.join(map(str, input_shape))} to logits that are not finite; check its weights, "
        "and add a small number to what it divides by or takes the logarithm or root of"
    )


def tensors_of(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the state dict of a module.

    Raises `InputError` if a value in it is not a tensor, has an unknown size, or a dtype that a model file cannot hold.
    """
    with foreign_code(f"the state dict of {name} cannot be read"):
        state = dict(module.state_dict(keep_vars=True))
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"{name} has a {type(value).__name__} under {shortened(key)} in its state dict; a model file holds "
                "only tensors, so make it an argument or a buffer"
            )
        if is_lazy(value):
            raise InputError(f"{name} has the lazy parameter {shortened(key)}; let the factory run it once")
        if value.dtype not in DTYPES.values():
            raise InputError(
                f"{name} has {shortened(key)} of dtype {_dtype(value)}, which a model file cannot hold; "
                "use another dtype"
            )
    return state


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors of `module`'s own state dict, with the state-dict versions that its sub-modules have now."""
    state = OrderedDict(tensors)
    state._metadata = getattr(module.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    module.load_state_dict(state)


def replace_layer(module: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the sub-module `name` by `layer`."""
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, layer)


def check_evaluation_mode(module: nn.Module, name: str) -> None:
    """Raise `InputError` unless `module.eval()` switches every part of it to evaluation mode."""
    with foreign_code(f"{name} cannot switch to evaluation mode"), frozen(module):
        training = [part for part, layer in module.named_modules() if layer.training]
    if training:
        part = f"its part {shortened(training[0])}" if training[0] else "it"
        raise InputError(f"{name} has no evaluation mode: {part} stays in training mode; fix its train()")


@contextmanager
def blaming_statistics(module: nn.Module, name: str) -> Iterator[None]:
    """Replace an InputError of the block by that of batch norms without running statistics, if there are any."""
    try:
        yield
    except InputError:
        _check_statistics(module, name)
        raise


def _check_statistics(module: nn.Module, name: str) -> None:
    """Refuse batch norms without running statistics, which use those of the batch in every mode."""
    for part, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is None:
            raise InputError(
                f"{name} has a batch norm, {shortened(part)}, without running statistics "
                "(track_running_stats=False), so that an image's logits depend on its batch; "
                "train it with track_running_stats=True"
            )


def _buffers(module: nn.Module, name: str) -> dict[str, Tensor]:
    """Return the tensors of the state dict that a forward pass could change."""
    return {key: tensor for key, tensor in tensors_of(module, name).items() if not isinstance(tensor, nn.Parameter)}


def logits_differ(first: Tensor, second: Tensor) -> bool:
    """Tell whether logits differ by more than rounding explains."""
    largest = second.abs().max().float()
    return bool((first.float() - second.float()).abs().max() > _ROUNDING * largest)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first tensor."""
    return next(chain(module.parameters(), module.buffers())).device


def described(value: object) -> str:
    """Describe what a module returned, for messages."""
    if isinstance(value, Tensor):
        return f"a {_dtype(value)} tensor of shape {tuple(value.shape)}"
    kind = f"a {type(value).__name__}"
    if not (parts := parts_of(value)):
        return kind
    listed = [f"{shortened(name)}: {described(part)}" for name, part in parts.items()][:_MOST_PARTS_LISTED]
    return f"{kind} ({', '.join(listed)}{', ...' if len(parts) > len(listed) else ''})"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape[1:]))
