from __future__ import annotations

import json
from pathlib import Path

import pytest

from gapssg.errors import InputError
from gapssg.files import sha256_of_contents, write_json
from gapssg.runs.evaluations import KeptEvaluation
from gapssg.runs.failures import (
    failures_of_run,
    failures_on_real_images,
    known_failures,
    passes_on_real_images,
    run_of_student,
    warnings_of_run,
    weigh,
)
from gapssg.runs.results.common import RESULT, RunResult, Scores
from gapssg.stored import MOST_SENTENCES
from tests.results import make_distill_result, make_pretrain_result, make_scores

AT_CHANCE = make_scores(balanced_accuracy=0.51, better_than_chance=False)
CHANCE = "the balanced accuracy on real images is 51.0 %, no better than always answering with one class"


def make_kept(scores: Scores, data: str = "digits", content: bytes = b"weights") -> KeptEvaluation:
    return KeptEvaluation(sha256=sha256_of_contents({"": content}), data=data, images=100, scores=scores)


def make_run(folder: Path, result: RunResult, *kept: KeptEvaluation, name: str = "student.safetensors") -> Path:
    """Write a finished run; return the file of its model."""
    (folder / name).write_bytes(b"weights")
    (folder / RESULT).write_text(result.model_dump_json())
    write_json(folder / "evaluations.json", {"evaluations": [each.model_dump(mode="json") for each in kept]})
    return folder / name


def test_real_images_that_speak_for_a_student_are_no_failure():
    assert failures_on_real_images(make_scores(), make_scores()) == []
    assert failures_on_real_images(make_scores(lowest_recall=None, lowest_class=None), None) == []


def test_a_balanced_accuracy_at_chance_is_a_failure():
    at_chance = make_scores(balanced_accuracy=0.51, better_than_chance=False)
    assert failures_on_real_images(at_chance, None) == [
        "the balanced accuracy on real images is 51.0 %, no better than always answering with one class"
    ]


def test_a_teacher_at_chance_makes_the_labels_doubtful():
    (failure,) = failures_on_real_images(AT_CHANCE, AT_CHANCE)
    assert failure == f"{CHANCE}; nor is that of its teacher, so check the labels"
    assert failures_on_real_images(AT_CHANCE, make_scores()) == [CHANCE]


def test_a_lost_class_is_a_failure_unless_the_teacher_does_not_know_it_either():
    lost = make_scores(lowest_recall=0.05)
    assert failures_on_real_images(lost, make_scores()) == [
        "the student is right on only 5.0 % of the real images of class 'dog', "
        "its teacher on at least 80.0 % of every class"
    ]
    assert failures_on_real_images(lost, make_scores(lowest_recall=0.02)) == []
    assert failures_on_real_images(lost, None) == []


def test_real_images_speak_for_a_student_only_if_they_cover_every_class_and_none_is_lost():
    assert passes_on_real_images(make_scores(fewest_images=10))
    assert not passes_on_real_images(make_scores(fewest_images=9))
    assert not passes_on_real_images(make_scores(fewest_images=0, lowest_recall=None))
    assert not passes_on_real_images(make_scores(fewest_images=10, lowest_recall=0.09))
    assert not passes_on_real_images(make_scores(fewest_images=10, better_than_chance=False))


def test_labelled_images_outweigh_the_synthetic_ones_of_a_run_without_real_images():
    blind = make_distill_result(student_top1=None).model_copy(update={"failures": ("it is poor",)})
    assert weigh(blind, []).failures == ["it is poor"]
    usable = weigh(blind, [make_kept(make_scores())])
    assert (usable.failures, usable.warnings, usable.usable_on) == ([], ["it is poor"], ["digits"])
    failed = weigh(blind, [make_kept(AT_CHANCE, "folder:/home/me/photos"), make_kept(make_scores())])
    assert failed.failures == [f"{CHANCE} (images of photos)", "it is poor"]
    assert (failed.warnings, failed.failed_since) == ([], failed.failures[:1])


def test_a_failure_that_the_run_has_found_too_is_said_once():
    seen = make_distill_result().model_copy(update={"failures": (CHANCE, "it is poor")})
    assert weigh(seen, [make_kept(AT_CHANCE)]).failures == [f"{CHANCE} (images of digits)", "it is poor"]


def test_real_images_of_a_run_are_not_outweighed_by_others():
    seen = make_distill_result().model_copy(update={"failures": ("it is poor",), "warnings": ("it is odd",)})
    assert weigh(seen, [make_kept(make_scores())])[:2] == (["it is poor"], ["it is odd"])


def test_a_trained_model_has_the_failures_that_labelled_images_show():
    assert weigh(make_pretrain_result(), [make_kept(AT_CHANCE)]).failures == [f"{CHANCE} (images of digits)"]
    assert weigh(make_pretrain_result(), []).failures == []


def test_what_labelled_images_showed_after_the_run_is_known_of_its_file(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result(student_top1=None), make_kept(AT_CHANCE))
    assert failures_of_run(file) == (f"{CHANCE} (images of digits)",)
    (warning,) = warnings_of_run(file)
    assert warning.message == f"FAILED: {file} is not usable: {CHANCE} (images of digits)"
    file.write_bytes(b"other weights")
    assert failures_of_run(file) == ()


def test_what_labelled_images_showed_of_a_teacher_is_known_of_its_file(tmp_path: Path):
    file = make_run(tmp_path, make_pretrain_result(), make_kept(AT_CHANCE), name="model.safetensors")
    assert failures_of_run(file) == (f"{CHANCE} (images of digits)",)


def test_damaged_evaluations_are_named(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result())
    (tmp_path / "evaluations.json").write_text("damaged")
    with pytest.raises(InputError, match=r"evaluations.json is damaged.*gapssg eval replaces it"):
        failures_of_run(file)
    assert known_failures(file) is None
    (warning,) = warnings_of_run(file)
    assert warning.message.startswith(f"what the run of {file} found is not known: ")


def test_what_the_run_found_is_known_beside_damaged_evaluations(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result().model_copy(update={"failures": ("it is poor",)}))
    (tmp_path / "evaluations.json").write_text("damaged")
    assert known_failures(file) == ("it is poor",)
    assert [warning.message for warning in warnings_of_run(file)][1:] == [f"FAILED: {file} is not usable: it is poor"]


def test_a_damaged_result_leaves_nothing_known(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result())
    (tmp_path / RESULT).write_text("damaged")
    assert known_failures(file) is None
    (warning,) = warnings_of_run(file)
    assert warning.message.startswith(f"what the run of {file} found is not known: ")


def test_another_file_in_a_run_and_an_unfinished_run_have_no_failures(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result(student_top1=None), make_kept(AT_CHANCE))
    assert failures_of_run(file.rename(tmp_path / "best.safetensors")) == ()
    assert failures_of_run(tmp_path / "elsewhere" / "student.safetensors") == ()


def test_a_link_to_the_model_of_a_run_has_its_failures(tmp_path: Path):
    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", make_distill_result().model_copy(update={"failures": ("x",)}))
    link = tmp_path / "deployed.safetensors"
    link.symlink_to("run/student.safetensors")
    assert failures_of_run(link) == ("x",)
    assert run_of_student(link) == tmp_path / "run"
    link.rename(tmp_path / "student.safetensors")
    assert failures_of_run(tmp_path / "student.safetensors") == ("x",)


def test_of_a_model_that_is_not_the_one_of_its_run_nothing_is_known(tmp_path: Path):
    result = make_distill_result().model_copy(update={"failures": ("x",)})
    of_run = result.student.model_copy(update={"sha256": sha256_of_contents({"": b"weights"})})
    file = make_run(tmp_path, result.model_copy(update={"student": of_run}))
    assert failures_of_run(file) == ("x",)
    file.write_bytes(b"weights of another run")
    assert known_failures(file) is None
    (warning,) = warnings_of_run(file)
    assert "is not the model of its run: its SHA-256 differs from that in result.json" in warning.message


def test_of_a_file_beside_a_damaged_result_the_failures_in_its_description_are_known(tmp_path: Path):
    file = make_run(tmp_path, make_distill_result())
    header = json.dumps({"__metadata__": {"gapssg": json.dumps({"failures": ["x"]})}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / RESULT).write_text("{")
    assert known_failures(file) == ("x",)
    file.write_bytes(b"weights")
    assert known_failures(file) is None
    (tmp_path / RESULT).unlink()
    assert known_failures(file) == ()


def test_a_result_holds_the_failures_of_many_image_sets(tmp_path: Path):
    kept = [make_kept(AT_CHANCE, f"folder:/photos/{number}") for number in range(25)]
    failures = failures_of_run(make_run(tmp_path, make_distill_result(), *kept))
    assert len(failures) == MOST_SENTENCES
    assert failures[-1] == "and 6 more"
