"""Makes the runs of a table, each once, alongside other processes."""

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
from gapssg.table.ledger import Failure, Ledger, clear_failure, is_done, record_failure
from gapssg.table.plan import Task
from gapssg.table.rows import settings_to_resume
from gapssg.table.summary import write_summary
from gapssg.training.distill import distill
from gapssg.training.pretrain_teacher import pretrain_teacher
from gapssg.training.settings import DistillSettings, PretrainSettings

_SECONDS_BETWEEN_LOOKS = 2.0


def run_table(
    tasks: Sequence[Task], root: Path, *, display: Display | None = None, requests: Requests | None = None
) -> TableResult:
    """Make the runs of `tasks`, which `plan_tasks` planned for `root`, that are not finished; write the results.

    An interrupted run is resumed, and kept as it is if that is not possible. A failed run is recorded, and the others
    are made. A run that another process makes is left to it, and if it is a teacher, waited for.

    Returns:
        The content of `table.json`, and the runs that failed or are left to other processes.

    Raises:
        InputError: `root` holds no table, or one of a newer format; nothing has been written.
        RunError: A file cannot be written.
        Stopped: `requests` asked for it; the interrupted run has a checkpoint.
        Taken: Other processes make all runs that are left.
    """
    ledger = Ledger(user_path(root))
    for task in tasks:
        check_own(task.run)
    ledger.begin()
    for plan in dict.fromkeys(task.plan for task in tasks if task.plan is not None):
        ledger.save_plan(plan)
    write_summary(ledger)
    work = _Work(ledger, display or SilentDisplay(), requests or Requests(), tasks)
    work.make_all()
    summary = write_summary(ledger)
    if work.elsewhere and not work.has_made_any:
        label, error = next(iter(work.elsewhere.items()))
        raise Taken(label, error.holder)
    elsewhere = {label: error.holder for label, error in work.elsewhere.items()}
    return TableResult(**dict(summary), failed=work.failed, elsewhere=elsewhere)


class _Work:
    """Makes runs until each has finished, failed, or is made by another process.

    Attributes:
        failed: The message of a failed run by label.
        elsewhere: The error that names the process that makes a run, by label.
        has_made_any: Whether this process started or resumed a run.
    """

    def __init__(self, ledger: Ledger, display: Display, requests: Requests, tasks: Sequence[Task]) -> None:
        self.ledger = ledger
        self.display = display
        self.requests = requests
        self.tasks = tasks
        self.failed: dict[str, str] = {}
        self.elsewhere: dict[str, Taken] = {}
        self.has_made_any = False
        self._failed_runs: set[Path] = set()

    def make_all(self) -> None:
        """Make all runs; check on those of other processes when nothing else is left to do."""
        waiting = list(self.tasks)
        while waiting:
            left = [task for task in waiting if not self._settle(task)]
            if len(left) == len(waiting):
                # Only runs of other processes are left, and runs whose teachers they train.
                if all(task.teacher is None or is_done(task.teacher) for task in left):
                    return
                self._wait(left)
            waiting = left

    def _settle(self, task: Task) -> bool:
        """Make a run if it can be made now; return whether it is settled."""
        if task.teacher is not None and task.teacher in self._failed_runs:
            return True  # the teacher's failure is recorded
        if task.teacher is not None and not is_done(task.run) and not is_done(task.teacher):
            return False
        try:
            with self.ledger.claim(task.run) as run:
                task = replace(task, run=run)
                self.elsewhere.pop(task.label, None)
                if is_done(task.run):
                    clear_failure(task.run)
                    self._say(f"{task.label}: done before")
                else:
                    self.has_made_any = True
                    self._make(task)
        except Taken as error:
            if task.label not in self.elsewhere:
                self._say(f"{task.label}: left to {error.holder}")
            self.elsewhere[task.label] = error
            return False
        return True

    def _make(self, task: Task) -> None:
        """Make a run that this process has locked, and update the table.

        Raises:
            Stopped: It was asked for.
            Taken: The run was resumed by hand.
        """
        started = time.perf_counter()
        self._say(f"{task.label}: starting")
        try:
            result = self._start_or_resume(task)
        except Taken:
            raise
        except Exception as error:  # the other runs are made nevertheless
            self._fail(task, error)
        else:
            clear_failure(task.run)
            top1 = result.model.top1
            assert top1 is not None  # a table has evaluation data
            self._say(f"{task.label}: top-1 {top1:.2%} in {time.perf_counter() - started:.0f} s")
        finally:
            _release()
        write_summary(self.ledger)
        if self.requests.stop is not None:
            raise Stopped(self.requests.stop)

    def _fail(self, task: Task, error: Exception) -> None:
        sentence, trace = str(error).split("\n")[0], None
        if not isinstance(error, GapssgError):
            sentence = f"{type(error).__name__}: {sentence}"
            trace = "".join(traceback.format_exception(error))
        file = record_failure(task.run, Failure(seed=task.settings.seed, message=sentence, traceback=trace))
        where = f" (its traceback is in {file})" if trace else ""
        self.failed[task.label] = f"{sentence}{where}"
        self._failed_runs.add(task.run)
        self._say(f"{task.label}: failed: {self.failed[task.label]}")

    def _start_or_resume(self, task: Task) -> DistillResult | PretrainResult:
        """Make a run; one that has a checkpoint is never restarted.

        Raises:
            InputError: It cannot be made with these settings, or not resumed.
        """
        if not is_file(inside(task.run) / "settings.toml"):
            return self._run(task, task.settings)
        if not has_checkpoint(task.run):
            self._say(f"{task.label}: restarting: no checkpoint found")
            return self._run(task, task.settings, overwrite=True)
        try:
            started_with = load_settings(type(task.settings), section="-", config=task.run / "settings.toml")
            return self._run(task, settings_to_resume(task.settings, started_with), resume=True)
        except Taken:
            raise
        except InputError as error:
            sentence = str(error).split("\n")[0]
            raise InputError(f"{sentence}; the run is kept; to restart it, remove {task.run}") from error

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
    """Shows the progress and the warnings of a run; the table itself shows start and end."""

    def __init__(self, display: Display, label: str) -> None:
        self._display = display
        self._label = label

    def event(self, event: Event) -> None:
        """Pass on warnings and rollbacks."""
        if isinstance(event, Warned | RolledBack):
            what = event.message if isinstance(event, Warned) else f"the {event.part} diverged and was rolled back"
            self._display.event(Note(message=f"{self._label}: epoch {event.epoch}: {what}"))

    def progress(self, task: str, done: int, total: int) -> None:
        """Pass on the progress with the label of the run."""
        self._display.progress(f"{self._label}: {task}", done, total)


def _release() -> None:
    """Free the memory of a run and its compiled steps, whose number torch limits."""
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
