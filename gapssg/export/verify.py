"""Compares the logits of an exported model with those of the model."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.errors import InputError
from gapssg.evaluation.metrics import agreement
from gapssg.evaluation.predict import batch_size_for, predict
from gapssg.export.formats import Classifier, Normalized, Wrapped
from gapssg.export.settings import ExportSettings
from gapssg.models.foreign import foreign_code
from gapssg.models.frozen import frozen
from gapssg.models.model_file import LoadedModel
from gapssg.models.rounding import UNIT_ROUNDOFF, rounding_tolerance
from gapssg.runs.results.export import LogitsComparison
from gapssg.text import percent

# Rounding p to float32 moves the logit of p by 2**-24 / (p (1 - p)): by 1e-6 of the logit at 0.99, by 3 % at 1 - 1e-7.
_SURE = 0.99
_UNMEASURED_TOLERANCE = 1e-4  # a quarter of the smallest error measured with weights in half precision
# One image, the two of the trace, and other numbers.
_RANDOM_BATCHES = (1, 2, 7, 54)


class Examiner:
    """Computes logits of a model and of its exports on the same images.

    Attributes:
        model: The model.
        settings: Whether normalisation is part of the exports, and the batch size.
        runtime: Device and precision.
        batch_size: The largest number of images at once.
    """

    def __init__(self, model: LoadedModel, settings: ExportSettings, runtime: Runtime) -> None:
        """Prepare to compare `model` with its exports."""
        self.model = model
        self.settings = settings
        self.runtime = runtime
        self._normalization = model.normalization(runtime.device)
        self.batch_size = settings.batch_size or batch_size_for(model.card.input_shape)

    @property
    def limit(self) -> float:
        """The largest absolute logit to compare: of a sigmoid, that of a probability of 0.99; else infinite."""
        sure = math.log(_SURE / (1 - _SURE))
        return {"sigmoid": sure / 2, "sigmoids": sure}.get(self.model.card.outputs, math.inf)

    def exported_module(self) -> nn.Module:
        """Return the module to export."""
        module = self.model.module
        return Normalized(module, self._normalization) if self.settings.fold_normalization else Wrapped(module)

    def model_logits(self, images: Tensor) -> Tensor:
        """Return the model's logits (N, K) of images, uint8 or float in [0, 1]."""
        architecture = self.model.card.architecture
        with foreign_code(f"{architecture} cannot be run on a batch of {min(len(images), self.batch_size):,}"):
            logits = predict(self.model.module, images, self._normalization, self.runtime, self.batch_size)
        self._check_shape(logits, len(images), architecture)
        return logits

    def exact_logits(self, images: Tensor) -> Tensor | None:
        """Return the model's logits (N, K) float64 of images, float in [0, 1]; None if its code needs float32."""
        try:
            with foreign_code("no float64"):
                module = copy.deepcopy(Normalized(self.model.module, self._normalization)).double()
                with frozen(module), torch.inference_mode():
                    logits = torch.cat([module(batch.double()) for batch in torch.split(images, self.batch_size)])
        except InputError:
            return None
        self._check_shape(logits, len(images), self.model.card.architecture)
        return logits if logits.dtype == torch.float64 else None

    def inputs(self, images: Tensor) -> Tensor:
        """Convert images, uint8 or float in [0, 1], to the input of the exported model: (N, C, H, W) float32."""
        pixels = to_unit_range(images) if images.dtype == torch.uint8 else images
        return pixels if self.settings.fold_normalization else self._normalization(pixels).contiguous()

    def logits(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Return the logits (N, K) of an exported model for images, uint8 or float in [0, 1]."""
        batches = []
        for batch in torch.split(images, self.batch_size):
            logits = classifier(self.inputs(batch))
            self._check_shape(logits, len(batch), "the exported model")
            batches.append(logits)
        return torch.cat(batches)

    def _check_shape(self, logits: Tensor, images: int, origin: str) -> None:
        expected = (images, self.model.card.num_classes)
        if logits.shape != expected:
            given, right = ("x".join(map(str, shape)) for shape in (logits.shape, expected))
            raise InputError(
                f"{origin} returns logits of shape {given} instead of {right} for a batch of {images:,}; nothing was "
                "kept"
            )


def compare(
    logits: Tensor, exported: Tensor, limit: float = math.inf, images: str = "random images"
) -> LogitsComparison:
    """Compare the logits (N, K) of a model with those of the exported model for the same images.

    Differences are those of logits clipped to [-limit, limit]; `images` says what they are of.

    Raises:
        InputError: Logits are not finite.
    """
    if not torch.isfinite(logits).all():
        raise InputError(
            f"the model's logits of {images} are not finite, so that no export is verified; check its weights"
        )
    if not torch.isfinite(exported).all():
        raise InputError(
            f"the exported model's logits of {images} are not finite, but the model's are; nothing was kept "
            "(try another format)"
        )
    clipped, other = (each.double().clamp(-limit, limit) for each in (logits, exported))
    difference = (clipped - other).abs().max().item()
    scale = max(clipped.abs().max().item(), torch.finfo(torch.float32).tiny)
    return LogitsComparison(
        images=len(logits),
        largest_difference=difference,
        relative_difference=difference / scale,
        agreement=agreement(logits, exported),
        saturated=int((logits.abs() >= limit).all(1).sum()),
    )


def check_tolerance(comparison: LogitsComparison, tolerance: float, images: str) -> None:
    """Raise InputError if the relative difference of a comparison exceeds the tolerance."""
    if comparison.relative_difference > tolerance:
        raise InputError(
            f"the exported model disagrees: on {comparison.images:,} {images} its logits differ by up to "
            f"{comparison.relative_difference:.2g} of the largest, more than the tolerance of {tolerance:.2g}, and "
            f"{percent(comparison.agreement)} of its predictions agree; nothing was kept (change it with --tolerance)"
        )


def tolerance_of(logits: Tensor, exact: Tensor | None, limit: float = math.inf) -> float:
    """Return a tolerance for the relative difference of logits (N, K) float32, given the same in float64 if possible.

    With a `limit`, as in `compare`, the error is at least that of rounding a probability of 0.99. Raises `InputError`
    if logits are not finite.
    """
    if exact is None:
        return _UNMEASURED_TOLERANCE
    least = 0.0 if math.isinf(limit) else UNIT_ROUNDOFF / (1 - _SURE) / limit
    return rounding_tolerance(max(least, compare(exact, logits, limit).relative_difference))


def random_batches(examiner: Examiner) -> list[Tensor]:
    """Return batches of several sizes of random images (N, C, H, W) float32 in [0, 1].

    Pixels are uniform around 0.5, with a random contrast for each image, so that fewer outputs are saturated: a model
    that takes full noise for one class often takes grey for another.
    """
    generator = examiner.runtime.random_stream("export images")

    def draw(count: int) -> Tensor:
        noise = torch.rand(count, *examiner.model.card.input_shape, generator=generator)
        return 0.5 + torch.rand(count, 1, 1, 1, generator=generator) * (noise - 0.5)

    return [draw(count) for count in _RANDOM_BATCHES]
