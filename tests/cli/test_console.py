from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import rich.console

from gapssg.cli.console import Console, Invocation, LiveDisplay, epoch_line
from gapssg.runs.events import DistillationEpoch, DistillationTiming, Ended, Remaining, Warned
from gapssg.text import duration, percent, printable

TIMING = DistillationTiming(synthesis=1.0, distillation=2.0, images_per_second=512.4)
EPOCH = DistillationEpoch(
    epoch=3,
    epochs=20,
    synthesis={"synthesis_loss": 12.34, "batch_norm_statistics_loss": 11.0, "regulatory_factor": 0.75},
    distillation_loss=0.5,
    reality_gap_before=0.31,
    reality_gap_after=0.12,
    agreement_before=0.875,
    agreement_baseline=0.25,
    top1=0.9,
    timing=TIMING,
)


def ending_in(seconds: float) -> DistillationEpoch:
    return EPOCH.model_copy(update={"timing": TIMING.model_copy(update={"remaining": seconds})})


def test_an_epoch_is_one_line_with_losses_gap_accuracy_and_speed():
    assert epoch_line(EPOCH) == (
        "epoch    3/20  synthesis loss 12.3 bn 11 a 0.75  distillation 0.5000  gap 0.310 to 0.120  "
        "agreement 87.5 % (baseline 25.0 %)  top-1 90.0 %  512 images/s"
    )


def test_an_epoch_ends_with_the_time_left_of_the_run():
    assert epoch_line(ending_in(725.0)).endswith("  512 images/s  12 min left")
    assert epoch_line(ending_in(0.0)).endswith("  0 s left")
    assert "left" not in epoch_line(ending_in(725.0), narrow=True)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0.0, "0 s"), (4.4, "4 s"), (99.4, "99 s"), (99.6, "2 min"), (725.0, "12 min"), (3569.0, "59 min")],
        *[(3599.0, "1 h 0 min"), (11_100.0, "3 h 5 min"), (172_799.0, "2 d 0 h"), (300_000.0, "3 d 11 h")],
    ],
)
def test_a_time_has_its_largest_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_narrow_line_fits_80_columns():
    assert epoch_line(EPOCH, narrow=True) == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  top-1 90.0 %  512 images/s"
    agreement = epoch_line(EPOCH.model_copy(update={"top1": None}), narrow=True)
    assert agreement == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  agreement 87.5 % (baseline 25.0 %)"
    assert len(agreement) <= 80


def test_the_terms_of_the_default_method_have_short_names():
    terms = {"synthesis_loss": 3.25, "relative_statistics_loss": 1.5, "target_loss": 0.25}
    terms |= {"disagreement_loss": 1.0, "agreement_loss": 2.5}
    line = epoch_line(EPOCH.model_copy(update={"synthesis": terms}))
    assert "  synthesis loss 3.25 rel 1.5 ce 0.25 ds 1 as 2.5  " in line


def test_what_was_not_measured_is_left_out():
    line = epoch_line(EPOCH.model_copy(update={"top1": None, "agreement_before": None, "synthesis": {}}))
    assert "top-1" not in line
    assert "agreement" not in line
    assert "synthesis" not in line


def test_a_percentage_has_one_decimal_and_nothing_is_a_dash():
    assert percent(0.98765) == "98.8 %"
    assert percent(None) == "-"


def test_control_characters_are_replaced():
    assert printable("a\x1b[2Jb\x9bc\u202ed\ne") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde"


def test_markup_in_names_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]):
    Console(Invocation()).table("[red]title", ["[bold]class", "n"], [["[link=x]cat[/link]", "1"]])
    shown = capsys.readouterr().out
    assert "[red]title" in shown
    assert "[bold]class" in shown
    assert "[link=x]cat[/link]" in shown


def test_json_goes_to_stdout_alone(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(json=True))
    console.say("a line")
    console.table("title", ["a"], [["b"]])
    console.result({"x": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": 1}
    assert captured.err == "a line\n"


def test_on_a_terminal_bars_move_and_vanish():
    console = Console(Invocation())
    screen = io.StringIO()
    console._rich = rich.console.Console(file=screen, force_terminal=True, width=160, highlight=False)  # type: ignore[assignment]
    with console.live() as display:
        display.progress("synthesis", 3, 10)
        display.event(EPOCH)
        display.event(Warned(epoch=3, message="look here"))
    assert "synthesis" in screen.getvalue()
    assert "epoch    3/20" in screen.getvalue()
    assert "warning, epoch 3: look here" in screen.getvalue()


def test_what_the_package_logs_during_a_run_is_shown_as_a_note(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("gapssg.step")
    with Console(Invocation()).live():
        logger.warning("%s runs slower than it could", "a step")
    logger.warning("nobody watches")
    assert capsys.readouterr().out == "a step runs slower than it could\n"


def test_a_failure_is_one_line_that_quiet_keeps(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(quiet=True))
    console.failures("the student", [])
    console.failures("the student", ["all are 'cat'", "no class is 'dog'"])
    assert capsys.readouterr().out == "FAILED: the student is not usable: all are 'cat'; no class is 'dog'\n"
    console.warnings("the student", [])
    console.warnings("the student", ["all are 'cat'"])
    warning = "warning: real images speak for the student, synthetic ones against it: all are 'cat'\n"
    assert capsys.readouterr() == (warning, "")


def test_a_failure_is_one_line_on_stderr_where_stdout_is_json(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(json=True, quiet=True))
    console.failures("the student", [f"it is right on {'no ' * 200}image"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("FAILED: the student is not usable: it is right on no no")
    assert shown.err.count("\n") == 1


class Clock:
    """A clock that goes on when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gapssg.cli.console.time", clock)
    return clock


def bars(display: LiveDisplay) -> dict[str, str]:
    """Return the bars that are shown, each with the time beside it."""
    return {task.description: task.fields["left"] for task in display._progress.tasks if task.visible}


@pytest.fixture
def display() -> Iterator[LiveDisplay]:
    console = Console(Invocation())
    console._rich = rich.console.Console(file=io.StringIO(), force_terminal=True, width=200)  # type: ignore[assignment]
    with console.live() as display:
        yield display


def test_the_bar_of_a_run_has_the_time_left_and_the_one_of_its_phase_none(display: LiveDisplay, clock: Clock):
    for done in (1, 2, 3):
        clock.now += 60
        display.progress("epoch 1: synthesis", done, 10)
        display.event(Remaining(epochs_done=0, epochs=20, seconds=7200.0))
        assert bars(display) == {"epoch 1: synthesis": "", "epochs": "2 h 0 min left"}
    display.event(ending_in(725.0))
    assert bars(display)["epochs"] == "12 min left"
    display.event(Remaining(epochs_done=3, epochs=20, seconds=None))
    assert bars(display)["epochs"] == ""
    display.event(Ended())
    assert "epochs" not in bars(display)


def test_the_bar_of_other_work_has_a_time_left_however_slow_it_is_and_however_often_it_is_reused(
    display: LiveDisplay, clock: Clock
):
    for task in ("measuring a", "measuring b"):
        for done in (0, 1, 2):
            clock.now += 100
            display.progress(task, done, 10)
        assert bars(display) == {task: "13 min left"}  # 8 of 100 s each


def test_work_that_alternates_with_other_work_has_no_time_of_its_own(display: LiveDisplay, clock: Clock):
    for done in range(0, 9, 3):
        for task in ("synthesis", "distillation"):
            for each in (1, 2, 3):
                clock.now += 100
                display.progress(task, done + each, 100)
    assert bars(display) == {"distillation": ""}
