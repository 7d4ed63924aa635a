"""Settings of the classifier that a command builds. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, SkipValidation, model_serializer

from gapssg.models.names import check_model_name
from gapssg.models.reference import Argument, check_arguments, check_factory_name
from gapssg.settings.base import Settings, as_validator


class OmitsDefaults(Settings):
    """Settings that are written without some fields while these have their defaults, as before they existed."""

    omitted_defaults: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _omit_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialize(self)
        for name in self.omitted_defaults:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                values.pop(name, None)
        return values


class WithArguments(OmitsDefaults):
    """Keyword arguments of a model."""

    omitted_defaults: ClassVar[tuple[str, ...]] = ("arguments",)
    # Only the check validates the values: for a union of types, pydantic would report an error for each.
    arguments: Annotated[dict[str, SkipValidation[Argument]], AfterValidator(as_validator(check_arguments))] = Field(
        default_factory=dict
    )
    """Keyword arguments of a model that is not built in: numbers, strings, true or false."""


class WithFactories(OmitsDefaults):
    """Factories that model files may name."""

    omitted_defaults: ClassVar[tuple[str, ...]] = ("model_factories",)
    model_factories: tuple[Annotated[str, AfterValidator(as_validator(check_factory_name))], ...] = ()
    """Trust this `package.module:factory`: it is imported and called when a model file names it."""


class ModelSettings(WithArguments):
    """A classifier by name."""

    name: Annotated[str, AfterValidator(as_validator(check_model_name))]
    """A model that `gapssg models` lists, `torchvision:NAME`, `timm:NAME` or `package.module:factory`."""
