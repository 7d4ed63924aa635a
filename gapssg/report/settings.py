"""The settings of `gapssg report`. Imports no torch, so that their errors are instant."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gapssg.data.settings import DataSettings
from gapssg.errors import InputError
from gapssg.files import check_output_file
from gapssg.models.settings import WithFactories
from gapssg.settings.base import UserPath
from gapssg.settings.parts import RuntimeSettings


class ReportSettings(WithFactories):
    """The runs of a report, and the data for their evaluation."""

    runs: tuple[UserPath, ...] = Field(min_length=1, max_length=20)
    """Directories of finished runs of `distill`, `pretrain-teacher` and `landscape`."""
    data: DataSettings | None = None
    """Real images for an evaluation of the models, on the `test` split; without them nothing is evaluated."""
    teacher: UserPath | None = None
    """The teacher's model file, if it was moved since the runs."""
    batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Images in a batch of the evaluation; by default 500, or fewer if they have more than 64x64 pixels."""
    runtime: RuntimeSettings = RuntimeSettings()
    """Device, precision and compilation of the evaluation."""


def check_page(output: Path, overwrite: bool) -> None:
    """Raise `InputError` if a page cannot be written here, or its name does not end in .html or .htm."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--output {output} is not a page; its name must end in .html")
    check_output_file(output, overwrite)
