"""Which part of the table is run, and how. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gapssg.data import check_data_name
from gapssg.errors import InputError, did_you_mean
from gapssg.settings.base import Settings, as_validator
from gapssg.settings.parts import RuntimeSettings
from gapssg.synthesis import method_classes
from gapssg.table.rows import row_names

SCRATCH = "scratch"
TEACHER = "teacher"

Budget = Literal["full", "short", "smoke"]

_BASELINES = ("noise",)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
# A comma within a value, as in a list, is not followed by a key.
_BETWEEN_SETTINGS = re.compile(r",(?=[\w.]+=)")


def method_names() -> tuple[str, ...]:
    """Return the names of all methods."""
    return tuple(method.model_fields["name"].default for method in method_classes())


def _check_row(name: str) -> str:
    if name not in row_names():
        raise InputError(f"unknown row {name!r}{did_you_mean(name, row_names())}; `gapssg recipes` lists them")
    return name


def _check_method(name: str) -> str:
    if name not in method_names():
        raise InputError(f"unknown method {name!r}{did_you_mean(name, method_names())}; `gapssg methods` lists them")
    return name


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} cannot name a folder; use letters, digits, '-', '_' and '.'")
    return name


Name = Annotated[str, AfterValidator(as_validator(_check_name))]


class VariantSettings(Settings):
    """A column of its own: a method with changed settings, such as an ablation."""

    name: Name
    """The column."""
    changes: tuple[str, ...] = Field(min_length=1)
    """Texts `key.path=value`, as --set takes them; `method.name` among them chooses another method than gapssg."""


def parse_variant(text: str) -> VariantSettings:
    """Read `NAME:KEY=VALUE[,KEY=VALUE...]`.

    Raises:
        InputError: It is not of that form, or a method has this name.
    """
    name, colon, changes = text.partition(":")
    if not colon or not all("=" in change for change in _BETWEEN_SETTINGS.split(changes)):
        raise InputError(f"--variant {text!r} is not of the form NAME:KEY=VALUE[,KEY=VALUE...]")
    if name in (*method_names(), SCRATCH, TEACHER):
        raise InputError(f"--variant {name!r} has the name of another column; choose a name of its own")
    return VariantSettings(name=_check_name(name), changes=tuple(_BETWEEN_SETTINGS.split(changes)))


class TableSettings(Settings):
    """Which rows and columns are run, how often, and with how much work."""

    rows: tuple[Annotated[str, AfterValidator(as_validator(_check_row))], ...]
    """Rows: recipes of data, teacher and student."""
    methods: tuple[Annotated[str, AfterValidator(as_validator(_check_method))], ...] = tuple(
        name for name in method_names() if name not in _BASELINES
    )
    """Columns that are methods; without it, every method but the noise baseline."""
    variants: tuple[VariantSettings, ...] = ()
    """Columns that are methods with changed settings."""
    seeds: int = Field(default=3, ge=1, le=1000)
    """Runs of each cell, with seeds from 0 on."""
    budget: Budget = "full"
    """`full`: the published settings; `short`: what the row's recipe says; `smoke`: a few steps."""
    data: Annotated[str, AfterValidator(as_validator(check_data_name))] | None = None
    """Real images instead of those that the rows name: `digits`, `cifar10`, `cifar100` or `folder:PATH`."""
    data_name: Name | None = None
    """What these are called in the names of rows; without it, the name of the folder."""
    data_root: Path | None = None
    """Folder of torchvision's data sets; without it, the environment variable GAPSSG_DATA."""
    download: bool = False
    """Let torchvision download a data set that is not there."""
    image_size: int | None = Field(default=None, ge=8, le=1024)
    """Scale and crop every image to a square of this many pixels; needed where sizes differ."""
    scratch: bool = True
    """Whether a student is also trained on the real images, for comparison."""
    changes: tuple[str, ...] = ()
    """Texts `key.path=value` that change the settings of every distillation."""
    pretrain_changes: tuple[str, ...] = ()
    """Texts `key.path=value` that change how teachers and scratch students are trained."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation."""
