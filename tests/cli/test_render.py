"""What is printed of results."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from gapssg.cli.app import build_command
from gapssg.cli.console import Console, Invocation
from gapssg.cli.render import _crops, print_distillation
from gapssg.runs.results.distillation import SettlingResult
from gapssg.synthesis import method_classes
from tests.results import make_distill_result
from tests.run_fixtures import settings

RUN = Path("my runs $x")


@pytest.mark.parametrize(("agreement", "is_no_sign"), [(0.5, True), (0.6, False)])
def test_an_agreement_that_is_not_above_its_baseline_is_called_no_sign(
    agreement: float, is_no_sign: bool, capsys: pytest.CaptureFixture[str]
):
    result = make_distill_result()
    student = result.student.model_copy(update={"agreement": agreement, "agreement_baseline": 0.5})
    result = result.model_copy(update={"student": student})
    print_distillation(Console(Invocation()), result, RUN, settings(Path("teacher.safetensors")))
    assert ("not above its baseline" in capsys.readouterr().out) == is_no_sign


@pytest.mark.parametrize(
    ("settled_after", "clause"),
    [(None, "still fell after 2 epochs, so more may help"), (1, "so the run ended after 2 of at most 9 epochs")],
)
def test_a_run_that_was_to_end_early_says_whether_it_did(
    settled_after: int | None, clause: str, capsys: pytest.CaptureFixture[str]
):
    settling = SettlingResult(most_epochs=9, settled_after=settled_after)
    result = make_distill_result().model_copy(update={"settling": settling})
    print_distillation(Console(Invocation()), result, RUN, settings(Path("teacher.safetensors")))
    assert clause in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("method", [method.model_fields["name"].default for method in method_classes()])
def test_inspect_says_how_distill_pads_where_the_file_does_not(method: str):
    (modes,) = (each.crop_padding_mode for each in method_classes() if each.model_fields["name"].default == method)
    kind = {"zeros": "zero padding", "reflect": "mirrored padding"}[modes]
    whose = method if method == "gapssg-fast" else "other methods"
    assert f"{kind} by {whose}" in _crops(5, None)


def test_inspect_names_the_padding_of_the_file():
    assert [_crops(5, "zeros"), _crops(5, "reflect"), _crops(0, None)] == [
        "5 px of zero padding",
        "5 px of mirrored padding",
        "none",
    ]


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
        if name == "eval":  # the teacher is evaluated beside the student
            assert arguments[:2] == ["my teacher.safetensors", str(RUN / "student.safetensors")]
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


def test_the_last_example_of_import_teacher_has_what_weights_need():
    *_, example = build_command("import-teacher").epilog.split("\n\n")
    program, name, *arguments = shlex.split(example)
    assert (program, name) == ("gapssg", "import-teacher")
    assert {"--weights", "--class-names", "--mean", "--std"} <= set(arguments)
    build_command(name).make_context(name, arguments)
