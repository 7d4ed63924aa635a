"""The interface of a data source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from gapssg.settings.parts import Interpolation, Resize

if TYPE_CHECKING:
    from gapssg.data.image_set import ImageSet


@dataclass(frozen=True)
class LoadOptions:
    """The options of `gapssg.data.load_split`."""

    root: Path | None = None
    download: bool = False
    image_size: tuple[int, int] | None = None  # height and width
    channels: int | None = None
    progress: Callable[[int, int], None] | None = None
    note: Callable[[str], None] | None = None
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"
    for_model: bool = False


class Source(Protocol):
    """A module that reads images."""

    FLIPPING_IS_MEANINGFUL: bool

    def load(self, name: str, split: Literal["train", "test"], options: LoadOptions) -> ImageSet:
        """Read one split of the source called `name`; raise `InputError` if its images cannot be read."""
