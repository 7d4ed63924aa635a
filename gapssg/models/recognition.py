"""Recognises the signature of a classifier by forward passes, because its weights do not show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gapssg.errors import InputError
from gapssg.models.description import PLAIN, InputLayout, Outputs, Signature
from gapssg.models.foreign import (
    answer_of,
    blaming_statistics,
    check_classifier,
    check_evaluation_mode,
    check_module,
    described,
    device_of,
    foreign_code,
    no_logits,
    not_accepting,
    not_finite,
)
from gapssg.models.frozen import frozen
from gapssg.models.signature import (
    candidates_in,
    ends_in_sigmoid,
    is_for_classes,
    part_of,
    parts_of,
    permuted,
    signature_of,
)

_SCALES = (1.0, 1.0, 0.1, 10.0, 100.0)  # large ones take logits out of [0, 1], but not probabilities
_COUNT = 2  # images of each scale
_LARGEST_ERROR_OF_A_SUM = 1e-3  # of float32 probabilities
_LAYOUTS: tuple[InputLayout, ...] = ("NCHW", "NHWC")


@dataclass(frozen=True)
class Known:
    """What is known of a signature; None where it is to be recognised."""

    outputs: Outputs | None = None
    """As in `Signature`."""
    output_part: str | None = None
    """As in `Signature`."""
    input_layout: InputLayout | None = None
    """As in `Signature`."""


class Recognised(NamedTuple):
    """What forward passes show of a classifier."""

    signature: Signature
    """What it takes and returns."""
    looks_like_sigmoids: bool
    """Whether all its outputs for K classes lie in [0, 1] but do not sum to 1."""
    common_sum: float | None = None
    """What its outputs for K classes, all positive or all negative, sum to for every image, if that is the same."""


def recognise(
    module: object, name: str, num_classes: int, input_shape: tuple[int, int, int], known: Known
) -> Recognised:
    """Recognise what a classifier takes and returns, by forward passes of random images in evaluation mode.

    The module is left unchanged; of one that `adapt` has adapted, the signature is known. `name` is for messages.
    Raises `InputError` if `check_module` refuses it, it has no evaluation mode, it raises, it does not return numbers
    for the classes, or in several places, or they are not finite or contradict what is `known`.
    """
    module = check_module(module, name)
    check_evaluation_mode(module, name)
    if (adapted := signature_of(module)) != PLAIN:
        return Recognised(adapted, False)
    drawn = _random_images(module, input_shape)
    with blaming_statistics(module, name):
        layout, answer = _first_answer(module, name, drawn[0], known.input_layout)
        part = _find_part(name, drawn[0], answer, num_classes, known.output_part)
        batches = [_values(module, name, permuted(images, layout), part) for images in drawn]
    if not all(batch.isfinite().all() for batch in batches):
        raise not_finite(name, input_shape)
    has_one_column = batches[0].shape != (_COUNT, num_classes)
    if known.outputs is not None:
        _check_outputs(name, known.outputs, batches, has_one_column)
        return Recognised(Signature(known.outputs, part, layout), False)
    outputs, looks_like_sigmoids = _kind_of(batches, has_one_column)
    common_sum = _common_sum(torch.cat(batches).double()) if outputs == "logits" else None
    return Recognised(Signature(outputs, part, layout), looks_like_sigmoids, common_sum)


def adapt_trainable(module: object, name: str, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """Return `module` if it is a classifier that can be trained, adapted to images (N, C, H, W) and logits (N, K).

    Raises `InputError` if `recognise` or `check_classifier` refuses it, it returns probabilities, or it does not return
    logits with a gradient in training mode.
    """
    if isinstance(module, nn.DataParallel):
        raise InputError(f"{name} is a DataParallel, which cannot be trained; pass its .module")
    signature = recognise(module, name, num_classes, input_shape, Known()).signature
    module = check_module(module, name)
    images = _random_images(module, input_shape)[0]
    if signature_of(module) == PLAIN:
        signature = replace(signature, outputs=_trainable_outputs(module, name, images, signature))
        answer = _answer_in_training(module, name, permuted(images, signature.input_layout))
        if signature.output_part is None:
            signature = replace(
                signature, output_part=_find_part(f"{name}, in training,", images, answer, num_classes, None)
            )
    check_classifier(module, name, num_classes, input_shape, signature)
    answer = _answer_in_training(module, name, images)
    if not isinstance(answer, Tensor) or answer.shape != (_COUNT, num_classes):
        raise no_logits(f"{name}, in training,", images, answer, num_classes)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"{name} has no trainable parameters; call requires_grad_(True) on those to train")
    if not answer.requires_grad:
        raise InputError(
            f"{name} cannot be trained, because its logits do not depend on a trainable parameter; compute them "
            "without torch.no_grad() and detach()"
        )
    return module


def _random_images(module: nn.Module, input_shape: tuple[int, int, int]) -> list[Tensor]:
    """Return two normal images for each scale, on the device of the module."""
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(_COUNT, *input_shape, generator=generator).to(device_of(module)) for scale in _SCALES]


def _first_answer(
    module: nn.Module, name: str, images: Tensor, known: InputLayout | None
) -> tuple[InputLayout, object]:
    """Return the layout of images that the module accepts, and its answer."""
    layouts = _LAYOUTS if known is None else (known,)
    failures = []
    for layout in layouts:
        try:
            return layout, answer_of(module, name, permuted(images, layout))
        except InputError as error:
            failures.append(error)
    if any(_accepts(module, name, permuted(images[:1], layout)) for layout in layouts):
        raise _fixed_batch(name)
    raise failures[0]


def _fixed_batch(name: str) -> InputError:
    return InputError(
        f"{name} accepts one image but not {_COUNT}, so its batch size is fixed at 1; let its forward take the batch "
        "size from its input, or export it again with a dynamic batch size"
    )


def _accepts(module: nn.Module, name: str, images: Tensor) -> bool:
    try:
        answer_of(module, name, images)
    except InputError:
        return False
    return True


def _find_part(name: str, images: Tensor, answer: object, num_classes: int, known: str | None) -> str | None:
    """Return the part of an answer that holds the outputs; None if the answer is a tensor."""
    if isinstance(answer, Tensor):
        if known is not None:
            raise InputError(f"{name} returns a tensor, not a container with a part {known}; leave --output-part out")
        if is_for_classes(answer, len(images), num_classes):
            return None
        if answer.ndim and len(answer) == 1:
            raise _fixed_batch(name)
        raise no_logits(name, images, answer, num_classes)
    parts = parts_of(answer)
    found = [known] if known in parts else candidates_in(parts, len(images), num_classes)
    if known is not None and known not in parts:
        raise InputError(f"--output-part {known}: {name} returns {described(answer)}")
    if not found or not is_for_classes(parts[found[0]], len(images), num_classes):
        raise no_logits(name, images, parts[found[0]] if found else answer, num_classes)
    if len(found) > 1:
        raise InputError(
            f"{name} returns {described(answer)}, where {' and '.join(found)} may be the logits; choose one with "
            f"--output-part {found[0]}, or let it return that one"
        )
    return found[0]


def _values(module: nn.Module, name: str, images: Tensor, part: str | None) -> Tensor:
    answer = answer_of(module, name, images)
    with foreign_code(f"{name} does not return its outputs in the same way for all images"):
        return part_of(answer, part)


def _kind_of(batches: Sequence[Tensor], has_one_column: bool) -> tuple[Outputs, bool]:
    lie_in_unit_interval = all(_lies_in_unit_interval(batch, 0.0) for batch in batches)
    if has_one_column:
        return "sigmoid" if lie_in_unit_interval else "logit", False
    kinds = {_kind_of_batch(batch) for batch in batches}
    kind = kinds.pop() if len(kinds) == 1 else "logits"
    return kind, kind == "logits" and lie_in_unit_interval


def _kind_of_batch(outputs: Tensor) -> Outputs:
    tolerance = max(_LARGEST_ERROR_OF_A_SUM, 4 * torch.finfo(outputs.dtype).eps)
    outputs = outputs.double()

    def is_distribution(numbers: Tensor) -> bool:
        return bool((numbers >= 0).all() and ((numbers.sum(dim=1) - 1).abs() <= tolerance).all())

    if is_distribution(outputs):
        return "probabilities"
    return "log-probabilities" if is_distribution(outputs.exp()) else "logits"


def _common_sum(outputs: Tensor) -> float | None:
    """Return the sum of each row of outputs (N, K) of one sign that differ, if it is the same; else None."""
    total = outputs.sum(dim=1).mean().item()
    tolerance = _LARGEST_ERROR_OF_A_SUM * abs(total)
    has_one_sign = bool((outputs >= 0).all() or (outputs <= 0).all())
    is_common = bool(((outputs.sum(dim=1) - total).abs() <= tolerance).all())
    is_constant = bool(((outputs - outputs[0]).abs() <= tolerance).all())
    return total if has_one_sign and is_common and not is_constant else None


def _lies_in_unit_interval(outputs: Tensor, tolerance: float) -> bool:
    return bool((outputs >= -tolerance).all() and (outputs <= 1 + tolerance).all())


def _check_outputs(name: str, outputs: Outputs, batches: Sequence[Tensor], has_one_column: bool) -> None:
    """Refuse outputs that the classifier cannot return."""
    reason = None
    if has_one_column and outputs not in ("logit", "sigmoid"):
        reason = "returns one number for an image: logit or sigmoid"
    elif outputs in ("logit", "sigmoid") and not has_one_column:
        reason = f"returns a number for each class: {outputs}s"
    elif outputs in ("probabilities", "sigmoids", "sigmoid"):
        if not all(_lies_in_unit_interval(batch, _LARGEST_ERROR_OF_A_SUM) for batch in batches):
            reason = "returns numbers outside [0, 1], which are no probabilities"
    elif outputs == "log-probabilities" and any((batch > _LARGEST_ERROR_OF_A_SUM).any() for batch in batches):
        reason = "returns numbers above 0, which are no logarithms of probabilities"
    if reason is not None:
        raise InputError(f"--output-kind {outputs}: {name} {reason}")


def _trainable_outputs(module: nn.Module, name: str, images: Tensor, signature: Signature) -> Outputs:
    """Return what a classifier to be trained returns: logits, or one logit."""
    outputs = signature.outputs
    if outputs == "sigmoid":  # an untrained logit, too, may happen to lie in [0, 1]
        with not_accepting(module, name, images), frozen(module), torch.enable_grad():
            answer = module(permuted(images.clone().requires_grad_(), signature.input_layout))
            outputs = "sigmoid" if ends_in_sigmoid(part_of(answer, signature.output_part)) else "logit"
    if outputs in ("probabilities", "sigmoid"):
        end = "softmax" if outputs == "probabilities" else "sigmoid"
        raise InputError(
            f"{name} returns probabilities; let it return the logits before its {end} "
            "(`gapssg import-teacher` accepts a trained model unchanged)"
        )
    return "logit" if outputs == "logit" else "logits"


def _answer_in_training(module: nn.Module, name: str, images: Tensor) -> object:
    """Return what a module returns in training mode, with gradients; buffers and torch's random state do not change."""
    buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}
    modes = [(part, part.training) for part in module.modules()]
    complaint = f"{name} does not accept images of {'x'.join(map(str, images.shape[1:]))} in training mode"
    with foreign_code(complaint), torch.random.fork_rng(devices=[]), torch.enable_grad():
        module.train()
        try:
            return functional_call(module, buffers, (images,))
        finally:
            for part, training in modes:
                part.training = training
