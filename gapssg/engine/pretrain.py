"""`pretrain-teacher`: a classifier trained on real images."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.augment import Augmentation, Normalization, Shifts, crop_and_flip
from gapssg.batches import shuffled_batches
from gapssg.data import flipping_is_meaningful
from gapssg.data.image_set import ImageSet, check_same_classes
from gapssg.engine.checkpoint import read_checkpoint, restore, write_checkpoint
from gapssg.engine.inference import predict
from gapssg.engine.metrics import Scores, score
from gapssg.engine.optimizer import make_optimizer, set_learning_rate
from gapssg.engine.real_images import read_images
from gapssg.engine.run_directory import (
    Display,
    RunDirectory,
    SilentDisplay,
    check_output,
    check_same_settings,
    run_facts,
    versions,
)
from gapssg.engine.settings import PretrainSettings
from gapssg.engine.step import TrainingStep
from gapssg.errors import RunError
from gapssg.models import create_model
from gapssg.models.model_file import ModelCard, Provenance, save_model
from gapssg.models.profile import profile_model
from gapssg.runtime import Runtime, to_unit_range


def pretrain_teacher(
    settings: PretrainSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
) -> dict[str, Any]:
    """Train a classifier on real images and write a run directory with `model.safetensors`.

    With `resume` the run in `output` continues after its last checkpoint, and ends with the files that it would
    have had without the interruption.

    Returns:
        What `result.json` holds: the model's size and accuracies (of the last epoch, and of the best, which
        the test split chose), cost and provenance.

    Raises:
        InputError: The data or the output directory cannot be used; nothing has been written.
        RunError: The training diverged, or the disk refused a write.
    """
    display = display or SilentDisplay()
    if resume:
        check_same_settings(output, settings)
    else:
        check_output(output, overwrite)
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    train = read_images(settings.data, "train", display)
    test = read_images(settings.data, "test", display, channels=train.input_shape[0])
    check_same_classes(train, test)
    model = create_model(
        settings.model.name,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        seed=runtime.derive_seed("initial-weights"),
    )
    card = _describe(settings, train)
    trainer = _Trainer(settings, runtime, runtime.place(model), card, train.to(runtime.device))
    test = test.to(runtime.device)

    identity = {"number of training images": str(len(train))}
    started = time.perf_counter()
    evaluation_seconds = 0.0
    scores: Scores | None = None
    best: tuple[float, int] = (-1.0, 0)
    done = 0
    if resume:
        checkpoint = read_checkpoint(output, identity)
        restore(checkpoint, model, trainer.optimizer)
        done, facts = checkpoint.epoch, checkpoint.facts
        scores, best, evaluation_seconds = Scores(*facts["scores"]), tuple(facts["best"]), facts["evaluation_seconds"]
        started -= facts["total_seconds"]
        run = RunDirectory.reopen(output, display, checkpoint.events_length)
        run.show("start", message=f"continuing {output} after epoch {done} of {settings.epochs}, {runtime.describe()}")
    else:
        run = RunDirectory(output, settings, display)
        images = f"{len(train):,} images of {settings.data.name}"
        run.record("start", message=f"training {card.architecture} on {images}, {runtime.describe()}")
    with run:
        for epoch in range(done, settings.epochs):
            epoch_started = time.perf_counter()
            loss, images_seen = trainer.train_epoch(epoch, run)
            trained = time.perf_counter()
            logits = predict(model, test.images, trainer.normalization, runtime)
            scores = score(logits, test.labels)
            evaluation_seconds += time.perf_counter() - trained
            if scores.top1 > best[0]:
                best = (scores.top1, epoch + 1)
                save_model(output / "best.safetensors", model, card)
            run.record(
                "epoch",
                epoch=epoch + 1,
                epochs=settings.epochs,
                learning_rate=trainer.learning_rate,
                train_loss=loss,
                top1=scores.top1,
                loss=scores.loss,
                timing={
                    "seconds": time.perf_counter() - epoch_started,
                    "images_per_second": images_seen / (trained - epoch_started),
                },
            )
            if (epoch + 1) % settings.checkpoint_every == 0 or epoch + 1 == settings.epochs:
                state = {
                    "scores": scores,
                    "best": best,
                    "evaluation_seconds": evaluation_seconds,
                    "total_seconds": time.perf_counter() - started,
                }
                write_checkpoint(run, epoch + 1, identity, state, model, trainer.optimizer)
                run.show("checkpoint", epoch=epoch + 1, directory=output)
        assert scores is not None  # there is at least one epoch
        save_model(output / "model.safetensors", model, card)
        result = {
            "command": "pretrain-teacher",
            "model": {
                "file": str(output / "model.safetensors"),
                "architecture": card.architecture,
                **profile_model(model, card.input_shape).to_dict(),
                **scores.to_dict(),
                "best_top1": best[0],
                "best_epoch": best[1],
            },
            "data": settings.data.name,
            "epochs": settings.epochs,
            "timing": {"total": time.perf_counter() - started, "evaluation": evaluation_seconds},
            **run_facts(runtime, settings),
        }
        run.write_result(result)
        run.record("end", **{"top1": scores.top1, "best_top1": best[0], "best_epoch": best[1]})
    return result


class _Trainer:
    """The model, its optimizer and the training images on the device."""

    def __init__(
        self,
        settings: PretrainSettings,
        runtime: Runtime,
        model: nn.Module,
        card: ModelCard,
        images: ImageSet,
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self.model = model
        self.images = images
        self.normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
        self.augmentation = Augmentation(card.crop_padding, card.flip)
        self.optimizer = make_optimizer(model, settings.optimizer)
        self.learning_rate = 0.0
        self.step = TrainingStep(self._loss, self.optimizer, runtime)

    def train_epoch(self, epoch: int, run: RunDirectory) -> tuple[float, int]:
        """Make one pass over the images; return the mean loss and the number of images seen."""
        settings, runtime = self.settings, self.runtime
        order = runtime.random_stream("image-order", epoch)
        batches = shuffled_batches(len(self.images), 1, settings.batch_size, order)
        stream = runtime.random_stream("augmentation", epoch)
        total = torch.zeros((), device=runtime.device)
        self.model.train()
        with runtime.seeded_globals("modules", epoch):
            for index, batch in enumerate(batches):
                progress = (epoch + index / len(batches)) / settings.epochs
                self.learning_rate = set_learning_rate(self.optimizer, settings.optimizer, progress)
                shifts = self.augmentation.draw(len(batch), stream)
                total += self.step(self.images.images[batch], self.images.labels[batch], shifts)
                run.progress(f"epoch {epoch + 1} of {settings.epochs}", index + 1, len(batches))
        mean_loss = total.item() / len(batches)
        if not math.isfinite(mean_loss):
            raise RunError(
                f"the training loss of epoch {epoch + 1} is not finite; lower optimizer.learning_rate "
                f"(it was {settings.optimizer.learning_rate})"
            )
        return mean_loss, batches.numel()

    def _loss(self, images: Tensor, labels: Tensor, shifts: Shifts) -> Tensor:
        views = self.normalization(crop_and_flip(to_unit_range(images), shifts))
        with self.runtime.autocast():
            logits = self.model(views).float()
        return F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)


def _describe(settings: PretrainSettings, train: ImageSet) -> ModelCard:
    mean, deviation = train.channel_statistics()
    padding = settings.crop_padding
    return ModelCard(
        architecture=settings.model.name,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=train.input_shape[1] // 8 if padding is None else padding,
        flip=flipping_is_meaningful(settings.data.name) if settings.flip is None else settings.flip,
        class_names=train.class_names,
        provenance=Provenance(command="pretrain-teacher", seed=settings.seed, versions=versions()),
    )
