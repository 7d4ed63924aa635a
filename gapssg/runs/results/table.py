"""The result of `table`, and the content of `table.json`."""

from __future__ import annotations

from typing import Literal

from gapssg.stored import PositiveCount, Stored, Text


class MadeWhere(Stored):
    """Where a cluster has made a run."""

    seed: int
    host: Text
    """The host of the last attempt, as its device."""
    device: Text
    attempts: PositiveCount
    """How often the run was started or resumed."""


class TableEntry(Stored):
    """The results of a cell: mean and sample standard deviation, over seeds, of top-1 after the last epoch."""

    column: Text
    top1: float | None
    deviation: float | None
    """None for fewer than two seeds."""
    published_top1: float | None
    published_deviation: float | None
    seeds: tuple[int, ...]
    runs: tuple[str, ...]
    top1_by_seed: tuple[float | None, ...]
    seconds: float | None
    """Mean duration of a run."""
    device: Text | None
    marks: tuple[str, ...]
    """Notes on differences to the published figure, and on students that are not usable."""
    failed: tuple[int, ...]
    """Seeds of failed runs."""
    not_usable: tuple[int, ...]
    """Seeds of runs whose student is not usable."""
    where: tuple[MadeWhere, ...] = ()
    """Where the runs were made, those on a cluster."""


class TrainedEntry(TableEntry):
    """A model trained on real images: the teacher, or the student for comparison."""

    architecture: Text


class MethodEntry(TableEntry):
    """A student distilled without data."""

    method: str
    settings: str
    """Hash of the settings of the runs."""


class TableRow(Stored):
    """A row of the table for one budget and one set of changed settings."""

    row: Text
    recipe: str
    budget: str
    changes: tuple[str, ...]
    data: Text
    teacher: TrainedEntry
    scratch: TrainedEntry
    columns: tuple[MethodEntry, ...]

    @property
    def entries(self) -> tuple[TableEntry, ...]:
        """Teacher, scratch student and methods."""
        return (self.teacher, self.scratch, *self.columns)

    @property
    def particulars(self) -> tuple[str, ...]:
        """The budget, unless it is the full one, and the changed settings."""
        return self.changes if self.budget == "full" else (self.budget, *self.changes)


class TableSummary(Stored):
    """The content of `table.json`: the results of a table so far."""

    format: int
    rows: tuple[TableRow, ...]
    notes: dict[str, str]
    """The text of each mark."""


class TableResult(TableSummary):
    """The result of `table`."""

    command: Literal["table"] = "table"
    failed: dict[str, Text]
    """Why a run failed, by its label."""
    elsewhere: dict[str, Text]
    """The other process that makes a run, by its label."""
