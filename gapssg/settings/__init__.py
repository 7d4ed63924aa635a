"""Settings: the base class, the common parts, and how they are read, overridden and checked."""

from gapssg.settings.base import Settings
from gapssg.settings.load import load_settings, recipe_names
from gapssg.settings.parts import OptimizerSettings, RuntimeSettings

__all__ = [
    "OptimizerSettings",
    "RuntimeSettings",
    "Settings",
    "load_settings",
    "recipe_names",
]
