"""The base class of all settings."""

from __future__ import annotations

import hashlib
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict

from gapssg.files import canonical_json


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
