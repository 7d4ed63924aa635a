"""Figures of a row of the table: accuracy by epoch of all methods, and the gap between teacher and student.

They are figures 1a and 1b of Wang et al. (GapSSG, T-PAMI 2024), drawn from the curves in run directories.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from gapssg.errors import GapssgError, InputError, shortened
from gapssg.figures import COLUMN, DASHES, LINE_COLOURS, new_figure, write_figure
from gapssg.files import make_folder
from gapssg.runs.events import DistillationEpoch, read_finished
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.table import TableRow, TableSummary
from gapssg.safe_paths import inside
from gapssg.synthesis import method_classes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OWN_METHOD = "gapssg"
_MARKERS = ("o", "s", "^", "D", "v")
_MARKS_A_LINE = 6
_LONGEST_PARTICULARS = 100  # characters of a file's name
_GREY = "0.35"
_DERIVED, _INHERENT = "#56B4E9", "#E69F00"
_BEFORE, _AFTER = "#D55E00", "#0072B2"


@dataclass(frozen=True)
class RowCell:
    """A run of one method with one seed."""

    method: str
    """The label of the run in the figures: runs with the same label are seeds of one method."""
    seed: int
    """Its seed."""
    run: Path
    """A run directory of `distill`."""


@dataclass(frozen=True)
class RunCurves:
    """What a run recorded after each epoch."""

    epochs: int
    """The number of epochs of the whole run."""
    top1: Mapping[int, float]
    """The student's accuracy by epoch, in [0, 1], where it was evaluated."""
    gap_before: Mapping[int, float]
    """The reality gap by epoch, on the newest images before the student trained on them."""
    gap_after: Mapping[int, float]
    """The same afterwards."""
    teacher_top1: float | None
    """The teacher's accuracy, in [0, 1]; None without evaluation data."""
    pair: tuple[str, str]
    """The teacher's SHA-256 and the student's architecture."""


@dataclass(frozen=True)
class RowCurves:
    """The curves of a row."""

    methods: Mapping[str, Sequence[RunCurves]]
    """The curves of the seeds by method, in the order of the cells."""
    teacher_top1: float
    """The teacher's accuracy, in [0, 1]."""
    best_top1: float
    """The best accuracy of any student of the row after any epoch: the estimate of T*'s."""


class MeanCurve(NamedTuple):
    """Mean and sample standard deviation (n - 1; 0 for a single seed) over seeds, at ascending `x`."""

    x: list[float]
    mean: list[float]
    deviation: list[float]


def write_row_figures(row: str, cells: Sequence[RowCell], folder: Path) -> list[Path]:
    """Write `ROW-accuracy` and `ROW-gap` as PNG and SVG.

    `ROW-accuracy` has a line for each method, its student's top-1 accuracy (mean over the seeds, with a band of one
    standard deviation), and the teacher's accuracy as a horizontal line. The horizontal axis counts epochs if all runs
    have equally many, and otherwise shows the completed share of the run.

    `ROW-gap` shows one method, GapSSG or else the first. Its upper panel has the same two lines and between them the
    accuracy gap, split by a horizontal line for T*, the best teacher that this student could have. T* cannot be
    observed: the line is the best accuracy that any given run reached after any epoch, whatever its method, seed or
    length. Below it lies the derived gap, above it the inherent gap. **Both are estimates**:
    an unseen run may be better, so that the derived gap is rather larger than drawn and the inherent gap smaller; and
    the best of many evaluations was selected on the evaluation data, so that it is slightly optimistic. If a student
    was at least as good as the teacher, no inherent gap is drawn. The parts are differences of accuracies; the bounds
    of the paper are of the distilled risk. The lower panel shows the reality gap (the largest difference of a class
    probability between teacher and student, mean over the newest images) before and after the student trained on these
    images, mean and standard deviation over the seeds.

    Args:
        row: The name of the files.
        cells: The runs that are drawn; those without any accuracy are left out.
        folder: An existing folder for the files.

    Returns:
        The files.

    Raises:
        InputError: A run's files are missing or damaged, its teacher or student differs from the first run's, a seed
            of a method is given twice, or no cell has an accuracy.
        RunError: A file cannot be written.
    """
    if Path(row).name != row:
        raise InputError(f"{shortened(repr(row))} cannot name the files of a figure; leave out slashes")
    curves = read_row(cells)
    files = write_figure(folder, f"{row}-accuracy", lambda: accuracy_figure(curves))
    return files + write_figure(folder, f"{row}-gap", lambda: gap_figure(curves))


def write_table_figures(root: Path, summary: TableSummary) -> dict[str, str]:
    """Write the figures of every line of the table in `root` that has runs, into its folder `figures`.

    Returns by the name of a line why it has no figures: a run's files are damaged, its runs had different teachers, or
    a file cannot be written.
    """
    failed: dict[str, str] = {}
    names: list[str] = []
    for row in summary.rows:
        cells = [
            RowCell(entry.column, seed, inside(root) / run)
            for entry in row.columns
            for seed, run, top1 in zip(entry.seeds, entry.runs, entry.top1_by_seed, strict=True)
            if top1 is not None
        ]
        if cells:
            names.append(line_name(row))
            number = names.count(names[-1])
            name = names[-1] if number == 1 else f"{names[-1]}-{number}"
            try:
                make_folder(inside(root) / "figures")
                write_row_figures(name, cells, inside(root) / "figures")
            except GapssgError as error:
                failed[name] = str(error)
    return failed


def line_name(row: TableRow) -> str:
    """Return the name of the figures of a line: row, budget if it is not the full one, and changes."""
    particulars = re.sub(r"[^\w.-]+", "-", "-".join(row.particulars), flags=re.ASCII)
    return f"{row.row}-{particulars[:_LONGEST_PARTICULARS]}" if particulars else row.row


def read_row(cells: Sequence[RowCell]) -> RowCurves:
    """Read the curves that `write_row_figures` draws; raises as it does."""
    for (method, seed), runs in Counter((cell.method, cell.seed) for cell in cells).items():
        if runs > 1:
            raise InputError(f"seed {seed} of {shortened(method)} is given twice; give one run of each")
    read = [(cell, read_curves(cell.run)) for cell in cells]
    drawn = [(cell, curves) for cell, curves in read if curves.top1 and curves.teacher_top1 is not None]
    if not drawn:
        raise InputError("no run of the row has an accuracy to draw; distil with --eval-data")
    for cell, curves in drawn:
        if curves.pair != drawn[0][1].pair:
            raise InputError(
                f"{cell.run} has another teacher or student than {drawn[0][0].run}; a figure compares runs of one pair"
            )
    methods: dict[str, list[RunCurves]] = {}
    for cell, curves in drawn:
        methods.setdefault(cell.method, []).append(curves)
    return RowCurves(
        methods,
        # The same file, but possibly evaluated on different devices.
        fmean(curves.teacher_top1 for _, curves in drawn if curves.teacher_top1 is not None),
        max(top1 for _, curves in drawn for top1 in curves.top1.values()),
    )


def read_curves(run: Path) -> RunCurves:
    """Read what a finished run, which may be untrusted, recorded after each epoch.

    Raises `InputError` if `events.jsonl` or `result.json` is missing or damaged, or the run is not finished.
    """
    result = DistillResult.load(run)
    epochs = read_finished(run, DistillationEpoch).epochs
    return RunCurves(
        epochs=epochs[-1].epochs,
        top1={event.epoch: event.top1 for event in epochs if event.top1 is not None},
        gap_before={event.epoch: event.reality_gap_before for event in epochs},
        gap_after={event.epoch: event.reality_gap_after for event in epochs},
        teacher_top1=result.teacher.top1,
        pair=(result.teacher.sha256, result.student.architecture),
    )


def mean_curve(curves: Sequence[Mapping[float, float]]) -> MeanCurve:
    """Return mean and standard deviation of curves, each a mapping from x to y.

    The x are those of any curve within the range of all curves; missing values are interpolated linearly.
    """
    import numpy as np

    first, last = max(min(curve) for curve in curves), min(max(curve) for curve in curves)
    x = [each for each in sorted(set().union(*curves)) if first <= each <= last]
    values = [np.interp(x, sorted(curve), [curve[each] for each in sorted(curve)]).tolist() for curve in curves]
    columns = list(zip(*values, strict=True))
    return MeanCurve(
        x, [fmean(column) for column in columns], [stdev(column) if len(column) > 1 else 0.0 for column in columns]
    )


def accuracy_figure(row: RowCurves) -> Figure:
    """Draw the accuracy of all methods by epoch."""
    figure = new_figure(COLUMN, 2.5 + 0.11 * (len(row.methods) + 1))
    axes = figure.add_subplot()
    across = _Across.of([run for runs in row.methods.values() for run in runs])
    for method, runs in row.methods.items():
        look = _look(method, row.methods)
        _draw_mean(axes, mean_curve([across.percent(run, run.top1) for run in runs]), label=method, **look)
    _draw_teacher(axes, row)
    across.label(axes)
    axes.set_ylabel("Top-1 accuracy, %")
    longest = max(map(len, row.methods))
    columns = 3 if longest <= 16 else 2 if longest <= 24 else 1
    figure.legend(loc="outside lower center", ncols=columns, title=_seeds(row.methods.values()), **_LEGEND)
    return figure


def gap_figure(row: RowCurves) -> Figure:
    """Draw the accuracy gap of one method in its estimated parts, and below it the reality gap."""
    method = _OWN_METHOD if _OWN_METHOD in row.methods else next(iter(row.methods))
    runs = row.methods[method]
    across = _Across.of(runs)
    figure = new_figure(COLUMN, 4.0)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    student = mean_curve([across.percent(run, run.top1) for run in runs])
    teacher, best = 100 * row.teacher_top1, 100 * row.best_top1
    _draw_teacher(upper, row)
    if best < teacher:
        upper.fill_between([student.x[0], student.x[-1]], best, teacher, color=_INHERENT, alpha=0.45, linewidth=0,
                           label=f"inherent gap, estimated: {teacher - best:.1f} points")  # fmt: skip
    above = "" if best < teacher else ", not below the teacher"
    upper.axhline(best, color="black", linestyle=":", linewidth=1.0, label=f"estimate of T*: best student{above}")
    upper.fill_between(student.x, student.mean, best, color=_DERIVED, alpha=0.35, linewidth=0,
                       label=f"derived gap, estimated: {best - student.mean[-1]:.1f} points at the end")  # fmt: skip
    _draw_mean(upper, student, label=f"student of {method}", color="black", marker="o")
    upper.set_ylabel("Top-1 accuracy, %")
    for values, label, look in (
        ([run.gap_before for run in runs], "before distillation", {"color": _BEFORE, "linestyle": "--", "marker": "s"}),
        ([run.gap_after for run in runs], "after distillation", {"color": _AFTER, "marker": "o"}),
    ):
        placed = [across.place(run, gap) for run, gap in zip(runs, values, strict=True)]
        _draw_mean(lower, mean_curve(placed), label=label, **look)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("Reality gap")
    across.label(lower)
    figure.align_ylabels()
    lower.legend(loc="best", **_LEGEND)
    title = f"{_seeds([runs])}\naccuracy gap at the end: {teacher - student.mean[-1]:.1f} points"
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=1, title=title, **_LEGEND)
    return figure


class _Across(NamedTuple):
    """The horizontal axis: epochs, or the completed share in percent if runs have different lengths."""

    is_share: bool

    @classmethod
    def of(cls, runs: Sequence[RunCurves]) -> _Across:
        return cls(len({run.epochs for run in runs}) > 1)

    def place(self, run: RunCurves, curve: Mapping[int, float]) -> dict[float, float]:
        return {100 * epoch / run.epochs if self.is_share else float(epoch): y for epoch, y in curve.items()}

    def percent(self, run: RunCurves, curve: Mapping[int, float]) -> dict[float, float]:
        return {x: 100 * y for x, y in self.place(run, curve).items()}

    def label(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set_xlabel("Share of the run's epochs, %" if self.is_share else "Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


_LEGEND: dict[str, Any] = {"frameon": False, "title_fontsize": 6.5, "handlelength": 2.6, "columnspacing": 1.2}


def _look(method: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return the colour, line and marker of a method, the same in every row; GapSSG has its own colour."""
    *colours, own = LINE_COLOURS
    if method == _OWN_METHOD:
        return {"color": own, "marker": "o", "linewidth": 1.5, "zorder": 3}
    known = [method_class.model_fields["name"].default for method_class in method_classes()]
    names = [*known, *(name for name in methods if name not in known)]
    number = [name for name in names if name != _OWN_METHOD].index(method)
    repeats_after = math.lcm(len(colours), len(DASHES))  # then each colour gets the next dash
    return {
        "color": colours[number % len(colours)],
        "linestyle": DASHES[(number + number // repeats_after) % len(DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linewidth": 1.0,
    }


def _draw_mean(axes: Axes, curve: MeanCurve, **look: Any) -> None:
    spacing = -(-len(curve.x) // _MARKS_A_LINE)
    # The markers of lines that coincide are drawn side by side.
    first = len(axes.lines) * spacing // 4 % spacing
    axes.plot(curve.x, curve.mean, markersize=2.8, markevery=(first, spacing), **look)
    if any(curve.deviation):
        low = [mean - deviation for mean, deviation in zip(curve.mean, curve.deviation, strict=True)]
        high = [mean + deviation for mean, deviation in zip(curve.mean, curve.deviation, strict=True)]
        axes.fill_between(curve.x, low, high, color=look["color"], alpha=0.18, linewidth=0)


def _draw_teacher(axes: Axes, row: RowCurves) -> None:
    level = 100 * row.teacher_top1
    axes.axhline(level, color=_GREY, linestyle=(0, (6, 2)), linewidth=1.0, label=f"teacher: {level:.1f} %")


def _seeds(methods: Iterable[Sequence[RunCurves]]) -> str:
    counts = {len(runs) for runs in methods}
    if counts == {1}:
        return "one seed"
    many = str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"mean of {many} seeds, band: one standard deviation"
