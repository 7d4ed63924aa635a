"""User factories, valid and invalid, which tests name as `tests.models.factories:NAME`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms
from torchvision.ops import FrozenBatchNorm2d

NUMBER = 3


def small(num_classes: int, in_channels: int, width: int = 4) -> nn.Module:
    """A convolution with batch norm, dropout, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(width, num_classes),
    )


def ten_classes() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 10))


def without_linear_layer(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def without_statistics(num_classes: int, in_channels: int, pixels: int = 14) -> nn.Module:
    """A batch norm that always uses the statistics of the batch."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3),
        nn.AdaptiveAvgPool2d(pixels),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
        nn.Linear(4 * pixels**2, num_classes),
    )


class OutOfOrder(nn.Module):
    """Executes its layers in another order than they are registered, one of them twice and one never."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(6, num_classes)
        self.unused_norm = nn.BatchNorm2d(5)
        self.unused_head = nn.Linear(2, num_classes)
        self.second_norm = nn.BatchNorm1d(6)
        self.first_norm = FrozenBatchNorm2d(4)
        self.convolution = nn.Conv2d(in_channels, 4, 3)
        self.middle = nn.Linear(4, 6)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.first_norm(self.first_norm(self.convolution(images))))
        return self.head(F.relu(self.second_norm(self.middle(features.mean(dim=(2, 3))))))


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(256, 10)
        self.second = nn.Linear(256, 10)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images.flatten(1)) + self.second(images.flatten(1))


class AlwaysDropping(nn.Module):
    """Applies dropout in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        return F.dropout(self.linear(images.flatten(1)), training=True)


class Looking(nn.Module):
    """Depends on the values of its input, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1) if images.isfinite().all() else -images.flatten(1))


def raising(num_classes: int) -> nn.Module:
    raise RuntimeError("no such width\nand more of it")


def leaving() -> nn.Module:
    raise SystemExit(3)


def returning_a_dictionary() -> object:
    return {"weights": torch.zeros(1)}


def without_weights() -> nn.Module:
    return nn.Flatten()


def features_only(in_channels: int) -> nn.Module:
    return nn.Conv2d(in_channels, 8, 3)


def not_finite() -> nn.Module:
    module = ten_classes()
    nn.init.constant_(module[1].weight, float("inf"))
    return module


class AlwaysTraining(nn.Sequential):
    """Ignores eval()."""

    def __init__(self) -> None:
        super().__init__(small(10, 1))

    def train(self, mode: bool = True) -> Self:
        return super().train(True)


def partly_always_training() -> nn.Module:
    return nn.Sequential(AlwaysTraining())


class ByItsBatch(nn.Module):
    """Normalises by the statistics of the batch in every mode, and stores them or not."""

    def __init__(self, keeps: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("variance", torch.ones(10))
        self.keeps = keeps

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        if self.keeps:
            self.mean.lerp_(logits.mean(0), 0.1)
        return logits - logits.mean(0, keepdim=True) / 2


class Printing(nn.Sequential):
    """Says what it does."""

    def __init__(self) -> None:
        print("making it")
        super().__init__(nn.Flatten(), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        print("running it")
        return super().forward(images)


class Squeezing(nn.Module):
    """Drops the batch dimension of a single image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1)).squeeze()


class InPairs(nn.Module):
    """Accepts only an even number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.view(-1, 2, 256)).flatten(0, 1)


class WithAnother(nn.Module):
    """Has state besides weights: a buffer of some dtype, an extra state, or a tensor outside its state dict."""

    def __init__(self, kind: str = "none", num_classes: int = 10) -> None:
        super().__init__()
        self.linear = nn.Linear(256, num_classes)
        self.kind = kind
        if kind == "hidden":
            self.hidden = torch.randn(num_classes)
        elif kind != "none":
            self.register_buffer("other", torch.ones(3).to(getattr(torch, kind)))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.flatten(1))
        return logits + self.hidden if self.kind == "hidden" else logits


class WithExtraState(WithAnother):
    """Puts a dictionary into its state dict."""

    def get_extra_state(self) -> object:
        return {"steps": 3}

    def set_extra_state(self, state: object) -> None:
        pass


class Ending(nn.Module):
    """Ends in a softmax, a log-softmax or a sigmoid, if asked in evaluation alone, and may normalise its input."""

    def __init__(
        self, num_classes: int, in_channels: int, kind: str = "softmax", while_training: bool = True, mean: float = 0.0
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes))
        self.kind, self.while_training, self.mean = kind, while_training, mean

    def forward(self, images: Tensor) -> Tensor:
        logits = self.body(images - self.mean)
        if self.training and not self.while_training:
            return logits
        return logits.sigmoid() if self.kind == "sigmoid" else getattr(logits, self.kind)(1)


@dataclass
class Answer:
    """An output with attributes, as of Hugging Face."""

    loss: None
    logits: Tensor
    hidden_states: tuple[Tensor, ...] = ()


class WithAuxiliary(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


class Answering(nn.Module):
    """Returns what `body` computes in one of many ways."""

    def __init__(self, num_classes: int, in_channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        outputs = 1 if kind.startswith(("logit", "sigmoid ")) else num_classes
        self.convolution, self.norm = nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, outputs)

    def body(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.convolution(images)).relu().mean((2, 3)))

    def forward(self, images: Tensor) -> object:
        if self.kind.endswith("NHWC"):
            images = images.permute(0, 3, 1, 2)
        logits = self.body(images)
        answers: dict[str, Callable[[], object]] = {
            "logit (N, 1)": lambda: logits,
            "logit (N,)": lambda: logits.squeeze(),
            "sigmoid (N, 1)": lambda: logits.sigmoid(),
            "sigmoid (N,)": lambda: logits.sigmoid().squeeze(1),
            "sigmoids": lambda: logits.sigmoid(),
            "log_softmax": lambda: logits.log_softmax(1),
            "sigmoid in a dict, NHWC": lambda: {"features": images, "p": logits.sigmoid()},
            "softmax in a tuple": lambda: (logits.softmax(1), images),
            "list": lambda: [images, logits],
            "dict": lambda: {"features": images, "logits": logits, "auxiliary": 2 * logits},
            "object": lambda: Answer(None, logits, (images,)),
            "auxiliary in training": lambda: WithAuxiliary(logits, 2 * logits) if self.training else logits,
            "auxiliary": lambda: WithAuxiliary(logits, 2 * logits),
            "NHWC": lambda: logits,
            "pair": lambda: (logits, 2 * logits),
            "pair in training": lambda: (logits, 2 * logits) if self.training else logits,
            "mirrored": lambda: torch.stack([logits[:, 0], -logits[:, 0]], 1),
            "percent": lambda: 100 * logits.softmax(1),
            "negated": lambda: -logits.softmax(1),
            "nothing": lambda: {"features": images},
            "nan": lambda: logits / (images.amax((1, 2, 3)) < 5)[:, None],
            "fixed": lambda: self.body(images.view(1, *images.shape[1:])),
            "fixed answer": lambda: self.head(self.norm(self.convolution(images)).relu().view(1, 4, -1).mean(2)),
        }
        return answers[self.kind]()


def bright_above_125() -> nn.Module:
    """Returns the logit of the second class, dark, of pixels from 0 to 255."""
    head = nn.Linear(1, 1)
    nn.init.constant_(head.weight, -1.0)
    nn.init.constant_(head.bias, 125.0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def normalising(num_classes: int, in_channels: int) -> nn.Module:
    """Begins with a normalisation."""
    return nn.Sequential(
        transforms.Normalize([0.4] * in_channels, [0.2] * in_channels), small(num_classes, in_channels)
    )


class Versioned(nn.Linear):
    """Refuses a state dict of unknown version, like torchvision's MNASNet."""

    _version = 2

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def versioned(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Versioned(256, num_classes))


def not_initialised() -> nn.Module:
    """Creates its linear layer without initialising it, for weights that are loaded afterwards."""
    module = ten_classes()
    nn.init.constant_(module[1].weight, float("nan"))
    return module


def lazy() -> nn.Module:
    """Has lazy layers."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(10))


class Unsignable:
    """Can be called, but its signature cannot be read."""

    def __call__(self) -> nn.Module:
        return ten_classes()

    @property
    def __signature__(self) -> object:
        raise RuntimeError("no signature")


UNSIGNABLE = Unsignable()


def __getattr__(name: str) -> object:
    if name == "not_to_be_asked_for":
        raise RuntimeError("ask me not")
    raise AttributeError(name)


class NotFinite(nn.Module):
    """Returns NaN for images whose standard deviation, after normalisation and of their first rows, is in a range."""

    def __init__(self, num_classes: int, in_channels: int, low: float, high: float, rows: int = 16) -> None:
        super().__init__()
        self.body = small(num_classes, in_channels)
        self.low, self.high, self.rows = low, high, rows

    def forward(self, images: Tensor) -> Tensor:
        deviation = images[:, :, : self.rows].flatten(1).std(1)
        logits = self.body(images)
        return torch.where(((deviation >= self.low) & (deviation <= self.high))[:, None], torch.nan, logits)


def frozen(num_classes: int, in_channels: int) -> nn.Module:
    return small(num_classes, in_channels).requires_grad_(False)


class WithoutGradients(nn.Module):
    """Computes its logits without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.body = ten_classes()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)
