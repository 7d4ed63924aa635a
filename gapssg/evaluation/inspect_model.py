"""`inspect`: describes a model, and which methods can distil from it."""

from __future__ import annotations

from gapssg.evaluation.settings import InspectSettings
from gapssg.models import create_model
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.models.profile import executed_batch_norm_layers, profile_layers, profile_model
from gapssg.runs.failures import known_failures
from gapssg.runs.results.models import InspectResult
from gapssg.synthesis import method_classes
from gapssg.synthesis.requirements import image_prior, missing_for

_CLASSES, _INPUT_SHAPE = 10, (3, 32, 32)


def inspect(settings: InspectSettings) -> InspectResult:
    """Describe a model file, or an architecture with random weights; nothing is written.

    Returns:
        Size, layers, names of the observed batch-norm layers, the image prior of `gapssg` and `gapssg-fast`, methods
        (each with what the model lacks for it, or None), and for a file its description and SHA-256.

    Raises:
        InputError: The file or the architecture cannot be used.
    """
    loaded: LoadedModel | None = None
    if settings.model is None:
        assert settings.file is not None  # the settings have exactly one of the two
        loaded = load_model(settings.file, settings.model_factories)
        module, card = loaded.module, loaded.card
        name, arguments = card.architecture, card.arguments
        num_classes, input_shape = card.num_classes, card.input_shape
    else:
        name, arguments = settings.model.name, settings.model.arguments
        num_classes, input_shape = settings.num_classes or _CLASSES, settings.input_shape or _INPUT_SHAPE
        module = create_model(name, num_classes=num_classes, input_shape=input_shape, arguments=arguments)
    observed = set(executed_batch_norm_layers(module, input_shape))
    return InspectResult(
        file=str(loaded.path) if loaded else None,
        sha256=loaded.sha256 if loaded else None,
        failures=known_failures(loaded.path) if loaded else (),
        architecture=name,
        arguments=arguments,
        num_classes=num_classes,
        input_shape=input_shape,
        **dict(profile_model(module, input_shape)),
        layers=tuple(profile_layers(module, input_shape)),
        observed_batch_norm_layers=tuple(name for name, layer in module.named_modules() if layer in observed),
        image_prior=image_prior(module, input_shape),
        methods={
            method.model_fields["name"].default: missing_for(method, module, input_shape, num_classes)
            for method in method_classes()
        },
        card=loaded.card if loaded else None,
    )
