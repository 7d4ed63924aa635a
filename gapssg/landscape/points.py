"""Measures the loss and the accuracy of a network at many points of a line or plane of weights."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.landscape.layout import Layout
from gapssg.landscape.samples import Samples

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Plane(NamedTuple):
    """A line or a plane in weight space.

    Attributes:
        origin: (P,), the weights at coordinates 0.
        directions: (D, P).
        layout: The tensors of the network in these vectors.
        lowest: (P,), a lower bound of the weights, because a plane through models would otherwise have negative
            variances.
    """

    origin: Tensor
    directions: Tensor
    layout: Layout
    lowest: Tensor | None = None

    def to(self, device: torch.device) -> Plane:
        """Return the same plane on a device."""
        lowest = None if self.lowest is None else self.lowest.to(device)
        return Plane(self.origin.to(device), self.directions.to(device), self.layout, lowest)


class PointEvaluator:
    """Measures a network at points of a plane.

    The samples are normalised once and stay on the device; the weights of each point are written into one network in
    place. `benchmarks/landscape.py` compares this with stacked weights under `torch.func.vmap`, which is slower on a
    CPU, because it uses grouped convolutions, for which there is no fast kernel.
    """

    def __init__(
        self,
        module: nn.Module,
        normalization: Normalization,
        samples: Samples,
        runtime: Runtime,
        *,
        batch_size: int = 64,
        recalibrate: bool = False,
    ) -> None:
        """Prepare to measure `module`, which is copied.

        Args:
            module: Maps normalised images (N, C, H, W) to logits (N, K).
            normalization: The normalisation of its input.
            samples: The samples of the loss.
            runtime: Device and precision; logits and losses are float32.
            batch_size: Images per batch.
            recalibrate: Re-estimate the batch-norm statistics at each point, from the same samples.
        """
        self._runtime = runtime
        self._module = runtime.place(copy.deepcopy(module)).eval().requires_grad_(False)
        self._forward = runtime.compile(self._module)
        self._tensors = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        self._norms = [part for part in self._module.modules() if isinstance(part, _BATCH_NORMS)]
        self._recalibrate = recalibrate
        for norm in self._norms if recalibrate else []:
            norm.momentum = None  # a plain mean over all batches
        parts = math.ceil(len(samples) / batch_size)
        bounds = [len(samples) * part // parts for part in range(parts + 1)]
        self._batches = [samples.take(slice(*ends)) for ends in itertools.pairwise(bounds)]
        self._images = [
            normalization(to_unit_range(batch.images)).contiguous(memory_format=torch.channels_last)
            for batch in self._batches
        ]
        self._shares = [len(batch) / len(samples) for batch in self._batches]

    def measure(self, plane: Plane, coordinates: Sequence[Sequence[float]]) -> tuple[Tensor, Tensor]:
        """Return the mean loss and the accuracy at each point, both (M,) float32 on the CPU.

        A loss that overflows is returned as infinity or NaN.

        Args:
            plane: The plane, on the runtime's device.
            coordinates: (M, D).
        """
        measured = []
        with torch.inference_mode():
            for point in coordinates:
                weights = plane.origin
                for coordinate, direction in zip(point, plane.directions, strict=True):
                    weights = torch.add(weights, direction, alpha=coordinate)
                if plane.lowest is not None:
                    weights = torch.maximum(weights, plane.lowest)
                for name, value in plane.layout.split(weights).items():
                    self._tensors[name].copy_(value)
                measured.append(self._measure_once())
        both = torch.stack(measured).float().cpu()  # the one wait for the device
        return both[:, 0], both[:, 1]

    def _measure_once(self) -> Tensor:
        if self._recalibrate:
            for norm in self._norms:
                norm.reset_running_stats()
                norm.train()
            for images in self._images:
                self._logits(images)
            for norm in self._norms:
                norm.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self._runtime.device)
        for batch, images, share in zip(self._batches, self._images, self._shares, strict=True):
            logits = self._logits(images)
            accuracy = (logits.argmax(dim=1) == batch.labels).double().mean()
            total += share * torch.stack([batch.loss(logits).double(), accuracy])
        return total

    def _logits(self, images: Tensor) -> Tensor:
        with self._runtime.autocast():
            logits: Tensor = self._forward(images).float()
        return logits
