"""Settings of the real images that a command reads. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from gapssg.data import check_data_name, describe_names
from gapssg.settings.base import Settings, UserPath, as_validator


class DataSettings(Settings):
    """The real images that a command reads."""

    name: Annotated[str, AfterValidator(as_validator(check_data_name))] = Field(description=f"{describe_names()}.")
    root: UserPath | None = None
    """Folder of torchvision's data sets; by default the environment variable GAPSSG_DATA."""
    download: bool = False
    """Let torchvision download a missing data set."""
    image_size: int | None = Field(default=None, ge=8, le=1024)
    """Scale and crop every image to a square of this many pixels; needed if sizes differ."""
    images: int | None = Field(default=None, ge=2)
    """Read only this many images of a split, spread evenly over it; by default all."""
    channels: Literal[1, 3] | None = None
    """Read images in grey (1) or RGB (3); by default as the files are."""
