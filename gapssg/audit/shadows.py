"""Shadow models: models of the teacher's architecture, trained on known halves of the images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gapssg.audit.predictions import Predictions, predictions_of
from gapssg.audit.settings import AuditSettings
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.models import create_model
from gapssg.models.description import ModelCard
from gapssg.models.signature import adapt
from gapssg.runs.directory import Display
from gapssg.runs.results.audit import ShadowFacts
from gapssg.training.pretrain_teacher import ClassifierTrainee


class Shadows(NamedTuple):
    """The shadow models' predictions for N images."""

    margins: Tensor
    """(S, N) float64."""
    is_inside: Tensor
    """(S, N) bool, whether a model was trained on the image; for each image, half of them were."""
    facts: ShadowFacts
    """Number and accuracy of the models."""
    first: nn.Module
    """The first of them."""


def halves(count: int, models: int, generator: torch.Generator) -> Tensor:
    """Draw the training images of an even number of models: each pair has the two random halves of all images.

    Returns (models, count) bool, on the CPU; each image is in half of the rows.
    """
    rows = []
    for _ in range(models // 2):
        is_first = torch.zeros(count, dtype=torch.bool)
        is_first[torch.randperm(count, generator=generator)[: count // 2]] = True
        rows += [is_first, ~is_first]
    return torch.stack(rows)


def train_shadows(
    settings: AuditSettings, card: ModelCard, images: ImageSet, runtime: Runtime, display: Display
) -> Shadows:
    """Train shadow models, with the crops and flips of the teacher's file, and predict all images with each.

    The images, members and non-members, are on the runtime's device. Raises `RunError` if a training diverges.
    """
    generator = torch.Generator().manual_seed(runtime.derive_seed("shadow-halves"))
    shadow = settings.shadow
    is_inside = halves(len(images), shadow.models, generator)
    found: list[Predictions] = []
    models: list[nn.Module] = []
    for number, chosen in enumerate(is_inside):
        name = f"shadow model {number + 1}"
        inside = chosen.nonzero().squeeze(1).to(runtime.device)
        half = ImageSet(images.images[inside], images.labels[inside], images.class_names)
        model = runtime.place(_make_model(card, runtime, number))
        schedule = shadow.optimizer, shadow.epochs, shadow.batch_size
        streams = ("shadow-order", number), ("shadow-augmentation", number)
        trainee = ClassifierTrainee(model, card, half, runtime, *schedule, streams=streams)
        with runtime.configured():
            for epoch in range(shadow.epochs):
                for done in trainee.train_epoch(epoch, number):
                    task, steps = f"training {name} of {len(is_inside)}", trainee.epoch_steps
                    display.progress(task, epoch * steps + done, shadow.epochs * steps)
        models = models or [model]
        found.append(predictions_of(model, trainee.normalization, images, runtime, settings.batch_size, name))
    facts = ShadowFacts(
        models=len(found),
        epochs=shadow.epochs,
        images=len(images) // 2,
        inside_top1=_mean_accuracy(found, is_inside),
        outside_top1=_mean_accuracy(found, ~is_inside),
    )
    return Shadows(torch.stack([each.margins for each in found]), is_inside, facts, models[0])


def _mean_accuracy(found: list[Predictions], chosen: Tensor) -> float:
    return torch.stack([each.is_right for each in found])[chosen].double().mean().item()


def _make_model(card: ModelCard, runtime: Runtime, number: int) -> nn.Module:
    model = create_model(
        card.architecture,
        num_classes=card.num_classes,
        input_shape=card.input_shape,
        seed=runtime.derive_seed("shadow-weights", number),
        arguments=card.arguments,
    )
    adapt(model, card.signature)
    return model
