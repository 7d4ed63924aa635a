"""Has the runs of a table made, each once, alongside other processes. Imports no torch until it makes one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gapssg.errors import Taken
from gapssg.files import is_file, user_path
from gapssg.runs.directory import Display, SilentDisplay, check_own
from gapssg.runs.events import Note
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.table import TableResult
from gapssg.safe_paths import inside
from gapssg.settings.load import SETTINGS, load_settings
from gapssg.table.ledger import Failure, Ledger, clear_attempts, clear_failure, is_done, record_failure
from gapssg.table.place import CellDisplay, Ending, Place
from gapssg.table.plan import Task
from gapssg.table.rows import kept_settings
from gapssg.table.summary import write_summary

_SECONDS_BETWEEN_LOOKS = 2.0


def run_table(
    tasks: Sequence[Task],
    root: Path,
    *,
    display: Display | None = None,
    requests: Requests | None = None,
    place: Place | None = None,
) -> TableResult:
    """Make the runs of `tasks`, which `plan_tasks` planned for `root`, that are not finished; write the results.

    An interrupted run is resumed, and kept as it is if that is not possible. A failed run is recorded, and the others
    are made. A run that another process makes is left to it, and if it is a teacher, waited for. The runs are carried
    out in `place`, by default one after the other in this process.

    Returns:
        The content of `table.json`, and the runs that failed or are left to other processes.

    Raises:
        InputError: `root` holds no table, or one of a newer format; nothing has been written.
        RunError: A file cannot be written.
        Stopped: `requests` asked for it; the interrupted runs have checkpoints.
        Taken: Other processes make all runs that are left.
    """
    ledger = Ledger(user_path(root))
    for task in tasks:
        check_own(task.run)
    ledger.begin()
    for plan in dict.fromkeys(task.plan for task in tasks if task.plan is not None):
        ledger.save_plan(plan)
    write_summary(ledger)
    display, requests = display or SilentDisplay(), requests or Requests()
    with _Work(ledger, display, requests, tasks, place or Here(display, requests)) as work:
        work.make_all()
    summary = write_summary(ledger)
    if work.elsewhere and not work.has_made_any:
        label, error = next(iter(work.elsewhere.items()))
        raise Taken(label, error.holder)
    elsewhere = {label: error.holder for label, error in work.elsewhere.items()}
    return TableResult(**dict(summary), failed=work.failed, elsewhere=elsewhere)


class _Started(NamedTuple):
    task: Task
    run: Path
    """Its run directory, which can be written only until `claim` is closed."""
    claim: ExitStack
    """Closed when the run has ended."""


class _Work(AbstractContextManager["_Work"]):
    """Has runs made until each has finished, failed, or is made by another process.

    Attributes:
        failed: The message of a failed run by label.
        elsewhere: The error that names the process that makes a run, by label.
        has_made_any: Whether this process started or resumed a run.
    """

    def __init__(
        self, ledger: Ledger, display: Display, requests: Requests, tasks: Sequence[Task], place: Place
    ) -> None:
        self.ledger = ledger
        self.display = display
        self.requests = requests
        self.tasks = tasks
        self.place = place
        self.failed: dict[str, str] = {}
        self.elsewhere: dict[str, Taken] = {}
        self.has_made_any = False
        self._failed_runs: set[Path] = set()
        self._again: list[Task] = []
        self._has_settled_any = False
        self._started: dict[Path, _Started] = {}

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop the runs that are being made, if this process ends early."""
        try:
            if self._started:
                self.place.stop()
        finally:
            for started in self._started.values():
                started.claim.close()

    def make_all(self) -> None:
        """Make all runs, until a stop is requested; check on those of other processes when nothing else is left."""
        waiting = list(self.tasks)
        while waiting or self._started or self._again:
            waiting = [task for task in waiting if not self._settle(task)]
            if self._started:
                while self._started and not self._collect(wait=True):
                    pass
                continue
            waiting, self._again = waiting + self._again, []
            if not self._has_settled_any:
                # Only runs of other processes are left, and runs whose teachers they train.
                if all(task.teacher is None or is_done(task.teacher) for task in waiting):
                    return
                self._wait(waiting)
            self._has_settled_any = False

    def _settle(self, task: Task) -> bool:
        """Start a run if it can be made now; return whether it is started or settled."""
        if task.teacher is not None and Path(task.teacher) in self._failed_runs:
            self._has_settled_any = True  # the teacher's failure is recorded
            return True
        if task.teacher is not None and not is_done(task.run) and not is_done(task.teacher):
            return False
        if not self.place.has_room():
            return False
        with ExitStack() as opened:
            try:
                run = opened.enter_context(self.ledger.claim(task.run))
            except Taken as error:
                self._leave(task, error)
                return False
            if is_done(run):
                clear_failure(run)
                self.elsewhere.pop(task.label, None)
                self._say(f"{task.label}: done before{_kept(task, run)}")
                self._has_settled_any = True
                return True
            started = _Started(task, run, opened.pop_all())
        self._started[Path(run)] = started
        self.place.start(replace(task, run=run))
        self._collect()
        return True

    def _collect(self, wait: bool = False) -> bool:
        """Record the runs that have ended, unless a stop is requested; return whether there are any."""
        ended = list(self.place.ended(wait=wait))
        for run, ending in ended:
            started = self._started.pop(Path(run))
            with started.claim:
                if ending.holder is not None:
                    self._leave(started.task, Taken(run, ending.holder))
                    self._again.append(started.task)
                elif ending.stopped is not None:  # not by this process
                    self._again.append(started.task)
                    self._has_settled_any = True
                else:
                    self._record(replace(started.task, run=started.run), ending)
        if self.requests.stop is not None:
            raise Stopped(self.requests.stop)
        return bool(ended)

    def _leave(self, task: Task, error: Taken) -> None:
        if task.label not in self.elsewhere:
            self._say(f"{task.label}: left to {error.holder}")
        self.elsewhere[task.label] = error

    def _record(self, task: Task, ending: Ending) -> None:
        """Record a run that has ended, and update the table."""
        self.has_made_any = self._has_settled_any = True
        self.elsewhere.pop(task.label, None)
        if ending.failure is not None:
            self._fail(task, ending.failure)
        elif ending.top1 is not None:
            clear_failure(task.run)
            self._say(f"{task.label}: top-1 {ending.top1:.2%} in {ending.seconds:.0f} s")
        write_summary(self.ledger)

    def _fail(self, task: Task, failure: Failure) -> None:
        file = record_failure(task.run, failure)
        where = f" (its traceback is in {file})" if failure.traceback else ""
        self.failed[task.label] = f"{failure.message}{where}"
        self._failed_runs.add(Path(task.run))
        self._say(f"{task.label}: failed: {self.failed[task.label]}")

    def _wait(self, left: Sequence[Task]) -> None:
        done = sum(is_done(task.run) for task in self.tasks)
        self.display.progress(f"waiting for {len(left)} runs of other processes", done, len(self.tasks))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if self.requests.stop is not None:
            raise Stopped(self.requests.stop)

    def _say(self, sentence: str) -> None:
        self.display.event(Note(message=sentence))


def _kept(task: Task, run: Path) -> str:
    """Return what a finished run was told to write, if its task asks for something else."""
    if not is_file(inside(run) / SETTINGS):
        return ""
    started_with = load_settings(type(task.settings), section="-", config=run / SETTINGS)
    kept = kept_settings(task.settings, started_with)
    return "".join(f", with {key} {'unset' if value is None else value}" for key, value in kept.items())


class Here:
    """Carries out runs in this process, one at a time."""

    def __init__(self, display: Display, requests: Requests) -> None:
        self._display = display
        self._requests = requests
        self._ended: list[tuple[Path, Ending]] = []

    def has_room(self) -> bool:
        """Return True."""
        return True

    def start(self, task: Task) -> None:
        """Make a run."""
        from gapssg.runs.checkpoint import has_checkpoint
        from gapssg.table.one_run import make_run

        display = CellDisplay(self._display, task.label)
        display.say("resuming" if has_checkpoint(task.run) else "starting")
        clear_attempts(task.run)
        self._ended.append((task.run, make_run(task, display, self._requests)))

    def ended(self, *, wait: bool) -> Iterable[tuple[Path, Ending]]:
        """Return the runs that were made since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """Do nothing, because no run is being made."""
