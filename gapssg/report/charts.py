"""Line charts as numbers that the page's template draws, so that they take its fonts and its colours, light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDTH, HEIGHT = 360, 220  # the unit is a pixel on a narrow phone
LEFT, RIGHT, TOP, BOTTOM = 50, 350, 10, 184  # of the area between the axes
_MOST_POINTS = 400
_MOST_DOTS = 40
_RADIUS, _LARGEST_RADIUS = 2.0, 9.0
_TICKS = 5

COLOURS = 6
"""How many colours the page has for lines."""


class Line(NamedTuple):
    """A line to draw.

    Attributes:
        label: What it is.
        values: By place.
        colour: Its number among the page's colours.
        is_dashed: Whether it is dashed.
        weights: By place, shares in [0, 1]: dots of this area are drawn, and no line between them.
    """

    label: str
    values: Mapping[float, float]
    colour: int = 0
    is_dashed: bool = False
    weights: Mapping[float, float] | None = None


class Level(NamedTuple):
    """A level line across the whole chart.

    Attributes:
        label: What it is.
        value: Its height.
    """

    label: str
    value: float


class DrawnLine(NamedTuple):
    """A line in the coordinates of the chart.

    Attributes:
        label: What it is.
        colour: Its number among the page's colours.
        is_dashed: Whether it is dashed.
        points: As SVG takes them; empty for dots alone.
        dots: The points to mark and their radii.
    """

    label: str
    colour: int
    is_dashed: bool
    points: str
    dots: list[tuple[float, float, float]]


class Tick(NamedTuple):
    """A mark on an axis: where, and what it says."""

    place: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart in the coordinates of the page.

    Attributes:
        title: What it shows.
        description: The same for who cannot see it, with its first and last values.
        across: What the horizontal axis counts.
        lines: The lines.
        levels: Level lines, each a height and what it is.
        gap: An area between the first line and the first level, as SVG takes it; empty for none.
        x_ticks: Marks on the horizontal axis.
        y_ticks: Marks on the vertical axis.
    """

    title: str
    description: str
    across: str
    lines: list[DrawnLine]
    levels: list[Tick]
    gap: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]


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
    """Lay out a chart.

    Args:
        title: What it shows.
        lines: Those without values are left out.
        across: What the horizontal axis counts.
        levels: Level lines.
        fills_gap: Whether the area between the first line and the first level is filled.
        from_zero: Whether the vertical axis begins at 0.
        percent: Whether values are shares in [0, 1] that are shown in percent.

    Returns:
        The chart; None if no line has a value.
    """
    lines = [_thinned(line) for line in lines if line.values]
    if not lines:
        return None
    factor = 100.0 if percent else 1.0
    xs = [x for line in lines for x in line.values]
    ys = [factor * y for line in lines for y in line.values.values()] + [factor * level.value for level in levels]
    x_scale = _Scale.of(min(xs), max(xs), LEFT, RIGHT, whole=across == "epoch")
    y_scale = _Scale.of(min([*ys, *([0.0] if from_zero else [])]), max(ys), BOTTOM, TOP)
    drawn = []
    for line in lines:
        places = {x: (x_scale(x), y_scale(factor * line.values[x])) for x in sorted(line.values)}
        weights = line.weights
        if weights is not None:
            radii = {x: round(max(_RADIUS, _LARGEST_RADIUS * weights[x] ** 0.5), 1) for x in places}
        else:
            radii = dict.fromkeys(places if len(places) <= _MOST_DOTS else (), _RADIUS)
        points = _points(list(places.values())) if weights is None else ""
        dots = [(*places[x], radius) for x, radius in radii.items()]
        drawn.append(DrawnLine(line.label, line.colour, line.is_dashed, points, dots))
    gap = ""
    if fills_gap and levels:
        first = sorted(lines[0].values)
        height = y_scale(factor * levels[0].value)
        gap = _points([(x_scale(first[0]), height), (x_scale(first[-1]), height)])
        gap += " " + _points([(x_scale(x), y_scale(factor * lines[0].values[x])) for x in reversed(first)])
    return Chart(
        title=title,
        description=_describe(title, lines, levels, across, factor, "%" if percent else ""),
        across=across,
        lines=drawn,
        levels=[Tick(y_scale(factor * level.value), level.label) for level in levels],
        gap=gap,
        x_ticks=x_scale.ticks(),
        y_ticks=y_scale.ticks(" %" if percent else ""),
    )


class _Scale(NamedTuple):
    """From values to places on the page."""

    low: float
    high: float
    start: float
    end: float
    whole: bool

    @classmethod
    def of(cls, low: float, high: float, start: float, end: float, *, whole: bool = False) -> _Scale:
        if low == high:  # one value stands in the middle
            margin = 1.0 if whole else abs(low) / 2 or 1.0
            low, high = low - margin, high + margin
        elif not whole:
            low, high = low if low == 0 else low - (high - low) * 0.04, high + (high - low) * 0.04
        return cls(low, high, start, end, whole)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, unit: str = "") -> list[Tick]:
        from matplotlib.ticker import MaxNLocator

        values = MaxNLocator(nbins=_TICKS, integer=self.whole, steps=[1, 2, 2.5, 5, 10]).tick_values(
            self.low, self.high
        )
        inside = [float(value) for value in values if self.low <= value <= self.high]
        return [Tick(self(value), f"{value:.5g}{unit}") for value in inside]


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _thinned(line: Line) -> Line:
    """Return a line of so many points as can be told apart, the first and the last among them."""
    places = sorted(line.values)
    if len(places) <= _MOST_POINTS:
        return line
    spacing = (len(places) - 1) / (_MOST_POINTS - 1)
    chosen = [places[round(index * spacing)] for index in range(_MOST_POINTS)]
    return line._replace(values={place: line.values[place] for place in chosen})


def _describe(title: str, lines: Sequence[Line], levels: Sequence[Level], across: str, factor: float, unit: str) -> str:
    parts = []
    for line in lines:
        first, last = min(line.values), max(line.values)
        ends = [f"{factor * line.values[place]:.4g}{unit} at {across} {place:g}" for place in (first, last)]
        parts.append(f"{line.label}: {' to '.join(dict.fromkeys(ends))}")
    parts += [level.label for level in levels]
    return f"{title}. {'; '.join(parts)}."
