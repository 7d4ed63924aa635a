"""Every path that a user names: in settings, in options, in Python."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

import gapssg.export.settings
import gapssg.landscape.settings
import gapssg.report.settings
import gapssg.table.settings
from gapssg import DistillSettings, EvaluateSettings, ImportSettings, InputError, load_model, load_settings
from gapssg.cli.app import COMMANDS
from gapssg.data.settings import DataSettings
from gapssg.files import is_file, user_path
from gapssg.safe_paths import InsidePath, inside
from gapssg.settings.base import Settings
from tests.program import refusal

BAD = {
    "": "an empty path names no file or folder",
    "a\0b": "it has a NUL character",
    "~nosuchuser/x": "names no home folder",
    "x" * 5000: "names have at most 255 bytes",
    "é" * 128: "names have at most 255 bytes",
    "a/" * 3000: "paths 4095",
    "\ud83d": "it has lone surrogates",
}
bad = pytest.mark.parametrize(
    ("path", "reason"), BAD.items(), ids=["empty", "nul", "user", "name", "é", "path", "half"]
)


def all_settings(above: type[Settings] = Settings) -> Iterator[type[Settings]]:
    for each in above.__subclasses__():
        yield each
        yield from all_settings(each)


def names_a_path(annotation: Any) -> bool:
    return annotation is Path or any(names_a_path(each) for each in get_args(annotation))


FIELDS = [
    (owner, name, field)
    for owner in dict.fromkeys(all_settings())
    if owner.__module__.startswith("gapssg.")
    for name, field in owner.model_fields.items()
    if names_a_path(field.annotation)
]


@bad
def test_every_path_in_settings_is_refused_in_one_sentence(path: str, reason: str):
    assert len(FIELDS) >= 12
    for owner, name, field in FIELDS:
        adapter = TypeAdapter[Any](Annotated[field.annotation, "", *field.metadata])  # type: ignore[arg-type]  # made at run time
        given: Any = (path,) if "tuple" in str(field.annotation) else path
        with pytest.raises(ValidationError) as refused:
            adapter.validate_python(given)
        error, *_ = refused.value.errors()
        assert error["type"] == "value_error", (owner, name)
        assert reason in error["msg"]


@bad
def test_texts_in_settings_that_hold_a_path_are_refused_in_one_sentence(path: str, reason: str):
    if path:
        with pytest.raises(ValidationError, match=reason):
            DataSettings(name=f"folder:{path}")
    with pytest.raises(ValidationError, match=reason):
        ImportSettings.model_validate({"model": {"name": "wrn16_1"}, "input_shape": (1, 16, 16), "weights": path})


@bad
def test_the_command_line_names_the_setting_in_one_line(path: str, reason: str):
    student = {"student.name": ("--student", "wrn16_1")}
    cases: list[tuple[type[Settings], dict[str, tuple[str, Any]]]] = [
        (DistillSettings, {**student, "teacher": ("--teacher", path)}),
        (DistillSettings, {**student, "teacher": ("--teacher", "t"), "pool": ("--pool", path)}),
        (EvaluateSettings, {"models": ("FILE", [path]), "data.name": ("--data", "digits")}),
        (EvaluateSettings, {"models": ("FILE", ["a", path]), "data.name": ("--data", "digits")}),
    ]
    for settings_class, options in cases:
        with pytest.raises(InputError) as refused:
            load_settings(settings_class, section="-", options=options)
        (line,) = str(refused.value).splitlines()
        assert reason in line or "UTF-8" in line


@bad
def test_every_path_in_python_is_refused(path: str, reason: str):
    with pytest.raises(InputError, match=reason):
        user_path(path)
    with pytest.raises(InputError, match=reason):
        load_model(path)
    assert not is_file(path)


def path_options() -> Iterator[tuple[str, Any]]:
    """Every option and argument that is a path, with its Typer declaration."""
    for module, _, function in (place.partition(":") for place, _ in COMMANDS.values()):
        signature = inspect.signature(getattr(import_module(module), function), eval_str=True)
        for parameter in signature.parameters.values():
            if names_a_path(parameter.annotation):
                yield f"{function} {parameter.name}", parameter.annotation.__metadata__[0]


def test_every_option_that_takes_a_path_names_itself():
    options = dict(path_options())
    assert len(options) >= 15
    for name, option in options.items():
        assert option.parser is not None, name
        with pytest.raises(InputError) as refused:
            option.parser("")
        named = option.default if isinstance(option.default, str) else option.metavar  # Typer's place for it
        assert str(refused.value) == f"{named}: an empty path names no file or folder"


def test_an_empty_output_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = ["--teacher", "t.safetensors", "--student", "wrn16_1"]
    assert refusal("distill", *run, "--output", "") == "--output: an empty path names no file or folder"
    assert refusal("quickstart", "--output", "") == "--output: an empty path names no file or folder"
    assert "an empty path" in refusal("distill", "--teacher", "", "--student", "wrn16_1", "--output", "x")
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home_folder_in_options_settings_files_and_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "settings.toml"
    config.write_text(
        'teacher = "~/t"\npool = "~"\n[student]\nname = "wrn16_1"\n[eval_data]\nname = "digits"\nroot = "~/d"'
    )
    settings = load_settings(DistillSettings, section="distill", config=config)
    assert (settings.teacher, settings.pool) == (tmp_path / "t", tmp_path)
    assert settings.eval_data is not None
    assert settings.eval_data.root == tmp_path / "d"
    options = {"models": ("FILE", ["~/a", "b"]), "data.name": ("--data", "digits"), "teacher": ("--teacher", "~/t")}
    evaluated = load_settings(EvaluateSettings, section="eval", options=options)
    assert (evaluated.models, evaluated.teacher) == ((tmp_path / "a", Path("b")), tmp_path / "t")
    assert DistillSettings.model_validate(
        {"teacher": Path("~/t"), "student": {"name": "wrn16_1"}}
    ).teacher.is_absolute()
    weights = ImportSettings.model_validate(
        {"model": {"name": "wrn16_1"}, "input_shape": (1, 16, 16), "weights": "~/w.safetensors"}
    )
    assert weights.weights == str(tmp_path / "w.safetensors")
    (tmp_path / "file").write_text("")
    assert is_file("~/file")
    monkeypatch.chdir(tmp_path)
    assert user_path(user_path("./~name")) == tmp_path / "~name"
    assert {option.parser("~/x") for _, option in path_options()} == {tmp_path / "x"}


@pytest.mark.parametrize(
    "function",
    ["distill", "pretrain_teacher", "measure_landscape", "export_model", "write_report", "predict", "audit_model"],
)
def test_every_function_expands_its_output_path(function: str):
    assert "output = user_path(output)" in inspect.getsource(getattr(gapssg, function))


def test_a_missing_current_folder_is_one_sentence_and_absolute_paths_need_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(InputError, match="the current folder no longer exists; change to another one"):
        user_path("run")
    assert user_path(tmp_path) == tmp_path
    assert isinstance(user_path(inside(tmp_path) / "file"), InsidePath)
