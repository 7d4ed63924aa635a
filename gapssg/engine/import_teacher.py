"""`import-teacher`: a classifier that was trained elsewhere becomes a self-describing model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from gapssg.augment import Normalization
from gapssg.engine.inference import predict
from gapssg.engine.metrics import score
from gapssg.engine.real_images import read_test_images
from gapssg.engine.run_directory import Display, SilentDisplay, run_facts, versions
from gapssg.engine.settings import DEFAULT_WEIGHTS, ImportSettings
from gapssg.errors import InputError, RunError
from gapssg.files import check_writable
from gapssg.models import create_model
from gapssg.models.foreign import check_classifier
from gapssg.models.libraries import Pretrained, pretrained_weights
from gapssg.models.model_file import LoadedModel, ModelCard, Provenance, load_weights, save_model
from gapssg.models.profile import profile_model
from gapssg.models.reference import is_factory, library_model
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runtime import Runtime


def import_teacher(
    settings: ImportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> dict[str, Any]:
    """Build a classifier, load its weights, verify it, and write it as a model file.

    It is verified by forward passes and, with `settings.data`, evaluated on labelled images.

    Args:
        settings: The architecture, and what cannot be seen from its weights.
        output: The file to write, `*.safetensors`.
        overwrite: Whether an earlier file may be replaced.
        display: Shows the progress.

    Returns:
        The file, its SHA-256, the model's size and, if it was evaluated, its accuracies (fractions in [0, 1]).

    Raises:
        InputError: The model, its weights, the description or the data do not fit each other, or the file cannot
            be written there; nothing has been written.
        RunError: The library's weights cannot be fetched, or the disk refused the write.
    """
    display = display or SilentDisplay()
    _check_output(output, overwrite)
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    pretrained = _pretrained(settings) if settings.weights == DEFAULT_WEIGHTS else None
    card = _describe(settings, pretrained)
    module = create_model(
        card.architecture,
        num_classes=card.num_classes,
        input_shape=card.input_shape,
        seed=runtime.derive_seed("initial-weights"),
        arguments=card.arguments,
    )
    _fill(module, settings, pretrained)
    check_classifier(module, card.architecture, card.num_classes, card.input_shape)
    module.eval()
    scores = _evaluate(settings, LoadedModel(module, card, "", output), runtime, display)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write {output}: {error.strerror or error}") from error
    return {
        "command": "import-teacher",
        "file": str(output),
        "sha256": save_model(output, module, card),
        "architecture": card.architecture,
        "num_classes": card.num_classes,
        "input_shape": list(card.input_shape),
        **profile_model(module, card.input_shape).to_dict(),
        **scores,
        "data": settings.data.name if settings.data else None,
        **run_facts(runtime, settings),
    }


def _check_output(output: Path, overwrite: bool) -> None:
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} is to be a file whose name ends with .safetensors")
    check_writable(output.parent)
    if output.exists() and not overwrite:
        raise InputError(f"--output {output} already exists; add --overwrite to replace it")


def _pretrained(settings: ImportSettings) -> Pretrained:
    library = library_model(settings.model.name)
    if library is None:
        raise InputError(f"only torchvision and timm have default weights, not {settings.model.name}; give a FILE")
    return pretrained_weights(*library, settings.input_shape[0])


def _fill(module: nn.Module, settings: ImportSettings, pretrained: Pretrained | None) -> None:
    name = settings.model.name
    if pretrained is not None:
        load_weights(module, pretrained.tensors, f"{name}, default weights")
    elif settings.weights is not None:
        file = Path(settings.weights)
        load_weights(module, read_safetensors(file).tensors, file)
    elif not is_factory(name):
        raise InputError(
            f"{name} is built with random weights, from which no student can learn; "
            f"add --weights FILE{' or --weights default' if library_model(name) else ''}"
        )


def _describe(settings: ImportSettings, pretrained: Pretrained | None) -> ModelCard:
    channels, height, _ = settings.input_shape
    names = settings.class_names or (pretrained.class_names if pretrained else None)
    count = settings.num_classes or (len(names) if names else None)
    if count is None:
        raise InputError("the number of classes is not known; add --num-classes or --class-names")
    if names is not None and len(names) != count:
        raise InputError(f"there are {len(names)} class names for {count} classes; name each class once")
    mean = settings.mean or (pretrained.mean if pretrained else None)
    deviation = settings.deviation or (pretrained.deviation if pretrained else None)
    if mean is None or deviation is None:
        raise InputError(
            "how the model's input is normalised is not known; add --mean and --std as it was trained with "
            "(0 and 1 if its pixels were in [0, 1])"
        )
    return ModelCard(
        architecture=settings.model.name,
        arguments=settings.model.arguments,
        num_classes=count,
        input_shape=settings.input_shape,
        mean=_for_each_channel("--mean", mean, channels),
        deviation=_for_each_channel("--std", deviation, channels),
        crop_padding=height // 8 if settings.crop_padding is None else settings.crop_padding,
        flip=settings.flip,
        class_names=names or tuple(map(str, range(count))),
        provenance=Provenance(command="import-teacher", seed=settings.seed, versions=versions()),
    )


def _for_each_channel(option: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise InputError(f"{option} has {len(values)} numbers for {channels} channels; give one a channel, or one")
    return values * channels if len(values) == 1 else values


def _evaluate(settings: ImportSettings, model: LoadedModel, runtime: Runtime, display: Display) -> dict[str, Any]:
    if settings.data is None:
        return {"top1": None, "top5": None, "loss": None}
    images = read_test_images(settings.data, model, display).to(runtime.device)
    normalization = Normalization.from_statistics(model.card.mean, model.card.deviation, runtime.device)
    with runtime.configured():
        logits = predict(runtime.place(model.module), images.images, normalization, runtime)
    return score(logits, images.labels).to_dict()
