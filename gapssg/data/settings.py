"""Settings of the real images that a command reads. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from gapssg.data import check_data_name, describe_names
from gapssg.models.names import LARGEST_IMAGE_SIDE, MOST_CHANNELS, SMALLEST_IMAGE_SIDE
from gapssg.settings.base import Settings, UserPath, as_validator


def _check_image_size(value: Any) -> Any:
    sides = value if isinstance(value, list | tuple) else (value, value)
    is_size = len(sides) == 2 and all(
        type(side) is int and SMALLEST_IMAGE_SIDE <= side <= LARGEST_IMAGE_SIDE for side in sides
    )
    if value is not None and not is_size:
        allowed = f"from {SMALLEST_IMAGE_SIDE} to {LARGEST_IMAGE_SIDE}"
        raise ValueError(f"must be the side of squares, or height and width, in pixels {allowed}")
    return value


class DataSettings(Settings):
    """The real images that a command reads."""

    name: Annotated[str, AfterValidator(as_validator(check_data_name))] = Field(description=f"{describe_names()}.")
    root: UserPath | None = None
    """Folder of torchvision's data sets; by default the environment variable GAPSSG_DATA."""
    download: bool = False
    """Let torchvision download a missing data set."""
    image_size: Annotated[int | tuple[int, int] | None, BeforeValidator(_check_image_size)] = None
    """Scale and crop every image to a square of this many pixels, or to this height and width; needed if sizes
    differ."""
    images: int | None = Field(default=None, ge=2)
    """Read only this many images of a split, spread evenly over it; by default all."""
    channels: int | None = Field(default=None, ge=1, le=MOST_CHANNELS)
    """Read images in grey (1) or RGB (3), or from TIFF pages or arrays with this many channels; by default as the files
    are."""
