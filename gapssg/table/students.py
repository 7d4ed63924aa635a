"""The students of a line of a table, for commands that take runs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from gapssg.errors import InputError, shortened
from gapssg.files import is_file
from gapssg.safe_paths import inside
from gapssg.table.figures import line_name
from gapssg.table.ledger import TABLE, Ledger
from gapssg.table.summary import summarise


def is_table(path: Path) -> bool:
    """Return whether a directory holds a table."""
    return is_file(inside(path) / TABLE)


def students_of(table: Path, line: str | None) -> tuple[Path, ...]:
    """Return for each method in a line of a table its finished run with the lowest seed, in the table's order.

    Args:
        table: The directory of a table.
        line: The row, or the row with its budget and changes as in the names of the table's figures; None if the table
            has one line.

    Raises:
        InputError: The table is damaged, or has no or several such lines, or the line has no finished run.
    """
    ledger = Ledger(table)
    ledger.check_format()
    lines = summarise(ledger).rows
    chosen = [each for each in lines if line == line_name(each)] or [each for each in lines if line in (None, each.row)]
    if len(chosen) != 1:
        names = ", ".join(shortened(line_name(each)) for each in lines)
        raise InputError(f"{table} has {len(chosen)} such lines; choose one with --row: {names}")
    runs = tuple(table / entry.runs[0] for entry in chosen[0].columns if entry.runs)
    if not runs:
        raise InputError(f"{line_name(chosen[0])} in {table} has no finished run; continue it with gapssg table")
    return runs
