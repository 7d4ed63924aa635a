"""`landscape`: measures and draws the loss around the weights of models."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError, shortened
from gapssg.evaluation.real_images import check_same_images
from gapssg.files import is_file, user_path
from gapssg.landscape.curvature import measure_curvature
from gapssg.landscape.figures import draw
from gapssg.landscape.layout import Layout
from gapssg.landscape.planes import Site, along_eigenvectors, choose_site
from gapssg.landscape.points import Plane, PointEvaluator
from gapssg.landscape.samples import Samples, read_samples
from gapssg.landscape.settings import LandscapeSettings
from gapssg.landscape.sharpness import radius_of_doubling
from gapssg.landscape.subjects import Subject, accuracy_by_epoch, read_subjects
from gapssg.landscape.surface import Surface, SurfaceCard, load_surface, save_surface
from gapssg.models.model_file import LoadedModel
from gapssg.runs.directory import Display, RunDirectory, SilentDisplay, run_facts, sha256_of_fixed_settings
from gapssg.runs.events import CheckpointWritten, Event, LandscapeEnded, Started, SurfaceMeasured, SurfaceTiming, Warned
from gapssg.runs.failures import warnings_of_run
from gapssg.runs.requests import Requests
from gapssg.runs.results.landscape import Bf16Error, CentreFacts, LandscapeResult, LandscapeTiming
from gapssg.safe_paths import inside
from gapssg.training.loop import Job, Launch, Phase

_FOLDER = "surfaces"
_POINTS_AT_A_TIME = 8
_SECONDS_BETWEEN_SAVES = 5.0
_POINTS_COMPARED = 9

# Fields of a surface that must be equal when a run continues it, with names for messages; other fields are named by
# their own names. Derived fields may differ in their last digits between machines.
_INPUTS = {
    "model_sha256": "the SHA-256 of the model",
    "marks_sha256": "the SHA-256 of the marked models",
    "samples_sha256": "the SHA-256 of the samples",
    "teacher_sha256": "the SHA-256 of the teacher",
    "settings_sha256": "the SHA-256 of the settings",
}
_DERIVED = {"axis_labels", "explained"}


def measure_landscape(
    settings: LandscapeSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
) -> LandscapeResult:
    """Measure and draw the loss around the weights of models.

    Writes to `output`: `surfaces/` (one safetensors file each, saved during the measurement), `figures/` (PNG, SVG,
    HTML), `result.json`, and `settings.toml`. With `resume`, measured points are kept if the weights and the samples
    are the same.

    Returns:
        The content of `result.json`.

    Raises:
        InputError: A model, the data or the output directory cannot be used, or they do not match.
        RunError: The disk refused a write.
        Stopped: `requests` asked for it; measured points are saved.
    """
    output = user_path(output)
    launch = Launch(settings, output, overwrite, resume, display or SilentDisplay(), requests or Requests())
    launch.check([*settings.models, settings.teacher])
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    subjects = read_subjects(settings.models, settings.snapshots, settings.epochs, settings.model_factories)
    for other in subjects[1:]:
        check_same_images(subjects[0].model, other.model)
    samples = read_samples(settings, subjects[0], runtime, launch.display)
    centres = subjects[:1] if settings.directions == "models" else subjects
    sites = [choose_site(settings, subject, subjects, samples, runtime) for subject in centres]
    empty_surfaces = [_empty_surface(settings, *pair, samples, runtime) for pair in zip(centres, sites, strict=True)]
    tasks = []
    for subject, site, empty, name in zip(centres, sites, empty_surfaces, _file_names(empty_surfaces), strict=True):
        file = inside(output) / _FOLDER / f"{name}.safetensors"
        tasks.append(_Task(subject, site, _resumed_surface(file, empty) if resume else empty, file))
    return launch.carry_out(_Job(settings, runtime, samples, tasks))


class _Task(NamedTuple):
    """A surface to measure, and its file."""

    subject: Subject
    site: Site
    surface: Surface
    file: Path


class _Job(Job[LandscapeResult]):
    """A job of the training loop in which each surface is an epoch and each point a step."""

    unit = "landscape"
    checkpoints_every = (1, _SECONDS_BETWEEN_SAVES / 60)

    def __init__(self, settings: LandscapeSettings, runtime: Runtime, samples: Samples, tasks: list[_Task]) -> None:
        self.runtime = runtime
        self.epochs = len(tasks)
        self._settings = settings
        self._samples = samples
        self._tasks = tasks
        self._unfinished = [task for task in tasks if self._is_unfinished(task)]
        self._seconds = 0.0
        self._points = 0

    def _is_unfinished(self, task: _Task) -> bool:
        around, wanted = task.surface.around, self._settings.curvature
        if around is None or not wanted.enabled:
            return around is None
        known = around.curvature  # may lack what the run that is continued did not measure
        return known is None or (wanted.spectrum and known.spectral_density is None and known.missing is None)

    @property
    def epochs_done(self) -> int:
        return self.epochs - len(self._unfinished)

    def begin(self) -> Iterator[Event]:
        data = self._settings.data.name
        what = f"{len(self._samples):,} {'synthetic samples' if data == 'pool' else 'test images'}"
        shape = "x".join(map(str, self._tasks[0].surface.loss.shape))
        surfaces = f"{self.epochs} landscape{'s' if self.epochs > 1 else ''} of {shape} points"
        yield Started(message=f"measuring {surfaces} on {what} of {data}, {self.runtime.describe()}")
        models = (model for task in self._tasks for model in (task.subject.model, *task.site.marks.values()))
        for file in dict.fromkeys(model.path for model in models):
            yield from warnings_of_run(file)
        for task in self._tasks:
            if task.surface.around is not None:  # measured by the interrupted run
                yield self._measured(task)

    def state(self) -> None:
        """Save the measured points of the current surface in its file."""
        if self._unfinished:
            save_surface(self._unfinished[0].file, self._unfinished[0].surface)

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        task = self._unfinished[0]
        task = self._unfinished[0] = task._replace(file=run.folder(_FOLDER) / task.file.name)
        self.state()
        run.show(CheckpointWritten(directory=run.path))
        if self._settings.directions == "eigenvectors":
            yield Phase("directions", 1, self._find_axes(), f"eigenvectors of {task.subject.label}", attended=False)
            task = self._unfinished[0]
        evaluator = _evaluator(self._settings, task.subject.model, self._samples, self.runtime)
        plane, count = task.site.plane.to(self.runtime.device), task.surface.loss.numel()
        points = self._measure(task.surface, evaluator, plane)
        yield Phase("points", count, points, f"measuring {task.surface.card.label}")
        self.state()
        around = self._measure_around(task, evaluator, plane, run)
        yield Phase("around", 1, around, f"curvature of {task.subject.label}", attended=False)

    def _find_axes(self) -> Generator[int, None, None]:
        """Compute the axes of the current surface; of a resumed one that has points, they are the same."""
        yield 0
        task = self._unfinished[0]
        site = along_eigenvectors(self._settings, task.subject, self._samples, self.runtime)
        task.surface.card = task.surface.card.model_copy(update={"axis_labels": site.labels})
        self._unfinished[0] = task._replace(site=site)

    def _measure(self, surface: Surface, evaluator: PointEvaluator, plane: Plane) -> Generator[int, None, None]:
        """Measure the missing points."""
        began, before, points = time.perf_counter(), surface.measured, surface.points()
        losses, accuracies = evaluator.measure(plane, [(0.0,) * len(surface.axes)])
        surface.centre_loss, surface.centre_accuracy = losses[0], accuracies[0]
        while not surface.is_complete:
            surface.add(*evaluator.measure(plane, points[surface.measured : surface.measured + _POINTS_AT_A_TIME]))
            yield surface.measured
        self._seconds += time.perf_counter() - began
        self._points += surface.measured - before

    def _measure_around(
        self, task: _Task, evaluator: PointEvaluator, plane: Plane, run: RunDirectory
    ) -> Generator[int, None, None]:
        """Measure the marks, the radius, the curvature and the error of bfloat16."""
        settings, samples, runtime, model = self._settings, self._samples, self.runtime, task.subject.model
        yield 0
        _measure_marks(settings, task.surface, task.site, samples, runtime)
        radius, curvature, error = _radius(task.surface, evaluator, plane), None, None
        exact = replace(runtime, precision="fp32")
        if settings.curvature.enabled:
            normalization = model.normalization(runtime.device)
            with exact.configured():
                curvature = measure_curvature(model.module, normalization, samples, exact, settings.curvature)
            if curvature.missing is not None:
                run.show(Warned(epoch=0, message=f"the curvature of {task.subject.label} has {curvature.missing}"))
        if runtime.precision == "bf16":
            error = _bf16_error(settings, model, samples, replace(exact, compiled=False), task.surface, plane)
        task.surface.around = CentreFacts(
            radius_of_doubling=radius, curvature=curvature, bf16_error=error, axis_eigenvalues=task.site.eigenvalues
        )

    def end_epoch(self, run: RunDirectory) -> SurfaceMeasured:
        self.state()
        return self._measured(self._unfinished.pop(0))

    def _measured(self, task: _Task) -> SurfaceMeasured:
        timing = SurfaceTiming(seconds=self._seconds)
        return SurfaceMeasured(label=task.subject.label, points=task.surface.measured, timing=timing)

    def finish(self, run: RunDirectory, seconds: float) -> tuple[LandscapeResult, LandscapeEnded]:
        settings, samples = self._settings, self._samples
        reports = tuple(task.surface.facts(task.file) for task in self._tasks)
        run.progress("drawing", 0, 1)
        surfaces = {task.file.stem: task.surface for task in self._tasks}
        runs = {task.subject.name: task.subject.run for task in self._tasks if settings.snapshots}
        accuracies = {name: accuracy_by_epoch(each) for name, each in runs.items() if each is not None}
        figures = draw(
            surfaces,
            run.folder("figures"),
            own_scale=settings.own_scale,
            accuracies={name: curve for name, curve in accuracies.items() if curve},
        )
        result = LandscapeResult(
            data=settings.data.name,
            samples=len(samples),
            loss=samples.loss_name,
            accuracy=samples.accuracy_name,
            surfaces=reports,
            shared_directions=_share_directions([task.surface for task in self._tasks]),
            figures=tuple(str(figure) for figure in figures),
            timing=LandscapeTiming(
                total=seconds,
                surfaces=self._seconds,
                points_per_second=self._points / self._seconds if self._points else None,
            ),
            **dict(run_facts(self.runtime, settings)),
        )
        return result, LandscapeEnded(surfaces=len(surfaces))


def _empty_surface(
    settings: LandscapeSettings, subject: Subject, site: Site, samples: Samples, runtime: Runtime
) -> Surface:
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
        samples_sha256=samples.sha256,
        loss_name=samples.loss_name,
        accuracy_name=samples.accuracy_name,
        teacher_sha256=samples.teacher_sha256 or subject.model.card.provenance.teacher_sha256,
        recalibrated=settings.recalibrate,
        precision=runtime.precision,
        marks=tuple(site.marks),
        marks_sha256=tuple(model.sha256 for model in site.marks.values()),
        settings_sha256=sha256_of_fixed_settings(settings),
    )
    return Surface.empty(card, site.axes.contiguous(), site.mark_coordinates)


def _resumed_surface(file: Path, empty: Surface) -> Surface:
    """Return the partial surface of an interrupted run, or the empty one.

    Axes and shares of variance are those of the file, because another machine may round them differently. Raises
    `InputError` if the file is damaged, or the models, the data or the settings have changed.
    """
    if not is_file(file):
        return empty
    surface = load_surface(file)
    others = [name for name in SurfaceCard.model_fields if name not in _INPUTS and name not in _DERIVED]
    for name in (*_INPUTS, *others):
        was, now = getattr(surface.card, name), getattr(empty.card, name)
        if was != now:
            raise InputError(
                f"{file} cannot be continued: {_INPUTS.get(name, name)} was {shortened(repr(was))} and is "
                f"{shortened(repr(now))}; restart with --overwrite"
            )
    if surface.axes.shape != empty.axes.shape:
        raise InputError(f"{file} cannot be continued: its grid differs; restart with --overwrite")
    return surface


def _share_directions(surfaces: Sequence[Surface]) -> bool:
    """Tell whether all surfaces have the same random directions, each scaled to its own weights."""
    cards = [surface.card for surface in surfaces]
    return len(cards) == 1 or (cards[0].directions == "random" and len({card.architecture for card in cards}) == 1)


def _evaluator(settings: LandscapeSettings, model: LoadedModel, samples: Samples, runtime: Runtime) -> PointEvaluator:
    return PointEvaluator(
        model.module,
        model.normalization(runtime.device),
        samples,
        runtime,
        batch_size=settings.batch_size,
        recalibrate=settings.recalibrate,
    )


def _measure_marks(
    settings: LandscapeSettings, surface: Surface, site: Site, samples: Samples, runtime: Runtime
) -> None:
    """Measure the marked models with their own batch-norm statistics."""
    eager = replace(runtime, compiled=False)  # one pass per model is not worth compiling
    own = settings.model_copy(update={"recalibrate": False})
    for index, model in enumerate(site.marks.values()):
        evaluator = _evaluator(own, model, samples, eager)
        layout = Layout.of(model.module)
        origin = layout.flatten(model.module.state_dict()).to(runtime.device)
        losses, _ = evaluator.measure(Plane(origin, origin.new_zeros(0, len(origin)), layout), [()])
        surface.mark_loss[index] = losses[0]


def _radius(surface: Surface, evaluator: PointEvaluator, plane: Plane) -> float | None:
    """Search twice the centre's loss in both directions of each axis, up to the end of the grid."""
    unit = torch.eye(len(surface.axes), dtype=torch.float64)
    rays = [tuple(ray) for ray in torch.cat([unit, -unit]).tolist()]
    reaches = torch.cat([surface.axes[:, -1], -surface.axes[:, 0]]).clamp_min(0).tolist()

    def loss(point: tuple[float, ...]) -> float:
        return evaluator.measure(plane, [point])[0].item()

    return radius_of_doubling(loss, rays, reaches, surface.centre_loss.item())


def _bf16_error(
    settings: LandscapeSettings,
    model: LoadedModel,
    samples: Samples,
    exact: Runtime,
    surface: Surface,
    plane: Plane,
) -> Bf16Error:
    """Measure some points of the grid again in float32, and return their largest differences from bfloat16."""
    points = surface.points()
    generator = torch.Generator().manual_seed(exact.derive_seed("bf16 error"))
    chosen = torch.randperm(len(points), generator=generator)[:_POINTS_COMPARED].sort().values
    with exact.configured():
        evaluator = _evaluator(settings, model, samples, exact)
        losses, accuracies = evaluator.measure(plane, [points[index] for index in chosen.tolist()])
    relative = ((surface.loss.view(-1)[chosen] - losses) / losses).abs()
    finite = relative[relative.isfinite()]
    return Bf16Error(
        points=len(chosen),
        loss_relative=finite.max().item() if len(finite) else None,
        accuracy=(surface.accuracy.view(-1)[chosen] - accuracies).abs().max().item(),
    )


def _file_names(surfaces: Sequence[Surface]) -> list[str]:
    names: list[str] = []
    for surface in surfaces:
        name = base = re.sub(r"\W+", "-", surface.card.label, flags=re.ASCII).strip("-") or "model"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
