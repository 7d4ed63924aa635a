"""How student and teacher compare on probe images that the method under judgement did not optimise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.errors import NotFinite
from gapssg.evaluation.predict import predict
from gapssg.quality.predictor import summary
from gapssg.quality.probes import PROBES, ImageShape, dead_leaves
from gapssg.runs.results.quality import ProbeEvidence
from gapssg.synthesis.losses import reality_gaps

OVERLAID = "overlaid"
"""Probe images made of images of the pool."""
PROBE_COUNT = 256
"""Images of each kind, if they have at most 128x128 pixels; of larger ones there are fewer."""
_FEWEST = 32
_PIXELS = 128 * 128
_SHARE_OF_LEAVES = 0.3
_TIMES_OF_CLASSES = 4
"""So many times the probe images of a kind are the images of the pool on which classes are compared."""


def probe_count(shape: ImageShape) -> int:
    """Return how many probe images of this shape there are of each kind."""
    return min(PROBE_COUNT, max(_FEWEST, PROBE_COUNT * _PIXELS // (shape[1] * shape[2])))


def probe_images(shape: ImageShape, pool: Tensor | None, runtime: Runtime) -> Iterator[tuple[str, Tensor]]:
    """Yield the probe images of each kind, (N, C, H, W) float32 in [0, 1] on the device.

    `strokes` and `mixtures` are procedural; `overlaid` are images of the pool, (N, C, H, W) uint8, if there is one,
    with dead leaves over them. Further kinds were measured and predict no better: procedural noise and dead leaves
    alone, images of the pool unchanged, with noise, other contrast, blurred, and mixed in pairs.
    """
    count = probe_count(shape)
    for name, make in PROBES.items():
        yield name, make(count, shape, runtime.random_stream(f"probes, {name}"))
    if pool is None:
        return
    order = torch.randperm(len(pool), generator=runtime.random_stream("probes, pool"), device=runtime.device)
    chosen = to_unit_range(pool[order[:count].to(pool.device)].to(runtime.device))
    leaves = dead_leaves(len(chosen), shape, runtime.random_stream("probes, leaves"))
    yield OVERLAID, (1 - _SHARE_OF_LEAVES) * chosen + _SHARE_OF_LEAVES * leaves


Answers = tuple[Tensor, Tensor]
"""The logits (N, K) of teacher and student on the same images."""


class ProbeComparison:
    """Compares students with a teacher on each kind of probe images, and on images of a pool."""

    def __init__(
        self, teacher: nn.Module, normalization: Normalization, shape: ImageShape, pool: Tensor | None, runtime: Runtime
    ) -> None:
        """Compute the answers of a teacher to the probe images.

        Args:
            teacher: Maps normalised images to logits, on the device.
            normalization: The normalisation that it shares with the students.
            shape: Channels, height and width of the images.
            pool: Images for `overlaid`, (N, C, H, W) uint8, of the pool that the students learned from, as in the
                calibration: on those of other pools they differ more often; None without such a pool.
            runtime: Device, precision and random streams.
        """
        self._teacher, self._normalization, self._shape, self._runtime = teacher, normalization, shape, runtime
        self._answered = [
            (name, images, self._predict(teacher, images)) for name, images in probe_images(shape, pool, runtime)
        ]

    def answers(self, student: nn.Module) -> dict[str, Answers]:
        """Return the answers to each kind of probe images of a student, which maps normalised images to logits, too."""
        return {name: (logits, self._predict(student, images)) for name, images, logits in self._answered}

    def answers_to_pool(self, student: nn.Module, pool: Tensor) -> Answers:
        """Return the answers to images of any pool, (N, C, H, W) uint8, on which classes are compared."""
        stream, device = self._runtime.random_stream("probes, classes"), self._runtime.device
        order = torch.randperm(len(pool), generator=stream, device=device)
        chosen = pool[order[: _TIMES_OF_CLASSES * probe_count(self._shape)].to(pool.device)]
        return self._predict(self._teacher, chosen), self._predict(student, chosen)

    def disagreement(self, student: nn.Module) -> float:
        """Return the disagreement from which `Predictor` predicts that on real images, as an angle.

        Raises `NotFinite` if logits are not finite.
        """
        evidence = evidence_by_kind(self.answers(student))
        return summary(evidence, evidence)

    def _predict(self, module: nn.Module, images: Tensor) -> Tensor:
        return predict(module, images, self._normalization, self._runtime)


def joined(answers: Iterable[Answers]) -> Answers:
    """Return the answers to all images."""
    teacher, student = map(torch.cat, zip(*answers, strict=True))
    return teacher, student


def evidence_by_kind(answers: Mapping[str, Answers]) -> dict[str, ProbeEvidence]:
    """Return the evidence of answers by kind of probe images; raise `NotFinite` if they are not finite."""
    return {kind: evidence_of(*each) for kind, each in answers.items()}


def evidence_of(teacher_logits: Tensor, student_logits: Tensor) -> ProbeEvidence:
    """Return the evidence of logits (N, K) on the images of one kind; raise `NotFinite` if they are not finite."""
    for whose, logits in (("teacher", teacher_logits), ("student", student_logits)):
        if not logits.isfinite().all():
            raise NotFinite(
                f"the {whose}'s logits on probe images are not finite; try --precision fp32, or another {whose}"
            )
    (first, second), answers = teacher_logits.softmax(dim=1).topk(2).values.double().T, teacher_logits.argmax(dim=1)
    differs, margin = (student_logits.argmax(dim=1) != answers).double(), first - second
    return ProbeEvidence(
        images=len(answers),
        disagreement=differs.mean().item(),
        weighted_disagreement=((differs * margin).sum() / margin.sum().clamp_min(1e-9)).item(),
        reality_gap=reality_gaps(teacher_logits, student_logits).double().mean().item(),
        teacher_confidence=first.mean().item(),
        largest_class=answers.bincount().max().item() / len(answers),
    )
