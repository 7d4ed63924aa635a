"""The base class of all settings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict

from gapssg.errors import InputError
from gapssg.files import canonical_json

Name = TypeVar("Name")


def as_validator(check: Callable[[Name], Name]) -> Callable[[Name], Name]:
    """Turn a check that raises InputError into one that pydantic reports with the field's name."""

    def validate(name: Name) -> Name:
        try:
            return check(name)
        except InputError as error:
            raise ValueError(str(error)) from error

    return validate


class Settings(BaseModel):
    """Frozen settings that accept only the keys they declare.

    An optional value that is not set is left out of the TOML, which has no word for nothing; so a
    field that may be None must have None as its default.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, without the values that are None."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """Return the settings as TOML that `--config` reads back to equal settings."""
        return tomli_w.dumps(self.to_dict())

    def sha256(self) -> str:
        """Return the SHA-256 of the canonical JSON of the settings, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()
