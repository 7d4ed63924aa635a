"""`landscape`: the loss around the weights of models, the numbers behind it, and its figures."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.errors import InputError, shortened
from gapssg.evaluation.real_images import check_same_images
from gapssg.files import is_file, user_path
from gapssg.landscape.curvature import measure_curvature
from gapssg.landscape.figures import draw
from gapssg.landscape.layout import Layout
from gapssg.landscape.planes import Site, choose_site
from gapssg.landscape.points import Plane, PointEvaluator
from gapssg.landscape.samples import Samples, SamplesOrigin, read_samples
from gapssg.landscape.settings import LandscapeSettings
from gapssg.landscape.sharpness import radius_of_doubling
from gapssg.landscape.subjects import Subject, read_subjects
from gapssg.landscape.surface import Surface, SurfaceCard, load_surface, save_surface
from gapssg.models.model_file import LoadedModel
from gapssg.runs.directory import Display, RunDirectory, SilentDisplay, run_facts, sha256_of_fixed_settings
from gapssg.runs.events import CheckpointWritten, Event, LandscapeEnded, Started, SurfaceMeasured, SurfaceTiming, Warned
from gapssg.runs.requests import Requests
from gapssg.runs.results import Bf16Error, CentreFacts, Curvature, LandscapeResult, LandscapeTiming
from gapssg.safe_paths import inside
from gapssg.training.loop import Job, Launch, Phase

_FOLDER = "surfaces"
_POINTS_AT_A_TIME = 8
_SECONDS_BETWEEN_SAVES = 5.0
_POINTS_COMPARED = 9

# What a surface must have in common with a run that continues it, in words; other fields say what they are. Not here:
# what is computed from these, whose last digits may differ between machines.
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

    Writes to `output`: `surfaces/` (one safetensors file each, saved while it is measured), `figures/` (PNG, SVG,
    HTML), `result.json`, and `settings.toml`. With `resume`, what is measured already stays, if it was measured around
    the same weights on the same samples.

    Returns:
        What `result.json` holds.

    Raises:
        InputError: A model, the data or the output directory cannot be used, or they do not fit each other.
        RunError: The disk refused a write.
        Stopped: `requests` asked for it; what is measured is saved.
    """
    output = user_path(output)
    launch = Launch(settings, output, overwrite, resume, display or SilentDisplay(), requests or Requests())
    launch.check([*settings.models, settings.teacher])
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    subjects = read_subjects(settings.models, settings.snapshots, settings.epochs, settings.model_factories)
    for other in subjects[1:]:
        check_same_images(subjects[0].model, other.model)
    samples, origin = read_samples(settings, subjects[0], runtime, launch.display)
    centres = subjects[:1] if settings.directions == "models" else subjects
    sites = [choose_site(settings, subject, subjects, runtime) for subject in centres]
    blanks = [_blank(settings, *pair, samples, origin, runtime) for pair in zip(centres, sites, strict=True)]
    names = [f"{name}.safetensors" for name in _file_names(blanks)]
    begun = [inside(output) / _FOLDER / name for name in names]
    surfaces = [_started(file, blank) if resume else blank for file, blank in zip(begun, blanks, strict=True)]
    tasks = [_Task(*task) for task in zip(centres, sites, surfaces, begun, strict=True)]
    return launch.carry_out(_Job(settings, runtime, samples, tasks))


class _Task(NamedTuple):
    """One surface to measure, and the file that keeps what is measured."""

    subject: Subject
    site: Site
    surface: Surface
    file: Path


class _Job(Job[LandscapeResult]):
    """Surfaces, as the loop measures them: each is an epoch, whose steps are points."""

    unit = "landscape"
    checkpoints_every = (1, _SECONDS_BETWEEN_SAVES / 60)

    def __init__(self, settings: LandscapeSettings, runtime: Runtime, samples: Samples, tasks: list[_Task]) -> None:
        self.runtime = runtime
        self.epochs = len(tasks)
        self._settings = settings
        self._samples = samples
        self._tasks = tasks
        self._left = [task for task in tasks if self._is_left(task)]
        self._seconds = 0.0
        self._points = 0

    def _is_left(self, task: _Task) -> bool:
        around = task.surface.around  # of a run that continues with the curvature that it began without
        return around is None or (self._settings.curvature.enabled and around.curvature is None)

    @property
    def epochs_done(self) -> int:
        return self.epochs - len(self._left)

    def begin(self) -> Iterator[Event]:
        data = self._settings.data.name
        what = f"{len(self._samples):,} {'synthetic samples' if data == 'pool' else 'test images'}"
        surfaces = _count([task.surface for task in self._tasks])
        yield Started(message=f"measuring {surfaces} on {what} of {data}, {self.runtime.describe()}")
        for task in self._tasks:
            if task.surface.around is not None:  # an interrupted run has measured it
                yield self._measured(task)

    def state(self) -> None:
        """Keep what is measured of the next surface in its own file."""
        if self._left:
            save_surface(self._left[0].file, self._left[0].surface)

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        task = self._left[0]
        task = self._left[0] = task._replace(file=run.folder(_FOLDER) / task.file.name)
        self.state()
        run.show(CheckpointWritten(directory=run.path))
        evaluator = _evaluator(self._settings, task.subject.model, self._samples, self.runtime)
        plane, count = task.site.plane.to(self.runtime.device), task.surface.loss.numel()
        points = self._measure(task.surface, evaluator, plane)
        yield Phase("points", count, points, f"measuring {task.surface.card.label}")
        self.state()
        around = self._look_around(task, evaluator, plane, run)
        yield Phase("around", 1, around, f"curvature of {task.subject.label}", attended=False)

    def _measure(self, surface: Surface, evaluator: PointEvaluator, plane: Plane) -> Generator[int, None, None]:
        """Measure the points that are missing."""
        began, before, points = time.perf_counter(), surface.measured, surface.points()
        losses, accuracies = evaluator.measure(plane, [(0.0,) * len(surface.axes)])
        surface.centre_loss, surface.centre_accuracy = losses[0], accuracies[0]
        while not surface.is_complete:
            surface.add(*evaluator.measure(plane, points[surface.measured : surface.measured + _POINTS_AT_A_TIME]))
            yield surface.measured
        self._seconds += time.perf_counter() - began
        self._points += surface.measured - before

    def _look_around(
        self, task: _Task, evaluator: PointEvaluator, plane: Plane, run: RunDirectory
    ) -> Generator[int, None, None]:
        """Measure the marks, and around the centre what the grid does not say."""
        settings, samples, runtime, model = self._settings, self._samples, self.runtime, task.subject.model
        yield 0
        _measure_marks(settings, task.surface, task.site, samples, runtime)
        radius, curvature, error = _radius(task.surface, evaluator, plane), None, None
        if settings.curvature.enabled:
            curvature = _curvature(settings, model, samples, runtime)
            if curvature.missing is not None:
                run.show(Warned(epoch=0, message=f"the curvature of {task.subject.label} has {curvature.missing}"))
        if runtime.precision == "bf16":
            error = _bf16_error(settings, model, samples, runtime, task.surface, plane)
        task.surface.around = CentreFacts(radius_of_doubling=radius, curvature=curvature, bf16_error=error)

    def end_epoch(self, run: RunDirectory) -> SurfaceMeasured:
        self.state()
        return self._measured(self._left.pop(0))

    def _measured(self, task: _Task) -> SurfaceMeasured:
        timing = SurfaceTiming(seconds=self._seconds)
        return SurfaceMeasured(label=task.subject.label, points=task.surface.measured, timing=timing)

    def finish(self, run: RunDirectory, seconds: float) -> tuple[LandscapeResult, LandscapeEnded]:
        settings, samples = self._settings, self._samples
        reports = tuple(task.surface.facts(task.file) for task in self._tasks)
        run.progress("drawing", 0, 1)
        surfaces = {task.file.stem: task.surface for task in self._tasks}
        figures = draw(surfaces, run.folder("figures"), own_scale=settings.own_scale)
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


def _blank(
    settings: LandscapeSettings,
    subject: Subject,
    site: Site,
    samples: Samples,
    origin: SamplesOrigin,
    runtime: Runtime,
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
        samples_sha256=origin.sha256,
        loss_name=samples.loss_name,
        accuracy_name=samples.accuracy_name,
        teacher_sha256=origin.teacher_sha256 or subject.model.card.provenance.teacher_sha256,
        recalibrated=settings.recalibrate,
        precision=runtime.precision,
        marks=tuple(site.marks),
        marks_sha256=tuple(model.sha256 for model in site.marks.values()),
        settings_sha256=sha256_of_fixed_settings(settings),
    )
    return Surface.empty(card, site.axes.contiguous(), site.mark_coordinates)


def _started(file: Path, blank: Surface) -> Surface:
    """Return the surface that an interrupted run has begun, or the blank one.

    What is computed from the inputs (axes, shares of variance) is that of the file: another machine may round it
    otherwise.

    Raises:
        InputError: The file is damaged, or the models, the data or how they are measured have changed since.
    """
    if not is_file(file):
        return blank
    surface = load_surface(file)
    others = [name for name in SurfaceCard.model_fields if name not in _INPUTS and name not in _DERIVED]
    for name in (*_INPUTS, *others):
        was, now = getattr(surface.card, name), getattr(blank.card, name)
        if was != now:
            raise InputError(
                f"{file} cannot be continued: {_INPUTS.get(name, name)} was {shortened(repr(was))} and is "
                f"{shortened(repr(now))}; start anew with --overwrite"
            )
    if surface.axes.shape != blank.axes.shape:
        raise InputError(f"{file} cannot be continued: its grid is another; start anew with --overwrite")
    return surface


def _share_directions(surfaces: Sequence[Surface]) -> bool:
    """Whether all surfaces have the same directions, each scaled to its own weights."""
    cards = [surface.card for surface in surfaces]
    return len(cards) == 1 or (cards[0].directions == "random" and len({card.architecture for card in cards}) == 1)


def _evaluator(settings: LandscapeSettings, model: LoadedModel, samples: Samples, runtime: Runtime) -> PointEvaluator:
    normalization = _normalization(model, runtime)
    options = {"batch_size": settings.batch_size, "recalibrate": settings.recalibrate}
    return PointEvaluator(model.module, normalization, samples, runtime, **options)  # type: ignore[arg-type]


def _normalization(model: LoadedModel, runtime: Runtime) -> Normalization:
    return Normalization.from_statistics(model.card.mean, model.card.deviation, runtime.device)


def _measure_marks(
    settings: LandscapeSettings, surface: Surface, site: Site, samples: Samples, runtime: Runtime
) -> None:
    """Measure the marked models as they are, each with its own batch-norm statistics."""
    eager = replace(runtime, compiled=False)  # one pass for each model is not worth compiling
    for index, model in enumerate(site.marks.values()):
        options = {"batch_size": settings.batch_size, "recalibrate": False}
        evaluator = PointEvaluator(model.module, _normalization(model, runtime), samples, eager, **options)  # type: ignore[arg-type]
        layout = Layout.of(model.module)
        origin = layout.flatten(model.module.state_dict()).to(runtime.device)
        losses, _ = evaluator.measure(Plane(origin, origin.new_zeros(0, len(origin)), layout), [()])
        surface.mark_loss[index] = losses[0]


def _radius(surface: Surface, evaluator: PointEvaluator, plane: Plane) -> float | None:
    """Look for twice the centre's loss both ways along each axis, as far as the grid reaches there."""
    unit = torch.eye(len(surface.axes), dtype=torch.float64)
    rays = [tuple(ray) for ray in torch.cat([unit, -unit]).tolist()]
    reaches = torch.cat([surface.axes[:, -1], -surface.axes[:, 0]]).clamp_min(0).tolist()

    def loss(point: tuple[float, ...]) -> float:
        return evaluator.measure(plane, [point])[0].item()

    return radius_of_doubling(loss, rays, reaches, surface.centre_loss.item())


def _curvature(settings: LandscapeSettings, model: LoadedModel, samples: Samples, runtime: Runtime) -> Curvature:
    exact = replace(runtime, precision="fp32")
    with exact.configured():
        return measure_curvature(model.module, _normalization(model, runtime), samples, exact, settings.curvature)


def _bf16_error(
    settings: LandscapeSettings,
    model: LoadedModel,
    samples: Samples,
    runtime: Runtime,
    surface: Surface,
    plane: Plane,
) -> Bf16Error:
    """Measure some points of the grid again in float32, and say how far they are from those in bfloat16."""
    exact = replace(runtime, precision="fp32", compiled=False)
    points = surface.points()
    generator = torch.Generator().manual_seed(runtime.derive_seed("bf16 error"))
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


def _count(surfaces: Sequence[Surface]) -> str:
    shape = "x".join(map(str, surfaces[0].loss.shape))
    return f"{len(surfaces)} landscape{'s' if len(surfaces) > 1 else ''} of {shape} points"


def _file_names(surfaces: Sequence[Surface]) -> list[str]:
    names: list[str] = []
    for surface in surfaces:
        name = base = re.sub(r"\W+", "-", surface.card.label, flags=re.ASCII).strip("-") or "model"
        number = 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names.append(name)
    return names
