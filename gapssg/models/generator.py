"""The generator that turns latents into images."""

import math

import torch
from torch import Tensor, nn

from gapssg.errors import InputError

INITIAL_DEVIATION = 0.02
SMALLEST_FIRST_SIDE = 7


class Generator(nn.Module):
    """A linear layer to small maps, then nearest upsamplings with convolutions.

    Images of less than 53 pixels get two upsamplings, from a quarter of their size, as in the published generator.
    Larger ones get as many as lead from maps of 7 to 14 pixels to their shorter side (from 8x8 to 64x64, from 13x13 to
    104x104, from 7x7 to 224x224): from a quarter, the linear layer alone would have a hundred million weights. Sides
    that the upsamplings do not give are made larger, by less than a first pixel, and cropped (100 pixels from 104).

    Attributes:
        image_shape: (C, H, W) of one image.
        latent_size: Length of one latent.
        linear: The layer from the latent to the first feature maps.
        first_norm: The batch norm of the first feature maps.
        upsampling: Everything from the first feature maps to the logits of the pixels.
    """

    def __init__(self, image_shape: tuple[int, int, int], latent_size: int = 256, width: int = 64) -> None:
        """Build the generator with the same initial weights each time.

        Args:
            image_shape: (channels, height, width) of one image; height and width at least 4.
            latent_size: Length of one latent.
            width: Channels of the last feature maps; those before have twice as many.

        Raises:
            InputError: The images have no channel, or a height or width of less than 4 pixels.
        """
        super().__init__()
        channels, image_height, image_width = image_shape
        if channels < 1:
            raise InputError(f"images need at least 1 channel, not {channels}")
        if min(image_height, image_width) < 4:
            raise InputError(
                f"the generator cannot make images of {image_height}x{image_width} pixels, but from 4x4 on"
            )
        self.image_shape = image_shape
        self.latent_size = latent_size
        factor = 2 ** _count_upsamplings(min(image_height, image_width))
        self._first_maps = (2 * width, _quotient_up(image_height, factor), _quotient_up(image_width, factor))
        upsampling: list[nn.Module] = []

        # The layers draw default weights when they are made; these draws must not move the global state.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.linear = nn.Linear(latent_size, math.prod(self._first_maps))
            self.first_norm = nn.BatchNorm2d(2 * width)
            while factor > 1:
                factor //= 2
                out_channels = 2 * width if factor > 1 else width
                upsampling += [
                    nn.Upsample(scale_factor=2, mode="nearest"),
                    nn.Conv2d(2 * width, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            self.upsampling = nn.Sequential(*upsampling, nn.Conv2d(width, channels, 3, padding=1))
        self.reset_parameters(torch.Generator(device="cpu").manual_seed(0))

    def forward(self, latent: Tensor) -> Tensor:
        """Map latent: (N, latent_size) float32 to images: (N, C, H, W) float32 in [0, 1]."""
        first_maps = self.first_norm(self.linear(latent).unflatten(1, self._first_maps))
        # Under autocast the sigmoid would have the 8 bits of bfloat16 for images of 8 bits.
        logits = self.upsampling(first_maps).to(self.linear.weight.dtype)
        _, height, width = self.image_shape
        return torch.sigmoid(logits[:, :, :height, :width])

    def reset_parameters(self, rng: torch.Generator) -> None:
        """Draw all weights anew in place and forget the running statistics.

        Args:
            rng: Source of the draws, on the device of the parameters.
        """
        reset_layers(self, rng)


def _count_upsamplings(shorter_side: int) -> int:
    """Return the most doublings, at least 2, that begin with SMALLEST_FIRST_SIDE or more for the next multiple of 4."""
    count = 2
    while 4 * _quotient_up(shorter_side, 4) >= SMALLEST_FIRST_SIDE * 2 ** (count + 1):
        count += 1
    return count


def _quotient_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def reset_layers(module: nn.Module, rng: torch.Generator) -> None:
    """Re-initialise in place every convolution, linear layer and batch norm of `module`, itself included.

    Weights of convolutions and linear layers are drawn from N(0, 0.02), those of batch norms from
    N(1, 0.02), the second number being the standard deviation; biases are 0, running means 0 and
    running variances 1.

    Args:
        module: A generator, or one of its layers.
        rng: Source of the draws, on the device of the parameters.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.normal_(1.0, INITIAL_DEVIATION, generator=rng)
                layer.bias.zero_()
                layer.reset_running_stats()
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                layer.weight.normal_(0.0, INITIAL_DEVIATION, generator=rng)
                if layer.bias is not None:
                    layer.bias.zero_()


def reset_layers_to_torch_default(module: nn.Module, rng: torch.Generator) -> None:
    """Re-initialise in place as torch's constructors do: weights and biases uniform within 1 / sqrt(fan-in).

    Weights of batch norms are 1, biases and running means 0, running variances 1.

    Args:
        module: A generator, or one of its layers.
        rng: Source of the draws, on the device of the parameters.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=rng)
