"""How a run goes: it is opened or resumed, makes its epochs of steps, keeps checkpoints, and ends.

`distill`, `pretrain-teacher` and `landscape`, whose epochs are surfaces and whose steps are points, all go this way.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Container, Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import NonNegativeFloat

from gapssg.core.runtime import Runtime
from gapssg.errors import reporting_out_of_memory
from gapssg.runs.checkpoint import Checkpoints, Facts, State, read_checkpoint
from gapssg.runs.directory import Display, RunDirectory, Written, check_output, check_same_settings
from gapssg.runs.events import CheckpointWritten, Event, Note, Started
from gapssg.runs.requests import Requests
from gapssg.runs.results import RunResult
from gapssg.runs.time_left import TimeLeft
from gapssg.settings.base import Settings

Result = TypeVar("Result", bound=RunResult)
_RUN = "run"


@dataclass(frozen=True)
class Phase:
    """Steps of one kind in a row, which the loop makes.

    Attributes:
        kind: What `TimeLeft` calls these steps.
        steps: How many there are, with those that were made before an interruption.
        work: Makes a step each time, and yields how many of the phase are done. It ends when the device has finished.
        task: What is shown.
        index: How many such phases of the task came before, counted from 0.
        count: How many of them the task has.
        attended: Whether requests are answered between two steps; where not, a stop ends the run at once.
    """

    kind: str
    steps: int
    work: Generator[int, None, None]
    task: str
    index: int = 0
    count: int = 1
    attended: bool = True


class Job(ABC, Generic[Result]):
    """What a command does in its run.

    Attributes:
        runtime: Where and how it is computed.
        unit: What an epoch is called.
        epochs: How many there are to be.
        checkpoints_every: Epochs, and minutes, between checkpoints.
        time_left: Measures the steps; None if the time that is left is not shown.
    """

    runtime: Runtime
    unit = "epoch"
    epochs: int
    checkpoints_every: tuple[int, float]
    time_left: TimeLeft | None = None

    @property
    @abstractmethod
    def epochs_done(self) -> int:
        """Whole epochs so far."""

    @abstractmethod
    def begin(self) -> Iterable[Event]:
        """Return what a run records first: a new one, or one whose events its checkpoint does not know."""

    @abstractmethod
    def state(self) -> State | None:
        """Return what a checkpoint keeps; None if the run cannot continue from it, or has kept it elsewhere."""

    @abstractmethod
    def phases(self, run: RunDirectory) -> Iterable[Phase]:
        """Yield the phases of the next epoch that are left."""

    @abstractmethod
    def end_epoch(self, run: RunDirectory) -> Event:
        """Count an epoch whose phases are done; return its event."""

    @abstractmethod
    def finish(self, run: RunDirectory, seconds: float) -> tuple[Result, Event]:
        """Write what the run made in so many seconds; return its result and its last event."""


class RunFacts(Facts):
    """What a checkpoint keeps of the run as a whole."""

    compiled: bool
    total_seconds: NonNegativeFloat


@dataclass
class Launch:
    """A run that was asked for: where, whether it begins or continues, and who watches.

    Attributes:
        settings: Of the run.
        output: Its directory.
        overwrite: Whether an earlier run there may be replaced.
        resume: Whether it continues the run there.
        display: Shows it.
        requests: What is asked of it from outside.
        written: What stays of its files when it continues, as its checkpoint knows them.
    """

    settings: Settings
    output: Path
    overwrite: bool
    resume: bool
    display: Display
    requests: Requests
    written: Written = field(default_factory=Written)
    _began: float = field(default_factory=time.perf_counter, init=False)
    _may_move: Container[str] = field(default=(), init=False)
    _identity: dict[str, str] = field(default_factory=dict, init=False)
    _compiled: bool | None = field(default=None, init=False)
    _note: str | None = field(default=None, init=False)

    def check(self, inputs: Iterable[Path | None] = (), may_move: Container[str] = ()) -> None:
        """Check that it may begin, or continue, where it is asked to; nothing is written.

        Args:
            inputs: What it reads, as in `check_output`.
            may_move: As in `check_same_settings`.

        Raises:
            InputError: It may not.
        """
        self._may_move = may_move
        if self.resume:
            check_same_settings(self.output, self.settings, may_move)
        else:
            check_output(self.output, self.overwrite, inputs)

    def read_checkpoint(self, identity: dict[str, str]) -> State | None:
        """Return the state from which the run continues; None if it begins.

        Args:
            identity: What must be the same when it continues, such as the SHA-256 of its teacher.

        Raises:
            InputError: The checkpoint is missing or damaged, or of another run.
        """
        self._identity = identity
        if not self.resume:
            return None
        checkpoint = read_checkpoint(self.output, identity, self.settings, self._may_move)
        facts = dict(checkpoint.state.facts)
        own = RunFacts.read(facts.pop(_RUN, None))
        self.written, self._compiled = checkpoint.written, own.compiled
        self._began -= own.total_seconds
        return State(facts, checkpoint.state.tensors)

    def decide_compilation(self, runtime: Runtime, setting: bool | Literal["auto"], flops: float) -> Runtime:
        """Return the runtime with what `compile` decides for so many operations, or has decided when the run began."""
        decided, self._note = runtime.decide_compilation(setting, flops, self._compiled)
        return decided

    def carry_out(self, job: Job[Result]) -> Result:
        """Make the epochs that are left, and write the result.

        Raises:
            InputError: Another process writes to the directory.
            RunError: The disk refused a write, or the work failed.
            Stopped: That was asked for; a checkpoint is written if there can be one.
        """
        with reporting_out_of_memory(), job.runtime.configured(), self._open(job) as run:
            state = partial(self._state, job)
            with Checkpoints(run, self._identity, state, self.requests, *job.checkpoints_every) as checkpoints:
                while job.epochs_done < job.epochs:
                    for phase in job.phases(run):
                        self._make(phase, job, run, checkpoints)
                    event = job.end_epoch(run)
                    if job.time_left is not None:
                        run.show_time_left(job.time_left, job.epochs_done, job.epochs)
                    run.record(event)
                    checkpoints.after_epoch(job.epochs_done, is_last=job.epochs_done == job.epochs)
                result, end = job.finish(run, time.perf_counter() - self._began)
                run.record(end)
                run.write_result(result)
        return result

    def _open(self, job: Job[Result]) -> RunDirectory:
        if self.resume:
            run = RunDirectory(self.output, self.settings, self.display, resume_from=self.written)
            run.show(CheckpointWritten(directory=self.output))
            after = f"after {job.unit} {job.epochs_done} of {job.epochs}"
            run.show(Started(message=f"continuing {self.output} {after}, {job.runtime.describe()}"))
        else:
            run = RunDirectory(self.output, self.settings, self.display, self.overwrite)
        if not self.written.events_length:
            for event in job.begin():
                run.record(event)
        if self._note is not None:
            run.show(Note(message=self._note))
        return run

    def _make(self, phase: Phase, job: Job[Result], run: RunDirectory, checkpoints: Checkpoints) -> None:
        """Make the steps of a phase, and between two of them show, time, and answer requests."""
        time_left = job.time_left
        self.requests.attended = phase.attended
        timing = nullcontext() if time_left is None else time_left.phase(phase.kind, phase.steps)
        with closing(phase.work) as steps, timing as timed:
            for done in steps:
                run.progress(phase.task, phase.index * phase.steps + done, phase.count * phase.steps)
                if timed is not None and time_left is not None:
                    timed.step(done)
                    run.show_time_left(time_left, job.epochs_done, job.epochs)
                checkpoints.after_step()

    def _state(self, job: Job[Result]) -> State | None:
        state = job.state()
        if state is None:
            return None
        own = RunFacts(compiled=job.runtime.compiled, total_seconds=time.perf_counter() - self._began)
        return State({_RUN: own.model_dump(), **state.facts}, state.tensors)
