"""`pretrain-teacher`: training a classifier on real images."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import NonNegativeFloat, NonNegativeInt
from torch import nn

from gapssg.core.augment import choose_crop_padding
from gapssg.core.runtime import Runtime
from gapssg.data import flipping_is_meaningful
from gapssg.data.image_set import ImageSet, check_same_classes, sha256_of_images
from gapssg.errors import InputError
from gapssg.evaluation.predict import predict, score_on
from gapssg.evaluation.real_images import is_folder_of_images, read_images
from gapssg.files import user_path
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.profile import profile_model
from gapssg.models.signature import signature_of
from gapssg.runs.checkpoint import NOT_OF_THIS_RUN, Facts, State
from gapssg.runs.directory import Display, RunDirectory, SilentDisplay, run_facts, versions
from gapssg.runs.events import Event, PretrainingEnded, PretrainingEpoch, PretrainingTiming, Started
from gapssg.runs.requests import Requests
from gapssg.runs.results.common import Scores
from gapssg.runs.results.cost import EstimateResult, Part
from gapssg.runs.results.training import AugmentationFacts, PretrainResult, Trained, TrainingTiming
from gapssg.runs.time_left import EVALUATION, TimeLeft
from gapssg.training.classifier_trainee import ClassifierTrainee
from gapssg.training.estimate import estimated, peak_memory, time_evaluation, time_steps
from gapssg.training.loop import Job, Launch, Phase
from gapssg.training.memory import check_memory, training_memory
from gapssg.training.settings import PretrainSettings

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

# The checkpoint compares the SHA-256 of the images.
_MAY_MOVE = ("data.root", "data.name")
_TIMED_STEPS = 5


class Progress(Facts):
    """The state of a training, besides tensors and the optimizer."""

    epochs_done: NonNegativeInt = 0
    scores: Scores | None = None
    """Scores of the last epoch."""
    best: tuple[float, NonNegativeInt] = (-1.0, 0)
    """Highest top-1 accuracy so far, and its epoch."""
    evaluation_seconds: NonNegativeFloat = 0.0
    epoch_seconds: NonNegativeFloat = 0.0
    """Training time of the current epoch."""


def pretrain_teacher(
    settings: PretrainSettings,
    output: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    display: Display | None = None,
    requests: Requests | None = None,
    processes: Processes | None = None,
) -> PretrainResult:
    """Train a classifier on real images and write a run directory with `model.safetensors`.

    With `resume` the run in `output` resumes from its last checkpoint and ends with the files of an uninterrupted run;
    the images may have moved. `requests` may be set from another thread or a signal handler. Each of `processes` calls
    this with equal arguments; rank 0 writes the directory.

    Returns:
        The content of `result.json`: the model's size, its accuracies after the last epoch and after the best, which
        is selected on the test split, cost and provenance.

    Raises:
        InputError: The data or the output directory cannot be used, or a step does not fit in the memory; nothing has
            been written.
        RunError: The training diverged, or the disk refused a write.
        Stopped: Requested by `requests`.
    """
    output = user_path(output)
    display, requests = display or SilentDisplay(), requests or Requests()
    launch = Launch(settings, output, overwrite, resume, display, requests, processes)
    with launch.preparing():
        pretraining = _prepare(settings, launch)
    return launch.carry_out(pretraining)


def _prepare(settings: PretrainSettings, launch: Launch) -> _Pretraining:
    """Check everything and create the job."""
    launch.check(may_move=_MAY_MOVE)
    runtime = Runtime.from_settings(settings.runtime, settings.seed, launch.processes)
    runtime.check_shares({"batch_size": settings.batch_size})
    train, test = _read_splits(settings, launch.display)
    state = launch.read_checkpoint({"the images' SHA-256": sha256_of_images(train, test), **runtime.identity()})
    model = make_model(settings, runtime, train)
    runtime = launch.decide_compilation(runtime, settings.runtime.compile, planned_flops(settings, model, train))
    pretraining = _Pretraining(settings, runtime, train, test, model)
    if state is not None:
        pretraining.restore(state)
    check_memory(pretraining.memory, runtime)
    return pretraining


def estimate_pretraining(settings: PretrainSettings, display: Display | None = None) -> EstimateResult:
    """Estimate the cost of a training by timing its first steps.

    Nothing is written, except for downloaded data. `display` shows the progress of reading it. Raises `InputError` if
    the data cannot be used, or a step does not fit in the memory.
    """
    runtime = Runtime.from_settings(settings.runtime, settings.seed)
    train, test = _read_splits(settings, display or SilentDisplay())
    model = make_model(settings, runtime, train)
    runtime, _ = runtime.decide_compilation(settings.runtime.compile, planned_flops(settings, model, train))
    pretraining = _Pretraining(settings, runtime, train, test, model)
    check_memory(pretraining.memory, runtime)
    with runtime.configured(), runtime.seeded_globals("estimate"):
        parts = pretraining.time_steps()
    return estimated("pretrain-teacher", parts, peak_memory(runtime), runtime)


def _read_splits(settings: PretrainSettings, display: Display) -> tuple[ImageSet, ImageSet]:
    train = read_images(settings.data, "train", display)
    test = read_images(settings.data, "test", display, channels=train.input_shape[0])
    check_same_classes(train, test)
    return train, test


def make_model(settings: PretrainSettings, runtime: Runtime, train: ImageSet) -> nn.Module:
    """Create the model with its initial weights."""
    return create_model(
        settings.model.name,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        seed=runtime.derive_seed("initial-weights"),
        arguments=settings.model.arguments,
    )


def planned_flops(settings: PretrainSettings, model: nn.Module, train: ImageSet) -> int:
    """Return the floating-point operations of a training; forward and backward cost three times forward."""
    return 2 * 3 * profile_model(model, train.input_shape).macs * len(train) * settings.epochs


class _Pretraining(Job[PretrainResult]):
    time_left: TimeLeft

    def __init__(
        self, settings: PretrainSettings, runtime: Runtime, train: ImageSet, test: ImageSet, model: nn.Module
    ) -> None:
        self.epochs = settings.epochs
        self.checkpoints_every = (settings.checkpoint_every, settings.checkpoint_minutes)
        self.settings = settings
        self.runtime = runtime
        self.model = runtime.place(model)
        self.card = _describe(settings, train, model)
        self.train = train.to(runtime.device)
        self.test = test.to(runtime.device)
        self.trainee = ClassifierTrainee(
            self.model,
            self.card,
            self.train,
            runtime,
            optimizer=settings.optimizer,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            max_rollbacks=settings.max_rollbacks,
            label_smoothing=settings.label_smoothing,
        )
        self.progress = Progress()
        self.time_left = TimeLeft(self.steps_left())
        step = training_memory(self.model, self.card.input_shape, settings.batch_size, runtime.precision)
        self.memory = {"training": step}

    @property
    def epochs_done(self) -> int:
        return self.progress.epochs_done

    def state(self) -> State:
        trainee = self.trainee.state()
        return State({**self.progress.model_dump(), "trainee": trainee.facts}, trainee.prefixed("trainee."))

    def restore(self, state: State) -> None:
        progress = Progress.read({name: fact for name, fact in state.facts.items() if name != "trainee"})
        if progress.epochs_done > self.epochs or (progress.epochs_done > 0) != (progress.scores is not None):
            raise InputError(NOT_OF_THIS_RUN)
        self.trainee.restore(state.component("trainee"))
        self.progress = progress
        self.time_left = TimeLeft(self.steps_left())

    def steps_left(self) -> dict[str, int]:
        """Return the numbers of training steps and evaluations that are left before the current epoch."""
        epochs = self.settings.epochs - self.epochs_done
        return {"training": epochs * self.trainee.epoch_steps, EVALUATION: epochs}

    def begin(self) -> Iterator[Event]:
        settings, views = self.settings, self.trainee.augmentation.describe()
        images = f"{len(self.train):,} images of {settings.data.name}"
        if settings.flip is None and self.trainee.augmentation.flip:
            views += " (the default for this data; --no-flip turns them off)"
        yield Started(message=f"training {settings.model.name} on {images}, {views}, {self.runtime.describe()}")

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        task = f"epoch {self.epochs_done + 1} of {self.epochs}"
        yield Phase("training", self.trainee.epoch_steps, self._train(run), task)

    def _train(self, run: RunDirectory) -> Generator[int, None, None]:
        earlier, started = self.progress.epoch_seconds, time.perf_counter()
        for done in self.trainee.train_epoch(self.epochs_done, record=run.record):
            self.progress.epoch_seconds = earlier + time.perf_counter() - started
            yield done
        self.progress.epoch_seconds = earlier + time.perf_counter() - started

    def end_epoch(self, run: RunDirectory) -> PretrainingEpoch:
        steps = self.trainee.epoch_steps
        loss = self.trainee.loss_sum.item() / steps
        self.trainee.loss_sum.zero_()
        progress, trained = self.progress, time.perf_counter()
        seconds = progress.epoch_seconds
        with self.time_left.phase(EVALUATION, 1) as timed_evaluation:
            advice = "lower optimizer.learning_rate, or try --precision fp32"
            scores = score_on(self.test, self.model, self.trainee.normalization, self.runtime, advice=advice)
            progress.evaluation_seconds += time.perf_counter() - trained
            progress.epochs_done += 1
            progress.scores, progress.epoch_seconds = scores, 0.0
            if scores.top1 > progress.best[0]:
                progress.best = (scores.top1, progress.epochs_done)
                run.write_model("best.safetensors", self.model, self.card)
            timed_evaluation.step(1)
        return PretrainingEpoch(
            epoch=progress.epochs_done,
            epochs=self.epochs,
            learning_rate=self.trainee.learning_rate,
            train_loss=loss,
            top1=scores.top1,
            loss=scores.loss,
            timing=PretrainingTiming(
                seconds=seconds + time.perf_counter() - trained,
                images_per_second=steps * self.settings.batch_size / seconds,
                remaining=self.time_left.seconds,
            ),
        )

    def finish(self, run: RunDirectory, seconds: float) -> tuple[PretrainResult, PretrainingEnded]:
        scores, (best_top1, best_epoch) = self.progress.scores, self.progress.best
        assert scores is not None  # there is at least one epoch
        file = run.write_model(PretrainResult.model_file, self.model, self.card)
        result = PretrainResult(
            model=Trained(
                file=str(file),
                sha256=run.sha256_of(PretrainResult.model_file),
                architecture=self.card.architecture,
                **dict(profile_model(self.model, self.card.input_shape)),
                **dict(scores),
                best_top1=best_top1,
                best_epoch=best_epoch,
            ),
            data=self.settings.data.name,
            epochs=self.epochs,
            augmentation=AugmentationFacts(crop_padding=self.card.crop_padding, flip=self.card.flip),
            timing=TrainingTiming(total=seconds, evaluation=self.progress.evaluation_seconds),
            **dict(run_facts(self.runtime, self.settings)),
        )
        return result, PretrainingEnded(**dict(result.model))

    def time_steps(self) -> dict[str, Part]:
        """Time a few training steps and an evaluation; the model cannot be used afterwards."""
        steps = self.steps_left()
        inputs = chain.from_iterable(self.trainee.inputs(0) for _ in repeat(None))
        self.model.train()
        training = time_steps(lambda: self.trainee.step(*next(inputs)), self.runtime, steps["training"], _TIMED_STEPS)
        evaluate = partial(predict, self.model, normalization=self.trainee.normalization, runtime=self.runtime)
        seconds = time_evaluation(evaluate, self.test.images, self.runtime)
        return {"training": training, EVALUATION: Part(steps[EVALUATION], seconds)}


def _describe(settings: PretrainSettings, train: ImageSet, model: nn.Module) -> ModelCard:
    mean, deviation = train.channel_statistics()
    _, height, width = train.input_shape
    return ModelCard(
        architecture=settings.model.name,
        arguments=settings.model.arguments,
        num_classes=train.num_classes,
        input_shape=train.input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=choose_crop_padding(settings.crop_padding, train.input_shape),
        crop_padding_mode="zeros",
        flip=flipping_is_meaningful(settings.data.name) if settings.flip is None else settings.flip,
        class_names=train.class_names,
        # Images of a folder are cropped; those of the other sources are squares, and stretched.
        resize="crop" if height == width or is_folder_of_images(settings.data) else "stretch",
        provenance=Provenance(command="pretrain-teacher", seed=settings.seed, versions=versions()),
        **asdict(signature_of(model)),
    )
