"""The time left of a run is what its steps took, times how many are left."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gapssg import DistillSettings, PretrainSettings, distill, pretrain_teacher
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note, Remaining
from gapssg.runs.time_left import EVALUATION, TimeLeft
from tests.conftest import write_teacher
from tests.interruptions import InterruptingDisplay, Interruption
from tests.run_fixtures import TINY


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_steps(
    time_left: TimeLeft, clock: Clock, kind: str, steps: int, seconds: float, *, first: float = 0, wait: float = 0
) -> None:
    """Make a phase; its first four steps take `first` seconds more each, and the device `wait` seconds at the end."""
    with time_left.phase(kind, steps) as phase:
        for done in range(1, steps + 1):
            clock.now += seconds + (first if done <= 4 else 0)
            phase.step(done)
        clock.now += wait


def test_the_time_left_is_the_number_of_steps_left_times_their_duration(clock: Clock):
    time_left = TimeLeft({"synthesis": 30, "distillation": 100, EVALUATION: 3}, clock)
    make_steps(time_left, clock, "synthesis", 10, 2.0)
    make_steps(time_left, clock, "distillation", 20, 0.5)
    make_steps(time_left, clock, EVALUATION, 1, 7.0)
    assert time_left.seconds == pytest.approx(20 * 2.0 + 80 * 0.5 + 2 * 7.0)
    assert time_left.total == pytest.approx(10 * 2.0 + 20 * 0.5 + 7.0 + 20 * 2.0 + 80 * 0.5 + 2 * 7.0)


def test_the_time_left_is_unknown_until_each_kind_of_step_but_evaluations_was_measured(clock: Clock):
    time_left = TimeLeft({"synthesis": 2, "distillation": 2, EVALUATION: 2}, clock)
    assert time_left.seconds is None
    make_steps(time_left, clock, "synthesis", 1, 2.0)
    assert time_left.seconds is None
    assert time_left.total is None
    make_steps(time_left, clock, "distillation", 1, 0.5)
    assert time_left.seconds == pytest.approx(2.5)


def test_long_steps_have_a_time_left_after_the_first(clock: Clock):
    time_left = TimeLeft({"training": 10}, clock)
    with time_left.phase("training", 10) as phase:
        for done in (1, 2, 3):
            clock.now += 120
            phase.step(done)
            assert time_left.seconds == pytest.approx(120 * (10 - done))


def test_the_first_steps_are_ignored_once_others_were_measured(clock: Clock):
    time_left = TimeLeft({"training": 100}, clock)
    with time_left.phase("training", 50) as phase:
        for done in range(1, 51):
            clock.now += 61.0 if done == 1 else 1.0
            phase.step(done)
            if done == 4:
                assert time_left.seconds == pytest.approx(96 * 1.0)  # not the mean, which compiling distorts
                assert not time_left.is_settled
            if done == 10:
                assert time_left.is_settled
                assert time_left.seconds == pytest.approx(90 * 1.0)
    assert time_left.seconds == pytest.approx(50 * 1.0)


def test_waiting_for_the_device_at_the_end_of_a_phase_corrects_the_rate(clock: Clock):
    time_left = TimeLeft({"distillation": 200}, clock)
    # 0.01 s to queue a step that takes the device 0.5 s.
    make_steps(time_left, clock, "distillation", 100, 0.01, wait=96 * 0.49)
    assert time_left.seconds == pytest.approx(100 * 0.5)


def test_steps_are_not_measured_while_the_queue_fills(clock: Clock):
    time_left = TimeLeft({"distillation": 500}, clock)
    with time_left.phase("distillation", 500) as phase:
        for done in range(1, 91):
            clock.now += 0.01
            phase.step(done)
        assert not time_left.is_settled
        for done in range(91, 101):
            clock.now += 0.5
            phase.step(done)
        assert time_left.is_settled
        assert time_left.seconds == pytest.approx(400 * 0.5)


def test_rolled_back_steps_count_as_left(clock: Clock):
    time_left = TimeLeft({"training": 20}, clock)
    with time_left.phase("training", 10) as phase:
        for done in (*range(1, 11), *range(1, 11)):
            clock.now += 1.0
            phase.step(done)
            assert time_left.seconds == pytest.approx(20 - done)
    assert time_left.seconds == pytest.approx(10)


def test_a_resumed_phase_counts_earlier_steps_but_measures_only_its_own(clock: Clock):
    time_left = TimeLeft({"training": 20}, clock)
    with time_left.phase("training", 10) as phase:
        for done in (8, 9, 10):
            clock.now += 2.0
            phase.step(done)
    assert time_left.seconds == pytest.approx(10 * 2.0)


def test_earlier_measurements_count_until_the_steps_are_measured_again(clock: Clock):
    time_left = TimeLeft({"synthesis": 10, "distillation": 20}, clock)
    time_left.recall("synthesis", 5, 15.0)
    make_steps(time_left, clock, "distillation", 20, 1.0)
    assert time_left.seconds == pytest.approx(10 * 3.0)
    assert not time_left.is_settled
    make_steps(time_left, clock, "synthesis", 9, 2.0)
    assert time_left.seconds == pytest.approx(1 * 2.0)


def test_implausible_earlier_measurements_are_ignored(clock: Clock):
    time_left = TimeLeft({"synthesis": 10}, clock)
    time_left.recall("synthesis", 1, 1e308)
    assert time_left.seconds is None


def test_many_phases_of_one_step_add_up(clock: Clock):
    time_left = TimeLeft({"synthesis": 10}, clock)
    for _ in range(6):
        make_steps(time_left, clock, "synthesis", 1, 0.1, wait=0.2)
    assert time_left.is_settled
    assert time_left.seconds == pytest.approx(4 * 0.3)


def test_the_rate_follows_a_machine_that_becomes_slower(clock: Clock):
    time_left = TimeLeft({"training": 100_000}, clock)
    for _ in range(10):
        make_steps(time_left, clock, "training", 1000, 1.0)
    for _ in range(5):
        make_steps(time_left, clock, "training", 1000, 3.0)
    assert time_left.seconds is not None
    assert time_left.seconds / 85_000 == pytest.approx(3.0, rel=0.05)


def test_a_phase_without_steps_changes_nothing(clock: Clock):
    time_left = TimeLeft({"synthesis": 0, "distillation": 4}, clock)
    make_steps(time_left, clock, "synthesis", 0, 0.0, wait=5.0)
    make_steps(time_left, clock, "distillation", 2, 1.0)
    assert time_left.seconds == pytest.approx(2.0)


def test_nothing_is_left_after_the_last_step(clock: Clock):
    time_left = TimeLeft({"training": 2, EVALUATION: 1}, clock)
    make_steps(time_left, clock, "training", 2, 1.0)
    make_steps(time_left, clock, EVALUATION, 1, 1.0)
    assert time_left.seconds == 0


def test_the_time_left_imports_no_torch():
    check = "import sys, gapssg.runs.time_left; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


class Listening(SilentDisplay):
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)

    def notes(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Note)]


def distill_settings(teacher: Path, **changes: Any) -> DistillSettings:
    return DistillSettings.model_validate({"teacher": teacher, **TINY, "epochs": 3, **changes})


def epochs_of(run: Path) -> list[dict[str, Any]]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == "epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gapssg-fast", "gapssg", "zskt"])
def test_each_epoch_of_a_distillation_records_the_remaining_time(teacher_file: Path, tmp_path: Path, method: str):
    rounds = {"zskt": {"rounds": 3}, "gapssg-fast": {"distillation_steps": 6}}.get(method, {})
    changes = {"method": {**TINY["method"], **rounds, "name": method}, "eval_data": {"name": "digits", "images": 32}}
    display = Listening()
    distill(distill_settings(teacher_file, **changes, evaluate_every=2), tmp_path / "run", display=display)
    remaining = [event["timing"]["remaining"] for event in epochs_of(tmp_path / "run")]
    assert remaining[0] > 0
    assert remaining[1] > 0
    assert remaining[2] == 0
    said = [note for note in display.notes() if note.startswith("estimated time: ")]
    assert len(said) == 1
    assert said[0].endswith(" s (measured on the first steps)")
    assert "estimated time" not in (tmp_path / "run" / "events.jsonl").read_text()
    assert {event.epochs for event in display.events if isinstance(event, Remaining)} == {3}


def test_each_epoch_of_a_training_records_the_remaining_time(image_folder: Path, tmp_path: Path):
    values = {"data": {"name": f"folder:{image_folder}"}, "model": {"name": "wrn10_half"}, "epochs": 3, "batch_size": 8}
    display = Listening()
    pretrain_teacher(PretrainSettings.model_validate(values), tmp_path / "run", display=display)
    remaining = [event["timing"]["remaining"] for event in epochs_of(tmp_path / "run")]
    assert min(remaining[:2]) > remaining[2] == 0
    assert len([note for note in display.notes() if note.startswith("estimated time: ")]) == 1


def test_a_growing_pool_makes_later_epochs_count_more(teacher_file: Path, tmp_path: Path):
    seen: list[dict[str, int]] = []

    class Spy(TimeLeft):
        def __init__(self, steps: Mapping[str, int]) -> None:
            seen.append(dict(steps))
            super().__init__(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapssg.training.distillation.TimeLeft", Spy)
        distill(distill_settings(teacher_file), tmp_path / "run")
    # Two passes over 16, 32 and 48 samples in batches of 8.
    assert seen == [{"synthesis": 9, "distillation": 4 + 8 + 12, "classification": 0}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps_before", "left"),
    [
        (2, {"synthesis": 9, "distillation": 24}),  # in the first synthesis, of 3 steps
        (5, {"synthesis": 6, "distillation": 24}),  # in the first distillation, of 4 steps
        (9, {"synthesis": 6, "distillation": 20}),  # in the second synthesis
        (12, {"synthesis": 3, "distillation": 20}),  # in the second distillation
    ],
)
def test_a_resumed_run_has_the_steps_left_that_it_has_not_made(tmp_path: Path, steps_before: int, left: dict[str, int]):
    settings = distill_settings(write_teacher(tmp_path / "teacher.safetensors"), checkpoint_minutes=1e-9)
    with pytest.raises(Interruption):
        distill(settings, tmp_path / "run", display=InterruptingDisplay(steps_before + 1))
    seen: list[dict[str, int]] = []

    class Spy(TimeLeft):
        def __init__(self, steps: Mapping[str, int]) -> None:
            seen.append(dict(steps))
            super().__init__(steps)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gapssg.training.distillation.TimeLeft", Spy)
        distill(settings, tmp_path / "run", resume=True)
    assert seen[-1] == {**left, "classification": 0}
    remaining = [event["timing"]["remaining"] for event in epochs_of(tmp_path / "run")]
    assert remaining[0] > 0
    assert remaining[1] > 0
    assert remaining[2] == 0
