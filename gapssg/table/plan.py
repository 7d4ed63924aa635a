"""The runs of a table, and their settings. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from gapssg.files import user_path
from gapssg.table.ledger import CellPlan, Ledger
from gapssg.table.rows import (
    Column,
    Row,
    distill_departures,
    distill_settings,
    identifying,
    identity,
    make_columns,
    make_rows,
    pretrain_departures,
    pretrain_settings,
)
from gapssg.table.settings import TableSettings
from gapssg.training.settings import DistillSettings, PretrainSettings


@dataclass(frozen=True)
class Task:
    """One run of the table."""

    label: str
    """Its name in messages."""
    run: Path
    """Its run directory."""
    settings: PretrainSettings | DistillSettings
    """Its settings."""
    teacher: Path | None = None
    """The run directory of its teacher; None if it is trained on real images."""
    plan: CellPlan | None = None
    """The cell that it belongs to; None if it is trained on real images."""


def plan_tasks(settings: TableSettings, root: Path) -> list[Task]:
    """Return all runs, teachers before the cells that need them; nothing is read or written.

    Raises `InputError` if the settings of a row and a column are not valid.
    """
    ledger, now = Ledger(user_path(root).absolute()), time.time()
    tasks: dict[Path, Task] = {}
    for row in make_rows(settings):
        teacher_settings = pretrain_settings(row, row.teacher, settings)
        scratch_settings = pretrain_settings(row, row.student, settings)
        teacher_hash, scratch_hash = identity(teacher_settings, row), identity(scratch_settings, row)
        teacher = ledger.pretrained(row.data_name, row.teacher, 0, teacher_hash)
        tasks.setdefault(teacher, Task(f"{row.data_name}, teacher {row.teacher}", teacher, teacher_settings))
        cells = []
        for column in make_columns(settings):
            cell = distill_settings(row, column, teacher / "model.safetensors", settings)
            cells.append((_plan_cell(row, column, cell, teacher_hash, scratch_hash, settings, now), cell))
            now += 1e-3  # columns are sorted by the time at which they were asked for
        for seed in range(settings.seeds):
            if settings.scratch:
                run = ledger.pretrained(row.data_name, row.student, seed, scratch_hash)
                label = f"{row.data_name}, {row.student} on real images, seed {seed}"
                tasks.setdefault(run, Task(label, run, scratch_settings.model_copy(update={"seed": seed})))
            for plan, cell in cells:
                run = ledger.cell(plan.row, plan.column, seed, plan.settings)
                own = cell.model_copy(update={"seed": seed})
                tasks[run] = Task(f"{plan.row}, {plan.column}, seed {seed}", run, own, teacher, plan)
    return list(tasks.values())


def _plan_cell(
    row: Row,
    column: Column,
    cell: DistillSettings,
    teacher_hash: str,
    scratch_hash: str,
    settings: TableSettings,
    now: float,
) -> CellPlan:
    size = () if settings.image_size is None else (f"image_size={settings.image_size}",)
    pretrained, pretrain_changes = tuple(pretrain_departures(row, settings)), identifying(settings.pretrain_changes)
    return CellPlan(
        row=row.name,
        recipe=row.recipe,
        data=row.data_name,
        teacher=row.teacher,
        student=row.student,
        budget=settings.budget,
        changes=(*identifying(settings.changes), *size, *(f"pretrain {change}" for change in pretrain_changes)),
        column=column.name,
        method=cell.method.name,
        settings=identity(cell, row, teacher_hash),
        teacher_settings=teacher_hash,
        scratch_settings=scratch_hash,
        departures=(*pretrained, *distill_departures(row, column, cell.method.name, settings)),
        pretrain_departures=pretrained,
        created=now,
        asked=now,
    )
