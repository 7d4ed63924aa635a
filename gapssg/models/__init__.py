"""Classifiers by name, and the generator that synthesises images for them. Importing it imports no torch."""

from gapssg.models.create import create_model, empty_model
from gapssg.models.names import (
    LARGEST_IMAGE_SIDE,
    LONGEST_NAME,
    MODELS,
    MOST_CHANNELS,
    MOST_CLASSES,
    SMALLEST_IMAGE_SIDE,
    ModelEntry,
    check_model_name,
    model_names,
)

__all__ = [
    "LARGEST_IMAGE_SIDE",
    "LONGEST_NAME",
    "MODELS",
    "MOST_CHANNELS",
    "MOST_CLASSES",
    "SMALLEST_IMAGE_SIDE",
    "ModelEntry",
    "check_model_name",
    "create_model",
    "empty_model",
    "model_names",
]
