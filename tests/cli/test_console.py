from __future__ import annotations

import io
import json
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import rich.console

from gapssg.__main__ import main
from gapssg.cli.console import Console, Invocation, LiveDisplay, epoch_line, lenient_streams
from gapssg.runs.events import (
    DistillationEpoch,
    DistillationTiming,
    Ended,
    ProgressOfRuns,
    Remaining,
    RunProgress,
    Started,
    Warned,
)
from gapssg.runs.requests import Stopped
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
def test_a_duration_has_its_largest_units(seconds: float, text: str):
    assert duration(seconds) == text


def test_a_narrow_line_fits_80_columns():
    assert epoch_line(EPOCH, narrow=True) == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  top-1 90.0 %  512 images/s"
    agreement = epoch_line(EPOCH.model_copy(update={"top1": None}), narrow=True)
    assert agreement == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  agreement 87.5 % (baseline 25.0 %)"
    assert len(agreement) <= 80


def test_terms_of_the_default_method_have_short_names():
    terms = {"synthesis_loss": 3.25, "relative_statistics_loss": 1.5, "target_loss": 0.25}
    terms |= {"disagreement_loss": 1.0, "agreement_loss": 2.5}
    line = epoch_line(EPOCH.model_copy(update={"synthesis": terms}))
    assert "  synthesis loss 3.25 rel 1.5 ce 0.25 ds 1 as 2.5  " in line


def test_what_was_not_measured_is_left_out():
    timing = TIMING.model_copy(update={"images_per_second": 0.0})  # of an epoch that only synthesises
    changes: dict[str, object] = {"top1": None, "agreement_before": None, "synthesis": {}, "timing": timing}
    line = epoch_line(EPOCH.model_copy(update=changes))
    for part in ("top-1", "agreement", "synthesis", "images/s"):
        assert part not in line


def test_a_percentage_has_one_decimal_and_nothing_is_a_dash():
    assert percent(0.98765) == "98.8 %"
    assert percent(None) == "-"


def test_control_characters_are_replaced():
    assert printable("a\x1b[2Jb\x9bc\u202ed\ne") == "a\ufffd[2Jb\ufffdc\ufffdd\ufffde"


def test_markup_in_names_is_shown_and_not_interpreted(capsys: pytest.CaptureFixture[str]):
    Console(Invocation()).table("[red]title", ["[bold]class", "n"], [["[link=x]cat[/link]", "1"]])
    shown = capsys.readouterr().out
    assert "[red]title" in shown
    assert "[bold]class" in shown
    assert "[link=x]cat[/link]" in shown


def test_with_json_stdout_has_only_the_json(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(json=True))
    console.say("a line")
    console.table("title", ["a"], [["b"]])
    console.result({"x": 1})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"x": 1}
    assert captured.err == "a line\n"


def test_progress_bars_move_and_vanish_on_a_terminal():
    console = Console(Invocation())
    screen = io.StringIO()
    console._rich = rich.console.Console(file=screen, force_terminal=True, width=160, highlight=False)
    with console.live() as display:
        display.progress("synthesis", 3, 10)
        display.event(EPOCH)
        display.event(Warned(epoch=3, message="look here"))
    assert "synthesis" in screen.getvalue()
    assert "epoch    3/20" in screen.getvalue()
    assert "warning, epoch 3: look here" in screen.getvalue()


def test_what_the_package_logs_during_a_run_is_shown_as_a_note(capsys: pytest.CaptureFixture[str]):
    logger = logging.getLogger("gapssg.core.training_step")
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
    warning = "warning: the student is usable on real images, in spite of what synthetic images showed: all are 'cat'\n"
    assert capsys.readouterr() == (warning, "")


def test_a_failure_is_one_line_on_stderr_where_stdout_is_json(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(json=True, quiet=True))
    console.failures("the student", [f"it is right on {'no ' * 200}image"])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("FAILED: the student is not usable: it is right on no no")
    assert shown.err.count("\n") == 1


class Clock:
    """A clock that is advanced by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("gapssg.cli.console.time", clock)
    return clock


def bars(display: LiveDisplay) -> dict[str, str]:
    """Return the visible bars with their times left."""
    return {task.description: task.fields["left"] for task in display._progress.tasks if task.visible}


@pytest.fixture
def display() -> Iterator[LiveDisplay]:
    console = Console(Invocation())
    console._rich = rich.console.Console(file=io.StringIO(), force_terminal=True, width=200)
    with console.live() as display:
        yield display


def test_the_bar_of_a_run_shows_the_time_left_and_that_of_its_phase_none(display: LiveDisplay, clock: Clock):
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


def progress_of(label: str, epochs_done: int, seconds: float | None) -> RunProgress:
    return RunProgress(label=label, host="node-1", epochs_done=epochs_done, epochs=20, seconds=seconds)


def test_each_of_several_runs_has_a_bar_until_it_ends(display: LiveDisplay):
    display.event(ProgressOfRuns(runs=(progress_of("a", 3, 7200.0), progress_of("b", 0, None))))
    assert bars(display) == {"a on node-1": "2 h 0 min left", "b on node-1": ""}
    display.event(ProgressOfRuns(runs=(progress_of("b", 1, 725.0),)))
    assert bars(display) == {"b on node-1": "12 min left"}
    assert [task.completed for task in display._progress.tasks if task.visible] == [1]


def test_several_runs_are_lines_once_a_minute_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Console(Invocation()).live() as display:
        for done in range(13):
            display.event(ProgressOfRuns(runs=(progress_of("a", done, 60.0 * (20 - done)), progress_of("b", 0, None))))
            clock.now += 10
    line = "a: epoch {}/20 on node-1, {} min left\nb: epoch 0/20 on node-1\n"
    assert capsys.readouterr().out == line.format(6, 14) + line.format(12, 8)


def test_a_bar_without_a_run_shows_the_time_left_also_if_it_is_slow_or_reused(display: LiveDisplay, clock: Clock):
    for task in ("measuring a", "measuring b"):
        for done in (0, 1, 2):
            clock.now += 100
            display.progress(task, done, 10)
        assert bars(display) == {task: "13 min left"}  # 8 of 100 s each


def test_tasks_that_alternate_show_no_time_left(display: LiveDisplay, clock: Clock):
    for done in range(0, 9, 3):
        for task in ("synthesis", "distillation"):
            for each in (1, 2, 3):
                clock.now += 100
                display.progress(task, done + each, 100)
    assert bars(display) == {"distillation": ""}


def ends_with(*arguments: str) -> int:
    """Run the program with the streams of this process; return its exit status."""
    with mock.patch("sys.argv", ["gapssg", *arguments]), pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_full_disk_under_stdout_loses_no_run_and_is_reported_at_the_end(capsys: pytest.CaptureFixture[str]):
    def run(**_: object) -> None:
        console = Console(invocation)
        with console.live() as display:
            display.event(Started(message="a run begins"))
            display.event(EPOCH)
        console.table("title", ["a"], [["b"]])
        console.result({"x": 1})
        ended.append(console)

    for invocation, status, said in [
        (
            Invocation(),
            0,
            "warning: stdout cannot be written: No space left on device; the results of the run are",
        ),
        (
            Invocation(json=True),
            1,
            "error: stdout cannot be written: No space left on device; the results of the run",
        ),
    ]:
        ended: list[Console] = []
        with (
            open("/dev/full", "w") as full,
            redirect_stdout(full),
            mock.patch("gapssg.cli.app.Invocation", return_value=invocation),
            mock.patch("gapssg.cli.app.app", run),
        ):
            assert ends_with() == status
        assert ended
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_full_disk_under_stdout_is_a_failure_of_what_only_prints(capsys: pytest.CaptureFixture[str]):
    with open("/dev/full", "w") as full, redirect_stdout(full):
        assert ends_with("recipes") == 1
    assert capsys.readouterr().err == "error: stdout cannot be written: No space left on device\n"


def test_a_full_disk_under_stderr_changes_nothing(capsys: pytest.CaptureFixture[str]):
    with open("/dev/full", "w") as full, redirect_stderr(full):
        assert ends_with("recipes", "--json") == 0
        assert ends_with("recipes", "no-such-recipe") == 2
    assert json.loads(capsys.readouterr().out)["command"] == "recipes"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_is_closed_from_the_start_changes_nothing(stream: str):
    with mock.patch(f"sys.{stream}", None):
        assert ends_with("recipes") == 0


def test_a_stream_that_is_not_unicode_gets_escapes_and_plain_frames():
    printed = io.BytesIO()
    with redirect_stdout(io.TextIOWrapper(printed, encoding="ascii")), lenient_streams():
        console = Console(Invocation())
        console.table("Größe", ["model", "trace ±"], [["größe", "1 ± 2"]])
        console.say("größer")
        console._stdout.flush()
    shown = printed.getvalue().decode("ascii")
    assert "Gr\\xf6\\xdfe" in shown
    assert "1 \\xb1 2" in shown
    assert "gr\\xf6\\xdfer" in shown
    assert "\\u" not in shown


@pytest.mark.parametrize("columns", ["0", "1", "-3", "99999999999", "\N{SUPERSCRIPT TWO}", ""])
def test_an_unusable_width_is_ignored(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert ends_with("recipes") == 0
    assert "digits-short" in capsys.readouterr().out


HOSTILE = ["runs/:fire:", "[red]runs", "[/red]", ":smile:[bold]x[/bold]", "[link=https://x]y[/link]"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_printed_unchanged_by_every_function(name: str, capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation())
    with console.live() as display:
        display.event(Started(message=name))
        display.event(Warned(epoch=1, message=name))
    console.say(name)
    console.note(name)
    console.alarm(name)
    console.failures(name, [name])
    console.table(name, ["column"], [[name]])
    Console(Invocation(json=True)).alarm(name)
    shown = capsys.readouterr()
    assert shown.out.count(name) == 9
    assert shown.err.count(name) == 1


def test_a_progress_bar_shows_a_name_unchanged():
    console = Console(Invocation())
    screen = io.StringIO()
    console._rich = rich.console.Console(file=screen, force_terminal=True, width=200)
    with console.live() as display:
        display.progress("measuring :fire: [red]x", 1, 2)
    assert "measuring :fire: [red]x" in screen.getvalue()


def test_the_command_that_continues_is_one_that_a_shell_reads(capsys: pytest.CaptureFixture[str]):
    path = "my runs/$(x) 'y'"
    invocation = Invocation(command="distill", checkpoint=path, again_named=" --model-factory a:b")
    with (
        mock.patch("gapssg.cli.app.Invocation", return_value=invocation),
        mock.patch("gapssg.cli.app.app", side_effect=Stopped(1)),
    ):
        assert ends_with() == 129
    said, again = capsys.readouterr().err.split("; continue with: ")
    assert said == "hung up"
    assert shlex.split(again) == ["gapssg", "distill", "--resume", path, "--model-factory", "a:b"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_is_one_sentence_in_every_command(error: Exception, capsys):
    with mock.patch("gapssg.cli.app.app", side_effect=error):
        assert ends_with() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory")
    assert said.count("\n") == 1


def test_a_missing_current_folder_is_one_sentence_wherever_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with mock.patch("gapssg.cli.app.app", side_effect=lambda **_: os.getcwd()):
        assert ends_with() == 2
    assert ends_with("card", "run") == 2
    said = "error: the current folder no longer exists; change to another one and try again"
    assert capsys.readouterr().err.splitlines() == [said, said.replace("error: ", "error: DIR: ")]
    for command in (("models",), ("inspect", "wrn16_1"), ("eval", str(tmp_path / "a"), "--data", "digits")):
        assert ends_with(*command) == 2
        assert capsys.readouterr().err.splitlines() == [said]
