"""Which part of the table is run, and how. Imports no torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gapssg.data import check_data_name
from gapssg.errors import InputError, did_you_mean
from gapssg.settings.base import Settings, UserPath, as_validator
from gapssg.settings.parts import RuntimeSettings
from gapssg.synthesis import method_classes
from gapssg.table.rows import row_names

SCRATCH = "scratch"
TEACHER = "teacher"

Budget = Literal["full", "short", "smoke"]

_BASELINES = ("noise",)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_RUNTIME = "use --device, --precision, --compile or --deterministic"
# What the table says itself, whatever a change says.
_SAID_ELSEWHERE = {
    **{key: "the row says it" for key in ("teacher", "student.name", "model.name")},
    **{f"{data}.name": "use --data" for data in ("data", "eval_data")},
    **{f"{data}.root": "use --data-root" for data in ("data", "eval_data")},
    **{f"{data}.download": "use --download" for data in ("data", "eval_data")},
    **{f"{data}.image_size": "use --image-size" for data in ("data", "eval_data")},
    **{key: _RUNTIME for key in ("runtime", *(f"runtime.{name}" for name in RuntimeSettings.model_fields))},
    "seed": "use --seeds",
}
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


def _check_change(text: str) -> str:
    key = ".".join(part.strip() for part in text.partition("=")[0].split("."))
    if key in _SAID_ELSEWHERE:
        raise InputError(f"{key} cannot be changed here: {_SAID_ELSEWHERE[key]}")
    return text


def _check_change_of_all(text: str) -> str:
    if text.partition("=")[0].strip() == "method.name":
        raise InputError("method.name cannot be changed here: use --methods, or --variant")
    return _check_change(text)


Name = Annotated[str, AfterValidator(as_validator(_check_name))]


class VariantSettings(Settings):
    """A column of its own: a method with changed settings, such as an ablation."""

    name: Name
    """The column."""
    changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change))], ...] = Field(min_length=1)
    """Texts `key.path=value`, as --set takes them; `method.name` among them chooses another method than gapssg."""


class GivenRuntimeSettings(Settings):
    """What is asked for of device, precision and compilation; the rest is as the recipe says."""

    device: str | None = None
    """`auto`, `cpu`, `cuda` or `cuda:N`; without it, as the recipe says."""
    precision: str | None = None
    """`auto`, `fp32` or `bf16`; without it, as the recipe says."""
    compile: bool | None = None
    """Compile the steps with torch.compile; without it, as the recipe says."""
    deterministic: bool | None = None
    """On CUDA, use only algorithms that give the same bits each time; without it, as the recipe says."""


def parse_variant(text: str) -> VariantSettings:
    """Read `NAME:KEY=VALUE[,KEY=VALUE...]`.

    Raises:
        InputError: It is not of that form, a method has this name, or the table itself says what it changes.
    """
    name, colon, changes = text.partition(":")
    if not colon or not all("=" in change for change in _BETWEEN_SETTINGS.split(changes)):
        raise InputError(f"--variant {text!r} is not of the form NAME:KEY=VALUE[,KEY=VALUE...]")
    if name in (*method_names(), SCRATCH, TEACHER):
        raise InputError(f"--variant {name!r} has the name of another column; choose a name of its own")
    checked = [_check_change(change) for change in _BETWEEN_SETTINGS.split(changes)]
    return VariantSettings(name=_check_name(name), changes=tuple(checked))


class TableSettings(Settings):
    """Which rows and columns are run, how often, and with how much work."""

    rows: tuple[Annotated[str, AfterValidator(as_validator(_check_row))], ...]
    """Rows, separated by commas: recipes of data, teacher and student; `gapssg recipes` lists them."""
    methods: tuple[Annotated[str, AfterValidator(as_validator(_check_method))], ...] = tuple(
        name for name in method_names() if name not in _BASELINES
    )
    """Columns that are methods, separated by commas; without it, every method but the noise baseline."""
    variants: tuple[VariantSettings, ...] = ()
    """A further column: GapSSG, or the `method.name` given, with changed settings."""
    seeds: int = Field(default=3, ge=1, le=1000)
    """Runs of each cell, with seeds from 0 on."""
    budget: Budget = "full"
    """`full`: the published settings; `short`: what the row's recipe says; `smoke`: a few steps."""
    data: Annotated[str, AfterValidator(as_validator(check_data_name))] | None = None
    """Real images instead of those that the rows name: `digits`, `cifar10`, `cifar100` or `folder:PATH`."""
    data_name: Name | None = None
    """What these are called in the names of rows; without it, the name of the folder."""
    data_root: UserPath | None = None
    """Folder of torchvision's data sets; without it, the environment variable GAPSSG_DATA."""
    download: bool = False
    """Let torchvision download a data set that is not there."""
    image_size: int | None = Field(default=None, ge=8, le=1024)
    """Scale and crop every image to a square of this many pixels; needed where sizes differ."""
    scratch: bool = True
    """Whether a student is also trained on the real images, for comparison."""
    changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change_of_all))], ...] = ()
    """Texts `key.path=value` that change the settings of every distillation."""
    pretrain_changes: tuple[Annotated[str, AfterValidator(as_validator(_check_change))], ...] = ()
    """Texts `key.path=value` that change how teachers and scratch students are trained."""
    runtime: GivenRuntimeSettings = GivenRuntimeSettings()
    """Device, precision and compilation, where another than the recipe's is asked for."""
