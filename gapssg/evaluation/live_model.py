"""Classifiers that a Python program holds as modules, without a file."""

from __future__ import annotations

from torch import nn

from gapssg.evaluation.import_teacher import adapt_described, describe
from gapssg.evaluation.settings import ClassifierSettings
from gapssg.models.description import Provenance
from gapssg.models.foreign import copy_module, name_of_module
from gapssg.models.model_file import LoadedModel, model_of
from gapssg.runs.directory import Display, SilentDisplay


def model_from_module(
    module: nn.Module, settings: ClassifierSettings, *, display: Display | None = None
) -> LoadedModel:
    """Verify a trained classifier as `import_teacher` does, and return it as a model in memory.

    Nothing is written. The module is copied to the CPU and left unchanged; what it learns later is not in the model.

    Args:
        module: The classifier, with its weights.
        settings: What its weights do not show.
        display: Shows what was recognised.

    Returns:
        The model. Its `sha256` depends on the state dict and the description.

    Raises:
        InputError: The module is not a classifier as the settings describe it, or cannot be copied.
    """
    copied = copy_module(module, "the module")
    card = describe(settings, name_of_module(copied), settings.input_shape, Provenance(command="module"))
    return model_of(copied, adapt_described(copied, card, settings, display or SilentDisplay()))
