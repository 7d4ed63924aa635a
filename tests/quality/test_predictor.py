"""The predictor: monotone, bounded to what it was calibrated on, and complete in the package."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path

import pytest

from gapssg.quality.predictor import (
    WITH_POOL,
    WITHOUT_POOL,
    Predictor,
    angle_of,
    is_like_a_constant,
    load_predictors,
    share_of,
)
from gapssg.runs.results.quality import ProbeEvidence

SMALL = {
    "kinds": ("strokes", "mixtures"),
    "observed": {"low": 0.2, "high": 1.2},
    "largest_class": {"low": 0.1, "high": 0.7},
    "coefficient": 0.5,
    "intercept": 0.1,
    "error": {"coefficient": 0.2, "intercept": 0.1, "smallest": 0.15},
    "coverage": 0.9,
    "classes": {"low": 2, "high": 26},
    "pixels": {"low": 16, "high": 96},
    "channels": {"low": 1, "high": 3},
    "have_batch_norm": True,
    "cells": 10,
    "teachers": 4,
    "sources": 2,
}


CONSTANT = (
    "on probe images the student agrees hardly more often than a constant answer would, "
    "so they do not show how good it is"
)


def evidence(share: float, largest_class: float = 0.2) -> dict[str, ProbeEvidence]:
    one = ProbeEvidence(
        images=256,
        disagreement=share,
        weighted_disagreement=share,
        reality_gap=0.1,
        teacher_confidence=0.8,
        largest_class=largest_class,
    )
    return {"strokes": one, "mixtures": one}


@pytest.fixture
def predictor() -> Predictor:
    return Predictor.model_validate(SMALL, strict=False)


def test_angles_are_inverted_and_bounded():
    assert angle_of(0.0) == 0.0
    assert angle_of(1.0) == pytest.approx(math.pi / 2)
    assert share_of(angle_of(0.37)) == pytest.approx(0.37)
    assert share_of(-0.1) == 0.0
    assert share_of(2.0) == 1.0


def test_a_prediction_is_linear_in_angles(predictor):
    angle = angle_of(0.3)
    found = predictor.predict(evidence(0.3))
    assert angle_of(found.value) == pytest.approx(0.1 + 0.5 * angle)
    assert angle_of(found.high) == pytest.approx(0.2 + 0.7 * angle)
    assert angle_of(found.low) == pytest.approx(0.3 * angle)


def test_the_interval_is_never_shorter_than_the_smallest(predictor):
    best = predictor.predict(evidence(0.0))  # of an angle of 0.2
    assert angle_of(best.high) == pytest.approx(0.1 + 0.5 * 0.2 + 0.15)


def test_more_disagreement_on_probe_images_never_predicts_less(predictor):
    values = [predictor.predict(evidence(share / 100)).value for share in range(0, 101, 5)]
    assert values == sorted(values)


def test_a_better_student_than_all_of_the_calibration_is_predicted_like_the_best_of_these(predictor):
    assert predictor.predict(evidence(0.0)) == predictor.predict(evidence(0.01))
    assert predictor.obstacles_of(evidence(0.0)) == []


def test_a_student_with_one_answer_is_refused_however_often_its_teacher_gives_that(predictor):
    # A constant student differs wherever the teacher does not give its commonest class.
    assert predictor.obstacles_of(evidence(0.4, largest_class=0.6)) == [CONSTANT]
    assert predictor.obstacles_of(evidence(0.2, largest_class=0.6)) == []
    assert predictor.obstacles_of(evidence(0.02, largest_class=0.86)) == [
        "the teacher gives one class to 86.0 % of the probe images; the predictor was calibrated for 10.0 % to 70.0 %"
    ]
    assert predictor.obstacles_of(evidence(0.02, largest_class=0.05)) == [
        "the teacher gives one class to 5.0 % of the probe images; the predictor was calibrated for 10.0 % to 70.0 %"
    ]


def test_it_names_each_reason_not_to_apply(predictor):
    assert predictor.obstacles_of_task(10, (1, 32, 40)) == predictor.obstacles_of(evidence(0.3)) == []
    assert predictor.obstacles_of_task(100, (4, 230, 224)) == [
        "it was calibrated for 2 to 26 classes, not 100",
        "it was calibrated for 16 to 96 pixels (shorter side), not 224",
        "it was calibrated for 1 to 3 channels, not 4",
    ]
    assert predictor.obstacles_of(evidence(0.99)) == [
        "it was calibrated for a disagreement on probe images of at most 86.9 %, not 99.0 %",
        CONSTANT,
    ]


def test_the_package_holds_both_predictors():
    predictors = load_predictors()
    assert set(predictors) == {WITH_POOL, WITHOUT_POOL}
    assert "overlaid" in predictors[WITH_POOL].kinds
    assert "overlaid" not in predictors[WITHOUT_POOL].kinds
    assert all(each.coefficient > 0 for each in predictors.values())


def test_no_student_of_the_calibration_would_be_refused():
    table = Path(__file__).parents[2] / "benchmarks" / "results" / "estimator.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for predictor in load_predictors().values():
        measured = [evidence_in(row, predictor.kinds) for row in rows if row[f"{predictor.kinds[-1]}.images"]]
        kept = [each for each in measured if not is_like_a_constant(each, predictor.kinds)]
        assert len(kept) == predictor.cells < len(measured)
        assert all(predictor.obstacles_of(each) == [] for each in kept)
        # The table is rounded to four digits, what the program measures is not.
        for rounding in (-4.9e-5, 4.9e-5):
            shares = [statistics.mean(each[kind].largest_class + rounding for kind in predictor.kinds) for each in kept]
            assert all(map(predictor.largest_class.holds, shares))


def evidence_in(row: dict[str, str], kinds: tuple[str, ...]) -> dict[str, ProbeEvidence]:
    """Return the evidence of a row of the table."""
    shares = [name for name in ProbeEvidence.model_fields if name != "images"]
    return {
        kind: ProbeEvidence(
            images=int(float(row[f"{kind}.images"])), **{name: float(row[f"{kind}.{name}"]) for name in shares}
        )
        for kind in kinds
    }
