"""Options from settings: name, type, help, range and choices of an option come from its field."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Concatenate, Generic, Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from rich.markup import escape

from gapssg.cli import options
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.data import data_names
from gapssg.data.settings import DataSettings
from gapssg.files import check_current_folder
from gapssg.models import model_names
from gapssg.models.settings import ModelSettings
from gapssg.settings.base import Settings, descriptions
from gapssg.settings.load import AnySettings, load_settings, settings_classes_in

Parameters = ParamSpec("Parameters")

# `student.name` is shown as --student, and `int8.enabled` as --int8.
_NAMESAKES = ("name", "enabled")
_TYPES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_LONGEST_METAVAR = 30
_Path = list[tuple[type[Settings], str, FieldInfo]]


@dataclass(frozen=True)
class Shown:
    """A settings field as an option; everything but `key` overrides the field."""

    key: str
    """The dotted key of the field."""
    option: str | None = None
    """The name of the option, with `/` before the one that turns it off."""
    metavar: str | None = None
    """The placeholder of the value in the help text."""
    is_argument: bool = False
    """Whether it is an argument, of the name `option`, instead of an option."""
    is_repeatable: bool = False
    """Whether `parse` is given the texts of all occurrences."""
    parse: Callable[[str, Any], Any] | None = None
    """Returns the field's value from the option's name and text."""
    default: str | None = None
    """The default of the command, in words, if the field has none."""


Fields = Mapping[Panel, Sequence[str | Shown]]
"""The fields that a command shows, by the panel of its help text; a key alone is `Shown(key)`."""

DEVICE = ("runtime.device", "runtime.precision", "runtime.compile", "runtime.deterministic")
MODEL_FACTORIES = Shown("model_factories", "--model-factory", "MODULE:FACTORY")

_FILE_OPTIONS = {"config": options.Config, "overrides": options.Set, "dry_run": options.DryRun}
_DISPLAY_OPTIONS = {"json": options.Json, "quiet": options.Quiet, "debug": options.Debug}


def data_fields(key: str) -> tuple[Shown, ...]:
    """Return the fields that control how data is read."""
    size = Shown(f"{key}.image_size", metavar="N|H,W", parse=options.image_size)
    return Shown(f"{key}.root", "--data-root"), Shown(f"{key}.download", "--download"), size


@dataclass(frozen=True)
class Given(Generic[AnySettings]):
    """What the command line gives for the settings of a command."""

    section: str
    """The command, and its table in a recipe."""
    settings_class: type[AnySettings]
    """The class of the settings."""
    options: Mapping[str, tuple[str, object]]
    """Dotted key to (the option's name, its value); the value is None where it is not given."""
    config: Path | None = None
    """The file that `--config` names."""
    overrides: Sequence[str] = ()
    """What `--set` gives."""
    dry_run: bool = False
    """Whether the settings are only printed."""
    console: Console | None = None
    """Where they are printed."""

    def load(
        self,
        *,
        recipe: str | None = None,
        also: Mapping[str, tuple[str, object]] | None = None,
        beneath: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None,
    ) -> AnySettings:
        """Return the settings, or with `dry_run` print them and exit.

        The arguments are those of `load_settings`, `also` being further options. Raises `InputError` as
        `load_settings`.
        """
        settings = load_settings(
            self.settings_class,
            section=self.section,
            recipe=recipe,
            config=self.config,
            overrides=self.overrides,
            options={**self.options, **(also or {})},
            beneath=beneath,
        )
        if self.dry_run and self.console is not None:
            self.console.settings(settings)
            raise typer.Exit
        return settings

    def texts(self) -> set[str]:
        """Return every text that is given, such as the names of models and factories."""
        values = [value if isinstance(value, list) else [value] for _, value in self.options.values()]
        return {text for texts in values for text in texts if isinstance(text, str)}


def command(
    section: str, settings_class: type[AnySettings], fields: Fields, *, reads_files: bool = True
) -> Callable[[Callable[Concatenate[Console, Given[AnySettings], Parameters], None]], Callable[..., None]]:
    """Make a function a command with an option for each of these fields.

    The function is given the console, what was given for the fields, and its other parameters, which Typer reads as
    usual; they follow the fields in the help text. A parameter that is a dataclass stands for its fields, which are off
    or None unless given. Every command also takes --json, --quiet and --debug, and, if it `reads_files`, --config,
    --set and --dry-run.
    """
    shown = [
        (each if isinstance(each, Shown) else Shown(each), panel) for panel, keys in fields.items() for each in keys
    ]
    files = _FILE_OPTIONS if reads_files else {}

    def decorate(
        function: Callable[Concatenate[Console, Given[AnySettings], Parameters], None],
    ) -> Callable[..., None]:
        def run(context: typer.Context, **values: Any) -> None:
            check_current_folder()  # without it, oneMKL ends the program when torch is imported
            given = {each.key: (option_name(each), _value(each, values.pop(_identifier(each)))) for each, _ in shown}
            from_files = {name: values.pop(name) or getattr(Given, name) for name in files}
            for name in _DISPLAY_OPTIONS:  # their callbacks have told the console
                del values[name]
            for name, group in groups.items():
                values[name] = group(**{each.name: values.pop(each.name) for each in fields_of(group)})
            console = options.console_of(context)
            function(console, Given(section, settings_class, given, **from_files, console=console), **values)  # type: ignore[call-arg]

        _, _, *others = inspect.signature(function, eval_str=True).parameters.values()
        groups: dict[str, Any] = {each.name: each.annotation for each in others if is_dataclass(each.annotation)}
        grouped = [each for group in groups.values() for each in get_type_hints(group, include_extras=True).items()]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
                *(_parameter(settings_class, each, panel) for each, panel in shown),
                *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others if each.name not in groups),
                *(_declared(*each) for each in (*grouped, *files.items(), *_DISPLAY_OPTIONS.items())),
            ]
        )
        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__annotations__ = {}
        run.shown, run.settings_class = shown, settings_class  # type: ignore[attr-defined]
        return run

    return decorate


def _declared(name: str, annotation: Any) -> inspect.Parameter:
    default = False if get_args(annotation)[0] is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def option_name(shown: Shown) -> str:
    """Return the name of an option in messages: of a pair, the one that turns it on."""
    return _declarations(shown, is_flag=False).split("/")[0]


def help_text(settings_class: type[Settings], shown: Shown) -> str:
    """Return the help text of an option in Rich's markup: description, choices and default of its field."""
    path = _path(settings_class, shown.key)
    spoken = path[-2:] if shown.key.split(".")[-1] in _NAMESAKES else path[-1:]
    if path[0][2].discriminator == path[-1][1]:  # the members describe only their names
        names = ", ".join(f"`{name}`" for name in choices_of(settings_class, shown))
        sentences = [descriptions(settings_class)[path[0][1]], f"One of {names}."]
    else:
        sentences = [descriptions(owner).get(name, "") for owner, name, _ in spoken]
    text = re.sub(r"`([^`]*)`", r"[bold]\1[/bold]", escape(" ".join(" ".join(sentences).split())))
    if _is_repeatable(shown, path[-1][2]) and not shown.is_argument:
        text += " Repeatable."
    default = _default(path) if shown.default is None else shown.default
    if isinstance(default, bool):
        default = "on" if default else None
    if isinstance(default, int | float | str):
        text += f" [dim]{escape(f'[default: {default}]')}[/dim]"
    if shown.default is None and all(field.is_required() for _, _, field in path):
        text += f" [red]{escape('[required]')}[/red]"
    return text


def range_of(settings_class: type[Settings], shown: Shown) -> str:
    """Return the range of a number, such as `1..100` or `>0, <=1`; empty if it has none."""
    *_, (_, _, field) = _path(settings_class, shown.key)
    kind, constraints = _kind_of(field)
    bounds = {
        name: getattr(each, name)
        for each in constraints
        for name in ("ge", "gt", "le", "lt")
        if getattr(each, name, None) is not None
    }
    if kind is int:  # open ends of integers are written as closed ones
        bounds |= {"ge": bounds.pop("gt") + 1} if "gt" in bounds else {}
        bounds |= {"le": bounds.pop("lt") - 1} if "lt" in bounds else {}
    if set(bounds) == {"ge", "le"}:
        return f"{bounds['ge']}..{bounds['le']}"
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(f"{signs[name]}{bounds[name]}" for name in signs if name in bounds)


def choices_of(settings_class: type[Settings], shown: Shown) -> tuple[str, ...]:
    """Return the completions of an option; of models and data, those with a name."""
    path = _path(settings_class, shown.key)
    owner, name, _ = path[-1]
    if name == "name" and issubclass(owner, ModelSettings):
        return model_names()
    if name == "name" and issubclass(owner, DataSettings):
        return data_names()
    return _all_values(path)


def _parameter(settings_class: type[Settings], shown: Shown, panel: Panel) -> inspect.Parameter:
    *_, (_, _, field) = _path(settings_class, shown.key)
    kind, _ = _kind_of(field)
    is_list = _is_repeatable(shown, field)
    if shown.parse is not None or kind not in (*_TYPES, bool):
        kind = str
    given = str if kind is Path else kind  # the field converts it to a path
    annotation: Any = list[given] | None if is_list else given | None  # type: ignore[valid-type]
    choices = choices_of(settings_class, shown)
    details: dict[str, Any] = {
        "help": help_text(settings_class, shown),
        "metavar": shown.metavar or _metavar(settings_class, shown, kind),
        "rich_help_panel": panel,
        "show_default": False,
    }
    if choices:
        details["autocompletion"] = lambda incomplete: [each for each in choices if each.startswith(incomplete)]
    if shown.is_argument:
        info: Any = typer.Argument(**{**details, "metavar": shown.option, "rich_help_panel": None})
    else:
        info = typer.Option(_declarations(shown, is_flag=kind is bool), **details)
    return inspect.Parameter(
        _identifier(shown), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, info]
    )


def _is_repeatable(shown: Shown, field: FieldInfo) -> bool:
    return shown.is_repeatable or (shown.parse is None and get_origin(_without_none(field.annotation)) is tuple)


def _metavar(settings_class: type[Settings], shown: Shown, kind: type) -> str | None:
    if kind is bool:
        return None
    choices = "|".join(_all_values(_path(settings_class, shown.key)))
    if choices and len(choices) <= _LONGEST_METAVAR:
        return choices
    return " ".join(filter(None, (_TYPES[kind], range_of(settings_class, shown))))


def _declarations(shown: Shown, is_flag: bool) -> str:
    if shown.option is not None:
        return shown.option
    parts = shown.key.split(".")
    name = (parts[-2] if parts[-1] in _NAMESAKES else parts[-1]).replace("_", "-")
    return f"--{name}/--no-{name}" if is_flag else f"--{name}"


def _identifier(shown: Shown) -> str:
    return shown.key.replace(".", "__")


def _value(shown: Shown, given: Any) -> Any:
    if given is None or given == []:
        return None
    if shown.parse is not None:
        return shown.parse(option_name(shown), given)
    return given


def _all_values(path: _Path) -> tuple[str, ...]:
    """Return the values of a field that has finitely many: the names in a union, or literals."""
    _, name, field = path[-1]
    if path[0][2].discriminator == name:
        return tuple(member.model_fields[name].default for member in settings_classes_in(path[0][2].annotation))
    return tuple(str(value) for value in _literals(field.annotation))


def _path(settings_class: type[Settings], key: str) -> _Path:
    """Return class, name and field of each part of a dotted key; of a union, those of its first member."""
    path: _Path = []
    owner = settings_class
    for name in key.split("."):
        field = owner.model_fields[name]
        path.append((owner, name, field))
        owner = next((each for each in settings_classes_in(field.annotation) if issubclass(each, Settings)), owner)
    return path


def _default(path: _Path) -> Any:
    default: Any = None
    for _, name, field in path:
        default = getattr(default, name) if isinstance(default, Settings) else field.default
    return None if default is PydanticUndefined else default


def _kind_of(field: FieldInfo) -> tuple[Any, Sequence[Any]]:
    """Return the type of a field's value, or of its items if it is a tuple, and its constraints."""
    annotation, constraints = _without_none(field.annotation), list(field.metadata)
    if get_origin(annotation) is tuple:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Annotated:
        annotation, *inner = get_args(annotation)
        constraints += [each for info in inner for each in getattr(info, "metadata", ())]
    if get_origin(annotation) in (Union, UnionType):  # auto or a boolean
        annotation = bool if bool in get_args(annotation) else str
    if literals := _literals(annotation):
        annotation = type(literals[0])
    return annotation, constraints


def _without_none(annotation: Any) -> Any:
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_optional = get_origin(annotation) in (Union, UnionType) and len(kinds) == 1
    annotation = kinds[0] if is_optional else annotation
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _literals(annotation: Any) -> tuple[Any, ...]:
    annotation = _without_none(annotation)
    return get_args(annotation) if get_origin(annotation) is Literal else ()
