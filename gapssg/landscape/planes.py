"""Chooses the line or plane of weights around a subject, and its grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError, RunError, reporting_out_of_memory
from gapssg.evaluation.real_images import check_same_images
from gapssg.landscape.curvature import centre_loss, check_second_derivatives, lanczos_start
from gapssg.landscape.directions import directions_through, principal_directions, random_directions
from gapssg.landscape.lanczos import largest_eigenpairs
from gapssg.landscape.layout import Layout
from gapssg.landscape.points import Plane
from gapssg.landscape.samples import Samples
from gapssg.landscape.settings import LandscapeSettings
from gapssg.landscape.subjects import Subject
from gapssg.models.description import ModelCard
from gapssg.models.model_file import LoadedModel, load_model
from gapssg.runs.results.landscape import Measurement


class Site(NamedTuple):
    """The plane and the grid to measure.

    Attributes:
        plane: The line or plane, on the CPU.
        axes: (D, G) float64, the coordinates of the grid.
        labels: One per axis.
        explained: Of principal components, each axis's share of the variance.
        marks: Models to mark, by label.
        mark_coordinates: (M, D) float64.
        eigenvalues: Of eigenvectors, each axis's eigenvalue with its error.
    """

    plane: Plane
    axes: Tensor
    labels: tuple[str, ...]
    explained: tuple[float, ...]
    marks: dict[str, LoadedModel]
    mark_coordinates: Tensor
    eigenvalues: tuple[Measurement, ...] = ()


def choose_site(
    settings: LandscapeSettings, subject: Subject, subjects: Sequence[Subject], samples: Samples, runtime: Runtime
) -> Site:
    """Choose the plane and the grid around a subject, or through all subjects.

    Directions along eigenvectors are zero until `along_eigenvectors` computes them, which takes a while. Raises
    `InputError` if the run has too few snapshots, architectures differ, or the network has no Hessian.
    """
    if settings.directions == "pca":
        return _along_the_route(settings, subject)
    if settings.directions == "models":
        return _through_models(settings, subjects)
    layout = Layout.of(subject.model.module)
    origin = layout.flatten(subject.model.module.state_dict())
    axes = torch.linspace(-settings.range, settings.range, settings.grid, dtype=torch.float64)
    axes = axes.expand(settings.dimensions, -1)
    none = torch.zeros(0, settings.dimensions, dtype=torch.float64)
    if settings.directions == "eigenvectors":
        _check_hessian(subject, samples, replace(runtime, precision="fp32"))
        plane = Plane(origin, origin.new_zeros(settings.dimensions, len(origin)), layout)
        return Site(plane, axes, _eigenvector_labels([""] * settings.dimensions), (), {}, none)
    seeds = [runtime.derive_seed("landscape direction", axis) for axis in range(settings.dimensions)]
    directions = random_directions(origin, layout, seeds, biases_and_norms=settings.biases_and_norms)
    labels = tuple(f"random direction {axis + 1} (filter norms)" for axis in range(settings.dimensions))
    return Site(Plane(origin, directions, layout), axes, labels, (), {}, none)


def along_eigenvectors(settings: LandscapeSettings, subject: Subject, samples: Samples, runtime: Runtime) -> Site:
    """Choose the plane along the eigenvectors of the largest eigenvalues of the Hessian, in float32.

    The directions have length 1, so that along an axis the loss rises by half its eigenvalue times the squared
    coordinate, to second order. Raises `RunError` if the Hessian is not finite.
    """
    model, curvature = subject.model, settings.curvature
    exact = replace(runtime, precision="fp32")
    with reporting_out_of_memory(), exact.configured():
        loss = centre_loss(model.module, model.normalization(exact.device), samples, exact, curvature)
        start = lanczos_start(loss, exact)
        pairs = largest_eigenpairs(loss.hessian_product, start, curvature.lanczos_steps, settings.dimensions)
    if pairs is None:
        raise RunError(f"the Hessian of {subject.label} is not finite or has fewer axes; use --directions random")
    site = choose_site(settings, subject, [subject], samples, runtime)
    return site._replace(
        plane=site.plane._replace(directions=pairs.vectors.float().to(site.plane.origin.device)),
        labels=_eigenvector_labels([f" (eigenvalue {value.value:.4g})" for value in pairs.values]),
        eigenvalues=tuple(pairs.values),
    )


def _check_hessian(subject: Subject, samples: Samples, exact: Runtime) -> None:
    model = subject.model
    try:
        with exact.configured():
            check_second_derivatives(model.module, model.normalization(exact.device), samples, exact)
    except InputError as error:
        raise InputError(f"--directions eigenvectors: {model.path}: {error}; use --directions random") from error


def _eigenvector_labels(ends: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"Hessian eigenvector {axis}{end}" for axis, end in enumerate(ends, 1))


def _along_the_route(settings: LandscapeSettings, subject: Subject) -> Site:
    run, path = subject.run, subject.model.path
    if run is None:
        raise InputError(f"--directions pca: {path} is not a run; name the run's directory, which has the snapshots")
    if len(run.snapshots) < settings.dimensions:
        raise InputError(
            f"--directions pca: {run.path} has {len(run.snapshots)} snapshots, which are too few; "
            "train it with --snapshot-every 1"
        )
    marks = {str(epoch): load_model(file, settings.model_factories) for epoch, file in run.snapshots.items()}
    for other in marks.values():
        check_same_architecture(subject.model, other)
    layout = Layout.of(subject.model.module)
    origin = layout.flatten(subject.model.module.state_dict())
    snapshots = torch.stack([layout.flatten(model.module.state_dict()) for model in marks.values()])
    try:
        principal = principal_directions(snapshots, origin, settings.dimensions)
    except ValueError as error:
        raise InputError(f"--directions pca: {run.path}: {error}; keep more snapshots, or --dimensions 1") from error
    labels = tuple(
        f"principal component {axis + 1} ({share:.0%} of variance)" for axis, share in enumerate(principal.explained)
    )
    axes = _around(principal.coordinates, settings)
    plane = Plane(origin, principal.directions, layout)
    return Site(plane, axes, labels, tuple(principal.explained.tolist()), marks, principal.coordinates)


def _through_models(settings: LandscapeSettings, subjects: Sequence[Subject]) -> Site:
    first = subjects[0]
    for other in subjects[1:]:
        check_same_architecture(first.model, other.model)
    # The plane includes batch-norm statistics, so that it passes through the models exactly.
    layout = Layout.of(first.model.module, statistics=True)
    points = torch.stack([layout.flatten(subject.model.module.state_dict()) for subject in subjects])
    try:
        directions, coordinates = directions_through(points)
    except ValueError as error:
        raise InputError(f"--directions models: {error}; name different models") from error
    names = [subject.label for subject in subjects]
    labels: tuple[str, ...] = (f"from {names[0]} (0) to {names[1]} (1)",)
    if len(subjects) == 3:
        labels = (*labels, f"towards {names[2]}")
    marks = {name: subject.model for name, subject in zip(names, subjects, strict=True)}
    lowest = torch.full_like(points[0], -torch.inf)
    for name, part in layout.split(lowest).items():
        if name.endswith("running_var"):
            part.copy_(torch.stack([model.module.get_buffer(name) for model in marks.values()]).amin(dim=0))
    plane = Plane(points[0], directions, layout, lowest)
    return Site(plane, _around(coordinates, settings), labels, (), marks, coordinates)


def _around(coordinates: Tensor, settings: LandscapeSettings) -> Tensor:
    """Return axes around points and the origin; at range 1, each axis is twice as wide as their extent."""
    reached = torch.cat([coordinates, torch.zeros(1, coordinates.shape[1], dtype=torch.float64)])
    low, high = reached.amin(dim=0), reached.amax(dim=0)
    middle, extent = (low + high) / 2, high - low
    steps = torch.linspace(-1, 1, settings.grid, dtype=torch.float64) * settings.range
    return middle[:, None] + extent[:, None] * steps


def check_same_architecture(first: LoadedModel, second: LoadedModel) -> None:
    """Raise `InputError` unless two models have the same architecture, images and classes."""
    ours, theirs = (_architecture(model.card) for model in (first, second))
    if ours != theirs:
        raise InputError(
            f"{first.path} ({ours}) and {second.path} ({theirs}) differ in architecture, so there is no direction from "
            "one to the other; use --directions random"
        )
    check_same_images(first, second)


def _architecture(card: ModelCard) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in sorted(card.arguments.items()))
    return f"{card.architecture} with {arguments}" if arguments else card.architecture
