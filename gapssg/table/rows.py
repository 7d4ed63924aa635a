"""Rows of the table and how a row and a method make the settings of a run. Imports no torch."""

from __future__ import annotations

import csv
import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import canonical_json
from gapssg.settings.load import AnySettings, flatten, load_settings, recipe_names, recipe_text
from gapssg.synthesis import departures_of, is_run_as_published, method_classes, published_settings
from gapssg.training.settings import DistillSettings, PretrainSettings

if TYPE_CHECKING:
    from gapssg.table.settings import TableSettings

# What makes a few steps of a run, where its method has such a setting.
_SMOKE_PRETRAIN = {"epochs": 1, "batch_size": 16, "data.images": 32}
_SMOKE_DISTILL = {"epochs": 2, "batch_size": 16, "evaluate_every": 2, "eval_data.images": 32}
_SMOKE_METHOD = {
    "synthesis_batch_size": 16,
    "rounds": 1,
    "generator_steps": 2,
    "pixel_steps": 2,
    "distillation_steps": 2,
    "bank_size": 64,
    "negatives": 16,
}

# These change how, where and when a run computes and writes, but not what it comes to. (What device and precision do
# to the last bits is of no account here.) A run keeps the first to its end; the others may change on the way.
_KEPT_TO_THE_END = ("runtime", "evaluate_every", "snapshot_every", "samples", "keep_pool")
_NO_PART_OF_THE_RESULT = (*_KEPT_TO_THE_END, "checkpoint_every", "checkpoint_minutes", "max_rollbacks")
_SHORT_HASH = 12
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@dataclass(frozen=True)
class Row:
    """Data, teacher and student.

    Attributes:
        name: Of the row: data, teacher and student.
        recipe: Name of the recipe that says so.
        data_name: What the images are called.
        data: The real images: teachers learn from them, and all are evaluated on them.
        published_data: What the images of the recipe are called.
        teacher: The teacher's architecture.
        student: The student's.
        budgets: By budget the recipe that says what it is.
    """

    name: str
    recipe: str
    data_name: str
    data: DataSettings
    published_data: str
    teacher: str
    student: str
    budgets: Mapping[str, str]


class Column(NamedTuple):
    """A method, or a variant of one.

    Attributes:
        name: Of the column.
        method: The method's name; None where the changes say it.
        changes: Texts `key.path=value` over everything else.
    """

    name: str
    method: str | None
    changes: tuple[str, ...] = ()


class Figures(NamedTuple):
    """What was published of a row, as fractions: by column, `teacher` and `scratch` among them."""

    top1: Mapping[str, float]
    deviation: Mapping[str, float]


@cache
def row_names() -> tuple[str, ...]:
    """Return the recipes that are rows of the table."""
    return tuple(name for name in recipe_names() if "table" in _recipe(name))


def make_rows(settings: TableSettings) -> list[Row]:
    """Return the rows that the settings name, on other images if they say so.

    Raises:
        InputError: Other images stand for those of more than one data set, or have no name for a row.
    """
    names = list(dict.fromkeys(settings.rows))
    meant = sorted({_recipe(name)["pretrain-teacher"]["data"]["name"] for name in names})
    if settings.data is not None and len(meant) > 1:
        raise InputError(f"--data stands for the images of one data set, but the rows are of {' and '.join(meant)}")
    return [_make_row(name, settings) for name in names]


def _make_row(name: str, settings: TableSettings) -> Row:
    tables = _recipe(name)
    published_data = tables["pretrain-teacher"]["data"]["name"]
    teacher, student = tables["pretrain-teacher"]["model"]["name"], tables["distill"]["student"]["name"]
    source = settings.data or published_data
    data_name = published_data
    if source != published_data:
        data_name = settings.data_name or Path(source.partition(":")[2]).name or source
        if not _NAME.fullmatch(data_name):
            raise InputError(f"--data {source} has no name that could stand in a row; add --data-name")
    elif settings.data_name is not None:
        raise InputError("--data-name names the images of --data; add --data, or leave it out")
    return Row(
        name=name if data_name == published_data else f"{data_name}-{teacher}-{student}",
        recipe=name,
        data_name=data_name,
        data=DataSettings(
            name=source, root=settings.data_root, download=settings.download, image_size=settings.image_size
        ),
        published_data=published_data,
        teacher=teacher,
        student=student,
        budgets={"full": name, "smoke": name, **tables["table"]},
    )


def _recipe(name: str) -> dict[str, Any]:
    return tomllib.loads(recipe_text(name))


def make_columns(settings: TableSettings) -> list[Column]:
    """Return the columns that the settings name, without teacher and scratch student.

    Raises:
        InputError: Two have one name.
    """
    names = [variant.name for variant in settings.variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two variants have the name {twice[0]!r}; a column holds one")
    methods = [Column(name, name) for name in dict.fromkeys(settings.methods)]
    return methods + [Column(variant.name, None, variant.changes) for variant in settings.variants]


def pretrain_settings(row: Row, architecture: str, seed: int, settings: TableSettings) -> PretrainSettings:
    """Return how a classifier of a row learns from the real images.

    Raises:
        InputError: A change that the settings ask for is not possible.
    """
    smoke = _SMOKE_PRETRAIN if settings.budget == "smoke" else {}
    with _said_of(f"{row.name}, training {architecture}"):
        return load_settings(
            PretrainSettings,
            section="pretrain-teacher",
            recipe=row.budgets[settings.budget],
            overrides=[*_as_texts(smoke), *settings.pretrain_changes],
            options={
                **_data_options("data", row),
                "model.name": (row.name, architecture),
                **_runtime_options(settings, seed),
            },
        )


def distill_settings(row: Row, column: Column, seed: int, teacher: Path, settings: TableSettings) -> DistillSettings:
    """Return how a cell is made.

    The order is: defaults, the method's published settings, the recipe of the budget, --set, the column's changes.

    Raises:
        InputError: A change that the settings or the column ask for is not possible.
    """
    with _said_of(f"{row.name}, {column.name}"):
        changes = [*settings.changes, *column.changes]
        options = {
            "teacher": (row.name, str(teacher)),
            "student.name": (row.name, row.student),
            **_data_options("eval_data", row),
            **_runtime_options(settings, seed),
            **({} if column.method is None else {"method.name": ("--methods", column.method)}),
        }
        chosen: list[str] = []

        def beneath(values: Mapping[str, Any]) -> Mapping[str, Any]:
            chosen.append(values["method.name"])
            return published_settings(values["method.name"], row.teacher)

        def load(overrides: list[str]) -> DistillSettings:
            recipe = row.budgets[settings.budget]
            return load_settings(
                DistillSettings,
                section="distill",
                recipe=recipe,
                overrides=overrides,
                options=options,
                beneath=beneath,
            )

        composed = load(changes)
        return composed if settings.budget != "smoke" else load([*_smoke_of(chosen[-1]), *changes])


def settings_to_continue(settings: AnySettings, began_with: AnySettings) -> AnySettings:
    """Return the settings with which a run goes on that began with others of the same identity."""
    kept = {key: getattr(began_with, key) for key in _KEPT_TO_THE_END if key in type(settings).model_fields}
    return settings.model_copy(update=kept)


def pretrain_departures(row: Row, settings: TableSettings) -> list[str]:
    """Say in what the training of teacher and scratch student is not what was published, one phrase each."""
    found = []
    if settings.budget != "full":
        smoke = ": a few steps to see that it runs, whose figures mean nothing" if settings.budget == "smoke" else ""
        found.append(f"budget {settings.budget}, which is not the published one{smoke}")
    if row.data_name != row.published_data:
        found.append(f"the images are {row.data_name}, not {row.published_data}")
    if settings.image_size is not None:
        found.append(f"the images are scaled to {settings.image_size}x{settings.image_size} pixels")
    if settings.pretrain_changes:
        found.append(f"teacher and scratch student trained with {', '.join(settings.pretrain_changes)}")
    return found


def distill_departures(row: Row, column: Column, method: str, settings: TableSettings) -> list[str]:
    """Say in what else a cell of `method` is not what was published, one phrase each."""
    found = [*departures_of(method, row.teacher)]
    if settings.changes:
        found.append(f"with {', '.join(settings.changes)}")
    if column.changes:
        found.append(f"{column.name} is with {', '.join(column.changes)}")
    if settings.budget == "full" and not is_run_as_published(method):
        found.append(f"published epochs, batch size and learning rate of {method} not known: those of gapssg")
    return found


def published_figures_of(recipe: str) -> Figures:
    """Return what was published for the row of a recipe; nothing where there is no such row."""
    text = (resources.files("gapssg") / "table" / "published.csv").read_text(encoding="utf-8")
    for line in csv.DictReader(text.splitlines()):
        if f"{line['dataset']}-{line['teacher']}-{line['student']}" == recipe:
            names = {"teacher_top1": "teacher", "student_scratch_top1": "scratch", "deepinv": "deepinversion"}
            numbers = {names.get(key, key): float(value) / 100 for key, value in line.items() if _is_number(value)}
            deviations = {"gapssg": numbers.pop("gapssg_std")} if "gapssg_std" in numbers else {}
            return Figures(numbers, deviations)
    return Figures({}, {})


def identity(settings: PretrainSettings | DistillSettings, row: Row, teacher: str | None = None) -> str:
    """Return the hash that tells whether two runs are of the same settings, but for their seeds.

    Where files lie and what computes is left out: the images count by their name, the teacher by `teacher`, its own
    identity.
    """
    values = {key: value for key, value in settings.to_dict().items() if key not in (*_NO_PART_OF_THE_RESULT, "seed")}
    data = "data" if "data" in values else "eval_data"
    kept = {key: value for key, value in values[data].items() if key not in ("root", "download")}
    values[data] = {**kept, "name": row.data_name}
    if teacher is not None:
        values["teacher"] = teacher
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:_SHORT_HASH]


@contextmanager
def _said_of(subject: str) -> Iterator[None]:
    """Say in front of a complaint of what it speaks."""
    try:
        yield
    except InputError as error:
        raise InputError("\n".join(f"{subject}: {line}" for line in str(error).split("\n"))) from error


def _smoke_of(method: str) -> list[str]:
    fields = next(each for each in method_classes() if each.model_fields["name"].default == method).model_fields
    own = {f"method.{key}": value for key, value in _SMOKE_METHOD.items() if key in fields}
    return _as_texts({**_SMOKE_DISTILL, **own})


def _as_texts(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _data_options(key: str, row: Row) -> dict[str, tuple[str, Any]]:
    values = flatten(row.data.to_dict())
    return {f"{key}.{name}": ("--data", value) for name, value in values.items() if value is not False}


def _runtime_options(settings: TableSettings, seed: int) -> dict[str, tuple[str, Any]]:
    runtime = {f"runtime.{name}": (f"--{name}", value) for name, value in settings.runtime.to_dict().items()}
    return {"seed": ("--seeds", seed), **runtime}


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
