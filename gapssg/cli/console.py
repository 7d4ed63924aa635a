"""The one place that prints: events and progress during a run, tables and JSON at its end."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast

import rich.console
from pydantic import BaseModel
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from gapssg.runs.events import (
    CheckpointWritten,
    DistillationEpoch,
    Ended,
    Epoch,
    Event,
    Note,
    PretrainingEpoch,
    ProgressOfRuns,
    Remaining,
    RolledBack,
    RunProgress,
    Started,
    Warned,
)
from gapssg.runs.requests import Requests
from gapssg.text import duration, percent, printable, printable_toml

if TYPE_CHECKING:
    from gapssg.core.processes import Processes
    from gapssg.runs.results.cost import EstimateResult
    from gapssg.settings.base import Settings

_WIDTH_OF_AN_EPOCH = 190
_NARROW = 80
_WIDTH_OF_A_PIPE = 500  # nothing is wrapped that another program reads
_WIDTHS = range(20, 10_001)  # in which a table can be printed


@dataclass
class Invocation:
    """The display options of one invocation, and what is known of its run."""

    json: bool = False
    quiet: bool = False
    debug: bool = False
    started: bool = False
    """Whether a run has started to write its directory."""
    command: str | None = None
    """The subcommand whose --resume continues an interrupted run."""
    checkpoint: str | None = None
    """The run directory that holds a checkpoint."""
    again_named: str = ""
    """The options that --resume needs too, with a space before each."""
    again: str = ""
    """How to continue after an interruption, if not by --resume."""
    requests: Requests = field(default_factory=Requests)
    """What signals have asked for."""
    processes: Processes | None = None
    """The processes of torchrun, if there are several."""

    @property
    def writes(self) -> bool:
        """Whether this process writes files: one of several does."""
        return self.processes is None or self.processes.rank == 0

    @property
    def speaks(self) -> bool:
        """Whether this process reports errors: one of several does."""
        return self.processes is None or self.processes.speaks


class Stream:
    """A stream whose errors end no run: failed writes are dropped, and unencodable characters are escaped.

    A disk may be full, a terminal closed, and a reader gone (`gapssg distill ... | head`).

    Attributes:
        refusal: The first error other than a broken pipe.
    """

    refusal: OSError | None = None

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`, or nowhere if it is None."""
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115  # until the program ends
        if isinstance(self._stream, io.TextIOWrapper):
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        with self._keeping_refusal():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop what it holds."""
        with self._keeping_refusal():
            self._stream.flush()

    def end(self) -> None:
        """Flush, and leave nothing that Python would fail to flush at exit."""
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    @contextmanager
    def _keeping_refusal(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            pass
        except OSError as error:
            self.refusal = self.refusal or error


@contextmanager
def lenient_streams() -> Iterator[Stream]:
    """Make stdout and stderr tolerate write errors, and ignore unusable screen sizes; yield stdout."""
    for name in ("COLUMNS", "LINES"):
        with suppress(KeyError, ValueError):
            if int(os.environ[name]) in _WIDTHS:
                continue
        os.environ.pop(name, None)
    before = sys.stdout, sys.stderr
    streams = [Stream(stream) for stream in before]
    sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.end()
        sys.stdout, sys.stderr = before


def _rich_console(file: TextIO, **options: Any) -> rich.console.Console:
    """Return a console that prints texts unchanged: names may look like markup, or like emoji."""
    return rich.console.Console(file=file, highlight=False, markup=False, emoji=False, **options)


class Console:
    """Prints for one invocation; with --json everything but the result goes to stderr."""

    def __init__(self, invocation: Invocation) -> None:
        self.invocation = invocation
        self._stdout = sys.stdout
        self._rich = _rich_console(
            sys.stderr if invocation.json else sys.stdout, quiet=invocation.quiet, soft_wrap=True
        )
        self._result = _rich_console(sys.stdout)
        if not self._result.is_terminal:
            self._result.width = _WIDTH_OF_A_PIPE

    def say(self, text: str) -> None:
        """Print a line of progress or explanation; nothing with --quiet."""
        self._rich.print(printable(text))

    def is_narrow(self) -> bool:
        """Return whether lines would wrap on the terminal."""
        return self._rich.is_terminal and self._rich.width < _WIDTH_OF_AN_EPOCH

    def note(self, text: str) -> None:
        """Print a line that explains a result; --quiet keeps it."""
        if not self.invocation.json:
            self._result.print(printable(text), soft_wrap=True)

    def alarm(self, text: str) -> None:
        """Print an important line: to stdout, or with --json to stderr; --quiet keeps it."""
        shown = _rich_console(sys.stderr) if self.invocation.json else self._result
        shown.print(printable(text), soft_wrap=True)

    def failures(self, what: str, sentences: Sequence[str]) -> None:
        """Print in one line why something is not usable; nothing without reasons."""
        if sentences:
            self.alarm(f"FAILED: {what} is not usable: {'; '.join(sentences)}")

    def warnings(self, what: str, sentences: Sequence[str]) -> None:
        """Print in one line what only synthetic images showed against something; nothing without reasons."""
        if sentences:
            reasons = "; ".join(sentences)
            self.alarm(f"warning: {what} is usable on real images, in spite of what synthetic images showed: {reasons}")

    def settings(self, settings: Settings) -> None:
        """Print settings as TOML, or with --json as JSON."""
        self.toml(settings.to_dict(), settings.to_toml())

    def toml(self, values: Mapping[str, object], toml: str) -> None:
        """Print TOML, or with --json its values as JSON."""
        self._stdout.write(json.dumps(values) + "\n" if self.invocation.json else printable_toml(toml))

    def estimate(self, found: EstimateResult, settings: Settings | None) -> None:
        """Print an estimate; after settings, if they are given, as comments of their TOML."""
        if self.invocation.json:
            self.result(found if settings is None else {"settings": settings.to_dict(), "estimate": found})
        elif settings is None:
            for line in estimate_lines(found):
                self.note(line)
        else:
            comments = "".join(f"# {line}\n" for line in estimate_lines(found))
            self._stdout.write(f"{printable_toml(settings.to_toml())}\n{comments}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table of results; numbers are never wrapped, texts are."""
        if self.invocation.json:
            return
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for index, column in enumerate(columns):
            is_numbers = all(row[index][:1].isdigit() or row[index] in ("-", "") for row in rows)
            justify: Literal["left", "right"] = "right" if is_numbers and index > 0 else "left"
            table.add_column(Text(printable(column)), justify=justify, no_wrap=is_numbers, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self.note(title)  # a title of the table itself would wrap at the table's width
        self._result.print(table)

    def result(self, result: BaseModel | Mapping[str, object]) -> None:
        """Print the result, which may contain others, as JSON if --json is given."""
        if self.invocation.json:
            self._stdout.write(
                json.dumps(result, allow_nan=False, default=lambda each: each.model_dump(mode="json")) + "\n"
            )

    @contextmanager
    def live(self) -> Iterator[LiveDisplay]:
        """Show the progress of a run until the block ends."""
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        progress = Progress(
            *columns,
            console=self._rich,
            transient=True,
            disable=not self._rich.is_terminal or self.invocation.quiet,
        )
        with progress:
            display = LiveDisplay(self, progress)
            logger, notices = logging.getLogger("gapssg"), _Notices(display)
            logger.addHandler(notices)
            try:
                yield display
            finally:
                logger.removeHandler(notices)


class LiveDisplay:
    """Events as lines, and progress bars on a terminal."""

    _SECONDS_BETWEEN_UPDATES = 0.1
    _SECONDS_BETWEEN_LINES = 60.0

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._task = progress.add_task("", visible=False, left="")
        self._run = progress.add_task("epochs", visible=False, left="")
        self._run_is_shown = False
        self._runs: dict[str, TaskID] = {}  # the bars of several runs, by label
        self._runs_printed = time.monotonic()
        self._updated = 0.0
        self._shown = ("", 0)  # the current task, and how much of it is done
        self._previous = ""  # the task before it
        self._alternates = False  # whether the task takes turns with another, so that its time left is unknown
        self._started = (0.0, 0)  # when the task was first shown, and how much was done then

    def event(self, event: Event) -> None:
        """Print an event as one line."""
        match event:
            case Started():
                self._show_run(False)
                self._console.invocation.started = True
                self._console.say(event.message)
            case Ended():
                self._show_run(False)
            case Epoch():
                self._show_run(True, event.epoch, event.epochs, event.timing.remaining)
                self._console.say(epoch_line(event, narrow=self._console.is_narrow()))
            case Remaining():
                self._show_run(True, event.epochs_done, event.epochs, event.seconds)
            case ProgressOfRuns():
                self._show_runs(event.runs)
            case CheckpointWritten():
                self._console.invocation.checkpoint = str(event.directory)
            case Note():
                self._console.say(event.message)
            case RolledBack():
                rate = f"{event.learning_rate:.3g}"
                self._console.say(
                    f"epoch {event.epoch}: the {event.part} diverged; rolled back, continuing at learning rate {rate}"
                )
            case Warned():
                when = f", epoch {event.epoch}" if event.epoch else ""
                self._console.say(f"warning{when}: {event.message}")

    def progress(self, task: str, done: int, total: int) -> None:
        """Move the bar of the current task; it shows the time left only if the bar of the run does not."""
        now = time.monotonic()
        if task != self._shown[0] or done < self._shown[1]:
            self._started = (now, done)
        if task != self._shown[0]:
            self._alternates = task == self._previous
            self._previous = self._shown[0]
        self._shown = (task, done)
        if now - self._updated > self._SECONDS_BETWEEN_UPDATES:
            self._updated = now
            started, done_then = self._started
            left = ""
            if done > done_then and not self._alternates and not self._run_is_shown:
                left = _time_left((now - started) / (done - done_then) * (total - done))
            self._progress.update(
                self._task, description=printable(task), completed=done, total=total, left=left, visible=True
            )

    def _show_runs(self, runs: Sequence[RunProgress]) -> None:
        """Show a bar for each of several runs; without a terminal, a line for each once a minute."""
        for label in self._runs.keys() - {run.label for run in runs}:
            self._progress.remove_task(self._runs.pop(label))
        for run in runs:
            if run.label not in self._runs:
                self._runs[run.label] = self._progress.add_task("", left="")
            left = "" if run.seconds is None else _time_left(run.seconds)
            self._progress.update(
                self._runs[run.label],
                description=printable(f"{run.label} on {run.host}"),
                completed=run.epochs_done,
                total=run.epochs,
                left=left,
            )
        if self._progress.disable and time.monotonic() - self._runs_printed >= self._SECONDS_BETWEEN_LINES:
            self._runs_printed = time.monotonic()
            for run in runs:
                left = "" if run.seconds is None else f", {_time_left(run.seconds)}"
                self._console.say(f"{run.label}: epoch {run.epochs_done}/{run.epochs} on {run.host}{left}")

    def _show_run(self, visible: bool, done: int = 0, total: int = 1, seconds: float | None = None) -> None:
        self._run_is_shown = visible
        left = "" if seconds is None else _time_left(seconds)
        self._progress.update(self._run, completed=done, total=total, left=left, visible=visible)


class _Notices(logging.Handler):
    """Shows log records of the package as notes."""

    def __init__(self, display: LiveDisplay) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.event(Note(message=record.getMessage()))


def _time_left(seconds: float) -> str:
    return f"{duration(seconds)} left"


def estimate_lines(found: EstimateResult) -> list[str]:
    """Return the lines of an estimate: time, steps of each kind, memory."""
    lines = [f"estimated time: {duration(found.seconds)} ({found.described})"]
    for kind, part in found.parts.items():
        if part.steps:
            steps = f"{part.steps:,} step{'s' if part.steps > 1 else ''}"
            lines.append(f"{kind}: {steps} of {part.seconds_per_step:.3g} s, {duration(part.seconds)}")
    lines.append(f"memory: {found.memory_bytes / 1e6:,.0f} MB")
    return lines


def epoch_line(event: Epoch, narrow: bool = False) -> str:
    """Return the line of an epoch: loss terms, reality gap, accuracy, images/s if any were learned, time left.

    A narrow line, for 80 columns, has no terms of the synthesis loss, no time left, which a bar shows, and images/s
    only if they fit.
    """
    parts = [f"epoch {event.epoch:>4}/{event.epochs}"]
    if isinstance(event, PretrainingEpoch):
        parts.append(f"loss {event.train_loss:.4f}")
    elif isinstance(event, DistillationEpoch):
        parts += _distillation_parts(event, narrow)
    if event.top1 is not None:
        parts.append(f"top-1 {percent(event.top1)}")
    speed = f"{event.timing.images_per_second:.0f} images/s"
    if event.timing.images_per_second and (not narrow or len("  ".join([*parts, speed])) <= _NARROW):
        parts.append(speed)
    if event.timing.remaining is not None and not narrow:
        parts.append(_time_left(event.timing.remaining))
    return "  ".join(parts)


def _distillation_parts(event: DistillationEpoch, narrow: bool) -> list[str]:
    parts = []
    if event.synthesis and not narrow:
        terms = (f"{_SHORT_TERMS.get(name, name)} {value:.3g}" for name, value in event.synthesis.items())
        parts.append(f"synthesis {' '.join(terms)}")
    if event.distillation_loss is not None:
        parts.append(f"{'loss' if narrow else 'distillation'} {event.distillation_loss:.4f}")
    digits = 2 if narrow else 3
    parts.append(f"gap {event.reality_gap_before:.{digits}f} to {event.reality_gap_after:.{digits}f}")
    if event.agreement_before is not None and not (narrow and event.top1 is not None):
        parts.append(f"agreement {percent(event.agreement_before)}")
        if event.agreement_baseline is not None:
            parts[-1] += f" (baseline {percent(event.agreement_baseline)})"
    return parts


_SHORT_TERMS = {
    "synthesis_loss": "loss",
    "batch_norm_statistics_loss": "bn",
    "relative_statistics_loss": "rel",
    "target_loss": "ce",
    "disagreement_loss": "ds",
    "agreement_loss": "as",
    "regulatory_factor": "a",
}
