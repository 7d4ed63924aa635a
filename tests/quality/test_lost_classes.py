"""An estimate of a student that has lost classes of which the probe images show too little."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gapssg.core.runtime import Runtime
from gapssg.models.description import Provenance
from gapssg.models.model_file import LoadedModel
from gapssg.quality.estimate import judge_quality
from gapssg.quality.lost_classes import ClassEvidence, Source, class_evidence, obstacles_of_classes
from gapssg.quality.predictor import WITH_POOL, WITHOUT_POOL, load_predictors
from gapssg.runs.results.quality import Prediction, QualityFacts
from tests.conftest import make_card

LEVELS = torch.tensor([0.18, *(0.02 * step for step in range(7)), 0.3, 0.74])
"""Brightness of the images of each class: the probe images are nearly all of classes 0, 8 and 9."""


def brightness_teacher(norm: nn.Module) -> nn.Module:
    """Give an image to the class whose level is the nearest to its mean brightness."""
    linear = nn.Linear(1, 10)
    with torch.no_grad():
        linear.weight.copy_(1600 * LEVELS[:, None])
        linear.bias.copy_(-800 * LEVELS**2)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm, linear).eval()


@pytest.fixture
def pool() -> Tensor:
    """40 images of each class."""
    levels = LEVELS.repeat(40)[:, None, None, None].expand(-1, 1, 16, 16)
    noise = 0.02 * torch.randn(levels.shape, generator=torch.Generator().manual_seed(0))
    return (255 * (levels + noise)).round().clamp(0, 255).to(torch.uint8)


def judged(
    teacher: nn.Module,
    pool: Tensor | None,
    runtime: Runtime,
    classes: tuple[int, ...] = (),
    bias: float = 0.0,
    learned_from_pool: bool = True,
    provenance: Provenance | None = None,
) -> QualityFacts:
    """Judge the teacher with a bias of some classes as its own student."""
    student = deepcopy(teacher)
    with torch.no_grad():
        student[-1].bias[list(classes)] += bias
    described = LoadedModel(teacher, make_card(mean=(0.0,), deviation=(1.0,)), "0" * 64, Path("teacher.safetensors"))
    return judge_quality(teacher, student, described, pool, runtime, learned_from_pool, 0.9, provenance)


@pytest.mark.slow
@pytest.mark.parametrize("has_pool", [True, False])
@pytest.mark.parametrize(
    ("classes", "bias", "lost", "disagreement"),
    [
        ((1, 2, 3, 4, 5), -1000.0, "'1', '2', '3', '4' and '5'", 0.5),
        ((0, 8, 9), 1000.0, "'1', '2', '3', '4', '5' and 2 more", 0.7),
        ((0, 8, 9), 6.0, "'6' and '7'", 0.2),
    ],
)
def test_a_narrow_interval_of_a_student_without_some_classes_is_refused(
    pool: Tensor, runtime: Runtime, has_pool: bool, classes, bias: float, lost: str, disagreement: float
):
    found = judged(brightness_teacher(nn.BatchNorm1d(1)), pool if has_pool else None, runtime, classes, bias)
    predictor = load_predictors()[WITH_POOL if has_pool else WITHOUT_POOL]
    assert predictor.obstacles_of(found.evidence) == []
    assert predictor.predict(found.evidence).high < disagreement
    assert found.disagreement is None and found.top1 is None
    (obstacle,) = found.obstacles
    if has_pool:
        assert obstacle.startswith(f"the student has lost classes {lost}: it agrees")
    else:
        assert "for only 3 of the 10 classes that the student has not lost them" in obstacle
        assert "--pool RUN" in obstacle


def test_a_student_with_all_classes_has_an_interval(pool: Tensor, runtime: Runtime):
    found = judged(brightness_teacher(nn.BatchNorm1d(1)), pool, runtime)
    assert found.obstacles == ()
    assert found.disagreement is not None and found.top1 is not None
    assert found.disagreement.low is not None and found.disagreement.high is not None
    assert found.disagreement.low <= found.disagreement.value < found.disagreement.high < 0.1
    assert found.top1.low == pytest.approx(0.9 - found.disagreement.high)
    assert found.top1.high == pytest.approx(0.9 + found.disagreement.high)


@pytest.mark.parametrize(
    ("of_student", "others"),
    [
        ({"procedural": True}, "have not learned from procedural images"),
        ({"initial_weights": True}, "had seen no images before the run"),
        ({"pool_teacher_sha256": "0" * 64}, "learned from images of their own teacher"),
    ],
)
def test_a_student_unlike_those_of_the_calibration_has_none(
    pool: Tensor, runtime: Runtime, of_student: dict[str, Any], others: str
):
    provenance = Provenance(command="distill", **of_student)
    found = judged(brightness_teacher(nn.BatchNorm1d(1)), pool, runtime, provenance=provenance)
    assert found.obstacles == (f"it was calibrated only for students that {others}",)
    assert found.disagreement is not None and found.disagreement.low is None and found.top1 is None


@pytest.mark.parametrize(("has_pool", "images"), [(True, 3 * 256 + 400), (False, 2 * 256)])
def test_each_model_answers_to_each_image_once(pool: Tensor, runtime: Runtime, has_pool: bool, images: int):
    counted = list[int]()
    teacher = brightness_teacher(nn.BatchNorm1d(1))
    teacher.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    found = judged(teacher, pool if has_pool else None, runtime)  # the copy has the hook, too
    assert found.evidence
    assert sum(counted) == 2 * images


def test_a_pool_of_few_classes_does_not_show_the_others(pool: Tensor, runtime: Runtime):
    few = pool.view(40, 10, 1, 16, 16)[:, [0, 8, 9]].flatten(0, 1)
    (obstacle,) = judged(brightness_teacher(nn.BatchNorm1d(1)), few, runtime).obstacles
    assert "images of the pool show for only 3 of the 10 classes" in obstacle


def test_another_pool_shows_the_classes_but_predicts_nothing(pool: Tensor, runtime: Runtime):
    teacher = brightness_teacher(nn.BatchNorm1d(1))
    found = judged(teacher, pool, runtime, learned_from_pool=False)
    assert found.obstacles == () and set(found.evidence) == {"strokes", "mixtures"}
    predictor = load_predictors()[WITHOUT_POOL]
    assert found.calibrated_on == predictor.calibrated_on
    assert found.disagreement == Prediction(**dict(predictor.predict(found.evidence)))
    (obstacle,) = judged(teacher, pool, runtime, (1, 2), -1000.0, learned_from_pool=False).obstacles
    assert obstacle.startswith("the student has lost classes '1' and '2'")


def test_a_teacher_without_batch_norm_has_a_prediction_without_an_interval(pool: Tensor, runtime: Runtime):
    found = judged(brightness_teacher(nn.Identity()), pool, runtime)
    with_norm = judged(brightness_teacher(nn.BatchNorm1d(1)), pool, runtime)
    assert found.disagreement is not None and with_norm.disagreement is not None
    assert (found.disagreement.low, found.disagreement.high, found.top1) == (None, None, None)
    assert found.disagreement.value == pytest.approx(with_norm.disagreement.value, abs=1e-3)
    assert found.described == [
        "predicted disagreement with the teacher on real images: "
        f"{100 * found.disagreement.value:.1f} %; no interval: it was calibrated only for teachers with batch norm"
    ]
    assert QualityFacts.read(found.model_dump_json().encode(), "result.json") == found


ALL_ALIKE = ClassEvidence(kept=10, lost=(), images=1000, weighted_disagreement=0.28)
NAMES = tuple("0123456789")


def test_more_disagreement_on_the_own_pool_than_predicted_contradicts_the_interval():
    (obstacle,) = obstacles_of_classes(ALL_ALIKE, NAMES, 0.17, "own pool")
    assert "disagrees with the teacher on 28.0 % of the images of the pool" in obstacle
    # The 95 % interval of 18 % of 1,000 images reaches down to 15.7 %.
    assert obstacles_of_classes(ALL_ALIKE._replace(weighted_disagreement=0.18), NAMES, 0.17, "own pool") == []
    assert obstacles_of_classes(ALL_ALIKE, NAMES, 0.3, "own pool") == []
    assert obstacles_of_classes(ALL_ALIKE, NAMES, 0.17, "other pool") == []
    assert obstacles_of_classes(ALL_ALIKE, NAMES, 0.17, "probe images") == []


@pytest.mark.parametrize("source", ["own pool", "other pool"])
def test_every_pool_shows_which_classes_a_student_has(source: Source):
    (obstacle,) = obstacles_of_classes(ALL_ALIKE._replace(kept=9, lost=[3]), NAMES, 0.17, source)
    assert obstacle.startswith("the student has lost class '3': it agrees with the teacher on less than 10.0 % of the")
    (obstacle,) = obstacles_of_classes(ALL_ALIKE._replace(kept=8), NAMES, 0.17, source)
    assert "images of the pool show for only 8 of the 10 classes" in obstacle


def test_classes_are_judged_by_the_answers_of_the_teacher():
    teacher, student = torch.tensor([0] * 10 + [1] * 9 + [2] * 11), torch.tensor([1] * 10 + [1] * 9 + [0] * 9 + [2] * 2)
    found = class_evidence(5 * torch.eye(4)[teacher], 5 * torch.eye(4)[student])
    assert (found.kept, found.lost, found.images) == (1, [0], 30)
    assert found.weighted_disagreement == pytest.approx(19 / 30)
