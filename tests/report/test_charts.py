from __future__ import annotations

import pytest

from gapssg.report.charts import BOTTOM, LEFT, RIGHT, TOP, Level, Line, draw


def places(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


def test_a_line_goes_from_axis_to_axis():
    chart = draw("Loss", [Line("loss", {1: 4.0, 2: 2.0, 3: 0.0})])
    assert chart is not None
    (line,) = chart.lines
    xs, ys = zip(*places(line.points), strict=True)
    assert xs == (LEFT, (LEFT + RIGHT) / 2, RIGHT)
    assert TOP < ys[0] < ys[1] < ys[2] == BOTTOM
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert [tick.label for tick in chart.x_ticks] == ["1", "2", "3"]
    assert chart.y_ticks[0].label == "0"
    assert all(TOP <= tick.place <= BOTTOM for tick in chart.y_ticks)
    assert chart.description == "Loss. loss: 4 at epoch 1 to 0 at epoch 3."


def test_shares_are_shown_in_percent_with_the_gap_to_the_level():
    chart = draw("Accuracy", [Line("student", {1: 0.5, 2: 0.9})], levels=[Level("teacher", 1.0)], percent=True,
                 fills_gap=True)  # fmt: skip
    assert chart is not None
    assert chart.y_ticks[-1].label == "100 %"
    teacher = chart.levels[0].place
    assert places(chart.gap) == [(LEFT, teacher), (RIGHT, teacher), *reversed(places(chart.lines[0].points))]


def test_one_value_stands_in_the_middle():
    for value in (0.0, 0.3, -2.0):
        chart = draw("Loss", [Line("loss", {1: value})])
        assert chart is not None
        assert places(chart.lines[0].points) == [((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)]


def test_a_long_line_is_thinned_and_keeps_its_ends():
    chart = draw("Loss", [Line("loss", {float(epoch): 1.0 / epoch for epoch in range(1, 100_001)})])
    assert chart is not None
    points = places(chart.lines[0].points)
    assert len(points) == 400
    assert points[0][0] == LEFT
    assert points[-1][0] == RIGHT
    assert chart.lines[0].dots == []


def test_the_area_of_a_dot_is_its_weight():
    chart = draw("Calibration", [Line("model", {10.0: 0.2, 90.0: 0.8}, weights={10.0: 0.25, 90.0: 1.0})], across="%")
    assert chart is not None
    (small, large) = chart.lines[0].dots
    assert large[2] == 2 * small[2]
    assert chart.lines[0].points == ""


def test_without_values_there_is_no_chart():
    assert draw("Loss", [Line("loss", {})], levels=[Level("teacher", 1.0)]) is None


@pytest.mark.parametrize("values", [{1: -1e30, 2: 1e30}, {1: 1e-300, 2: 2e-300}, {1: 5.0, 2: 5.0}])
def test_extreme_values_stay_on_the_page(values: dict[float, float]):
    chart = draw("Loss", [Line("loss", values)])
    assert chart is not None
    assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in places(chart.lines[0].points))
