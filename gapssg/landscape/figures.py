"""Figures of saved surfaces at the size of a paper's column, in the colour map viridis; no model is needed."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapssg.errors import InputError
from gapssg.figures import COLUMN, PAGE, evenly_spaced, line_look, new_figure, write_animation, write_figure
from gapssg.files import write_atomically
from gapssg.landscape.interactive import interactive_html
from gapssg.landscape.panels import (
    COLOURS,
    EPOCH,
    KEY,
    ROUTE,
    azimuth_of,
    capital,
    colour_bar,
    draw_contours,
    draw_surface,
    legend,
    mark,
    short,
)
from gapssg.landscape.scale import Scale, clipping, scale_of, tick_text
from gapssg.landscape.spectrum import spectrum_figure
from gapssg.landscape.surface import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 5
_LABEL_COLUMNS = 48
_MOST_FRAMES = 100


def draw(
    surfaces: Mapping[str, Surface],
    folder: Path,
    *,
    own_scale: bool = False,
    accuracies: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Path]:
    """Draw all figures of surfaces with the same number of axes.

    With two axes, draw a contour plot, a 3D plot and an interactive plot (HTML, offline) of each surface, and a GIF of
    its training route, if it has one; of several, also a sheet of contours and one of 3D plots, the latter also below
    the accuracies. With one axis, draw one figure of all curves. Draw the spectral densities that were measured.

    Args:
        surfaces: By the base name of their files.
        folder: The folder for PNG, SVG, HTML and GIF files.
        own_scale: Whether each surface gets its own colour scale.
        accuracies: By the name of a run its accuracy, in [0, 1], by epoch.

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
        if (density := surface.spectral_density) is not None:
            files += write_figure(folder, f"{name}-spectrum", partial(spectrum_figure, surface, density))
    if len(everything[0].axes) == 1:
        return files + write_figure(folder, "curves", partial(curves, everything))
    for name, surface in surfaces.items():
        scale = scale_of([surface] if own_scale else everything)
        files += write_figure(folder, f"{name}-contour", partial(contour, surface, scale))
        files += write_figure(folder, f"{name}-surface", partial(surface_3d, surface, scale))
        if surface.has_route:
            files.append(write_animation(folder, f"{name}-route", partial(route_animation, surface, scale)))
        page = folder / f"{name}-interactive.html"
        write_atomically(page, interactive_html(surface, scale).encode())
        files.append(page)
    if len(everything) > 1:
        files += write_figure(folder, "sheet", partial(sheet, everything, own_scale=own_scale))
        files += write_figure(folder, "sheet-surfaces", partial(sheet_3d, everything, {}, own_scale=own_scale))
    if len(everything) > 1 and accuracies:
        drawn = partial(sheet_3d, everything, accuracies, own_scale=own_scale)
        files += write_figure(folder, "accuracy-and-surfaces", drawn)
    return files


def contour(surface: Surface, scale: Scale) -> Figure:
    """Draw filled contours with the centre, the local minima and the training route, if any."""
    figure = new_figure(COLUMN, 3.25)
    axes = figure.add_subplot()
    filled, lines = draw_contours(axes, surface, scale)
    axes.clabel(lines, fmt=tick_text, fontsize=5.5, inline_spacing=2)
    mark(axes, surface)
    axes.locator_params(nbins=5)
    axes.set_title(surface.card.label)
    axes.set_xlabel(textwrap.fill(surface.card.axis_labels[0], _LABEL_COLUMNS))
    axes.set_ylabel(textwrap.fill(surface.card.axis_labels[1], _LABEL_COLUMNS))
    colour_bar(figure, filled, axes, surface, scale, inset=True)
    legend(figure, axes, surface, scale)
    return figure


def route_animation(surface: Surface, scale: Scale) -> tuple[Figure, Iterator[int]]:
    """Draw filled contours, and the training route up to one more snapshot in each frame.

    Returns:
        The figure, and an iterator over the snapshots that draws the next frame.
    """
    figure = contour(surface, scale)
    axes = figure.axes[0]
    for label in axes.findobj(lambda artist: artist.get_gid() == EPOCH):
        label.set_visible(False)
    lines: list[Any] = axes.findobj(lambda artist: artist.get_gid() == ROUTE)
    whole = [*surface.mark_coordinates.tolist(), [0.0, 0.0]]
    titles = [f"{surface.card.name}, epoch {epoch}" for epoch in surface.card.marks] + [surface.card.label]

    def frames() -> Iterator[int]:
        for last in evenly_spaced(range(len(whole)), _MOST_FRAMES):
            for line in lines:
                line.set_data(*zip(*whole[: last + 1], strict=True))
            axes.set_title(titles[last])
            yield last

    return figure, frames()


def surface_3d(surface: Surface, scale: Scale) -> Figure:
    """Draw the surface in perspective with a logarithmic height."""
    figure = new_figure(COLUMN, 2.9)
    axes: Any = figure.add_subplot(projection="3d", computed_zorder=False)
    draw_surface(axes, surface, scale, azimuth_of([surface], scale))
    ticks = scale.ticks()
    axes.set_zticks([math.log10(tick) for tick in ticks], [tick_text(tick) for tick in ticks])
    axes.set_xlabel(short(surface.card.axis_labels[0]), labelpad=-6)
    axes.set_ylabel(short(surface.card.axis_labels[1]), labelpad=-6)
    axes.set_zlabel(surface.card.loss_name, labelpad=-4)
    axes.tick_params(pad=-3, labelsize=6)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    axes.set_title(surface.card.label, y=0.98)
    clipped = clipping(surface, scale)
    if clipped:
        figure.text(0.5, 0.01, clipped, ha="center", va="bottom", fontsize=6.5)
    return figure


def curves(surfaces: Sequence[Surface]) -> Figure:
    """Draw loss and accuracy along one direction, one line per surface."""
    figure = new_figure(COLUMN, 3.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    scale = scale_of(surfaces)
    for number, surface in enumerate(surfaces):
        look = line_look(number)
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
    upper.set_ylabel(textwrap.fill(capital(card.loss_name), 20))
    lower.set_ylabel(textwrap.fill(f"{capital(card.accuracy_name)}, %", 18))
    lower.set_ylim(-3, 103)
    lower.locator_params(axis="x", nbins=6)
    lower.set_xlabel(textwrap.fill(card.axis_labels[0], _LABEL_COLUMNS))
    figure.align_ylabels()
    columns = 2 if len(surfaces) > 1 else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, title=KEY, title_fontsize=6.5)
    return figure


def sheet(surfaces: Sequence[Surface], *, own_scale: bool = False) -> Figure:
    """Draw several surfaces in a grid with a row per name and a column per epoch."""
    by_place, rows = _arrange(surfaces)
    is_row = len(rows) == 1 and rows[0][0][1] is None
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
            filled, _ = draw_contours(panel, surface, scale)
            mark(panel, surface, small=True)
            if own_scale:
                colour_bar(figure, filled, panel, surface, scale, inset=True, label=False)
            clipped = clipping(surface, scale)
            if clipped:
                notes.append(f"{surface.card.label}: {clipped}")
            panel.locator_params(nbins=3)
            if number == 0:
                panel.set_title(name if epoch is None else f"epoch {epoch}", fontsize=7.5)
        if not is_row:
            row[0].set_ylabel(line[0][0], fontsize=7.5)
    figure.supxlabel(short(surfaces[0].card.axis_labels[0]), fontsize=7.5)
    figure.supylabel(short(surfaces[0].card.axis_labels[1]), fontsize=7.5)
    if not own_scale and filled is not None:
        colour_bar(figure, filled, panels.ravel().tolist(), surfaces[0], common)
    figure.text(0.5, -0.01, "\n".join([KEY, *notes]), ha="center", va="top", fontsize=6.5)
    return figure


def sheet_3d(
    surfaces: Sequence[Surface], accuracies: Mapping[str, Mapping[int, float]], *, own_scale: bool = False
) -> Figure:
    """Draw several surfaces in perspective, in a grid as that of `sheet`, and above it the accuracies, if given.

    With accuracies it is as figure 1a of Wang et al. (GapSSG, T-PAMI 2024); lines mark the epochs of the surfaces.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    by_place, rows = _arrange(surfaces)
    width = COLUMN if len(rows[0]) <= 2 else PAGE
    heights = [2.0] * bool(accuracies) + [len(rows) * 0.8 * width / len(rows[0]) + 0.3]
    figure = new_figure(width, sum(heights))
    *above, below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part in above:
        epochs = sorted({epoch for row in rows for _, epoch in row if epoch is not None})
        _draw_accuracies(part.add_subplot(), accuracies, epochs)
    panels = below.subplots(len(rows), len(rows[0]), squeeze=False, subplot_kw={"projection": "3d"})
    common = scale_of(surfaces)
    azimuth = azimuth_of(surfaces, common)
    for panel, (name, epoch) in zip(panels.ravel(), [place for row in rows for place in row], strict=True):
        surface = by_place.get((name, epoch))
        if surface is None:
            panel.set_axis_off()
            continue
        draw_surface(panel, surface, scale_of([surface]) if own_scale else common, azimuth)
        panel.locator_params(nbins=4)
        for axis in (panel.xaxis, panel.yaxis, panel.zaxis):
            axis.set_ticklabels([])
        panel.set_title(surface.card.label, fontsize=7.5, y=0.96)
    if not own_scale:
        colour_bar(below, ScalarMappable(LogNorm(common.low, common.high), COLOURS), panels.ravel().tolist(),
                   surfaces[0], common)  # fmt: skip
    return figure


def _draw_accuracies(axes: Axes, accuracies: Mapping[str, Mapping[int, float]], epochs: Sequence[int]) -> None:
    """Draw the accuracies in [0, 1] of runs by epoch, and mark some epochs."""
    for number, (run, by_epoch) in enumerate(accuracies.items()):
        look = line_look(number)
        axes.plot(list(by_epoch), [100 * share for share in by_epoch.values()], label=run, **look)
    for epoch in epochs:
        axes.axvline(epoch, color="0.6", linewidth=0.6, zorder=0)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Top-1 accuracy, %")
    axes.legend(loc="best", edgecolor="none", framealpha=1)  # hides the lines behind it


def _arrange(
    surfaces: Sequence[Surface],
) -> tuple[dict[tuple[str, int | None], Surface], list[list[tuple[str, int | None]]]]:
    """Return the surfaces by name and epoch, and a row of these for each name, with a column for each epoch.

    Surfaces without epochs are one row.
    """
    names = list(dict.fromkeys(surface.card.name for surface in surfaces))
    by_place = {(surface.card.name, surface.card.epoch): surface for surface in surfaces}
    epochs = evenly_spaced(sorted({epoch for _, epoch in by_place}, key=lambda epoch: epoch or 0), _MOST_COLUMNS)
    if epochs == [None] and len(names) <= _MOST_COLUMNS:
        return by_place, [[(name, None) for name in names]]
    return by_place, [[(name, epoch) for epoch in epochs] for name in names]
