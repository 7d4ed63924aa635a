"""Settings of the classifier that a command builds. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from gapssg.models import check_model_name
from gapssg.models.reference import check_arguments, check_factory_name
from gapssg.settings.base import Settings, as_validator


class WithArguments(Settings):
    """Keyword arguments of a model; left out of the TOML if there are none."""

    # For a union of types, pydantic would report an error for each; the check reports one.
    arguments: Annotated[dict[str, Any], AfterValidator(as_validator(check_arguments))] = Field(default_factory=dict)
    """Keyword arguments of a model that is not built in: numbers, strings, true or false."""

    @model_serializer(mode="wrap")
    def _without_no_arguments(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if not self.arguments:
            values.pop("arguments", None)
        return values


class WithFactories(Settings):
    """Factories that model files may name; left out of the TOML if there are none."""

    model_factories: tuple[Annotated[str, AfterValidator(as_validator(check_factory_name))], ...] = ()
    """Trust this `package.module:factory`: it is imported and called when a model file names it."""

    @model_serializer(mode="wrap")
    def _without_no_factories(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        if not self.model_factories:
            values.pop("model_factories", None)
        return values


class ModelSettings(WithArguments):
    """A classifier by name."""

    name: Annotated[str, AfterValidator(as_validator(check_model_name))]
    """A model that `gapssg models` lists, `torchvision:NAME`, `timm:NAME` or `package.module:factory`."""
