"""The settings of a table, and the rows and methods that it can have. Imports no torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gapssg.data import check_data_name, describe_names
from gapssg.errors import InputError, did_you_mean
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.load import recipe_names, recipe_text
from gapssg.settings.parts import RuntimeSettings
from gapssg.synthesis import method_classes

SCRATCH = "scratch"
TEACHER = "teacher"

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
"""The names that a folder can have."""

Budget = Literal["full", "short", "smoke"]

_BASELINES = ("noise",)
_RUNTIME = "use --device, --precision, --compile or --deterministic"
# Keys that a change must not set, because the table sets them.
_SET_BY_THE_TABLE = {
    **{key: "the row sets it" for key in ("teacher", "student.name", "model.name")},
    **{f"{data}.name": "use --data" for data in ("data", "eval_data")},
    **{f"{data}.root": "use --data-root" for data in ("data", "eval_data")},
    **{f"{data}.download": "use --download" for data in ("data", "eval_data")},
    **{f"{data}.image_size": "use --image-size" for data in ("data", "eval_data")},
    **{key: _RUNTIME for key in ("runtime", *(f"runtime.{name}" for name in RuntimeSettings.model_fields))},
    "seed": "use --seeds",
}
# Commas within a value, as in a list, are not followed by a key.
_SEPARATOR = re.compile(r",(?=[\w.]+=)")


def method_names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(method.model_fields["name"].default for method in method_classes())


@cache
def row_names() -> tuple[str, ...]:
    """Return the recipes that are rows of the table."""
    return tuple(name for name in recipe_names() if "table" in row_recipe(name))


def row_recipe(name: str) -> dict[str, Any]:
    """Return the tables of a row's recipe."""
    return tomllib.loads(recipe_text(name))


def _known(kind: str, names: Callable[[], tuple[str, ...]], command: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in (known := names()):
            raise InputError(f"unknown {kind} {name!r}{did_you_mean(name, known)}; `gapssg {command}` lists them")
        return name

    return AfterValidator(as_validator(check))


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name a folder; use letters, digits, '-', '_' and '.'")
    return name


def _check_change(text: str) -> str:
    key = ".".join(part.strip() for part in text.partition("=")[0].split("."))
    if key in _SET_BY_THE_TABLE:
        raise InputError(f"{key} cannot be changed here: {_SET_BY_THE_TABLE[key]}")
    return text


def _check_change_of_all(text: str) -> str:
    if text.partition("=")[0].strip() == "method.name":
        raise InputError("method.name cannot be changed here: use --methods, or --variant")
    return _check_change(text)


Name = Annotated[str, AfterValidator(as_validator(_check_name))]


class VariantSettings(Settings):
    """A further column: a method with changed settings, such as an ablation."""

    name: Name
    changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change))], ...] = Field(min_length=1)
    """Texts `key.path=value`, as --set takes them; `method.name` chooses another method than gapssg."""


class GivenRuntimeSettings(Settings):
    """Device, precision and compilation, where they are given; the rest comes from the recipe."""

    device: str | None = None
    """`auto`, `cpu`, `cuda` or `cuda:N`; by default from the recipe."""
    precision: str | None = None
    """`auto`, `fp32` or `bf16`; by default from the recipe."""
    compile: bool | None = None
    """Compile the steps with torch.compile; by default from the recipe."""
    deterministic: bool | None = None
    """On CUDA, use only algorithms that give the same bits each time; by default from the recipe."""


def parse_variant(text: str) -> VariantSettings:
    """Parse `NAME:KEY=VALUE[,KEY=VALUE...]`.

    Raises `InputError` if it has another form, a method has this name, or it changes what the table sets.
    """
    name, colon, changes = text.partition(":")
    if not colon or not all("=" in change for change in _SEPARATOR.split(changes)):
        raise InputError(f"--variant {text!r} is not of the form NAME:KEY=VALUE[,KEY=VALUE...]")
    if name in (*method_names(), SCRATCH, TEACHER):
        raise InputError(f"--variant {name!r} has the name of another column; choose another name")
    return VariantSettings(
        name=_check_name(name), changes=tuple(_check_change(change) for change in _SEPARATOR.split(changes))
    )


class TableSettings(Settings):
    """Rows, columns, seeds and budget of a table."""

    rows: tuple[Annotated[str, _known("row", row_names, "recipes")], ...]
    """Rows, separated by commas: recipes of data, teacher and student; `gapssg recipes` lists them."""
    methods: tuple[Annotated[str, _known("method", method_names, "methods")], ...] = tuple(
        name for name in method_names() if name not in _BASELINES
    )
    """Columns that are methods, separated by commas; by default every method but the noise baseline."""
    variants: tuple[VariantSettings, ...] = ()
    """A further column: GapSSG, or the `method.name` given, with changed settings."""
    seeds: int = Field(default=3, ge=1, le=1000)
    """Runs of each cell, with seeds from 0."""
    budget: Budget = "full"
    """`full`: the published settings; `short`: those of the row's short recipe; `smoke`: a few steps."""
    data: Annotated[str, AfterValidator(as_validator(check_data_name))] | None = Field(
        default=None, description=f"Real images instead of those of the rows: {describe_names()}."
    )
    data_name: Name | None = None
    """Their name in the names of rows; by default the name of the folder."""
    data_root: UserPath | None = None
    """Folder of torchvision's data sets; by default the environment variable GAPSSG_DATA."""
    download: bool = False
    """Let torchvision download a missing data set."""
    image_size: int | None = Field(default=None, ge=8, le=1024)
    """Scale and crop every image to a square of this many pixels; needed where sizes differ."""
    scratch: bool = True
    """Whether a student is also trained on the real images, for comparison."""
    changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change_of_all))], ...] = ()
    """Texts `key.path=value` that change the settings of every distillation."""
    pretrain_changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change))], ...] = ()
    """Texts `key.path=value` that change how teachers and scratch students are trained."""
    runtime: GivenRuntimeSettings = GivenRuntimeSettings()
    """Device, precision and compilation, where they differ from the recipe's."""
