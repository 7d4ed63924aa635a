"""`gapssg push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.cli.command import Given, command
from gapssg.cli.console import Console
from gapssg.models.hub import check_repository
from gapssg.settings.base import Settings


@command("push", Settings, {}, reads_files=False)
def push(
    console: Console,
    given: Given[Settings],
    folder: Annotated[
        Path,
        options.directory_argument(
            "Directory of a finished run with its model card, or a folder with a model file and README.md."
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; created if it is missing.")],
    public: Annotated[
        bool, typer.Option("--public", help="Create the repository for everyone to see, instead of a private one.")
    ] = False,
) -> None:
    """Upload a model, its card and its description to the Hugging Face Hub.

    Examples:
        gapssg push run my-name/small-digits
        gapssg push run my-name/small-digits --public
    """
    check_repository(repository)

    from gapssg.report.push import push_model

    with console.live() as display:
        result = push_model(folder, repository, public=public, display=display)
    console.say(f"pushed {', '.join(result.files)} to {result.repository}")
    console.say(f"use it as a model file: {result.reference}")
    console.result(result)
