from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gapssg.errors import InputError
from gapssg.landscape.surface import Surface, load_surface, save_surface
from tests.landscape.conftest import make_surface


def bowl() -> torch.Tensor:
    axis = torch.linspace(-1, 1, 5)
    return 0.1 + (axis[:, None] - 0.5) ** 2 + axis[None] ** 2


def test_a_saved_surface_is_read_unchanged_including_overflows(tmp_path: Path):
    loss = bowl()
    loss[0, 0], loss[4, 4], loss[0, 4] = torch.inf, torch.nan, 1e30
    surface = make_surface(loss, seed=7)
    save_surface(tmp_path / "s.safetensors", surface)
    read = load_surface(tmp_path / "s.safetensors")
    assert read.card == surface.card
    assert torch.equal(read.axes, surface.axes)
    torch.testing.assert_close(read.loss, surface.loss, rtol=0, atol=0, equal_nan=True)
    assert read.is_complete
    facts = read.facts(tmp_path)
    assert facts.points_not_finite == 2
    assert facts.highest_loss == pytest.approx(1e30)


def test_facts_have_the_minima_and_whether_the_centre_is_the_lowest():
    facts = make_surface(bowl()).facts(Path())
    assert not facts.centre_is_global_minimum
    assert facts.lowest_loss == pytest.approx(0.1)
    (minimum,) = facts.minima
    assert (minimum.coordinates, minimum.loss, minimum.at_edge) == ((0.5, 0.0), pytest.approx(0.1), False)
    axis = torch.linspace(-1, 1, 5)
    assert make_surface(axis**2).facts(Path()).centre_is_global_minimum


def test_the_first_index_is_the_first_axis_and_the_last_axis_is_fastest():
    surface = make_surface(bowl())
    assert surface.points()[:2] == [(-1.0, -1.0), (-1.0, -0.5)]
    assert surface.points()[7] == (-0.5, 0.0)
    assert surface.loss[1, 2].item() == pytest.approx(0.1 + 1.0)


@pytest.mark.parametrize("keep", [0, 7, 300, -10])
def test_a_truncated_file_is_refused_with_one_sentence(tmp_path: Path, keep):
    path = tmp_path / "s.safetensors"
    save_surface(path, make_surface(bowl()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="not a readable safetensors file" if keep else "is empty") as refused:
        load_surface(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_model_file_is_not_accepted_as_a_surface(teacher_file: Path):
    with pytest.raises(InputError, match="is not a surface of"):
        load_surface(teacher_file)


def test_tensors_that_do_not_match_the_description_are_refused(tmp_path: Path):
    surface = make_surface(bowl())
    surface.loss = surface.loss[:4]
    save_surface(tmp_path / "s.safetensors", surface)
    with pytest.raises(InputError, match="do not match its description"):
        load_surface(tmp_path / "s.safetensors")
    surface = make_surface(bowl())
    surface.measured = 99
    save_surface(tmp_path / "s.safetensors", surface)
    with pytest.raises(InputError, match="description is not valid"):
        load_surface(tmp_path / "s.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("axes", torch.tensor(1.0, dtype=torch.float64)),
        ("axes", torch.linspace(-1, 1, 5).repeat(2, 1)),
        ("axes", torch.linspace(1, -1, 5, dtype=torch.float64).repeat(2, 1)),
        ("axes", torch.tensor([[-1, 0, 0, 0.5, 1]] * 2, dtype=torch.float64)),
        ("axes", torch.tensor([[-1, 0, 0.5, 1, torch.inf]] * 2, dtype=torch.float64)),
        ("loss", torch.ones(5, 5, dtype=torch.int64)),
        ("accuracy", torch.ones(5, 5, dtype=torch.float64)),
        ("mark_coordinates", torch.zeros(0, 2)),
    ],
)
def test_untrusted_values_are_refused(tmp_path: Path, name, value):
    surface = make_surface(bowl())
    setattr(surface, name, value)
    save_surface(tmp_path / "s.safetensors", surface)
    with pytest.raises(InputError, match=r"its tensors do not match|its coordinates are not finite or not ascending"):
        load_surface(tmp_path / "s.safetensors")


def test_a_grid_has_from_2_to_1001_points(tmp_path: Path):
    for points in (1, 1002):
        save_surface(tmp_path / "s.safetensors", make_surface(torch.ones(points)))
        with pytest.raises(InputError, match="do not match its description"):
            load_surface(tmp_path / "s.safetensors")


def test_points_that_are_not_measured_are_nan():
    surface = make_surface(bowl())
    assert Surface.empty(surface.card, surface.axes).loss.isnan().all()


@pytest.mark.parametrize("loss", [torch.nan, torch.inf])
def test_a_centre_without_a_finite_loss_is_not_the_lowest(loss):
    assert not make_surface(torch.full((3, 3), loss)).facts(Path()).centre_is_global_minimum
