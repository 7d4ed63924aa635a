"""Options come from settings fields, each declared once; help texts end in examples that can be run."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import typer
import typer.main
from pydantic import TypeAdapter, ValidationError
from rich.text import Text

from gapssg.cli.app import COMMANDS, app, build_command
from gapssg.cli.command import Shown, command, help_text, option_name, range_of
from gapssg.cli.console import Console
from gapssg.cli.options import Panel, RunOptions
from gapssg.settings.base import Settings, descriptions
from gapssg.synthesis import method_classes
from tests.program import gapssg


def function_of(name: str) -> Any:
    module, function = COMMANDS[name][0].split(":")
    return getattr(importlib.import_module(module), function)


WITH_SETTINGS = [name for name in COMMANDS if hasattr(function_of(name), "shown")]
every_command = pytest.mark.parametrize("name", COMMANDS)
every_command_with_settings = pytest.mark.parametrize("name", WITH_SETTINGS)


def fields_of(name: str) -> list[tuple[type[Settings], Shown, Any, Any]]:
    """Every shown field: the class that has it, how it is shown, the field, and the option of the built command."""
    function = function_of(name)
    built = {parameter.name: parameter for parameter in build_command(name).params}
    found = []
    for shown, _ in function.shown:
        owner, parts = function.settings_class, shown.key.split(".")
        for part in parts[:-1]:
            owner = settings_in(owner.model_fields[part].annotation)
        field = owner.model_fields[parts[-1]]
        found.append((owner, shown, field, built[shown.key.replace(".", "__")]))
    return found


def settings_in(annotation: Any) -> type[Settings]:
    text = [annotation]
    for each in text:
        if inspect.isclass(each) and issubclass(each, Settings):
            return each
        text += getattr(each, "__args__", ())
    raise AssertionError(annotation)


@every_command_with_settings
def test_the_help_of_an_option_is_the_description_of_its_field(name):
    for owner, shown, _, option in fields_of(name):
        assert option.help == help_text(function_of(name).settings_class, shown)
        description = " ".join(descriptions(owner)[shown.key.split(".")[-1]].replace("`", "").split())
        if shown.key != "method.name":  # of which the choices are listed
            assert description in Text.from_markup(option.help).plain, shown.key


@every_command_with_settings
def test_the_range_of_an_option_is_that_of_its_field(name):
    for _, shown, field, option in fields_of(name):
        bounds = {
            kind: getattr(each, kind)
            for each in field.metadata
            for kind in ("ge", "gt", "le", "lt")
            if getattr(each, kind, None) is not None
        }
        if not bounds:
            continue
        assert option.metavar.endswith(range_of(function_of(name).settings_class, shown))
        # Exactly what the help text allows is valid.
        lowest, highest = ends(option.metavar)
        alone = TypeAdapter[Any](Annotated[field.annotation, *field.metadata])  # type: ignore[arg-type]  # made at run time
        for value, beyond in ((lowest, -1), (highest, 1)):
            if value is not None:
                alone.validate_python(value)
                with pytest.raises(ValidationError):
                    alone.validate_python(value + beyond)


def ends(metavar: str) -> tuple[Any, Any]:
    """The lowest and the highest value that a range such as `INT 1..9` or `FLOAT >0, <=1` allows."""
    kind = float if metavar.startswith("FLOAT") else int
    if match := re.search(r"(\S+)\.\.(\S+)", metavar):
        return kind(match[1]), kind(match[2])
    lowest, highest = re.search(r">(=?)([\d.]+)", metavar), re.search(r"<(=?)([\d.]+)", metavar)
    return (
        None if lowest is None else kind(lowest[2]) + (0 if lowest[1] else 1e-9),
        None if highest is None else kind(highest[2]) - (0 if highest[1] else 1e-9),
    )


@every_command_with_settings
def test_an_option_and_its_field_are_declared_once(name):
    keys = [shown.key for shown, _ in function_of(name).shown]
    assert len(keys) == len(set(keys))
    names = [
        option for parameter in build_command(name).params for option in (*parameter.opts, *parameter.secondary_opts)
    ]
    assert len(names) == len(set(names))
    module, function = COMMANDS[name][0].split(":")
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    declaration = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    parts = (*declaration.decorator_list, declaration.args)
    texts = [node.value for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant)]
    for key in keys:
        assert texts.count(key) <= 1, key
    if name != "quickstart":  # which also sets what other commands would
        assert "load_settings" not in inspect.getsource(importlib.import_module(module))


def test_no_option_of_two_commands_is_declared_in_both():
    """Options of several commands that are not fields are declared once, in `gapssg.cli.options`."""
    declared: dict[str, int] = {}
    for path in Path(importlib.import_module("gapssg.cli").__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option":
                text = ast.unparse(node)
                declared[text] = declared.get(text, 0) + 1
    assert {text for text, count in declared.items() if count > 1} == set()


@every_command
def test_a_command_is_listed_by_the_first_line_of_its_docstring(name):
    assert inspect.getdoc(function_of(name)).splitlines()[0] == COMMANDS[name][1]
    listed = cast("typer.core.TyperGroup", typer.main.get_command(app))
    assert listed.commands[name].help == COMMANDS[name][1]


@every_command
def test_every_help_text_ends_in_examples_that_can_be_parsed(name):
    built = build_command(name)
    examples = built.epilog.split("\n\n")[1:]
    assert examples
    for example in examples:
        program, command_name, *arguments = shlex.split(example)
        assert (program, command_name) == ("gapssg", name)
        built.make_context(name, arguments)


@pytest.mark.parametrize("name", ["distill", "pretrain-teacher"])
def test_required_options_come_first_and_are_marked(name):
    function = function_of(name)
    main = [option for option in build_command(name).params if option.rich_help_panel in (Panel.MAIN, None)]
    assert 5 <= len(main) <= 11
    required = {
        option_name(shown)
        for shown, panel in function.shown
        if "required]" in help_text(function.settings_class, shown) and panel == Panel.MAIN
    }
    assert required == ({"--teacher", "--student"} if name == "distill" else {"--data", "--model"})
    assert "[required]" in Text.from_markup(next(option.help for option in main if option.name == "output")).plain


def test_help_shows_the_default_of_the_settings_and_a_value_beyond_the_range_is_refused_by_its_field(capsys):
    shown = gapssg("distill", "--help").stdout
    assert "[default: 32]" in shown
    assert "INT 1..100000" in shown
    arguments = ["--teacher", "t.safetensors", "--student", "wrn16_1", "--epochs", 0]
    assert "epochs = 0 (from --epochs): must be greater" in gapssg("distill", *arguments, status=2).stderr


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("gapssg dist", {"distill"}),
        ("gapssg distill --method z", {"zskt"}),
        ("gapssg distill --student wrn40", {"wrn40_1", "wrn40_2"}),
        ("gapssg distill --recipe digits", {"digits", "digits-short"}),
        ("gapssg distill --precision b", {"bf16"}),
        ("gapssg pretrain-teacher --data cifar", {"cifar10", "cifar100"}),
    ],
)
def test_the_shell_completes(words, completed):
    environment = {"_GAPSSG_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; sys.argv = ['gapssg']; from gapssg.cli.app import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert set(run.stdout.split()) == completed, run.stderr


def test_help_imports_no_torch():
    code = (
        "import sys\n"
        "from gapssg.cli.app import main\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = ['gapssg', name, '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0 and 'torch' not in sys.modules, name\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("Usage: ") == len(COMMANDS)


def test_every_method_can_be_chosen():
    shown = next(shown for shown, _ in function_of("distill").shown if shown.key == "method.name")
    text = help_text(function_of("distill").settings_class, shown)
    assert all(method.model_fields["name"].default in text for method in method_classes())


class PartSettings(Settings):
    """A part."""

    enabled: bool = False
    """Whether it is there."""


class ExampleSettings(Settings):
    """Settings of an example command."""

    sizes: tuple[int, ...] = ()
    """Sizes in `pixels`."""
    part: PartSettings = PartSettings()
    """The part."""


def test_values_reach_the_function_with_the_names_of_their_options():
    seen: dict[str, Any] = {}
    fields: dict[Panel, list[str | Shown]] = {Panel.MAIN: [Shown("sizes", "--size"), "part.enabled"]}

    @command("example", ExampleSettings, fields)
    def example(_: Console, given: Any, loud: bool = False) -> None:
        seen.update(given.options, settings=given.load(), loud=loud)

    alone = typer.Typer(add_completion=False)
    alone.command()(example)
    typer.main.get_command(alone)(["--size", "3", "--size", "5", "--part", "--loud"], standalone_mode=False)
    assert seen["sizes"] == ("--size", [3, 5])
    assert seen["part.enabled"] == ("--part", True)
    assert seen["loud"]
    assert seen["settings"] == ExampleSettings(sizes=(3, 5), part=PartSettings(enabled=True))
    assert help_text(ExampleSettings, Shown("part.enabled")) == "The part. Whether it is there."
    assert help_text(ExampleSettings, Shown("sizes")) == "Sizes in [bold]pixels[/bold]. Repeatable."


def test_a_parameter_that_is_a_dataclass_stands_for_its_fields():
    seen: list[RunOptions] = []

    @command("example", ExampleSettings, {}, reads_files=False)
    def example(_: Console, given: Any, options: RunOptions) -> None:
        seen.append(options)

    alone = typer.Typer(add_completion=False)
    alone.command()(example)
    run = typer.main.get_command(alone)
    run([], standalone_mode=False)
    run(["--output", "a", "--overwrite", "--logger", "b", "--logger", "c"], standalone_mode=False)
    assert (seen[0].output, seen[0].overwrite, seen[0].logger or None) == (None, False, None)
    assert seen[1] == RunOptions(output=Path("a"), overwrite=True, logger=["b", "c"])
