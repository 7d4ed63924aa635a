"""Several processes compute what one does with the same batches: every method, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gapssg import distill, evaluate, pretrain_teacher
from gapssg.core.runtime import Runtime
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.evaluation import EvaluateResult
from tests.methods import METHODS
from tests.run_fixtures import events, files_of, without_timing
from tests.several import (
    CPU,
    RESUMED,
    SETTLED,
    STEPS,
    TEACHER,
    evaluation,
    in_float64,
    make_settings,
    pretraining,
    run_until,
    start,
    trace,
    trace_layers,
    write_inputs,
)
from tests.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

# The processes add the same numbers in another order. A sum of at most 4,096 of them (a channel of 8 images of 16x16
# pixels, twice) changes by up to 4,096 * 2**-53 of the sum of their absolute values, in each step. Sums of gradients
# cancel to a hundredth, which is a hundred times the share of what is left. In float32, every bound would be 2**29
# times as high; a batch norm of a share changes losses by a tenth.
TOLERANCE = 100 * STEPS * 4096 * 2**-53


class Group(NamedTuple):
    """What several processes have computed, and one process for comparison.

    Attributes:
        several: Files of the several.
        one: Files of the one.
        traces: Of each rank, by the name of the method.
        traces_of_one: By the name of the method.
    """

    several: Path
    one: Path
    traces: list[dict[str, dict[str, Tensor]]]
    traces_of_one: dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module", params=[2, 4])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Everything in one process, and in one group of several: importing torch takes longer than the steps."""
    several, one = (tmp_path_factory.mktemp(name) for name in ("several", "one"))
    runtime = Runtime(CPU, "fp32", False, 0)
    with tiny_model(), in_float64():
        write_inputs(several)
        teacher = several / TEACHER
        for name in RESUMED if request.param == 2 else ():
            assert run_until(7, make_settings(teacher, name), several / f"{name}-of-one", False, None)
        workers = start(request.param, several, *(["trace", "run", "refuse"] if request.param == 2 else ["trace"]))
        traces = {"layers": trace_layers(runtime), **{name: trace(teacher, name, runtime) for name in METHODS}}
        if request.param == 2:
            for name in RESUMED:
                distill(make_settings(teacher, name), one / f"{name}-whole")
            pretrain_teacher(pretraining(several), one / "teacher")
        for worker in workers:
            output, errors = worker.communicate(timeout=600)
            assert worker.returncode == 0, output + errors
            assert output == ""
    names, ranks = [*traces, "again"], range(request.param)
    found = [{name: load_file(several / f"{name}-{rank}.safetensors") for name in names} for rank in ranks]
    return Group(several, one, found, traces)


of_two = pytest.mark.parametrize("group", [2], indirect=True)


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest error in each tensor, relative to its largest entry."""
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-300)).item()
        for name, tensor in expected.items()
        if tensor.numel()
    }


@pytest.mark.parametrize("name", METHODS)
def test_ranks_have_the_losses_and_weights_of_one_process_after_20_steps(group: Group, name: str):
    expected = group.traces_of_one[name]
    assert len(expected["losses"]) == STEPS
    assert expected["losses"].dtype == expected["student.convolution.weight"].dtype == torch.float64
    errors = worst(group.traces[0][name], expected)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", [*METHODS, "layers"])
def test_all_ranks_have_equal_bits(group: Group, name: str):
    first, *others = (rank[name] for rank in group.traces)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_an_equal_run_of_equal_ranks_has_equal_bits(group: Group):
    first, again = (group.traces[0][name] for name in (next(iter(METHODS)), "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_batch_norms_and_dropout_of_any_kind_see_the_whole_batch(group: Group):
    errors = worst(group.traces[0]["layers"], group.traces_of_one["layers"])
    assert max(errors.values()) < TOLERANCE, errors


@of_two
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_of_several_stopped_between_any_two_steps_equals_the_uninterrupted_one(group: Group, name: str):
    assert files_of(group.several / f"{name}-stopped") == files_of(group.several / f"{name}-whole")


def assert_same_run(found: Path, expected: Path, model: str) -> None:
    """Check that two runs have the same files, the same events and the same model but for rounding."""
    assert files_of(found).keys() == files_of(expected).keys()
    errors = worst(load_file(found / model), load_file(expected / model))
    assert max(errors.values()) < TOLERANCE, errors
    runs = (found, expected)
    # The first event names the number of processes.
    assert_close(*([without_timing(event) for event in events(run) if event["event"] != "start"] for run in runs))


def assert_close(found: Any, expected: Any) -> None:
    """Check that JSON values are equal, numbers but for rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = [found[key] for key in expected], list(expected.values())
    if isinstance(expected, list):
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    else:
        is_number = isinstance(expected, float)
        assert found == (pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE) if is_number else expected)


@of_two
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_has_the_files_of_one_process(group: Group, name: str):
    assert_same_run(group.several / f"{name}-whole", group.one / f"{name}-whole", "student.safetensors")


@of_two
@pytest.mark.parametrize("name", RESUMED)
def test_two_processes_continue_the_run_of_one(group: Group, name: str):
    assert_same_run(group.several / f"{name}-of-one", group.one / f"{name}-whole", "student.safetensors")


@of_two
@pytest.mark.parametrize("name", RESUMED)
def test_one_process_continues_the_run_of_two(group: Group, name: str):
    with tiny_model(), in_float64():
        distill(make_settings(group.several / TEACHER, name), group.several / f"{name}-of-several", resume=True)
    assert_same_run(group.several / f"{name}-of-several", group.one / f"{name}-whole", "student.safetensors")


@of_two
def test_processes_agree_on_when_a_run_has_settled(group: Group):
    result = DistillResult.load(group.several / f"{SETTLED}-whole")
    assert result.settling is not None and result.settling.settled_after is not None
    assert result.epochs < result.settling.most_epochs == 10


@of_two
def test_several_processes_train_a_teacher_and_evaluate_it_as_one(group: Group):
    assert_same_run(group.several / "teacher", group.one / "teacher", "model.safetensors")
    with tiny_model(), in_float64():
        expected = evaluate(evaluation(group.several))
    for rank in range(2):
        found = EvaluateResult.model_validate_json((group.several / f"evaluation-{rank}.json").read_text())
        (one,), (other,) = found.models, expected.models
        assert (found.images, one.top1, one.confusion_matrix) == (13, other.top1, other.confusion_matrix)
        assert one.loss == pytest.approx(other.loss, rel=TOLERANCE)


@of_two
def test_what_several_processes_cannot_do_is_one_sentence_before_anything_is_written(group: Group):
    first, second = (json.loads((group.several / f"refusals-{rank}.json").read_text()) for rank in range(2))
    whole, other = group.several / "gapssg-fast-whole", group.several / "no such run"
    change = "or start another number of processes"
    same = "start every process with the same command and versions"
    assert first == {
        "size": f"2 processes cannot share a batch of 9 images equally; change batch_size, {change}",
        "half": f"2 processes cannot share a batch of 3 images equally; change batch_size (each half), {change}",
        "settings": f"rank 1 was started differently: epochs is 3 there and 2 at rank 0; {same}",
        "directory": f"rank 1: {other} holds no run to resume: {other / 'settings.toml'} does not exist",
        "taken": f"--output {whole} already holds a run; add --overwrite to replace it",
        "output": f"rank 1 was started differently: output is {other} 1 there and {other} 0 at rank 0; {same}",
        "compiled": "--compile: several processes run in eager mode; use --no-compile",
    }
    assert second == {**first, "directory": first["directory"].removeprefix("rank 1: ")}
    assert not any(each.exists() for each in (other, Path(f"{other} 0"), Path(f"{other} 1")))
