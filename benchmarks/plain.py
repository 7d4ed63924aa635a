"""A plain baseline of both steps, only for comparison with the training core.

It does what published implementations of data-free distillation do: float32 in NCHW, weight gradients of networks
that are not trained, statistics layer by layer from a copy of the inputs, a value read from the device in each step,
and a pool of PNG files that loader workers decode. Each switch removes one of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from gapssg.core.augment import Augmentation, crop_and_flip
from gapssg.models.generator import Generator
from gapssg.synthesis.batch_norm import statistics_distance

PADDING = 4
MEAN, DEVIATION = 0.5, 0.25
TEMPERATURE = 20.0


@dataclass(frozen=True)
class Switches:
    """The enabled optimisations, in the order in which the benchmark adds them."""

    frozen: bool = False
    one_pass_statistics: bool = False
    channels_last: bool = False
    bf16: bool = False
    no_host_synchronisation: bool = False
    pool_on_device: bool = False

    @classmethod
    def in_turn(cls, with_bf16: bool) -> Iterator[tuple[str, Switches]]:
        """Yield the plain baseline, and then each optimisation added to those before it."""
        names = [field.name for field in fields(cls) if with_bf16 or field.name != "bf16"]
        for count in range(len(names) + 1):
            label = "plain" if count == 0 else f"+ {names[count - 1].replace('_', ' ')}"
            yield label, cls(**dict.fromkeys(names[:count], True))


class PlainSynthesis:
    """One generator step at a time."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, image_shape: tuple[int, int, int], count: int, switches: Switches
    ) -> None:
        """Copy the networks and create a generator."""
        self.switches = switches
        self.teacher, self.student = (_prepare(network, switches).eval() for network in (teacher, student))
        self.generator = _prepare(Generator(image_shape), Switches(channels_last=switches.channels_last)).train()
        device = next(self.teacher.parameters()).device
        self.generator.to(device)
        if switches.frozen:
            self.teacher.requires_grad_(False)
            self.student.requires_grad_(False)
        self.latent = torch.randn(count, 256, device=device, requires_grad=True)
        self.targets = torch.randint(0, 10, (count,), device=device).sort().values
        parameters = [*self.generator.parameters(), self.latent]
        self.optimizer = torch.optim.Adam(parameters, lr=2e-3, betas=(0.5, 0.999))
        self.augmentation = Augmentation(PADDING, True)
        self.random = torch.Generator(device).manual_seed(0)
        self.best: Tensor | None = None
        self.lowest: Any = float("inf")
        self.distances: list[Tensor] = []
        distance = statistics_distance if switches.one_pass_statistics else _distance_by_copy
        for layer in self.teacher.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._observe(distance))

    def _observe(self, distance: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., None]:
        def hook(layer: nn.BatchNorm2d, inputs: tuple[Tensor], _: Tensor) -> None:
            assert layer.running_mean is not None
            assert layer.running_var is not None
            self.distances.append(distance(inputs[0], layer.running_mean, layer.running_var))

        return hook

    def step(self) -> None:
        """Run one step."""
        self.distances.clear()
        with _autocast(self.latent.device, self.switches):
            images = self.generator(self.latent)
            shifts = self.augmentation.draw(len(images), self.random)
            views = (crop_and_flip(images, shifts) - MEAN) / DEVIATION
            if self.switches.channels_last:
                views = views.contiguous(memory_format=torch.channels_last)
            teacher_logits = self.teacher(views).float()
            student_logits = self.student(views).float()
        gap = (teacher_logits.softmax(1) - student_logits.softmax(1)).abs().amax(1).mean().detach()
        disagreement = F.cross_entropy((teacher_logits - student_logits) / 2, self.targets)
        agreement = F.cross_entropy(teacher_logits + student_logits, self.targets)
        loss = sum(self.distances) + 0.5 * (1 - torch.exp(-gap)) * (disagreement + 0.2 * agreement)
        assert isinstance(loss, Tensor)
        if self.switches.no_host_synchronisation:
            lowest = torch.as_tensor(self.lowest, device=loss.device)
            best = images if self.best is None else self.best
            self.best = torch.where(loss.detach() < lowest, images.detach(), best.detach())
            self.lowest = torch.minimum(loss.detach(), lowest)
        elif loss.item() < self.lowest:
            self.lowest, self.best = loss.item(), images.detach().clone()
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


class PlainDistillation:
    """One distillation step at a time."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, images: Tensor, count: int, switches: Switches, folder: Path
    ) -> None:
        """Copy the networks; write the pool (N, C, H, W) uint8 to `folder` as PNG, unless it is kept in memory."""
        self.switches = switches
        self.teacher, self.student = (_prepare(network, switches) for network in (teacher, student))
        self.teacher.eval()
        self.student.train()
        self.count = count
        self.device = next(self.teacher.parameters()).device
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4)
        self.augmentation = Augmentation(PADDING, True)
        self.random = torch.Generator(self.device).manual_seed(0)
        self.pool = images.to(self.device)
        self.total = 0.0
        self.batches: Iterator[Tensor] = iter(())
        if not switches.pool_on_device:
            folder.mkdir(parents=True, exist_ok=True)
            for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(folder / f"{index:06d}.png")
            pool = _PngFolder(folder, images.shape[-1])
            # An endless pass: restarting the workers for each pass over a small pool would distort their time.
            order = RandomSampler(pool, replacement=True, num_samples=1_000_000_000)
            self.loader = DataLoader(pool, batch_size=count, sampler=order, num_workers=2)

    def _next(self) -> Tensor:
        if self.switches.pool_on_device:
            indices = torch.randint(0, len(self.pool), (self.count,), generator=self.random, device=self.device)
            shifts = self.augmentation.draw(self.count, self.random)
            views = (crop_and_flip(self.pool[indices] / 255, shifts) - MEAN) / DEVIATION
        else:
            try:
                views = next(self.batches)
            except StopIteration:
                self.batches = iter(self.loader)
                views = next(self.batches)
            views = views.to(self.device)
        return views.contiguous(memory_format=torch.channels_last) if self.switches.channels_last else views

    def step(self) -> None:
        """Run one step."""
        views = self._next()
        with _autocast(self.device, self.switches):
            with torch.no_grad():
                teacher_logits = self.teacher(views).float()
            student_logits = self.student(views).float()
        loss = (
            F.kl_div(
                F.log_softmax(student_logits / TEMPERATURE, dim=1),
                F.softmax(teacher_logits / TEMPERATURE, dim=1),
                reduction="batchmean",
            )
            * TEMPERATURE**2
        )
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        if not self.switches.no_host_synchronisation:
            self.total += loss.item()


class _PngFolder(Dataset[Tensor]):
    def __init__(self, folder: Path, side: int) -> None:
        self.files = sorted(folder.glob("*.png"))
        steps = [v2.RandomCrop(side, PADDING), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, True)]
        self.transform = v2.Compose([*steps, v2.Normalize([MEAN] * 3, [DEVIATION] * 3)])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            views: Tensor = self.transform(image.convert("RGB"))
        return views


def _prepare(network: nn.Module, switches: Switches) -> nn.Module:
    layout = torch.channels_last if switches.channels_last else torch.contiguous_format
    prepared: nn.Module = copy.deepcopy(network).requires_grad_(True).to(memory_format=layout)
    return prepared


@contextmanager
def _autocast(device: torch.device, switches: Switches) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=switches.bf16):
        yield


def _distance_by_copy(inputs: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    channels = inputs.shape[1]
    mean = inputs.float().mean([0, 2, 3])
    variance = inputs.float().permute(1, 0, 2, 3).contiguous().view(channels, -1).var(1, unbiased=False)
    distance: Tensor = torch.norm(running_var - variance, 2) + torch.norm(running_mean - mean, 2)
    return distance
