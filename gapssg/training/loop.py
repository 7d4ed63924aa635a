"""The loop of a run: start or resume, epochs of steps, checkpoints, result.

Used by `distill`, `pretrain-teacher` and `landscape`, whose epochs are surfaces and whose steps are points.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Container, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from pydantic import NonNegativeFloat

from gapssg.core.runtime import Runtime
from gapssg.errors import InputError, reporting_out_of_memory
from gapssg.models.hub import is_hub_reference
from gapssg.runs.checkpoint import Checkpoints, Facts, State, read_checkpoint
from gapssg.runs.directory import (
    Display,
    RunDirectory,
    UnwrittenRun,
    Written,
    check_output,
    check_same_settings,
    versions,
)
from gapssg.runs.events import CheckpointWritten, Event, Note, Started
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.common import RunResult
from gapssg.runs.time_left import TimeLeft
from gapssg.settings.base import Settings
from gapssg.settings.load import texts_by_key
from gapssg.training.memory import StepMemory, advice_without_memory

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

Result = TypeVar("Result", bound=RunResult)
_RUN = "run"


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of one kind."""

    kind: str
    """Name of these steps in `TimeLeft`."""
    steps: int
    """Number of steps, including those made before an interruption."""
    work: Generator[int, None, None]
    """Makes one step at a time, and yields how many of the phase are done. It ends when the device has finished."""
    task: str
    """Name of the task for the display."""
    index: int = 0
    """Number of the phase among those of the task, counted from 0."""
    count: int = 1
    """Number of phases of the task."""
    attended: bool = True
    """Whether requests are answered between two steps; if not, a stop ends the run at once."""


class Job(ABC, Generic[Result]):
    """The work of a command in its run.

    Attributes:
        runtime: Device and precision.
        unit: Name of an epoch.
        epochs: Epochs of the whole run.
        checkpoints_every: Epochs, and minutes, between checkpoints.
        time_left: Measures the steps; None if the remaining time is not shown.
        memory: The memory of a step by the kind of its phase, for advice.
    """

    runtime: Runtime
    unit = "epoch"
    epochs: int
    checkpoints_every: tuple[int, float]
    time_left: TimeLeft | None = None
    memory: Mapping[str, StepMemory] = {}

    @property
    @abstractmethod
    def epochs_done(self) -> int:
        """Completed epochs."""

    @abstractmethod
    def begin(self) -> Iterable[Event]:
        """Return the first events of a run, unless it resumes and has recorded them."""

    @abstractmethod
    def state(self) -> State | None:
        """Return the state for a checkpoint; None if the run cannot resume from one, or stores its state elsewhere."""

    @abstractmethod
    def phases(self, run: RunDirectory) -> Iterable[Phase]:
        """Yield the remaining phases of the next epoch."""

    @abstractmethod
    def end_epoch(self, run: RunDirectory) -> Event:
        """Count an epoch whose phases are done; return its event."""

    @abstractmethod
    def finish(self, run: RunDirectory, seconds: float) -> tuple[Result, Event]:
        """Write the final files after so many seconds; return the result and the last event."""


class _LoopFacts(Facts):
    """The state of the loop in a checkpoint."""

    compiled: bool
    total_seconds: NonNegativeFloat


@dataclass
class Launch:
    """A run that is to be started or resumed."""

    settings: Settings
    """Settings of the run."""
    output: Path
    """Directory of the run."""
    overwrite: bool
    """Whether an earlier run there may be replaced."""
    resume: bool
    """Whether to resume the run there."""
    display: Display
    """Shows the run."""
    requests: Requests
    """Requests to the run from outside."""
    processes: Processes | None = None
    """The processes that share the work, each with a launch of its own; None if there is one."""
    shared: dict[str, str] = field(default_factory=dict, init=False)
    """What several processes must have alike, besides their settings and what a resumed run must have alike."""
    written: Written = field(default_factory=Written, init=False)
    """What the run had written at the checkpoint from which it resumes."""
    _started: float = field(default_factory=time.perf_counter, init=False)
    _may_move: Container[str] = field(default=(), init=False)
    _identity: dict[str, str] = field(default_factory=dict, init=False)
    _compiled: bool | None = field(default=None, init=False)
    _note: str | None = field(default=None, init=False)

    def preparing(self) -> AbstractContextManager[None]:
        """Return the context that checks everything before the first write: if it fails in one process, then in all."""
        return nullcontext() if self.processes is None else self.processes.all_or_none()

    def check(self, inputs: Iterable[Path | None] = (), may_move: Container[str] = ()) -> None:
        """Check that the run may start or resume in its directory, or raise `InputError`; nothing is written.

        Arguments are those of `check_output` and `check_same_settings`.
        """
        self._may_move = may_move
        if self.resume:
            check_same_settings(self.output, self.settings, may_move)
        else:
            check_output(self.output, self.overwrite, inputs)

    def check_still_there(self, inputs: Mapping[str, Path | None]) -> None:
        """Raise `InputError` if a run cannot resume because an input, by the option that names it, does not exist."""
        for option, path in inputs.items() if self.resume else ():
            if path is not None and not is_hub_reference(path) and not os.path.exists(path):
                raise InputError(
                    f"{self.output} cannot resume without {path}, which does not exist; put it back, or name its new "
                    f"place with {option}"
                )

    def read_checkpoint(self, identity: dict[str, str]) -> State | None:
        """Return the state to resume from; None for a new run.

        Raises `InputError` if the checkpoint is missing, damaged, or of another run, whose `identity`, such as the
        SHA-256 of the teacher, differs.
        """
        self._identity = identity
        if not self.resume:
            return None
        self.written, state = read_checkpoint(self.output, identity, self.settings, self._may_move)
        facts = dict(state.facts)
        own = _LoopFacts.read(facts.pop(_RUN, None))
        self._compiled = own.compiled
        self._started -= own.total_seconds
        return State(facts, state.tensors)

    def decide_compilation(self, runtime: Runtime, setting: bool | Literal["auto"], flops: float) -> Runtime:
        """Return the runtime with the decision of `compile` for this amount of work, or that of the resumed run."""
        decided, self._note = runtime.decide_compilation(setting, flops, self._compiled)
        return decided

    def carry_out(self, job: Job[Result]) -> Result:
        """Make the remaining epochs and write the result.

        Raises:
            InputError: Another process writes to the directory.
            RunError: The disk refused a write, or the work failed.
            Stopped: A stop was requested; a checkpoint is written if the run can resume from one.
        """
        with self._together(job), reporting_out_of_memory(), job.runtime.configured(), self._open(job) as run:
            state = partial(self._state, job)
            every, highest = job.checkpoints_every, None if self.processes is None else self.processes.highest
            with Checkpoints(run, self._identity, state, self.requests, *every, highest) as checkpoints:
                while job.epochs_done < job.epochs:
                    for phase in job.phases(run):
                        self._make(phase, job, run, checkpoints)
                    event = job.end_epoch(run)
                    if job.time_left is not None:
                        run.show_time_left(job.time_left, job.epochs_done, job.epochs)
                    run.record(event)
                    checkpoints.after_epoch(job.epochs_done, is_last=job.epochs_done == job.epochs)
                result, end = job.finish(run, time.perf_counter() - self._started)
                run.record(end)
                run.write_result(result)
        return result

    @contextmanager
    def _together(self, job: Job[Result]) -> Iterator[None]:
        """Check that several processes make the same run, and let all of them end if one fails."""
        if self.processes is None:
            yield
            return
        own = {"output": os.path.abspath(self.output), **versions(), **texts_by_key(self.settings)}
        self.processes.check_same({**self._identity, **self.shared, **own})
        stopped = None
        with self.processes.sharing_failures():
            try:
                yield
            except Stopped as each:  # in every process
                stopped = each
            self.processes.wait_for_all()  # until rank 0 has written everything
        if stopped is not None:
            raise stopped

    def _open(self, job: Job[Result]) -> RunDirectory:
        with self.preparing():
            if job.runtime.rank == 0:
                return self._open_first(job)
        return UnwrittenRun(self.output, self.settings)

    def _open_first(self, job: Job[Result]) -> RunDirectory:
        if self.resume:
            run = RunDirectory(self.output, self.settings, self.display, resume_from=self.written)
            run.show(CheckpointWritten(directory=self.output))
            after = f"after {job.unit} {job.epochs_done} of {job.epochs}"
            run.show(Started(message=f"resuming {self.output} {after}, {job.runtime.describe()}"))
        else:
            run = RunDirectory(self.output, self.settings, self.display, self.overwrite)
        if not self.written.events_length:
            for event in job.begin():
                run.record(event)
        if self._note is not None:
            run.show(Note(message=self._note))
        return run

    def _make(self, phase: Phase, job: Job[Result], run: RunDirectory, checkpoints: Checkpoints) -> None:
        """Make the steps of a phase; after each, show progress, measure time and answer requests."""
        time_left = job.time_left
        self.requests.attended = phase.attended
        timing = nullcontext() if time_left is None else time_left.phase(phase.kind, phase.steps)
        step = job.memory.get(phase.kind)
        advise = None if step is None else partial(advice_without_memory, step, job.runtime)
        with reporting_out_of_memory(advise), closing(phase.work) as steps, timing as timed:
            for done in steps:
                run.progress(phase.task, phase.index * phase.steps + done, phase.count * phase.steps)
                if timed is not None and time_left is not None:
                    timed.step(done)
                    run.show_time_left(time_left, job.epochs_done, job.epochs)
                checkpoints.after_step()

    def _state(self, job: Job[Result]) -> State | None:
        state = job.state()
        if state is None or job.runtime.rank > 0:
            return None
        own = _LoopFacts(compiled=job.runtime.compiled, total_seconds=time.perf_counter() - self._started)
        return State({_RUN: own.model_dump(), **state.facts}, state.tensors)
