from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from gapssg.evaluation import students
from gapssg.evaluation.settings import ProposeSettings
from gapssg.evaluation.students import propose_students
from gapssg.models import MODELS, create_model
from gapssg.models.model_file import save_model
from gapssg.runs.results.evaluation import Latency
from gapssg.text import listed
from tests.conftest import make_card
from tests.program import gapssg, refusal


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A WRN-16-2 with 691,386 parameters, and few candidates, one larger and one that does not accept 16 pixels."""
    built_in = ("wrn10_half", "wrn16_1", "wrn16_2", "vgg11")
    monkeypatch.setattr(students, "MODELS", {name: MODELS[name] for name in built_in})
    small = {"torchvision": "shufflenet_v2_x0_5 squeezenet1_1", "timm": "not_a_model"}
    monkeypatch.setattr(students, "_SMALL", small)
    path = tmp_path / "big.safetensors"
    model = create_model("wrn16_2", num_classes=10, input_shape=(1, 16, 16))
    save_model(path, model, make_card(architecture="wrn16_2"))
    return path


def fake_latency(module: nn.Module, *_: Any) -> Latency:
    """Take a millisecond for each 100,000 parameters."""
    milliseconds = sum(parameter.numel() for parameter in module.parameters()) / 1e5
    return Latency(batch_size=1, passes=10, median_ms=milliseconds, p95_ms=milliseconds)


def propose(teacher: Path, **changes: Any) -> Any:
    return propose_students(ProposeSettings.model_validate({"teacher": teacher, "seconds": 3600, **changes}))


def test_students_are_smaller_than_the_teacher_and_the_fastest_comes_first(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    result = propose(teacher)
    names = [each.architecture for each in result.students]
    assert names[:2] == ["wrn10_half", "wrn16_1"]
    assert "torchvision:shufflenet_v2_x0_5" in names
    assert not {"wrn16_2", "vgg11", "torchvision:squeezenet1_1", "timm:not_a_model"} & set(names)
    times = [each.latency.median_ms for each in result.students]
    assert times == sorted(times)
    assert all(0 < each.parameters < result.parameters and each.macs > 0 for each in result.students)
    assert result.timing.is_complete
    assert (result.timing.measured, result.timing.fastest) == (len(names), result.students[0])
    fast = propose(teacher, max_latency_ms=1.0)
    assert [each.architecture for each in fast.students] == ["wrn10_half"]
    none = propose(teacher, max_latency_ms=1e-3)
    assert (none.students, none.timing.measured, none.timing.fastest) == ((), len(names), result.students[0])


def test_time_is_bounded(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    result = propose(teacher, seconds=1e-6)
    assert (result.students, result.timing.is_complete) == ((), False)
    assert {"wrn10_half", "wrn16_1", "torchvision:shufflenet_v2_x0_5"} <= set(result.timing.unsized)
    assert result.timing.unmeasured == ()
    shown = " ".join(gapssg("models", "--for", teacher, "--set", "seconds=0.000001").stdout.split())
    assert f"no time to build {len(result.timing.unsized)} candidates" in shown
    assert "of unknown size; --set" in shown and "there is none" not in shown
    assert f"measured: 0 smaller candidates; not tried: {len(result.timing.unsized)}" in shown


def test_the_bound_is_of_the_whole_command_and_what_was_not_measured_is_named(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    smaller = {each.architecture for each in propose(teacher).students}
    now = [0.0]

    def slow_latency(module: nn.Module, *others: Any) -> Latency:
        now[0] = min(now[0] + 40, others[-1])  # the deadline
        return Latency(batch_size=1, passes=10 if now[0] < others[-1] else 9, median_ms=1.0, p95_ms=1.0)

    monkeypatch.setattr(students, "measure_latency", slow_latency)
    monkeypatch.setattr(students, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    result = propose(teacher, seconds=100)
    (measured,) = result.students  # after the teacher; the next one takes too long
    assert now == [100.0]
    assert {measured.architecture, *result.timing.unmeasured} == smaller
    missing = f"no time to measure {len(smaller) - 1} candidates ({listed(result.timing.unmeasured)})"
    now[0] = 0.0
    shown = gapssg("models", "--for", teacher, "--max-latency", "0.5ms", "--set", "seconds=100").stdout
    assert missing in (shown := " ".join(shown.split()))
    counts = f"measured: 1 smaller candidate, the fastest {measured.architecture} with 1.00 ms, none of them within"
    assert f"{counts} 0.5 ms; not tried: {len(smaller) - 1}" in shown


def test_models_with_names_like_the_teachers_are_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    name, shape, colours = "torchvision:shufflenet_v2_x0_5", (3, 32, 32), (0.5, 0.5, 0.5)
    card = make_card(architecture=name, input_shape=shape, mean=colours, deviation=colours)
    save_model(tmp_path / "teacher.safetensors", create_model(name, num_classes=10, input_shape=shape), card)
    names = propose(tmp_path / "teacher.safetensors", seconds=1e-6).timing.unsized  # there is no time for any
    assert names[: len(MODELS)] == tuple(MODELS)
    assert {"torchvision:shufflenet_v2_x2_0", "torchvision:resnet18", "timm:lcnet_050"} <= set(names)
    assert len(names) == len(set(names)) < 70


def test_the_command_proposes_students(teacher: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    patient = ["--set", "seconds=3600"]
    printed = gapssg("models", "--for", teacher, "--max-latency", "0.002s", *patient).stdout
    assert "wrn16_1" in printed and f"gapssg distill --teacher {teacher} --student NAME" in printed
    result = json.loads(gapssg("models", "--for", teacher, "--max-latency", "1ms", "--json", *patient).stdout)
    assert result["teacher"]["architecture"] == "wrn16_2"
    assert [each["architecture"] for each in result["students"]] == ["wrn10_half"]
    assert "--model-factory" not in printed
    assert "--max-latency '5' must be a number with ms or s" in refusal("models", "--for", teacher, "--max-latency", 5)
    assert "add --for FILE" in refusal("models", "--max-latency", "5ms")
    assert "its own classes" in refusal("models", "--for", teacher, "--classes", 5)


def test_an_import_ends_in_a_command_that_proposes_students_for_the_teacher(tmp_path: Path):
    name, teacher = "tests.models.factories:small", tmp_path / "my teacher.safetensors"
    arguments = ("--input-shape", "1,16,16", "--num-classes", 10, "--mean", 0.3, "--std", 0.3, "--output", teacher)
    printed = gapssg("import-teacher", "--model", name, *arguments).stdout
    assert "nothing shows whether the normalisation and the order of the classes are right" in printed
    assert printed.splitlines()[-1] == f"next: gapssg models --for '{teacher}' --model-factory {name}"


def test_the_command_that_is_proposed_trusts_the_factory_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(students, "measure_latency", fake_latency)
    monkeypatch.setattr(students, "MODELS", {"wrn10_half": MODELS["wrn10_half"]})
    monkeypatch.setattr(students, "_SMALL", {})
    name, teacher, arguments = "tests.models.factories:small", tmp_path / "my teacher.safetensors", {"width": 4000}
    model = create_model(name, num_classes=10, input_shape=(1, 16, 16), arguments=arguments)
    save_model(teacher, model, make_card(architecture=name, arguments=arguments))
    printed = gapssg("models", "--for", teacher, "--model-factory", name).stdout
    (line,) = (line for line in printed.splitlines() if line.startswith("next: "))
    program, *words = shlex.split(line.removeprefix("next: "))
    assert program == "gapssg"
    words[words.index("NAME")] = "wrn10_half"
    words[words.index("--output") + 1] = str(tmp_path / "run")
    gapssg(*words, "--estimate", "--method", "noise", "--set", "method.synthesis_batch_size=16")
