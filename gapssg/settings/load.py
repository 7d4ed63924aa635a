"""Settings from defaults, recipe, file, overrides and options, in ascending order of precedence."""

from __future__ import annotations

import csv
import difflib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gapssg.errors import InputError, did_you_mean, shortened
from gapssg.files import read_bounded
from gapssg.settings.base import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

Key = tuple[str, ...]

SETTINGS = "settings.toml"
"""The settings of a run, in its directory."""

_LARGEST_FILE = 128 * 1024  # bytes; settings take a twentieth of it
# The parser's memory grows with the square of the parts of a dotted key.
_MOST_DOTS_IN_A_LINE = 100
_MOST_ERRORS = 20


@dataclass(frozen=True)
class _Layer:
    """Values by key, and their source for messages."""

    source: str
    values: Mapping[Key, Any]


@dataclass(frozen=True)
class _Level:
    """Layers, in ascending order of precedence, that are about the same member of each union (the same method).

    If it `follows`, it is about the member that is finally chosen, whatever lower levels name.
    """

    layers: Sequence[_Layer]
    follows: bool = False


@cache
def _recipes() -> Mapping[str, str]:
    """Return the text of each recipe by its name; the rows of the published table share a template."""
    folder = resources.files("gapssg") / "recipes"
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir() if file.is_file()}
    texts = {name.removesuffix(".toml"): text for name, text in files.items() if name.endswith(".toml")}
    pair = Template(files["pair.toml.template"])
    texts |= {row: pair.substitute(figures) for row, figures in published_rows().items()}
    return dict(sorted(texts.items()))


@cache
def published_rows() -> Mapping[str, Mapping[str, str]]:
    """Return the rows of the published table, each by the name of its recipe, as texts by column."""
    text = (resources.files("gapssg") / "recipes" / "published.csv").read_text(encoding="utf-8")
    return {"{dataset}-{teacher}-{student}".format(**row): row for row in csv.DictReader(text.splitlines())}


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that are shipped with the package, sorted."""
    return tuple(_recipes())


def recipe_text(name: str) -> str:
    """Return a recipe's TOML text; raise `InputError` if there is no such recipe."""
    if name not in _recipes():
        raise InputError(f"unknown recipe {name!r}{did_you_mean(name, recipe_names())}; `gapssg recipes` lists all")
    return _recipes()[name]


def load_settings(
    settings_class: type[AnySettings],
    *,
    section: str,
    recipe: str | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, tuple[str, object]] | None = None,
    beneath: Callable[[Mapping[str, object]], Mapping[str, object]] | None = None,
) -> AnySettings:
    """Resolve the settings of one command.

    A recipe may have tables for one method: `[distill.methods.NAME]` overrides `[distill]` if `method.name` is NAME.
    What a recipe, a file or the command line sets for a method applies only if that method is chosen.

    Args:
        settings_class: The class of the settings.
        section: The table of a recipe for this command, such as `distill`.
        recipe: The name of a recipe.
        config: A TOML file with the keys of `settings_class` at the top level, as `--dry-run` prints it.
        overrides: Texts `key.path=value`; the value is parsed as TOML, or else taken as a string.
        options: Dotted key to (the option's name, its value); a value of None is not given.
        beneath: Returns values by dotted key that override the defaults and are overridden by the recipe, such as a
            method's published settings; its argument is all values given from the recipe on, and the chosen names.

    Raises:
        InputError: One line for each wrong field: its source, its value, what is allowed, and the nearest valid key.
    """
    recipe_layers, layers_by_choice = ([], {}) if recipe is None else _recipe_layers(recipe, section, settings_class)
    config_layers = [] if config is None else [_Layer(str(config), dict(_flatten(read_toml(config))))]
    command_line = [_Layer("--set", dict(_parse_override(text) for text in overrides))]
    for key, (option, value) in (options or {}).items():
        if value is not None:
            command_line.append(_Layer(option, {tuple(key.split(".")): value}))
    levels = [_Level(recipe_layers), _Level(config_layers), _Level(command_line)]
    chosen = _chosen(levels, settings_class)
    for_choice = [layer for key, layer in layers_by_choice.items() if chosen.get(key[:-1]) == key[-1]]
    levels.insert(1, _Level(for_choice, follows=True))
    if beneath is not None:
        given = {".".join(key): value for key, value in _merge(levels, settings_class)[0].items()}
        given |= {f"{'.'.join(union)}.name": name for union, name in chosen.items()}
        published = {tuple(key.split(".")): value for key, value in beneath(given).items()}
        levels.insert(0, _Level([_Layer("published settings", published)], follows=True))
    values, sources = _merge(levels, settings_class)
    for place, given_value in values.items():
        _check_text(place, given_value, sources[place])
    option_names = {tuple(key.split(".")): option for key, (option, _) in (options or {}).items()}
    try:
        return settings_class.model_validate(_nest(values, sources))
    except ValidationError as error:
        details = _own_errors(error.errors())
        lines = [_describe(detail, settings_class, sources, option_names) for detail in details[:_MOST_ERRORS]]
        if len(details) > _MOST_ERRORS:
            lines.append(f"and {len(details) - _MOST_ERRORS} more")
        raise InputError(*dict.fromkeys(lines)) from error


def read_toml(path: Path) -> dict[str, object]:
    """Read an untrusted TOML file; raise `InputError` if it is missing, invalid, or larger than any settings."""
    content = read_bounded(path, _LARGEST_FILE)
    if any(line.count(b".") > _MOST_DOTS_IN_A_LINE for line in content.splitlines()):
        raise InputError(f"{path} has a line with more than {_MOST_DOTS_IN_A_LINE} dots, which no setting has")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {shortened(error, 300)}") from error


def _parse_override(text: str) -> tuple[Key, Any]:
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise InputError(f"--set {text!r} is not of the form key.path=value")
    try:
        return path, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return path, value.strip()


def flatten(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested tables as one table with dotted keys."""
    return {".".join(key): value for key, value in _flatten(values)}


def texts_by_key(settings: Settings) -> dict[str, str]:
    """Return the values of settings as text by dotted key, for comparisons in messages."""
    return {key: repr(value) for key, value in flatten(settings.to_dict()).items()}


def _check_text(key: Key, value: Any, source: str) -> None:
    """Refuse bytes from the command line that are not UTF-8: they cannot be written to `settings.toml`."""
    try:
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{'.'.join(key)} (from {source}) is not in UTF-8; rename it, or write it in UTF-8") from error


def _flatten(values: Mapping[str, object], prefix: Key = ()) -> Iterator[tuple[Key, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def _recipe_layers(
    recipe: str, section: str, settings_class: type[BaseModel]
) -> tuple[list[_Layer], dict[Key, _Layer]]:
    """Return the layers of a recipe: for a section, and by union and name for one member of a union."""
    tables = tomllib.loads(recipe_text(recipe))
    if section not in tables:
        commands = " and ".join(name for name in tables if isinstance(tables[name], dict))
        raise InputError(f"recipe {recipe!r} is for {commands}, not for {section}")
    table = dict(tables[section])
    by_choice = {}
    for union, _ in _unions(settings_class):
        for name, values in table.pop(f"{union[-1]}s", {}).items():
            by_choice[*union, name] = _Layer(f"recipe {recipe}, {union[-1]} {name}", dict(_flatten(values)))
    return [_Layer(f"recipe {recipe}", dict(_flatten(table)))], by_choice


def _merge(levels: Sequence[_Level], settings_class: type[BaseModel]) -> tuple[dict[Key, Any], dict[Key, str]]:
    """Return values and their sources; each layer overrides those before it.

    Values of a level for a member of a union (a method) that is not finally chosen are ignored. A level that names no
    member is about the one that lower levels name.
    """
    chosen = _chosen(levels, settings_class)
    named = dict(_unions(settings_class))
    values: dict[Key, Any] = {}
    sources: dict[Key, str] = {}
    for level in levels:
        if not level.follows:
            named |= _named(level, named)
        for layer in level.layers:
            for key, value in layer.values.items():
                if level.follows or key[:1] not in chosen or named[key[:1]] == chosen[key[:1]]:
                    values[key] = value
                    sources[key] = layer.source
    return values, sources


def _chosen(levels: Sequence[_Level], settings_class: type[BaseModel]) -> dict[Key, Any]:
    """Return the finally chosen member of each union by name."""
    chosen = dict(_unions(settings_class))
    for level in levels:
        chosen |= {} if level.follows else _named(level, chosen)
    return chosen


def _named(level: _Level, unions: Mapping[Key, Any]) -> dict[Key, Any]:
    return {
        union: layer.values[*union, "name"]
        for layer in level.layers
        for union in unions
        if (*union, "name") in layer.values
    }


def _unions(settings_class: type[BaseModel]) -> Iterator[tuple[Key, Any]]:
    """Yield the fields that are unions of settings classes, with the name of the default member."""
    for name, field in settings_class.model_fields.items():
        if field.discriminator is not None:
            yield (name,), getattr(field.default, str(field.discriminator), None)


def _nest(values: Mapping[Key, Any], sources: Mapping[Key, str]) -> dict[str, Any]:
    def place(key: Key) -> str:
        return f"{shortened('.'.join(key))} (from {sources[key]})"

    nested: dict[str, Any] = {}
    for key, value in values.items():
        table = nested
        for depth, part in enumerate(key[:-1], 1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                parent = shortened(".".join(key[:depth]))
                raise InputError(f"{place(key)}: {parent} is a value, so it cannot have keys")
        if isinstance(table.get(key[-1]), dict):
            raise InputError(f"{place(key)}: this is a table; set one of its keys")
        table[key[-1]] = value
    return nested


def _own_errors(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Drop errors of lists that are too short only because pydantic does not count their wrong items."""
    places = {detail["loc"][:-1] for detail in details}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in places]


def _describe(
    detail: ErrorDetails, settings_class: type[BaseModel], sources: Mapping[Key, str], options: Mapping[Key, str]
) -> str:
    valid = set(_valid_keys(settings_class))
    kind, context = detail["type"], detail.get("ctx", {})
    location = tuple(str(part) for part in detail["loc"])
    if kind == "coercion":
        location = (*location, context["field"])
    key = _without_union_tags(location, valid, sources)
    if key[:-1] in valid and key[-1].isdigit():  # an item of a list
        key = key[:-1]
    name = shortened(".".join(key))
    source = next((f" (from {sources[k]})" for k in sources if k[: len(key)] == key), "")
    if kind == "extra_forbidden":
        if owners := _owners(settings_class, key):
            return f"{name}{source} is not a setting of {shortened(location[1])}, but of {', '.join(owners)}"
        return f"unknown key {name}{source}{_hint(key, valid)}"
    if kind in ("missing", "union_tag_not_found"):
        if key not in options and (*key, "name") in options:
            key = (*key, "name")
        name, option = ".".join(key), options.get(key)
        return f"{name} is missing: add {f'{option}, or ' if option else ''}--set {name}=... or a --config file with it"
    if kind == "union_tag_invalid":
        allowed = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        tag, discriminator = str(context["tag"]), str(context["discriminator"]).strip("'")
        given = f"{name}.{discriminator} = {shortened(repr(tag))}{source}"
        return f"{given}: must be one of {' or '.join(allowed)}{did_you_mean(tag, allowed)}"
    given = f"{name} = {shortened(repr(context['given'] if kind == 'coercion' else detail['input']))}{source}"
    if kind == "value_error":
        reason = str(detail["msg"]).removeprefix("Value error, ")
        return f"{given}: {reason}" if name else reason  # without a name, the combination of settings is wrong
    message = str(detail["msg"]).replace("Input should be", "must be")
    if kind == "coercion":
        message = message.removeprefix(f"{context['field']} ")
    if kind == "literal_error" and isinstance(detail["input"], str):
        allowed = [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        message += did_you_mean(detail["input"], allowed)
    if kind == "string_pattern_mismatch":
        message = "must be auto, cpu, cuda or cuda:N" if key[-1] == "device" else f"must match {context['pattern']}"
    number = detail["input"]
    is_share = 0 < context.get("le", context.get("lt", 0)) <= 1
    if is_share and isinstance(number, int | float) and 2 <= number <= 100:
        message += f"; {number:.10g} % is {number / 100:.10g}"
    return f"{given}: {message}"


def _hint(key: Key, valid: set[Key]) -> str:
    """Return the valid key that is nearest to an unknown one, or else all valid keys beside it."""
    siblings = {k[-1]: ".".join(k) for k in valid if k[:-1] == key[:-1]}
    elsewhere = {k[-1]: ".".join(k) for k in sorted(valid, reverse=True)}
    for names in (siblings, elsewhere):
        if near := difflib.get_close_matches(shortened(key[-1]), names, n=1, cutoff=0.7):
            return f" (did you mean {names[near[0]]}?)"
    return f"; valid here: {', '.join(sorted(siblings))}"


def _owners(settings_class: type[BaseModel], key: Key) -> list[str]:
    """Return the members of a union that have a key of which another member has none."""
    field = settings_class.model_fields.get(key[0]) if len(key) == 2 else None
    if field is None or field.discriminator is None:
        return []
    members = settings_classes_in(field.annotation)
    return [member.model_fields["name"].default for member in members if key[1] in member.model_fields]


def _without_union_tags(location: Key, valid: set[Key], sources: Mapping[Key, str]) -> Key:
    """Drop the tags that pydantic adds to the location of a field in a discriminated union."""
    known = valid | set(sources)
    known |= {key[:depth] for key in known for depth in range(1, len(key))}
    key: Key = ()
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if (*key, part) in known or is_last:
            key = (*key, part)
    return key


def _valid_keys(settings_class: type[BaseModel], prefix: Key = ()) -> Iterator[Key]:
    for name, field in settings_class.model_fields.items():
        key = (*prefix, name)
        yield key
        for inner in settings_classes_in(field.annotation):
            yield from _valid_keys(inner, key)


def settings_classes_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings classes of a field's values."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, UnionType, Annotated):
        for argument in get_args(annotation):
            yield from settings_classes_in(argument)
