"""`gapssg audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from gapssg.audit.settings import AuditSettings, check_outputs
from gapssg.cli import options, render
from gapssg.cli.command import DEVICE, MODEL_FACTORIES, Given, Shown, command, data_fields
from gapssg.cli.console import Console
from gapssg.cli.options import Panel

_MEMBERS = "members."


@command(
    "audit",
    AuditSettings,
    {
        Panel.MAIN: [
            Shown("model", "RUN|FILE", is_argument=True),
            *("members.name", "non_members.name", "teacher"),
            Shown("shadow.models", "--shadow-models"),
        ],
        Panel.MEASURING: [Shown("shadow.epochs", "--shadow-epochs"), "pool_images"],
        Panel.DATA: [*data_fields("members"), MODEL_FACTORIES],
        Panel.RUNNING: ["batch_size", "seed", *DEVICE],
    },
)
def audit(
    console: Console,
    given: Given[AuditSettings],
    output: Annotated[
        Path | None, options.path_option("--output", "A page about the result; its name ends in .html.")
    ] = None,
    sheet: Annotated[
        Path | None, options.path_option("--sheet", "A picture of the closest pairs; its name ends in .png.")
    ] = None,
    overwrite: options.OverwriteFile = False,
) -> None:
    """Measure whether synthetic images and models reveal the training images, before a release.

    Examples:
        gapssg audit run --members digits --non-members digits --output audit.html
        gapssg audit student.safetensors --members folder:photos --non-members folder:photos --shadow-models 16
    """
    settings = given.load(also=_for_non_members(given))
    options.check_inputs(settings)
    check_outputs(output, sheet, overwrite)

    from gapssg.audit.audit import audit_model

    with console.live() as display:
        result = audit_model(settings, output, sheet=sheet, overwrite=overwrite, display=display)
    render.print_audit(console, result)
    console.result(result)


def _for_non_members(given: Given[AuditSettings]) -> dict[str, tuple[str, object]]:
    """Return the options that control how members are read, for the non-members."""
    read = {key: option for key, option in given.options.items() if key.startswith(_MEMBERS)}
    return {f"non_{key}": option for key, option in read.items() if key != f"{_MEMBERS}name"}
