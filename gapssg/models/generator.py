"""The generator that turns latents into images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapssg.errors import InputError

INITIAL_DEVIATION = 0.02
SMALLEST_FIRST_SIDE = 7


class Generator(nn.Module):
    """A linear layer to small maps, then nearest upsamplings with convolutions.

    Images below 53 pixels get two upsamplings, from a quarter of their size, as in the published generator. Larger
    images get more, from first maps of 7 to 14 pixels on the shorter side (8x8 for 64x64, 13x13 for 104x104, 7x7 for
    224x224), because a linear layer to a quarter of their size would have a hundred million weights. Sides that are not
    a multiple of the upsampling factor are rounded up and cropped (104 to 100 pixels). With a `scale`, the layers make
    images of 1/scale of the height and width, rounded up, which are upsampled bilinearly.

    Attributes:
        image_shape: (C, H, W) of one image.
        latent_size: Length of one latent.
        linear: The layer from the latent to the first feature maps.
        first_norm: The batch norm of the first feature maps.
        upsampling: The layers from the first feature maps to the logits of the pixels.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], latent_size: int = 256, width: int = 64, scale: int = 1
    ) -> None:
        """Build the generator; its initial weights are always the same.

        Images are (channels, height, width), and the last feature maps have `width` channels and the earlier ones twice
        as many. Raises `InputError` if images have no channel, or a height or width below 4 pixels before they are
        upsampled bilinearly by the factor `scale`, 1 for none.
        """
        super().__init__()
        channels, *sides = image_shape
        if channels < 1:
            raise InputError(f"images need at least 1 channel, not {channels}")
        height, width_of_images = self._made_size = tuple(math.ceil(side / scale) for side in sides)
        if min(self._made_size) < 4:
            reason = f", at 1/{scale} of their size; lower method.synthesis_scale" if scale > 1 else ""
            size = f"{height}x{width_of_images}"
            raise InputError(f"the generator cannot make images of {size} pixels; at least 4x4 are needed{reason}")
        self.image_shape = image_shape
        self.latent_size = latent_size
        factor = 2 ** _count_upsamplings(min(self._made_size))
        self._first_maps = (2 * width, math.ceil(height / factor), math.ceil(width_of_images / factor))
        upsampling: list[nn.Module] = []

        # The constructors of layers draw default weights, which must not advance the global random state.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            self.linear = nn.Linear(latent_size, math.prod(self._first_maps))
            self.first_norm = nn.BatchNorm2d(2 * width)
            while factor > 1:
                factor //= 2
                out_channels = 2 * width if factor > 1 else width
                upsampling += [
                    NearestUpsampling(scale_factor=2, mode="nearest"),
                    nn.Conv2d(2 * width, out_channels, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_channels),
                    nn.LeakyReLU(0.2, inplace=True),
                ]
            self.upsampling = nn.Sequential(*upsampling, nn.Conv2d(width, channels, 3, padding=1))
        self.reset_parameters(torch.Generator(device="cpu").manual_seed(0))

    def forward(self, latent: Tensor) -> Tensor:
        """Map latent: (N, latent_size) float32 to images: (N, C, H, W) float32 in [0, 1]."""
        first_maps = self.first_norm(self.linear(latent).unflatten(1, self._first_maps))
        # Under autocast the sigmoid would have the 8 bits of bfloat16, too few for 8-bit images.
        logits = self.upsampling(first_maps).to(self.linear.weight.dtype)
        height, width = self._made_size
        images = torch.sigmoid(logits[:, :, :height, :width])
        if self._made_size == self.image_shape[1:]:
            return images
        # Rounding may exceed 1.
        return F.interpolate(images, self.image_shape[1:], mode="bilinear").clamp(0, 1)

    def reset_parameters(self, rng: torch.Generator) -> None:
        """Reinitialise all weights in place and reset the running statistics; `rng` is on the parameters' device."""
        reset_layers(self, rng)


class NearestUpsampling(nn.Upsample):
    """Upsampling to the double height and width; its gradient is a sum where the compiler would scatter."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 2H, 2W)."""
        if not (maps.is_cuda and torch.compiler.is_compiling()):
            return super().forward(maps)
        count, channels, height, width = maps.shape
        repeated = maps[:, :, :, None, :, None].expand(count, channels, height, 2, width, 2)
        return repeated.reshape(count, channels, 2 * height, 2 * width)


def _count_upsamplings(shorter_side: int) -> int:
    """Return the most upsamplings, at least 2, whose first maps have SMALLEST_FIRST_SIDE pixels or more."""
    count = 2
    while 4 * math.ceil(shorter_side / 4) >= SMALLEST_FIRST_SIDE * 2 ** (count + 1):
        count += 1
    return count


def reset_layers(module: nn.Module, rng: torch.Generator) -> None:
    """Reinitialise in place every convolution, linear layer and batch norm of `module`, itself included.

    Weights of convolutions and linear layers get mean 0 and standard deviation 0.02, those of batch norms mean 1 and
    standard deviation 0.02; biases are 0, running means 0 and running variances 1. `rng` is on the parameters' device.
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
    """Reinitialise in place as torch's constructors do: weights and biases uniform within 1 / sqrt(fan-in).

    Weights of batch norms are 1, biases and running means 0, running variances 1. `rng` is on the parameters' device.
    """
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.reset_parameters()
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = layer.weight[0].numel() ** -0.5
                for parameter in layer.parameters():
                    parameter.uniform_(-bound, bound, generator=rng)
