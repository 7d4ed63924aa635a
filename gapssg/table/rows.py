"""Rows of the table, and the settings of the runs of a row and a method. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import canonical_json
from gapssg.settings.load import AnySettings, flatten, load_settings, published_rows
from gapssg.settings.parts import CHECKPOINTS
from gapssg.synthesis import departures_of, method_classes, published_settings, unknown_run_settings
from gapssg.table.settings import NAME, TableSettings, row_recipe
from gapssg.training.settings import DistillSettings, PretrainSettings

# The settings of a smoke run: a few steps. Those of a method apply if it has them.
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

# These change how, where and when a run computes and writes, but not its result (but for rounding, which depends on
# device and precision). The first are fixed when a run starts; the others may change when it is resumed.
_WRITES = ("evaluate_every", "snapshot_every", "samples", "keep_pool")
_FIXED_AT_THE_START = ("runtime", *_WRITES)
_NOT_IDENTIFYING = (*_FIXED_AT_THE_START, *CHECKPOINTS)
_SHORT_HASH = 12


@dataclass(frozen=True)
class Row:
    """Data, teacher and student."""

    name: str
    """Data, teacher and student, joined by hyphens, or the name of the recipe."""
    recipe: str
    """The name of the recipe."""
    data_name: str
    """The name of the images."""
    data: DataSettings
    """The real images that teachers are trained on and all models are evaluated on."""
    published_data: str
    """The name of the images of the recipe."""
    teacher: str
    """The teacher's architecture."""
    student: str
    """The student's architecture."""
    budgets: Mapping[str, str]
    """The name of the recipe by budget."""


class Column(NamedTuple):
    """A method, or a variant of one."""

    name: str
    """The name of the column."""
    method: str | None
    """The method's name; None where the changes choose it."""
    changes: tuple[str, ...] = ()
    """Texts `key.path=value` that override everything else."""


class Figures(NamedTuple):
    """The published accuracies of a row by column, `teacher` and `scratch` included, as fractions in [0, 1]."""

    top1: Mapping[str, float]
    deviation: Mapping[str, float]


def make_rows(settings: TableSettings) -> list[Row]:
    """Return the rows that the settings name, on the images that they name.

    Raises `InputError` if the images would replace those of more than one data set, or have no name for a row.
    """
    names = list(dict.fromkeys(settings.rows))
    replaced = sorted({row_recipe(name)["pretrain-teacher"]["data"]["name"] for name in names})
    if settings.data is not None and len(replaced) > 1:
        raise InputError(f"--data replaces the images of one data set, but the rows are of {' and '.join(replaced)}")
    return [_make_row(name, settings) for name in names]


def _make_row(name: str, settings: TableSettings) -> Row:
    tables = row_recipe(name)
    published_data = tables["pretrain-teacher"]["data"]["name"]
    teacher, student = tables["pretrain-teacher"]["model"]["name"], tables["distill"]["student"]["name"]
    source = settings.data or published_data
    data_name = published_data
    if source != published_data:
        data_name = settings.data_name or Path(source.partition(":")[2]).name or source
        if not NAME.fullmatch(data_name):
            raise InputError(f"--data {source} has no name that a row can have; add --data-name")
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


def make_columns(settings: TableSettings) -> list[Column]:
    """Return the columns but teacher and scratch student; raise `InputError` if two have the same name."""
    names = [variant.name for variant in settings.variants]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two variants have the name {repeated[0]!r}; give each its own")
    methods = [Column(name, name) for name in dict.fromkeys(settings.methods)]
    return methods + [Column(variant.name, None, variant.changes) for variant in settings.variants]


def pretrain_settings(row: Row, architecture: str, settings: TableSettings) -> PretrainSettings:
    """Return the settings to train a classifier on real images, with seed 0.

    Raises `InputError` if a change is not possible.
    """
    smoke = _SMOKE_PRETRAIN if settings.budget == "smoke" else {}
    with _naming(f"{row.name}, training {architecture}"):
        return load_settings(
            PretrainSettings,
            section="pretrain-teacher",
            recipe=row.budgets[settings.budget],
            overrides=[*_as_texts(smoke), *settings.pretrain_changes],
            options={
                **_data_options("data", row),
                "model.name": (row.name, architecture),
                **_runtime_options(settings),
            },
        )


def distill_settings(row: Row, column: Column, teacher: Path, settings: TableSettings) -> DistillSettings:
    """Return the settings of a cell with seed 0.

    The order of precedence is: defaults, the method's published settings, the recipe of the budget, --set, the column's
    changes. Raises `InputError` if a change of the settings or of the column is not possible.
    """
    options = {
        "teacher": (row.name, str(teacher)),
        "student.name": (row.name, row.student),
        **_data_options("eval_data", row),
        **_runtime_options(settings),
        **({} if column.method is None else {"method.name": ("--methods", column.method)}),
    }

    def load(smoke: list[str]) -> DistillSettings:
        return load_settings(
            DistillSettings,
            section="distill",
            recipe=row.budgets[settings.budget],
            overrides=[*smoke, *settings.changes, *column.changes],
            options=options,
            beneath=lambda values: published_settings(values["method.name"], row.teacher),
        )

    with _naming(f"{row.name}, {column.name}"):
        composed = load([])
        return composed if settings.budget != "smoke" else load(_smoke_of(composed.method.name))


def settings_to_resume(settings: AnySettings, started_with: AnySettings) -> AnySettings:
    """Return the settings that resume a run which started with others of the same identity."""
    kept = {key: getattr(started_with, key) for key in _FIXED_AT_THE_START if key in type(settings).model_fields}
    return settings.model_copy(update=kept)


def identifying(changes: Iterable[str]) -> tuple[str, ...]:
    """Return the changes, texts `key.path=value`, that change the result of a run."""
    return tuple(change for change in changes if re.split(r"[.=]", change)[0].strip() not in _NOT_IDENTIFYING)


def kept_settings(settings: AnySettings, started_with: AnySettings) -> list[str]:
    """Return what a finished run was to write otherwise, such as its snapshots: `snapshot_every=2 (it had none)`."""
    asked, kept = settings.to_dict(), started_with.to_dict()
    return [
        f"{key}={json.dumps(asked.get(key))} (it had {json.dumps(kept.get(key))})".replace("null", "none")
        for key in _WRITES
        if asked.get(key) != kept.get(key)
    ]


def pretrain_departures(row: Row, settings: TableSettings) -> list[str]:
    """Return how the training of teacher and scratch student departs from the published, one phrase each."""
    found = []
    if settings.budget != "full":
        smoke = ": a few steps to see that it runs, whose figures mean nothing" if settings.budget == "smoke" else ""
        found.append(f"budget {settings.budget}, which is not the published one{smoke}")
    if row.data_name != row.published_data:
        found.append(f"the images are {row.data_name}, not {row.published_data}")
    if settings.image_size is not None:
        found.append(f"the images are scaled to {settings.image_size}x{settings.image_size} pixels")
    if changes := identifying(settings.pretrain_changes):
        found.append(f"teacher and scratch student trained with {', '.join(changes)}")
    return found


def distill_departures(row: Row, column: Column, method: str, settings: TableSettings) -> list[str]:
    """Return how else a cell of `method` departs from the published, one phrase each."""
    found = [*departures_of(method, row.teacher)]
    if changes := identifying(settings.changes):
        found.append(f"with {', '.join(changes)}")
    if column.changes:
        found.append(f"{column.name} is with {', '.join(column.changes)}")
    unknown = unknown_run_settings(method, f"{row.published_data}-{row.teacher}-{row.student}")
    if settings.budget == "full" and unknown:
        found.append(unknown)
    return found


def published_figures_of(recipe: str) -> Figures:
    """Return the published figures of a recipe's row; empty ones if it was not published."""
    names = {"teacher_top1": "teacher", "student_scratch_top1": "scratch", "deepinv": "deepinversion"}
    numbers = {
        names.get(key, key): float(value) / 100
        for key, value in published_rows().get(recipe, {}).items()
        if value.replace(".", "", 1).isdecimal()
    }
    deviations = {"gapssg": numbers.pop("gapssg_std")} if "gapssg_std" in numbers else {}
    return Figures(numbers, deviations)


def identity(settings: PretrainSettings | DistillSettings, row: Row, teacher: str | None = None) -> str:
    """Return a hash that is equal for runs with the same settings but for their seeds.

    Paths and devices have no part in it: the images count by their name, the teacher by its own identity, `teacher`.
    """
    values = {key: value for key, value in settings.to_dict().items() if key not in (*_NOT_IDENTIFYING, "seed")}
    for part in ("data", "eval_data"):
        if isinstance(images := values.get(part), dict):
            kept = {key: value for key, value in images.items() if key not in ("root", "download")}
            values[part] = {**kept, "name": row.data_name}
    if teacher is not None:
        values["teacher"] = teacher
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:_SHORT_HASH]


@contextmanager
def _naming(subject: str) -> Iterator[None]:
    """Prefix the lines of an `InputError` with its subject."""
    try:
        yield
    except InputError as error:
        raise InputError(*(f"{subject}: {line}" for line in error.lines)) from error


def _smoke_of(method: str) -> list[str]:
    fields = next(each for each in method_classes() if each.model_fields["name"].default == method).model_fields
    own = {f"method.{key}": value for key, value in _SMOKE_METHOD.items() if key in fields}
    return _as_texts({**_SMOKE_DISTILL, **own})


def _as_texts(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _data_options(key: str, row: Row) -> dict[str, tuple[str, object]]:
    values = flatten(row.data.to_dict())
    return {f"{key}.{name}": ("--data", value) for name, value in values.items() if value is not False}


def _runtime_options(settings: TableSettings) -> dict[str, tuple[str, object]]:
    runtime = {f"runtime.{name}": (f"--{name}", value) for name, value in settings.runtime.to_dict().items()}
    return {"seed": ("--seeds", 0), **runtime}
