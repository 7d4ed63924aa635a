"""Figures of a row of the table: accuracy by epoch of all methods, and the gap between teacher and student.

They are figures 1a and 1b of Wang et al. (GapSSG, T-PAMI 2024), of one's own runs. Curves are read from run
directories; nothing else of a run is needed to draw them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from gapssg.errors import GapssgError, InputError, shortened
from gapssg.figures import COLUMN, DASHES, LINE_COLOURS, new_figure, write_figure
from gapssg.files import make_folder
from gapssg.runs.events import DistillationEpoch, read_finished
from gapssg.runs.results import DistillResult, TableRow, TableSummary
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
    """A run of one method with one seed.

    Attributes:
        method: What the run is called in the figures: equal names are seeds of one method.
        seed: Of the run.
        run: A run directory of `distill`.
    """

    method: str
    seed: int
    run: Path


@dataclass(frozen=True)
class RunCurves:
    """What a run recorded after each epoch; shares in [0, 1], by epochs done.

    Attributes:
        epochs: Of the whole run.
        top1: The student's accuracy, where it was evaluated.
        gap_before: The reality gap on the newest images before the student trained on them.
        gap_after: The same after it.
        teacher_top1: The teacher's accuracy; None without evaluation data.
        pair: The teacher's SHA-256 and the student's architecture.
    """

    epochs: int
    top1: Mapping[int, float]
    gap_before: Mapping[int, float]
    gap_after: Mapping[int, float]
    teacher_top1: float | None
    pair: tuple[str, str]


@dataclass(frozen=True)
class RowCurves:
    """The curves of a row.

    Attributes:
        methods: One entry a seed of each method, in the order of the cells.
        teacher_top1: The teacher's accuracy, in [0, 1].
        best_top1: The best accuracy that any student of the row had after any epoch: the estimate of T*'s.
    """

    methods: Mapping[str, Sequence[RunCurves]]
    teacher_top1: float
    best_top1: float


class MeanCurve(NamedTuple):
    """Mean and standard deviation over seeds.

    Attributes:
        x: Where they are taken, ascending.
        mean: One a place.
        deviation: The sample's (n - 1); zeros for a single seed.
    """

    x: list[float]
    mean: list[float]
    deviation: list[float]


def write_row_figures(
    row: str, cells: Sequence[RowCell], folder: Path, *, other_runs: Iterable[RowCell] = ()
) -> list[Path]:
    """Write `ROW-accuracy` and `ROW-gap` as PNG and SVG.

    `ROW-accuracy` has a line for each method: its student's top-1 accuracy, the mean over the seeds with a band of
    one standard deviation, and the teacher's as a level line. The axis across counts epochs if all runs have equally
    many, and else shows the share of the run that is done.

    `ROW-gap` is of one method, GapSSG or else the first. Its upper panel shows the same two lines and between them the
    accuracy gap, split by a level line that stands for T*, the best teacher that this student could have. T* cannot
    be observed: the line is the best accuracy that any run given here had after any epoch, whatever its method, seed
    or length. What is between it and the student's line is drawn as the derived gap, what is between it and the
    teacher's as the inherent gap. **Both are estimates.** A run that nobody made may have been better, so the
    derived gap is rather larger than drawn and the inherent gap smaller; on the other hand, the best of many
    evaluations was chosen by the evaluation data and flatters a little. Where a student was at least as good as the
    teacher, there is no inherent gap to be seen, and none is drawn. The parts are differences of accuracies; the
    bounds of the paper are of the distilled risk. The lower panel shows the reality gap (the largest difference of a
    class probability between teacher and student, mean over the newest images) before and after the student trained
    on these images, mean and standard deviation over the seeds.

    Args:
        row: The files' name.
        cells: The runs that are drawn; those without a single accuracy are left out.
        folder: Where the files are written; it exists.
        other_runs: More runs of the same student, such as longer ones, which count for T* and are not drawn.

    Returns:
        The files.

    Raises:
        InputError: A run's files are missing or damaged, its teacher or student is another than the first one's, a
            seed of a method is given twice, or no cell has an accuracy.
        RunError: A file cannot be written.
    """
    if Path(row).name != row:
        raise InputError(f"{shortened(repr(row))} cannot name the files of a figure; leave out slashes")
    curves = read_row(cells, other_runs)
    files = write_figure(folder, f"{row}-accuracy", lambda: accuracy_figure(curves))
    return files + write_figure(folder, f"{row}-gap", lambda: gap_figure(curves))


def write_table_figures(root: Path, summary: TableSummary) -> dict[str, str]:
    """Write the figures of every line of a table that has runs, into its folder `figures`.

    Args:
        root: The table's directory.
        summary: What its `table.json` holds.

    Returns:
        By the name of a line the sentence that says why it has no figures: a run's files are damaged, its runs had
        different teachers, or a file cannot be written.
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
            name = _line_name(row)
            names.append(name)
            again = f"-{names.count(name)}" if names.count(name) > 1 else ""
            try:
                make_folder(inside(root) / "figures")
                write_row_figures(f"{name}{again}", cells, inside(root) / "figures")
            except GapssgError as error:
                failed[f"{name}{again}"] = str(error)
    return failed


def _line_name(row: TableRow) -> str:
    """Name the figures of a line: by row, budget if it is not the full one, and changes."""
    particulars = re.sub(r"[^\w.-]+", "-", "-".join(row.particulars), flags=re.ASCII)
    return f"{row.row}-{particulars[:_LONGEST_PARTICULARS]}" if particulars else row.row


def read_row(cells: Sequence[RowCell], other_runs: Iterable[RowCell] = ()) -> RowCurves:
    """Read the curves of a row, as `write_row_figures` draws them.

    Raises:
        InputError: As there.
    """
    keys = [(cell.method, cell.seed) for cell in cells]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"seed {key[1]} of {shortened(key[0])} is there twice; give one run of each")
    read = [(cell, read_curves(cell.run)) for cell in (*cells, *other_runs)]
    evaluated = [(cell, curves) for cell, curves in read if curves.top1 and curves.teacher_top1 is not None]
    drawn = [(cell, curves) for cell, curves in evaluated if cell in cells]
    if not drawn:
        raise InputError("no run of the row has an accuracy to draw; distil with --eval-data")
    for cell, curves in evaluated:
        if curves.pair != drawn[0][1].pair:
            raise InputError(
                f"{cell.run} has another teacher or student than {drawn[0][0].run}; a figure compares runs of one pair"
            )
    methods: dict[str, list[RunCurves]] = {}
    for cell, curves in drawn:
        methods.setdefault(cell.method, []).append(curves)
    return RowCurves(
        methods,
        # One file, but perhaps evaluated on different devices.
        fmean(curves.teacher_top1 for _, curves in drawn if curves.teacher_top1 is not None),
        max(top1 for _, curves in evaluated for top1 in curves.top1.values()),
    )


def read_curves(run: Path) -> RunCurves:
    """Read what a finished run recorded after each epoch; its files may be a stranger's.

    Raises:
        InputError: `events.jsonl` or `result.json` is missing or damaged, or the run is not finished.
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
    """Return mean and standard deviation of curves, each a value by place.

    Places are those of any curve that lie within all; where a curve has none there, it is taken from the straight line
    between its neighbours.
    """
    import numpy as np

    first, last = max(min(curve) for curve in curves), min(max(curve) for curve in curves)
    x = [place for place in sorted(set().union(*curves)) if first <= place <= last]
    values = [np.interp(x, sorted(curve), [curve[place] for place in sorted(curve)]).tolist() for curve in curves]
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
    """Draw the accuracy gap of one method in its estimated parts, and its reality gap below."""
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
        shares = [across.share(run, gap) for run, gap in zip(runs, values, strict=True)]
        _draw_mean(lower, mean_curve(shares), label=label, **look)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("Reality gap")
    across.label(lower)
    figure.align_ylabels()
    lower.legend(loc="best", **_LEGEND)
    title = f"{_seeds([runs])}\naccuracy gap at the end: {teacher - student.mean[-1]:.1f} points"
    figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=1, title=title, **_LEGEND)
    return figure


class _Across(NamedTuple):
    """The axis across: epochs, or the share of the run where runs have different lengths."""

    is_share: bool

    @classmethod
    def of(cls, runs: Sequence[RunCurves]) -> _Across:
        return cls(len({run.epochs for run in runs}) > 1)

    def share(self, run: RunCurves, curve: Mapping[int, float]) -> dict[float, float]:
        """Return a curve over this axis."""
        return {100 * epoch / run.epochs if self.is_share else float(epoch): y for epoch, y in curve.items()}

    def percent(self, run: RunCurves, curve: Mapping[int, float]) -> dict[float, float]:
        return {x: 100 * y for x, y in self.share(run, curve).items()}

    def label(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        axes.set_xlabel("Share of the run's epochs, %" if self.is_share else "Epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


_LEGEND: dict[str, Any] = {"frameon": False, "title_fontsize": 6.5, "handlelength": 2.6, "columnspacing": 1.2}


def _look(method: str, methods: Iterable[str]) -> dict[str, Any]:
    """Return a method's colour, line and marker, which are the same in every row; GapSSG's colour is its own."""
    *colours, own = LINE_COLOURS
    if method == _OWN_METHOD:
        return {"color": own, "marker": "o", "linewidth": 1.5, "zorder": 3}
    known = [method_class.model_fields["name"].default for method_class in method_classes()]
    names = [*known, *(name for name in methods if name not in known)]
    number = [name for name in names if name != _OWN_METHOD].index(method)
    return {
        "color": colours[number % len(colours)],
        "linestyle": DASHES[number % len(DASHES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linewidth": 1.0,
    }


def _draw_mean(axes: Axes, curve: MeanCurve, **look: Any) -> None:
    spacing = -(-len(curve.x) // _MARKS_A_LINE)
    # Lines that lie on each other have their markers beside each other.
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
    """Say what a line and its band are."""
    counts = {len(runs) for runs in methods}
    if counts == {1}:
        return "one seed"
    many = str(*counts) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"mean of {many} seeds, band: one standard deviation"
