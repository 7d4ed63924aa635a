from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from gapssg.errors import InputError
from gapssg.files import write_json
from gapssg.runs.results import DistillResult, LandscapeResult, RunResult, load_training_result
from tests.results import make_distill_result, make_evaluation, make_pretrain_result, make_run_facts, make_scores
from tests.runs import change


def written(result: RunResult, run: Path) -> Path:
    write_json(run / "result.json", result.model_dump(mode="json"))
    return run


@pytest.mark.parametrize("result", [make_distill_result(), make_distill_result(None, None), make_pretrain_result()])
def test_what_is_read_is_what_was_written(tmp_path: Path, result: RunResult):
    assert load_training_result(written(result, tmp_path)) == result
    assert type(result).load(tmp_path) == result


def test_a_result_of_another_command_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="command: Input should be 'distill'"):
        DistillResult.load(written(make_pretrain_result(), tmp_path))


def test_keys_that_a_newer_version_added_are_ignored(tmp_path: Path):
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


def test_a_long_list_that_is_wrong_is_one_error(tmp_path: Path):
    surface: dict[str, object] = {"minima": [{}] * 100_000, "explained_variance": ["a"] * 100_000}
    values = {"command": "landscape", **make_run_facts(), "surfaces": [surface]}
    with pytest.raises(ValidationError) as error:
        LandscapeResult.model_validate_json(json.dumps(values))
    assert sum(each["loc"][2:3] == ("minima",) for each in error.value.errors()) == 3  # keys of the first
    assert error.value.error_count() < 30


def test_a_score_that_is_not_finite_is_never_written():
    with pytest.raises(ValidationError):
        make_scores(loss=float("nan"))


def test_a_path_that_is_no_text_can_be_told():
    name = os.fsdecode(b"run-\xff")
    result = make_evaluation("wrn16_1", name, name, ("cat", "dog"))
    assert json.loads(json.dumps(result.model_dump(mode="json")))["models"][0]["file"] == "run-?"
