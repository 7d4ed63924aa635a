"""The style of all figures, written as PNG and SVG (animations as GIF) at the size of a paper's column, reproducibly.

Line colours are the palette of Okabe and Ito, which is safe for colour-blind readers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from gapssg.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = TypeVar("Value")

COLUMN = 3.35  # inches: 8.5 cm
PAGE = 6.9  # two columns
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
_DOTS_PER_INCH = 300
_DOTS_PER_INCH_OF_ANIMATIONS = 200
_ANIMATION_SECONDS, _LAST_SECONDS = 6.0, 2.0
_FRAME_SECONDS = (0.05, 0.8)  # shortest and longest
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


class LineLook(TypedDict):
    """How matplotlib draws a line."""

    color: str
    linestyle: str


def line_look(number: int) -> LineLook:
    """Return the colour and the dashes of a line by its number in a figure, for matplotlib."""
    return {"color": LINE_COLOURS[number % len(LINE_COLOURS)], "linestyle": DASHES[number % len(DASHES)]}


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


def write_animation(folder: Path, name: str, make: Callable[[], tuple[Figure, Iterable[object]]]) -> Path:
    """Write an animated GIF, which repeats and whose last frame is held for two seconds.

    Args:
        folder: An existing folder.
        name: The name of the file, without extension.
        make: Returns a figure, and what draws the next frame into it each time it is advanced, at least once; called in
            the common style.

    Returns:
        The file.

    Raises:
        RunError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    images: list[Image.Image] = []
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure, frames = make()
        figure.set_dpi(_DOTS_PER_INCH_OF_ANIMATIONS)
        canvas: Any = FigureCanvasAgg(figure)
        for _ in frames:
            canvas.draw()
            figure.set_layout_engine("none")  # the layout of the first frame
            image = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
            palette = images[0] if images else None  # of the first frame, so that colours stay the same
            images.append(image.quantize(palette=palette, dither=Image.Dither.NONE))
    shortest, longest = _FRAME_SECONDS
    each = min(max(_ANIMATION_SECONDS / len(images), shortest), longest)
    durations = [round(1000 * seconds) for seconds in [each] * (len(images) - 1) + [_LAST_SECONDS]]
    buffer, file = io.BytesIO(), folder / f"{name}.gif"
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    write_atomically(file, buffer.getvalue())
    return file


def evenly_spaced(values: Sequence[Value], count: int) -> list[Value]:
    """Return at most `count` evenly spaced values, including the first and the last."""
    if len(values) <= count:
        return list(values)
    return [values[round(index * (len(values) - 1) / (count - 1))] for index in range(count)]
