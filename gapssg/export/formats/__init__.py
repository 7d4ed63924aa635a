"""The export formats: functions from a module to files, and back to a function from images to logits.

A new format is a new file here with a `FORMAT`, named as `--to` names it (with `_` for `-`), and its name in
`FormatName`. All are traced with two images; height, width and channels are fixed.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.files import canonical_json
from gapssg.runs.results.export import ExportMetadata

INPUT_NAME = "images"
OUTPUT_NAME = "logits"
_CALIBRATION_BATCH = 64
_TRACED_BATCH = 2  # torch.export treats a dimension of size 1 as constant

Classifier = Callable[[Tensor], Tensor]
"""Maps images (N, C, H, W) float32 on the CPU, as the file expects them, to logits (N, K) float32."""

Files = Mapping[str, bytes]
"""Contents by path relative to the output. A single file, which is the output itself, has the path `ITSELF`."""

ITSELF = ""


class Calibration(NamedTuple):
    """Images of a pool.

    Attributes:
        pixels: (N, C, H, W) uint8.
        inputs: (N, C, H, W) float32, the same as the exported model expects them.
        targets: (N,) int64, the classes for which they were synthesised.
    """

    pixels: Tensor
    inputs: Tensor
    targets: Tensor


class Subject(NamedTuple):
    """What is exported.

    Attributes:
        module: The model, in eval mode.
        metadata: The description that the files contain.
        calibration: Images of a pool, for a format that needs them.
    """

    module: nn.Module
    metadata: ExportMetadata
    calibration: Calibration | None = None

    @property
    def text(self) -> str:
        """The metadata as JSON."""
        return metadata_text(self.metadata)

    @property
    def example(self) -> Tensor:
        """Images (2, C, H, W) float32 to trace the model with."""
        return torch.zeros(_TRACED_BATCH, *self.metadata.input_shape)


class Quantizer(Protocol):
    """Quantises one exported model to 8-bit integers."""

    @property
    def layers(self) -> Sequence[str]:
        """The names of the operators that compute in 8 bits."""
        ...

    @property
    def biased_layers(self) -> Sequence[str] | None:
        """Those of `layers` whose biases are corrected; None if only the quantiser knows."""
        ...

    def quantize(self, float_layers: Collection[str], metadata: ExportMetadata) -> Files:
        """Return the int8 model in which these layers compute in float32."""
        ...


class Format(NamedTuple):
    """An export format.

    Attributes:
        write: Returns the files of a subject.
        load: Maps these files to a classifier, by which the export is verified; None if nothing here can run them.
            Loading a torch format can run code, so only files that this process has written may be loaded.
        packages: Packages that these functions import.
        extra: The extra of gapssg that installs the packages.
        is_folder: Whether the output is a folder.
        needs_pool: Whether `Subject.calibration` is needed.
        quantizer: Returns the quantiser of exported files, calibrated on inputs (N, C, H, W) float32; None if int8 is
            not available.
        importing: Returns the context in which the packages are imported.
    """

    write: Callable[[Subject], Files]
    load: Callable[[Files], Classifier] | None
    packages: tuple[str, ...] = ()
    extra: str = "export"
    is_folder: bool = False
    needs_pool: bool = False
    quantizer: Callable[[Files, Tensor], Quantizer] | None = None
    importing: Callable[[], AbstractContextManager[None]] = nullcontext


def load_format(name: str) -> Format:
    """Return a format by its name in `--to`."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    found: Format = module.FORMAT
    return found


class Wrapped(nn.Module):
    """A classifier inside a module, because some exporters ignore hooks of the outermost one, as `adapt` adds them."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap `module`."""
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of normalised images (N, C, H, W)."""
        logits: Tensor = self.module(images)
        return logits


class Normalized(Wrapped):
    """A classifier whose input is pixels in [0, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, module: nn.Module, normalization: Normalization) -> None:
        """Put the normalisation before `module`."""
        super().__init__(module)
        self.register_buffer("mean", normalization.mean)
        self.register_buffer("deviation", normalization.deviation)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return super().forward((images - self.mean) / self.deviation)


def metadata_text(metadata: ExportMetadata) -> str:
    """Return metadata as canonical JSON."""
    return canonical_json(metadata.model_dump(mode="json"))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings, logs and prints of exporters."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def calibration_batches(calibration: Tensor) -> list[NDArray[np.float32]]:
    """Return inputs (N, C, H, W) float32 in batches of 64, as the quantisers of other packages take them."""
    return [batch.contiguous().numpy() for batch in torch.split(calibration, _CALIBRATION_BATCH)]


def without_gradients(module: Classifier) -> Classifier:
    """Return a function that calls a module in inference mode."""

    def classify(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return module(images)

    return classify
