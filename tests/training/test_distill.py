from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gapssg import DistillSettings, InputError, RunError, distill, load_model, load_settings
from gapssg.audit.settings import AuditSettings
from gapssg.audit.subjects import read_audited
from gapssg.core.muon import products_per_step
from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from gapssg.quality.estimate import images_of_pool
from gapssg.runs.directory import pool_shards
from gapssg.runs.results.training import AugmentationFacts
from gapssg.synthesis.shards import PoolOrigin, write_shard
from gapssg.training.distillation import Distillation
from gapssg.training.distillation_setup import planned_flops
from tests.conftest import make_card
from tests.run_fixtures import events, run_epoch, settings, without_timing
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher

DIGITS = {"eval_data": {"name": "digits", "images": 32}}


@pytest.fixture
def finished(teacher_file: Path, tmp_path: Path) -> Path:
    distill(settings(teacher_file), tmp_path / "run")
    return tmp_path / "run"


def test_a_run_directory_holds_all_files_of_a_run(finished: Path, teacher_file: Path):
    assert sorted(str(path.relative_to(finished)) for path in finished.rglob("*")) == [
        ".lock",
        "checkpoint",
        "checkpoint/latest.safetensors",
        "events.jsonl",
        "pool",
        "pool/shard-0001.safetensors",
        "pool/shard-0002.safetensors",
        "result.json",
        "samples",
        "samples/epoch-0001.png",
        "samples/epoch-0002.png",
        "settings.toml",
        "student.safetensors",
    ]
    again = load_settings(DistillSettings, section="distill", config=finished / "settings.toml")
    assert again == settings(teacher_file)
    student = load_model(finished / "student.safetensors")
    assert student.card.provenance.method == "gapssg"
    assert student.card.provenance.teacher_sha256 == load_model(teacher_file).sha256
    assert student.card.class_names == make_card().class_names


def test_result_without_evaluation_data_has_agreement_and_no_accuracy(finished: Path):
    result = json.loads((finished / "result.json").read_text())
    assert result["student"]["top1"] is None
    assert result["student"]["best_top1"] is None
    assert result["data"] is None
    assert 0 <= result["student"]["agreement"] <= 1
    assert result["images_synthesized"] == 32
    # Two passes over 16 samples, then over 32, in batches of 8.
    assert result["distillation_steps"] == 4 + 8
    assert result["teacher"]["parameters"] == result["student"]["parameters"] == 20_506
    assert result.keys() >= {
        "command",
        "method",
        "epochs",
        "timing",
        "device",
        "precision",
        "compiled",
        "seed",
    }
    assert result["timing"].keys() == {"total", "synthesis", "distillation", "evaluation"}


@pytest.mark.slow
def test_the_operations_of_a_run_match_the_formula(finished: Path, teacher_file: Path, tmp_path: Path):
    result = json.loads((finished / "result.json").read_text())
    teacher, student = result["teacher"]["macs"], result["student"]["macs"]
    # Three steps of each of two syntheses and twelve of distillation; a multiply-add is two operations.
    synthesis = 2 * 3 * 16 * 2 * (2 * teacher + 2 * student)
    muon = products_per_step(create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)))
    assert result["flops"] == synthesis + 12 * (8 * 2 * (teacher + 3 * student) + muon)
    assert isinstance(result["flops"], int)
    from_pool = distill(settings(teacher_file, pool=finished, runtime={"compile": False}), tmp_path / "from-pool")
    assert from_pool.flops == 2 * 8 * (8 * 2 * (teacher + 3 * student) + muon)
    # By the actual size of the pool, not by the settings of the synthesis.
    method = {"name": "noise", "synthesis_batch_size": 999}
    again = distill(settings(teacher_file, pool=finished, method=method), tmp_path / "again")
    assert again.flops == from_pool.flops


def test_each_epochs_event_tracks_gap_factor_losses_and_health(finished: Path):
    epochs = [event for event in events(finished) if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert [event["pool_size"] for event in epochs] == [16, 32]
    for event in epochs:
        assert 0 < event["reality_gap_before"] < 1
        assert 0 < event["reality_gap_after"] < 1
        assert event["inherent_gap_bound"] > 0
        assert event["derived_gap_bound"] > 0
        assert event["synthesis"].keys() == {
            "synthesis_loss",
            "batch_norm_statistics_loss",
            "disagreement_loss",
            "agreement_loss",
            "regulatory_factor",
        }
        assert event["health"].keys() == {
            "target_agreement",
            "class_entropy",
            "answer_entropy",
            "diversity",
            "saturation",
            "teacher_counts",
            "target_counts",
        }
        assert event["distillation_loss"] > 0
    # Cosine over the epochs.
    assert [event["learning_rate"] for event in epochs] == pytest.approx([0.2, 0.1])


@pytest.mark.slow
def test_a_run_without_evaluation_data_opens_no_data_source(teacher_file: Path, tmp_path: Path):
    code = f"""
import sys
from dataclasses import replace
from pathlib import Path
from gapssg import DistillSettings, distill
settings = DistillSettings.model_validate_json({settings(teacher_file, epochs=1).model_dump_json()!r})
distill(settings, Path({str(tmp_path / "run")!r}))
sources = [name for name in sys.modules if name.startswith("gapssg.data.")]
# Only the classes for image sets were imported, no source of images, so that none can have been opened.
assert set(sources) <= {{"gapssg.data.settings", "gapssg.data.image_set", "gapssg.data.source"}}, sources
assert "sklearn" not in sys.modules
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def assert_same_weights(ours: Path, theirs: Path) -> None:
    """Compare two files, of which one may say why the student is not usable."""
    first, second = load_file(ours), load_file(theirs)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_evaluating_does_not_change_the_weights(finished: Path, teacher_file: Path, tmp_path: Path):
    result = distill(settings(teacher_file, **DIGITS), tmp_path / "evaluated")
    assert result.student.top1 is not None
    assert_same_weights(tmp_path / "evaluated" / "student.safetensors", finished / "student.safetensors")
    assert (tmp_path / "evaluated" / "best.safetensors").exists()


def test_equal_settings_give_equal_files_events_and_results(finished: Path, teacher_file: Path, tmp_path: Path):
    distill(settings(teacher_file), tmp_path / "again")
    for name in (
        "student.safetensors",
        "pool/shard-0002.safetensors",
        "samples/epoch-0002.png",
        "settings.toml",
    ):
        assert (finished / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert without_timing(json.loads((finished / "result.json").read_text())) == without_timing(
        json.loads((tmp_path / "again" / "result.json").read_text())
    )
    assert [without_timing(e) for e in events(finished)] == [without_timing(e) for e in events(tmp_path / "again")]


def test_another_seed_gives_another_student(finished: Path, teacher_file: Path, tmp_path: Path):
    distill(settings(teacher_file, seed=1), tmp_path / "other")
    ours, theirs = (load_file(run / "student.safetensors") for run in (finished, tmp_path / "other"))
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours if ours[name].ndim == 4)


def test_a_run_changes_neither_weights_nor_buffers_of_the_teacher(teacher_file: Path, tmp_path: Path):
    runtime = Runtime(torch.device("cpu"), "fp32", False, 0)
    given = settings(teacher_file)
    distillation = Distillation(given, runtime, load_model(teacher_file))
    before = copy.deepcopy(distillation.teacher.state_dict())
    student_before = copy.deepcopy(distillation.student.state_dict())
    run_epoch(distillation, tmp_path / "run")
    for name, value in distillation.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(v, student_before[n]) for n, v in distillation.student.state_dict().items())


def test_a_pool_is_distilled_from_without_synthesis(finished: Path, teacher_file: Path, tmp_path: Path):
    result = distill(settings(teacher_file, pool=finished), tmp_path / "from-pool")
    assert result.images_synthesized == 0
    assert result.method == "gapssg"
    # A student has trained on every sample of the pool.
    assert result.student.agreement is None
    found = [event["agreement_before"] for event in events(tmp_path / "from-pool") if event["event"] == "epoch"]
    assert found == [None, None]
    # Every epoch visits all 32 samples twice.
    assert result.distillation_steps == 2 * (2 * 32 // 8)
    assert not (tmp_path / "from-pool" / "pool").exists()
    assert all(event["synthesis"] == {} for event in events(tmp_path / "from-pool") if event["event"] == "epoch")


def test_the_operations_of_muon_count_in_every_distillation_step(teacher_file: Path):
    teacher, student = load_model(teacher_file), create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16))
    sgd, muon = (
        planned_flops(settings(teacher_file, optimizer={"algorithm": name}), teacher, student, teacher.profile.macs)
        for name in ("sgd", "muon")
    )
    assert muon - sgd == 12 * products_per_step(student) > 0


def test_a_pool_grows_by_synthesis(finished: Path, teacher_file: Path, tmp_path: Path):
    run = tmp_path / "grown"
    result = distill(settings(teacher_file, pool=finished, grow_pool=True), run)
    assert result.images_synthesized == 2 * 16 and result.pool == str(finished)
    assert result.seed == settings(teacher_file).seed
    epochs = [event for event in events(run) if event["event"] == "epoch"]
    assert [event["pool_size"] for event in epochs] == [32 + 16, 32 + 32]
    # Two passes over the 48 and then the 64 images.
    assert result.distillation_steps == 2 * (48 + 64) // 8
    earlier, more = (sorted((each / "pool").iterdir()) for each in (finished, run))
    assert len(more) == 2
    assert not torch.equal(load_file(earlier[0])["images"], load_file(more[0])["images"])
    teacher, student = result.teacher.macs, result.student.macs
    muon = products_per_step(create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)))
    distillation = 2 * (48 + 64) * 2 * (teacher + 3 * student) + 28 * muon
    assert result.flops == 2 * 3 * 16 * 4 * (teacher + student) + distillation


def test_everything_that_reads_a_pool_that_has_grown_sees_all_of_it(tmp_path: Path):
    with tiny_model():
        teacher_file = write_tiny_teacher(tmp_path / "teacher.safetensors")
        first, grown, third = (tmp_path / name for name in ("first", "grown", "third"))
        distill(settings(teacher_file, **TINY_NOISE), first)
        growing = {**TINY_NOISE, "grow_pool": True}
        distill(settings(teacher_file, **growing, pool=first), grown)
        expected = [each / "pool" / f"shard-000{n}.safetensors" for each in (first, grown) for n in (1, 2)]
        assert pool_shards(grown) == expected
        assert len(images_of_pool(grown, load_model(teacher_file))) == 4 * 16
        pool = read_audited(
            AuditSettings(model=grown, members=DIGITS["eval_data"], non_members=DIGITS["eval_data"])
        ).pool
        assert pool is not None and len(pool) == 4 * 16
        distill(settings(teacher_file, **growing, pool=grown), third)
        assert [event["pool_size"] for event in events(third) if event["event"] == "epoch"] == [4 * 16 + 16, 6 * 16]
        distill(settings(teacher_file, **TINY_NOISE, pool=third), tmp_path / "fixed")
        assert pool_shards(tmp_path / "fixed") == pool_shards(third)
        other = {
            **growing,
            "method": {"name": "gapssg-fast", "generator_steps": 1, "generator_width": 8, "latent_size": 8},
        }
        distill(settings(teacher_file, **other, epochs=1, pool=first), tmp_path / "other")
        sentence = (
            f"{first}/pool and {tmp_path}/other/pool: their images are of several methods or teachers; name a run"
        )
        with pytest.raises(InputError, match=re.escape(sentence)):
            distill(settings(teacher_file, **TINY_NOISE, pool=tmp_path / "other"), tmp_path / "mixed")
    moved = first.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"grown used the pool of .*first, which is not there \(from .*\); put"):
        pool_shards(third)
    moved.rename(first)
    with pytest.raises(InputError, match=r"settings.toml is a file; name the directory of a `distill` run that kept"):
        pool_shards(first / "settings.toml")
    shutil.rmtree(first / "pool")
    with pytest.raises(InputError, match=r"grown used the pool of .*first, which holds none; name the directory"):
        pool_shards(third)
    (first / "settings.toml").write_text(f'pool = "{third}"\n')
    with pytest.raises(InputError, match=r"its pool is said to be that of .*third, and the reverse"):
        pool_shards(third)


def test_a_pool_to_grow_must_be_given_and_of_the_same_teacher(finished: Path, teacher_file: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no pool to start with; add --pool RUN"):
        distill(settings(teacher_file, grow_pool=True), tmp_path / "grown")
    teacher, other = load_model(teacher_file), tmp_path / "other.safetensors"
    save_model(other, teacher.module, make_card(crop_padding=1))
    with pytest.raises(InputError, match="was made for another teacher"):
        distill(settings(other, pool=finished, grow_pool=True), tmp_path / "grown")
    assert not (tmp_path / "grown").exists()


def test_a_student_of_a_pool_names_the_method_of_the_pool(teacher_file: Path, tmp_path: Path):
    noise = {"name": "noise", "synthesis_batch_size": 16}
    distill(settings(teacher_file, method=noise), tmp_path / "noise")
    result = distill(settings(teacher_file, pool=tmp_path / "noise"), tmp_path / "run")
    assert result.method == "noise"
    assert load_model(tmp_path / "run" / "student.safetensors").card.provenance.method == "noise"


def test_the_pool_of_another_teacher_is_a_warning(finished: Path, teacher_file: Path, tmp_path: Path):
    other = load_model(teacher_file)
    save_model(tmp_path / "other.safetensors", other.module, make_card(crop_padding=1))
    method = {"name": "gapssg", "procedural_share": 0.5}
    result = distill(settings(tmp_path / "other.safetensors", pool=finished, method=method), tmp_path / "from-pool")
    warnings = [event["message"] for event in events(tmp_path / "from-pool") if event["event"] == "warning"]
    assert any("made for another teacher" in message for message in warnings)
    assert "method.procedural_share has no effect on a pool that does not grow" in warnings
    provenance = load_model(tmp_path / "from-pool" / "student.safetensors").card.provenance
    assert provenance.pool_teacher_sha256 == load_model(teacher_file).sha256
    assert result.quality is not None
    assert result.quality.disagreement is None or result.quality.disagreement.low is None


@pytest.mark.parametrize(("student", "is_larger"), [("wrn16_half", True), ("wrn10_half", False)])
def test_a_student_that_is_larger_than_its_teacher_is_a_warning(
    student: str, is_larger: bool, teacher_file: Path, tmp_path: Path
):
    noise = {"name": "noise", "synthesis_batch_size": 16}
    distill(settings(teacher_file, student={"name": student}, method=noise, epochs=1), tmp_path / "run")
    warnings = [event["message"] for event in events(tmp_path / "run") if event["event"] == "warning"]
    larger = [message for message in warnings if "larger than its teacher" in message]
    assert len(larger) == is_larger
    for message in larger:
        parameters = "the student is larger than its teacher: 44,922 parameters (its teacher has 20,506) and "
        assert message.startswith(parameters)
        assert re.search(r" and [\d,]+ multiply-adds per image \(its teacher has [\d,]+\); ", message)


def test_a_student_starts_from_given_weights(finished: Path, teacher_file: Path, tmp_path: Path):
    weights = finished / "student.safetensors"
    runtime = Runtime(torch.device("cpu"), "fp32", False, 0)
    given = settings(teacher_file, student={"name": "wrn10_half", "weights": weights})
    student = Distillation(given, runtime, load_model(teacher_file)).student
    for name, value in load_file(weights).items():
        assert torch.equal(student.state_dict()[name], value)
    # Plain safetensors without a model card are accepted.
    save_file(load_file(weights), tmp_path / "plain.safetensors")
    given = settings(teacher_file, student={"name": "wrn10_half", "weights": tmp_path / "plain.safetensors"})
    Distillation(given, runtime, load_model(teacher_file))


def augmentation_of(run: Path, given: DistillSettings) -> tuple[AugmentationFacts | None, str]:
    """Distil; return what the result and the first line say, after checking that the student's file says the same."""
    said = distill(given, run).augmentation
    card = load_model(run / "student.safetensors").card
    assert said is None or (said.crop_padding, said.flip) == (card.crop_padding, card.flip)
    return said, events(run)[0]["message"]


def test_images_are_cropped_and_flipped_as_the_teachers_file_says(teacher_file: Path, tmp_path: Path):
    save_model(teacher_file, load_model(teacher_file).module, make_card(crop_padding=1, flip=True))
    said, message = augmentation_of(tmp_path / "run", settings(teacher_file, epochs=1))
    assert said == AugmentationFacts(crop_padding=1, flip=True)
    assert "no data (gapssg), crops with 1 pixel of zero padding, random horizontal flips, cpu" in message


def test_crops_and_flips_can_be_others_than_the_teachers(teacher_file: Path, tmp_path: Path):
    given = settings(teacher_file, epochs=1, crop_padding=0, flip=True)
    said, message = augmentation_of(tmp_path / "run", given)
    assert said == AugmentationFacts(crop_padding=0, flip=True)
    assert "no crops, random horizontal flips, cpu" in message
    distillation = Distillation(given, Runtime(torch.device("cpu"), "fp32", False, 0), load_model(teacher_file))
    list(distillation.synthesizer.synthesis_steps(distillation.student, 0, 0))
    _, rows, columns, flips = next(distillation.student_steps.batches(0, 0, 0))
    assert not rows.any()
    assert not columns.any()
    assert flips.any()
    synthesizer: Any = distillation.synthesizer
    assert synthesizer.context.augmentation == distillation.augmentation  # of the synthesis, too


@pytest.mark.parametrize(
    ("given", "of_the_teacher", "method", "used"),
    [
        (None, None, "gapssg-fast", "reflect"),
        (None, None, "gapssg", "zeros"),
        (None, "zeros", "gapssg-fast", "zeros"),
        (None, "reflect", "gapssg", "reflect"),
        ("zeros", "reflect", "gapssg-fast", "zeros"),
    ],
)
def test_crop_padding_mode_is_as_given_else_the_teachers_else_the_methods(
    teacher_file: Path, given: str | None, of_the_teacher: str | None, method: str, used: str
):
    teacher = load_model(teacher_file)
    teacher = replace(teacher, card=teacher.card.model_copy(update={"crop_padding_mode": of_the_teacher}))
    small = {"name": method, "generator_width": 8, "synthesis_batch_size": 8}
    runtime = Runtime(torch.device("cpu"), "fp32", False, 0)
    chosen = settings(teacher_file, method=small, epochs=1, crop_padding_mode=given)
    distillation = Distillation(chosen, runtime, teacher)
    assert distillation.augmentation.padding_mode == used
    assert ("mirrored" in distillation.augmentation.describe()) == (used == "reflect")


def test_the_result_and_the_students_card_say_how_crops_were_padded(teacher_file: Path, tmp_path: Path):
    fast = {"name": "gapssg-fast", "generator_width": 8, "synthesis_batch_size": 8, "generator_steps": 1}
    said, message = augmentation_of(tmp_path / "run", settings(teacher_file, method=fast, epochs=1))
    assert said == AugmentationFacts(crop_padding=2, crop_padding_mode="reflect", flip=False)
    assert "crops with 2 pixels of mirrored padding" in message
    assert load_model(tmp_path / "run" / "student.safetensors").card.crop_padding_mode == "reflect"


@pytest.mark.slow
def test_a_method_that_does_not_augment_says_so(teacher_file: Path, tmp_path: Path):
    dafl = {"name": "dafl", "rounds": 1, "synthesis_batch_size": 8, "generator_width": 8, "latent_size": 16}
    said, message = augmentation_of(tmp_path / "run", settings(teacher_file, method=dafl, epochs=1))
    assert said is None
    assert "no crops, no flips (method.augment=true turns them on)" in message
    said, message = augmentation_of(
        tmp_path / "augmented", settings(teacher_file, method={**dafl, "augment": True}, epochs=1)
    )
    assert said == AugmentationFacts(crop_padding=2, flip=False)
    assert "crops with 2 pixels of zero padding, no flips, cpu" in message


def test_snapshots_are_kept_where_asked_and_samples_and_pool_are_not(teacher_file: Path, tmp_path: Path):
    run = tmp_path / "run"
    distill(settings(teacher_file, snapshot_every=1, samples=False, keep_pool=False), run)
    assert sorted(path.name for path in (run / "snapshots").iterdir()) == [
        "epoch-0001.safetensors",
        "epoch-0002.safetensors",
    ]
    assert_same_weights(run / "snapshots" / "epoch-0002.safetensors", run / "student.safetensors")
    assert not (run / "samples").exists()
    assert not (run / "pool").exists()


def test_final_and_best_accuracy_are_reported_separately(teacher_file: Path, tmp_path: Path):
    result = distill(settings(teacher_file, **DIGITS, epochs=3), tmp_path / "run").student
    tops = [event["top1"] for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert result.top1 == tops[-1]
    assert result.best_top1 == max(tops)
    assert result.best_epoch == tops.index(max(tops)) + 1


def test_a_collapse_is_a_warning(teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("gapssg.synthesis.inversion.Generator.forward", lambda self, z: 0.5 + 0 * z.sum() + blank(z))
    distill(settings(teacher_file, epochs=1), tmp_path / "run")
    found = [event for event in events(tmp_path / "run") if event["event"] == "warning"]
    assert any("nearly identical" in warning["message"] for warning in found)
    assert all(warning["epoch"] == 1 for warning in found)


def blank(latent: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(latent), 1, 16, 16)


def test_a_teacher_without_batch_norm_is_refused_with_the_methods_that_need_none(tmp_path: Path):
    name, teacher = "tests.models.factories:ten_classes", tmp_path / "teacher.safetensors"
    save_model(teacher, create_model(name, num_classes=10, input_shape=(1, 16, 16)), make_card(architecture=name))
    others = "gapssg-fast, gapssg, dafl, zskt, dfad, noise"
    with pytest.raises(InputError, match=f"no batch-norm layers, whose statistics fast needs; .* not: {others}"):
        distill(settings(teacher, model_factories=[name], method={"name": "fast"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    distill(settings(teacher, model_factories=[name]), tmp_path / "run")


def test_a_student_that_diverges_fails_with_one_sentence(teacher_file: Path, tmp_path: Path):
    diverging = {"learning_rate": 100.0, "weight_decay": 0.9}
    with pytest.raises(
        RunError, match=r"diverged in epoch \d+, 1 times .*; lower optimizer.learning_rate or raise --max"
    ):
        distill(settings(teacher_file, optimizer=diverging, epochs=8, max_rollbacks=0), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": "absent.safetensors"}, "does not exist"),
        ({"pool": "absent"}, "holds no sample pool"),
        ({"student": {"name": "wrn10_half", "weights": "absent.safetensors"}}, "does not exist"),
        ({"student": {"name": "wrn40_1", "weights": "TEACHER"}}, "do not fit the model"),
        ({"eval_data": {"name": "folder:absent"}}, "absent"),
        ({"eval_data": {"name": "digits", "image_size": 32}}, "takes 1x16x16; use --image-size 16"),
        ({"crop_padding": 16}, "--crop-padding 16 is too large: a crop could miss all of an image of 16x16 pixels"),
        ({"runtime": {"device": "cuda:7"}}, "--device cuda:7"),
    ],
)
def test_bad_input_leaves_nothing_half_written(teacher_file: Path, tmp_path: Path, change, words):
    text = json.dumps(change).replace("TEACHER", str(teacher_file))
    with pytest.raises(InputError, match=words):
        distill(settings(**{"teacher": teacher_file, **json.loads(text)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_evaluation_data_of_other_classes_is_refused(teacher_file: Path, image_folder: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"2 classes, but .* has 10"):
        distill(settings(teacher_file, eval_data={"name": f"folder:{image_folder}"}), tmp_path / "run")


def test_a_pool_of_other_images_is_refused(finished: Path, teacher_file: Path, tmp_path: Path):
    shard = finished / "pool" / "shard-0001.safetensors"
    write_shard(shard, torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4).long(), PoolOrigin("gapssg", "0"))
    with pytest.raises(InputError, match="its images are 3x16x16, but the teacher takes 1x16x16"):
        distill(settings(teacher_file, pool=finished), tmp_path / "other")
    shard.write_bytes(b"junk")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        distill(settings(teacher_file, pool=finished), tmp_path / "other")
