"""The page about an audit: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL.Image import Image

from gapssg._version import __version__
from gapssg.audit.findings import area, with_interval
from gapssg.report.charts import Chart, Line, draw
from gapssg.report.page import page_environment
from gapssg.report.pictures import embed
from gapssg.runs.results.audit import AuditResult, Role

_LARGEST_SIDE = 4096  # pixels of the sheet


class Curve(NamedTuple):
    """The ROC curve of an attack on a model: true-positive by false-positive rate."""

    attack: str
    role: Role
    points: Mapping[float, float]


def render_page(result: AuditResult, curves: Sequence[Curve], sheet: Image | None) -> str:
    """Return the page; `sheet` is the picture of the closest pairs."""
    environment = page_environment("gapssg.audit")
    environment.filters |= {"interval": with_interval, "area": area}
    return environment.get_template("audit.html.jinja").render(
        result=result,
        charts_of_attacks=[_chart(name, curves) for name in dict.fromkeys(curve.attack for curve in curves)],
        sheet=None if sheet is None else embed("the closest pairs", sheet, _LARGEST_SIDE),
        version=__version__,
    )


def _chart(attack: str, curves: Sequence[Curve]) -> Chart | None:
    lines = [Line("chance", {0.0: 0.0, 100.0: 1.0}, 5, is_dashed=True)]
    for number, curve in enumerate(each for each in curves if each.attack == attack):
        points = {100 * wrong: found for wrong, found in curve.points.items()}
        lines.append(Line(curve.role, points, number))
    return draw(f"Members found: {attack}", lines, across="false positives, %", percent=True, from_zero=True)
