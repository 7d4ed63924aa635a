"""Figures of saved surfaces at the size of a paper's column, in the colour map viridis; no model is needed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapssg.errors import InputError
from gapssg.figures import COLUMN, DASHES, LINE_COLOURS, PAGE, new_figure, write_figure
from gapssg.files import write_atomically
from gapssg.landscape.interactive import interactive_html
from gapssg.landscape.scale import Scale, clipping, scale_of, tick_text
from gapssg.landscape.spectrum import spectrum_figure
from gapssg.landscape.surface import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = "viridis"
_RED = "#D55E00"
_MOST_COLUMNS = 5
_LABEL_COLUMNS = 48
_LABEL_HEIGHT = 0.06  # of the axes


def draw(surfaces: Mapping[str, Surface], folder: Path, *, own_scale: bool = False) -> list[Path]:
    """Draw all figures of surfaces with the same number of axes.

    With two axes, draw a contour plot, a 3D plot and an interactive plot (HTML, offline) of each surface, and a sheet
    of several surfaces; with one axis, one figure of all curves. Draw the spectral densities that were measured.

    Args:
        surfaces: By the base name of their files.
        folder: The folder for PNG, SVG and HTML files.
        own_scale: Whether each surface gets its own colour scale.

    Raises:
        InputError: A surface is not complete.
        RunError: A file cannot be written.
    """
    everything = list(surfaces.values())
    for surface in everything:
        if not surface.is_complete:
            raise InputError(
                f"{surface.card.label}: {surface.measured} of {surface.loss.numel()} points are measured; "
                "continue with gapssg landscape --resume"
            )
    files: list[Path] = []
    for name, surface in surfaces.items():
        curvature = surface.around.curvature if surface.around else None
        if curvature and curvature.spectral_density:
            files += write_figure(
                folder, f"{name}-spectrum", partial(spectrum_figure, surface, curvature.spectral_density)
            )
    if len(everything[0].axes) == 1:
        return files + write_figure(folder, "curves", partial(curves, everything))
    for name, surface in surfaces.items():
        scale = scale_of([surface] if own_scale else everything)
        files += write_figure(folder, f"{name}-contour", partial(contour, surface, scale))
        files += write_figure(folder, f"{name}-surface", partial(surface_3d, surface, scale))
        page = folder / f"{name}-interactive.html"
        write_atomically(page, interactive_html(surface, scale).encode())
        files.append(page)
    if len(everything) > 1:
        files += write_figure(folder, "sheet", partial(sheet, everything, own_scale=own_scale))
    return files


def contour(surface: Surface, scale: Scale) -> Figure:
    """Draw filled contours with the centre, the local minima and the training route, if any."""
    figure = new_figure(COLUMN, 3.25)
    axes = figure.add_subplot()
    filled, lines = _draw_contours(axes, surface, scale)
    axes.clabel(lines, fmt=tick_text, fontsize=5.5, inline_spacing=2)
    _mark(axes, surface)
    axes.locator_params(nbins=5)
    axes.set_title(surface.card.label)
    axes.set_xlabel(textwrap.fill(surface.card.axis_labels[0], _LABEL_COLUMNS))
    axes.set_ylabel(textwrap.fill(surface.card.axis_labels[1], _LABEL_COLUMNS))
    _colour_bar(figure, filled, axes, surface, scale, inset=True)
    _legend(figure, axes, surface, scale)
    return figure


def surface_3d(surface: Surface, scale: Scale) -> Figure:
    """Draw the surface in perspective with a logarithmic height."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    figure = new_figure(COLUMN, 2.9)
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    across, along = np.meshgrid(*surface.axes.numpy(), indexing="ij")
    loss = scale.clip(surface.loss).numpy()
    faces = colormaps[_COLOURS](LogNorm(scale.low, scale.high)(loss))
    axes.plot_surface(
        across, along, np.log10(loss), facecolors=faces, rstride=1, cstride=1, linewidth=0.15, edgecolor="#00000030",
        antialiased=True, shade=False,
    )  # fmt: skip
    centre = scale.clip(surface.centre_loss).log10().item()
    axes.plot([0], [0], [centre], marker="*", markersize=7, color=_RED, markeredgecolor="white", zorder=5)
    ticks = scale.ticks()
    axes.set_zticks([float(np.log10(tick)) for tick in ticks], [tick_text(tick) for tick in ticks])
    axes.set_zlim(np.log10(scale.low), np.log10(scale.high))
    axes.set_xlabel(_short(surface.card.axis_labels[0]), labelpad=-6)
    axes.set_ylabel(_short(surface.card.axis_labels[1]), labelpad=-6)
    axes.set_zlabel(surface.card.loss_name, labelpad=-4)
    axes.tick_params(pad=-3, labelsize=6)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color("white")
    axes.view_init(elev=32, azim=_azimuth(loss))
    axes.set_box_aspect((1, 1, 0.75), zoom=0.92)
    axes.set_title(surface.card.label, y=0.98)
    clipped = clipping(surface, scale)
    if clipped:
        figure.text(0.5, 0.01, clipped, ha="center", va="bottom", fontsize=6.5)
    return figure


def _azimuth(loss: Any) -> int:
    """Return the viewing direction from which the nearest quarter of the surface is lowest."""
    import numpy as np

    heights, half = np.log(loss), len(loss) // 2
    near = {35: (half, half), -55: (half, 0), -125: (0, 0), 125: (0, half)}
    return min(near, key=lambda side: heights[near[side][0] :][: half + 1, near[side][1] :][:, : half + 1].mean())


def curves(surfaces: Sequence[Surface]) -> Figure:
    """Draw loss and accuracy along one direction, one line per surface."""
    figure = new_figure(COLUMN, 3.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    scale = scale_of(surfaces)
    for number, surface in enumerate(surfaces):
        look: dict[str, Any] = {"color": LINE_COLOURS[number % len(LINE_COLOURS)]}
        look["linestyle"] = DASHES[number % len(DASHES)]
        along = surface.axes[0].tolist()
        clipped = clipping(surface, scale)
        label = surface.card.label + (f" ({clipped})" if clipped else "")
        upper.plot(along, scale.clip(surface.loss).tolist(), label=label, **look)
        lower.plot(along, [100 * share for share in surface.accuracy.tolist()], **look)
        centre = scale.clip(surface.centre_loss).item()
        upper.plot([0], [centre], marker="*", markersize=7, markeredgecolor="white", color=look["color"], zorder=5)
        for minimum in surface.minima():
            spot = {"marker": "o", "markersize": 4, "markerfacecolor": "none", "color": look["color"]}
            upper.plot(minimum.coordinates, [scale.clip(surface.loss.new_tensor(minimum.loss)).item()], **spot)
        for name, (place,) in zip(surface.card.marks, surface.mark_coordinates.tolist(), strict=True):
            if surface.card.directions == "models":
                upper.axvline(place, color="0.6", linewidth=0.6, zorder=0)
                upper.annotate(name, (place, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), ha="center",
                               textcoords="offset points", fontsize=6.5)  # fmt: skip
    upper.set_yscale("log")
    upper.set_yticks(scale.ticks(), [tick_text(tick) for tick in scale.ticks()])
    upper.minorticks_off()
    card = surfaces[0].card
    upper.set_ylabel(textwrap.fill(_capital(card.loss_name), 20))
    lower.set_ylabel(textwrap.fill(f"{_capital(card.accuracy_name)}, %", 18))
    lower.set_ylim(-3, 103)
    lower.locator_params(axis="x", nbins=6)
    lower.set_xlabel(textwrap.fill(card.axis_labels[0], _LABEL_COLUMNS))
    figure.align_ylabels()
    columns = 2 if len(surfaces) > 1 else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, title=_KEY, title_fontsize=6.5)
    return figure


def sheet(surfaces: Sequence[Surface], *, own_scale: bool = False) -> Figure:
    """Draw several surfaces in a grid with a row per name and a column per epoch."""
    names = list(dict.fromkeys(surface.card.name for surface in surfaces))
    by_place = {(surface.card.name, surface.card.epoch): surface for surface in surfaces}
    epochs = _evenly_spaced(sorted({epoch for _, epoch in by_place}, key=lambda epoch: epoch or 0), _MOST_COLUMNS)
    is_row = epochs == [None] and len(names) <= _MOST_COLUMNS  # one row instead of one column
    rows: list[list[tuple[str, int | None]]] = [[(name, epoch) for epoch in epochs] for name in names]
    if is_row:
        rows = [[(name, None) for name in names]]
    width = COLUMN if len(rows[0]) <= 2 else PAGE
    side = (width - 0.9) / len(rows[0])
    figure = new_figure(width, len(rows) * side + 0.85, "compressed")
    # Principal components of different routes have different axes.
    is_shared = not own_scale and all(surface.axes.equal(surfaces[0].axes) for surface in surfaces)
    panels = figure.subplots(len(rows), len(rows[0]), squeeze=False, sharex=is_shared, sharey=is_shared)
    common = scale_of(surfaces)
    filled = None
    notes = []
    for number, (row, line) in enumerate(zip(panels, rows, strict=True)):
        for panel, (name, epoch) in zip(row, line, strict=True):
            surface = by_place.get((name, epoch))
            if surface is None:
                panel.set_axis_off()
                continue
            scale = scale_of([surface]) if own_scale else common
            filled, _ = _draw_contours(panel, surface, scale)
            _mark(panel, surface, small=True)
            if own_scale:
                _colour_bar(figure, filled, panel, surface, scale, inset=True, label=False)
            clipped = clipping(surface, scale)
            if clipped:
                notes.append(f"{surface.card.label}: {clipped}")
            panel.locator_params(nbins=3)
            if number == 0:
                panel.set_title(name if epoch is None else f"epoch {epoch}", fontsize=7.5)
        if not is_row:
            row[0].set_ylabel(line[0][0], fontsize=7.5)
    figure.supxlabel(_short(surfaces[0].card.axis_labels[0]), fontsize=7.5)
    figure.supylabel(_short(surfaces[0].card.axis_labels[1]), fontsize=7.5)
    if not own_scale and filled is not None:
        _colour_bar(figure, filled, panels.ravel().tolist(), surfaces[0], common)
    figure.text(0.5, -0.01, "\n".join([_KEY, *notes]), ha="center", va="top", fontsize=6.5)
    return figure


_KEY = "star: centre, circles: local minima of the grid"


def _draw_contours(axes: Axes, surface: Surface, scale: Scale) -> tuple[Any, Any]:
    """Return the filled contours and their lines."""
    from matplotlib.colors import LogNorm

    norm = LogNorm(scale.low, scale.high)
    levels = scale.levels(25)
    levels[0], levels[-1] = scale.low * (1 - 1e-9), scale.high * (1 + 1e-9)  # else rounding leaves holes
    grid = (*surface.axes.tolist(), scale.clip(surface.loss).T.numpy())  # matplotlib's rows are the second axis
    filled = axes.contourf(*grid, levels=levels, norm=norm, cmap=_COLOURS)
    filled.set_edgecolor("face")  # no hairlines between the levels in SVG
    filled.set_linewidth(0.2)
    lines = axes.contour(*grid, levels=scale.ticks(), colors="white", linewidths=0.4, alpha=0.8)
    if surface.card.directions == "random":
        axes.set_aspect("equal")
    return filled, lines


def _mark(axes: Axes, surface: Surface, *, small: bool = False) -> None:
    size = 0.7 if small else 1.0
    places = surface.mark_coordinates.tolist()
    if surface.card.directions == "pca":
        route = [*places, [0.0, 0.0]]
        columns: list[Any] = [list(column) for column in zip(*route, strict=True)]
        axes.plot(*columns, color="white", linewidth=2.2 * size)
        axes.plot(*columns, color=_RED, linewidth=1.1 * size, marker="o", markersize=2.5 * size, label="training route")
        for index in _label_indices(surface) if not small else []:
            axes.annotate(f"epoch {surface.card.marks[index]}", places[index], xytext=(4, 2), fontsize=6,
                          textcoords="offset points", color="white", path_effects=_outline())  # fmt: skip
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
    axes.plot([0], [0], linestyle="", marker="*", markersize=7 * size, color=_RED, markeredgecolor="white",
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


def _legend(figure: Figure, axes: Axes, surface: Surface, scale: Scale) -> None:
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


def _colour_bar(
    figure: Figure, filled: Any, axes: Any, surface: Surface, scale: Scale, *, inset: bool = False, label: bool = True
) -> None:
    from matplotlib.cm import ScalarMappable

    place: dict[str, Any] = {"ax": axes, "pad": 0.02, "aspect": 25}
    if inset:
        place = {"cax": axes.inset_axes((1.03, 0, 0.05, 1))}  # the height of the axes, also with equal aspect
    bar = figure.colorbar(ScalarMappable(filled.norm, filled.cmap), ticks=scale.ticks(), **place)
    bar.ax.set_yticklabels([tick_text(tick) for tick in scale.ticks()])
    bar.ax.minorticks_off()
    if label:
        bar.set_label(_capital(surface.card.loss_name))


def _short(label: str) -> str:
    """Remove a final part in parentheses."""
    return re.sub(r" \([^()]*\)$", "", label)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _evenly_spaced(values: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` evenly spaced values, including the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]
