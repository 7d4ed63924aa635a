from __future__ import annotations

import io
import json

import pytest
import rich.console

from gapssg.cli.console import Console, Invocation, epoch_line, percent
from gapssg.text import printable

EPOCH = {
    "event": "epoch",
    "epoch": 3,
    "epochs": 20,
    "synthesis": {"synthesis_loss": 12.34, "batch_norm_statistics_loss": 11.0, "regulatory_factor": 0.75},
    "distillation_loss": 0.5,
    "reality_gap_before": 0.31,
    "reality_gap_after": 0.12,
    "agreement_before": 0.875,
    "agreement_baseline": 0.25,
    "top1": 0.9,
    "timing": {"images_per_second": 512.4},
}


def test_an_epoch_is_one_line_with_losses_gap_accuracy_and_speed():
    assert epoch_line(EPOCH) == (
        "epoch    3/20  synthesis loss 12.3 bn 11 a 0.75  distillation 0.5000  gap 0.310 to 0.120  "
        "agreement 87.5 % (baseline 25.0 %)  top-1 90.0 %  512 images/s"
    )


def test_a_narrow_line_fits_80_columns():
    assert epoch_line(EPOCH, narrow=True) == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  top-1 90.0 %  512 images/s"
    agreement = epoch_line({**EPOCH, "top1": None}, narrow=True)
    assert agreement == "epoch    3/20  loss 0.5000  gap 0.31 to 0.12  agreement 87.5 % (baseline 25.0 %)"
    assert len(agreement) <= 80


def test_what_was_not_measured_is_left_out():
    line = epoch_line({**EPOCH, "top1": None, "agreement_before": None, "synthesis": {}})
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
    console._rich = rich.console.Console(file=screen, force_terminal=True, width=160, highlight=False)
    with console.live() as display:
        display.progress("synthesis", 3, 10)
        display.event(EPOCH)
        display.event({"event": "warning", "epoch": 3, "message": "look here"})
    assert "synthesis" in screen.getvalue()
    assert "epoch    3/20" in screen.getvalue()
    assert "warning, epoch 3: look here" in screen.getvalue()


def test_a_failure_is_one_line_that_quiet_keeps(capsys: pytest.CaptureFixture[str]):
    console = Console(Invocation(quiet=True))
    console.failures("the student", [])
    console.failures("the student", ["all are 'cat'", "no class is 'dog'"])
    assert capsys.readouterr().out == "FAILED: the student is not usable: all are 'cat'; no class is 'dog'\n"
