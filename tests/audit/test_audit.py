"""Audits of models that memorise their images, and of models that do not."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gapssg import AuditSettings, InputError, RunError, audit_model
from gapssg.data import load_split
from gapssg.files import write_atomically
from gapssg.runs.results.audit import AttackResult, AuditResult
from tests.audit.conftest import MEMBERS, MLP, Made, fill_pool_with_members, pretrain
from tests.conftest import write_images, write_teacher
from tests.program import gapssg, refusal
from tests.run_fixtures import without_timing

pytestmark = pytest.mark.slow

Make = Callable[..., AuditSettings]
SHADOWS = {"models": 4, "epochs": 20, "batch_size": 64}
DIGITS = ("--members", "digits", "--non-members", "digits")
TRUSTED = ("--model-factory", MLP, "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="session")
def audited(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    """The audit of the run with shadow models, and the folder of its page and sheet."""
    folder = tmp_path_factory.mktemp("page")
    settings = AuditSettings(
        model=made.run,
        members={"name": "digits", "images": MEMBERS},
        non_members={"name": "digits"},
        shadow=SHADOWS,
        model_factories=[MLP],
        runtime={"device": "cpu", "precision": "fp32"},
    )
    return audit_model(settings, folder / "page.html", sheet=folder / "pairs.png"), folder


def attack(result: AuditResult, role: str, name: str) -> AttackResult:
    (model,) = (each for each in result.models if each.role == role)
    (found,) = (each for each in model.attacks if each.attack == name)
    return found


def test_a_teacher_that_has_memorised_its_images_is_found(made: Made, settings: Make):
    result = audit_model(settings(made.overfitted))
    (model,) = result.models
    assert (model.role, result.neighbours) == ("model", ())
    assert (result.members.images, result.non_members.images) == (MEMBERS, 450)
    assert model.members_top1 == 1.0 > model.non_members_top1
    assert attack(result, "model", "loss threshold").auc.low > 0.6
    assert result.findings[0].startswith("the attack 'loss threshold' tells members from non-members by the model's")


def test_a_regularised_teacher_is_not_found(made: Made, settings: Make):
    result = audit_model(settings(made.regularised, members={"name": "digits"}))
    auc = attack(result, "model", "loss threshold").auc
    assert auc.low < 0.5 < auc.high
    assert result.findings == ()
    assert result.members.images == 1347


def test_too_few_non_members_give_a_sentence_instead_of_a_rate(made: Made, settings: Make):
    result = audit_model(settings(made.overfitted))
    hundredth, thousandth = attack(result, "model", "loss threshold").at_low_false_positives
    assert hundredth.true_positives is not None and hundredth.false_positives is not None
    assert hundredth.false_positives.value <= 0.01
    assert thousandth.true_positives is None
    assert any("at 0.1 % false positives: it needs at least 1,000 non-members" in note for note in result.notes)
    # 1,287 non-members are enough.
    swapped = {"members": {"name": "digits", "split": "test"}, "non_members": {"name": "digits", "split": "train"}}
    result = audit_model(settings(made.regularised, **swapped))
    assert all(rates.true_positives is not None for rates in result.models[0].attacks[0].at_low_false_positives)
    assert not any("true-positive rate" in note for note in result.notes)


def test_the_student_stands_beside_its_teacher_in_both_attacks(audited: tuple[AuditResult, Path]):
    result, _ = audited
    assert [model.role for model in result.models] == ["teacher", "student"]
    for name in ("loss threshold", "LiRA, offline"):
        teacher, student = (attack(result, role, name).auc for role in ("teacher", "student"))
        assert teacher.low > 0.6
        assert student.value < teacher.value
    assert result.shadow is not None
    assert (result.shadow.models, result.shadow.images) == (4, (MEMBERS + 450) // 2)
    assert result.shadow.inside_top1 > result.shadow.outside_top1 > 0.5


def test_noise_in_a_pool_is_not_nearer_to_members(audited: tuple[AuditResult, Path]):
    result, _ = audited
    assert [each.space for each in result.neighbours] == ["pixels", "teacher's features", "shadow model's features"]
    for each in result.neighbours:
        assert (each.images, each.references) == (200, MEMBERS)
        assert each.nearest_is_member.low < 0.5 or not each.has_chance_level
        assert 1 <= len(each.closest) <= 8
    assert not any("synthetic" in finding for finding in result.findings)


def test_members_in_a_pool_are_found_in_pixels_and_in_features(made: Made, settings: Make, tmp_path: Path):
    run = shutil.copytree(made.run, tmp_path / "run")
    fill_pool_with_members(run, made.overfitted)
    result = audit_model(settings(run, shadow={**SHADOWS, "models": 2, "epochs": 5}))
    for each in (each for each in result.neighbours if each.has_chance_level):
        assert each.nearest_is_member.low > 0.7
        assert all(pair.member == pair.pool_image for pair in each.closest)
        assert all(pair.to_member < pair.to_non_member for pair in each.closest)
    found = [finding for finding in result.findings if finding.startswith("synthetic images are closer to members")]
    assert ["in pixels" in each for each in found] == [True, False]
    assert "in the shadow model's features" in found[1]
    # The noise has a standard deviation of 10 grey levels, half of which is cut off on the black pixels.
    assert 2 / 255 < result.neighbours[0].closest[0].to_member < 10 / 255


def test_the_same_audit_gives_the_same_result(made: Made, settings: Make):
    small = settings(made.run, pool_images=50, shadow={"models": 2, "epochs": 2})
    first, second = (without_timing(audit_model(small).model_dump(mode="json")) for _ in range(2))
    assert first == second
    assert first["neighbours"][0]["images"] == 50


def test_images_in_both_sets_are_left_out_of_the_non_members(made: Made, settings: Make):
    members = {"name": "digits", "split": "test", "images": 400}
    result = audit_model(settings(made.overfitted, members=members))
    assert (result.non_members.images, result.non_members.left_out) == (50, 400)
    assert any("400 of the non-members are also members" in note for note in result.notes)
    with pytest.raises(InputError, match=r"every image of --non-members \(digits, split test\) is also in --members"):
        audit_model(settings(made.overfitted, members={"name": "digits", "split": "test"}))


def test_the_page_shows_the_result_and_stands_alone(audited: tuple[AuditResult, Path]):
    result, folder = audited
    page = (folder / "page.html").read_text()
    auc = attack(result, "teacher", "LiRA, offline").auc
    assert f"{auc.value:.3f} ({auc.low:.3f} to {auc.high:.3f})" in page
    for text in (
        "Training images can be recognised: ",
        "known attacks only",
        "it is as confidential as they are",
        "Members found: LiRA, offline",
        "4 shadow models",
        result.models[0].sha256,
        result.members.sha256,
        "needs at least 1,000",
    ):
        assert text in page, text
    assert page.count("data:image/png;base64,") == 1
    assert "<script" not in page
    assert "://" not in page.replace("http://www.w3.org", "")


def test_the_sheet_has_a_row_for_each_pair(audited: tuple[AuditResult, Path]):
    result, folder = audited
    with Image.open(io.BytesIO((folder / "pairs.png").read_bytes())) as picture:
        picture.load()
        rows = sum(len(each.closest) for each in result.neighbours)
        assert picture.height == 20 + rows * (96 + 6)
    # The first tile of the first row is the synthetic image.
    pair = result.neighbours[0].closest[0]
    member = load_split("digits", "train").subsample(MEMBERS).images[pair.member, 0]
    tile = torch.tensor(list(picture.convert("L").crop((150 + 126, 20, 150 + 126 + 96, 116)).tobytes()))
    assert torch.equal(tile.view(96, 96)[::6, ::6], member.long())


def test_json_is_the_result_and_the_page_may_not_be_replaced(made: Made, tmp_path: Path):
    page = tmp_path / "audit.html"
    audit = ("audit", made.overfitted, *DIGITS, "--set", f"members.images={MEMBERS}", *TRUSTED, "--output", page)
    finished = gapssg(*audit, "--json")
    values = json.loads(finished.stdout)
    assert AuditResult.read(finished.stdout.encode(), "stdout").output == str(page)
    assert (values["command"], values["models"][0]["role"]) == ("audit", "model")
    assert "add --overwrite to replace it" in refusal(*audit)
    shown = gapssg(*audit, "--overwrite").stdout
    assert "loss threshold" in shown
    assert "FOUND: the attack 'loss threshold' tells members" in shown


def test_nothing_found_is_said_to_be_no_proof(made: Made):
    shown = gapssg("audit", made.regularised, *DIGITS, *TRUSTED).stdout
    assert "nothing found: no measurement is above chance; these are known attacks, so this is no proof" in shown


def test_options_for_data_apply_to_both_sets():
    given = ("--data-root", "somewhere", "--image-size", 32, "--download", "--dry-run")
    printed = gapssg("audit", "run", "--members", "cifar10", "--non-members", "folder:x", *given).stdout
    values = tomllib.loads(printed)
    for key, split, name in (("members", "train", "cifar10"), ("non_members", "test", "folder:x")):
        assert values[key] == {
            "name": name, "root": "somewhere", "download": True, "image_size": 32, "split": split
        }  # fmt: skip


def test_bad_input_is_one_sentence_and_nothing_is_written(made: Made, tmp_path: Path):
    run, bare = shutil.copytree(made.run, tmp_path / "run"), shutil.copytree(made.run, tmp_path / "bare")
    shutil.rmtree(bare / "pool")
    images = write_images(tmp_path / "images")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    other = write_teacher(tmp_path / "other.safetensors")
    page = tmp_path / "page.html"
    cases: list[tuple[str, list[Any]]] = [
        ("has no sample pool to audit", [bare, *DIGITS]),
        ("to audit only its models, name", [bare, *DIGITS]),
        ("has 2 classes, but", [run, "--members", f"folder:{images}", "--non-members", "digits"]),
        ("has 2 classes, but", [run, "--members", "digits", "--non-members", f"folder:{images}"]),
        ("takes 1x16x16", [run, *DIGITS, "--image-size", 32]),
        ("has no class sub-folders", [run, "--members", f"folder:{tmp_path / 'empty'}", "--non-members", "digits"]),
        ("is also in --members", [run, *DIGITS, "--set", "non_members.split=train"]),
        ("is not the teacher of", [run, *DIGITS, "--teacher", other]),
        ("the audit needs the teacher of", [run, *DIGITS, "--teacher", images / "train" / "dark" / "0.png"]),
        ("does not exist", [tmp_path / "absent", *DIGITS]),
        ("holds neither student.safetensors nor", [images, *DIGITS]),
        ("must be even", [run, *DIGITS, "--shadow-models", 3]),
        ("non_members.name is missing: add --non-members", [run, "--members", "digits"]),
        ("--sheet shows images of a pool", [made.overfitted, *DIGITS, "--sheet", tmp_path / "pairs.png"]),
        ("its name must end in .png", [run, *DIGITS, "--sheet", tmp_path / "pairs.jpg"]),
        ("its name must end in .html", [run, *DIGITS, "--output", tmp_path / "page.txt"]),
        ("was synthesised from another teacher", [with_foreign_pool(run, other), *DIGITS]),
    ]
    before = sorted(tmp_path.rglob("*"))
    for words, arguments in cases:
        output = [] if "--output" in arguments else ["--output", page]
        said = refusal("audit", *arguments, *output, *TRUSTED)
        assert words in said, said
        assert len(said.splitlines()) == 1, said
    assert sorted(tmp_path.rglob("*")) == before


def with_foreign_pool(run: Path, teacher: Path) -> Path:
    copy = shutil.copytree(run, run.with_name("foreign"))
    fill_pool_with_members(copy, teacher)
    return copy


def test_models_of_one_file_need_no_pool_and_a_student_alone_has_a_note(made: Made, settings: Make):
    student = made.run / "student.safetensors"
    alone = audit_model(settings(student))
    assert [model.role for model in alone.models] == ["student"]
    assert any("name it with --teacher" in note for note in alone.notes)
    beside = audit_model(settings(student, teacher=made.overfitted))
    assert [model.role for model in beside.models] == ["teacher", "student"]
    assert beside.models[1] == alone.models[0]


def test_a_disk_that_refuses_the_page_ends_the_audit(
    made: Made, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path, content: bytes) -> None:
        if path.suffix == ".html":
            raise RunError(f"cannot write {path}: No space left on device")
        write_atomically(path, content)

    monkeypatch.setattr("gapssg.audit.audit.write_atomically", refuse)
    with pytest.raises(RunError, match="No space left"):
        audit_model(settings(made.overfitted), tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_shadow_models_of_a_folder_of_one_split_each(tmp_path: Path):
    images = write_images(tmp_path / "images", test=24)
    members, others = tmp_path / "members", tmp_path / "others"
    members.mkdir()
    others.mkdir()
    shutil.move(images / "train", members / "train")
    shutil.move(images / "test", others / "train")
    shutil.copytree(others / "train", members / "test")
    teacher = pretrain(tmp_path / "teacher", None, data={"name": f"folder:{members}"}, epochs=2, crop_padding=0)
    shutil.rmtree(members / "test")
    finished = gapssg(
        *("audit", teacher, "--members", f"folder:{members}", "--non-members", f"folder:{others}", "--json"),
        *("--set", "non_members.split=train", "--shadow-models", 2, "--shadow-epochs", 1, *TRUSTED),
    )
    result = AuditResult.read(finished.stdout.encode(), "stdout")
    assert (result.members.images, result.non_members.images, result.non_members.split) == (48, 48, "train")
