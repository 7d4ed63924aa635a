from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gapssg import InputError, RunError, measure_landscape
from gapssg.core.runtime import Runtime
from gapssg.landscape import measure
from gapssg.landscape.curvature import CentreLoss
from gapssg.landscape.sharpness import radius_of_doubling
from gapssg.landscape.subjects import read_subjects
from gapssg.landscape.surface import load_surface, save_surface
from gapssg.models import create_model
from gapssg.models.model_file import load_model, save_model
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Warned
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.landscape import LandscapeResult, Measurement
from tests.conftest import make_card
from tests.landscape.conftest import make_surface, settings
from tests.run_fixtures import change, events, without_timing


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "draw", lambda *_, **__: [])


class StopsAfter(SilentDisplay):
    """Requests a stop after a number of measured points."""

    def __init__(self, points: int) -> None:
        self.requests, self.points = Requests(), points

    def progress(self, task: str, done: int, total: int) -> None:
        if task.startswith("measuring") and done >= self.points:
            self.requests.stop = 15


def test_a_landscape_of_a_run_on_real_images(run_folder: Path, tmp_path: Path):
    changes = {"curvature": {"lanczos_steps": 2, "trace_samples": 2, "ascent_steps": 2}}
    result = measure_landscape(settings(run_folder, grid=4, **changes), tmp_path / "out")
    assert LandscapeResult.load(tmp_path / "out") == result
    (report,) = result.surfaces
    assert report.label == "run"
    assert report.model.sha256 == load_model(run_folder / "student.safetensors").sha256
    surface = load_surface(report.file)
    assert surface.loss.shape == (4, 4)
    assert report.centre.loss == surface.centre_loss.item()
    assert report.centre_is_global_minimum == (surface.centre_loss <= surface.loss.min()).item()
    assert report.curvature.epsilon_sharpness > 0
    assert report.curvature.trace.error > 0
    assert report.bf16_error is None
    assert result.timing.points_per_second > 0
    assert all(Path(figure).is_file() for figure in result.figures)
    assert len(result.figures) == 5


def test_the_centre_of_an_odd_grid_is_the_model(run_folder: Path, tmp_path: Path, without_figures):
    measure_landscape(settings(run_folder), tmp_path / "out")
    surface = load_surface(tmp_path / "out" / "surfaces" / "run.safetensors")
    assert surface.loss[1, 1] == surface.centre_loss


@pytest.mark.parametrize("directions", ["pca", "eigenvectors"])
def test_an_interrupted_landscape_continues_to_the_uninterrupted_result(
    run_folder: Path, tmp_path: Path, without_figures, directions: str
):
    curvature = {"enabled": False, "lanczos_steps": 2}
    chosen = settings(run_folder, directions=directions, grid=5, curvature=curvature)
    measure_landscape(chosen, tmp_path / "whole")
    display = StopsAfter(8)
    with pytest.raises(Stopped):
        measure_landscape(chosen, tmp_path / "parts", display=display, requests=display.requests)
    file = tmp_path / "parts" / "surfaces" / "run.safetensors"
    assert load_surface(file).measured == 8
    assert not (tmp_path / "parts" / "result.json").exists()
    result = measure_landscape(chosen, tmp_path / "parts", resume=True)
    assert file.read_bytes() == (tmp_path / "whole" / "surfaces" / "run.safetensors").read_bytes()
    (ours,), (whole,) = result.surfaces, LandscapeResult.load(tmp_path / "whole").surfaces
    assert ours.model_copy(update={"file": whole.file}) == whole


def test_measured_points_are_not_measured_again_and_other_settings_are_refused(
    run_folder: Path, tmp_path: Path, without_figures
):
    measure_landscape(settings(run_folder), tmp_path / "out")
    result = measure_landscape(settings(run_folder, own_scale=True), tmp_path / "out", resume=True)
    assert result.timing.points_per_second is None
    with pytest.raises(InputError, match="grid was 3 and is 5"):
        measure_landscape(settings(run_folder, grid=5), tmp_path / "out", resume=True)


def test_a_changed_model_or_a_truncated_surface_is_refused(run_folder: Path, tmp_path: Path, without_figures):
    measure_landscape(settings(run_folder), tmp_path / "out")
    file = tmp_path / "out" / "surfaces" / "run.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        measure_landscape(settings(run_folder), tmp_path / "out", resume=True)
    file.write_bytes(whole)
    save_model(run_folder / "student.safetensors", create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)),
               make_card())  # fmt: skip
    with pytest.raises(InputError, match="the SHA-256 of the model was"):
        measure_landscape(settings(run_folder), tmp_path / "out", resume=True)


def test_a_pool_needs_no_real_images(run_folder: Path, tmp_path: Path, without_figures, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("real images were read")

    monkeypatch.setattr("gapssg.landscape.samples.read_test_images", refuse)
    result = measure_landscape(settings(run_folder, data={"name": "pool"}, samples=30), tmp_path / "out")
    assert result.samples == 30
    assert result.loss == "distillation loss at temperature 20"
    (report,) = result.surfaces
    # The student's weights are the teacher's, so they agree; what is left is rounding of the two ways to batch.
    assert report.centre.accuracy == 1
    assert report.centre.loss == pytest.approx(0, abs=1e-4)
    assert report.centre_is_global_minimum


def test_principal_components_show_the_route(run_folder: Path, tmp_path: Path, without_figures):
    result = measure_landscape(settings(run_folder, directions="pca"), tmp_path / "out")
    (report,) = result.surfaces
    assert sum(report.explained_variance) == pytest.approx(1)  # a route in a plane
    assert [mark.label for mark in report.marks] == ["1", "2", "3"]
    assert report.marks[2].coordinates == pytest.approx([0, 0], abs=1e-4)
    assert report.marks[2].loss == pytest.approx(report.centre.loss, rel=1e-4)
    surface = load_surface(report.file)
    route = surface.mark_coordinates
    extent = route.amax(dim=0).clamp_min(0) - route.amin(dim=0).clamp_max(0)
    width = surface.axes[:, -1] - surface.axes[:, 0]
    torch.testing.assert_close(width, extent)  # range 0.5: as wide as the route


def transformer(folder: Path) -> Path:
    """A small vision transformer of timm, whose attention is PyTorch's."""
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    arguments = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}
    module = create_model(name, num_classes=10, input_shape=(1, 16, 16), arguments=arguments, seed=1)
    save_model(folder / "transformer.safetensors", module, make_card(architecture=name, arguments=arguments))
    return folder / "transformer.safetensors"


@pytest.mark.slow
def test_the_loss_of_a_transformer_along_an_eigenvector_curves_by_its_eigenvalue(tmp_path: Path, without_figures):
    curvature = {"lanczos_steps": 8, "trace_samples": 2, "ascent_steps": 1}
    chosen = settings(transformer(tmp_path), directions="eigenvectors", grid=3, range=0.002, curvature=curvature)
    (report,) = measure_landscape(chosen, tmp_path / "out").surfaces
    surface = load_surface(report.file)
    loss, step = surface.loss.double(), surface.axes[0, 2].item()
    first, second = report.axis_eigenvalues
    assert first.value > second.value > 0
    assert report.curvature.largest_eigenvalue.value == pytest.approx(first.value, rel=1e-6)
    assert report.curvature.missing is None
    assert surface.card.axis_labels[0] == f"Hessian eigenvector 1 (eigenvalue {first.value:.4g})"
    # The losses are those of the fast attention kernel. Their rounding in float32 leaves an error of about 0.1, and the
    # derivatives of higher order are small at this distance.
    assert ((loss[2, 1] + loss[0, 1] - 2 * loss[1, 1]) / step**2).item() == pytest.approx(first.value, rel=0.05)
    assert ((loss[1, 2] + loss[1, 0] - 2 * loss[1, 1]) / step**2).item() == pytest.approx(second.value, rel=0.05)
    mixed = (loss[2, 2] + loss[0, 0] - loss[2, 0] - loss[0, 2]) / (4 * step**2)
    assert abs(mixed.item()) < 0.05 * first.value  # eigenvectors are conjugate


def test_accuracies_of_the_runs_are_drawn_with_their_snapshots(run_folder: Path, tmp_path: Path, monkeypatch):
    timing = {"images_per_second": 1.0, "synthesis": 1.0, "distillation": 1.0}
    epochs = [
        {"event": "epoch", "epoch": number, "epochs": 3, "top1": top1, "reality_gap_before": 0.1,
         "reality_gap_after": 0.1, "timing": timing} for number, top1 in enumerate((0.5, None, 0.75), 1)
    ]  # fmt: skip
    (run_folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in epochs))
    drawn: list[Any] = []

    def remember(*_: object, accuracies: Any, **__: object) -> list[Path]:
        drawn.append(accuracies)
        return []

    monkeypatch.setattr(measure, "draw", remember)
    measure_landscape(settings(run_folder, snapshots=True, epochs=(3,)), tmp_path / "out")
    measure_landscape(settings(run_folder), tmp_path / "other")
    assert drawn == [{"run": {1: 0.5, 3: 0.75}}, {}]


def test_students_of_a_table_are_named_by_their_methods(run_folder: Path, tmp_path: Path):
    runs = [tmp_path / "cells" / "digits" / name / f"seed-0-{name.encode().hex()}" for name in ("gapssg", "fast")]
    for run in runs:
        shutil.copytree(run_folder, run)
    assert [subject.name for subject in read_subjects(tuple(runs), False, None)] == ["gapssg", "fast"]
    again = read_subjects((runs[0], runs[0]), False, None)  # not distinct
    assert len({subject.name for subject in again}) == 2


def test_every_snapshot_of_several_runs_is_measured_in_the_same_directions(
    run_folder: Path, second_run: Path, tmp_path: Path, without_figures
):
    chosen = settings(run_folder, second_run, snapshots=True, epochs=(1, 3))
    result = measure_landscape(chosen, tmp_path / "out")
    labels = [report.label for report in result.surfaces]
    assert labels == ["run, epoch 1", "run, epoch 3", "second, epoch 1", "second, epoch 3"]
    assert result.shared_directions
    first, _, third, _ = (load_surface(report.file).loss for report in result.surfaces)
    assert torch.equal(first, third)  # the second run is a copy of the first


def test_a_plane_through_three_models_marks_them(run_folder: Path, tmp_path: Path, without_figures):
    files = [run_folder / "student.safetensors", *sorted((run_folder / "snapshots").glob("*"))[:2]]
    result = measure_landscape(settings(*files, directions="models", recalibrate=True), tmp_path / "out")
    (report,) = result.surfaces
    assert [mark.label for mark in report.marks] == ["run", "epoch-0001", "epoch-0002"]
    assert report.marks[1].coordinates == (1, 0)


def test_bfloat16_reports_its_error_against_float32(run_folder: Path, tmp_path: Path, without_figures):
    chosen = settings(run_folder, samples=8, runtime={"device": "cpu", "precision": "bf16"})
    error = measure_landscape(chosen, tmp_path / "out").surfaces[0].bf16_error
    assert error.points == 9
    assert 0 < error.loss_relative < 0.05


def test_bad_input_is_refused_before_anything_is_written(
    run_folder: Path, teacher_file: Path, image_folder: Path, tmp_path: Path
):
    other = tmp_path / "other.safetensors"
    save_model(other, create_model("wrn16_2", num_classes=10, input_shape=(1, 16, 16)),
               make_card(architecture="wrn16_2"))  # fmt: skip
    empty = tmp_path / "empty"
    empty.mkdir()
    snapshots = sorted((run_folder / "snapshots").glob("*"))
    cases = {
        "holds neither student.safetensors nor": settings(empty),
        r"\(wrn10_half\) and .* \(wrn16_2\) differ in architecture": settings(
            teacher_file, other, directions="models", dimensions=1
        ),
        "the first two have the same weights": settings(snapshots[2], run_folder, directions="models", dimensions=1),
        "2 classes, but": settings(teacher_file, data={"name": f"folder:{image_folder}"}),
        "has no snapshot of epoch 7": settings(run_folder, snapshots=True, epochs=(7,)),
        "is not a run; name the run's directory, which": settings(teacher_file, directions="pca"),
        "is not a run; name the run's directory, not": settings(teacher_file, data={"name": "pool"}),
        "is a file without snapshots": settings(teacher_file, snapshots=True),
    }
    for words, chosen in cases.items():
        with pytest.raises(InputError, match=words) as refused:
            measure_landscape(chosen, tmp_path / "out")
        assert refused.value.exit_status == 2
        assert len(str(refused.value).splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_data_of_another_shape_than_the_model_takes_is_refused(tmp_path: Path):
    file = tmp_path / "colour.safetensors"
    save_model(file, create_model("wrn10_half", num_classes=10, input_shape=(3, 32, 32)),
               make_card(input_shape=(3, 32, 32), mean=(0.5,) * 3, deviation=(0.5,) * 3))  # fmt: skip
    with pytest.raises(InputError, match=r"but .* takes 3x32x32"):
        measure_landscape(settings(file), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pool_with_a_missing_or_another_teacher_is_refused(run_folder: Path, teacher_file: Path, tmp_path: Path):
    moved = teacher_file.rename(tmp_path / "moved.safetensors")
    chosen = {"data": {"name": "pool"}}
    with pytest.raises(InputError, match="which --teacher may name: "):
        measure_landscape(settings(run_folder, **chosen), tmp_path / "out")
    with pytest.raises(InputError, match="is not the teacher of"):
        wrong = run_folder / "student.safetensors"
        measure_landscape(settings(run_folder, teacher=wrong, **chosen), tmp_path / "out")
    assert moved.exists()


def scale_variances(file: Path, factor: float) -> None:
    """Change only the batch-norm statistics of a model."""
    model = load_model(file)
    for name, buffer in model.module.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(factor)
    save_model(file, model.module, model.card)


def test_marked_models_do_not_change_the_statistics_of_others(
    run_folder: Path, tmp_path: Path, without_figures, monkeypatch
):
    for file in (run_folder / "snapshots").iterdir():
        scale_variances(file, 5)
    centres = []

    def spy(loss: Any, rays: Any, reaches: Any, centre_loss: float) -> float | None:
        centres.append((loss((0.0, 0.0)), centre_loss))
        return radius_of_doubling(loss, rays, reaches, centre_loss)

    monkeypatch.setattr(measure, "radius_of_doubling", spy)
    (report,) = measure_landscape(settings(run_folder, directions="pca"), tmp_path / "out").surfaces
    ((again, centre),) = centres
    assert again == centre
    # The last snapshot has the student's weights, and statistics of its own.
    assert abs(report.marks[2].loss - centre) > 1e-3


@pytest.mark.slow
def test_marks_are_never_recalibrated(run_folder: Path, tmp_path: Path, without_figures):
    plain = measure_landscape(settings(run_folder, directions="pca"), tmp_path / "plain")
    recalibrated = measure_landscape(
        settings(run_folder, directions="pca", recalibrate=True), tmp_path / "recalibrated"
    )
    assert recalibrated.surfaces[0].marks == plain.surfaces[0].marks
    assert recalibrated.surfaces[0].centre != plain.surfaces[0].centre


def test_a_changed_second_model_is_refused(run_folder: Path, tmp_path: Path, without_figures):
    second = run_folder / "snapshots" / "epoch-0001.safetensors"
    chosen = settings(run_folder, second, directions="models", dimensions=1)
    measure_landscape(chosen, tmp_path / "out")
    scale_variances(second, 2)
    with pytest.raises(InputError, match="the SHA-256 of the marked models was"):
        measure_landscape(chosen, tmp_path / "out", resume=True)


def test_every_model_whose_run_failed_is_named(run_folder: Path, second_run: Path, tmp_path: Path, without_figures):
    student = second_run / "student.safetensors"
    shutil.copy(second_run / "snapshots" / "epoch-0001.safetensors", student)
    change(second_run / "result.json", lambda result: result.update(failures=["it is poor"]))
    measure_landscape(settings(run_folder, second_run, directions="models", dimensions=1), tmp_path / "out")
    messages = [event["message"] for event in events(tmp_path / "out") if event["event"] == "warning"]
    assert messages == [f"FAILED: {student} is not usable: it is poor"]


def test_another_pool_or_teacher_is_refused(run_folder: Path, teacher_file: Path, tmp_path: Path, without_figures):
    student = run_folder / "student.safetensors"
    save_model(student, load_model(student).module, make_card())  # does not say who its teacher was
    chosen = settings(run_folder, data={"name": "pool"})
    measure_landscape(chosen, tmp_path / "out")
    teacher = teacher_file.read_bytes()
    scale_variances(teacher_file, 2)
    with pytest.raises(InputError, match="the SHA-256 of the teacher was"):
        measure_landscape(chosen, tmp_path / "out", resume=True)
    teacher_file.write_bytes(teacher)
    (run_folder / "pool" / "shard-0000.safetensors").unlink()
    with pytest.raises(InputError, match="the SHA-256 of the samples was"):
        measure_landscape(chosen, tmp_path / "out", resume=True)


def test_axes_that_another_machine_rounded_differently_continue(run_folder: Path, tmp_path: Path, without_figures):
    chosen = settings(run_folder, directions="pca")
    measure_landscape(chosen, tmp_path / "out")
    file = tmp_path / "out" / "surfaces" / "run.safetensors"
    surface = load_surface(file)
    surface.axes *= 1 + 1e-14
    surface.card = surface.card.model_copy(update={"explained": tuple(x * (1 - 1e-14) for x in surface.card.explained)})
    save_surface(file, surface)
    result = measure_landscape(chosen, tmp_path / "out", resume=True)
    assert result.surfaces[0].explained_variance == surface.card.explained


class RemembersEvents(SilentDisplay):
    def __init__(self) -> None:
        self.events: list[str] = []

    def event(self, event: Event) -> None:
        self.events.append(event.kind)


def test_a_finished_surface_is_not_measured_again(run_folder: Path, tmp_path: Path, without_figures, monkeypatch):
    changes = {"curvature": {"lanczos_steps": 2, "trace_samples": 2, "ascent_steps": 2}}
    chosen = settings(run_folder, directions="pca", **changes)
    first = measure_landscape(chosen, tmp_path / "out")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was measured again")

    monkeypatch.setattr(measure, "PointEvaluator", refuse)
    monkeypatch.setattr(measure, "measure_curvature", refuse)
    display = RemembersEvents()
    again = measure_landscape(chosen, tmp_path / "out", resume=True, display=display)
    assert again.surfaces == first.surfaces
    assert display.events[:2] == ["prepared", "checkpoint"]


@pytest.mark.parametrize("left", [None, 0, 30, -10, -1])
def test_a_continued_landscape_has_every_event_once(
    run_folder: Path, tmp_path: Path, without_figures, left: int | None
):
    measure_landscape(settings(run_folder), tmp_path / "out")
    file = tmp_path / "out" / "events.jsonl"
    expected = [without_timing(event) for event in events(tmp_path / "out")]
    assert [event["event"] for event in expected] == ["start", "surface", "end"]
    if left is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:left])
    measure_landscape(settings(run_folder), tmp_path / "out", resume=True)
    assert [without_timing(event) for event in events(tmp_path / "out")] == expected


def test_exact_measurements_run_with_float32_configured(run_folder: Path, tmp_path: Path, without_figures, monkeypatch):
    configured, seen = [], []

    @contextmanager
    def remembered(self: Runtime) -> Iterator[None]:
        configured.append(self.precision)
        yield
        configured.pop()

    def watched(module: str, name: str) -> None:
        original = getattr(__import__(module, fromlist=[name]), name)

        def spy(*arguments: Any, **options: Any) -> Any:
            seen.append((name, configured[-1]))
            return original(*arguments, **options)

        monkeypatch.setattr(f"{module}.{name}", spy)

    monkeypatch.setattr(Runtime, "configured", remembered)
    watched("gapssg.evaluation.predict", "frozen")  # of `predict`
    watched("gapssg.landscape.measure", "measure_curvature")
    changes = {"curvature": {"lanczos_steps": 2, "trace_samples": 2, "ascent_steps": 2}}
    runtime = {"device": "cpu", "precision": "bf16"}
    measure_landscape(settings(run_folder, data={"name": "pool"}, runtime=runtime, **changes), tmp_path / "out")
    assert seen == [("frozen", "fp32"), ("measure_curvature", "fp32")]


def test_routes_of_two_runs_have_different_directions(
    run_folder: Path, second_run: Path, tmp_path: Path, without_figures
):
    result = measure_landscape(settings(run_folder, second_run, directions="pca"), tmp_path / "out")
    assert not result.shared_directions


def test_each_surface_has_its_own_file():
    names = ("a b", "a-b", "a-b-2", "a.b")
    surfaces = [make_surface(torch.ones(3), name=name) for name in names]
    assert len(set(measure._file_names(surfaces))) == len(names)


def lacks_second_derivatives(*_: object) -> torch.Tensor:
    raise NotImplementedError("derivative for aten::_attention_backward is not implemented\nDetails follow")


CURVED = {"curvature": {"lanczos_steps": 2, "trace_samples": 2, "ascent_steps": 2}}


def test_without_second_derivatives_the_rest_is_measured_and_the_missing_is_reported(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CentreLoss, "hessian_product", lacks_second_derivatives)
    warnings: list[Warned] = []

    class Listening(SilentDisplay):
        def event(self, event: Event) -> None:
            warnings.extend([event] if isinstance(event, Warned) else [])

    result = measure_landscape(settings(run_folder, **CURVED), tmp_path / "out", display=Listening())
    (surface,) = result.surfaces
    reason = "no eigenvalue and trace: derivative for aten::_attention_backward is not implemented"
    assert surface.curvature.missing == reason
    assert surface.curvature.trace == surface.curvature.largest_eigenvalue == Measurement()
    assert surface.curvature.epsilon_sharpness > 0
    assert [warning.message for warning in warnings] == [f"the curvature of run has {reason}"]
    assert all(Path(figure).is_file() for figure in result.figures)
    assert LandscapeResult.load(tmp_path / "out") == result


def test_eigenvectors_of_a_network_without_second_derivatives_are_refused_before_anything_is_written(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CentreLoss, "hessian_product", lacks_second_derivatives)
    with pytest.raises(InputError, match=r"has no second derivatives: derivative for .*; use --directions random$"):
        measure_landscape(settings(run_folder, directions="eigenvectors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_of_memory_in_the_curvature_is_not_reported_as_a_missing_derivative(
    run_folder: Path, tmp_path: Path, without_figures, monkeypatch: pytest.MonkeyPatch
):
    def exhaust(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CentreLoss, "hessian_product", exhaust)
    with pytest.raises(RunError, match=r"^out of memory"):
        measure_landscape(settings(run_folder, **CURVED), tmp_path / "out")


def test_a_landscape_that_failed_on_its_curvature_continues_without_it_and_then_with_it(
    run_folder: Path, tmp_path: Path, without_figures, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr(measure, "measure_curvature", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure_landscape(settings(run_folder, **CURVED), tmp_path / "out")
    file = tmp_path / "out" / "surfaces" / "run.safetensors"
    assert load_surface(file).is_complete
    without = settings(run_folder, curvature={**CURVED["curvature"], "enabled": False})
    (surface,) = measure_landscape(without, tmp_path / "out", resume=True).surfaces
    assert surface.curvature is None
    result = measure_landscape(settings(run_folder, **CURVED), tmp_path / "out", resume=True)
    (surface,) = result.surfaces
    assert surface.curvature.trace.value is not None
    assert result.timing.points_per_second is None  # no point was measured again
    (whole,) = measure_landscape(settings(run_folder, **CURVED), tmp_path / "whole").surfaces
    assert surface.model_copy(update={"file": whole.file}) == whole


def test_a_spectral_density_is_added_to_a_finished_landscape(run_folder: Path, tmp_path: Path, without_figures):
    curvature = {**CURVED["curvature"], "spectrum_starts": 2, "spectrum_steps": 3}
    without = settings(run_folder, curvature=curvature)
    measure_landscape(without, tmp_path / "out")
    chosen = settings(run_folder, curvature={**curvature, "spectrum": True})
    result = measure_landscape(chosen, tmp_path / "out", resume=True)
    assert result.timing.points_per_second is None  # no point was measured again
    density = result.surfaces[0].curvature.spectral_density
    module = load_model(run_folder / "student.safetensors").module
    assert density.parameters == sum(parameter.numel() for parameter in module.parameters())
    for start in density.starts:
        assert len(start) == 3
        assert sum(weight for _, weight in start) == pytest.approx(1)
    assert load_surface(tmp_path / "out" / "surfaces" / "run.safetensors").spectral_density == density
    assert LandscapeResult.load(tmp_path / "out") == result
    (again,) = measure_landscape(without, tmp_path / "out", resume=True).surfaces
    assert again.curvature.spectral_density == density
