"""Signatures of classifiers: recognises what one takes and returns, and converts it to images and logits.

Hooks on the classifier do this, so that it keeps its layers and state dict, and everything else sees normalised images
(N, C, H, W) and logits (N, K).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from gapssg.models.description import InputLayout, Outputs, Signature

LOGITS = "logits"
"""The usual name of the outputs of a classifier that returns several."""
_SMALLEST_PROBABILITY = torch.finfo(torch.float32).tiny
_ROUNDING_OF_PROBABILITIES = torch.finfo(torch.float32).eps
_PASSES_ON = ("Squeeze", "View", "Reshape", "Select", "Unsqueeze", "ToCopy", "Clone", "Alias", "Permute", "Slice")


def to_logits(outputs: Outputs, values: Tensor) -> Tensor:
    """Convert what a classifier returns to logits.

    Saturated probabilities give finite logits and gradients of 0: a probability of 0 counts as 1e-38, and that of a
    sigmoid as at least 1e-7 and at most 1 - 1e-7, to which float32 rounds it.

    Args:
        outputs: What the values are, as in `Signature`.
        values: (N, K) float, or for `logit` and `sigmoid` (N,) or (N, 1).

    Returns:
        (N, K) float. Of one logit l, that of the second class: (-l/2, l/2), whose softmax is (1 - p, p).
    """
    if outputs == "probabilities":
        return values.clamp_min(max(_SMALLEST_PROBABILITY, torch.finfo(values.dtype).tiny)).log()
    if outputs in ("sigmoid", "sigmoids"):
        eps = max(_ROUNDING_OF_PROBABILITIES, torch.finfo(values.dtype).eps)
        values = torch.logit(values.to(torch.promote_types(values.dtype, torch.float32)), eps)
    if outputs in ("logit", "sigmoid"):
        half = values.reshape(-1, 1) / 2
        return torch.cat([-half, half], dim=1)
    return values


def adapt(module: nn.Module, signature: Signature) -> None:
    """Make a classifier with this signature take images (N, C, H, W) and return logits (N, K)."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook is _channels_last or isinstance(hook, _ToLogits)]:
            del hooks[key]
    if signature.input_layout == "NHWC":
        module.register_forward_pre_hook(_channels_last)
    if signature != Signature(input_layout=signature.input_layout):
        module.register_forward_hook(_ToLogits(signature))


def signature_of(module: nn.Module) -> Signature:
    """Return the signature with which `adapt` was called."""
    layout: InputLayout = "NHWC" if _channels_last in module._forward_pre_hooks.values() else "NCHW"
    found = [hook.signature for hook in module._forward_hooks.values() if isinstance(hook, _ToLogits)]
    return found[0] if found else Signature(input_layout=layout)


def permuted(images: Tensor, layout: InputLayout) -> Tensor:
    """Return images (N, C, H, W) in a layout."""
    return images if layout == "NCHW" else images.permute(0, 2, 3, 1).contiguous()


def _channels_last(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images, *others = inputs
    return (permuted(images, "NHWC"), *others)


class _ToLogits:
    """A forward hook; not a closure, so that copies of the module know their signature."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    def __call__(self, module: nn.Module, inputs: object, output: object) -> Tensor:
        return to_logits(self.signature.outputs, part_of(output, self.signature.output_part))


def part_of(output: object, part: str | None) -> Tensor:
    """Return the outputs in what a classifier returns: a tensor, or the part of a container.

    A classifier may return a container only in training, as those with auxiliary heads do.
    """
    if part is None or isinstance(output, Tensor):
        return output  # type: ignore[return-value]
    found: Tensor = parts_of(output)[part]  # type: ignore[assignment]
    return found


def parts_of(output: object) -> dict[str, object]:
    """Return the parts of a container by key, field or index; none if it is no container."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return {str(name): value for name, value in zip(names, output, strict=True)}
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    return {LOGITS: getattr(output, LOGITS)} if hasattr(output, LOGITS) else {}


def candidates_in(parts: Mapping[str, object], count: int, num_classes: int) -> list[str]:
    """Return the names of the parts that may be the outputs for `count` images; only `logits` if it is among them."""
    found = [name for name, value in parts.items() if is_for_classes(value, count, num_classes)]
    return [LOGITS] if LOGITS in found else found


def is_for_classes(value: object, count: int, num_classes: int) -> bool:
    """Tell whether this is a floating tensor with a number for each of K classes, or one for two, and each image."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.shape == (count, num_classes) or (num_classes == 2 and value.shape in ((count,), (count, 1)))


def ends_in_sigmoid(values: Tensor) -> bool:
    """Tell whether a sigmoid computed these values, by their graph of gradients."""
    node = values.grad_fn
    while node is not None and any(name in type(node).__name__ for name in _PASSES_ON):
        node = node.next_functions[0][0] if node.next_functions else None
    return type(node).__name__.startswith("Sigmoid")
