"""`estimate`: probe images of a run, its prediction, and where it stands afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gapssg import QualitySettings, distill, estimate_quality, load_model
from gapssg.core.runtime import Runtime
from gapssg.files import write_json
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.quality import evidence
from gapssg.quality.estimate import failures_on_probe_images, judge_quality
from gapssg.quality.evidence import evidence_of, probe_images
from gapssg.runs.results.common import RESULT
from gapssg.runs.results.distillation import DistillResult
from gapssg.runs.results.quality import ProbeEvidence, QualityFacts
from tests.conftest import make_card
from tests.program import gapssg, refusal
from tests.results import make_pretrain_result
from tests.run_fixtures import settings
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher

CPU = {"device": "cpu", "precision": "fp32"}


def estimated(student: Path, teacher: Path | None, **changes):
    return estimate_quality(
        QualitySettings.model_validate({"student": student, "teacher": teacher, "runtime": CPU, **changes})
    )


def test_evidence_weighs_images_by_the_margin_of_the_teacher():
    teacher = torch.tensor([[4.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = evidence_of(teacher, student)
    margins = [torch.tanh(torch.tensor(each / 2)).item() for each in (4.0, 1.0, 2.0)]  # p1 - p2 of two classes
    assert found.disagreement == pytest.approx(2 / 3)
    assert found.weighted_disagreement == pytest.approx((margins[1] + margins[2]) / sum(margins), abs=1e-6)
    assert found.largest_class == pytest.approx(2 / 3)
    assert found.images == 3


def test_probe_images_depend_only_on_the_seed_and_the_pool(runtime: Runtime):
    pool = torch.randint(0, 256, (40, 1, 20, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, second = (dict(probe_images((1, 20, 17), pool, runtime)) for _ in range(2))
    assert set(first) == {"strokes", "mixtures", "overlaid"}
    assert all(torch.equal(first[kind], second[kind]) for kind in first)
    assert set(dict(probe_images((1, 20, 17), None, runtime))) == {"strokes", "mixtures"}
    assert first["overlaid"].shape == (40, 1, 20, 17)


def test_there_are_fewer_probes_of_large_images(runtime: Runtime, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evidence, "PROBES", {"blank": lambda count, shape, _: torch.zeros(count, *shape)})
    counts = {side: len(next(probe_images((1, side, side), None, runtime))[1]) for side in (16, 160, 400)}
    assert counts == {16: 256, 160: 163, 400: 32}


def test_a_teacher_agrees_with_itself(teacher_file: Path):
    found = estimated(teacher_file, teacher_file)
    assert all(each.disagreement == 0 for each in found.evidence.values())
    assert found.pool is None
    assert len(found.obstacles) == 1 and "--pool RUN" in found.obstacles[0]  # it gives some classes to no probe image


@pytest.mark.parametrize("pool", [None, "pool"])
def test_the_end_of_a_run_and_the_command_say_the_same_of_its_student(teacher_file: Path, tmp_path: Path, pool):
    if pool is not None:
        distill(settings(teacher_file), tmp_path / pool)
        pool = tmp_path / pool
    result = distill(settings(teacher_file, pool=pool, seed=3), tmp_path / "run")
    found = estimated(tmp_path / "run", teacher=None)
    assert result.quality is not None
    assert found.failures == result.failures
    assert result.quality.evidence == found.evidence
    assert DistillResult.load(tmp_path / "run").quality == result.quality
    assert found.pool == str(pool or tmp_path / "run")
    shown = gapssg("estimate", tmp_path / "run", "--teacher", teacher_file, "--device", "cpu", "--precision", "fp32")
    for line in result.quality.described:
        assert line in " ".join(shown.stdout.split("\n"))


def test_procedural_images_of_a_run_are_no_evidence(teacher_file: Path, tmp_path: Path):
    method = {"name": "noise", "synthesis_batch_size": 16, "procedural_share": 0.5}
    result = distill(settings(teacher_file, method=method), tmp_path / "run")
    found = estimated(tmp_path / "run", teacher=None)
    assert result.images_procedural == 32 and result.quality is not None
    assert result.quality.evidence == found.evidence
    assert result.quality.obstacles == found.obstacles
    gapssg("card", tmp_path / "run")
    card = " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "32 images were synthesised" in card and "from these and 32 images of random shapes, in" in card


def test_a_student_says_that_it_began_with_given_weights(teacher_file: Path, tmp_path: Path):
    distill(settings(teacher_file, epochs=1), tmp_path / "first")
    weights = tmp_path / "weights.safetensors"  # whose batch norms have seen nothing
    save_file(create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16), seed=5).state_dict(), weights)
    student = {"name": "wrn10_half", "weights": weights}
    distill(settings(teacher_file, epochs=1, student=student), tmp_path / "second")
    for run, fact in (("first", None), ("second", True)):
        assert load_model(tmp_path / run / "student.safetensors").card.provenance.initial_weights is fact
        gapssg("card", tmp_path / run)
        card = " ".join((tmp_path / run / "README.md").read_text().split())
        begins = "with gapssg. It began with given weights, which may have seen such data."
        assert (begins in card) == (run == "second")


def test_every_copy_of_a_student_is_judged_as_one_that_has_seen_procedural_images(tmp_path: Path, monkeypatch):
    seen = list[bool]()

    def judge(*arguments: Any, **named: Any) -> QualityFacts:
        seen.append(bool(named["provenance"].procedural))
        return judge_quality(*arguments, **named)

    monkeypatch.setattr("gapssg.quality.estimate.judge_quality", judge)
    monkeypatch.setattr("gapssg.training.distill.judge_quality", judge)
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        for share in (0.0, 0.5):
            run = tmp_path / str(share)
            method = {**TINY_NOISE["method"], "procedural_share": share}
            distill(settings(teacher, **{**TINY_NOISE, "method": method}, snapshot_every=1), run)
            shutil.copy(run / "student.safetensors", tmp_path / "copied.safetensors")
            for student in (run, tmp_path / "copied.safetensors", run / "snapshots" / "epoch-0001.safetensors"):
                estimated(student, teacher)
    assert seen == [False] * 4 + [True] * 4


def test_probe_images_are_made_only_of_the_pool_that_the_student_learned_from(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evidence, "PROBE_COUNT", 8)
    made, reused, other, copied = (tmp_path / name for name in ("made", "reused", "other", "copied.safetensors"))
    with tiny_model():
        teacher = write_tiny_teacher(tmp_path / "teacher.safetensors")
        distill(settings(teacher, **TINY_NOISE, snapshot_every=1), made)
        distill(settings(teacher, **TINY_NOISE, pool=made), reused)
        distill(settings(teacher, **TINY_NOISE, seed=3), other)
        shutil.copy(made / "student.safetensors", copied)

        def has_images_of(pool: Path, student: Path) -> bool:
            found = estimated(student, teacher, pool=pool)
            assert found.pool == str(pool)
            return "overlaid" in found.evidence

        for student in (made, made / "student.safetensors", made / "snapshots" / "epoch-0001.safetensors"):
            assert has_images_of(made, student) and has_images_of(made / "pool", student)
        assert has_images_of(made, reused) and has_images_of(reused, reused)
        for name, pool in (("pool", made / "pool"), ("again", reused)):
            distill(settings(teacher, **TINY_NOISE, pool=pool), tmp_path / name)
            assert has_images_of(made, tmp_path / name)
        assert not any(has_images_of(made, student) for student in (other, copied))
        grown = tmp_path / "grown"
        distill(settings(teacher, **TINY_NOISE, pool=made, grow_pool=True), grown)
        assert has_images_of(grown, grown)
        flat = tmp_path / "flat"
        shutil.copytree(made / "pool", flat)
        assert has_images_of(flat, reused) and not has_images_of(flat, other)
        last = grown / "pool" / "shard-0002.safetensors"
        last.rename(tmp_path / "last.safetensors")
        assert not has_images_of(grown, grown)
        (tmp_path / "last.safetensors").rename(last)
        (made / "pool" / "shard-0002.safetensors").unlink()
        assert not any(has_images_of(made, student) for student in (made, reused))
        assert not has_images_of(grown, grown)
        shutil.rmtree(made)
        shutil.copytree(other, made)
        assert not has_images_of(made, reused)


def test_the_file_of_the_student_in_a_run_stands_for_the_run(teacher_file: Path, tmp_path: Path):
    run, file = tmp_path / "run", tmp_path / "run" / "student.safetensors"
    distill(settings(teacher_file, epochs=1), run)
    result = DistillResult.load(run).model_copy(update={"failures": ("it is poor",)})
    (run / RESULT).write_text(result.model_dump_json())
    assert estimated(file, teacher=None) == estimated(run, teacher=None).model_copy(
        update={"settings_sha256": QualitySettings.model_validate({"student": file, "runtime": CPU}).sha256()}
    )
    of_run, of_file = (gapssg("estimate", each, "--device", "cpu").stdout for each in (run, file))
    assert of_run == of_file
    assert of_run.count("FAILED: the student is not usable: it is poor") == 1
    (run / RESULT).unlink()
    shown = gapssg("estimate", file, "--teacher", teacher_file, "--device", "cpu").stdout
    assert "run is not finished, and student.safetensors is of an earlier end" in shown


def test_a_run_with_real_images_needs_no_estimate(teacher_file: Path, tmp_path: Path):
    result = distill(settings(teacher_file, eval_data={"name": "digits"}), tmp_path / "run")
    assert result.quality is None


def test_an_estimate_outside_of_the_calibration_is_refused_with_the_reason(tmp_path: Path):
    names = tuple(map(str, range(100)))
    files = []
    for seed in (0, 1):
        module = create_model("wrn10_half", num_classes=100, input_shape=(1, 16, 16), seed=seed)
        card = make_card(architecture="wrn10_half", num_classes=100, class_names=names)
        save_model(tmp_path / f"{seed}.safetensors", module, card)
        files.append(tmp_path / f"{seed}.safetensors")
    found = estimated(*files, teacher_top1=0.5)
    assert found.disagreement is None and found.top1 is None
    assert "100" in found.obstacles[0]
    assert found.evidence == {}
    why_not = f"no prediction for real images: {'; '.join(found.obstacles)}"
    assert found.described == [why_not, "so there are no bounds of its accuracy"]
    as_json = gapssg("estimate", files[0], "--teacher", files[1], "--device", "cpu", "--json")
    assert json.loads(as_json.stdout)["disagreement"] is None


def test_a_run_of_another_command_is_called_that(tmp_path: Path):
    (tmp_path / RESULT).write_text(make_pretrain_result().model_dump_json())
    assert refusal("estimate", tmp_path) == f"{tmp_path} is not a run of distill; name one that is"


def test_student_and_teacher_must_match(teacher_file: Path, tmp_path: Path):
    distill(settings(teacher_file, epochs=1), tmp_path / "run")
    save_model(
        tmp_path / "other.safetensors", create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)), make_card()
    )
    assert "does not name its teacher's file; add --teacher" in refusal("estimate", teacher_file)
    other = refusal("estimate", tmp_path / "run", "--teacher", tmp_path / "other.safetensors")
    assert "is not the teacher of" in other
    card = make_card(input_shape=(1, 32, 32))
    save_model(tmp_path / "large.safetensors", load_model(teacher_file).module, card)
    assert "32" in refusal("estimate", tmp_path / "large.safetensors", "--teacher", teacher_file)
    assert "--teacher-top1" in refusal("estimate", teacher_file, "--teacher", teacher_file, "--teacher-top1", "95")


def facts_of(agreement: float, largest: float, *kinds: str) -> QualityFacts:
    """Return facts of probe images with an agreement, the teacher's commonest class having the `largest` share."""
    evidence = ProbeEvidence(
        images=256,
        disagreement=1 - agreement,
        weighted_disagreement=1 - agreement,
        reality_gap=0.5,
        teacher_confidence=0.9,
        largest_class=largest,
    )
    return QualityFacts(
        disagreement=None,
        top1=None,
        coverage=0.9,
        calibrated_on="1 student",
        obstacles=("none",),
        evidence=dict.fromkeys(kinds, evidence),
    )


def test_a_student_of_which_nothing_shows_that_it_has_learned_is_a_failure():
    like_a_constant = facts_of(0.21, 0.2, "strokes", "overlaid")
    (failure,) = failures_on_probe_images(like_a_constant, 0.094, 0.109)
    assert failure == (
        "the student agrees with the teacher on 9.4 % of the last synthetic images, before it trained on them, no "
        "better than always giving the commonest answer (10.9 %), and hardly better than that on probe images"
    )
    assert failures_on_probe_images(like_a_constant, 0.4, 0.109) == []  # new synthetic images show it
    assert failures_on_probe_images(like_a_constant, None, None) == []  # it had trained on all of them
    assert failures_on_probe_images(facts_of(0.6, 0.2, "strokes", "overlaid"), 0.094, 0.109) == []  # probe images do
    assert failures_on_probe_images(facts_of(0.21, 0.2, "strokes"), 0.094, 0.109) == []  # no pool: they say too little
    assert failures_on_probe_images(facts_of(0.21, 0.2), 0.094, 0.109) == []  # a task without probe images


def test_a_run_that_is_too_short_to_teach_anything_is_a_failure(teacher_file: Path, tmp_path: Path):
    result = distill(settings(teacher_file, epochs=1), tmp_path / "run")
    assert result.quality is not None
    expected = failures_on_probe_images(result.quality, result.student.agreement, result.student.agreement_baseline)
    assert expected and set(expected) <= set(result.failures)


def test_what_labelled_images_showed_after_the_run_is_said_of_its_student(teacher_file: Path, tmp_path: Path):
    run, file = tmp_path / "run", tmp_path / "run" / "student.safetensors"
    result = distill(settings(teacher_file, epochs=1), run)
    write_json(run / RESULT, result.model_copy(update={"failures": ()}).model_dump(mode="json"))
    assert estimated(run, teacher=None).failures == ()
    gapssg("eval", file, "--data", "digits", "--teacher", teacher_file, "--device", "cpu")
    (failure,) = estimated(run, teacher=None).failures
    assert failure.endswith("(images of digits)")
    assert f"FAILED: the student is not usable: {failure}" in gapssg("estimate", run, "--device", "cpu").stdout
    exported = gapssg("export", file, "--output", tmp_path / "student.pt2", "--json")
    assert json.loads(exported.stdout)["metadata"]["failures"] == [failure]
    (run / "evaluations.json").rename(tmp_path / "kept.json")
    (run / "evaluations.json").write_text("damaged")
    assert "evaluations.json is damaged" in gapssg("estimate", run, "--device", "cpu").stdout
    (tmp_path / "kept.json").rename(run / "evaluations.json")
    Image.new("L", (16, 16)).save(tmp_path / "photo.png")
    for command in (("inspect", file), ("predict", file, tmp_path / "photo.png")):
        assert f"FAILED: {file} is not usable: {failure}" in gapssg(*command).stdout
