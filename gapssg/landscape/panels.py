"""Parts of the figures of surfaces, drawn into given axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gapssg.landscape.scale import Scale, clipping, tick_text
from gapssg.landscape.surface import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

COLOURS = "viridis"
RED = "#D55E00"
ROUTE, EPOCH = "route", "epoch"  # names of artists
KEY = "star: centre, circles: local minima of the grid"
_LABEL_HEIGHT = 0.06  # of the axes


def draw_surface(axes: Any, surface: Surface, scale: Scale, azimuth: int) -> None:
    """Draw a surface in axes with perspective, seen from `azimuth` degrees, with log10 of the loss as its height."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    across, along = np.meshgrid(*surface.axes.numpy(), indexing="ij")
    loss = scale.clip(surface.loss).numpy()
    faces = colormaps[COLOURS](LogNorm(scale.low, scale.high)(loss))
    axes.plot_surface(
        across, along, np.log10(loss), facecolors=faces, rstride=1, cstride=1, linewidth=0.15, edgecolor="#00000030",
        antialiased=True, shade=False,
    )  # fmt: skip
    centre = scale.clip(surface.centre_loss).log10().item()
    axes.plot([0], [0], [centre], marker="*", markersize=7, color=RED, markeredgecolor="white", zorder=5)
    axes.set_zlim(np.log10(scale.low), np.log10(scale.high))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color("white")
    axes.view_init(elev=32, azim=azimuth)
    axes.set_box_aspect((1, 1, 0.75), zoom=0.92)


def azimuth_of(surfaces: Sequence[Surface], scale: Scale) -> int:
    """Return the viewing direction in degrees from which the nearest quarter of the surfaces is lowest."""

    def nearest(side: int) -> float:
        return sum(_quarters(scale.clip(surface.loss).log())[side].mean().item() for surface in surfaces)

    return min((35, -55, -125, 125), key=nearest)


def _quarters(heights: Tensor) -> dict[int, Tensor]:
    """Return the quarter that is nearest from each viewing direction in degrees."""
    half = len(heights) // 2
    low, high = slice(half + 1), slice(half, None)
    return {35: heights[high, high], -55: heights[high, low], -125: heights[low, low], 125: heights[low, high]}


def draw_contours(axes: Axes, surface: Surface, scale: Scale) -> tuple[Any, Any]:
    """Return the filled contours and their lines."""
    from matplotlib.colors import LogNorm

    norm = LogNorm(scale.low, scale.high)
    levels = scale.levels(25)
    levels[0], levels[-1] = scale.low * (1 - 1e-9), scale.high * (1 + 1e-9)  # else rounding leaves holes
    grid = (*surface.axes.tolist(), scale.clip(surface.loss).T.numpy())  # matplotlib's rows are the second axis
    filled = axes.contourf(*grid, levels=levels, norm=norm, cmap=COLOURS)
    filled.set_edgecolor("face")  # no hairlines between the levels in SVG
    filled.set_linewidth(0.2)
    lines = axes.contour(*grid, levels=scale.ticks(), colors="white", linewidths=0.4, alpha=0.8)
    if surface.card.directions in ("random", "eigenvectors"):
        axes.set_aspect("equal")
    return filled, lines


def mark(axes: Axes, surface: Surface, *, small: bool = False) -> None:
    """Mark the centre, the local minima, and the route or the models."""
    size = 0.7 if small else 1.0
    places = surface.mark_coordinates.tolist()
    if surface.has_route:
        route = [*places, [0.0, 0.0]]
        columns: list[Any] = [list(column) for column in zip(*route, strict=True)]
        axes.plot(*columns, color="white", linewidth=2.2 * size, gid=ROUTE)
        axes.plot(*columns, color=RED, linewidth=1.1 * size, marker="o", markersize=2.5 * size, label="training route",
                  gid=ROUTE)  # fmt: skip
        for index in _label_indices(surface) if not small else []:
            axes.annotate(f"epoch {surface.card.marks[index]}", places[index], xytext=(4, 2), fontsize=6,
                          gid=EPOCH, textcoords="offset points", color="white", path_effects=_outline())  # fmt: skip
    elif places:
        for name, place in zip(surface.card.marks, places, strict=True):
            axes.plot(*[[part] for part in place], linestyle="", marker="s", markersize=4 * size, color="white",
                      markeredgecolor="black", markeredgewidth=0.6)  # fmt: skip
            is_left = place[0] < (surface.axes[0, 0] + surface.axes[0, -1]).item() / 2
            side: dict[str, Any] = {"xytext": (5, 4), "ha": "left"} if is_left else {"xytext": (-5, 4), "ha": "right"}
            axes.annotate(name, place, textcoords="offset points", fontsize=6, color="white", path_effects=_outline(),
                          **side)  # fmt: skip
    minima = surface.minima()
    if minima:
        columns = [list(column) for column in zip(*(minimum.coordinates for minimum in minima), strict=True)]
        axes.plot(*columns, linestyle="", marker="o", markersize=5.5 * size, markerfacecolor="none",
                  markeredgecolor="white", markeredgewidth=1.0 * size, label="local minimum of the grid",
                  clip_on=False, path_effects=_outline(), zorder=4)  # fmt: skip
    axes.plot([0], [0], linestyle="", marker="*", markersize=7 * size, color=RED, markeredgecolor="white",
              markeredgewidth=0.5, label="centre", zorder=5)  # fmt: skip


def _label_indices(surface: Surface) -> list[int]:
    """Return the indices of points of a route, the first included, that are far enough apart for labels."""
    extent = surface.axes[:, -1] - surface.axes[:, 0]
    places = surface.mark_coordinates / extent
    chosen: list[int] = []
    for index in range(len(places)):
        if all((places[index] - places[other]).norm() > _LABEL_HEIGHT for other in chosen):
            chosen.append(index)
    return chosen


def _outline() -> list[Any]:
    """Return a dark outline, so that white is visible on any background."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=1.8, foreground="#333333")]


def legend(figure: Figure, axes: Axes, surface: Surface, scale: Scale) -> None:
    """Add a legend below the axes."""
    from matplotlib.lines import Line2D

    handles, labels = axes.get_legend_handles_labels()
    shown: list[Any] = []
    for handle in handles:
        copy = Line2D([], [])
        copy.update_from(handle)
        if copy.get_marker() == "o" and copy.get_linestyle() == "None":
            copy.set_path_effects(_outline())
        shown.append(copy)
    clipped = clipping(surface, scale)
    if clipped:
        shown.append(Line2D([], [], linestyle="", marker="s", color="#fde725"))
        labels.append(clipped)
    columns = 2 if len(labels) > 3 or clipped else len(labels)
    figure.legend(shown, labels, loc="outside lower center", ncols=columns, frameon=False, handletextpad=0.4,
                  columnspacing=1.0, borderpad=0.1)  # fmt: skip


def colour_bar(
    figure: Figure, filled: Any, axes: Any, surface: Surface, scale: Scale, *, inset: bool = False, label: bool = True
) -> None:
    """Add the colour bar of filled contours or another mappable, or of axes in their `inset`."""
    from matplotlib.cm import ScalarMappable

    place: dict[str, Any] = {"ax": axes, "pad": 0.02, "aspect": 25}
    if inset:
        place = {"cax": axes.inset_axes((1.03, 0, 0.05, 1))}  # the height of the axes, also with equal aspect
    bar = figure.colorbar(ScalarMappable(filled.norm, filled.cmap), ticks=scale.ticks(), **place)
    bar.ax.set_yticklabels([tick_text(tick) for tick in scale.ticks()])
    bar.ax.minorticks_off()
    if label:
        bar.set_label(capital(surface.card.loss_name))


def short(label: str) -> str:
    """Remove a final part in parentheses."""
    return re.sub(r" \([^()]*\)$", "", label)


def capital(text: str) -> str:
    """Return a text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
