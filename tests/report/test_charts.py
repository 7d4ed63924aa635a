from __future__ import annotations

import re

import pytest

from gapssg.report.charts import Chart, Level, Line, draw


def places(chart: Chart, colour: int | None = None) -> list[tuple[float, float]]:
    """The coordinates of all paths, or of those in one of the colours of lines."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', chart.svg)
    shown = [path for path, style in paths if colour is None or f"var(--c{colour})" in style]
    return [(float(x), float(y)) for path in shown for x, y in re.findall(r"[ML] (\S+) (\S+)", path)]


def texts(chart: Chart) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", chart.svg)


def test_a_line_has_marks_on_both_axes_and_a_description():
    chart = draw("Loss", [Line("loss", {1: 4.0, 2: 2.0, 3: 0.0})])
    assert chart is not None
    xs, ys = zip(*places(chart, 0)[:3], strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[0] < ys[1] < ys[2]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert texts(chart) == ["1", "2", "3", "epoch", "0", "1", "2", "3", "4"]
    assert chart.svg.startswith('<svg role="img" aria-label="Loss. loss: 4 at epoch 1 to 0 at epoch 3." ')


def test_shares_are_shown_in_percent_with_the_gap_to_the_level():
    line = Line("student", {1: 0.5, 2: 0.9})
    with_gap = draw("Accuracy", [line], levels=[Level("teacher", 1.0)], percent=True, fills_gap=True)
    without = draw("Accuracy", [line], levels=[Level("teacher", 1.0)], percent=True)
    assert with_gap is not None and without is not None
    assert texts(with_gap)[-1] == "100 %"
    assert with_gap.has_gap and not without.has_gap
    assert "fill: var(--c4)" in with_gap.svg
    assert "fill: var(--c4)" not in without.svg
    ((area, bottom),) = re.findall(
        r'<path id="m[^>]* d="([^"]*)"(?:[^<]|<(?!use))*<use [^>]*y="([^"]*)"[^>]*--c4', with_gap.svg
    )
    corners = {(float(x), round(float(bottom) + float(y), 3)) for x, y in re.findall(r"[ML] (\S+) (\S+)", area)}
    ends = [(x, round(y, 3)) for x, y in places(with_gap, 0)[:2]]
    (level,) = {y for _, y in corners - set(ends)}
    assert corners == {*ends, *((x, level) for x, _ in ends)}


def test_a_single_value_is_centred():
    for value in (0.0, 0.3, -2.0):
        chart = draw("Loss", [Line("loss", {1: value})])
        assert chart is not None
        x, y = re.findall(r'<use [^>]*x="([^"]*)" y="([^"]*)"', chart.svg)[0]
        assert 150 < float(x) < 250
        assert 80 < float(y) < 110


def test_a_long_line_is_thinned_and_keeps_its_ends():
    curve = {float(epoch): 1.0 / epoch for epoch in range(1, 100_001)}
    chart, short = draw("Loss", [Line("loss", curve)]), draw("Loss", [Line("loss", {1.0: 1.0, 100_000.0: 1e-5})])
    assert chart is not None and short is not None
    assert len(places(chart, 0)) <= 400
    first, *_, last = places(chart, 0)
    assert (first, last) == (places(short, 0)[0], places(short, 0)[1])
    assert "<use" not in chart.svg


def test_the_area_of_a_dot_is_its_weight():
    chart = draw("Calibration", [Line("model", {10.0: 0.2, 90.0: 0.8}, weights={10.0: 0.25, 90.0: 1.0})], across="%")
    assert chart is not None
    dots = re.findall(r'<path d="([^"]*)"[^>]*style="fill: var\(--c0\)', chart.svg)
    widths = []
    for dot in dots:
        xs = [float(x) for x in re.findall(r"(?:^M|C \S+ \S+ \S+ \S+|\n?L) (\S+) \S+", dot)]
        widths.append(max(xs) - min(xs))
    assert len(widths) == 2
    assert widths[1] == pytest.approx(2 * widths[0], rel=1e-3)


def test_without_values_there_is_no_chart():
    assert draw("Loss", [Line("loss", {})], levels=[Level("teacher", 1.0)]) is None


def test_names_are_escaped():
    chart = draw('<b>"', [Line("<i>\x1b\ud800", {1: 1.0})], across="<u>")
    assert chart is not None
    assert not re.search("<[biu]>", chart.svg)
    assert 'aria-label="&lt;b&gt;&#34;. &lt;i&gt;\ufffd\ufffd: 1 at &lt;u&gt; 1."' in chart.svg


@pytest.mark.parametrize(
    "values", [{1: -1e308, 2: 1e308}, {1: -1e30, 2: 1e30}, {1: 1e-300, 2: 2e-300}, {1: 5.0, 2: 5.0}]
)
def test_extreme_values_stay_on_the_page(values: dict[float, float]):
    chart = draw("Loss", [Line("loss", values)])
    assert chart is not None
    assert len(places(chart, 0)) >= 2
    assert all(0 <= x <= 360 and 0 <= y <= 220 for x, y in places(chart))
