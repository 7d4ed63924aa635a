"""What the functions of `import gapssg` do with arguments that are not theirs."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest

import gapssg

TAKING_SETTINGS = [
    name
    for name in gapssg.__all__
    if inspect.isfunction(function := getattr(gapssg, name)) and "settings" in inspect.signature(function).parameters
]


@pytest.mark.parametrize("given", ["text", None, {"epochs": 1}, gapssg.ReportSettings(runs=(Path("run"),))])
@pytest.mark.parametrize("name", sorted({*TAKING_SETTINGS} - {"write_report"}))
def test_anything_but_its_settings_is_refused_in_one_sentence(name: str, given: object):
    function = getattr(gapssg, name)
    others = {each: None for each in ("module", "output") if each in inspect.signature(function).parameters}
    sentence = rf"^{name} takes (\w+Settings), not {type(given).__name__}; construct them with gapssg\.\1\(\.\.\.\)$"
    with pytest.raises(TypeError, match=sentence):
        function(settings=given, **others)
    if "module" not in others:
        with pytest.raises(TypeError, match=sentence):
            function(given, **others)


def test_the_second_argument_of_a_function_can_be_its_settings():
    with pytest.raises(TypeError, match=r"^model_from_module takes ClassifierSettings, not str"):
        gapssg.model_from_module(None, "text")  # type: ignore[arg-type]


def test_a_function_that_is_called_without_settings_says_so():
    with pytest.raises(
        TypeError, match=r"distill\(\) missing 2 required positional arguments: 'settings' and 'output'"
    ):
        gapssg.distill()  # type: ignore[call-arg]


def test_functions_can_be_sent_to_other_processes():
    assert {"distill", "pretrain_teacher", "model_from_module", "write_report"} < {*TAKING_SETTINGS}
    for name in TAKING_SETTINGS:
        assert pickle.loads(pickle.dumps(getattr(gapssg, name))) is getattr(gapssg, name)
