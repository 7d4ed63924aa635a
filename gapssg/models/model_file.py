"""Self-describing model files: safetensors weights with one canonical JSON object in the header."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice, zip_longest
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from pydantic import JsonValue, ValidationError
from safetensors.torch import save
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.errors import InputError, RunError, shortened
from gapssg.files import canonical_json, is_folder, parse_json, staged, user_path, write_atomically
from gapssg.models.create import create_model, empty_model
from gapssg.models.description import METADATA_KEY, PLAIN, Interface, ModelCard, ModelProfile
from gapssg.models.foreign import (
    check_classifier,
    copy_module,
    foreign_code,
    limit_parameters,
    load_state,
    logits_differ,
    logits_of,
    tensors_of,
)
from gapssg.models.graphs.file import Kind, kind_of_graph
from gapssg.models.graphs.module import build_graph
from gapssg.models.hub import is_hub_reference, local_file
from gapssg.models.model_path import final_weights
from gapssg.models.names import MOST_CLASSES, check_model_name
from gapssg.models.profile import profile_model
from gapssg.models.reference import MODULE, check_trusted, is_factory, is_module
from gapssg.models.safetensors_file import SafetensorsFile, read_safetensors

_MOST_OTHER_VALUES = 1000
_MOST_PREFIX_PARTS = 5
_COUNTER = "num_batches_tracked"  # a batch norm reads it only if it has no momentum
_COUNTERS = (_COUNTER, "n_averaged")
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PARAMETERS_A_TENSOR = 4  # some models replace layers that they have built
_MOST_HIDDEN_NUMBERS = 2**24  # positions and masks, which some models compute when they are built

Description = TypeVar("Description", bound=Interface)


class ModelFacts(TypedDict):
    """What results say of a model file, as keyword arguments."""

    file: str
    sha256: str
    architecture: str


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory: of a file, or of a module."""

    module: nn.Module
    """The classifier in eval mode, on the CPU: images (N, C, H, W), normalised, to logits (N, K)."""
    card: ModelCard
    """Its description."""
    sha256: str
    """SHA-256 of the file, or of that which the module would have."""
    path: Path
    """The file; `<module>` of a module."""

    @cached_property
    def profile(self) -> ModelProfile:
        """The size of the model."""
        return profile_model(self.module, self.card.input_shape)

    @property
    def facts(self) -> ModelFacts:
        """File, SHA-256 and architecture, as results have them."""
        return {"file": str(self.path), "sha256": self.sha256, "architecture": self.card.architecture}

    def normalization(self, device: torch.device) -> Normalization:
        """Return the normalisation of the model's input on a device."""
        return Normalization.from_statistics(self.card.mean, self.card.deviation, device)


def save_model(path: Path, module: nn.Module, card: ModelCard) -> str:
    """Write a model file atomically; equal weights and cards give equal files. Return its SHA-256, in hexadecimal.

    Raises `InputError` if a model file cannot hold the state of the module, and `RunError` if it cannot be written.
    """
    content = model_content(module, card)
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def save_verified_model(path: Path, module: nn.Module, card: ModelCard) -> str:
    """Write a model file as `save_model` does, after verifying that the reloaded model gives the same logits.

    Raises `RunError` if it does not, or the file cannot be written.
    """
    try:
        with staged_model(path, module, card, tolerates_rounding=True) as loaded:
            return loaded.sha256
    except InputError as error:
        raise RunError(str(error)) from error


@contextmanager
def staged_model(
    path: Path, module: nn.Module, card: ModelCard, *, tolerates_rounding: bool = False
) -> Iterator[LoadedModel]:
    """Write a model file under a temporary name and rename it when the block ends; if the block raises, remove it.

    With `tolerates_rounding` the logits may differ as between memory layouts.

    Yields:
        The model loaded from the file, on the device of `module`.

    Raises:
        InputError: A model file cannot hold the state of the module, or the reloaded model gives different
            logits.
        RunError: The file cannot be written.
    """
    ours = _first_logits(module, card)
    with staged(path, model_content(module, card)) as file:
        try:
            loaded = load_model(file, [card.architecture], module if is_module(card.architecture) else None)
        except InputError as error:
            raise InputError(f"{path} was not written, because it could not be read back: {error}") from error
        theirs = _first_logits(loaded.module.to(ours.device), card)
        if logits_differ(theirs, ours) if tolerates_rounding else not torch.equal(theirs, ours):
            raise InputError(
                f"{path} was not written, because {card.architecture} gives different logits after reloading; "
                "let its state dict hold everything that its logits depend on, as parameters or buffers"
            )
        yield loaded


def _first_logits(module: nn.Module, card: ModelCard) -> Tensor:
    return logits_of(module, card.architecture, card.num_classes, card.input_shape, count=2)


def model_content(module: nn.Module, card: ModelCard) -> bytes:
    """Return the bytes of a model file, the same for equal weights and cards; raises as `tensors_of`."""
    # Copies, because the format cannot express tensors that share memory, such as tied weights.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(tensors_of(module, card.architecture).items())
    }
    description = card.model_dump(mode="json")
    description["content_sha256"] = _sha256_of_content(tensors, description)
    return save(tensors, metadata={METADATA_KEY: canonical_json(description)})


def load_model(path: str | Path, factories: Iterable[str] = (), module: nn.Module | None = None) -> LoadedModel:
    """Read a model file; no code in it is run, and it can cause no import except of torchvision and timm.

    A `package.module:factory` that the file names is imported and called only if it is among `factories`.

    Args:
        path: The file, the directory of a run for its final weights, or a reference to the Hugging Face Hub:
            `hf-hub:ORG/NAME`, also with `@REVISION`.
        factories: Factories that the file may name.
        module: Load the weights into a copy of this module instead of building the model that the file names.

    Raises:
        InputError: The file is missing, damaged, not a gapssg model file, does not match its own description, names a
            factory that is not among `factories` or a module that is not given, or the model is not a classifier with
            these weights.
    """
    path = _named_file(path)
    _refuse_architecture(path)
    try:
        file = _read(path)
    except InputError:
        if not is_hub_reference(path) and (kind := kind_of_graph(path)) is not None:
            raise refused_graph(path, kind) from None
        raise
    description = read_description(path, file.metadata)
    sha256 = description.pop("content_sha256", None)
    card = validated(ModelCard, description, path)
    if module is None:
        check_trusted(card.architecture, factories, path)
        built = _build(card, file.tensors, path)
    else:
        built = copy_module(module, f"the module for {path}")
    load_weights(built, file.tensors, path)
    if sha256 != _sha256_of_content(file.tensors, description):
        raise InputError(f"{path} is damaged (its checksum does not match); copy or download it again")
    if module is not None or is_factory(card.architecture) or card.signature != PLAIN:
        try:
            check_classifier(built, card.architecture, card.num_classes, card.input_shape, card.signature)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    built.eval()
    return LoadedModel(built, card, file.sha256, path)


def _named_file(path: str | Path) -> Path:
    """Return the path of the model file that the user means; a reference to the Hub stays one."""
    path = user_path(path)
    return final_weights(path) if is_folder(path) else path


def _read(path: Path) -> SafetensorsFile:
    """Read the safetensors file that a path or a reference to the Hub names; messages have that name."""
    file = local_file(path)
    try:
        return read_safetensors(file)
    except InputError as error:
        raise InputError(str(error).replace(str(file), str(path))) from error


def _refuse_architecture(path: Path) -> None:
    """Explain how to make a model file if the name of an architecture was given instead of one."""
    try:
        name = check_model_name(str(path))
    except InputError:
        return
    if not os.path.exists(path):
        raise InputError(
            f"{path} is the name of an architecture, not an existing model file; make a model file: "
            f"gapssg import-teacher --model {name} --weights FILE --input-shape C,H,W --num-classes K --mean M --std S "
            "--output teacher.safetensors"
        )


def refused_graph(path: Path, kind: Kind) -> InputError:
    """Return an error that explains how to make a model file of the graph of another program."""
    return InputError(
        f"{path} is a graph ({kind}), not a model file; make one from it: "
        f"gapssg import-teacher --weights {shlex.quote(str(path))} --mean M --std S --output teacher.safetensors"
    )


def _build(card: ModelCard, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the model of an untrusted description, after checking that the tensors of the file fit it."""
    if is_module(card.architecture):
        raise InputError(
            f"{path} has the weights of a Python module, {card.architecture}, which no name builds; pass it to "
            f"load_model(..., module=...), or make a model file with a factory of it: gapssg import-teacher --weights "
            f"{shlex.quote(str(path))} --model package.module:factory ..."
        )
    task: dict[str, Any] = card.model_dump(include={"num_classes", "input_shape", "arguments"})
    try:
        if card.graph is not None:
            graph = build_graph(card.graph, tensors, card.num_classes, card.input_shape)
            _check_fit(graph, tensors, path)
            return graph.to_empty(device="cpu")
        if is_factory(card.architecture):  # the user trusts its code, also with memory
            return create_model(card.architecture, **task, weights_follow=True)
        with limit_parameters(_PARAMETERS_A_TENSOR * len(tensors) + _MOST_OTHER_VALUES):
            skeleton = empty_model(card.architecture, **task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    _check_fit(skeleton, tensors, path)  # a small file must not allocate a large model
    hidden = sum(buffer.numel() for name, buffer in skeleton.named_buffers() if name not in tensors)
    if hidden > _MOST_HIDDEN_NUMBERS:
        raise InputError(f"{path}: its model allocates {hidden:,} numbers that are not in the file")
    return create_model(card.architecture, **task)


def read_card(path: str | Path) -> tuple[ModelCard, str]:
    """Return the description and the SHA-256 of a model file, without building its model.

    Raises `InputError` if the file is missing, damaged or not a gapssg model file, or its description is not valid.
    """
    path = _named_file(path)
    file = _read(path)
    description = read_description(path, file.metadata)
    description.pop("content_sha256", None)
    return validated(ModelCard, description, path), file.sha256


def validated(kind: type[Description], description: Mapping[str, object], path: Path) -> Description:
    """Return a description of the file `path` as this class of settings; raise `InputError` if it is not valid."""
    try:
        return kind.model_validate(description)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        field = shortened(".".join(map(str, first["loc"])) or "the description")
        raise InputError(f"{path}: its description is not valid: {field}: {shortened(reason, 300)}") from error


def model_of(module: nn.Module, card: ModelCard) -> LoadedModel:
    """Return the model that `load_model` would return of a module's file, unwritten; raises as `tensors_of`."""
    return LoadedModel(module, card, hashlib.sha256(model_content(module, card)).hexdigest(), Path(MODULE))


def architecture_of(path: str | Path) -> str:
    """Return the architecture that a model file names; raises as `read_card`."""
    path = _named_file(path)
    return str(read_description(path, _read(path).metadata).get("architecture"))


def load_weights(module: nn.Module, tensors: dict[str, Tensor], source: object) -> None:
    """Copy `tensors`, by the names of the state dict, into `module`; `source` is their origin, for messages.

    Raises `InputError` if names, shapes or dtypes differ (it names the first differences), or a value is not finite.
    """
    _check_fit(module, tensors, source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} has values that are not finite")
    load_state(module, tensors)


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
        raise InputError(f"{source}: the weights do not fit the model: {'; '.join(differences[:3])}{more}")


class Renaming(NamedTuple):
    """How names of weights that another program wrote became those of a model."""

    removed: tuple[str, ...] = ()
    """A prefix, or parts that wrappers add."""
    added: str = ""
    """A prefix."""

    @property
    def words(self) -> str:
        """What was changed, for messages."""
        return f"with {self.added!r} before them" if self.added else f"without {' and '.join(map(repr, self.removed))}"


def load_foreign_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> Renaming:
    """Copy weights that another program wrote into `module`, if PyTorch can load them.

    Name parts of wrappers and counters are ignored, dtypes are converted to those of the model, a shared tensor needs
    only one of its names, and sub-modules may rename outdated names of theirs. Returns which parts of the names were
    ignored. Raises `InputError` as `load_weights`.
    """
    expected = tensors_of(module, "the model")
    renaming, named = _under_names_of(expected, tensors)
    shared = {id(tensor): named[name] for name, tensor in expected.items() if name in named}
    for name, tensor in expected.items():
        given = named.get(name, shared.get(id(tensor)))
        if given is not None:
            named[name] = _converted(tensor.dtype, given.nan_to_num() if name.endswith(_COUNTER) else given)
    missing = [name for name in expected if name not in named]
    if all(name.endswith(_COUNTER) for name in missing):
        named |= {name: expected[name].detach() for name in missing}
    try:
        load_weights(module, named, source)
    except InputError:
        if named.keys() == expected.keys() or not _loads_older_names(module, named):
            raise
        load_weights(module, module.state_dict(), source)
    return renaming


def _loads_older_names(module: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Load tensors without state-dict versions, and tell whether the module renamed all of them to its own names."""
    try:
        with foreign_code("other names"):
            module.load_state_dict(tensors)
        return True
    except InputError:
        return False


def _under_names_of(expected: Collection[str], tensors: Mapping[str, Tensor]) -> tuple[Renaming, dict[str, Tensor]]:
    """Return the renaming that matches most of the expected names, and the tensors under the new names."""
    wrappers = sorted(_WRAPPERS & {part for name in tensors for part in name.split(".")})
    ways: list[tuple[Renaming, Callable[[str], str]]] = [
        (Renaming(), lambda name: name),
        (
            Renaming(tuple(f"{part}." for part in wrappers)),
            lambda name: ".".join(part for part in name.split(".") if part not in wrappers),
        ),
        *((Renaming((prefix,)), methodcaller("removeprefix", prefix)) for prefix in _prefixes(tensors)),
        *((Renaming(added=prefix), partial(str.__add__, prefix)) for prefix in _prefixes(expected)),
    ]
    candidates = [(renaming, {way(name): tensor for name, tensor in tensors.items()}) for renaming, way in ways]
    renaming, named = max(
        candidates, key=lambda each: (len(each[1]) == len(tensors), len(each[1].keys() & set(expected)))
    )
    kept = {name: tensor for name, tensor in named.items() if name in expected or not name.endswith(_COUNTERS)}
    return renaming, kept


def _prefixes(names: Collection[str]) -> list[str]:
    """Return the dotted prefixes that more than half of the names share."""
    begins = Counter(
        name[: dot.end()] for name in names for dot in islice(re.finditer(r"\.", name), _MOST_PREFIX_PARTS)
    )
    return [prefix for prefix, count in begins.items() if count > len(names) / 2]


def _converted(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """Return a tensor in another dtype, or unchanged where that would change its values by more than rounding."""
    if dtype.is_floating_point:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    cast = tensor.to(dtype)
    return cast if torch.equal(cast.to(tensor.dtype), tensor) else tensor


def read_description(path: Path, metadata: dict[str, str]) -> dict[str, JsonValue]:
    """Return the JSON object in the metadata of the file `path`; raise `InputError` if there is none."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        raise InputError(
            f"{path} has no gapssg description, so its architecture is unknown; "
            f"make a model file from it: gapssg import-teacher --weights {shlex.quote(str(path))} --model NAME ..."
        )
    if text.count(",") > MOST_CLASSES + _MOST_OTHER_VALUES:  # each validation error takes a kilobyte
        raise InputError(f"{path}: its description has more values than any model needs")
    try:
        description = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its description is not valid JSON") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: its description is not a JSON object")
    return description


def _sha256_of_content(tensors: dict[str, Tensor], description: Mapping[str, object]) -> str:
    """Return the SHA-256 of tensors and description, which detects damage; it is not a signature."""
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
