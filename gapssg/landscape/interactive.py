"""An interactive 3D plot of a surface in one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

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
    clipped = clipping(surface, scale)
    title = card.label + (f"<br><sup>{clipped}</sup>" if clipped else "")
    figure = go.Figure([surface_trace, *points])
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
    page: str = figure.to_html(include_plotlyjs=True, full_html=True, div_id="landscape")
    return page.replace("</head>", f"{_STYLE}</head>", 1)


def _points(
    name: str, places: Sequence[Sequence[float]], losses: Sequence[float], colour: str, symbol: str, scale: Scale
) -> Any:
    import plotly.graph_objects as go
    import torch

    return go.Scatter3d(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        z=scale.clip(torch.tensor(losses)).log10().tolist(),
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": symbol, "size": 5, "line": {"color": "black", "width": 1}},
        hovertemplate=f"{name}<extra></extra>",
    )
