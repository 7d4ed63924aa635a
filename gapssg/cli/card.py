"""`gapssg card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gapssg.cli import options
from gapssg.cli.command import MODEL_FACTORIES, Given, command
from gapssg.cli.console import Console
from gapssg.cli.options import Panel
from gapssg.models.model_path import final_weights
from gapssg.models.settings import WithFactories
from gapssg.runs.failures import known_failures


@command("card", WithFactories, {Panel.MAIN: [MODEL_FACTORIES]}, reads_files=False)
def card(
    console: Console,
    given: Given[WithFactories],
    run: Annotated[Path, options.directory_argument("Run directory of distill or pretrain-teacher, finished.")],
    licence: Annotated[
        str | None, typer.Option("--licence", help="Of the model, as the Hub names it, such as apache-2.0.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a README.md that is already there, edited or not.")
    ] = False,
) -> None:
    """Write a model card, README.md, beside the weights of a run.

    Examples:
        gapssg card run --licence apache-2.0
    """
    from gapssg.report.card import write_card

    factories = given.load().model_factories
    file = write_card(run, licence=licence, overwrite=overwrite, factories=factories)
    console.say(f"written: {file}")
    console.failures("the model", known_failures(final_weights(file.parent)) or ())
    console.result({"command": "card", "output": str(file)})
