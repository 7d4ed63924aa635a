"""The remaining time of a run, estimated from the duration of its steps. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

EVALUATION = "evaluation"
"""The kind of step that is short compared with the others: it is left out until one was measured."""

# The first steps of a kind are slower: they allocate, compile and, on a GPU, are captured as a graph.
_FIRST_STEPS = 4
_FIRST_EVALUATIONS = 1
# After this time in a phase the queue of a GPU is full, and the processor waits for it.
_SECONDS_TO_SETTLE = 1.0
_STEPS_TO_MEASURE = 3
# Above this, older measurements count half, so that the rate follows a machine that becomes slower or faster.
_MEMORY_SECONDS = 600.0
# The longest earlier duration that is believed; a checkpoint may be untrusted.
_LONGEST_MEMORY = 1e10


@dataclass
class _Measured:
    seconds: float = 0.0
    steps: float = 0.0

    def add(self, seconds: float, steps: int) -> None:
        if self.seconds > _MEMORY_SECONDS:
            self.seconds, self.steps = self.seconds / 2, self.steps / 2
        self.seconds += seconds
        self.steps += steps

    @property
    def rate(self) -> float | None:
        return self.seconds / self.steps if self.steps else None


@dataclass
class _Kind:
    """Steps of one kind: how many are left before the current phase, and how long they took."""

    left: int
    first_steps: int
    first_steps_done: int = 0
    shortest_first_step: float | None = None
    earlier: _Measured = field(default_factory=_Measured)
    phases: _Measured = field(default_factory=_Measured)
    current: _Measured = field(default_factory=_Measured)

    @property
    def settled_rate(self) -> float | None:
        """Seconds per step without the first steps; of whole phases if possible, which end with the device."""
        return self.current.rate if self.phases.rate is None else self.phases.rate

    @property
    def rate(self) -> float | None:
        # One of the first steps may compile for a minute.
        rates = (self.settled_rate, self.earlier.rate, self.shortest_first_step)
        return next((rate for rate in rates if rate is not None), None)


class TimeLeft:
    """Measures the steps of each kind and multiplies by the number of steps left.

    The clock is read between steps and at the end of a phase; only the caller waits for the device, at that end.
    """

    def __init__(self, steps: Mapping[str, int], clock: Callable[[], float] = time.perf_counter) -> None:
        """Start the clock, in seconds, with the number of steps of each kind that are left."""
        self._clock = clock
        self._started = clock()
        self._kinds: dict[str, _Kind] = {}
        for kind, count in steps.items():
            self.plan(kind, count)

    def plan(self, kind: str, steps: int) -> None:
        """Set the number of steps of a kind that are left."""
        self._kinds[kind] = _Kind(steps, _FIRST_EVALUATIONS if kind == EVALUATION else _FIRST_STEPS)

    def shorten(self, kind: str, steps: int) -> None:
        """Set the number of steps of a kind that are left, if it is other than planned."""
        self._kinds[kind].left = steps

    def recall(self, kind: str, steps: int, seconds: float) -> None:
        """Set how long steps of a kind took before an interruption; used until they are measured again."""
        if seconds < _LONGEST_MEMORY:
            self._kinds[kind].earlier.add(seconds, steps)

    @contextmanager
    def phase(self, kind: str, steps: int) -> Iterator[TimedPhase]:
        """Measure a phase: `steps` consecutive planned steps of a kind, some of which may be done already.

        The device must have finished them when the block ends. A phase that raises is not counted.
        """
        phase = TimedPhase(self._kinds[kind], self._clock)
        yield phase
        phase.finish(steps)

    @property
    def seconds(self) -> float | None:
        """Remaining seconds of the run; None until a step of each kind was measured, evaluations aside."""
        total = 0.0
        for name, kind in self._kinds.items():
            if kind.left <= 0 or (kind.rate is None and name == EVALUATION):
                continue
            if kind.rate is None:
                return None
            total += kind.left * kind.rate
        return total

    @property
    def total(self) -> float | None:
        """Elapsed and remaining seconds."""
        return None if self.seconds is None else self._clock() - self._started + self.seconds

    @property
    def is_settled(self) -> bool:
        """Whether more than the first steps of each kind that is left were measured, evaluations aside."""
        return all(
            kind.settled_rate is not None for name, kind in self._kinds.items() if kind.left > 0 and name != EVALUATION
        )


class TimedPhase:
    """A phase that `TimeLeft.phase` measures."""

    def __init__(self, kind: _Kind, clock: Callable[[], float]) -> None:
        self._kind = kind
        self._clock = clock
        self._left_before = kind.left
        self._started = self._last = clock()
        self._steps = 0  # after the first ones
        self._settled: tuple[float, int] | None = None
        kind.current = _Measured()

    def step(self, done: int) -> None:
        """Count a step; `done` steps of the phase are done, fewer than before after a rollback."""
        now = self._clock()
        kind = self._kind
        kind.left = self._left_before - done
        if kind.first_steps_done < kind.first_steps:
            kind.first_steps_done += 1
            kind.shortest_first_step = min(now - self._last, kind.shortest_first_step or now - self._last)
            self._last = now
        else:
            self._steps += 1
        if kind.first_steps_done < kind.first_steps:
            return
        if self._settled is None:
            if now - self._started >= _SECONDS_TO_SETTLE:
                self._settled = now, self._steps
        elif self._steps - self._settled[1] >= _STEPS_TO_MEASURE:
            kind.current = _Measured(now - self._settled[0], self._steps - self._settled[1])

    def finish(self, steps: int) -> None:
        """End the phase, all of whose `steps` are done."""
        if self._steps:
            self._kind.phases.add(self._clock() - self._last, self._steps)
        self._kind.left = self._left_before - steps
