from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gapssg.errors import InputError
from gapssg.files import write_json
from gapssg.runs.results.common import ModelFile, RunResult
from gapssg.runs.results.distillation import DistillResult, load_training_result
from gapssg.runs.results.landscape import (
    Bf16Error,
    CentreScores,
    Curvature,
    LandscapeResult,
    LandscapeTiming,
    SurfaceFacts,
)
from gapssg.runs.results.training import PretrainResult
from tests.results import make_distill_result, make_evaluation, make_pretrain_result, make_run_facts, make_scores
from tests.run_fixtures import change


def written(result: RunResult, run: Path) -> Path:
    write_json(run / "result.json", result.model_dump(mode="json"))
    return run


@pytest.mark.parametrize("result", [make_distill_result(), make_distill_result(None, None), make_pretrain_result()])
def test_a_result_is_read_back_as_written(tmp_path: Path, result: RunResult):
    assert load_training_result(written(result, tmp_path)) == result
    assert type(result).load(tmp_path) == result


def test_a_result_of_another_command_is_refused(tmp_path: Path):
    for result, other in ((make_pretrain_result(), DistillResult), (make_distill_result(), LandscapeResult)):
        with pytest.raises(InputError) as refused:
            other.load(written(result, tmp_path))
        command = other.model_fields["command"].default
        assert str(refused.value) == f"{tmp_path} is not a run of {command}; name one that is"


def test_keys_of_newer_versions_are_ignored(tmp_path: Path):
    run = written(make_distill_result(), tmp_path)
    change(run / "result.json", lambda values: values["student"].update(novelty=[1, 2]))
    assert DistillResult.load(run) == make_distill_result()


@pytest.mark.parametrize("text", ['{"seed": NaN}', '{"seed": 1e999}', '{"seed": true}', "[]", "{", '"\\ud800"'])
def test_a_damaged_result_is_one_short_sentence(tmp_path: Path, text: str):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(InputError, match=r"result\.json is damaged: ") as error:
        RunResult.load(tmp_path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 200


def test_a_long_invalid_list_is_one_error(tmp_path: Path):
    surface: dict[str, object] = {"minima": [{}] * 100_000, "explained_variance": ["a"] * 100_000}
    values = {"command": "landscape", **make_run_facts(), "surfaces": [surface]}
    with pytest.raises(ValidationError) as error:
        LandscapeResult.model_validate_json(json.dumps(values))
    assert sum(each["loc"][2:3] == ("minima",) for each in error.value.errors()) == 3  # keys of the first
    assert error.value.error_count() < 30


def test_a_score_that_is_not_finite_is_never_written():
    with pytest.raises(ValidationError):
        make_scores(loss=float("nan"))


def test_a_path_that_is_not_unicode_can_be_stored():
    name = os.fsdecode(b"run-\xff")
    result = make_evaluation("wrn16_1", name, name, ("cat", "dog"))
    assert json.loads(json.dumps(result.model_dump(mode="json")))["models"][0]["file"] == "run-?"


def numbers_in(values: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers_in(value, (*place, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*place, key)


def landscape_result() -> dict[str, Any]:
    """A result of `landscape` with a number in every field."""
    measurement = {"value": 1.0, "error": 0.1}
    curvature = {"samples": 5, "largest_eigenvalue": measurement, "trace": measurement, "epsilon": 0.1}
    surface = SurfaceFacts(
        label="a",
        name="a",
        epoch=1,
        file="a",
        model=ModelFile(file="a", sha256="5", architecture="a"),
        centre=CentreScores(loss=1.0, accuracy=0.5),
        centre_is_global_minimum=True,
        lowest_loss=1.0,
        highest_loss=2.0,
        points_not_finite=0,
        minima=(),
        marks=(),
        explained_variance=(),
        radius_of_doubling=1.0,
        curvature=Curvature.model_validate({**curvature, "epsilon_sharpness": 1.0}),
        bf16_error=Bf16Error(points=9, loss_relative=0.1, accuracy=0.1),
    )
    timing = LandscapeTiming(total=1.0, surfaces=1.0, points_per_second=1.0)
    result = LandscapeResult(
        data="digits",
        samples=5,
        loss="loss",
        accuracy="accuracy",
        surfaces=(surface,),
        shared_directions=True,
        figures=(),
        timing=timing,
        **make_run_facts(),
    )
    return result.model_dump(mode="json")


RESULTS: list[tuple[type[RunResult], dict[str, Any]]] = [
    (DistillResult, make_distill_result().model_dump(mode="json")),
    (PretrainResult, make_pretrain_result().model_dump(mode="json")),
    (LandscapeResult, landscape_result()),
]


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1" + "0" * 6000, "-1" + "0" * 400, "1e308", "-1e308"])
def test_a_number_of_any_size_in_a_result_is_refused_or_shown(number: str):
    for kind, values in RESULTS:
        surfaces = values.get("surfaces")
        for place in numbers_in({**values, "surfaces": surfaces[0]} if surfaces else values):
            changed = copy.deepcopy(values)
            table = changed
            for key in place[:-1]:
                table = table[key][0] if key == "surfaces" else table[key]
            table[place[-1]] = "NUMBER"
            try:
                read = kind.read(json.dumps(changed).replace('"NUMBER"', number).encode(), "the result")
            except InputError as error:
                assert str(error).startswith("the result is damaged")
                continue
            f"{read}"
            for part in place[:-1]:
                read = getattr(read, part)[0] if part == "surfaces" else getattr(read, part)
            f"{getattr(read, place[-1]) / 1e6:.4g}"
