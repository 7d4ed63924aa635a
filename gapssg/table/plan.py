"""The runs that a part of the table needs, and their settings. Imports no torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from gapssg.files import user_path
from gapssg.table.ledger import CellPlan, Ledger
from gapssg.table.rows import (
    distill_departures,
    distill_settings,
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
    """One run of the table.

    Attributes:
        label: What it is, for people.
        run: Its run directory.
        settings: What it runs with.
        teacher: The run directory of its teacher; None for what learns from real images.
        plan: The cell that it belongs to; None for what learns from real images.
    """

    label: str
    run: Path
    settings: PretrainSettings | DistillSettings
    teacher: Path | None = None
    plan: CellPlan | None = None


def plan_tasks(settings: TableSettings, root: Path) -> list[Task]:
    """Return all runs that are asked for, teachers before the cells that need them; nothing is read or written.

    Raises:
        InputError: A row and a column do not make valid settings.
    """
    ledger, began = Ledger(user_path(root).absolute()), time.time()
    tasks: dict[Path, Task] = {}
    size = () if settings.image_size is None else (f"image_size={settings.image_size}",)
    changes = (*settings.changes, *size, *(f"pretrain {change}" for change in settings.pretrain_changes))
    for row in make_rows(settings):
        teacher_settings = pretrain_settings(row, row.teacher, 0, settings)
        scratch_settings = pretrain_settings(row, row.student, 0, settings)
        teacher_hash, scratch_hash = identity(teacher_settings, row), identity(scratch_settings, row)
        teacher = ledger.pretrained(row.data_name, row.teacher, 0, teacher_hash)
        tasks.setdefault(teacher, Task(f"{row.data_name}, teacher {row.teacher}", teacher, teacher_settings))
        cells = []
        for column in make_columns(settings):
            cell = distill_settings(row, column, 0, teacher / "model.safetensors", settings)
            plan = CellPlan(
                row=row.name,
                recipe=row.recipe,
                data=row.data_name,
                teacher=row.teacher,
                student=row.student,
                budget=settings.budget,
                changes=changes,
                column=column.name,
                method=cell.method.name,
                settings=identity(cell, row, teacher_hash),
                teacher_settings=teacher_hash,
                scratch_settings=scratch_hash,
                departures=(
                    *pretrain_departures(row, settings),
                    *distill_departures(row, column, cell.method.name, settings),
                ),
                pretrain_departures=tuple(pretrain_departures(row, settings)),
                created=began,
                asked=began,
            )
            began += 1e-3  # columns stay in the order in which they were asked for
            cells.append((plan, cell))
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
