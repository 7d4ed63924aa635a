"""The end of a distillation with `until_settled`: when its student no longer comes closer to its teacher."""

from __future__ import annotations

from statistics import median

from pydantic import NonNegativeInt

from gapssg.errors import InputError
from gapssg.runs.checkpoint import NOT_OF_THIS_RUN, Facts
from gapssg.settings.parts import OptimizerSettings
from gapssg.training.schedules import progress_at_highest_rate

_EPOCHS_AN_EPOCH_OF_TAIL = 4
_WINDOWS, _SMALLEST_WINDOW, _LARGEST_WINDOW = 8, 2, 50


class SettlingFacts(Facts):
    """The state in a checkpoint."""

    recent: list[float]
    """The last disagreements."""
    settled_after: NonNegativeInt
    """Epochs after which they had settled; 0 if they have not."""


class Settling:
    """Decides when a run ends, and its learning rate.

    The run stays at the highest learning rate of its schedule until the disagreement of student and teacher on probe
    images has settled: until its median over the last eighth of the most epochs is not below that over the eighth
    before. Then, or in time for the last epoch, the learning rate falls as in the schedule, within a quarter of the
    epochs so far: a student that is taken at a high rate is less accurate.

    Attributes:
        facts: The state for a checkpoint.
    """

    def __init__(self, most_epochs: int, optimizer: OptimizerSettings) -> None:
        """Start a run of at most so many epochs."""
        self._most = most_epochs
        self._highest = progress_at_highest_rate(optimizer)
        self._window = min(max(_SMALLEST_WINDOW, -(-most_epochs // _WINDOWS)), _LARGEST_WINDOW)
        self.facts = SettlingFacts(recent=[], settled_after=0)

    def restore(self, facts: SettlingFacts) -> None:
        """Restore the state of a checkpoint; raise `InputError` if no such run can have it."""
        if facts.settled_after > self._latest_fall or len(facts.recent) > 2 * self._window:
            raise InputError(NOT_OF_THIS_RUN)
        self.facts = facts

    @property
    def could_tell(self) -> bool:
        """Whether the disagreement was measured after enough epochs to decide."""
        return len(self.facts.recent) == 2 * self._window

    @property
    def settled_after(self) -> int | None:
        """Epochs after which the disagreement had settled; None if it has not."""
        return self.facts.settled_after or None

    @property
    def epochs(self) -> int:
        """Epochs of the whole run, as far as is known."""
        settled = self.facts.settled_after
        return settled + -(-settled // _EPOCHS_AN_EPOCH_OF_TAIL) if settled else self._most

    def progress(self, epochs_done: int, planned: float) -> float:
        """Return the progress in the schedule of the next epoch, in [0, 1), where `planned` is that of a whole run."""
        fall = self.facts.settled_after or self._latest_fall
        if epochs_done < fall:
            return min(planned, self._highest)
        middle = (epochs_done - fall + 0.5) / (self.epochs - fall)
        return self._highest + (1 - self._highest) * middle

    def measures(self, epochs_done: int, planned: float) -> bool:
        """Tell whether the disagreement counts after so many epochs, the last of which was at the `planned` progress.

        It does at the highest learning rate: before, it falls, and afterwards all is decided.
        """
        return self._highest <= planned and epochs_done <= self._latest_fall and not self.facts.settled_after

    def record(self, epochs_done: int, disagreement: float) -> None:
        """Take the disagreement after so many epochs, on any scale, and decide whether it has settled."""
        recent = self.facts.recent = [*self.facts.recent, disagreement][-2 * self._window :]
        if self.could_tell and median(recent[self._window :]) >= median(recent[: self._window]):
            self.facts.settled_after = epochs_done

    @property
    def _latest_fall(self) -> int:
        return self._most * _EPOCHS_AN_EPOCH_OF_TAIL // (_EPOCHS_AN_EPOCH_OF_TAIL + 1)
