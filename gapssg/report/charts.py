"""Line charts as SVG in the fonts and colours of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup, escape

from gapssg.figures import new_figure
from gapssg.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 5.0, 3.05  # inches of 72 points; a point is a pixel on a narrow phone
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "gapssg", "path.simplify_threshold": 1.0, "font.size": 11.0}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_MOST_DOTS = 40
_SMALLEST_DOT, _LARGEST_DOT = 12.0, 250.0  # square points
_TICKS = 5
_LARGEST = 1e30  # beyond it, axes overflow
COLOURS = 6
"""The number of colours for lines."""
# These colours are replaced by variables of the page's style sheet.
_QUIET, _GRID, _LEVEL = "#0000f0", "#0000f1", "#0000f2"
_LINES = [f"#0000c{number}" for number in range(COLOURS)]
_VARIABLES = {_QUIET: "--quiet", _GRID: "--line", _LEVEL: "--text"} | {
    colour: f"--c{number}" for number, colour in enumerate(_LINES)
}


class Line(NamedTuple):
    """A line with its values by x.

    With `weights`, shares in [0, 1] by x, dots of this area are drawn instead of a line.
    """

    label: str
    values: Mapping[float, float]
    colour: int = 0
    is_dashed: bool = False
    weights: Mapping[float, float] | None = None


class Level(NamedTuple):
    """A horizontal line across the chart."""

    label: str
    value: float


@dataclass(frozen=True)
class Chart:
    """A chart for the page, with what its key shows.

    `has_gap` is whether the area between the first line and the first level is filled. The SVG has an accessible
    description of the first and last values.
    """

    title: str
    lines: list[Line]
    levels: Sequence[Level]
    has_gap: bool
    svg: Markup


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    across: str = "epoch",
    levels: Sequence[Level] = (),
    fills_gap: bool = False,
    from_zero: bool = False,
    percent: bool = False,
) -> Chart | None:
    """Draw a chart.

    Args:
        title: The title, for the description.
        lines: Lines; those without values are left out.
        across: The label of the horizontal axis.
        levels: Horizontal lines.
        fills_gap: Whether the area between the first line and the first level is filled.
        from_zero: Whether the vertical axis starts at 0, unless a value is negative.
        percent: Whether values are shares in [0, 1] that are shown in percent.

    Returns:
        The chart; None if no line has values.
    """
    import matplotlib

    lines = [line for line in lines if line.values]
    if not lines:
        return None
    factor, unit = (100.0, "%") if percent else (1.0, "")
    has_gap = fills_gap and bool(levels)
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = new_figure(_WIDTH, _HEIGHT)
        axes = figure.add_subplot(frame_on=False)
        for line in lines:
            _plot(axes, line, factor)
        if has_gap:
            xs, ys = _points(lines[0], factor)
            axes.fill_between(xs, ys, factor * levels[0].value, color=_LINES[4], alpha=0.22, linewidth=0)
        for level in levels:
            axes.axhline(factor * level.value, linestyle=":", color=_LEVEL, linewidth=1.3)
        if from_zero and min(y for line in lines for y in line.values.values()) >= 0:
            axes.set_ylim(bottom=0.0)
        _set_axes(axes, across, unit)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    # Element IDs would not be unique in the page.
    svg = re.sub('<g id="[^"]*"', "<g", buffer.getvalue().partition("<svg ")[2])
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    description = escape(printable(_describe(title, lines, levels, across, factor, unit)))
    return Chart(title, lines, levels, has_gap, Markup(f'<svg role="img" aria-label="{description}" {svg}'))


def _points(line: Line, factor: float) -> tuple[list[float], list[float]]:
    xs = sorted(line.values)
    return xs, [factor * max(-_LARGEST, min(line.values[x], _LARGEST)) for x in xs]


def _plot(axes: Axes, line: Line, factor: float) -> None:
    xs, ys = _points(line, factor)
    colour = _LINES[line.colour]
    if line.weights is not None:
        axes.scatter(xs, ys, [max(_SMALLEST_DOT, _LARGEST_DOT * line.weights[x]) for x in xs], colour, alpha=0.75)
    else:
        marker = "o" if len(xs) <= _MOST_DOTS else ""
        axes.plot(xs, ys, "--" if line.is_dashed else "-", color=colour, marker=marker, markersize=4.0, linewidth=2.0)


def _set_axes(axes: Axes, across: str, unit: str) -> None:
    axes.grid(axis="y", color=_GRID, linewidth=1.0)
    axes.tick_params(length=0, labelcolor=_QUIET)
    axes.locator_params(axis="x", nbins=_TICKS, integer=across == "epoch")
    axes.locator_params(axis="y", nbins=_TICKS)
    axes.xaxis.set_major_formatter("{x:.5g}")
    axes.yaxis.set_major_formatter(f"{{x:.5g}} {unit}".strip())
    axes.set_xlabel(across, color=_QUIET)


def _describe(title: str, lines: Sequence[Line], levels: Sequence[Level], across: str, factor: float, unit: str) -> str:
    parts = []
    for line in lines:
        first, last = min(line.values), max(line.values)
        ends = [f"{factor * line.values[place]:.4g}{unit} at {across} {place:g}" for place in (first, last)]
        parts.append(f"{line.label}: {' to '.join(dict.fromkeys(ends))}")
    parts += [level.label for level in levels]
    return f"{title}. {'; '.join(parts)}."
