"""An interactive 3D plot of a surface in one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gapssg.landscape.scale import Scale, clipping, tick_text
from gapssg.landscape.surface import Surface

_EYE = {"x": 1.6, "y": 1.6, "z": 1.2}  # far enough to keep the axis titles in the window
_STYLE = "<style>body { margin: 0; overflow: hidden }</style>"  # with a margin, Plotly would overflow the window


def interactive_html(surface: Surface, scale: Scale) -> str:
    """Return an HTML page with a 3D plot of a surface with two axes; it works offline."""
    import plotly.graph_objects as go

    card = surface.card
    loss = scale.clip(surface.loss)
    ticks = scale.ticks()
    heights = loss.log10().T.tolist()
    texts = [
        [f"{value:.4g}<br>{card.accuracy_name}: {share:.1%}" for value, share in zip(*row, strict=True)]
        for row in zip(surface.loss.T.tolist(), surface.accuracy.T.tolist(), strict=True)
    ]
    # Heights are logarithms with losses as tick labels, because Plotly's logarithmic axes have linear colours.
    logarithms = {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [tick_text(tick) for tick in ticks]}
    surface_trace = go.Surface(
        x=surface.axes[0].tolist(),
        y=surface.axes[1].tolist(),
        z=heights,
        colorscale="Viridis",
        cmin=math.log10(scale.low),
        cmax=math.log10(scale.high),
        colorbar={"title": {"text": card.loss_name, "side": "right"}, **logarithms},
        text=texts,
        hovertemplate=f"(%{{x:.3f}}, %{{y:.3f}})<br>{card.loss_name}: %{{text}}<extra></extra>",
    )
    points: list[Any] = [_points("centre", [[0.0, 0.0]], [surface.centre_loss.item()], "#D55E00", "diamond", scale)]
    minima = surface.minima()
    if minima:
        places, losses = [each.coordinates for each in minima], [each.loss for each in minima]
        points.append(_points("local minimum of the grid", places, losses, "white", "circle", scale))
    route = _route(surface, scale) if surface.has_route else []
    points += route[-1:]
    clipped = clipping(surface, scale)
    title = card.label + (f"<br><sup>{clipped}</sup>" if clipped else "")
    number = len(points)  # of the trace of the route
    frames = [go.Frame(data=[line], traces=[number], name=line.name) for line in route]
    figure = go.Figure([surface_trace, *points], frames=frames)
    figure.update_layout(
        title={"text": title},
        scene={
            "xaxis": {"title": {"text": card.axis_labels[0]}},
            "yaxis": {"title": {"text": card.axis_labels[1]}},
            "zaxis": {"title": {"text": card.loss_name}, **logarithms},
            "camera": {"eye": _EYE},
        },
        legend={"x": 0, "y": 1},
        margin={"l": 10, "r": 10, "b": 10, "t": 60},
    )
    if route:
        figure.update_layout(**_controls([line.name for line in route]))
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, auto_play=False, div_id="landscape")
    return page.replace("</head>", f"{_STYLE}</head>", 1)


def _points(
    name: str, places: Sequence[Sequence[float]], losses: Sequence[float], colour: str, symbol: str, scale: Scale
) -> Any:
    import plotly.graph_objects as go

    return go.Scatter3d(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        z=scale.clip(torch.tensor(losses)).log10().tolist(),
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 5, "line": {"color": "black", "width": 1}},
        hovertemplate=f"{name}<extra></extra>",
    )


def _route(surface: Surface, scale: Scale) -> list[Any]:
    """Return the training route on the surface, up to each snapshot."""
    import plotly.graph_objects as go

    card, places = surface.card, torch.cat([surface.mark_coordinates, surface.mark_coordinates.new_zeros(1, 2)])
    heights = heights_at(surface, scale, places).tolist()
    names = [*(f"epoch {epoch}" for epoch in card.marks), card.label]
    losses = [*surface.mark_loss.tolist(), surface.centre_loss.item()]
    texts = [f"{name}<br>{card.loss_name}: {loss:.4g}" for name, loss in zip(names, losses, strict=True)]
    return [
        go.Scatter3d(
            x=places[:count, 0].tolist(),
            y=places[:count, 1].tolist(),
            z=heights[:count],
            text=texts[:count],
            mode="lines+markers",
            name=names[count - 1],
            line={"color": "#D55E00", "width": 5},
            marker={"color": "#D55E00", "size": 3},
            hovertemplate="%{text}<extra></extra>",
        )
        for count in range(1, len(places) + 1)
    ]


def heights_at(surface: Surface, scale: Scale, places: Tensor) -> Tensor:
    """Return the logarithm to base 10 of the loss at places (M, 2), bilinear between the points of the grid: (M,)."""
    low, high = surface.axes[:, 0], surface.axes[:, -1]
    along = 2 * (places - low) / (high - low) - 1
    grid, heights = along.flip(1)[None, None], scale.clip(surface.loss).log10()[None, None]
    return F.grid_sample(heights, grid, padding_mode="border", align_corners=True).reshape(-1)


def _controls(names: Sequence[str]) -> dict[str, Any]:
    """Return a button that plays the route, and a slider over the snapshots."""
    at_once = {"mode": "immediate", "transition": {"duration": 0}}
    duration = max(50, 6000 // len(names))  # milliseconds
    play = {**at_once, "fromcurrent": True, "frame": {"duration": duration, "redraw": True}}
    buttons = [{"label": "Play", "method": "animate", "args": [None, play]}]
    menu = {"type": "buttons", "buttons": buttons, "x": 0, "y": 0, "xanchor": "left", "yanchor": "bottom"}
    show = {**at_once, "frame": {"duration": 0, "redraw": True}}
    steps = [{"label": name, "method": "animate", "args": [[name], show]} for name in names]
    slider = {"steps": steps, "active": len(names) - 1, "x": 0.1, "len": 0.85, "y": 0, "yanchor": "bottom"}
    return {"updatemenus": [menu], "sliders": [slider]}
