"""`import-teacher`: converts a classifier that was trained elsewhere to a self-describing model file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

import torchvision
from torch import nn

from gapssg.core.augment import choose_crop_padding
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.errors import InputError, blaming_given_files, shortened
from gapssg.evaluation.exported_file import warn_of_export
from gapssg.evaluation.import_checks import wrong_answers, wrong_description
from gapssg.evaluation.import_graph import build_imported_graph, compare_on_images, read_graph
from gapssg.evaluation.predict import score_on
from gapssg.evaluation.real_images import is_folder_of_images, read_test_images
from gapssg.evaluation.settings import DEFAULT_WEIGHTS, DescriptionSettings, ImportSettings, check_teacher_file
from gapssg.files import make_folder, user_path
from gapssg.models import MODELS, create_model
from gapssg.models.checkpoint_file import read_checkpoint_weights
from gapssg.models.create import check_task
from gapssg.models.description import ModelCard, Provenance, covers
from gapssg.models.foreign import check_classifier
from gapssg.models.graphs.description import graph_name
from gapssg.models.graphs.file import GraphFile
from gapssg.models.libraries import Pretrained, pretrained_weights
from gapssg.models.model_file import LoadedModel, Renaming, load_foreign_weights, staged_model
from gapssg.models.names import MOST_CLASSES
from gapssg.models.recognition import Known, recognise
from gapssg.models.reference import Arguments, is_factory, library_model
from gapssg.runs.directory import Display, SilentDisplay, run_facts, versions
from gapssg.runs.events import Note, Warned
from gapssg.runs.failures import warn_of_failure
from gapssg.runs.results.common import Scores
from gapssg.runs.results.models import ImportResult, WeightNames


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
    display.progress("reading the weights", 0, 1)
    graph = read_graph(settings)
    failures: Sequence[str] | None = None
    if graph is not None:
        failures = warn_of_export(graph, display)
    elif settings.weights_file is not None:
        failures = warn_of_failure(settings.weights_file, display)
    card = _describe(settings, pretrained, graph).model_copy(update={"failures": tuple(failures or ())})
    module = _create(card, runtime) if graph is None else build_imported_graph(graph, card, display)
    weights = _fill(module, card.architecture, settings, pretrained, display) if graph is None else None
    images = _read_images(settings, LoadedModel(module, card, "", settings.weights_file or output), display)
    if graph is not None and images is not None:
        compare_on_images(graph, module, card, images)
    done = {"output_part": None, "input_layout": None}  # by the graph
    described = settings if graph is None else settings.model_copy(update=done)
    card = adapt_described(module, card, described, display)
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
        **dict(written.profile),
        **(dict(scores) if scores else dict.fromkeys(Scores.model_fields)),
        data=settings.data.name if settings.data else None,
        weights=weights,
        **dict(run_facts(runtime, settings)),
    )


def _describe(settings: ImportSettings, pretrained: Pretrained | None, graph: GraphFile | None) -> ModelCard:
    """Return the card of the teacher, whose signature is not known yet."""
    provenance = Provenance(command="import-teacher", seed=settings.seed, versions=versions())
    if graph is not None:
        return describe(settings, graph_name(graph.description), graph.input_shape, provenance, graph=graph)
    assert settings.model is not None and settings.input_shape is not None  # the settings were validated
    name, arguments = settings.model.name, settings.model.arguments
    return describe(settings, name, settings.input_shape, provenance, arguments, pretrained)


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
    return pretrained_weights(*library, settings.input_shape, **settings.model.arguments)


def _fill(
    module: nn.Module, name: str, settings: ImportSettings, pretrained: Pretrained | None, display: Display
) -> WeightNames | None:
    """Load the weights; return which were taken of a file."""
    if pretrained is not None:
        load_foreign_weights(module, pretrained.tensors, f"{name}, default weights")
    elif settings.weights_file is not None:
        file = settings.weights_file
        try:
            weights = read_checkpoint_weights(file, settings.weights_key)
            if weights.taken:
                others = f", not {', '.join(weights.others)}" if weights.others else ""
                display.event(Note(message=f"took the weights in {weights.taken!r} of {file}{others} (--weights-key)"))
            renamed = load_foreign_weights(module, weights.tensors, file)
            if renamed != Renaming():
                display.event(Note(message=f"the names of the weights in {file} were taken {renamed.words}"))
            return WeightNames(key=weights.taken or None, removed=renamed.removed, added=renamed.added or None)
        except InputError as error:
            if name in MODELS and name in torchvision.models.list_models():
                raise InputError(f"{error}; torchvision's model of that name is torchvision:{name}") from error
            raise
    elif not is_factory(name):
        raise InputError(
            f"{name} would have random weights, from which no student can learn; "
            f"add --weights FILE{' or --weights default' if library_model(name) else ''}"
        )
    return None


def describe(
    settings: DescriptionSettings,
    architecture: str,
    input_shape: tuple[int, int, int],
    provenance: Provenance,
    arguments: Arguments = MappingProxyType({}),
    pretrained: Pretrained | None = None,
    graph: GraphFile | None = None,
) -> ModelCard:
    """Return the card of a classifier, whose signature is not known yet.

    Raises `InputError` if the number of classes or the normalisation is not known, or the settings do not match.
    """
    if settings.class_names is not None:
        _check_class_names(settings.class_names)
    names = settings.class_names or (pretrained.class_names if pretrained else None)
    known = pretrained.num_classes if pretrained else max(2, graph.num_classes) if graph else None  # one logit is two
    count = settings.num_classes or (len(names) if names else known)
    if count is None:
        raise InputError("the number of classes is not known; add --num-classes or --class-names")
    if names is not None and len(names) != count:
        raise InputError(f"there are {len(names)} class names for {count} classes; name each class once")
    if graph is not None and graph.num_classes == 1 and count != 2:
        raise InputError(f"{graph.path} returns one number for each image, so there are 2 classes, not {count}")
    if graph is not None and max(2, graph.num_classes) != count:
        raise InputError(f"{graph.path} returns {graph.num_classes} logits, but there are {count} classes")
    check_task(count, input_shape)
    mean, deviation = _normalization(settings, architecture, pretrained, input_shape[0])
    resize = settings.resize or (pretrained.resize if pretrained else "crop")
    if not covers(resize, input_shape):
        size = "x".join(map(str, input_shape[1:]))
        raise InputError(
            f"--resize {resize} is smaller than both sides of the model's input of {size} pixels; pass the number of "
            "torchvision's Resize, or stretch if that has two"
        )
    return ModelCard(
        architecture=architecture,
        arguments={**(pretrained.arguments if pretrained else {}), **arguments},
        graph=graph.description if graph is not None else None,
        num_classes=count,
        input_shape=input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=choose_crop_padding(settings.crop_padding, input_shape),
        crop_padding_mode=settings.crop_padding_mode,
        flip=settings.flip,
        class_names=names or tuple(map(str, range(count))),
        resize=resize,
        interpolation=settings.interpolation or (pretrained.interpolation if pretrained else "bilinear"),
        provenance=provenance,
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
    settings: DescriptionSettings, architecture: str, pretrained: Pretrained | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels in [0, 1], for each channel."""
    mean, deviation, largest = settings.mean, settings.deviation, settings.input_range
    if mean is not None and max(mean) > largest:
        raise InputError(
            f"--mean {max(mean):g} is outside [0, {largest}], the range of pixels"
            + ("; divide --mean and --std by 255, or add --input-range 255" if largest == 1 else "")
        )
    if largest > 1:
        mean = tuple(each / largest for each in mean or (0.0,))
        deviation = tuple(each / largest for each in deviation or (1.0,))
    elif pretrained is not None and (mean is None or deviation is None):
        if len(pretrained.mean) != channels:
            raise InputError(
                f"the weights of {architecture} come with mean and std for {len(pretrained.mean)} channels, "
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


def adapt_described(module: nn.Module, card: ModelCard, settings: DescriptionSettings, display: Display) -> ModelCard:
    """Verify a classifier and adapt it to images (N, C, H, W) and logits (N, K); put it into evaluation mode.

    What is recognised is reported and stands in the card that is returned. Raises `InputError` if it is not a
    classifier as its card and the settings describe it.
    """
    known = Known(settings.output_kind, settings.output_part, settings.input_layout)
    recognised = recognise(module, card.architecture, card.num_classes, card.input_shape, known)
    if recognised.common_sum is not None:
        raise InputError(
            f"{card.architecture} returns numbers, all positive or all negative, that sum to "
            f"{recognised.common_sum:.4g} for every image, like scaled probabilities; let it return its logits or its "
            "probabilities, or say --output-kind logits"
        )
    check_classifier(module, card.architecture, card.num_classes, card.input_shape, recognised.signature)
    module.eval()
    card = card.model_copy(update=asdict(recognised.signature))
    for event in _remarks(module, card, recognised.looks_like_sigmoids):
        display.event(event)
    return card


def _remarks(module: nn.Module, card: ModelCard, looks_like_sigmoids: bool) -> Iterator[Note | Warned]:
    """Say what was recognised, and warn of what may be wrong."""
    name, second = card.architecture, card.class_names[1]
    if card.input_layout == "NHWC":
        yield Note(message=f"{name} takes images (N, H, W, C); those of gapssg are permuted (--input-layout)")
    if card.output_part is not None:
        yield Note(message=f"{name} returns several outputs; its logits are {card.output_part!r} (--output-part)")
    if card.resize_options != {"resize": "crop", "interpolation": "bilinear"}:
        yield Note(message=f"real images are {card.resizing} (--resize, --interpolation)")
    said = {
        "probabilities": "probabilities; the model file converts them to logits by their logarithm",
        "log-probabilities": "log-probabilities, which are used as logits: their softmax gives the probabilities",
        "sigmoids": "a probability for each class, whose logits are used",
        "logit": f"one logit, that of class {second!r}; the model file makes two of it",
        "sigmoid": f"the probability of class {second!r}; the model file converts it to two logits",
    }
    if card.outputs in said:
        yield Note(message=f"{name} returns {said[card.outputs]} (--output-kind)")
    if looks_like_sigmoids:
        message = (
            f"all outputs of {name} lie in [0, 1], like those of a sigmoid, but are used as logits; if they are not, "
            "loss, calibration and a student's targets are wrong: add --output-kind sigmoids, or let the model return "
            "logits"
        )
        yield Warned(epoch=0, message=message)
    own = [part for part, layer in module.named_modules() if hasattr(layer, "mean") and hasattr(layer, "std")]
    if own and (any(card.mean) or any(each != 1 for each in card.deviation)):
        message = (
            f"{own[0] or 'the module'} of {name} has a mean and std of its own, so the model may normalise its input "
            "itself; then import it with --mean 0 --std 1"
        )
        yield Warned(epoch=0, message=message)


def _read_images(settings: ImportSettings, model: LoadedModel, display: Display) -> ImageSet | None:
    data = settings.data
    if data is None:
        return None
    if settings.resize is not None and data.image_size is None and is_folder_of_images(data):
        data = data.model_copy(update={"image_size": model.card.input_shape[1:]})  # the user says how to reach it
    return read_test_images(data, model, display)


def _evaluate(model: LoadedModel, images: ImageSet | None, runtime: Runtime, display: Display) -> Scores | None:
    if images is None:
        return None
    runtime.place(model.module)
    images = images.to(runtime.device)
    with blaming_given_files():
        scores = score_on(images, model.module, model.normalization(runtime.device), runtime)
    message = wrong_description(model, images, runtime) or wrong_answers(scores)
    if message is not None:
        display.event(Warned(epoch=0, message=message))
    return scores
