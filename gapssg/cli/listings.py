"""`gapssg models`, `gapssg methods` and `gapssg recipes`."""

from __future__ import annotations

from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.files import check_current_folder


def list_models(
    context: typer.Context,
    classes: Annotated[int, typer.Option("--classes", help="Number of classes.", min=2, max=100_000)] = 10,
    channels: Annotated[int, typer.Option("--channels", help="Channels of an image.", min=1, max=64)] = 3,
    image_size: Annotated[int, typer.Option("--image-size", help="Pixels of its height and width.")] = 32,
    json: options.Json = False,
) -> None:
    """List the built-in models with their parameters and multiply-adds.

    Examples:
        gapssg models --classes 100 --image-size 64
    """
    check_current_folder()  # as in `command`
    from gapssg.models import MODELS, create_model
    from gapssg.models.profile import profile_model

    console = options.console_of(context)
    shape = (channels, image_size, image_size)
    profiles = {
        name: profile_model(create_model(name, num_classes=classes, input_shape=shape), shape) for name in MODELS
    }
    console.table(
        f"Models with {classes} classes on {channels}x{image_size}x{image_size} images",
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
