"""Device, precision, compilation and named random streams of a run."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from gapssg.core.convolutions import avoid_unsound_kernels
from gapssg.core.moments import combined_moments
from gapssg.errors import InputError
from gapssg.settings.parts import RuntimeSettings

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

Step = TypeVar("Step", bound=Callable[..., Any])

# The basis of `compile = "auto"`. Compiling the steps of a run takes about a minute on a processor and more on a GPU.
# The rates are of eager steps of one thread and of a large GPU.
_EAGER_FLOPS_OF_A_THREAD = 5e10
_EAGER_FLOPS_OF_A_GPU = 5e13
_SECONDS_WORTH_COMPILING = 300.0
_SEVERAL = "several processes run in eager mode"


@dataclass(frozen=True)
class Runtime:
    """Device and precision of the tensors, and the source of random numbers."""

    device: torch.device
    """Device of every tensor of the run."""
    precision: Literal["fp32", "bf16"]
    """`bf16` computes networks under autocast; logits, losses, statistics, master weights and optimizers stay in
    float32 either way (on CUDA, their products in TF32)."""
    compiled: bool
    """Whether `compile` compiles."""
    seed: int
    """Seed from which every random stream is derived."""
    deterministic: bool = False
    """Whether CUDA may use only deterministic algorithms."""
    processes: Processes | None = None
    """The processes that share every batch of the run; None if there is one."""

    @classmethod
    def from_settings(cls, settings: RuntimeSettings, seed: int, processes: Processes | None = None) -> Runtime:
        """Choose device and precision; `compile = "auto"` is left to `decide_compilation`.

        Raises:
            InputError: CUDA is requested but not available, or compilation without a compiler or by several processes.
        """
        device = _choose_device(settings.device) if processes is None else _choose_own(settings.device, processes)
        precision = settings.precision
        if precision == "auto":
            precision = "bf16" if computes_bf16_natively(device) else "fp32"
        compiled = settings.compile is True
        obstacle = None
        if compiled:
            obstacle = _SEVERAL if processes is not None else obstacle_to_compiling(device)
        if obstacle:
            raise InputError(f"--compile: {obstacle}; use --no-compile")
        return cls(device, precision, compiled, seed, settings.deterministic, processes)

    def decide_compilation(
        self, setting: bool | Literal["auto"], flops: float, earlier: bool | None = None
    ) -> tuple[Runtime, str | None]:
        """Return this runtime with the decision of `compile = "auto"`, and the reason if it is made now.

        The decision depends on settings and machine only, not on a clock, so that equal runs decide alike; `earlier` is
        that at the start of a run that resumes. `from_settings` has applied all values of the setting but `auto`.
        """
        if setting != "auto":
            return self, None
        if self.processes is not None:
            return self, f"not compiled: {_SEVERAL}"
        if earlier is not None:
            return replace(self, compiled=earlier), None
        rate = _EAGER_FLOPS_OF_A_GPU
        if self.device.type != "cuda":
            rate = torch.get_num_threads() * _EAGER_FLOPS_OF_A_THREAD
        length = f"about {flops / 1e12:,.0f} TFLOP" if flops >= 1e12 else "below 1 TFLOP"
        obstacle = obstacle_to_compiling(self.device)
        if flops / rate < _SECONDS_WORTH_COMPILING:
            return self, f"not compiled, because the run is short: {length}"
        if obstacle:
            return self, f"not compiled, although the run is long ({length}): {obstacle}"
        return replace(self, compiled=True), f"compiled, because the run is long: {length}"

    def identity(self) -> dict[str, str]:
        """Return the properties, by name, that a resumed run must share because its numbers depend on them."""
        return {"the device": self.device.type, "the precision": self.precision}

    def describe(self) -> str:
        """Describe device, precision and compilation in a few words."""
        words = [str(self.device), self.precision, "compiled" if self.compiled else "eager"]
        words += ["deterministic"] * self.deterministic
        return ", ".join(words + [f"{self.world} processes"] * (self.world > 1))

    @contextmanager
    def configured(self) -> Iterator[None]:
        """Set the global switches of torch (TF32, algorithm search, determinism), and restore them afterwards.

        Searching for the fastest convolutions is worthwhile, because sizes are fixed.
        """
        if self.device.type != "cuda":
            yield
            return
        backends, matmul, cudnn = torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn
        before = (matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
        was_deterministic = torch.are_deterministic_algorithms_enabled()
        backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = self.precision == "bf16"
        cudnn.benchmark, cudnn.deterministic = not self.deterministic, self.deterministic
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by torch in this mode
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
            torch.use_deterministic_algorithms(was_deterministic)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context in which networks are computed."""
        return torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=True
        )

    def derive_seed(self, stream: str, *indices: int) -> int:
        """Derive a 63-bit seed from the run's seed, the name of the stream and the indices."""
        text = "/".join([str(self.seed), stream, *map(str, indices)])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def random_stream(self, stream: str, *indices: int) -> torch.Generator:
        """Return a new random generator on the device for one use, such as ("latent", epoch).

        Streams keep no state between epochs, so that a checkpoint after an epoch need not store any.
        """
        return torch.Generator(self.device).manual_seed(self.derive_seed(stream, *indices))

    @contextmanager
    def seeded_globals(self, stream: str, *indices: int) -> Iterator[None]:
        """Seed torch's global generators, from which dropout draws, and restore them afterwards."""
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
        if not self.compiled:
            return step
        # On a processor it warns that CUDA is missing, which is not used.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        return cast(Step, torch.compile(step, dynamic=False))

    def place(self, module: nn.Module) -> nn.Module:
        """Move a network to the device in channels-last layout, in which convolutions are fastest.

        On a processor, its convolutions avoid kernels of torch with wrong gradients.
        """
        if self.device.type == "cpu":
            avoid_unsound_kernels(module)
        # torch refuses this layout for tensors of five dimensions, such as the attention masks of an exported Swin.
        has_five = any(tensor.ndim == 5 for tensor in chain(module.parameters(), module.buffers()))
        layout = torch.preserve_format if has_five else torch.channels_last
        return module.to(device=self.device, memory_format=layout)  # type: ignore[call-overload,no-any-return]

    def synchronize(self) -> None:
        """Wait for the device, for example before reading a clock."""
        synchronize(self.device)

    @property
    def rank(self) -> int:
        """Number of this process among those of the run, from 0."""
        return 0 if self.processes is None else self.processes.rank

    @property
    def world(self) -> int:
        """Number of processes of the run."""
        return 1 if self.processes is None else self.processes.world

    def check_shares(self, sizes: Mapping[str, int]) -> None:
        """Raise `InputError` if the processes cannot share batches of these sizes, by the names of their settings."""
        for name, size in sizes.items():
            if size % self.world:
                raise InputError(
                    f"{self.world} processes cannot share a batch of {size} images equally; change {name}, or start "
                    "another number of processes"
                )

    def share(self, batch: Tensor) -> Tensor:
        """Return the rows of a batch (N, ...) that this process computes, (N / world, ...)."""
        return batch if self.processes is None else self.processes.share(batch)

    def whole(self, *shares: Tensor) -> tuple[Tensor, ...]:
        """Return the whole batches of shares (N / world, ...) of one dtype, with gradients.

        Wholes may be used only for what every process computes alike, such as a loss of the whole batch.
        """
        return shares if self.processes is None else self.processes.whole(*shares)

    def own_rows(self, images: Tensor) -> Tensor:
        """Return the rows of any number of images (N, ...), at least 1, that this process computes.

        Every process gets as many; the last image is repeated where there are too few.
        """
        if self.processes is None:
            return images
        count = -(-len(images) // self.world)
        rows = torch.arange(self.rank * count, (self.rank + 1) * count, device=images.device)
        return images[rows.clamp_max(len(images) - 1)]

    def all_rows(self, own: Tensor, count: int) -> Tensor:
        """Return what the processes have computed from their `own_rows` of `count` images, without gradients."""
        return own if self.processes is None else self.processes.gather(own)[:count]

    def whole_moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and biased variance (C,) of a whole batch from those of this process's share."""
        if self.processes is None:
            return mean, variance
        return combined_moments(*self.processes.whole(mean[None], variance[None]))

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace the gradients of parameters by their means over the processes."""
        if self.processes is not None:
            self.processes.average_gradients(parameters)

    def whole_batch_layers(self) -> AbstractContextManager[Any]:
        """Return the context in which batch norms and dropout act as on the whole batch, of which there is a share."""
        if self.processes is None:
            return nullcontext()
        from gapssg.core.whole_batch import WholeBatchLayers

        return WholeBatchLayers(self.processes)


def synchronize(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def computes_bf16_natively(device: torch.device) -> bool:
    """Tell whether the hardware has bfloat16 matrix instructions (emulation is slower than float32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def obstacle_to_compiling(device: torch.device) -> str | None:
    """Return why torch.compile cannot work here, or None: it needs a C++ compiler, on CUDA also Triton."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "compiling for CUDA needs Triton, which is not installed"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return f"compiling needs the C++ compiler {compiler}, which is not installed"
    return None


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


def _choose_own(name: str, processes: Processes) -> torch.device:
    """Return the device of this process: on CUDA, the GPU with its number on the machine."""
    device = _choose_device(name)
    if device.type != "cuda":
        return device
    if device.index is not None:
        raise InputError(f"--device {name}: each of several processes has a GPU of its own; use --device cuda")
    if processes.local_world > torch.cuda.device_count():
        raise InputError(
            f"{processes.local_world} processes on a machine with {torch.cuda.device_count()} CUDA devices: "
            "start one for each, or use --device cpu"
        )
    own = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(own)
    return own
