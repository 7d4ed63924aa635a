"""Device, precision, compilation and named random streams: handed to whoever computes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from gapssg.errors import InputError
from gapssg.settings.parts import RuntimeSettings

Step = TypeVar("Step", bound=Callable[..., Any])


@dataclass(frozen=True)
class Runtime:
    """Where and how precisely tensors are computed, and where randomness comes from.

    Attributes:
        device: Every tensor of the run lives here.
        precision: `bf16` computes networks under autocast; logits, losses, statistics, master weights
            and optimizers stay in float32 either way.
        compiled: Whether `compile` compiles.
        seed: The seed that every random stream is derived from.
    """

    device: torch.device
    precision: Literal["fp32", "bf16"]
    compiled: bool
    seed: int

    @classmethod
    def from_settings(cls, settings: RuntimeSettings, seed: int) -> Runtime:
        """Choose device and precision.

        Raises:
            InputError: CUDA was asked for and there is none.
        """
        device = _choose_device(settings.device)
        precision = settings.precision
        if precision == "auto":
            precision = "bf16" if computes_bf16_natively(device) else "fp32"
        return cls(device=device, precision=precision, compiled=settings.compile, seed=seed)

    def describe(self) -> str:
        """Return where and how is computed, in a few words."""
        return f"{self.device}, {self.precision}, {'compiled' if self.compiled else 'eager'}"

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks are computed."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=True
        )

    def derive_seed(self, stream: str, *indices: int) -> int:
        """Return a 63-bit seed that depends on the run's seed, the stream's name and the indices."""
        text = "/".join([str(self.seed), stream, *map(str, indices)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def random_stream(self, stream: str, *indices: int) -> torch.Generator:
        """Return a fresh random generator on the device for one use, such as ("latent", epoch).

        Streams hold no state between epochs, so a run that continues at an epoch needs none saved.
        """
        return torch.Generator(self.device).manual_seed(self.derive_seed(stream, *indices))

    @contextmanager
    def seeded_globals(self, stream: str, *indices: int) -> Iterator[None]:
        """Seed torch's global generators for modules that draw from them (dropout), and restore them."""
        on_cuda = self.device.type == "cuda"
        seed = self.derive_seed(stream, *indices)
        with torch.random.fork_rng(devices=[self.device] if on_cuda else []):
            torch.default_generator.manual_seed(seed)
            if on_cuda:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    def compile(self, step: Step) -> Step:
        """Return `step` compiled, if this run compiles."""
        return cast(Step, torch.compile(step, dynamic=False)) if self.compiled else step

    def place(self, module: nn.Module) -> nn.Module:
        """Move a network to the device in the memory layout that convolutions are fastest in."""
        return module.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    def synchronize(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def computes_bf16_natively(device: torch.device) -> bool:
    """Tell whether the hardware has bfloat16 matrix instructions (emulation is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def to_unit_range(images: Tensor) -> Tensor:
    """Convert uint8 images in [0, 255] to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def to_uint8(images: Tensor) -> Tensor:
    """Round images in [0, 1] to uint8 in [0, 255]."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _choose_device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not available:
        raise InputError(f"--device {name}: no CUDA device is available here; use --device cpu or auto")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise InputError(f"--device {name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    return device
