"""`gapssg models`, `gapssg methods` and `gapssg recipes`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from gapssg.cli import options, render
from gapssg.cli.command import Given
from gapssg.cli.console import Console
from gapssg.errors import InputError, shortened
from gapssg.evaluation.settings import ProposeSettings
from gapssg.files import check_current_folder


def list_models(
    context: typer.Context,
    classes: Annotated[
        int | None, typer.Option("--classes", help="Number of classes; by default 10.", min=2, max=100_000)
    ] = None,
    channels: Annotated[
        int | None, typer.Option("--channels", help="Channels of an image; by default 3.", min=1, max=64)
    ] = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", help="Pixels of its height and width; by default 32.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option("--for", metavar="FILE", help="Propose students that are smaller than this teacher instead."),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option("--max-latency", metavar="TIME", help="With --for: of a forward pass of one image, such as 5ms."),
    ] = None,
    factories: Annotated[
        list[str] | None,
        typer.Option("--model-factory", metavar="MODULE:FACTORY", help="With --for: trust this factory. Repeatable."),
    ] = None,
    overrides: options.Set = None,
    json: options.Json = False,
) -> None:
    """List the built-in models with their parameters and multiply-adds, or propose students for a teacher.

    Examples:
        gapssg models --classes 100 --image-size 64
        gapssg models --for teacher.safetensors --max-latency 5ms
    """
    check_current_folder()  # as in `command`
    if teacher is not None:
        if (classes, channels, image_size) != (None, None, None):
            raise InputError("a teacher has its own classes and images; with --for leave their options out")
        given = {
            "teacher": ("--for", teacher),
            "max_latency_ms": ("--max-latency", None if max_latency is None else _milliseconds(max_latency)),
            "model_factories": ("--model-factory", factories),
        }
        _propose(options.console_of(context), Given("models", ProposeSettings, given, overrides=overrides or ()))
        return
    if max_latency is not None or factories or overrides:
        raise InputError("--max-latency, --model-factory and --set are for students of a teacher; add --for FILE")
    side = 32 if image_size is None else image_size
    _list_built_in(options.console_of(context), classes or 10, (channels or 3, side, side))


def _list_built_in(console: Console, classes: int, shape: tuple[int, int, int]) -> None:
    from gapssg.models import MODELS, create_model
    from gapssg.models.profile import profile_model

    profiles = {
        name: profile_model(create_model(name, num_classes=classes, input_shape=shape), shape) for name in MODELS
    }
    console.table(
        f"Models with {classes} classes on {'x'.join(map(str, shape))} images",
        ["model", "parameters", "MACs", "batch-norm layers", "description"],
        [
            [
                *(name, f"{profile.parameters:,}", f"{profile.macs / 1e6:.1f} M", str(profile.batch_norm_layers)),
                MODELS[name].description,
            ]
            for name, profile in profiles.items()
        ],
    )
    console.note("others: torchvision:NAME, timm:NAME, package.module:factory; `gapssg inspect` shows one")
    models = [
        {"name": name, "description": MODELS[name].description, **dict(profile)} for name, profile in profiles.items()
    ]
    console.result({"command": "models", "input_shape": list(shape), "num_classes": classes, "models": models})


def _milliseconds(text: str) -> float:
    """Parse a duration with its unit; raise `InputError` if it is not a number with ms or s."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s)", text.strip(), re.ASCII)
    if match is None:
        raise InputError(f"--max-latency {shortened(repr(text))} must be a number with ms or s, such as 5ms")
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def _propose(console: Console, given: Given[ProposeSettings]) -> None:
    settings = given.load()
    options.check_inputs(settings)

    from gapssg.evaluation.students import propose_students

    with console.live() as display:
        result = propose_students(settings, display=display)
    render.print_proposals(console, result)
    console.result(result)


def list_methods(context: typer.Context, json: options.Json = False) -> None:
    """List the data-free methods.

    Examples:
        gapssg methods
        gapssg methods --json
    """
    from gapssg.synthesis import method_classes

    console = options.console_of(context)
    methods = [
        {
            "name": method.model_fields["name"].default,
            "summary": method.summary,
            "paper": method.paper,
            "year": method.year,
            "needs": list(method.needs()),
            "needs_batch_norm": method.needs_batch_norm,
            "samples_from": "pool" if method.has_pool else "generator",
            "is_own": method.is_own,
            "published": dict(method.published),
            "published_for_teacher": {name: dict(values) for name, values in method.published_for_teacher.items()},
            "departs": list(method.departs),
            "departs_for_teacher": {name: list(phrases) for name, phrases in method.departs_for_teacher.items()},
            "defaults": method().to_dict(),
        }
        for method in method_classes()
    ]
    console.table(
        "Methods",
        ["method", "idea", "paper", "needs of the teacher", "samples from", "published run"],
        [
            [
                *(m["name"], m["summary"], m["paper"], " and ".join(m["needs"]) or "nothing", m["samples_from"]),
                "its own defaults" if m["is_own"] else _published_run(m["published"]),
            ]
            for m in methods
        ],
    )
    for m in methods:
        if m["departs"] and not m["is_own"]:
            console.note(f"{m['name']} departs from the published method: {'; '.join(m['departs'])}")
    console.note("all settings of the methods, and those published for each teacher: `--json`")
    console.result({"command": "methods", "methods": methods})


def _published_run(settings: dict[str, float]) -> str:
    """Summarise the published settings of the run around a method."""
    if not settings:
        return "not known"
    epochs, batch, rate = (settings[key] for key in ("epochs", "batch_size", "optimizer.learning_rate"))
    return f"{epochs:g} epochs, batch {batch:g}, rate {rate:g}"


def list_recipes(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Print this recipe as TOML.")] = None,
    json: options.Json = False,
) -> None:
    """List the recipes, or print one.

    Examples:
        gapssg recipes
        gapssg recipes digits
    """
    import tomllib

    from gapssg.settings.load import recipe_names, recipe_text

    console = options.console_of(context)
    if name is not None:
        console.toml(tomllib.loads(recipe_text(name)), recipe_text(name))
        return
    recipes = {each: tomllib.loads(recipe_text(each)) for each in recipe_names()}
    console.table(
        "Recipes",
        ["recipe", "for", "summary"],
        [
            [each, ", ".join(key for key, value in tables.items() if isinstance(value, dict)), tables["summary"]]
            for each, tables in recipes.items()
        ],
    )
    as_list = [{"name": each, "settings": tables} for each, tables in recipes.items()]
    console.result({"command": "recipes", "recipes": as_list})
