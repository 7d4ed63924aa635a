"""Runs the cells of a table, each once, whoever else works on it."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gapssg.errors import GapssgError, InputError, Taken
from gapssg.files import is_file, user_path
from gapssg.runs.checkpoint import has_checkpoint
from gapssg.runs.directory import Display, SilentDisplay, check_own
from gapssg.runs.events import Event, Note, RolledBack, Warned
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results import DistillResult, PretrainResult, TableResult
from gapssg.safe_paths import inside
from gapssg.settings.load import load_settings
from gapssg.table.ledger import Failure, Ledger, forget_failure, is_done, record_failure
from gapssg.table.plan import Task
from gapssg.table.rows import settings_to_continue
from gapssg.table.summary import write_summary
from gapssg.training.distill import distill
from gapssg.training.pretrain_teacher import pretrain_teacher
from gapssg.training.settings import DistillSettings, PretrainSettings

_SECONDS_BETWEEN_LOOKS = 2.0


def run_table(
    tasks: Sequence[Task], root: Path, *, display: Display | None = None, requests: Requests | None = None
) -> TableResult:
    """Make those of `tasks`, which `plan_tasks` planned for `root`, that are not made yet; write what they reached.

    A run that was interrupted is continued, and kept as it is where that is not possible; one that fails is recorded
    and the others are made, and one that another process makes is left to it; its teacher is waited for.

    Returns:
        What `table.json` holds, and which runs failed or are still made by other processes.

    Raises:
        InputError: `root` is no table, or one of a newer format; nothing has been written.
        RunError: The disk refused a write.
        Stopped: `requests` asked for it; the run that went on holds a checkpoint.
        Taken: Other processes make all that is left to make.
    """
    ledger = Ledger(user_path(root))
    for task in tasks:
        check_own(task.run)
    ledger.begin()
    for plan in dict.fromkeys(task.plan for task in tasks if task.plan is not None):
        ledger.keep_plan(plan)
    write_summary(ledger)
    work = _Work(ledger, display or SilentDisplay(), requests or Requests(), tasks)
    work.make_all()
    summary = write_summary(ledger)
    if work.elsewhere and not work.any_of_ours:
        label, error = next(iter(work.elsewhere.items()))
        raise Taken(label, error.holder)
    elsewhere = {label: error.holder for label, error in work.elsewhere.items()}
    return TableResult(**dict(summary), failed=work.failed, elsewhere=elsewhere)


class _Work:
    """Goes through the runs until each is made, failed, or in other hands.

    Attributes:
        failed: By label the sentence that a run ended with.
        elsewhere: By label the process that makes a run.
        any_of_ours: Whether this process began or continued a run.
    """

    def __init__(self, ledger: Ledger, display: Display, requests: Requests, tasks: Sequence[Task]) -> None:
        self.ledger = ledger
        self.display = display
        self.requests = requests
        self.tasks = tasks
        self.failed: dict[str, str] = {}
        self.elsewhere: dict[str, Taken] = {}
        self.any_of_ours = False
        self._failed_runs: set[Path] = set()

    def make_all(self) -> None:
        """Make all runs; those of other processes are looked at again when nothing else is left to do."""
        waiting = list(self.tasks)
        while waiting:
            left = [task for task in waiting if not self._settle(task)]
            if len(left) == len(waiting):
                # Nothing but what others make, and what needs a teacher that others train.
                if all(task.teacher is None or is_done(task.teacher) for task in left):
                    return
                self._wait(left)
            waiting = left

    def _settle(self, task: Task) -> bool:
        """Make a run if that can be done now; tell whether no more is to be done about it."""
        if task.teacher is not None and task.teacher in self._failed_runs:
            return True  # the teacher's failure says it all
        if task.teacher is not None and not is_done(task.run) and not is_done(task.teacher):
            return False
        try:
            with self.ledger.claim(task.run) as run:
                task = replace(task, run=run)
                self.elsewhere.pop(task.label, None)
                if is_done(task.run):
                    forget_failure(task.run)
                    self._say(f"{task.label}: done before")
                else:
                    self.any_of_ours = True
                    self._make(task)
        except Taken as error:
            if task.label not in self.elsewhere:
                self._say(f"{task.label}: left to {error.holder}")
            self.elsewhere[task.label] = error
            return False
        return True

    def _make(self, task: Task) -> None:
        """Make a run that this process has claimed, and write what the table has come to.

        Raises:
            Stopped: It was asked for.
            Taken: Somebody continues this very run by hand.
        """
        started = time.perf_counter()
        self._say(f"{task.label}: begins")
        try:
            result = self._begin_or_continue(task)
        except Taken:
            raise
        except Exception as error:  # whatever it is, the other runs are made
            self._fail(task, error)
        else:
            forget_failure(task.run)
            top1 = result.model.top1
            assert top1 is not None  # every run of a table is evaluated
            self._say(f"{task.label}: top-1 {top1:.2%} in {time.perf_counter() - started:.0f} s")
        finally:
            _release()
        write_summary(self.ledger)
        if self.requests.stop is not None:
            raise Stopped(self.requests.stop)

    def _fail(self, task: Task, error: Exception) -> None:
        """Record the failure of a run."""
        sentence, trace = str(error).split("\n")[0], None
        if not isinstance(error, GapssgError):
            sentence = f"{type(error).__name__}: {sentence}"
            trace = "".join(traceback.format_exception(error))
        file = record_failure(task.run, Failure(seed=task.settings.seed, message=sentence, traceback=trace))
        where = f" (its traceback is in {file})" if trace else ""
        self.failed[task.label] = f"{sentence}{where}"
        self._failed_runs.add(task.run)
        self._say(f"{task.label}: failed: {self.failed[task.label]}")

    def _begin_or_continue(self, task: Task) -> DistillResult | PretrainResult:
        """Make a run; one that has come as far as a checkpoint is never begun anew.

        Raises:
            InputError: It cannot be made with these settings, or not continued.
        """
        if not is_file(inside(task.run) / "settings.toml"):
            return self._run(task, task.settings)
        if not has_checkpoint(task.run):
            self._say(f"{task.label}: begins anew, because there is no checkpoint to continue from")
            return self._run(task, task.settings, overwrite=True)
        try:
            began_with = load_settings(type(task.settings), section="-", config=task.run / "settings.toml")
            return self._run(task, settings_to_continue(task.settings, began_with), resume=True)
        except Taken:
            raise
        except InputError as error:
            sentence = str(error).split("\n")[0]
            raise InputError(f"{sentence}; nothing of it is lost: to begin it anew, remove {task.run}") from error

    def _run(
        self, task: Task, settings: PretrainSettings | DistillSettings, resume: bool = False, overwrite: bool = False
    ) -> DistillResult | PretrainResult:
        display = _CellDisplay(self.display, task.label)
        common: dict[str, Any] = {"overwrite": overwrite, "resume": resume, "display": display}
        if isinstance(settings, DistillSettings):
            return distill(settings, task.run, requests=self.requests, **common)
        return pretrain_teacher(settings, task.run, requests=self.requests, **common)

    def _wait(self, left: Sequence[Task]) -> None:
        done = sum(is_done(task.run) for task in self.tasks)
        self.display.progress(f"waiting for {len(left)} runs of other processes", done, len(self.tasks))
        time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _say(self, sentence: str) -> None:
        self.display.event(Note(message=sentence))


class _CellDisplay:
    """Shows of a run only its progress and what went wrong; the table says how it began and ended."""

    def __init__(self, display: Display, label: str) -> None:
        self._display = display
        self._label = label

    def event(self, event: Event) -> None:
        """Pass on what went wrong."""
        if isinstance(event, Warned | RolledBack):
            what = event.message if isinstance(event, Warned) else f"the {event.part} diverged and was taken back"
            self._display.event(Note(message=f"{self._label}: epoch {event.epoch}: {what}"))

    def progress(self, task: str, done: int, total: int) -> None:
        """Pass it on."""
        self._display.progress(f"{self._label}: {task}", done, total)


def _release() -> None:
    """Give back what a run has held of memory, and forget its compiled steps, of which torch keeps only so many."""
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
