"""Models from the registries of torchvision and timm; a name can neither fetch nor run anything else."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gapssg.errors import GapssgError, InputError, RunError, did_you_mean, import_extra, shortened
from gapssg.models.foreign import foreign_code, replace_layer
from gapssg.models.head import ClassifierHead
from gapssg.models.reference import TORCHVISION, Argument, Arguments
from gapssg.settings.parts import Interpolation, Resize

# Arguments that follow from the task, and those that would fetch, read or trace something.
_NOT_ARGUMENTS = {
    "num_classes", "in_chans", "weights", "progress", "checkpoint_path", "cache_dir", "features_only", "scriptable",
    "exportable", "no_jit",
}  # fmt: skip
# In training they would also return the outputs of auxiliary heads.
_WITHOUT_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSE_LAYER = re.compile(r"(.*denselayer\d+\.(?:norm|conv))\.([12]\..*)")
_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_FIXED: Mapping[str, Arguments] = {"googlenet": _WITHOUT_AUXILIARY_HEADS, "inception_v3": _WITHOUT_AUXILIARY_HEADS}


class Pretrained(NamedTuple):
    """Pretrained weights of a library."""

    tensors: dict[str, Tensor]
    """By name, on the CPU."""
    mean: tuple[float, ...]
    """Per-channel mean of images in [0, 1]."""
    deviation: tuple[float, ...]
    """Per-channel standard deviation."""
    class_names: tuple[str, ...] | None
    """In the order of the logits, if the library has them."""
    num_classes: int | None = None
    """Number of logits."""
    arguments: Arguments = MappingProxyType({})
    """Model arguments that the library sets for these weights."""
    resize: Resize = "crop"
    """How the library resizes images for them, in proportion to the input size."""
    interpolation: Interpolation = "bilinear"
    """The filter."""


def build_library_model(
    library: str, name: str, arguments: Arguments, num_classes: int, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Build a model of torchvision or timm with random weights, on torch's default device.

    The first convolution is adapted to the channels of the images, and the last linear layer ignores autocast. Raises
    `InputError` if the library is missing, has no classifier of this name, or refuses the arguments.
    """
    for argument in arguments:
        if argument in _NOT_ARGUMENTS or argument.startswith("pretrained"):
            raise InputError(f"{library}:{name} does not accept the argument {argument} here; leave it out")
    fixed = _FIXED.get(name, {}) if library == TORCHVISION else {}
    if fixed.keys() & arguments.keys():
        raise InputError(f"{library}:{name} is built without auxiliary heads; leave {', '.join(fixed)} out")
    check_library_name(library, name)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    values = _ValuesOnCpu() if name.startswith("regnet") else nullcontext()
    with foreign_code(f"{library}:{name} cannot be built{f' with {given}' if given else ''}"):
        if library == TORCHVISION:
            with values:
                module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **fixed, **arguments)
            if input_shape[0] != 3:
                _adapt_channels(module, input_shape[0])
        else:
            timm = _timm(name)
            with values:  # timm before 1.0.31
                module = timm.create_model(
                    name, pretrained=False, num_classes=num_classes, in_chans=input_shape[0], **arguments
                )
        module.register_load_state_dict_pre_hook(_accept_stored_names)
        _exclude_logits_from_autocast(module, num_classes)
    built: nn.Module = module
    return built


def check_library_name(library: str, name: str) -> None:
    """Raise `InputError`, with similar names, unless the library has a classifier of this name."""
    names = library_names(library, name)
    if name not in names:
        raise InputError(f"{library} has no classifier {shortened(repr(name))}{did_you_mean(name, names)}")


def library_names(library: str, wanted: str = "NAME") -> list[str]:
    """Return the names of a library's classifiers; the one that is `wanted` is for the message.

    Raises `InputError` if the library is not installed.
    """
    names: list[str]
    if library == TORCHVISION:
        names = torchvision.models.list_models(torchvision.models)
    else:
        names = _timm(wanted).list_models()
    return names


def pretrained_weights(
    library: str, name: str, input_shape: tuple[int, int, int], /, **arguments: Argument
) -> Pretrained:
    """Fetch the default weights of a library for a model with these arguments; timm adapts them to the channels.

    The library loads them into its own model first, because some are stored under outdated names. Raises `InputError`
    if there are none, or the library refuses the arguments, and `RunError` if they cannot be fetched.
    """
    check_library_name(library, name)
    if arguments:  # before the weights are fetched
        with torch.device("meta"):
            build_library_model(library, name, arguments, 2, (input_shape[0], 0, 0))
    if library == TORCHVISION:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        with _fetching(f"{library}:{name}"):
            module = torchvision.models.get_model(name, weights=weights, progress=False, **arguments)
        preparation, class_names = weights.transforms(), tuple(weights.meta["categories"])
        mean, deviation, num_classes = preparation.mean, preparation.std, len(class_names)
        scaled = input_shape[1] * preparation.resize_size[0] // preparation.crop_size[0]
        is_stretched, interpolation = False, preparation.interpolation.value
    else:
        timm = _timm(name)
        if not timm.models.is_model_pretrained(name):
            raise InputError(f"timm has no weights for {name}; pass --weights FILE")
        with _fetching(f"{library}:{name}"):
            module = timm.create_model(name, pretrained=True, in_chans=input_shape[0], **arguments)
        preparation = timm.data.resolve_data_config(pretrained_cfg=module.pretrained_cfg)
        mean, deviation = preparation["mean"], preparation["std"]
        scaled = math.floor(input_shape[1] / preparation["crop_pct"])
        is_stretched, interpolation = preparation["crop_mode"] == "squash", preparation["interpolation"]
        class_names, num_classes = None, module.num_classes
    implied = {"transform_input": True} if getattr(module, "transform_input", False) else {}
    return Pretrained(
        module.state_dict(),
        tuple(mean),
        tuple(deviation),
        class_names,
        num_classes,
        implied,
        "stretch" if is_stretched else _shorter_side(scaled, input_shape),
        interpolation if interpolation in get_args(Interpolation) else "bilinear",
    )


def _shorter_side(scaled: int, input_shape: tuple[int, int, int]) -> Resize:
    """Return the length of the shorter side before the crop; `crop` if the input is no square, or larger than it."""
    _, height, width = input_shape
    return scaled if scaled >= height == width else "crop"


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Turn any failure to fetch weights into one sentence, and forbid torch to unpickle code from their files."""
    before = os.environ.get(_WEIGHTS_ONLY)
    os.environ[_WEIGHTS_ONLY] = "1"
    try:
        yield
    except GapssgError:  # such as a request to stop
        raise
    except Exception as error:
        reason = shortened(f"{type(error).__name__}: {error}".splitlines()[0], 300)
        raise RunError(
            f"the weights of {name} cannot be downloaded ({reason}); download them on a machine with network access, "
            "save their state dict as safetensors, and pass --weights FILE"
        ) from error
    finally:
        del os.environ[_WEIGHTS_ONLY]
        if before is not None:
            os.environ[_WEIGHTS_ONLY] = before


def _timm(name: str) -> Any:
    return import_extra("timm", "timm", f"timm:{name}")


class _ValuesOnCpu(TorchFunctionMode):
    """Keep tensors of values on the CPU: RegNets compute their widths with them, which the meta device cannot."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _accept_stored_names(module: nn.Module, state: dict[str, Tensor], *_: object) -> None:
    """Accept the weights that torchvision stores: rename outdated names, and drop auxiliary heads."""
    known = module.state_dict().keys()
    for name in [name for name in state if name not in known]:
        if match := _OLD_DENSE_LAYER.fullmatch(name):
            state[match[1] + match[2]] = state.pop(name)
        elif name.startswith(_AUXILIARY_HEADS):
            del state[name]


def _adapt_channels(module: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for another number of input channels."""
    first: Any  # torch's own attributes have wider types than its arguments
    name, first = next((n, layer) for n, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    shape = (first.kernel_size, first.stride, first.padding, first.dilation)
    convolution = nn.Conv2d(channels, first.out_channels, *shape, bias=first.bias is not None)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    replace_layer(module, name, convolution)


def _exclude_logits_from_autocast(module: nn.Module, num_classes: int) -> None:
    """Make the last linear layer ignore autocast, as in the built-in models."""
    linear = [(name, layer) for name, layer in module.named_modules() if type(layer) is nn.Linear]
    if not linear or linear[-1][1].out_features != num_classes:
        return
    name, last = linear[-1]
    with torch.device("meta"):  # its weights are replaced below
        head = ClassifierHead(last.in_features, last.out_features, bias=last.bias is not None)
    head.weight, head.bias = last.weight, last.bias
    replace_layer(module, name, head)
