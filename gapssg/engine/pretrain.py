"""`pretrain-teacher`: a classifier trained on real images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor

from gapssg.augment import Augmentation, Normalization, Shifts, check_crop_padding, crop_and_flip
from gapssg.batches import shuffled_batches, steps_for_passes
from gapssg.data import flipping_is_meaningful
from gapssg.data.image_set import ImageSet, check_same_classes, sha256_of_images
from gapssg.engine.checkpoint import Checkpoints, Facts, State, read_checkpoint
from gapssg.engine.estimate import EVALUATED_IMAGES, Estimate, Part, peak_memory, time_steps
from gapssg.engine.inference import predict, score_on
from gapssg.engine.metrics import Scores
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
from gapssg.engine.time_left import EVALUATION, TimeLeft
from gapssg.engine.trainee import Phase, Trainee, TraineeFacts
from gapssg.errors import InputError
from gapssg.models import create_model
from gapssg.models.model_file import ModelCard, Provenance, save_verified_model
from gapssg.models.profile import profile_model
from gapssg.runs.events import CheckpointWritten, PretrainingEnded, PretrainingEpoch, PretrainingTiming, Started
from gapssg.runtime import Runtime, to_unit_range

# The checkpoint knows the SHA-256 of the images.
_MAY_MOVE = ("data.root", "data.name")
_TIMED_STEPS = 5


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
        run.show(CheckpointWritten(directory=output))
        after = f"after epoch {pretraining.epochs_done} of {settings.epochs}"
        run.show(Started(message=f"continuing {output} {after}, {pretraining.runtime.describe()}"))
    else:
        run = RunDirectory(output, settings, display, overwrite)
        _record_start(run, pretraining)
    every = (settings.checkpoint_every, settings.checkpoint_minutes)
    checkpoints = Checkpoints(run, identity, pretraining.state, requests or Requests(), *every)
    with pretraining.runtime.configured(), run, checkpoints:
        run.show_notes(pretraining.runtime)
        while pretraining.epochs_done < settings.epochs:
            event = pretraining.run_epoch(run, checkpoints.after_step)
            run.show_time_left(pretraining.time_left, pretraining.epochs_done, settings.epochs)
            run.record(event)
            run.show_notes(pretraining.runtime)
            checkpoints.after_epoch(pretraining.epochs_done, is_last=pretraining.epochs_done == settings.epochs)
        result = pretraining.finish(output / "model.safetensors")
        run.write_result(result)
        model = result["model"]
        run.record(PretrainingEnded(top1=model["top1"], best_top1=model["best_top1"], best_epoch=model["best_epoch"]))
    return result


def _record_start(run: RunDirectory, pretraining: _Pretraining) -> None:
    settings, augmentation = pretraining.settings, pretraining.augmentation
    images = f"{len(pretraining.train):,} images of {settings.data.name}"
    views = augmentation.describe()
    if settings.flip is None and augmentation.flip:
        views += " (the default for this data; --no-flip turns them off)"
    message = f"training {settings.model.name} on {images}, {views}, {pretraining.runtime.describe()}"
    run.record(Started(message=message))


def estimate_pretraining(settings: PretrainSettings, display: Display | None = None) -> Estimate:
    """Time a few steps of a training, from its beginning, and return what all of it would take.

    Nothing is written, unless the data is to be downloaded. `display` shows how far it is read.

    Raises:
        InputError: The data cannot be used.
    """
    display = display or SilentDisplay()
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    train = read_images(settings.data, "train", display)
    test = read_images(settings.data, "test", display, channels=train.input_shape[0])
    check_same_classes(train, test)
    pretraining = _Pretraining(settings, runtime, train, test, compiled=None)
    runtime = pretraining.runtime
    with runtime.configured(), runtime.seeded_globals("estimate"):
        parts = pretraining.time_steps()
    return Estimate("pretrain-teacher", parts, peak_memory(runtime), runtime)


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
        self.time_left = TimeLeft(self.steps_left())

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
        self.time_left = TimeLeft(self.steps_left())

    def steps_left(self) -> dict[str, int]:
        """Return how many training steps and evaluations are left, before the epoch under way."""
        epochs = self.settings.epochs - self.epochs_done
        return {"training": epochs * steps_for_passes(len(self.train), 1, self.settings.batch_size), EVALUATION: epochs}

    def run_epoch(self, run: RunDirectory, after_step: Callable[[], None]) -> PretrainingEpoch:
        """Make one pass over the images, or what is left of it, and evaluate; return the epoch's event."""
        epoch = self.epochs_done
        batches = self._batches(epoch)
        earlier, started = self.epoch_seconds, time.perf_counter()

        def after_each(steps_done: int) -> None:
            self.epoch_seconds = earlier + time.perf_counter() - started
            timed.step(steps_done)
            run.progress(f"epoch {epoch + 1} of {self.settings.epochs}", steps_done, len(batches))
            run.show_time_left(self.time_left, epoch, self.settings.epochs)
            after_step()

        phase = Phase(epoch, 0, len(batches), lambda start: self._inputs(batches, start))
        with self.time_left.phase("training", len(batches)) as timed:
            self.trainee.train(phase, run, after_each)
        loss = self.trainee.loss_sum.item() / len(batches)
        self.trainee.loss_sum.zero_()
        trained = time.perf_counter()
        seconds = earlier + trained - started
        with self.time_left.phase(EVALUATION, 1) as timed_evaluation:
            self.scores = score_on(self.test, self.model, self.normalization, self.runtime)
            self.evaluation_seconds += time.perf_counter() - trained
            self.epochs_done += 1
            self.epoch_seconds = 0.0
            if self.scores.top1 > self.best[0]:
                self.best = (self.scores.top1, self.epochs_done)
                save_verified_model(run.path / "best.safetensors", self.model, self.card)
            timed_evaluation.step(1)
        return PretrainingEpoch(
            epoch=self.epochs_done,
            epochs=self.settings.epochs,
            learning_rate=self.trainee.learning_rate,
            train_loss=loss,
            top1=self.scores.top1,
            loss=self.scores.loss,
            timing=PretrainingTiming(
                seconds=seconds + time.perf_counter() - trained,
                images_per_second=batches.numel() / seconds,
                remaining=self.time_left.seconds,
            ),
        )

    def finish(self, file: Path) -> dict[str, Any]:
        """Write the model; return the result."""
        assert self.scores is not None  # there is at least one epoch
        save_verified_model(file, self.model, self.card)
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
            "augmentation": self.augmentation.to_dict(),
            "timing": {"total": time.perf_counter() - self.started, "evaluation": self.evaluation_seconds},
            **run_facts(self.runtime, self.settings),
        }

    def time_steps(self) -> dict[str, Part]:
        """Make a few training steps and time them and the evaluation; the model is of no more use after it."""
        steps = self.steps_left()
        inputs = chain.from_iterable(self._inputs(self._batches(0), 0) for _ in repeat(None))
        self.model.train()
        training = time_steps(lambda: self.trainee.step(*next(inputs)), self.runtime, steps["training"], _TIMED_STEPS)
        images = self.test.images[:EVALUATED_IMAGES]
        evaluate = partial(predict, self.model, images, self.normalization, self.runtime)
        evaluation = time_steps(evaluate, self.runtime, 6, 1)
        seconds = evaluation.seconds_per_step * len(self.test) / len(images)
        return {"training": training, EVALUATION: Part(steps[EVALUATION], seconds)}

    def _batches(self, epoch: int) -> Tensor:
        """Return the batches of an epoch, (steps, batch size) int64."""
        order = self.runtime.random_stream("image-order", epoch)
        return shuffled_batches(len(self.train), 1, self.settings.batch_size, order)

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
    padding = settings.crop_padding
    check_crop_padding(padding, train.input_shape)
    mean, deviation = train.channel_statistics()
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
