"""A classifier in training on labelled images: a teacher, a student on real images or a shadow model."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.core.augment import Augmentation, Normalization, Shifts
from gapssg.core.batches import shuffled_batches, steps_for_passes
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.models.description import ModelCard
from gapssg.runs.events import RolledBack
from gapssg.settings.parts import OptimizerSettings
from gapssg.training.trainee import Trainee


class ClassifierTrainee(Trainee):
    """A classifier that is trained on labelled images, with the crops and flips of its card.

    Attributes:
        epoch_steps: Steps of an epoch.
    """

    def __init__(
        self,
        model: nn.Module,
        card: ModelCard,
        images: ImageSet,
        runtime: Runtime,
        *,
        optimizer: OptimizerSettings,
        epochs: int,
        batch_size: int,
        max_rollbacks: int = 3,
        label_smoothing: float = 0.0,
        streams: tuple[tuple[str, *tuple[int, ...]], ...] = (("image-order",), ("augmentation",)),
    ) -> None:
        """Train `model` on `images`, both on the device, in the order and with the crops and flips of `streams`."""
        super().__init__(model, self._loss, optimizer, runtime, max_rollbacks)
        self.normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
        self.augmentation = Augmentation(card.crop_padding, card.flip, card.crop_padding_mode or "zeros")
        self.epoch_steps = steps_for_passes(len(images), 1, batch_size)
        self._images, self._epochs, self._batch_size = images, epochs, batch_size
        self._label_smoothing, self._streams = label_smoothing, streams

    def train_epoch(
        self, epoch: int, number: int = 0, record: Callable[[RolledBack], object] = lambda _: None
    ) -> Generator[int, None, None]:
        """Make the remaining steps of an epoch, as `train`, and repeat it after a rollback, which is recorded."""
        while True:
            yield from self.train(epoch, number, self.epoch_steps, self.inputs(epoch))
            rollback = self.settle(epoch)
            if rollback is None:
                return
            record(rollback)

    def inputs(self, epoch: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of the remaining steps of an epoch, setting the learning rate of each."""
        order, stream = (self._runtime.random_stream(*names, epoch) for names in self._streams)
        start, share = self.steps_done, self._runtime.share
        for index, batch in enumerate(shuffled_batches(len(self._images), 1, self._batch_size, order)):
            shifts = self.augmentation.draw(len(batch), stream)
            if index >= start:
                self.set_learning_rate((epoch + index / self.epoch_steps) / self._epochs)
                yield self._images.images[share(batch)], self._images.labels[batch], *map(share, shifts)

    def _loss(self, images: Tensor, labels: Tensor, *shifts: Tensor) -> dict[str, Tensor]:
        views = self.normalization(self.augmentation(to_unit_range(images), Shifts(*shifts)))
        with self._runtime.autocast():
            logits = self.model(views).float()
        (logits,) = self._runtime.whole(logits)
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)}
