"""`import-teacher`: converts a classifier that was trained elsewhere to a self-describing model file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torchvision
from torch import nn

from gapssg.core.augment import Normalization, choose_crop_padding
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError, shortened
from gapssg.evaluation.import_graph import build_imported_graph, compare_on_images, read_graph
from gapssg.evaluation.metrics import top_k_accuracy
from gapssg.evaluation.predict import predict, score_on
from gapssg.evaluation.real_images import read_test_images
from gapssg.evaluation.settings import DEFAULT_WEIGHTS, ImportSettings, check_teacher_file
from gapssg.files import make_folder, user_path
from gapssg.intervals import Z_95
from gapssg.models import MODELS, MOST_CLASSES, create_model
from gapssg.models.checkpoint_file import read_checkpoint_weights
from gapssg.models.description import ModelCard, Outputs, Provenance
from gapssg.models.foreign import check_classifier, outputs_of, return_logarithms
from gapssg.models.graphs.description import graph_name
from gapssg.models.graphs.file import GraphFile
from gapssg.models.libraries import Pretrained, pretrained_weights
from gapssg.models.model_file import LoadedModel, load_foreign_weights, staged_model
from gapssg.models.profile import profile_model
from gapssg.models.reference import is_factory, library_model
from gapssg.runs.directory import Display, SilentDisplay, run_facts, versions
from gapssg.runs.events import Note, Warned
from gapssg.runs.results import ImportResult, Scores
from gapssg.text import percent

# Pixels in [0, 1], in [-1, 1] and in [0, 255].
_USUAL = ((0.0, 1.0), (0.5, 0.5), (0.0, 1 / 255))
_MOST_COMPARED = 500
_CLEARLY_BETTER = 0.05


def import_teacher(
    settings: ImportSettings, output: Path, *, overwrite: bool = False, display: Display | None = None
) -> ImportResult:
    """Build a classifier, load its weights, verify it, and write it as a model file.

    It is verified by forward passes and, with `settings.data`, evaluated on labelled images. The file is kept only if
    the reloaded model gives the same logits.

    Args:
        settings: The architecture, and what its weights do not show.
        output: The file to write, `*.safetensors`.
        overwrite: Whether an existing file may be replaced.
        display: Shows the progress.

    Returns:
        The file, its SHA-256, the model's size and, if it was evaluated, its accuracies (fractions in [0, 1]).

    Raises:
        InputError: The model, its weights, the description or the data do not match, the file cannot be written there,
            or the reloaded model gives different logits; nothing has been written.
        RunError: The library's weights cannot be downloaded, or the disk refused the write.
    """
    display = display or SilentDisplay()
    output = user_path(output)
    check_teacher_file(output, settings, overwrite)
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    pretrained = _pretrained(settings) if settings.weights == DEFAULT_WEIGHTS else None
    graph = read_graph(settings)
    card = _describe(settings, pretrained, graph)
    if graph is not None:
        module = build_imported_graph(graph, card, display)
    else:
        module = _create(card, runtime)
        _fill(module, card.architecture, settings, pretrained, display)
    check_classifier(module, card.architecture, card.num_classes, card.input_shape, takes_probabilities=True)
    module.eval()
    card = card.model_copy(update={"outputs": _recognise_outputs(module, card, display)})
    unwritten = LoadedModel(module, card, "", output)
    images = read_test_images(settings.data, unwritten, display) if settings.data else None
    if graph is not None and images is not None:
        compare_on_images(graph, module, card, images)
    make_folder(output.parent)
    # Logits must be equal to the bit: both models run the same kernels, and `check_classifier` has refused others.
    with staged_model(output, module, card) as written:
        scores = _evaluate(written, images, runtime, display)
    return ImportResult(
        file=str(output),
        sha256=written.sha256,
        architecture=card.architecture,
        num_classes=card.num_classes,
        input_shape=card.input_shape,
        **dict(profile_model(module, card.input_shape)),
        **(dict(scores) if scores else dict.fromkeys(Scores.model_fields)),
        data=settings.data.name if settings.data else None,
        **dict(run_facts(runtime, settings)),
    )


def _create(card: ModelCard, runtime: Runtime) -> nn.Module:
    return create_model(
        card.architecture,
        num_classes=card.num_classes,
        input_shape=card.input_shape,
        seed=runtime.derive_seed("initial-weights"),
        arguments=card.arguments,
        weights_follow=True,
    )


def _pretrained(settings: ImportSettings) -> Pretrained:
    assert settings.model is not None and settings.input_shape is not None  # the settings were validated
    library = library_model(settings.model.name)
    if library is None:
        raise InputError(f"only torchvision and timm have default weights, not {settings.model.name}; pass a FILE")
    return pretrained_weights(*library, settings.input_shape[0], **settings.model.arguments)


def _fill(
    module: nn.Module, name: str, settings: ImportSettings, pretrained: Pretrained | None, display: Display
) -> None:
    if pretrained is not None:
        load_foreign_weights(module, pretrained.tensors, f"{name}, default weights")
    elif settings.weights is not None:
        file = Path(settings.weights)
        try:
            weights = read_checkpoint_weights(file, settings.weights_key)
            if weights.taken:
                others = f", not {', '.join(weights.others)}" if weights.others else ""
                display.event(Note(message=f"took the weights in {weights.taken!r} of {file}{others} (--weights-key)"))
            load_foreign_weights(module, weights.tensors, file)
        except InputError as error:
            if name in MODELS and name in torchvision.models.list_models():
                raise InputError(f"{error}; torchvision's model of that name is torchvision:{name}") from error
            raise
    elif not is_factory(name):
        raise InputError(
            f"{name} would have random weights, from which no student can learn; "
            f"add --weights FILE{' or --weights default' if library_model(name) else ''}"
        )


def _describe(settings: ImportSettings, pretrained: Pretrained | None, graph: GraphFile | None) -> ModelCard:
    if settings.class_names is not None:
        _check_class_names(settings.class_names)
    names = settings.class_names or (pretrained.class_names if pretrained else None)
    known = pretrained.num_classes if pretrained else graph.num_classes if graph else None
    count = settings.num_classes or (len(names) if names else known)
    if count is None:
        raise InputError("the number of classes is not known; add --num-classes or --class-names")
    if names is not None and len(names) != count:
        raise InputError(f"there are {len(names)} class names for {count} classes; name each class once")
    if graph is not None and count != graph.num_classes:
        raise InputError(f"{graph.path} returns {graph.num_classes} logits, but there are {count} classes")
    input_shape = graph.input_shape if graph is not None else settings.input_shape
    assert input_shape is not None  # the settings were validated
    mean, deviation = _normalization(settings, pretrained, input_shape[0])
    model = settings.model
    return ModelCard(
        architecture=model.name if model is not None else graph_name(graph.description) if graph is not None else "",
        arguments={**(pretrained.arguments if pretrained else {}), **(model.arguments if model else {})},
        graph=graph.description if graph is not None else None,
        num_classes=count,
        input_shape=input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=choose_crop_padding(settings.crop_padding, input_shape),
        crop_padding_mode=settings.crop_padding_mode,
        flip=settings.flip,
        class_names=names or tuple(map(str, range(count))),
        provenance=Provenance(command="import-teacher", seed=settings.seed, versions=versions()),
    )


def _check_class_names(names: Sequence[str]) -> None:
    if not 2 <= len(names) <= MOST_CLASSES:
        raise InputError(f"a classifier has 2 to {MOST_CLASSES:,} classes; --class-names has {len(names):,}")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"the class name {shortened(repr(name))} occurs {times} times in --class-names; names must be unique"
        )


def _normalization(
    settings: ImportSettings, pretrained: Pretrained | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation, for each channel."""
    mean, deviation = settings.mean, settings.deviation
    if mean is not None and max(mean) > 1:
        raise InputError(f"--mean {max(mean):g} is outside [0, 1], the range of pixels; divide --mean and --std by 255")
    if pretrained is not None and (mean is None or deviation is None):
        assert settings.model is not None
        if len(pretrained.mean) != channels:
            raise InputError(
                f"the weights of {settings.model.name} come with mean and std for {len(pretrained.mean)} channels, "
                f"but the images have {channels}; add --mean and --std"
            )
        mean, deviation = mean or pretrained.mean, deviation or pretrained.deviation
    if mean is None or deviation is None:
        raise InputError(
            "the normalisation of the model's input is not known; add the --mean and --std that it was trained with "
            "(0 and 1 for pixels in [0, 1])"
        )
    return _for_each_channel("--mean", mean, channels), _for_each_channel("--std", deviation, channels)


def _for_each_channel(option: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise InputError(
            f"{option} has {len(values)} numbers for {channels} channels; give one per channel, or one for all"
        )
    return values * channels if len(values) == 1 else values


def _recognise_outputs(module: nn.Module, card: ModelCard, display: Display) -> Outputs:
    """Detect what a classifier returns, report it, and make it return logits."""
    name = card.architecture
    outputs, (least, largest) = outputs_of(module, name, card.num_classes, card.input_shape)
    if outputs == "probabilities":
        return_logarithms(module)
        message = f"{name} returns probabilities; the model file converts them to logits by their logarithm"
        display.event(Note(message=message))
    elif outputs == "log-probabilities":
        message = f"{name} returns log-probabilities, which are used as logits: their softmax gives the probabilities"
        display.event(Note(message=message))
    elif least >= 0 and largest <= 1:
        message = (
            f"all outputs of {name} lie in [0, 1], like those of a sigmoid, but are used as logits; if they are not, "
            "loss, calibration and a student's targets are wrong: let the model return logits"
        )
        display.event(Warned(epoch=0, message=message))
    return outputs


def _evaluate(model: LoadedModel, images: ImageSet | None, runtime: Runtime, display: Display) -> Scores | None:
    if images is None:
        return None
    module, images, card = runtime.place(model.module), images.to(runtime.device), model.card

    def top1(mean: tuple[float, ...], deviation: tuple[float, ...]) -> float:
        normalization = Normalization.from_statistics(mean, deviation, runtime.device)
        return top_k_accuracy(predict(module, some.images, normalization, runtime), some.labels, 1)

    scores = score_on(images, module, model.normalization(runtime.device), runtime)
    some, channels = images.subsample(_MOST_COMPARED), card.input_shape[0]
    given = top1(card.mean, card.deviation)
    usual = {top1((mean,) * channels, (deviation,) * channels): (mean, deviation) for mean, deviation in _USUAL}
    best = max(usual)
    # More than sampling explains.
    if best - given > max(_CLEARLY_BETTER, Z_95 * math.sqrt(0.5 / len(some))):
        mean, deviation = usual[best]
        message = (
            f"top-1 is {percent(given)} with the given normalisation, but {percent(best)} with --mean {mean:g} "
            f"--std {deviation:.4g}: the model may normalise its input itself, or was trained with other values"
        )
        display.event(Warned(epoch=0, message=message))
    return scores
