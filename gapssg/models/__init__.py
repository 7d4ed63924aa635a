"""Classifiers by name, and the generator that synthesises images for them. Importing it imports no torch."""

from gapssg.models.create import create_model, empty_model
from gapssg.models.names import MODELS, ModelEntry, check_model_name, model_names

__all__ = ["MODELS", "ModelEntry", "check_model_name", "create_model", "empty_model", "model_names"]
