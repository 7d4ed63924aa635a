"""Self-describing model files: safetensors weights with one canonical JSON object in the header."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from gapssg.errors import InputError, shortened
from gapssg.files import canonical_json, parse_json, user_path, write_atomically
from gapssg.models import MOST_CLASSES, check_model_name, create_model, empty_model
from gapssg.models.description import ModelCard
from gapssg.models.foreign import at_most_parameters, check_classifier, tensors_of
from gapssg.models.reference import check_allowed, is_factory
from gapssg.models.safetensors_file import read_safetensors

_METADATA_KEY = "gapssg"
_MOST_OTHER_VALUES = 1000
_MOST_PREFIX_PARTS = 5
_PARAMETERS_A_TENSOR = 4  # some layers are made and then replaced
_MOST_HIDDEN_NUMBERS = 2**24  # positions and masks, which some models compute when they are built


@dataclass(frozen=True)
class LoadedModel:
    """A model file in memory.

    Attributes:
        module: The classifier in eval mode, on the CPU: images (N, C, H, W), normalised, to logits (N, K).
        card: Its description.
        sha256: SHA-256 of the file.
        path: Where it was read from.
    """

    module: nn.Module
    card: ModelCard
    sha256: str
    path: Path


def save_model(path: Path, module: nn.Module, card: ModelCard) -> str:
    """Write a model file atomically; equal weights and cards make equal files.

    Returns:
        The file's SHA-256, in hexadecimal.

    Raises:
        InputError: Something in the state of the module cannot stand in a model file.
        RunError: The file cannot be written.
    """
    content = model_content(module, card)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def model_content(module: nn.Module, card: ModelCard) -> bytes:
    """Return what a model file holds; equal weights and cards give equal bytes.

    Raises:
        InputError: Something in the state of the module cannot stand in a model file.
    """
    # Copies, because the format has no word for tensors that share memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(tensors_of(module, card.architecture).items())
    }
    description = card.model_dump(mode="json")
    description["content_sha256"] = _sha256_of_content(tensors, description)
    return save(tensors, metadata={_METADATA_KEY: canonical_json(description)})


def load_model(path: str | Path, factories: Iterable[str] = ()) -> LoadedModel:
    """Read a model file; nothing in it is run, and it has nothing imported but torchvision and timm.

    Args:
        path: The file.
        factories: Each `package.module:factory` that may be imported and called if the file names it.

    Raises:
        InputError: The file is missing, damaged, not ours, does not fit its own description, or names a factory that
            is not among `factories` or whose model is no classifier with these weights.
    """
    path = user_path(path)
    _refuse_architecture(path)
    file = read_safetensors(path)
    description = _read_description(path, file.metadata)
    sha256 = description.pop("content_sha256", None)
    try:
        card = ModelCard.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        field = shortened(".".join(map(str, first["loc"])) or "the description")
        raise InputError(f"{path}: its description is not valid: {field}: {shortened(first['msg'], 300)}") from error
    check_allowed(card.architecture, factories, path)
    module = _build(card, file.tensors, path)
    load_weights(module, file.tensors, path)
    if sha256 != _sha256_of_content(file.tensors, description):
        raise InputError(f"{path} is not as it was saved (its checksum differs); get it anew")
    if is_factory(card.architecture):
        try:
            check_classifier(module, card.architecture, card.num_classes, card.input_shape)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    module.eval()
    return LoadedModel(module, card, file.sha256, path)


def _refuse_architecture(path: Path) -> None:
    """Say how a model file is made, where the name of an architecture was given instead of one."""
    try:
        name = check_model_name(str(path))
    except InputError:
        return
    if not os.path.exists(path):
        raise InputError(
            f"{path} does not exist as a model file but is the name of an architecture; make a file of its weights: "
            f"gapssg import-teacher --model {name} --weights FILE --input-shape C,H,W --num-classes K --mean M --std S "
            "--output teacher.safetensors"
        )


def _build(card: ModelCard, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the model of a description that may be a stranger's, after checking that the file can fill it."""
    task: dict[str, Any] = {
        "num_classes": card.num_classes,
        "input_shape": card.input_shape,
        "arguments": card.arguments,
    }
    try:
        if is_factory(card.architecture):  # whose code the user trusts, so with memory, too
            return create_model(card.architecture, **task, weights_follow=True)
        with at_most_parameters(_PARAMETERS_A_TENSOR * len(tensors) + _MOST_OTHER_VALUES):
            skeleton = empty_model(card.architecture, **task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _check_fit(skeleton, tensors, path)  # a small file must not make a large model
    hidden = sum(buffer.numel() for name, buffer in skeleton.named_buffers() if name not in tensors)
    if hidden > _MOST_HIDDEN_NUMBERS:
        raise InputError(f"{path}: its model takes memory for {hidden:,} numbers that are not in the file")
    return create_model(card.architecture, **task)


def architecture_of(path: str | Path) -> str:
    """Return the architecture that a model file says it holds.

    Raises:
        InputError: The file is missing, damaged or not ours.
    """
    path = user_path(path)
    return str(_read_description(path, read_safetensors(path).metadata).get("architecture"))


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    """Copy `tensors` into `module`.

    Args:
        module: Whose weights they are to be.
        tensors: By the names of its state dict.
        source: Where they come from, for messages.

    Raises:
        InputError: Names, shapes or types differ (the first differences are named), or a number is not
            finite.
    """
    _check_fit(module, tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} holds numbers that are not finite")
    module.load_state_dict(tensors)


def _check_fit(module: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    expected = tensors_of(module, "the model")
    missing = [f"{name} is missing" for name in expected if name not in tensors]
    unknown = [f"{shortened(name)} is unknown" for name in tensors if name not in expected]
    other = []
    for name, tensor in expected.items():
        if name not in tensors:
            continue
        if tensor.shape != tensors[name].shape:
            other.append(f"{name} is {_shape(tensors[name])} instead of {_shape(tensor)}")
        elif tensor.dtype != tensors[name].dtype:
            other.append(f"{name} is {tensors[name].dtype} instead of {tensor.dtype}")
    # The first of each kind, then the second of each.
    differences = [each for each in chain.from_iterable(zip_longest(missing, unknown, other)) if each is not None]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        hint = _prefix_hint(expected.keys(), tensors.keys())
        raise InputError(f"{source}: the weights do not fit the model: {'; '.join(differences[:3])}{more}{hint}")


def _prefix_hint(expected: Collection[str], given: Collection[str]) -> str:
    """Return the prefix that all names on one side have, if most names are the same without it."""
    for longer, shorter, hint in (
        (given, expected, "its names begin with {!r}, which those of the model do not; take it off"),
        (expected, given, "the names of the model begin with {!r}, which its own do not; put it before them"),
    ):
        parts = next(iter(longer), "").split(".")[:-1]
        for count in range(1, min(len(parts), _MOST_PREFIX_PARTS) + 1):
            prefix = ".".join(parts[:count]) + "."
            if not all(name.startswith(prefix) for name in longer):
                break
            same = {name.removeprefix(prefix) for name in longer} & set(shorter)
            if len(same) > len(shorter) / 2:
                return f" ({hint.format(shortened(prefix))})"
    return ""


def _read_description(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    text = metadata.get(_METADATA_KEY)
    if text is None:
        raise InputError(
            f"{path} holds no gapssg description, so its architecture is unknown; "
            f"make a model file of it: gapssg import-teacher --weights {shlex.quote(str(path))} --model NAME ..."
        )
    if text.count(",") > MOST_CLASSES + _MOST_OTHER_VALUES:  # each might be wrong, and an error takes a kilobyte
        raise InputError(f"{path}: its description has more values than that of any model")
    try:
        description = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its description is not valid JSON") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: its description is not a JSON object")
    return description


def _sha256_of_content(tensors: dict[str, Tensor], description: dict[str, Any]) -> str:
    """Return the SHA-256 of tensors and description, by which damage shows; it is no signature."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
