"""Synthesis with a contrastive loss against a memory bank, as in CMI."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.errors import InputError
from gapssg.models.generator import reset_layers_to_torch_default
from gapssg.models.profile import executed_batch_norm_layers
from gapssg.synthesis.batch_norm import instance_means, observed_inputs, statistics_distance
from gapssg.synthesis.context import SynthesisContext
from gapssg.synthesis.inversion import GeneratorInversion
from gapssg.synthesis.state import put_back, take_all

if TYPE_CHECKING:
    from gapssg.synthesis.cmi import CMISettings

_IMPOSSIBLE = -1e4  # a masked logit: its exponential is 0, its gradient finite
_LOG_RATIO = math.log(4 / 3)  # largest log ratio of width to height


def contrastive_loss(local: Tensor, whole: Tensor, batch_size: int, valid: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of matching local views to their images: mean over the batch plus mean over the bank.

    Fang et al., IJCAI 2021, equation 6, as the published code sums it.

    Args:
        local: (N + M, D) normalised features of local views: of N images, then of M bank entries.
        whole: (N + M, D) normalised features of whole images; they get no gradient.
        batch_size: N.
        valid: (N + M,) bool mask of the rows; True for the first N.
        temperature: Temperature of the softmax over the images.
    """
    logits = (local @ whole.detach().T / temperature).masked_fill(~valid, _IMPOSSIBLE)
    rows = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    rows = torch.where(valid, rows, 0)
    return rows[:batch_size].mean() + rows[batch_size:].sum() / valid[batch_size:].sum().clamp_min(1)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, flips: Tensor) -> Tensor:
    """Return a crop of each image, bilinearly resized to the image's size and optionally flipped.

    Args:
        images: (N, C, H, W) floating.
        top: (N,) in [0, 1], as are `left`, `height` and `width`: the box in fractions of the image's sides.
        left: (N,).
        height: (N,).
        width: (N,).
        flips: (N,) bool.
    """
    columns = _resize_matrix(left, width, images.shape[3])
    columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    rows = _resize_matrix(top, height, images.shape[2])
    return torch.einsum("nih,nchw,njw->ncij", rows, images, columns)


def _resize_matrix(start: Tensor, length: Tensor, side: int) -> Tensor:
    """Return the weight of each source pixel (last dimension) in each resized pixel, (N, side, side)."""
    pixels = torch.arange(side, device=start.device)
    centres = start[:, None] * side + (pixels + 0.5) * length[:, None] - 0.5
    return (1 - (centres.clamp(0, side - 1)[:, :, None] - pixels).abs()).clamp_min(0)


class ContrastiveInversion(GeneratorInversion):
    """Adds a contrastive loss over the teacher's features, between images of the batch and of a memory bank."""

    def __init__(self, settings: CMISettings, context: SynthesisContext) -> None:
        """Create the head and the bank, which last for the run; raise `InputError` if memory is short for the bank."""
        runtime, count = context.runtime, settings.synthesis_batch_size
        self.contrast = settings
        features = sum(
            layer.get_buffer("running_mean").numel()
            for layer in executed_batch_norm_layers(context.teacher, context.image_shape)
        )
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, settings.head_size))
        runtime.place(self.head)
        reset_layers_to_torch_default(self.head, runtime.random_stream("contrastive-head"))
        # Features of the local view and of the whole image, concatenated.
        self.bank = _make_bank(settings.bank_size, 2 * features, runtime.device)
        self._best_features = torch.zeros(count // runtime.world, 2 * features, device=runtime.device)
        self._means: list[Tensor] = []
        head = {
            "params": [*self.head.parameters()],
            "lr": settings.generator_learning_rate,
            "betas": (0.9, 0.999),
        }
        super().__init__(settings, context, more_groups=[head])

    def _begin(self, epoch: int) -> None:
        head = {name: tensor.clone() for name, tensor in self._head_moments().items()}
        super()._begin(epoch)
        put_back(head, self._head_moments())  # the head's optimizer state persists

    def _draw(self, stream: torch.Generator, epoch: int) -> tuple[Tensor, ...]:
        """Draw both views, and bank rows; the last ones are invalid while the bank fills."""
        count, device = len(self._targets), stream.device
        shifts = super()._draw(stream, epoch)
        area, ratio, top, left, flips = torch.rand(5, count, generator=stream, device=device)
        area = self.contrast.smallest_view + (1 - self.contrast.smallest_view) * area
        ratio = ((2 * ratio - 1) * _LOG_RATIO).exp()
        height, width = (area / ratio).sqrt().clamp_max(1), (area * ratio).sqrt().clamp_max(1)
        mirrored = (flips < 0.5) & self.context.augmentation.flip
        filled = min(epoch * count, self.contrast.bank_size)
        drawn = torch.randperm(filled, generator=stream, device=device)[: self.contrast.negatives]
        rows = F.pad(drawn, (0, self.contrast.negatives - len(drawn)))
        valid = torch.arange(count + self.contrast.negatives, device=device) < count + len(drawn)
        return *shifts, top * (1 - height), left * (1 - width), height, width, mirrored, rows, valid

    def _observing(self) -> AbstractContextManager[Any]:
        def observe(layer: nn.Module, inputs: Tensor) -> None:
            distance = statistics_distance(inputs, layer.running_mean, layer.running_var, self._moments_of)  # type: ignore[arg-type]
            self._distances.append(distance)
            self._means.append(instance_means(inputs))

        return observed_inputs(self.context.teacher, observe)

    def _loss(self, *draws: Tensor) -> dict[str, Tensor]:
        context, settings = self.context, self.contrast
        *of_each_image, rows, valid = draws
        images, views = self._make_views(of_each_image[:3])
        box = map(context.runtime.share, of_each_image[3:])
        self._means.clear()
        teacher_logits, student_logits = self._responses(views)
        own_whole = torch.cat(take_all(self._means), dim=1)
        statistics_loss = self._statistics_loss()
        with context.runtime.autocast():
            context.teacher(context.normalization(resized_crop(images, *box)))
        own_local = torch.cat(take_all(self._means), dim=1)
        local, whole = context.runtime.whole(own_local, own_whole)
        take_all(self._distances)  # statistics of local views are not used
        loss, terms = settings.loss(statistics_loss, teacher_logits, student_logits, self._targets)
        banked_local, banked_whole = self.bank[rows].chunk(2, dim=1)
        features = torch.cat([local, banked_local, whole, banked_whole])
        local_directions, whole_directions = F.normalize(self.head(features), dim=1).chunk(2)
        contrast = contrastive_loss(
            local_directions, whole_directions, len(local), valid, settings.contrast_temperature
        )
        loss = loss + settings.contrast_weight * contrast
        own = torch.cat([own_local, own_whole], dim=1)
        return {"loss": loss, **terms, "contrastive_loss": contrast, "images": images, "features": own}

    def _after_step(self, outputs: dict[str, Tensor]) -> None:
        is_better = outputs["loss"] < self._lowest
        self._best_features.copy_(torch.where(is_better, outputs["features"], self._best_features))
        super()._after_step(outputs)

    def _finish(self, epoch: int) -> None:
        """Replace the oldest entries of the bank."""
        (features,) = self.context.runtime.whole(self._best_features)
        count, size = len(features), self.contrast.bank_size
        kept = features[-size:]
        places = (epoch * count + torch.arange(len(kept), device=kept.device)) % size
        self.bank[places] = kept

    def _lasting(self) -> dict[str, Tensor]:
        weights = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {"bank": self.bank, **weights, **self._head_moments()}

    def _shares(self) -> dict[str, Tensor]:
        return {"best_features": self._best_features, **super()._shares()}

    def _head_moments(self) -> dict[str, Tensor]:
        return {
            f"head_moments.{index}.{name}": tensor
            for index, parameter in enumerate(self.head.parameters())
            for name, tensor in self._optimizer.state[parameter].items()
        }


def _make_bank(size: int, width: int, device: torch.device) -> Tensor:
    try:
        return torch.zeros(size, width, device=device)
    except RuntimeError as error:
        gibibytes = 4 * size * width / 2**30
        raise InputError(
            f"a memory bank for {size:,} images needs {gibibytes:.1f} GiB on {device}, more than is available; "
            "lower method.bank_size"
        ) from error
