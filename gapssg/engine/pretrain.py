"""`pretrain-teacher`: a classifier trained on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from gapssg.augment import Augmentation, Normalization, Shifts, crop_and_flip
from gapssg.batches import shuffled_batches
from gapssg.data import flipping_is_meaningful
from gapssg.data.image_set import ImageSet, check_same_classes, sha256_of_images
from gapssg.engine.checkpoint import Checkpoints, Facts, State, read_checkpoint
from gapssg.engine.inference import predict
from gapssg.engine.metrics import Scores, score
from gapssg.engine.real_images import read_images
from gapssg.engine.requests import Requests
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
from gapssg.engine.trainee import Phase, Trainee, TraineeFacts
from gapssg.errors import InputError
from gapssg.models import create_model
from gapssg.models.model_file import ModelCard, Provenance, save_model
from gapssg.models.profile import profile_model
from gapssg.runtime import Runtime, to_unit_range

# The checkpoint knows the SHA-256 of the images.
_MAY_MOVE = ("data.root", "data.name")


class RunFacts(Facts):
    """What a checkpoint keeps of the run besides tensors."""

    compiled: bool
    epochs_done: NonNegativeInt
    scores: Scores | None
    best: tuple[float, NonNegativeInt]
    evaluation_seconds: NonNegativeFloat
    epoch_seconds: NonNegativeFloat
    total_seconds: NonNegativeFloat
    trainee: TraineeFacts


def pretrain_teacher(
    settings: PretrainSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
) -> dict[str, Any]:
    """Train a classifier on real images and write a run directory with `model.safetensors`.

    With `resume` the run in `output` continues after its last checkpoint, and ends with the files that it would
    have had without the interruption; the images may have been moved since then. `requests` may be set from another
    thread or a signal handler.

    Returns:
        What `result.json` holds: the model's size and accuracies (of the last epoch, and of the best, which
        the test split chose), cost and provenance.

    Raises:
        InputError: The data or the output directory cannot be used; nothing has been written.
        RunError: The training diverged, or the disk refused a write.
        Stopped: `requests` asked for it.
    """
    display = display or SilentDisplay()
    if resume:
        check_same_settings(output, settings, _MAY_MOVE)
    else:
        check_output(output, overwrite)
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    train = read_images(settings.data, "train", display)
    test = read_images(settings.data, "test", display, channels=train.input_shape[0])
    check_same_classes(train, test)
    identity = {"the images' SHA-256": sha256_of_images(train, test), **runtime.identity()}
    checkpoint = read_checkpoint(output, identity) if resume else None
    facts = RunFacts.read(checkpoint.state.facts) if checkpoint else None
    pretraining = _Pretraining(settings, runtime, train, test, compiled=facts.compiled if facts else None)
    if checkpoint and facts:
        pretraining.restore(facts, checkpoint.state)
        run = RunDirectory.reopen(output, settings, display, checkpoint.events_length)
        run.show("checkpoint", directory=output)
        after = f"after epoch {pretraining.epochs_done} of {settings.epochs}"
        run.show("start", message=f"continuing {output} {after}, {pretraining.runtime.describe()}")
    else:
        run = RunDirectory(output, settings, display, overwrite)
        images = f"{len(train):,} images of {settings.data.name}"
        run.record("start", message=f"training {settings.model.name} on {images}, {pretraining.runtime.describe()}")
    every = (settings.checkpoint_every, settings.checkpoint_minutes)
    checkpoints = Checkpoints(run, identity, pretraining.state, requests or Requests(), *every)
    with pretraining.runtime.configured(), run, checkpoints:
        run.show_notes(pretraining.runtime)
        while pretraining.epochs_done < settings.epochs:
            event = pretraining.run_epoch(run, checkpoints.after_step)
            run.record("epoch", epoch=pretraining.epochs_done, epochs=settings.epochs, **event)
            run.show_notes(pretraining.runtime)
            checkpoints.after_epoch(pretraining.epochs_done, is_last=pretraining.epochs_done == settings.epochs)
        result = pretraining.finish(output / "model.safetensors")
        run.write_result(result)
        run.record("end", **{key: result["model"][key] for key in ("top1", "best_top1", "best_epoch")})
    return result


class _Pretraining:
    """The model, its optimizer and the images on the device, and what one epoch does with them."""

    def __init__(
        self, settings: PretrainSettings, runtime: Runtime, train: ImageSet, test: ImageSet, compiled: bool | None
    ) -> None:
        model = create_model(
            settings.model.name,
            num_classes=train.num_classes,
            input_shape=train.input_shape,
            seed=runtime.derive_seed("initial-weights"),
            arguments=settings.model.arguments,
        )
        if settings.runtime.compile == "auto" and compiled is not None:
            runtime = replace(runtime, compiled=compiled)
        elif settings.runtime.compile == "auto":
            # Forward and backward to the weights costs three forwards; a multiply-add is two operations.
            flops = 2 * 3 * profile_model(model, train.input_shape).macs * len(train) * settings.epochs
            runtime, sentence = runtime.compile_if_worth_it(flops)
            runtime.note(sentence)
        self.settings = settings
        self.runtime = runtime
        self.model = runtime.place(model)
        self.card = _describe(settings, train)
        self.train = train.to(runtime.device)
        self.test = test.to(runtime.device)
        self.normalization = Normalization.from_statistics(self.card.mean, self.card.deviation, runtime.device)
        self.augmentation = Augmentation(self.card.crop_padding, self.card.flip)
        self.trainee = Trainee(self.model, self._loss, settings.optimizer, runtime, settings.max_rollbacks)
        self.epochs_done = 0
        self.scores: Scores | None = None
        self.best = (-1.0, 0)
        self.evaluation_seconds = 0.0
        self.epoch_seconds = 0.0
        self.started = time.perf_counter()

    def state(self) -> State:
        """Return what a checkpoint keeps."""
        trainee = self.trainee.state()
        facts = {
            "compiled": self.runtime.compiled,
            "epochs_done": self.epochs_done,
            "scores": self.scores,
            "best": self.best,
            "evaluation_seconds": self.evaluation_seconds,
            "epoch_seconds": self.epoch_seconds,
            "total_seconds": time.perf_counter() - self.started,
            "trainee": trainee.facts,
        }
        return State(facts, trainee.prefixed("trainee."))

    def restore(self, facts: RunFacts, state: State) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            InputError: The tensors do not fit the model.
        """
        if facts.epochs_done > self.settings.epochs or (facts.epochs_done > 0) != (facts.scores is not None):
            raise InputError("the checkpoint is not one of this run; start the run anew")
        self.trainee.restore(state.component("trainee"))
        self.epochs_done, self.scores, self.best = facts.epochs_done, facts.scores, facts.best
        self.evaluation_seconds, self.epoch_seconds = facts.evaluation_seconds, facts.epoch_seconds
        self.started -= facts.total_seconds

    def run_epoch(self, run: RunDirectory, after_step: Callable[[], None]) -> dict[str, Any]:
        """Make one pass over the images, or what is left of it, and evaluate; return what the epoch's event says."""
        epoch = self.epochs_done
        order = self.runtime.random_stream("image-order", epoch)
        batches = shuffled_batches(len(self.train), 1, self.settings.batch_size, order)
        earlier, started = self.epoch_seconds, time.perf_counter()

        def after_each(steps_done: int) -> None:
            self.epoch_seconds = earlier + time.perf_counter() - started
            run.progress(f"epoch {epoch + 1} of {self.settings.epochs}", steps_done, len(batches))
            after_step()

        self.trainee.train(Phase(epoch, 0, len(batches), lambda start: self._inputs(batches, start)), run, after_each)
        loss = self.trainee.loss_sum.item() / len(batches)
        self.trainee.loss_sum.zero_()
        trained = time.perf_counter()
        seconds = earlier + trained - started
        logits = predict(self.model, self.test.images, self.normalization, self.runtime)
        self.scores = score(logits, self.test.labels, self.test.class_names)
        self.evaluation_seconds += time.perf_counter() - trained
        self.epochs_done += 1
        self.epoch_seconds = 0.0
        if self.scores.top1 > self.best[0]:
            self.best = (self.scores.top1, self.epochs_done)
            save_model(run.path / "best.safetensors", self.model, self.card)
        return {
            "learning_rate": self.trainee.learning_rate,
            "train_loss": loss,
            "top1": self.scores.top1,
            "loss": self.scores.loss,
            "timing": {
                "seconds": seconds + time.perf_counter() - trained,
                "images_per_second": batches.numel() / seconds,
            },
        }

    def finish(self, file: Path) -> dict[str, Any]:
        """Write the model; return the result."""
        assert self.scores is not None  # there is at least one epoch
        save_model(file, self.model, self.card)
        return {
            "command": "pretrain-teacher",
            "model": {
                "file": str(file),
                "architecture": self.card.architecture,
                **profile_model(self.model, self.card.input_shape).to_dict(),
                **self.scores.to_dict(),
                "best_top1": self.best[0],
                "best_epoch": self.best[1],
            },
            "data": self.settings.data.name,
            "epochs": self.settings.epochs,
            "timing": {"total": time.perf_counter() - self.started, "evaluation": self.evaluation_seconds},
            **run_facts(self.runtime, self.settings),
        }

    def _inputs(self, batches: Tensor, start: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield the inputs of the steps from `start` on, each at its learning rate."""
        stream = self.runtime.random_stream("augmentation", self.epochs_done)
        for index, batch in enumerate(batches):
            shifts = self.augmentation.draw(len(batch), stream)
            if index >= start:
                self.trainee.set_learning_rate((self.epochs_done + index / len(batches)) / self.settings.epochs)
                yield self.train.images[batch], self.train.labels[batch], *shifts

    def _loss(self, images: Tensor, labels: Tensor, *shifts: Tensor) -> dict[str, Tensor]:
        views = self.normalization(crop_and_flip(to_unit_range(images), Shifts(*shifts)))
        with self.runtime.autocast():
            logits = self.model(views).float()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=self.settings.label_smoothing)}


def _describe(settings: PretrainSettings, train: ImageSet) -> ModelCard:
    mean, deviation = train.channel_statistics()
    padding = settings.crop_padding
    return ModelCard(
        architecture=settings.model.name,
        arguments=settings.model.arguments,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=train.input_shape[1] // 8 if padding is None else padding,
        flip=flipping_is_meaningful(settings.data.name) if settings.flip is None else settings.flip,
        class_names=train.class_names,
        provenance=Provenance(command="pretrain-teacher", seed=settings.seed, versions=versions()),
    )
