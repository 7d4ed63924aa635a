"""The directory of a table: its cells, their runs and results, and the locks of runs. Imports no torch.

The runs are ordinary run directories, whose `result.json` holds the results.

    table.json, table.csv, table.md             the results so far; rewritten after each run
    pretrained/DATA-MODEL/seed-N-SETTINGS/      teachers and scratch students
    cells/ROW/COLUMN/SETTINGS.json              the plan of the cell
    cells/ROW/COLUMN/seed-N-SETTINGS/           its runs
    .../seed-N-SETTINGS.failed.json             why the last attempt failed
    .../.seed-N-SETTINGS.lock                   held by the process that makes the run, or has it made
    .../.seed-N-SETTINGS.attempts.json          where a cluster has made the run
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import Field

from gapssg.errors import InputError
from gapssg.files import (
    check_writable,
    entries_in,
    is_file,
    is_folder,
    lock,
    make_folder,
    read_bounded,
    remove,
    write_json,
)
from gapssg.runs.results.common import RESULT
from gapssg.runs.results.distillation import DistillResult, load_training_result
from gapssg.runs.results.table import TableSummary
from gapssg.runs.results.training import PretrainResult
from gapssg.safe_paths import InsidePath, inside
from gapssg.stored import PositiveCount, Stored, Text

FORMAT = 1

Kept = TypeVar("Kept", bound=Stored)

TABLE = "table.json"
_LARGEST_FILE = 16 * 2**20
_FAILED = ".failed.json"
_RUN = re.compile(r"seed-([0-9]{1,10})-([0-9a-f]+)")

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=300)]


class _Format(Stored):
    format: PositiveCount


class CellPlan(Stored):
    """A cell of the table: everything that its runs do not record themselves."""

    format: int = FORMAT
    """Version of the table's directory."""
    row: Name
    recipe: Name
    data: Name
    """The name of its images."""
    teacher: Name
    """The teacher's architecture, as `student` is the student's."""
    student: Name
    budget: Name
    changes: tuple[str, ...] = ()
    """What --set, --image-size and --set-pretrain changed."""
    column: Name
    method: Name
    settings: Name
    """Hash of the settings of its runs."""
    teacher_settings: Name
    """Hash of the settings of the teacher's run, whose seed is 0."""
    scratch_settings: Name
    """Hash of the settings of the scratch student's runs."""
    departures: tuple[str, ...] = ()
    """How it departs from the published."""
    pretrain_departures: tuple[str, ...] = ()
    """How teacher and scratch student depart from it."""
    created: float = Field(ge=0)
    """When it was first asked for, in seconds since 1970."""
    asked: float | None = Field(default=None, ge=0)
    """When it was last asked for; older versions did not write it."""

    @property
    def last_asked(self) -> float:
        """When it was last asked for, as far as known."""
        return self.created if self.asked is None else self.asked


class Attempts(Stored):
    """Where a cluster has made a run."""

    attempts: int = Field(ge=1, le=10**9)
    """How often it was started or resumed."""
    host: Text
    """The host of the last attempt, as its device."""
    device: Text
    process: Text
    """Its process, as that signs locks."""


class Outcome(NamedTuple):
    """The result of a finished run."""

    run: str
    """Its directory, relative to the table's."""
    result: DistillResult | PretrainResult
    attempts: Attempts | None = None


class Failure(Stored):
    """Why the last attempt of a run failed."""

    seed: int
    message: str
    traceback: str | None = None
    """Of an unexpected error."""


class Runs(NamedTuple):
    """The runs of a cell, sorted by seed: the results of finished ones, and the failures."""

    outcomes: list[Outcome]
    failures: list[Failure]


class Ledger:
    """A table's directory."""

    def __init__(self, root: Path) -> None:
        self.root = inside(root)

    def check_startable(self) -> None:
        """Raise `InputError` if there are other files or a table of a newer format, or it is not writable."""
        if is_file(self.root / TABLE):
            self.check_format()
        elif self.root.is_dir() and any(not name.startswith(".") for name in entries_in(self.root)):
            raise InputError(f"{self.root} holds other files than a table; name another directory")
        check_writable(self.root)

    def begin(self) -> None:
        """Create the directory, or continue the table in it.

        Raises `InputError` as `check_startable`, and `RunError` if it cannot be created.
        """
        self.check_startable()
        make_folder(self.root)
        with self.writing() as root:  # first of all, so that other processes see a table
            if not is_file(root / TABLE):
                write_json(root / TABLE, TableSummary(format=FORMAT, rows=(), notes={}).model_dump(mode="json"))

    def check_format(self) -> None:
        """Raise `InputError` if there is no table, or it has a newer format than this version reads."""
        file = self.root / TABLE
        if not is_file(file):
            raise InputError(
                f"{self.root} holds no table; `gapssg table {shlex.quote(str(self.root))} --rows ...` starts one"
            )
        version = _read(_Format, file).format
        if version > FORMAT:
            raise InputError(
                f"{self.root} was written by a newer gapssg (format {version}; this one knows {FORMAT}); update gapssg"
            )

    def pretrained(self, data: str, architecture: str, seed: int, settings: str) -> InsidePath:
        """Return the run directory of a teacher or scratch student."""
        return self.root / "pretrained" / f"{data}-{architecture}" / f"seed-{seed}-{settings}"

    def cell(self, row: str, column: str, seed: int, settings: str) -> InsidePath:
        """Return the run directory of a cell."""
        return self.root / "cells" / row / column / f"seed-{seed}-{settings}"

    def save_plan(self, plan: CellPlan) -> None:
        """Write the plan of a cell, or raise `RunError`; an existing plan keeps its time of creation."""
        file = self.root / "cells" / plan.row / plan.column / f"{plan.settings}.json"
        if is_file(file):
            plan = plan.model_copy(update={"created": _read(CellPlan, file).created})
        make_folder(file.parent)
        write_json(file, plan.model_dump(mode="json", exclude_none=True))

    def plans(self) -> list[CellPlan]:
        """Return the cells, in the order in which they were first asked for; raise `InputError` if one is damaged."""
        columns = [column for row in _folders(self.root / "cells") for column in _folders(row)]
        files = [column / name for column in columns for name in entries_in(column) if _is_plan(name)]
        plans = [_read(CellPlan, file) for file in files]
        return sorted(plans, key=lambda plan: (plan.created, plan.row, plan.column))

    def runs(self, plan: CellPlan) -> Runs:
        """Return the runs of a cell."""
        return self._runs(f"cells/{plan.row}/{plan.column}", plan.settings)

    def teacher(self, plan: CellPlan) -> Runs:
        """Return the run of a cell's teacher."""
        runs = self._runs(f"pretrained/{plan.data}-{plan.teacher}", plan.teacher_settings)
        return runs._replace(outcomes=[run for run in runs.outcomes if run.result.seed == 0])

    def scratch(self, plan: CellPlan) -> Runs:
        """Return the runs of a cell's student on the real images."""
        return self._runs(f"pretrained/{plan.data}-{plan.student}", plan.scratch_settings)

    def _runs(self, folder: str, settings: str) -> Runs:
        path = self.root / folder
        runs = {name: _RUN.fullmatch(name.removesuffix(_FAILED)) for name in entries_in(path)}
        names = [name for name, match in runs.items() if match is not None and match[2] == settings]
        done = [name for name in names if not name.endswith(_FAILED) and is_done(path / name)]
        outcomes = [
            Outcome(f"{folder}/{name}", load_training_result(path / name), read_attempts(path / name)) for name in done
        ]
        failures = [_read(Failure, path / name) for name in names if name.endswith(_FAILED)]
        return Runs(
            sorted(outcomes, key=lambda outcome: outcome.result.seed),
            sorted(failures, key=lambda failure: failure.seed),
        )

    @contextmanager
    def claim(self, run: Path) -> Iterator[InsidePath]:
        """Lock a run until the block ends; yield its directory, which can be written only while the lock is held.

        Raises `Taken` if another process holds the lock, and `RunError` if it cannot be written.
        """
        folder = inside(run).parent
        make_folder(folder)
        with lock(folder / f".{run.name}.lock") as held:
            yield held.root / run.name

    @contextmanager
    def writing(self) -> Iterator[InsidePath]:
        """Wait for the lock of the table's own files, and hold it until the block ends.

        Yields the table's directory, whose files can be written only while the lock is held.
        """
        with lock(self.root / ".table.lock", wait=True) as held:
            yield held.root


def is_done(run: Path) -> bool:
    """Return whether a run has finished."""
    return is_file(inside(run) / RESULT)


def record_failure(run: Path, failure: Failure) -> Path:
    """Write why a run failed, and return the file; raise `RunError` if it cannot be written."""
    file = _failure_file(run)
    write_json(file, failure.model_dump(exclude_none=True))
    return file


def clear_failure(run: Path) -> None:
    """Remove the record of an earlier failure."""
    remove(_failure_file(run))


def record_attempt(run: Path, host: str, device: str, process: str) -> None:
    """Record where a run is started or resumed.

    Raises `InputError` if the previous record is damaged, and `RunError` if it cannot be written.
    """
    before = read_attempts(run)
    count = 1 if before is None else before.attempts + 1
    now = Attempts(attempts=count, host=host, device=device, process=process)
    make_folder(_attempts_file(run).parent)
    write_json(_attempts_file(run), now.model_dump())


def read_attempts(run: Path) -> Attempts | None:
    """Return where a cluster has made a run, None if none has; raise `InputError` if the record is damaged."""
    file = _attempts_file(run)
    return _read(Attempts, file) if is_file(file) else None


def clear_attempts(run: Path) -> None:
    """Remove the record of where a cluster has made a run."""
    if is_file(_attempts_file(run)):
        remove(_attempts_file(run))


def _attempts_file(run: Path) -> InsidePath:
    return inside(run).parent / f".{run.name}.attempts.json"


def _failure_file(run: Path) -> InsidePath:
    return inside(run).parent / f"{run.name}{_FAILED}"


def _is_plan(name: str) -> bool:
    return name.endswith(".json") and not name.endswith(_FAILED) and not name.startswith(".")


def _folders(folder: InsidePath) -> list[InsidePath]:
    return [folder / name for name in entries_in(folder) if is_folder(folder / name)]


def _read(kind: type[Kept], file: Path) -> Kept:
    return kind.read(read_bounded(file, _LARGEST_FILE), str(file))
