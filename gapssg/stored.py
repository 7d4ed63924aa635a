"""The base class of values that are written as JSON and read back, possibly from untrusted files. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gapssg.errors import InputError, shortened

Item = TypeVar("Item")
MOST_COUNTED_CLASSES = 1000


def _as_unicode(text: Any) -> Any:
    """Replace the lone surrogates by which Python represents undecodable bytes of a path."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else text


# A path may have 4,096 characters.
Text = Annotated[str, BeforeValidator(_as_unicode), Field(max_length=5000)]
MOST_SENTENCES = 20
Sentences = Annotated[tuple[Text, ...], Field(max_length=MOST_SENTENCES, fail_fast=True)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e39, le=1e39)]  # every float32; differences of two are finite, too
Numbers = Annotated[dict[Annotated[str, Field(max_length=100)], Number], Field(max_length=50)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0, le=10**30)]  # also of operations; a float can represent it
PositiveCount = Annotated[Count, Field(ge=1)]
# `fail_fast`, because each error of a long list would take a kilobyte.
Counts = Annotated[list[Count], Field(max_length=MOST_COUNTED_CLASSES, fail_fast=True)]
Many = Annotated[tuple[Item, ...], Field(max_length=1_100_000, fail_fast=True)]


class Stored(BaseModel):
    """Frozen values that are validated when created or read; unknown keys of a file are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, frozen=True, defer_build=True)

    @classmethod
    def read(cls, text: bytes, place: str) -> Self:
        """Parse JSON; raise `InputError`, which names `place` as its origin, if it is not valid."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"]))
            reason = f"{field}: {first['msg']}" if field else first["msg"]
            raise InputError(f"{place} is damaged: {shortened(reason)}") from error
