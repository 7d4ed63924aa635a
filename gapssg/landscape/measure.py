"""`landscape`: the loss around the weights of models, the numbers behind it, and its figures."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapssg.augment import Normalization
from gapssg.engine.real_images import check_same_images
from gapssg.engine.requests import Requests, Stopped
from gapssg.engine.run_directory import (
    Display,
    RunDirectory,
    SilentDisplay,
    check_output,
    check_same_settings,
    run_facts,
)
from gapssg.errors import InputError
from gapssg.landscape.curvature import measure_curvature
from gapssg.landscape.figures import draw
from gapssg.landscape.layout import Layout
from gapssg.landscape.planes import Site, choose_site
from gapssg.landscape.points import Plane, PointEvaluator
from gapssg.landscape.samples import Samples, read_samples
from gapssg.landscape.settings import LandscapeSettings
from gapssg.landscape.sharpness import radius_of_doubling
from gapssg.landscape.subjects import Subject, read_subjects
from gapssg.landscape.surface import Surface, SurfaceCard, load_surface, save_surface
from gapssg.models.model_file import LoadedModel
from gapssg.runtime import Runtime

_FOLDER = "surfaces"
_POINTS_AT_A_TIME = 8
_SECONDS_BETWEEN_SAVES = 5.0
_POINTS_COMPARED = 9


def measure_landscape(
    settings: LandscapeSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
) -> dict[str, Any]:
    """Measure and draw the loss around the weights of models.

    Writes to `output`: `surfaces/` (one safetensors file each, saved while it is measured), `figures/` (PNG, SVG,
    HTML), `result.json`, and `settings.toml`. With `resume`, what is measured already stays.

    Returns:
        What `result.json` holds: for each surface the loss and accuracy at its centre, its local minima and whether
        the centre is the lowest of all points, the radius in which the loss stays under twice that of the centre (in
        units of the axes; None if it does so everywhere), and the curvature of the loss at the centre.

    Raises:
        InputError: A model, the data or the output directory cannot be used, or they do not fit each other.
        RunError: The disk refused a write.
        Stopped: `requests` asked for it; what is measured is saved.
    """
    display, requests = display or SilentDisplay(), requests or Requests()
    if resume:
        check_same_settings(output, settings)
    else:
        check_output(output, overwrite, [*settings.models, settings.teacher])
    started = time.perf_counter()
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    subjects = read_subjects(settings.models, settings.snapshots, settings.epochs)
    for other in subjects[1:]:
        check_same_images(subjects[0].model, other.model)
    samples = read_samples(settings, subjects[0], runtime, display)
    centres = subjects[:1] if settings.directions == "models" else subjects
    sites = [choose_site(settings, subject, subjects, runtime) for subject in centres]
    blanks = [_blank(settings, *pair, samples, runtime) for pair in zip(centres, sites, strict=True)]
    files = [output / _FOLDER / f"{name}.safetensors" for name in _file_names(blanks)]
    surfaces = [_started(file, blank) if resume else blank for file, blank in zip(files, blanks, strict=True)]
    if resume:
        run = RunDirectory.reopen(output, settings, display, (output / "events.jsonl").stat().st_size)
    else:
        run = RunDirectory(output, settings, display, overwrite)
    what = f"{len(samples):,} {'synthetic samples' if settings.data.name == 'pool' else 'test images'}"
    run.record("start", message=f"measuring {_count(surfaces)} on {what} of {settings.data.name}, {runtime.describe()}")

    reports, seconds, points = [], 0.0, 0
    with runtime.configured(), run:
        run.show_notes(runtime)
        run.folder(_FOLDER)
        for subject, site, surface, file in zip(centres, sites, surfaces, files, strict=True):
            began, before = time.perf_counter(), surface.measured
            evaluator = _evaluator(settings, subject.model, samples, runtime)
            plane = site.plane.to(runtime.device)
            _measure(surface, evaluator, plane, file, run, requests)
            _measure_marks(surface, evaluator, site, runtime)
            save_surface(file, surface)
            seconds += time.perf_counter() - began
            points += surface.measured - before
            facts = surface.facts()
            facts["radius_of_doubling"] = _radius(surface, evaluator, plane)
            facts["curvature"] = None
            if settings.curvature.enabled:
                run.progress(f"curvature of {subject.label}", 0, 1)
                arguments = (subject.model.module, _normalization(subject.model, runtime), samples, runtime)
                facts["curvature"] = measure_curvature(*arguments, settings.curvature)
            facts["bf16_error"] = None
            if runtime.precision == "bf16":
                facts["bf16_error"] = _bf16_error(settings, subject.model, samples, runtime, surface, plane)
            run.record("surface", label=subject.label, points=surface.measured, timing={"seconds": seconds})
            reports.append({**_identity(surface.card), "file": str(file), **facts})
        run.progress("drawing", 0, 1)
        figures = draw(
            dict(zip((file.stem for file in files), surfaces, strict=True)),
            run.folder("figures"),
            own_scale=settings.own_scale,
        )
        result = {
            "command": "landscape",
            "data": settings.data.name,
            "samples": len(samples),
            "loss": samples.loss_name,
            "accuracy": samples.accuracy_name,
            "surfaces": reports,
            "shared_directions": len({subject.model.card.architecture for subject in centres}) == 1,
            "figures": [str(figure) for figure in figures],
            "timing": {
                "total": time.perf_counter() - started,
                "surfaces": seconds,
                "points_per_second": points / seconds if points else None,
            },
            **run_facts(runtime, settings),
        }
        run.write_result(result)
        run.record("end", surfaces=len(surfaces))
    return result


def _blank(settings: LandscapeSettings, subject: Subject, site: Site, samples: Samples, runtime: Runtime) -> Surface:
    card = SurfaceCard(
        name=" to ".join(site.marks) if settings.directions == "models" else subject.name,
        epoch=subject.epoch,
        model_file=str(subject.model.path),
        model_sha256=subject.model.sha256,
        architecture=subject.model.card.architecture,
        directions=settings.directions,
        axis_labels=site.labels,
        explained=site.explained,
        biases_and_norms=settings.biases_and_norms or settings.directions != "random",
        seed=settings.seed,
        range=settings.range,
        data=settings.data.name,
        samples=len(samples),
        loss_name=samples.loss_name,
        accuracy_name=samples.accuracy_name,
        teacher_sha256=subject.model.card.provenance.teacher_sha256,
        recalibrated=settings.recalibrate,
        precision=runtime.precision,
        marks=tuple(site.marks),
    )
    return Surface.empty(card, site.axes.contiguous(), site.mark_coordinates)


def _started(file: Path, blank: Surface) -> Surface:
    """Return the surface that an interrupted run has begun, or the blank one.

    Raises:
        InputError: The file is damaged, or the models have changed since.
    """
    if not file.exists():
        return blank
    surface = load_surface(file)
    if surface.card != blank.card or not torch.equal(surface.axes, blank.axes):
        raise InputError(
            f"{file} was measured around other weights or on other data than {blank.card.model_file} and "
            f"{blank.card.data} are now; start anew with --overwrite"
        )
    return surface


def _evaluator(settings: LandscapeSettings, model: LoadedModel, samples: Samples, runtime: Runtime) -> PointEvaluator:
    normalization = _normalization(model, runtime)
    options = {"batch_size": settings.batch_size, "recalibrate": settings.recalibrate}
    return PointEvaluator(model.module, normalization, samples, runtime, **options)  # type: ignore[arg-type]


def _normalization(model: LoadedModel, runtime: Runtime) -> Normalization:
    return Normalization.from_statistics(model.card.mean, model.card.deviation, runtime.device)


def _measure(
    surface: Surface, evaluator: PointEvaluator, plane: Plane, file: Path, run: RunDirectory, requests: Requests
) -> None:
    """Measure the points that are missing, saving them on the way."""
    points = surface.points()
    label = surface.card.label
    losses, accuracies = evaluator.measure(plane, [(0.0,) * len(surface.axes)])
    surface.centre_loss, surface.centre_accuracy = losses[0], accuracies[0]
    saved = float("-inf")
    requests.attended = True
    try:
        while not surface.is_complete:
            surface.add(*evaluator.measure(plane, points[surface.measured :][:_POINTS_AT_A_TIME]))
            run.progress(f"measuring {label}", surface.measured, len(points))
            if requests.stop is not None or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                save_surface(file, surface)
                run.show("checkpoint", directory=run.path)
                saved = time.monotonic()
            if requests.stop is not None:
                raise Stopped(requests.stop)
    finally:
        requests.attended = False


def _measure_marks(surface: Surface, evaluator: PointEvaluator, site: Site, runtime: Runtime) -> None:
    """Measure the marked models as they are, with their own batch-norm statistics."""
    for index, model in enumerate(site.marks.values()):
        layout = Layout.of(model.module, statistics=True)
        origin = layout.flatten(model.module.state_dict()).to(runtime.device)
        losses, _ = evaluator.measure(Plane(origin, origin[None], layout), [(0.0,)])
        surface.mark_loss[index] = losses[0]


def _radius(surface: Surface, evaluator: PointEvaluator, plane: Plane) -> float | None:
    dimensions = len(surface.axes)
    unit = torch.eye(dimensions, dtype=torch.float64)
    rays = [tuple(ray) for ray in torch.cat([unit, -unit]).tolist()]
    reach = surface.axes.abs().max().item()

    def losses(points: Sequence[tuple[float, ...]]) -> list[float]:
        measured: Tensor = evaluator.measure(plane, points)[0]
        return measured.tolist()

    return radius_of_doubling(losses, rays, surface.centre_loss.item(), reach)


def _bf16_error(
    settings: LandscapeSettings,
    model: LoadedModel,
    samples: Samples,
    runtime: Runtime,
    surface: Surface,
    plane: Plane,
) -> dict[str, Any]:
    """Measure some points of the grid again in float32, and say how far they are from those in bfloat16."""
    exact = Runtime(runtime.device, "fp32", False, runtime.seed, runtime.deterministic)
    points = surface.points()
    chosen = torch.linspace(0, len(points) - 1, min(_POINTS_COMPARED, len(points))).round().long()
    evaluator = _evaluator(settings, model, samples, exact)
    losses, accuracies = evaluator.measure(plane, [points[index] for index in chosen.tolist()])
    relative = ((surface.loss.view(-1)[chosen] - losses) / losses).abs()
    finite = relative[relative.isfinite()]
    return {
        "points": len(chosen),
        "loss_relative": finite.max().item() if len(finite) else None,
        "accuracy": (surface.accuracy.view(-1)[chosen] - accuracies).abs().max().item(),
    }


def _identity(card: SurfaceCard) -> dict[str, Any]:
    return {
        "label": card.label,
        "name": card.name,
        "epoch": card.epoch,
        "model": {"file": card.model_file, "sha256": card.model_sha256, "architecture": card.architecture},
    }


def _count(surfaces: Sequence[Surface]) -> str:
    shape = "x".join(map(str, surfaces[0].loss.shape))
    return f"{len(surfaces)} landscape{'s' if len(surfaces) > 1 else ''} of {shape} points"


def _file_names(surfaces: Sequence[Surface]) -> list[str]:
    names: list[str] = []
    for surface in surfaces:
        name = re.sub(r"\W+", "-", surface.card.label, flags=re.ASCII).strip("-") or "model"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names
