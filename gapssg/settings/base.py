"""The base class of all settings."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from gapssg.errors import InputError
from gapssg.files import canonical_json, user_path

Name = TypeVar("Name")


def as_validator(check: Callable[[Name], Name]) -> Callable[[Name], Name]:
    """Return a validator from a check that raises InputError; pydantic adds the field's name."""

    def validate(name: Name) -> Name:
        try:
            return check(name)
        except InputError as error:
            raise ValueError(str(error)) from error

    return validate


def _as_user_path(value: Any) -> Any:
    # From JSON, pydantic accepts a path only as text.
    return str(user_path(value)) if isinstance(value, str) else user_path(value) if isinstance(value, Path) else value


UserPath = Annotated[Path, BeforeValidator(as_validator(_as_user_path))]
"""A file or folder that the user names; the type of every path in settings."""


class Settings(BaseModel):
    """Frozen settings that accept only the keys they declare.

    A field that may be None must have None as its default: TOML has no null, so None is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _complete_parts_and_refuse_coercion(cls, values: Any) -> Any:
        """Complete a part, such as `optimizer`, from the default of its field, not of its class.

        So `optimizer.learning_rate` alone keeps the rest of this command's optimizer. A part with another name, such as
        another method, is not completed.
        """
        if not isinstance(values, dict):
            return values
        for field_name, value in values.items():
            if field_name in cls.model_fields:
                _refuse_coercion(field_name, value, cls.model_fields[field_name].annotation)
        completed = dict(values)
        for field_name, field in cls.model_fields.items():
            given, default = values.get(field_name), field.default
            if isinstance(given, dict) and isinstance(default, Settings):
                completed[field_name] = _complete(given, default.to_dict())
        return completed

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values of some fields, which are validated; raise `ValidationError` as the class."""
        copied = super().model_copy(deep=deep)
        if not update:
            return copied
        given = {name: getattr(copied, name) for name in self.model_fields_set}
        return type(self).model_validate({**given, **update})

    def to_dict(self) -> dict[str, JsonValue]:
        """Return the settings as plain JSON types, without the values that are None."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """Return the settings as TOML that `--config` reads back to equal settings."""
        return tomli_w.dumps(self.to_dict())

    def sha256(self) -> str:
        """Return the SHA-256 of the canonical JSON of the settings, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.to_dict()).encode()).hexdigest()


def descriptions(settings_class: type[Settings]) -> dict[str, str]:
    """Return the descriptions of a class's fields by name, inherited ones included: docstrings, or those of `Field`.

    Pydantic's `use_attribute_docstrings` would read the source of every class at import, which doubles its time.
    """
    found: dict[str, str] = {}
    for each in reversed(settings_class.__mro__):
        if issubclass(each, Settings) and each is not Settings:
            found |= _docstrings_in(each.__module__).get(each.__name__, {})
    return found | {name: field.description for name, field in settings_class.model_fields.items() if field.description}


@cache
def _docstrings_in(module: str) -> Mapping[str, Mapping[str, str]]:
    """Return the docstrings of the fields of each class in a module."""
    docstrings: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            docstrings[node.name] = {
                field.target.id: inspect.cleandoc(text.value.value)
                for field, text in zip(node.body, node.body[1:], strict=False)
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            }
    return docstrings


def _refuse_coercion(field_name: str, value: Any, annotation: Any) -> None:
    """Refuse texts and booleans for numbers, and others for booleans, which pydantic would convert."""
    allowed = set(get_args(annotation) or (annotation,))
    kinds = allowed - {type(None)}
    if value is None and kinds != allowed:
        return
    context = {"field": field_name, "given": value}
    if kinds <= {int, float} and isinstance(value, bool | str):
        raise PydanticCustomError("coercion", "{field} must be a number", context)
    if kinds == {bool} and not isinstance(value, bool):
        raise PydanticCustomError("coercion", "{field} must be true or false", context)


def _complete(given: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    if given.get("name", default.get("name")) != default.get("name"):
        return given
    parts = {
        key: _complete(value, default[key])
        for key, value in given.items()
        if isinstance(value, dict) and isinstance(default.get(key), dict)
    }
    return {**default, **given, **parts}
