from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gapssg import PretrainSettings, RunError
from gapssg.core.runtime import Runtime
from gapssg.runs.directory import RunDirectory, SilentDisplay
from gapssg.runs.events import Ended, Event, Note, Started
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.common import RunResult
from gapssg.training.loop import Job, Launch, Phase
from tests.interruptions import AskingDisplay

SETTINGS = PretrainSettings.model_validate({"data": {"name": "digits"}, "model": {"name": "wrn16_1"}})
RESULT = RunResult.model_validate(
    {"command": "none", "device": "cpu", "precision": "fp32", "compiled": False, "seed": 0, "versions": {}}
    | {"settings_sha256": "0"}
)


class Counting(Job[RunResult]):
    """Counts to three in each of two epochs, first attended and then not."""

    epochs = 2
    checkpoints_every = (1, 10.0)

    def __init__(self, requests: Requests) -> None:
        self.runtime = Runtime(torch.device("cpu"), "fp32", compiled=False, seed=0)
        self.requests = requests
        self.done = 0
        self.closed: list[str] = []
        self.attended: list[tuple[str, bool]] = []

    @property
    def epochs_done(self) -> int:
        return self.done

    def begin(self) -> Iterator[Event]:
        yield Started(message="counting")

    def state(self) -> None:
        return None

    def phases(self, run: RunDirectory) -> Iterator[Phase]:
        yield Phase("counting", 3, self.count("attended"), "counting", 0, 2)
        yield Phase("counting", 3, self.count("alone"), "counting", 1, 2, attended=False)

    def count(self, name: str) -> Generator[int, None, None]:
        try:
            for done in (1, 2, 3):
                self.attended.append((name, self.requests.attended))
                yield done
        finally:
            self.closed.append(name)

    def end_epoch(self, run: RunDirectory) -> Event:
        self.done += 1
        return Started(message=f"epoch {self.done}")

    def finish(self, run: RunDirectory, seconds: float) -> tuple[RunResult, Event]:
        return RESULT, Ended()


class Listening(SilentDisplay):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.steps: list[tuple[int, int]] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, task: str, done: int, total: int) -> None:
        self.steps.append((done, total))


def test_the_loop_counts_the_steps_of_all_phases_and_records_each_epoch(tmp_path: Path):
    requests, display = Requests(), Listening()
    job = Counting(requests)
    assert Launch(SETTINGS, tmp_path / "run", False, False, display, requests).carry_out(job) == RESULT
    assert display.steps == 2 * [(done, 6) for done in (1, 2, 3, 4, 5, 6)]
    assert [event.kind for event in display.events] == ["prepared", "start", "start", "start", "end"]
    assert len((tmp_path / "run" / "events.jsonl").read_text().splitlines()) == 4
    assert job.attended == 2 * (3 * [("attended", True)] + 3 * [("alone", False)])
    assert not requests.attended


def test_a_stop_closes_the_current_phase_at_once_even_if_its_error_is_kept(tmp_path: Path):
    requests = Requests()
    job = Counting(requests)
    launch = Launch(SETTINGS, tmp_path / "run", False, False, AskingDisplay(2, requests, "stop"), requests)
    with pytest.raises(Stopped) as kept:
        launch.carry_out(job)
    assert kept.value.signal_number == signal.SIGTERM
    assert job.attended == 2 * [("attended", True)]
    assert job.closed == ["attended"]


def test_the_decision_to_compile_is_shown_at_the_start_and_kept_on_resume(tmp_path: Path):
    requests, display = Requests(), Listening()
    job = Counting(requests)
    launch = Launch(SETTINGS, tmp_path / "run", False, False, display, requests)
    job.runtime = launch.decide_compilation(job.runtime, "auto", 1e9)
    launch.carry_out(job)
    assert isinstance(display.events[2], Note)
    assert display.events[2].message.startswith("not compiled, because the run is short")
    assert job.runtime.decide_compilation("auto", 1e9, earlier=True) == (replace(job.runtime, compiled=True), None)
    assert job.runtime.decide_compilation(False, 1e18) == (job.runtime, None)


class Failing(Counting):
    """Fails in its second step."""

    error: Exception

    def count(self, name: str) -> Generator[int, None, None]:
        yield 1
        raise self.error


def fail_with(error: Exception, run: Path) -> None:
    requests = Requests()
    job = Failing(requests)
    job.error = error
    Launch(SETTINGS, run, False, False, SilentDisplay(), requests).carry_out(job)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nDetails follow"),
        torch.OutOfMemoryError(""),
        MemoryError(),
        MemoryError("Unable to allocate 3.00 GiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_running_out_of_memory_in_a_step_is_one_sentence(tmp_path: Path, error: Exception):
    with pytest.raises(RunError, match=r"^out of memory( \(.+\))?; use smaller batches, .*$") as said:
        fail_with(error, tmp_path / "run")
    assert len(str(said.value).splitlines()) == 1
    assert said.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), RunError("cannot allocate a name"), KeyError("x")])
def test_other_errors_of_a_step_are_unchanged(tmp_path: Path, error: Exception):
    with pytest.raises(type(error)) as raised:
        fail_with(error, tmp_path / "run")
    assert raised.value is error
