"""The spectral density of a Hessian as a curve with its error, and its figure."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gapssg.figures import COLUMN, LINE_COLOURS, new_figure
from gapssg.landscape.surface import Surface
from gapssg.runs.results.landscape import SpectralDensity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 0.01  # of the Gaussians, relative to the range of the nodes
_POINTS = 1001


def nodes_of(density: SpectralDensity) -> tuple[Tensor, Tensor]:
    """Return all nodes in ascending order and their weights over all starts, whose sum is 1: (M,) float64 each."""
    pairs = torch.tensor(sorted(itertools.chain.from_iterable(density.starts)), dtype=torch.float64)
    return pairs[:, 0], pairs[:, 1] / len(density.starts)


def smoothed(density: SpectralDensity, at: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """Return the spectral density smoothed with a Gaussian, and its standard error over the starts.

    Ghorbani et al., "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", ICML 2019, section
    2. The error has no part for the nodes of too few Lanczos steps.

    Args:
        density: The quadratures.
        at: (X,) float64, eigenvalues.
        width: The standard deviation of the Gaussian.

    Returns:
        Density and error, (X,) float64 each; the density of all eigenvalues integrates to 1.
    """
    curves = []
    for start in density.starts:
        nodes, weights = torch.tensor(start, dtype=torch.float64).T
        kernel = torch.exp(-0.5 * ((at[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        curves.append(kernel @ weights)
    stacked = torch.stack(curves)
    return stacked.mean(dim=0), stacked.std(dim=0) / math.sqrt(len(curves))


def spectrum_figure(surface: Surface, density: SpectralDensity) -> Figure:
    """Draw the spectral density on a logarithmic scale, with a band of one standard error on each side."""
    nodes, _ = nodes_of(density)
    low, high = nodes[0].item(), nodes[-1].item()
    width = _WIDTH * max(high - low, 1e-3 * max(abs(low), abs(high)), 1e-9)
    at = torch.linspace(low - 5 * width, high + 5 * width, _POINTS, dtype=torch.float64)
    mean, error = smoothed(density, at, width)
    # A tenth of one eigenvalue's peak; less is not drawn.
    floor = 0.1 / (density.parameters * width * math.sqrt(2 * math.pi))
    figure = new_figure(COLUMN, 2.3)
    axes = figure.add_subplot()
    across = at.tolist()
    axes.fill_between(across, (mean - error).clamp_min(floor).tolist(), (mean + error).clamp_min(floor).tolist(),
                      color=LINE_COLOURS[0], alpha=0.3, linewidth=0, label="standard error")  # fmt: skip
    axes.plot(across, mean.clamp_min(floor).tolist(), color=LINE_COLOURS[0], label="density")
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor)
    axes.set_title(surface.card.label)
    axes.set_xlabel("Eigenvalue of the Hessian")
    axes.set_ylabel("Spectral density")
    legend = f"{len(density.starts)} starts, smoothed by {width:.2g}"
    figure.legend(loc="outside lower center", ncols=2, frameon=False, title=legend, title_fontsize=6.5)
    return figure
