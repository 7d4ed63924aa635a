"""How long a run will still take, by the seconds that its steps have taken. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

EVALUATION = "evaluation"
"""The kind of step that is short beside the others: until one was measured, it is left out."""

# Steps of a kind that are slower than the others: they allocate, compile and, on a GPU, are captured as a graph.
_FIRST_STEPS = 4
_FIRST_EVALUATIONS = 1
# In a phase that goes on for so long, the queue of a GPU is full: from then on the processor waits for it.
_SECONDS_TO_SETTLE = 1.0
_STEPS_TO_MEASURE = 3
# Above this, older measurements count half, so that the rate follows a machine that becomes slower or faster.
_MEMORY_SECONDS = 600.0
# What a run has taken before, at most; a checkpoint may be a stranger's and say anything.
_LONGEST_MEMORY = 1e10


@dataclass
class _Measured:
    """Seconds that steps took."""

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
    """Steps of one kind: how many are left before the phase under way, and how long they took."""

    left: int
    first_steps: int
    earlier: _Measured = field(default_factory=_Measured)
    first: _Measured = field(default_factory=_Measured)
    phases: _Measured = field(default_factory=_Measured)
    under_way: _Measured = field(default_factory=_Measured)

    @property
    def settled_rate(self) -> float | None:
        """Seconds per step without the first steps; whole phases are preferred, after which the device has finished."""
        return self.under_way.rate if self.phases.rate is None else self.phases.rate

    @property
    def rate(self) -> float | None:
        rates = (self.settled_rate, self.earlier.rate, self.first.rate)
        return next((rate for rate in rates if rate is not None), None)


class TimeLeft:
    """Measures the steps of each kind and multiplies by how many are left.

    The clock is read on the processor only, between steps and at the ends of phases; nothing waits for a device here.
    Whoever ends a phase has waited for it.
    """

    def __init__(self, steps: Mapping[str, int], clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin a run, or the rest of one.

        Args:
            steps: How many steps of each kind are left.
            clock: Returns seconds.
        """
        self._clock = clock
        self._begun = clock()
        self._kinds: dict[str, _Kind] = {}
        for kind, count in steps.items():
            self.plan(kind, count)

    def plan(self, kind: str, steps: int) -> None:
        """Say how many steps of a kind are left."""
        self._kinds[kind] = _Kind(steps, _FIRST_EVALUATIONS if kind == EVALUATION else _FIRST_STEPS)

    def recall(self, kind: str, steps: int, seconds: float) -> None:
        """Say what steps of a kind took before the run was interrupted; it counts until they are measured again."""
        if seconds < _LONGEST_MEMORY:
            self._kinds[kind].earlier.add(seconds, steps)

    @contextmanager
    def phase(self, kind: str, steps: int) -> Iterator[TimedPhase]:
        """Measure a phase, that is, `steps` planned steps of a kind in a row, some of which may be done already.

        At its end the device must have finished them. A phase that ends with an error is not counted.
        """
        phase = TimedPhase(self._kinds[kind], self._clock)
        yield phase
        phase.finish(steps)

    @property
    def seconds(self) -> float | None:
        """Seconds that the run will still take; None as long as no step of some kind was measured."""
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
        """Seconds since the beginning and those that the run will still take."""
        return None if self.seconds is None else self._clock() - self._begun + self.seconds

    @property
    def is_settled(self) -> bool:
        """Whether more than the first steps of each kind that is left were measured, evaluations aside."""
        return all(
            kind.settled_rate is not None for name, kind in self._kinds.items() if kind.left > 0 and name != EVALUATION
        )


class TimedPhase:
    """A phase that `TimeLeft.phase` measures."""

    def __init__(self, kind: _Kind, clock: Callable[[], float]) -> None:
        """Begin now."""
        self._kind = kind
        self._clock = clock
        self._left_before = kind.left
        self._begun = self._last = clock()
        self._steps = 0  # after the first ones
        self._settled: tuple[float, int] | None = None
        kind.under_way = _Measured()

    def step(self, done: int) -> None:
        """Count a step; `done` steps of the phase are done, fewer than before if it was taken back."""
        now = self._clock()
        kind = self._kind
        kind.left = self._left_before - done
        if kind.first.steps < kind.first_steps:
            kind.first.add(now - self._last, 1)
            self._last = now
        else:
            self._steps += 1
        if kind.first.steps < kind.first_steps:
            return
        if self._settled is None:
            if now - self._begun >= _SECONDS_TO_SETTLE:
                self._settled = now, self._steps
        elif self._steps - self._settled[1] >= _STEPS_TO_MEASURE:
            kind.under_way = _Measured(now - self._settled[0], self._steps - self._settled[1])

    def finish(self, steps: int) -> None:
        """End the phase, of which all `steps` are done."""
        if self._steps:
            self._kind.phases.add(self._clock() - self._last, self._steps)
        self._kind.left = self._left_before - steps
