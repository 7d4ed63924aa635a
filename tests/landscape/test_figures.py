from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.interpolate import RegularGridInterpolator

from gapssg.errors import InputError
from gapssg.figures import COLUMN, write_animation
from gapssg.landscape.figures import contour, draw, route_animation, sheet, sheet_3d
from gapssg.landscape.interactive import heights_at, interactive_html
from gapssg.landscape.panels import azimuth_of, short
from gapssg.landscape.scale import Scale, scale_of, tick_text
from gapssg.landscape.surface import Surface, load_surface, save_surface
from tests.landscape.conftest import make_surface

AXIS = torch.linspace(-1, 1, 5)
BOWL = 0.1 + (AXIS[:, None] - 0.5) ** 2 + AXIS[None] ** 2


def text_of(svg: Path) -> str:
    """The texts of a figure, which matplotlib writes as comments next to their outlines."""
    return " ".join(re.findall(r"<!-- (.*?) -->", svg.read_text()))


@pytest.mark.slow
def test_a_saved_surface_is_drawn_without_its_model(tmp_path: Path):
    save_surface(tmp_path / "s.safetensors", make_surface(BOWL, model_file="/nowhere/student.safetensors"))
    files = draw({"student": load_surface(tmp_path / "s.safetensors")}, tmp_path)
    assert {file.name for file in files} == {
        *("student-contour.png", "student-contour.svg", "student-surface.png", "student-surface.svg"),
        "student-interactive.html",
    }
    with Image.open(tmp_path / "student-contour.png") as picture:
        width = picture.width / picture.info["dpi"][0]
    assert width == pytest.approx(COLUMN, abs=0.3)
    words = text_of(tmp_path / "student-contour.svg")
    for label in ("random direction 1", "random direction 2", "Cross-entropy", "local minimum of the grid", "centre"):
        assert label in words


def test_the_same_surface_gives_the_same_files(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        draw({"s": make_surface(AXIS**2 + 0.1)}, folder)
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_the_interactive_surface_needs_no_network():
    page = interactive_html(make_surface(BOWL), Scale(0.1, 3.0))
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert "Plotly.newPlot" in page
    assert len(page) > 1_000_000  # Plotly itself is in it


def test_the_interactive_surface_fills_the_window_and_its_titles_stay_in_it():
    page = interactive_html(make_surface(BOWL), Scale(0.1, 3.0))
    head, body = page.split("<body>", 1)
    assert "<style>body { margin: 0; overflow: hidden }</style></head>" in head
    assert re.match(r"\s*<div style=.height: ?100%; width: ?100%;.>", body)
    assert re.search(r'id="landscape" class="plotly-graph-div" style="height: ?100%; width: ?100%;"', body)
    assert '"side":"right"' in page  # above its bar, a long title would run out of the window
    eye = json.loads(re.findall(r'"eye":(\{[^}]+\})', page)[-1])
    assert sum(part**2 for part in eye.values()) ** 0.5 > 1.25 * 3**0.5  # Plotly's own place cuts the axes' titles


def test_overflows_are_clipped_reported_and_kept(tmp_path: Path):
    loss = BOWL.clone()
    loss[0, 0], loss[4, 4], loss[0, 4] = torch.inf, torch.nan, 1e30
    surface = make_surface(loss)
    draw({"s": surface}, tmp_path)
    highest = tick_text(scale_of([surface]).high)
    assert f"3 of 25 points clipped to {highest}" in text_of(tmp_path / "s-contour.svg")
    assert f"3 of 25 points clipped to {highest}" in text_of(tmp_path / "s-surface.svg")
    assert f"3 of 25 points clipped to {highest}" in (tmp_path / "s-interactive.html").read_text()
    assert surface.loss[0, 0] == torch.inf
    assert surface.loss[0, 4].item() == pytest.approx(1e30)


@pytest.mark.parametrize("loss", [torch.full((5, 5), torch.nan), torch.zeros(5, 5)])
def test_a_flat_or_diverged_surface_is_drawn(tmp_path: Path, loss):
    assert draw({"s": make_surface(loss)}, tmp_path)


def test_curves_show_loss_and_accuracy_of_each_model(tmp_path: Path):
    curves = {name: make_surface(AXIS**2 + 0.1, name=name) for name in ("gapssg", "noise $x$")}
    assert [file.name for file in draw(curves, tmp_path)] == ["curves.png", "curves.svg"]
    words = text_of(tmp_path / "curves.svg")
    for label in ("gapssg", "noise $x$", "Cross-entropy", "Accuracy, %", "random direction 1"):
        assert label in words


@pytest.mark.parametrize("own_scale", [False, True])
def test_the_sheet_has_a_row_for_each_run_and_a_column_for_each_epoch(own_scale):
    surfaces = [make_surface(BOWL * epoch, name=name, epoch=epoch) for name in "ab" for epoch in (1, 2, 9)]
    panels = sheet(surfaces[:-1], own_scale=own_scale).axes[:6]  # what comes after them are colour bars
    assert [panel.get_title() for panel in panels] == ["epoch 1", "epoch 2", "epoch 9", "", "", ""]
    assert [panel.get_ylabel() for panel in panels] == ["a", "", "", "b", "", ""]
    assert [panel.axison for panel in panels] == [True] * 5 + [False]  # the missing one is left empty


def test_surfaces_share_one_scale_that_contains_them_all():
    low, high = make_surface(BOWL), make_surface(BOWL * 50)
    both = scale_of([low, high])
    assert both.low == scale_of([low]).low
    assert both.high == scale_of([high]).high
    assert Scale(0.01, 30.0).ticks() == pytest.approx([0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30])


def test_the_route_is_drawn_with_its_epochs():
    surface = route_surface()
    figure = contour(surface, scale_of([surface]))
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"epoch 1", "epoch 5"} <= set(words)
    assert "training route" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_an_incomplete_surface_is_not_drawn(tmp_path: Path):
    surface = make_surface(BOWL)
    surface.measured = 7
    with pytest.raises(InputError, match="7 of 25 points are measured; continue with gapssg landscape --resume"):
        draw({"s": surface}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_parentheses_at_the_end_are_removed():
    assert short("random direction 1 (filter norms)") == "random direction 1"
    assert short("towards net (2) of a run") == "towards net (2) of a run"


def test_panels_share_limits_only_where_their_axes_are_equal():
    first, second = make_surface(BOWL, name="a"), make_surface(BOWL, name="b")
    second.axes = second.axes * 3
    left, right = sheet([first, second]).axes[:2]
    assert left.get_xlim() == pytest.approx((-1, 1), rel=0.05)
    assert right.get_xlim() == pytest.approx((-3, 3), rel=0.05)


def lines_of(axes: Any) -> list[Any]:
    return list(axes.lines)


def route_surface() -> Surface:
    surface = make_surface(BOWL, directions="pca", marks=("1", "5"), marks_sha256=("0", "1"), explained=(0.9, 0.1))
    surface.mark_coordinates, surface.mark_loss = torch.tensor([[-1.0, 1.0], [0.5, 0.0]]).double(), torch.ones(2)
    return surface


def test_the_animation_reaches_one_more_snapshot_in_each_frame(tmp_path: Path):
    surface = route_surface()
    figure, frames = route_animation(surface, scale_of([surface]))
    (route,) = (line for line in lines_of(figure.axes[0]) if line.get_label() == "training route")
    seen = [(figure.axes[0].get_title(), list(route.get_xdata()), list(route.get_ydata())) for _ in frames]
    assert seen == [
        ("student, epoch 1", [-1.0], [1.0]),
        ("student, epoch 5", [-1.0, 0.5], [1.0, 0.0]),
        ("student", [-1.0, 0.5, 0.0], [1.0, 0.0, 0.0]),
    ]
    file = write_animation(tmp_path, "route", partial(route_animation, surface, scale_of([surface])))
    animation: Any
    with Image.open(file) as animation:
        assert animation.n_frames == 3
        assert animation.info["loop"] == 0
        durations = []
        for frame in range(3):
            animation.seek(frame)
            durations.append(animation.info["duration"])
    assert durations == [800, 800, 2000]


def test_the_interactive_surface_plays_the_route():
    surface = route_surface()
    page = interactive_html(surface, scale_of([surface]))
    frames = json.loads(re.findall(r"Plotly\.addFrames\('landscape', (\[.*?\])\)", page, re.DOTALL)[-1])
    assert [frame["name"] for frame in frames] == ["epoch 1", "epoch 5", "student"]
    assert [len(frame["data"][0]["x"]) for frame in frames] == [1, 2, 3]
    assert "Plotly.animate(" not in page.split("Plotly.addFrames(")[-1]  # it does not play until it is asked to


def test_heights_of_a_route_are_bilinear_between_points_of_the_grid():
    surface = route_surface()
    scale = scale_of([surface])
    places = torch.tensor([[-1.0, 1.0], [0.5, 0.0], [0.1, -0.4], [0.0, 0.0]], dtype=torch.float64)
    heights = scale.clip(BOWL).log10()
    expected = RegularGridInterpolator((AXIS.double(), AXIS.double()), heights)(places)
    torch.testing.assert_close(heights_at(surface, scale, places), torch.as_tensor(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("accuracies", [{}, {"a": {1: 0.5, 9: 0.9}, "b": {1: 0.2, 9: 0.4}}])
def test_surfaces_stand_in_the_grid_of_the_sheet_below_the_accuracies(accuracies):
    bowls = {"a": BOWL, "b": BOWL.flip(0, 1)}
    surfaces = [make_surface(bowls[name] * epoch, name=name, epoch=epoch) for name in "ab" for epoch in (1, 2, 9)]
    assert len({azimuth_of([surface], scale_of(surfaces)) for surface in surfaces}) > 1
    figure = sheet_3d(surfaces[:-1], accuracies)
    panels: list[Any] = [axes for axes in figure.axes if axes.name == "3d"]
    assert [panel.get_title() for panel in panels] == [surface.card.label for surface in surfaces[:-1]] + [""]
    assert [panel._axis3don for panel in panels] == [True] * 5 + [False]
    limits = {panel.get_zlim() for panel in panels[:-1]}
    assert len(limits) == 1  # one scale
    assert len({panel.azim for panel in panels[:-1]}) == 1  # and one viewing direction
    lines = lines_of(figure.axes[0]) if accuracies else []
    curves = {line.get_label(): list(line.get_ydata()) for line in lines if len(line.get_xdata()) == 2}
    assert {name: curves[name] for name in accuracies} == {
        name: pytest.approx([100 * share for share in curve.values()]) for name, curve in accuracies.items()
    }
    marked = {line.get_xdata()[0] for line in lines if list(line.get_ydata()) == [0, 1]}
    assert marked == ({1, 2, 9} if accuracies else set())
