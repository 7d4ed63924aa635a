"""What a table has come to so far: figures, deviations, and what is not as published. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gapssg.errors import shortened
from gapssg.files import write_atomically
from gapssg.table.ledger import FORMAT, TABLE, CellPlan, Failure, Ledger, Outcome
from gapssg.table.rows import Figures, published_figures_of
from gapssg.text import printable

_CSV_COLUMNS = (
    *("row", "budget", "changes", "column", "top1", "deviation", "published_top1", "published_deviation"),
    *("seeds", "seconds", "device", "marks", "notes"),
)
_LONGEST_REASON = 300
_FORMULAS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the last four as Asian scripts write them
# Within a word an underscore is no markup.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~$!]|(?<!\w)_|_(?!\w)")


def summarise(ledger: Ledger) -> dict[str, Any]:
    """Return what the runs of a table reached: what `table.json` holds.

    Returns:
        `rows`: one for each row, budget and set of changes, each with `teacher`, `scratch` and the methods under
        `columns`. Accuracies are fractions in [0, 1] after the last epoch: `top1` the mean over the seeds, `deviation`
        the sample standard deviation (None for less than two seeds). `seconds` are the mean of a run. `marks` name the
        footnotes in `notes` that say in what a figure is not what was published, and why a student is not usable.

    Raises:
        InputError: A file of the table is damaged.
    """
    lines: dict[tuple[str, str, tuple[str, ...]], list[CellPlan]] = {}
    for plan in ledger.plans():
        lines.setdefault((plan.row, plan.budget, plan.changes), []).append(plan)
    notes: list[str] = []
    rows = [_summarise_row(ledger, plans, notes) for plans in lines.values()]
    return {"format": FORMAT, "rows": rows, "notes": {_mark(index): note for index, note in enumerate(notes)}}


def write_summary(ledger: Ledger) -> dict[str, Any]:
    """Write `table.json`, `table.csv` and `table.md` anew, and return the summary.

    Raises:
        InputError: A file of the table is damaged.
        RunError: The disk refuses.
    """
    with ledger.writing() as root:
        summary = summarise(ledger)
        write_atomically(root / "table.csv", to_csv(summary).encode())
        write_atomically(root / "table.md", to_markdown(summary).encode())
        text = json.dumps(summary, indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(root / TABLE, f"{text}\n".encode())
    return summary


def to_csv(summary: dict[str, Any]) -> str:
    """Return a line for each row and column."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in summary["rows"]:
        for entry in entries_of(row):
            lists = {
                "changes": "; ".join(row["changes"]),
                "seeds": " ".join(map(str, entry["seeds"])),
                "marks": " ".join(entry["marks"]),
                "notes": "; ".join(summary["notes"][mark] for mark in entry["marks"]),
            }
            writer.writerow({key: _as_text(value) for key, value in {**row, **entry, **lists}.items()})
    return text.getvalue()


def to_markdown(summary: dict[str, Any]) -> str:
    """Return the accuracies with rows and columns as published, then the seconds, then the footnotes."""
    names = list(dict.fromkeys(entry["column"] for row in summary["rows"] for entry in entries_of(row)))
    accuracies, seconds = [], []
    for row in summary["rows"]:
        by_name = {entry["column"]: entry for entry in entries_of(row)}
        particulars = [_as_markdown(each) for each in particulars_of(row)]
        label = f"{row['row']} ({', '.join(particulars)})" if particulars else row["row"]
        accuracies.append([label, *(accuracy(by_name[name]) if name in by_name else "" for name in names)])
        times = [by_name[name]["seconds"] if name in by_name else None for name in names]
        seconds.append([label, *("" if time is None else f"{time:.0f}" for time in times)])
    parts = [
        "Top-1 accuracy in % after the last epoch, mean and standard deviation over seeds; in brackets the published.",
        _markdown_table(["row", *names], accuracies),
        "Seconds of a run, mean over seeds.",
        _markdown_table(["row", *names], seconds),
        *(f"{mark}: {_as_markdown(note)}." for mark, note in summary["notes"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def particulars_of(row: Mapping[str, Any]) -> list[str]:
    """Return what tells a line from others of its row: the budget, if it is not the full one, and the changes."""
    return [*([] if row["budget"] == "full" else [row["budget"]]), *row["changes"]]


def entries_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return teacher, scratch student and methods of a row."""
    return [row["teacher"], row["scratch"], *row["columns"]]


def accuracy(entry: dict[str, Any]) -> str:
    """Return a figure as people read it: `93.13 ± 0.08 (93.95 ± 0.10) a b`, all but the marks in percent."""
    parts = [with_deviation(entry["top1"], entry["deviation"])]
    if entry["published_top1"] is not None:
        parts.append(f"({with_deviation(entry['published_top1'], entry['published_deviation'])})")
    return " ".join([*parts, *entry["marks"]])


def with_deviation(mean: float | None, deviation: float | None) -> str:
    """Return mean and deviation, fractions, in percent."""
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _summarise_row(ledger: Ledger, plans: Sequence[CellPlan], notes: list[str]) -> dict[str, Any]:
    newest = max(plans, key=lambda plan: plan.last_asked)
    # A line compares students of one teacher. Of two cells with one name, it has the one that was last asked for.
    shown = {}
    for plan in sorted(plans, key=lambda plan: plan.last_asked):
        if plan.teacher_settings == newest.teacher_settings:
            shown[plan.column] = plan
    figures = published_figures_of(newest.recipe)
    pretrained = newest.pretrain_departures
    teacher = _entry("teacher", ledger.teacher(newest), ledger.teacher_failures(newest), figures, pretrained, notes)
    scratch = _entry("scratch", ledger.scratch(newest), ledger.scratch_failures(newest), figures, pretrained, notes)
    columns = []
    for plan in sorted(shown.values(), key=lambda plan: plan.created):
        runs, failures = ledger.outcomes(plan), ledger.failures(plan)
        entry = _entry(plan.column, runs, failures, figures, plan.departures, notes)
        columns.append({**entry, "method": plan.method, "settings": plan.settings})
    return {
        "row": newest.row,
        "recipe": newest.recipe,
        "budget": newest.budget,
        "changes": list(newest.changes),
        "data": newest.data,
        "teacher": {**teacher, "architecture": newest.teacher},
        "scratch": {**scratch, "architecture": newest.student},
        "columns": columns,
    }


def _entry(
    column: str,
    runs: Sequence[Outcome],
    failures: Sequence[Failure],
    figures: Figures,
    departures: Iterable[str],
    notes: list[str],
) -> dict[str, Any]:
    top1 = [run.top1 for run in runs if run.top1 is not None]
    remarks = list(departures)
    if failures:
        first = failures[0]
        remarks.append(f"failed with {len(failures)} of the seeds (seed {first.seed}: {first.message.rstrip('.')})")
    unusable = [run for run in runs if run.failures]
    if unusable:
        first_run = unusable[0]
        why = shortened(first_run.failures[0], _LONGEST_REASON)
        remarks.append(f"not usable with {len(unusable)} of the seeds (seed {first_run.seed}: {why})")
    for remark in remarks:
        if remark not in notes:
            notes.append(remark)
    return {
        "column": column,
        "top1": statistics.fmean(top1) if top1 else None,
        "deviation": statistics.stdev(top1) if len(top1) > 1 else None,
        "published_top1": figures.top1.get(column),
        "published_deviation": figures.deviation.get(column),
        "seeds": [run.seed for run in runs],
        "runs": [run.run for run in runs],
        "top1_by_seed": [run.top1 for run in runs],
        "seconds": statistics.fmean(run.seconds for run in runs) if runs else None,
        "device": " and ".join(sorted({run.device for run in runs})) or None,
        "marks": [_mark(notes.index(remark)) for remark in remarks],
        "failed": [failure.seed for failure in failures],
        "not_usable": [run.seed for run in unusable],
    }


def _mark(index: int) -> str:
    """Name a footnote: a, b, ..., z, aa, ab, ..."""
    name = ""
    while index >= 0:
        name = chr(ord("a") + index % 26) + name
        index = index // 26 - 1
    return name


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_text(value: Any) -> Any:
    """Return a text, which may be a stranger's, so that a spreadsheet takes it for no formula."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULAS) else text


def _as_markdown(text: str) -> str:
    """Return a text, which may be a stranger's, so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))
