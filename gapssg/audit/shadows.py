"""Shadow models: models of the teacher's architecture, trained on known halves of the images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.audit.predictions import Predictions, predictions_of
from gapssg.audit.settings import AuditSettings
from gapssg.core.augment import Augmentation, Normalization, Shifts
from gapssg.core.batches import shuffled_batches
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.models import create_model
from gapssg.models.description import ModelCard
from gapssg.models.signature import adapt
from gapssg.runs.directory import Display
from gapssg.runs.results.audit import ShadowFacts
from gapssg.training.trainee import Trainee

_MOST_ROLLBACKS = 3


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
    is_inside = halves(len(images), settings.shadow.models, generator)
    found: list[Predictions] = []
    models: list[nn.Module] = []
    for number, chosen in enumerate(is_inside):
        task = f"training shadow model {number + 1} of {len(is_inside)}"
        trainer = _Trainer(settings, card, images, chosen.nonzero().squeeze(1).to(runtime.device), runtime, number)
        for done in trainer.train():
            display.progress(task, done, trainer.steps)
        models = models or [trainer.model]
        name = f"shadow model {number + 1}"
        found.append(predictions_of(trainer.model, trainer.normalization, images, runtime, settings.batch_size, name))
    facts = ShadowFacts(
        models=len(found),
        epochs=settings.shadow.epochs,
        images=len(images) // 2,
        inside_top1=_mean_accuracy(found, is_inside),
        outside_top1=_mean_accuracy(found, ~is_inside),
    )
    return Shadows(torch.stack([each.margins for each in found]), is_inside, facts, models[0])


def _mean_accuracy(found: list[Predictions], chosen: Tensor) -> float:
    return torch.stack([each.is_right for each in found])[chosen].double().mean().item()


class _Trainer:
    def __init__(
        self, settings: AuditSettings, card: ModelCard, images: ImageSet, chosen: Tensor, runtime: Runtime, number: int
    ) -> None:
        self.model = runtime.place(_make_model(card, runtime, number))
        self.normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
        self._augmentation = Augmentation(card.crop_padding, card.flip, card.crop_padding_mode or "zeros")
        self._images, self._labels = images.images[chosen], images.labels[chosen]
        self._settings = settings.shadow
        self._runtime = runtime
        self._number = number
        self._trainee = Trainee(self.model, self._loss, self._settings.optimizer, runtime, _MOST_ROLLBACKS)
        self.steps = self._settings.epochs * len(self._batches(0))

    def train(self) -> Iterator[int]:
        """Train the model, and yield after each step how many are done."""
        with self._runtime.configured():
            for epoch in range(self._settings.epochs):
                batches = self._batches(epoch)
                while True:
                    for done in self._trainee.train(epoch, self._number, len(batches), self._inputs(batches, epoch)):
                        yield epoch * len(batches) + done
                    if self._trainee.settle(epoch) is None:
                        break

    def _batches(self, epoch: int) -> Tensor:
        order = self._runtime.random_stream("shadow-order", self._number, epoch)
        return shuffled_batches(len(self._images), 1, self._settings.batch_size, order)

    def _inputs(self, batches: Tensor, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        stream = self._runtime.random_stream("shadow-augmentation", self._number, epoch)
        for index, batch in enumerate(batches):
            self._trainee.set_learning_rate((epoch + index / len(batches)) / self._settings.epochs)
            yield self._images[batch], self._labels[batch], *self._augmentation.draw(len(batch), stream)

    def _loss(self, images: Tensor, labels: Tensor, *shifts: Tensor) -> dict[str, Tensor]:
        views = self.normalization(self._augmentation(to_unit_range(images), Shifts(*shifts)))
        with self._runtime.autocast():
            logits = self.model(views).float()
        return {"loss": F.cross_entropy(logits, labels)}


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
