"""The style of all figures, written as PNG and SVG at the size of a paper's column, reproducibly.

Line colours are the palette of Okabe and Ito, which is safe for colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gapssg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.35  # inches: 8.5 cm
PAGE = 6.9  # two columns
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
_DOTS_PER_INCH = 300
_STYLE = {
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "grid.linewidth": 0.4,
    "svg.hashsalt": "gapssg",  # the same figure is the same file
    "savefig.dpi": _DOTS_PER_INCH,
    "text.parse_math": False,  # file names may contain dollar signs
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure without a window; sizes in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def write_figure(folder: Path, name: str, make: Callable[[], Figure]) -> list[Path]:
    """Write a figure, which `make` draws in the common style, as PNG and SVG named `name` into an existing folder.

    Returns the files; raises `RunError` if one cannot be written.
    """
    import matplotlib

    files = []
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = make()
        for kind in ("png", "svg"):
            buffer = io.BytesIO()
            metadata = {"Date": None} if kind == "svg" else None
            figure.savefig(buffer, format=kind, bbox_inches="tight", pad_inches=0.04, metadata=metadata)
            file = folder / f"{name}.{kind}"
            write_atomically(file, buffer.getvalue())
            files.append(file)
    return files
