"""The results of a table so far, with their departures from the published. Imports no torch."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Iterable, Sequence

from gapssg.errors import shortened
from gapssg.files import write_atomically
from gapssg.runs.results.table import MadeWhere, MethodEntry, TableEntry, TableRow, TableSummary, TrainedEntry
from gapssg.table.ledger import FORMAT, TABLE, CellPlan, Ledger, Outcome, Runs
from gapssg.table.rows import Figures, published_figures_of
from gapssg.text import no_formula, printable

_CSV_COLUMNS = (
    *("row", "budget", "changes", "column", "top1", "deviation", "published_top1", "published_deviation"),
    *("seeds", "seconds", "device", "marks", "notes"),
)
_LONGEST_REASON = 300
# An underscore within a word is not markup.
_MARKUP = re.compile(r"[\\`*\[\]<>&|~$!]|(?<!\w)_|_(?!\w)")


def summarise(ledger: Ledger) -> TableSummary:
    """Return the content of `table.json`, the results of a table; raise `InputError` if a file of it is damaged."""
    lines: dict[tuple[str, str, tuple[str, ...]], list[CellPlan]] = {}
    for plan in ledger.plans():
        lines.setdefault((plan.row, plan.budget, plan.changes), []).append(plan)
    notes: list[str] = []
    rows = tuple(_summarise_row(ledger, plans, notes) for plans in lines.values())
    return TableSummary(format=FORMAT, rows=rows, notes={_mark(index): note for index, note in enumerate(notes)})


def write_summary(ledger: Ledger) -> TableSummary:
    """Rewrite `table.json`, `table.csv` and `table.md`; return the summary.

    Raises `InputError` if a file of the table is damaged, and `RunError` if a file cannot be written.
    """
    with ledger.writing() as root:
        summary = summarise(ledger)
        write_atomically(root / "table.csv", to_csv(summary).encode())
        write_atomically(root / "table.md", to_markdown(summary).encode())
        text = json.dumps(summary.model_dump(mode="json"), indent=2, allow_nan=False, ensure_ascii=False)
        write_atomically(root / TABLE, f"{text}\n".encode())
    return summary


def to_csv(summary: TableSummary) -> str:
    """Return CSV with a line for each row and column."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in summary.rows:
        for entry in row.entries:
            notes = "; ".join(summary.notes[mark] for mark in entry.marks)
            values = (
                *(row.row, row.budget, "; ".join(row.changes), entry.column, entry.top1, entry.deviation),
                *(entry.published_top1, entry.published_deviation, " ".join(map(str, entry.seeds))),
                *(entry.seconds, entry.device, " ".join(entry.marks), notes),
            )
            writer.writerow(map(_as_text, values))
    return text.getvalue()


def to_markdown(summary: TableSummary) -> str:
    """Return Markdown: accuracies with rows and columns as published, then seconds, then footnotes."""
    names = list(dict.fromkeys(entry.column for row in summary.rows for entry in row.entries))
    accuracies, seconds = [], []
    for row in summary.rows:
        by_name = {entry.column: entry for entry in row.entries}
        particulars = [_as_markdown(each) for each in row.particulars]
        label = f"{row.row} ({', '.join(particulars)})" if particulars else row.row
        accuracies.append([label, *(accuracy(by_name[name]) if name in by_name else "" for name in names)])
        times = [by_name[name].seconds if name in by_name else None for name in names]
        seconds.append([label, *("" if time is None else f"{time:.0f}" for time in times)])
    parts = [
        "Top-1 accuracy in % after the last epoch: mean and sample standard deviation over the seeds, whose number is "
        "n; in brackets the published figure, which is of the best epoch on the test images.",
        _markdown_table(["row", *names], accuracies),
        "Seconds of a run, mean over seeds.",
        _markdown_table(["row", *names], seconds),
        *(f"{mark}: {_as_markdown(note)}." for mark, note in summary.notes.items()),
    ]
    return "\n\n".join(parts) + "\n"


def accuracy(entry: TableEntry) -> str:
    """Return accuracy, number of seeds, published accuracy and marks: `93.13 ± 0.08, n=3 (93.95 ± 0.10) a b`."""
    parts = [with_deviation(entry.top1, entry.deviation) + (f", n={len(entry.seeds)}" if entry.seeds else "")]
    if entry.published_top1 is not None:
        parts.append(f"({with_deviation(entry.published_top1, entry.published_deviation)})")
    return " ".join([*parts, *entry.marks])


def with_deviation(mean: float | None, deviation: float | None) -> str:
    """Return mean and standard deviation, given as fractions, in percent."""
    if mean is None:
        return "-"
    return f"{100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def _summarise_row(ledger: Ledger, plans: Sequence[CellPlan], notes: list[str]) -> TableRow:
    newest = max(plans, key=lambda plan: plan.last_asked)
    # A line compares students of one teacher. Of cells with the same name, the one last asked for wins.
    shown = {}
    for plan in sorted(plans, key=lambda plan: plan.last_asked):
        if plan.teacher_settings == newest.teacher_settings:
            shown[plan.column] = plan
    figures = published_figures_of(newest.recipe)
    pretrained = newest.pretrain_departures
    teacher = _entry("teacher", ledger.teacher(newest), figures, pretrained, notes)
    scratch = _entry("scratch", ledger.scratch(newest), figures, pretrained, notes)
    columns = []
    for plan in sorted(shown.values(), key=lambda plan: plan.created):
        entry = _entry(plan.column, ledger.runs(plan), figures, plan.departures, notes)
        columns.append(MethodEntry(**dict(entry), method=plan.method, settings=plan.settings))
    return TableRow(
        row=newest.row,
        recipe=newest.recipe,
        budget=newest.budget,
        changes=newest.changes,
        data=newest.data,
        teacher=TrainedEntry(**dict(teacher), architecture=newest.teacher),
        scratch=TrainedEntry(**dict(scratch), architecture=newest.student),
        columns=tuple(columns),
    )


def _entry(column: str, runs: Runs, figures: Figures, departures: Iterable[str], notes: list[str]) -> TableEntry:
    results, failures = [run.result for run in runs.outcomes], runs.failures
    by_seed = [result.model.top1 for result in results]
    top1 = [each for each in by_seed if each is not None]
    remarks = list(departures)
    if failures:
        first = failures[0]
        remarks.append(f"failed with {len(failures)} of the seeds (seed {first.seed}: {first.message.rstrip('.')})")
    unusable = [result for result in results if result.failures]
    if unusable:
        why = shortened(unusable[0].failures[0], _LONGEST_REASON)
        remarks.append(f"not usable with {len(unusable)} of the seeds (seed {unusable[0].seed}: {why})")
    for remark in remarks:
        if remark not in notes:
            notes.append(remark)
    return TableEntry(
        column=column,
        top1=statistics.fmean(top1) if top1 else None,
        deviation=statistics.stdev(top1) if len(top1) > 1 else None,
        published_top1=figures.top1.get(column),
        published_deviation=figures.deviation.get(column),
        seeds=tuple(result.seed for result in results),
        runs=tuple(run.run for run in runs.outcomes),
        top1_by_seed=tuple(by_seed),
        seconds=statistics.fmean(result.timing.total for result in results) if results else None,
        device=" and ".join(sorted({result.device for result in results})) or None,
        marks=tuple(_mark(notes.index(remark)) for remark in remarks),
        failed=tuple(failure.seed for failure in failures),
        not_usable=tuple(result.seed for result in unusable),
        where=tuple(_made_where(run) for run in runs.outcomes if run.attempts is not None),
    )


def _made_where(run: Outcome) -> MadeWhere:
    assert run.attempts is not None
    made = run.attempts
    return MadeWhere(seed=run.result.seed, host=made.host, device=made.device, attempts=made.attempts)


def _mark(index: int) -> str:
    """Return the name of a footnote: a, b, ..., z, aa, ab, ..."""
    name = ""
    while index >= 0:
        name = chr(ord("a") + index % 26) + name
        index = index // 26 - 1
    return name


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _as_text(value: object) -> object:
    """Escape an untrusted text so that a spreadsheet does not take it for a formula."""
    return no_formula(printable(value)) if isinstance(value, str) else value


def _as_markdown(text: str) -> str:
    """Escape an untrusted text so that Markdown shows it unchanged."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))
