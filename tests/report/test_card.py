from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gapssg import (
    InputError,
    PretrainSettings,
    ReportSettings,
    RunError,
    distill,
    load_model,
    pretrain_teacher,
    write_card,
    write_report,
)
from gapssg.runs import evaluations
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note
from gapssg.runs.results.common import Scores
from gapssg.text import percent
from tests.program import gapssg, refusal
from tests.report.conftest import CLASSES, NO_INTERVAL, RUNTIME, Runs
from tests.results import make_scores
from tests.run_fixtures import change, settings


def metadata(card: str) -> dict[str, Any]:
    start, block, _ = card.split("---\n", 2)
    assert start == ""
    values = yaml.safe_load(block)
    assert isinstance(values, dict)
    return values


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.slow
def test_a_card_has_the_metadata_that_the_hub_reads(runs: Runs):
    gapssg("card", runs.evaluated, "--licence", "apache-2.0")
    values = metadata((runs.evaluated / "README.md").read_text())
    student = json.loads((runs.evaluated / "result.json").read_text())["student"]
    assert values["license"] == "apache-2.0"
    card = (runs.evaluated / "README.md").read_text()
    gapssg("card", runs.evaluated, "--overwrite")
    assert (runs.evaluated / "README.md").read_text() == card
    gapssg("card", runs.evaluated, "--overwrite", "--licence", "mit")
    assert metadata((runs.evaluated / "README.md").read_text())["license"] == "mit"

    assert values["library_name"] == "gapssg"
    assert values["pipeline_tag"] == "image-classification"
    assert {"image-classification", "data-free-knowledge-distillation"} <= set(values["tags"])
    (model,) = values["model-index"]
    (result,) = model["results"]
    assert model["name"] == "evaluated"
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "digits", "type": "digits", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", student["top1"]),
        ("accuracy", student["top5"]),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edited", "licence"),
    [
        ("---\nlicense: 'apache-2.0' # ours\n---\n", "apache-2.0"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("# My model\n\nlicense: gpl-3.0\n", None),
        ("---\ntags: []\n---\n", None),
    ],
)
def test_a_card_that_is_replaced_keeps_its_licence(runs: Runs, edited: str, licence: str | None):
    (runs.blind / "README.md").write_text(edited, newline="")
    assert metadata(write_card(runs.blind, overwrite=True).read_text()).get("license") == licence


@pytest.mark.parametrize(
    ("edited", "sentence"),
    [
        ("---\nlicense: [mit, gpl]\n---\n", "the licence in .* cannot be kept; add --licence"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "the licence in .* cannot be kept; add --licence"),
        ("---\nlicense: [\n---\n", "the metadata of .* cannot be read; add --licence"),
    ],
)
def test_a_licence_that_cannot_be_kept_is_asked_for(runs: Runs, edited: str, sentence: str):
    (runs.blind / "README.md").write_text(edited)
    with pytest.raises(InputError, match=sentence):
        write_card(runs.blind, overwrite=True)
    assert (runs.blind / "README.md").read_text() == edited
    write_card(runs.blind, overwrite=True, licence="mit")


@pytest.mark.slow
def test_the_best_epoch_is_never_the_result(runs: Runs):
    change(runs.evaluated / "result.json", lambda result: result["student"].update(best_top1=0.987, top1=0.123))
    card = write_card(runs.evaluated).read_text()
    assert "0.987" not in str(metadata(card))
    assert "| this model | 12.3 % |" in card
    assert "with 98.7 %. That epoch was selected on the same test images, so that the figure is optimistic." in flat(
        card
    )


@pytest.mark.parametrize(
    ("synthesized", "procedural", "sources"),
    [
        (0, 0, "images that an earlier run had synthesised from a teacher by the method `gapssg`"),
        (
            1200,
            0,
            "the images of an earlier run, and from 1,200 images that this run synthesised from the teacher by the "
            "method `gapssg`",
        ),
        (
            1200,
            600,
            "the images of an earlier run, from 600 images of random shapes, and from 1,200 images that this run "
            "synthesised from the teacher by the method `gapssg`",
        ),
    ],
)
def test_a_card_names_each_source_of_a_pool(runs: Runs, synthesized: int, procedural: int, sources: str):
    images = {"pool": "runs/earlier", "images_synthesized": synthesized, "images_procedural": procedural}
    change(runs.blind / "result.json", lambda result: result.update(images))
    assert f"The student learned from {sources}, in" in flat(write_card(runs.blind).read_text())


def test_what_was_not_measured_has_no_result(runs: Runs):
    card = write_card(runs.blind).read_text()
    values = metadata(card)
    assert "model-index" not in values
    assert "license" not in values
    assert "**its accuracy is not known**" in card
    assert "No training image of the teacher was read" in card
    assert load_model(runs.blind / "student.safetensors").sha256 in card


def test_what_eval_and_report_measured_after_the_run_is_on_the_card(runs: Runs):
    """A run that read no real image; first `eval` measures it, then `report`."""
    file = runs.blind / "student.safetensors"
    evaluated = json.loads(gapssg("eval", file, "--data", "digits", "--json", "--device", "cpu").stdout)["models"][0]
    card = write_card(runs.blind).read_text()
    assert "its accuracy is not known" not in card
    (result,) = metadata(card)["model-index"][0]["results"]
    assert result["dataset"]["name"] == "digits"
    assert [metric["value"] for metric in result["metrics"]] == [evaluated["top1"], evaluated["top5"]]
    figures = [percent(evaluated[name]) for name in ("top1", "top5", "balanced_accuracy", "lowest_recall")]
    named = f" (`{evaluated['lowest_class']}`)"
    assert f"| `digits` | 450 | {' | '.join(figures)}{named} | - |" in card

    compared = gapssg("eval", file, "--data", "digits", "--teacher", runs.teacher, "--json", "--device", "cpu").stdout
    teacher = json.loads(compared)["models"][0]["own_teacher"]
    card = write_card(runs.blind, overwrite=True).read_text()
    assert f"{named} | {percent(teacher['top1'])} |" in card

    settings = {"runs": [runs.blind], "data": {"name": "digits"}, "teacher": runs.teacher, "runtime": RUNTIME}
    write_report(ReportSettings.model_validate(settings), runs.blind.parent / "page.html")
    card = write_card(runs.blind, overwrite=True).read_text()
    assert card.count("| `digits` | 450 |") == 1  # the same data set, measured again
    assert f"{named} | - |" not in card  # now with the teacher's accuracy
    page = (runs.blind.parent / "page.html").read_text()
    assert '<th class="n">lowest class</th>' in page
    assert f"{percent(evaluated['lowest_recall'])} ({evaluated['lowest_class']})</td>" in page
    assert f"the lowest of a class is {percent(evaluated['lowest_recall'])}" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_a_report_without_data_gives_the_accuracy_of_the_last_eval(runs: Runs):
    settings = ReportSettings.model_validate({"runs": [runs.blind]})
    page = runs.blind.parent / "page.html"
    (before,) = write_report(settings, page).runs
    assert (before.evidence, before.top1) == ("synthetic images only", None)
    gapssg("eval", runs.blind / "student.safetensors", "--data", "digits", "--device", "cpu")
    (kept,) = json.loads((runs.blind / "evaluations.json").read_text())["evaluations"]
    (after,) = write_report(settings, page, overwrite=True).runs
    assert (after.evidence, after.top1) == ("real images", kept["scores"]["top1"])
    assert "of the 450 test images of digits" in page.read_text().replace("\N{NO-BREAK SPACE}", " ")


def test_what_was_measured_of_other_weights_or_cannot_be_kept_is_not_on_the_card(runs: Runs, monkeypatch):
    file = runs.blind / "student.safetensors"
    gapssg("eval", file, "--data", "digits", "--device", "cpu")
    kept = runs.blind / "evaluations.json"
    change(kept, lambda values: values["evaluations"][0].update(sha256="another"))
    assert "its accuracy is not known" in write_card(runs.blind).read_text()
    kept.write_text("damaged")
    assert "evaluations.json is damaged" in refusal("card", runs.blind, "--overwrite")
    gapssg("eval", file, "--data", "digits", "--device", "cpu")
    assert "its accuracy is not known" not in write_card(runs.blind, overwrite=True).read_text()
    before = kept.read_bytes()

    def refuse(path: Path, _: object) -> None:
        raise RunError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(evaluations, "write_json", refuse)
    shown = gapssg("eval", file, "--data", "digits", "--device", "cpu").stdout
    assert "the scores were not saved in the run: cannot write" in shown
    assert "450 test images of digits" in shown
    assert kept.read_bytes() == before


def test_a_card_says_how_images_are_normalised(runs: Runs):
    card, model = write_card(runs.blind).read_text(), load_model(runs.blind / "student.safetensors").card
    assert f"- Images of other sizes are {model.resizing} (with antialiasing, as by Pillow).\n" in card
    assert f"- Mean: {round(model.mean[0], 6)}\n- Standard deviation: {round(model.deviation[0], 6)}\n" in card


def test_the_python_example_runs(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    for run in (runs.blind, runs.hostile):
        code = re.search(r"```python\n(.*?)```", write_card(run).read_text(), re.DOTALL)
        assert code
        monkeypatch.chdir(run)
        found: dict[str, Any] = {}
        exec(code[1], found)
        assert found["names"][0] in found["model"].card.class_names


def test_the_examples_for_a_custom_model_name_its_factory(made: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    factory, run = "tests.models.factories:small", tmp_path / "run"
    data = f"folder:{made.images}"
    training = {"data": {"name": data}, "model": {"name": factory}, "epochs": 1, "runtime": RUNTIME}
    pretrain_teacher(PretrainSettings.model_validate(training), run)
    card = write_card(run, factories=[factory]).read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    line = re.search(r"^    gapssg (eval .*)$", card, re.MULTILINE)
    assert code and line
    monkeypatch.chdir(run)
    found: dict[str, Any] = {}
    exec(code[1], found)
    assert found["names"][0] in CLASSES
    words = [data if word == "folder:PATH" else word for word in shlex.split(line[1])]
    assert json.loads(gapssg(*words, "--json").stdout)["images"] == 16
    assert "loading it runs no code" not in card
    assert f"`{factory}`, which Python\nmust find. It is imported and run when the model is loaded" in card


def test_nothing_is_written_without_huggingface_hub(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = "a model card needs huggingface_hub, which is not installed: pip install 'gapssg[card]'"
    assert refusal("card", runs.blind) == message
    assert not (runs.blind / "README.md").exists()


@pytest.mark.parametrize("value", [5e-05, 1.25e-05, 0.0, 1.0, 0.5])
def test_every_accuracy_is_a_number_to_yaml(runs: Runs, value: float):
    change(runs.evaluated / "result.json", lambda result: result["student"].update(top1=value))
    (model,) = metadata(write_card(runs.evaluated).read_text())["model-index"]
    read = model["results"][0]["metrics"][0]["value"]
    assert isinstance(read, float)
    assert read == value


def test_hostile_texts_neither_break_the_metadata_nor_become_markup(runs: Runs):
    evil = '"\n---\nlicense: mit\n\u2028\x85\ud800\ufffe# [x](http://x) `<script>alert(1)</script>'
    escaped = json.dumps(evil)

    def edit(result: dict[str, Any]) -> None:
        result["method"] = result["data"] = "EVIL"
        result["student"].update(top1=0.5)

    change(runs.blind / "result.json", edit)
    result = runs.blind / "result.json"
    # The reader accepts no lone surrogates in JSON.
    result.write_text(result.read_text().replace('"EVIL"', escaped.replace("\\ud800", "")))
    card = write_card(runs.blind).read_text()
    values = metadata(card)
    assert "license" not in values
    name = values["model-index"][0]["results"][0]["dataset"]["name"]
    assert "license: mit" in name
    assert "\n" not in name
    body = card.split("---\n", 2)[2]
    outside = re.sub(r"`[^`]*`", "", body)
    assert "script" not in outside
    assert "](http" not in outside
    hostile = write_card(runs.hostile).read_text()
    assert metadata(hostile)["model-index"][0]["name"] == runs.hostile.name
    assert f"`{CLASSES[0]}`" in hostile


def test_no_path_of_this_machine_is_published(runs: Runs):
    for run in (runs.evaluated, runs.hostile):
        card = write_card(run).read_text()
        assert str(runs.images.parent) not in card
        assert str(run.parent) not in card
    dataset = metadata(card)["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == runs.images.name


def test_an_edited_card_stays_unless_it_is_overwritten(runs: Runs):
    card = write_card(runs.blind)
    card.write_text("mine")
    assert "README.md already exists, and may have been edited; add --overwrite" in refusal("card", runs.blind)
    assert card.read_text() == "mine"
    gapssg("card", runs.blind, "--overwrite")
    assert "mine" not in card.read_text()


class Listener(SilentDisplay):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.message)


def test_a_run_that_is_replaced_keeps_its_card_and_says_so(runs: Runs):
    card = write_card(runs.blind)
    before = card.read_text()
    listener = Listener()
    distill(settings(runs.teacher, epochs=1), runs.blind, overwrite=True, display=listener)
    assert card.read_text() == before
    assert any("README.md is kept; it may describe the run that was replaced" in note for note in listener.notes)


def test_a_folder_with_only_a_readme_is_not_a_run(runs: Runs, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that are not a run's \(README.md\)"):
        distill(settings(runs.teacher), tmp_path / "other", overwrite=True)


def test_bad_input_is_one_sentence_and_nothing_is_written(runs: Runs):
    assert "is not an identifier of the Hub" in refusal("card", runs.blind, "--licence", "my own: words")
    assert "is not a run of distill or pretrain-teacher" in refusal("card", runs.landscape)
    (runs.evaluated / "student.safetensors").unlink()
    assert "student.safetensors does not exist" in refusal("card", runs.evaluated)
    assert not list(runs.blind.parent.glob("*/README.md"))


def test_a_card_of_a_student_that_failed_starts_with_the_failures(runs: Runs):
    failures = ["all images are `cat`", "it is right on <b>none</b>"]
    change(runs.blind / "result.json", lambda result: result.update(failures=failures))
    card = write_card(runs.blind).read_text()
    assert card.index("**FAILED: this model is not usable.**") < card.index("An image classifier")
    assert "- `all images are 'cat'`\n- `it is right on <b>none</b>`\n" in card
    change(runs.blind / "result.json", lambda result: result.update(failures=[]))
    assert "FAILED" not in write_card(runs.blind, overwrite=True).read_text()


def test_writing_the_card_of_a_student_that_failed_says_so(runs: Runs):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    assert "FAILED: the model is not usable: " in gapssg("card", runs.blind).stdout.splitlines()[-1]


def test_a_card_has_the_baseline_beside_the_agreement_and_the_lowest_class_beside_the_accuracy(runs: Runs):
    student = {"agreement": 0.9, "agreement_baseline": 0.8}
    change(runs.blind / "result.json", lambda result: result["student"].update(student))
    card = " ".join(write_card(runs.blind).read_text().split())
    assert "it gave its teacher's answer on 90.0 % (always giving the commonest answer would reach 80.0 %)." in card
    scores = {"balanced_accuracy": 0.51, "lowest_recall": 0.05, "lowest_class": "`dog`"}
    change(runs.evaluated / "result.json", lambda result: result["student"].update(scores))
    card = write_card(runs.evaluated).read_text()
    assert "The mean of the accuracies of the classes is 51.0 %, the lowest 5.0 %, of class `'dog'`." in card


def test_a_card_says_why_a_prediction_has_no_interval(runs: Runs):
    change(runs.blind / "result.json", lambda result: result["quality"].update(NO_INTERVAL))
    line = "- predicted disagreement with the teacher on real images: 12.0 %; no interval: it is unlike the others\n"
    assert line in write_card(runs.blind).read_text()
    assert "predicted disagreement" not in record(runs.blind, ("digits", make_scores()))  # measured since


FAILURES = ["the teacher answers all images with class `cat`", "it is right on none"]
NO_BETTER = "the balanced accuracy on real images is 10.0 %, no better than always answering with one class"


def record(run: Path, *evaluations: tuple[str, Scores], teacher: Scores | None = None) -> str:
    """Record evaluations on data sets after the run; return the card."""
    sha256 = load_model(run / "student.safetensors").sha256
    kept = [
        {"sha256": sha256, "data": data, "images": 450, "scores": scores.model_dump(), "teacher": teacher}
        for data, scores in evaluations
    ]
    (run / "evaluations.json").write_text(json.dumps({"evaluations": kept}, default=lambda each: each.model_dump()))
    return flat(write_card(run, overwrite=True).read_text())


def test_a_failure_on_synthetic_images_is_a_warning_on_the_card_once_real_images_show_the_model_usable(runs: Runs):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    assert "FAILED" in write_card(runs.blind).read_text()
    card = record(runs.blind, ("digits", make_scores()))
    assert "FAILED" not in card
    start = card.index("**Real images show that this model is usable; synthetic images suggested otherwise.**")
    assert start < card.index("An image classifier")
    assert "see Results (images of `digits`)" in card
    assert f"- `{FAILURES[0].replace('`', chr(39))}` - `{FAILURES[1]}`" in card


def test_real_images_that_do_not_cover_every_class_leave_the_failure_on_the_card(runs: Runs):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    card = record(runs.blind, ("digits", make_scores(fewest_images=9)))
    assert "**FAILED: this model is not usable.**" in card
    assert "The evaluations below do not outweigh this" in card


def test_real_images_that_fail_a_model_are_a_failure_on_the_card_whatever_else_was_found(runs: Runs):
    change(runs.blind / "result.json", lambda result: result.update(failures=[], warnings=FAILURES[1:]))
    at_chance = make_scores(balanced_accuracy=0.1, better_than_chance=False)
    card = record(runs.blind, ("folder:/home/me/mine", at_chance), ("digits", make_scores()))
    assert f"on real images since the run, and in the run: - `{NO_BETTER} (images of mine)` - `{FAILURES[1]}`" in card
    assert "The images of `digits` show nothing against it" in card
    lost = make_scores(lowest_recall=0.05, lowest_class="dog")
    card = record(runs.blind, ("digits", lost), teacher=make_scores(lowest_recall=0.7))
    assert (
        "- `the student is right on only 5.0 % of the real images of class 'dog', its teacher on at least 70.0 %"
        in card
    )


def test_real_images_that_failed_a_model_in_its_run_are_not_outweighed_on_the_card(runs: Runs):
    change(runs.evaluated / "result.json", lambda result: result.update(failures=FAILURES[1:]))
    card = record(runs.evaluated, ("digits", make_scores()))
    found = "What was found when it was made:"
    assert f"**FAILED: this model is not usable.** {found} - `{FAILURES[1]}`" in card


def test_an_evaluation_says_that_the_card_does_not_have_it_yet(runs: Runs):
    evaluation = ["eval", runs.blind / "student.safetensors", "--data", "digits", "--device", "cpu"]
    write_card(runs.blind)
    shown = gapssg(*evaluation).stdout
    (line,) = [line for line in shown.splitlines() if "does not have these scores yet" in line]
    again = line.split("rewrite it with: gapssg ")[1]
    assert "| `digits` | 450 |" not in (runs.blind / "README.md").read_text()
    gapssg(*shlex.split(again))
    assert "| `digits` | 450 |" in (runs.blind / "README.md").read_text()
    assert "model card" not in gapssg(*evaluation).stdout  # the same scores


def test_a_link_in_place_of_the_card_does_not_keep_an_evaluation_back(runs: Runs, tmp_path: Path):
    run = shutil.copytree(runs.blind, tmp_path / "run")
    (run / "README.md").unlink(missing_ok=True)
    (run / "README.md").symlink_to(tmp_path / "elsewhere")
    found = gapssg("eval", run / "student.safetensors", "--data", "digits", "--device", "cpu", "--json")
    assert json.loads(found.stdout)["images"] == 450
    assert "model card" not in found.stderr
    assert (run / "evaluations.json").exists()


@pytest.mark.parametrize(("parameters", "teacher"), [(9, "a larger one"), (10, "another one"), (11, "another one")])
def test_only_a_larger_teacher_is_called_larger(parameters: int, teacher: str, runs: Runs):
    def resize(result: dict[str, Any]) -> None:
        result["student"].update(parameters=parameters)
        result["teacher"].update(parameters=10)

    change(runs.blind / "result.json", resize)
    assert f"that was distilled from {teacher} " in flat(write_card(runs.blind).read_text())


def test_a_top5_accuracy_of_two_classes_is_on_neither_card_nor_page(runs: Runs):
    data = {"name": f"folder:{runs.images}"}
    page = runs.hostile.parent / "page.html"
    write_report(ReportSettings.model_validate({"runs": [runs.hostile], "data": data, "runtime": RUNTIME}), page)
    card = write_card(runs.hostile).read_text()
    assert "| images of | number | top-1 | balanced accuracy |" in card
    for text in (page.read_text(), card):
        assert "top-1" in text
        assert "top-5" not in text
    assert card.endswith("\n")
