"""What is printed of results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from gapssg.cli.app import build_command
from gapssg.cli.console import Console, Invocation
from gapssg.cli.render import print_distillation
from tests.results import make_distill_result
from tests.run_fixtures import settings

RUN = Path("my runs $x")


def next_commands(capsys: pytest.CaptureFixture[str], *, failures: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """Print a distillation; return the names of the next commands after checking that they can be parsed."""
    result = make_distill_result().model_copy(update={"failures": failures})
    invocation = Invocation(again_named=" --model-factory a:b")
    print_distillation(Console(invocation), result, RUN, settings(Path("my teacher.safetensors"), **changes))
    shown = capsys.readouterr().out
    assert ("docs/choosing.md" in shown) == bool(failures)
    assert ("FAILED" in shown) == bool(failures)
    commands = [
        shlex.split(line) for line in shown.partition("next:\n")[2].splitlines() if line.startswith("  gapssg ")
    ]
    for program, name, *arguments in commands:
        assert program == "gapssg"
        assert arguments[-2:] == ["--model-factory", "a:b"]
        build_command(name).make_context(name, arguments)
    return [name for _, name, *_ in commands]


def test_a_sound_student_is_evaluated_reported_on_and_exported_next(capsys: pytest.CaptureFixture[str]):
    assert next_commands(capsys) == ["eval", "report", "export"]


def test_a_student_that_failed_is_not_exported_next(capsys: pytest.CaptureFixture[str]):
    on_real_images = {"eval_data": {"name": "digits"}}
    assert next_commands(capsys, failures=("it is right on none",), **on_real_images) == ["report"]


def test_a_student_that_failed_on_synthetic_images_alone_is_evaluated_on_real_ones_next(
    capsys: pytest.CaptureFixture[str],
):
    assert next_commands(capsys, failures=("it is right on none",)) == ["report", "eval"]
