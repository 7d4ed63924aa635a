"""What a module in this package must have to be a data source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from gapssg.errors import InputError

if TYPE_CHECKING:
    from gapssg.data.image_set import ImageSet


@dataclass(frozen=True)
class LoadOptions:
    """How a split is to be read; the fields are the options of `gapssg.data.load_split`.

    Raises:
        InputError: The image size is not positive, or the channels are neither 1 nor 3.
    """

    root: Path | None = None
    download: bool = False
    image_size: int | None = None
    channels: int | None = None
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        """Check the two numbers."""
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"The image size must be at least 1 pixel, not {self.image_size}.")
        if self.channels not in (None, 1, 3):
            raise InputError(f"Images have 1 channel (grey) or 3 (RGB), not {self.channels}.")


class Source(Protocol):
    """A module that reads images."""

    FLIPPING_IS_MEANINGFUL: bool

    def load(self, name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
        """Read one split of the source called `name`.

        Raises:
            InputError: The images cannot be read.
        """
