"""Synthesis from label embeddings through noisy layers, as in NAYER."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.errors import InputError
from gapssg.models.generator import Generator, reset_layers_to_torch_default
from gapssg.models.profile import last_linear_layer
from gapssg.models.safetensors_file import read_safetensors
from gapssg.synthesis.averaged_inversion import AveragedInversion
from gapssg.synthesis.context import SynthesisContext

if TYPE_CHECKING:
    from gapssg.synthesis.nayer import NAYERSettings


_LEAST_DISTANCE = 1e-3  # the latents of classes that are nearer differ by less than a thousandth


class LabelGenerator(Generator):
    """A generator with a batch norm for the label embeddings.

    Attributes:
        label_norm: Normalises embeddings (N, E).
    """

    def __init__(
        self, embedding_size: int, image_shape: tuple[int, int, int], latent_size: int, width: int, scale: int
    ) -> None:
        super().__init__(image_shape, latent_size, width, scale)
        self.label_norm = nn.BatchNorm1d(embedding_size)


class NoisyInversion(AveragedInversion):
    """Optimises a persistent generator, and noisy layers that are redrawn for each batch.

    A batch is divided into groups in which each class occurs at most once. Each group has its own linear layer, so that
    images of a class differ. Its weights are drawn from N(0, 1), its bias is initialised to 0.
    """

    def __init__(self, settings: NAYERSettings, context: SynthesisContext) -> None:
        """Load the label embeddings; raise `InputError` if there are none, or they do not match the classes."""
        self.nayer = settings
        self._embeddings = label_embeddings(settings, context).to(context.runtime.device)
        self._groups = -(-settings.synthesis_batch_size // context.num_classes)
        super().__init__(settings, context)

    def _make_generator(self) -> LabelGenerator:
        settings, size = self.settings, self._embeddings.shape[1]
        shape, scale = self.context.image_shape, settings.synthesis_scale
        return LabelGenerator(size, shape, settings.latent_size, settings.generator_width, scale)

    def _latent_shape(self) -> tuple[int, ...]:
        """Return the shape of the noisy layers' weights, with the bias as one more input."""
        return self._groups, self._embeddings.shape[1] + 1, self.settings.latent_size

    def _begin(self, epoch: int) -> None:
        super()._begin(epoch)
        with torch.no_grad():
            self.latent[:, -1].zero_()

    def _restarts_generator(self, epoch: int) -> bool:
        return self.nayer.restarts_generator(epoch, self.context.epochs)

    def _reset_generator(self, stream: torch.Generator) -> None:
        reset_layers_to_torch_default(self.generator, stream)

    def _latents(self) -> Tensor:
        assert isinstance(self.generator, LabelGenerator)
        runtime, num_classes = self.context.runtime, self.context.num_classes
        targets, groups = map(runtime.share, (self._targets, groups_of(self._targets, num_classes)))
        normalized = self.generator.label_norm(self._embeddings[targets])
        inputs = torch.cat([normalized, torch.ones_like(normalized[:, :1])], dim=1)
        return noisy_layers(inputs, self.latent, targets, groups, num_classes)


def label_embeddings(settings: NAYERSettings, context: SynthesisContext) -> Tensor:
    """Return the embedding of each class, (K, E) float32: from the file, or the rows of the last linear layer.

    Raises `InputError` if the file does not hold one tensor (K, E) with different rows, or there is no such layer.
    """
    if settings.label_embeddings is None:
        layer = last_linear_layer(context.teacher, context.image_shape, context.num_classes)
        if layer is None:
            raise InputError(
                "the teacher's logits do not come from a linear layer, whose rows would be the label embeddings; "
                "add --set method.label_embeddings=FILE"
            )
        return layer.get_parameter("weight").detach().float()
    remedy = "save its tensor with safetensors.torch.save_file"
    tensors = list(read_safetensors(settings.label_embeddings, remedy).tensors.values())
    if len(tensors) != 1 or tensors[0].ndim != 2 or len(tensors[0]) != context.num_classes or not tensors[0].numel():
        raise InputError(
            f"{settings.label_embeddings} must hold one tensor with a row for each of the {context.num_classes} "
            f"classes, not {' and '.join(str(tuple(each.shape)) for each in tensors[:5]) or 'none'}"
        )
    if not tensors[0].is_floating_point():
        raise InputError(f"{settings.label_embeddings} holds {tensors[0].dtype}, not floating-point numbers")
    embeddings = tensors[0].float()  # float64 may not fit
    if not embeddings.square().isfinite().all():
        raise InputError(f"{settings.label_embeddings} holds numbers that are not finite or larger than 1e19")
    if nearest_rows(embeddings) < _LEAST_DISTANCE:
        raise InputError(
            f"{settings.label_embeddings} has equal rows, or nearly so; give each class a different embedding"
        )
    return embeddings


def nearest_rows(embeddings: Tensor) -> float:
    """Return the least distance of two rows (K, E) as the generator's batch norm normalises them.

    It is relative to sqrt(2 E), the typical distance of rows of random numbers.
    """
    normalized = F.batch_norm(embeddings, None, None, training=True)
    return float(torch.pdist(normalized).min()) / math.sqrt(2 * embeddings.shape[1])


def groups_of(targets: Tensor, num_classes: int) -> Tensor:
    """Return the group of each image, (N,) int64, for sorted targets (N,): the n-th image of a class is in group n."""
    first = torch.searchsorted(targets, torch.arange(num_classes, device=targets.device))
    return torch.arange(len(targets), device=targets.device) - first[targets]


def noisy_layers(inputs: Tensor, weights: Tensor, targets: Tensor, groups: Tensor, num_classes: int) -> Tensor:
    """Apply the linear layer of each input's group.

    Args:
        inputs: (N, E) float32.
        weights: (groups, E, L) float32, with at least as many groups as a class has images.
        targets: (N,) int64.
        groups: (N,) int64, different for inputs with the same target.
        num_classes: Number of classes, K.

    Returns:
        (N, L).
    """
    grid = inputs.new_zeros(len(weights), num_classes, inputs.shape[1])
    outputs = torch.bmm(grid.index_put((groups, targets), inputs), weights)
    return outputs[groups, targets]
