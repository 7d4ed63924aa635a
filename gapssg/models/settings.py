"""Which classifier a command makes. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from gapssg.models import check_model_name
from gapssg.settings.base import Settings, as_validator


class ModelSettings(Settings):
    """A classifier by name."""

    name: Annotated[str, AfterValidator(as_validator(check_model_name))]
    """A model that `gapssg models` lists."""
