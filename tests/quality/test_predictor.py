"""The predictor: monotone, bounded to what it was calibrated on, and complete in the package."""

from __future__ import annotations

import math

import pytest

from gapssg.quality.predictor import WITH_POOL, WITHOUT_POOL, Predictor, load_predictors, log_odds, share_of
from gapssg.runs.results import ProbeEvidence

SMALL = {
    "kinds": ("strokes", "mixtures"),
    "observed": {"low": -3.0, "high": 2.0},
    "coefficient": 0.5,
    "intercept": -1.0,
    "error": 1.0,
    "coverage": 0.9,
    "classes": {"low": 2, "high": 26},
    "pixels": {"low": 16, "high": 96},
    "cells": 10,
    "teachers": 4,
    "sources": 2,
}


def evidence(share: float) -> dict[str, ProbeEvidence]:
    one = ProbeEvidence(
        images=256,
        disagreement=share,
        weighted_disagreement=share,
        reality_gap=0.1,
        teacher_confidence=0.8,
        largest_class=0.2,
    )
    return {"strokes": one, "mixtures": one}


@pytest.fixture
def predictor() -> Predictor:
    return Predictor.model_validate(SMALL, strict=False)


def test_log_odds_are_finite_odd_and_inverted():
    assert log_odds(0.0, 100) == pytest.approx(math.log(0.5 / 100.5))
    assert log_odds(1.0, 100) == pytest.approx(-log_odds(0.0, 100))
    assert share_of(log_odds(0.25, 10**9)) == pytest.approx(0.25)


def test_a_prediction_is_linear_in_log_odds(predictor):
    odds = log_odds(0.3, 256)
    found = predictor.predict(evidence(0.3))
    assert log_odds(found.value, 10**12) == pytest.approx(-1 + 0.5 * odds)
    assert log_odds(found.high, 10**12) == pytest.approx(0.5 * odds)
    assert log_odds(found.low, 10**12) == pytest.approx(-2 + 0.5 * odds)


def test_more_disagreement_on_probe_images_never_predicts_less(predictor):
    values = [predictor.predict(evidence(share / 100)).value for share in range(0, 101, 5)]
    assert values == sorted(values)


def test_a_better_student_than_all_of_the_calibration_is_predicted_like_the_best_of_these(predictor):
    assert predictor.predict(evidence(0.0)) == predictor.predict(evidence(0.01))
    assert predictor.obstacles(evidence(0.0), 10, 32) == []


def test_it_names_each_reason_not_to_apply(predictor):
    assert predictor.obstacles(evidence(0.3), 10, 32) == []
    reasons = predictor.obstacles(evidence(0.99), 100, 224)
    assert reasons == [
        "it was calibrated for 2 to 26 classes, not 100",
        "it was calibrated for 16 to 96 pixels (shorter side), not 224",
        "it was calibrated for a disagreement on probe images of at most 88.1 %, not 98.8 %",
    ]


def test_the_package_holds_both_predictors():
    predictors = load_predictors()
    assert set(predictors) == {WITH_POOL, WITHOUT_POOL}
    assert "overlaid" in predictors[WITH_POOL].kinds
    assert "overlaid" not in predictors[WITHOUT_POOL].kinds
    assert all(each.coefficient > 0 for each in predictors.values())
