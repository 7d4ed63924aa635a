"""A run with `until_settled` ends when the disagreement on probe images no longer falls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gapssg import DistillResult, DistillSettings, InputError, distill
from gapssg.quality.evidence import ProbeComparison
from gapssg.runs.events import DistillationEpoch, read_finished
from gapssg.runs.requests import Requests, Stopped
from gapssg.runs.results.distillation import SettlingResult
from gapssg.settings.parts import OptimizerSettings
from gapssg.training.schedules import learning_rate
from gapssg.training.settling import Settling, SettlingFacts
from tests.interruptions import AskingDisplay
from tests.run_fixtures import TINY, files_of
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher

ONE_CYCLE = OptimizerSettings(schedule="one-cycle", warm_up=0.1)
COSINE = OptimizerSettings(schedule="cosine")


def run_of(settling: Settling, disagreements: list[float], planned: int) -> list[float]:
    """Make a run with these disagreements after its epochs; return the progress of each in the schedule."""
    progress: list[float] = []
    while len(progress) < settling.epochs:
        done = len(progress)
        progress.append(settling.progress(done, done / planned))
        if settling.measures(done + 1, done / planned):
            settling.record(done + 1, disagreements[done])
    return progress


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_run_too_short_to_tell_does_not_say_that_more_may_help(epochs: int):
    settling = Settling(epochs, ONE_CYCLE)
    run_of(settling, [1 / (1 + epoch) for epoch in range(epochs)], epochs)
    said = SettlingResult(most_epochs=epochs, settled_after=None, could_tell=settling.could_tell).describe(epochs)
    assert said == "too few epochs had the highest learning rate to tell whether the predicted disagreement still fell"


def test_a_disagreement_that_falls_never_settles_and_the_rate_falls_in_time_for_the_last_epoch():
    settling = Settling(32, ONE_CYCLE)
    progress = run_of(settling, [1 / (1 + epoch) for epoch in range(32)], 32)
    assert (settling.settled_after, settling.epochs, settling.could_tell) == (None, 32, True)
    assert progress[:4] == [0, 1 / 32, 2 / 32, 3 / 32]  # as planned, up to the highest rate
    assert progress[4:25] == [0.1] * 21
    assert progress[25:] == pytest.approx([0.1 + 0.9 * (epoch + 0.5) / 7 for epoch in range(7)])


def test_a_run_ends_a_quarter_later_than_the_median_of_a_window_is_not_below_that_before():
    settling = Settling(32, ONE_CYCLE)  # windows of 4 epochs, from the 5th on
    falling, flat = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], [0.1] * 22
    progress = run_of(settling, falling + flat, 32)
    # Of epochs 9 to 12 and 13 to 16, the medians are equal for the first time.
    assert (settling.settled_after, settling.epochs, len(progress)) == (16, 20, 20)
    rates = [learning_rate(ONE_CYCLE, each) for each in progress]
    assert rates[4:16] == [max(rates)] * 12
    assert rates[16:] == sorted(rates[16:], reverse=True)
    assert rates[-1] < 0.1 * max(rates) < 0.9 * max(rates) < rates[16]


def test_single_outliers_settle_nothing():
    values = [1 - 0.02 * epoch for epoch in range(32)]
    values[8], values[17] = 0.1, 2.0
    settling = Settling(32, COSINE)
    run_of(settling, values, 32)
    assert settling.settled_after is None


def test_the_decision_depends_on_nothing_that_a_checkpoint_lacks():
    values = [1.0, 0.8, 0.6, 0.5, 0.5, 0.45, 0.5, 0.5, 0.5, 0.5] * 2
    whole = Settling(20, COSINE)
    run_of(whole, values, 20)
    assert whole.settled_after is not None
    resumed = Settling(20, COSINE)
    for done in range(whole.settled_after):
        resumed.record(done + 1, values[done])
        again = Settling(20, COSINE)
        again.restore(SettlingFacts.read(resumed.facts.model_dump()))
        resumed = again
    assert (resumed.facts, resumed.epochs) == (whole.facts, whole.epochs)


@pytest.mark.parametrize("facts", [{"recent": [], "settled_after": 17}, {"recent": [0.5] * 7, "settled_after": 0}])
def test_a_state_that_no_such_run_has_is_refused(facts):
    with pytest.raises(InputError, match="does not belong to this run"):
        Settling(20, COSINE).restore(SettlingFacts.read(facts))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DistillSettings]:
    """Settings of a run that settles after four of ten epochs."""
    measure = ProbeComparison.disagreement
    monkeypatch.setattr(ProbeComparison, "disagreement", lambda self, student: 0.5 + 0 * measure(self, student))
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        values = {**TINY, **TINY_NOISE, "teacher": teacher, "epochs": 10, "until_settled": True, "evaluate_every": 2}
        yield DistillSettings.model_validate({**values, "eval_data": {"name": "digits", "images": 32}})


@pytest.mark.slow
def test_a_run_says_that_it_settled_and_resumes_exactly(settings: DistillSettings, tmp_path: Path):
    result = distill(settings, tmp_path / "whole")
    assert result.settling is not None
    assert (result.epochs, result.settling.most_epochs, result.settling.settled_after) == (5, 10, 4)
    assert result.settling.describe(5) == (
        "the predicted disagreement no longer fell after epoch 4, so the run ended after 5 of at most 10 epochs"
    )
    assert DistillResult.load(tmp_path / "whole").settling == result.settling
    epochs = read_finished(tmp_path / "whole", DistillationEpoch).epochs
    assert [each.probe_disagreement is not None for each in epochs] == [True] * 4 + [False]
    assert [each.epochs for each in epochs] == [10, 10, 10, 5, 5]
    assert [each.learning_rate for each in epochs] == pytest.approx([0.2] * 4 + [0.1])
    assert [each.top1 is not None for each in epochs] == [False, True, False, True, True]
    fewer = settings.model_copy(update={"until_settled": False, "epochs": 5})
    assert distill(fewer, tmp_path / "fewer").flops == result.flops

    stops = 0
    while True:
        requests = Requests()
        display = AskingDisplay(3 + stops % 4, requests, "stop")
        try:
            distill(settings, tmp_path / "run", resume=stops > 0, display=display, requests=requests)
        except Stopped:
            stops += 1
        else:
            break
    assert stops >= 3
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")


def test_a_run_that_has_settled_is_refused_more_epochs(settings: DistillSettings, tmp_path: Path):
    run = tmp_path / "run"
    result = distill(settings, run)
    before = files_of(run)
    with pytest.raises(InputError) as refused:
        distill(settings.model_copy(update={"epochs": 60}), run, resume=True)
    assert str(refused.value) == (
        f"{run} had settled after epoch 4, so it gets no more epochs; resume it with the --epochs 10 that it had, "
        "or start another run"
    )
    assert files_of(run) == before
    assert distill(settings, run, resume=True).settling == result.settling


def test_no_step_is_left_after_an_early_end(settings: DistillSettings, tmp_path: Path):
    labelled = settings.method.model_copy(update={"labelled_views": 2})
    distill(settings.model_copy(update={"method": labelled}), tmp_path / "run")
    epochs = read_finished(tmp_path / "run", DistillationEpoch).epochs
    assert (len(epochs), epochs[-1].timing.remaining) == (5, 0)
