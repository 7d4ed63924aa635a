from __future__ import annotations

import base64
import io
import json
import os
import re
import tomllib
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gapssg import EvaluateSettings, InputError, ReportSettings, evaluate, load_model, write_report
from gapssg.models.model_file import save_model
from gapssg.runs.results.evaluation import EvaluatedModel
from tests.program import gapssg, refusal
from tests.report.conftest import CLASSES, NO_INTERVAL, RUNTIME, Runs
from tests.run_fixtures import change


class Page(HTMLParser):
    """A page as a browser parses it.

    Attributes:
        tags: Every tag with its attributes.
        text: The visible text, with single spaces.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", "".join(self._texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._inside != "style":
            self._texts.append(data)


@pytest.fixture(autouse=True)
def no_kept_scores(made: Runs) -> None:
    """Remove the scores that the reports of other tests kept in the shared runs."""
    for run in (made.evaluated, made.blind, made.hostile):
        (run / "evaluations.json").unlink(missing_ok=True)


def report(folder: Path, *paths: Path, data: str | None = None, **values: Any) -> Page:
    settings = {"runs": paths, "runtime": RUNTIME, **values, **({"data": {"name": data}} if data else {})}
    write_report(ReportSettings.model_validate(settings), folder / "page.html", overwrite=True)
    return Page(folder / "page.html")


def test_a_run_without_real_images_is_judged_by_synthetic_ones(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.blind)
    agreement = json.loads((made.blind / "result.json").read_text())["student"]["agreement"]
    assert f"The student gave its teacher's answer on {100 * agreement:.1f} % of the last synthetic" in page.text
    assert "Evidence: synthetic images only" in page.text
    assert "The accuracy on real images is not known" in page.text
    assert "add --data folder:PATH" in page.text
    for missing in ("Accuracy gap, on real images", "Confusion", "Accuracy by confidence"):
        assert missing not in page.text
    for there in ("Reality gap", "Agreement with the teacher", "Samples", "Batch norm statistics loss", "Cost"):
        assert there in page.text


def test_a_page_says_why_a_prediction_has_no_interval(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result["quality"].update(NO_INTERVAL))
    page = report(tmp_path, runs.blind)
    assert "Predicted disagreement with the teacher on real images: 12.0 %; no interval: it is unlike" in page.text
    assert "Evidence: probe images" in page.text


def test_without_data_the_figures_are_those_of_the_run(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.evaluated)
    result = json.loads((made.evaluated / "result.json").read_text())
    assert f"right on {100 * result['student']['top1']:.1f} % of the test images of digits" in page.text
    assert f"({100 * result['teacher']['top1']:.1f} %)" in page.text
    assert f"The best epoch was {result['student']['best_epoch']} of 2" in page.text
    assert "that figure is optimistic" in page.text
    assert result["teacher"]["sha256"] in page.text
    assert result["settings_sha256"] in page.text
    assert "settings.toml was changed" not in page.text


def test_with_data_the_models_are_evaluated_by_class_beside_their_teacher(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.blind, data="digits")
    assert "of the 450 test images of digits" in page.text
    assert "Evidence: real images" in page.text
    for there in ("Confusion of the student", "Confusion of the teacher", "Accuracy by confidence", "By class"):
        assert there in page.text
    assert "Evidence: synthetic" not in page.text
    assert "It has 20,506 parameters instead of 20,506 (100.0 %)" in page.text
    pairs = zip(*(model.per_class_accuracy for model in evaluated_beside_teacher(made)), strict=True)
    _, lost = max((teacher - student, -number) for number, (student, teacher) in enumerate(pairs))
    assert f"It is furthest below its teacher on class {-lost}: " in page.text


def evaluated_beside_teacher(made: Runs) -> tuple[EvaluatedModel, ...]:
    """Return what `evaluate` says of the blind student and of its teacher."""
    models = (made.blind / "student.safetensors", made.teacher)
    return evaluate(EvaluateSettings(models=models, data={"name": "digits"})).models


def test_a_moved_teacher_is_missing_and_can_be_named(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result["teacher"].update(file=str(tmp_path / "gone")))
    page = report(tmp_path, runs.blind, data="digits")
    assert "The teacher is missing: the teacher's file is not at" in page.text
    assert "Confusion of the teacher" not in page.text
    page = report(tmp_path, runs.blind, data="digits", teacher=runs.teacher)
    assert "Confusion of the teacher" in page.text
    with pytest.raises(InputError, match="is not the teacher of any of these runs"):
        report(tmp_path, runs.blind, data="digits", teacher=runs.evaluated / "student.safetensors")


def test_a_teacher_with_an_impossible_name_is_missing(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result["teacher"].update(file="x" * 300))
    page = report(tmp_path, runs.blind, data="digits")
    assert f"The teacher is missing: the teacher's file is not at {'x' * 300}" in page.text


def test_another_file_in_place_of_the_teacher_is_not_used(runs: Runs, tmp_path: Path):
    other = str(runs.evaluated / "student.safetensors")
    change(runs.blind / "result.json", lambda result: result["teacher"].update(file=other))
    assert "Confusion of the teacher" not in report(tmp_path, runs.blind, data="digits").text


def test_several_runs_are_compared_before_each_has_its_section(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.evaluated, made.blind, made.hostile, made.landscape)
    assert page.text.index("Side by side") < page.text.index("Evidence")
    assert page.text.count("Evidence:") == 3
    links = {value["href"] for tag, value in page.tags if tag == "a"}
    assert links == {f"#{value['id']}" for tag, value in page.tags if str(value.get("id", "")).startswith("run-")}
    assert page.text.count("Landscape") == 1
    assert page.text.index("Landscape") < page.text.index("blind", page.text.index("Evidence"))


def test_a_landscape_of_another_model_has_its_own_section(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.blind, made.landscape)
    assert page.text.rindex("settings.toml") < page.text.index("The loss (cross-entropy) on 10 samples of digits")


def test_names_are_shown_without_effect(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.hostile, data=f"folder:{made.images}")
    for name in (*CLASSES, made.hostile.name):
        assert name in page.text
    assert all(value["src"].startswith("data:image/png;base64,") for tag, value in page.tags if tag == "img")
    assert {"b", "script", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_untrusted_texts_are_escaped(runs: Runs, tmp_path: Path):
    evil = '</code></pre><script>alert(1)</script>\u202e\x1b"'

    def edit(result: dict[str, Any]) -> None:
        result["method"] = result["device"] = result["teacher"]["file"] = evil
        result["versions"][evil] = evil
        result["timing"][evil] = 1.0

    change(runs.blind / "result.json", edit)
    with (runs.blind / "events.jsonl").open("a") as events:
        events.write(json.dumps({"event": "warning", "epoch": 2, "message": evil}) + "\n")
    with (runs.blind / "settings.toml").open("a") as settings:
        settings.write(f"\n['{evil[:-3]}']\nx = {json.dumps(evil)}\n")
    page = report(tmp_path, runs.blind)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("</code></pre><script>alert(1)</script>") >= 7
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    assert "settings.toml was changed after the run" in page.text


def test_a_name_that_is_not_utf_8_is_shown_with_replacements(runs: Runs, tmp_path: Path):
    run = runs.blind.rename(runs.blind.parent / os.fsdecode(b"run-\xff"))
    assert "run-\N{REPLACEMENT CHARACTER}" in report(tmp_path, run).text


def test_the_command_reproduces_the_run(made: Runs, tmp_path: Path):
    page = report(tmp_path, made.evaluated)
    command = re.search(r"gapssg distill --config (\S+) --output (\S+)-again", page.text)
    assert command and command.groups() == (str(made.evaluated / "settings.toml"), str(made.evaluated))
    source = (tmp_path / "page.html").read_text()
    shown = re.search(r"settings.toml</summary>\s*<pre><code>(.*?)</code>", source, re.DOTALL)
    assert shown
    settings = tomllib.loads(shown[1].replace("&#34;", '"'))
    assert settings == tomllib.loads((made.evaluated / "settings.toml").read_text())


EXTENDED = "The run was extended after epoch"


@pytest.mark.parametrize(
    ("planned", "sentence"),
    [
        ([1, 2], "extended after epoch 1 (--resume with more --epochs). The command plans all 2 epochs from the start"),
        ([9, 2], None),  # ended early by --until-settled
        ([2, 2], None),
    ],
)
def test_an_extended_run_says_that_the_command_gives_another_student(
    runs: Runs, tmp_path: Path, planned: list[int], sentence: str | None
):
    recorded = [json.loads(line) for line in (runs.blind / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in recorded if event["event"] == "epoch"]
    for event, number in zip(epochs, planned, strict=True):
        event["epochs"] = number
    (runs.blind / "events.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in recorded))
    text = report(tmp_path, runs.blind).text
    assert (EXTENDED in text) == (sentence is not None)
    assert sentence is None or (sentence in text and "gives another student" in text)


def test_samples_are_few_and_small_however_many_and_large_they_are(runs: Runs, tmp_path: Path):
    for epoch in range(1, 40):
        size = (2000, 1000) if epoch == 39 else (16, 16)
        Image.new("RGB", size, (epoch, 0, 0)).save(runs.blind / "samples" / f"epoch-{epoch:04d}.png")
    page = report(tmp_path, runs.blind)
    pictures = [value for tag, value in page.tags if tag == "img"]
    assert [picture["alt"] for picture in pictures] == [f"epoch {epoch}" for epoch in (1, 9, 16, 24, 31, 39)]
    decoded = [Image.open(io.BytesIO(base64.b64decode(each["src"].split(",")[1]))) for each in pictures]
    assert [image.size for image in decoded] == [(16, 16)] * 5 + [(384, 192)]
    assert [image.getpixel((0, 0))[0] for image in decoded] == [1, 9, 16, 24, 31, 39]


def test_the_last_warnings_the_rollbacks_and_an_early_end_are_shown(runs: Runs, tmp_path: Path):
    with (runs.blind / "events.jsonl").open("a") as events:
        for number in range(15):
            events.write(json.dumps({"event": "warning", "epoch": 2, "message": f"collapse {number}"}) + "\n")
        events.write(json.dumps({"event": "rollback", "epoch": 1, "part": "training", "learning_rate": 0.1}) + "\n")
    settling = {"most_epochs": 9, "settled_after": 1}
    change(runs.blind / "result.json", lambda result: result.update(settling=settling))
    page = report(tmp_path, runs.blind)
    assert "no longer fell after epoch 1, so the run ended after 2 of at most 9 epochs." in page.text
    assert "There are 15 warnings, the last in epoch 2: see below." in page.text
    assert "diverged and was rolled back once" in page.text
    assert "collapse 4" not in page.text
    assert all(f"collapse {number}" in page.text for number in range(5, 15))


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "no result": ("blind", lambda run: (run / "result.json").unlink(), "holds no finished run; name"),
    "no events": ("blind", lambda run: (run / "events.jsonl").unlink(), "events.jsonl does not exist"),
    "no settings": ("blind", lambda run: (run / "settings.toml").unlink(), "settings.toml does not exist"),
    "a result of another kind": ("blind", lambda run: (run / "result.json").write_text("[]"), "result.json is damaged"),
    "an unknown command": (
        "blind",
        lambda run: change(run / "result.json", lambda result: result.update(command="eval")),
        "is not a run of distill or pretrain-teacher",
    ),
    "an accuracy of 2": (
        "evaluated",
        lambda run: change(run / "result.json", lambda result: result["student"].update(top1=2)),
        "result.json is damaged: student.top1",
    ),
    "a date among the settings": (
        "blind",
        lambda run: (run / "settings.toml").write_text("epochs = 2020-01-01"),
        "settings.toml is damaged",
    ),
    "half a sample grid": (
        "blind",
        lambda run: (run / "samples" / "epoch-0001.png").write_bytes(b"\x89PNG\r\n"),
        "epoch-0001.png is not a readable PNG",
    ),
    "a bomb": (
        "blind",
        lambda run: Image.new("1", (8192, 4096)).save(run / "samples" / "epoch-0001.png"),
        "epoch-0001.png has more than 18,000,000 pixels",
    ),
    "half a figure": (
        "landscape",
        lambda run: next((run / "figures").glob("*-contour.png")).write_bytes(b""),
        "contour.png is not a readable PNG",
    ),
    "a surface without a centre": (
        "landscape",
        lambda run: change(run / "result.json", lambda result: result["surfaces"][0].pop("centre")),
        "result.json is damaged: surfaces.0.centre",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_named_and_nothing_is_written(runs: Runs, tmp_path: Path, what: str):
    name, damage, sentence = DAMAGE[what]
    run = getattr(runs, name)
    damage(run)
    page = tmp_path / "page.html"
    message = refusal("report", run, "--output", page)
    assert sentence in message
    assert "\n" not in message
    assert not page.exists()


def test_bad_input_is_one_sentence(made: Runs, tmp_path: Path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    cases = {
        "add --overwrite to replace it": ["report", made.blind, "--output", page],
        "its name must end in .html": ["report", made.blind, "--output", made.blind / "student.safetensors"],
        "does not exist; create it first": ["report", made.blind, "--output", tmp_path / "a" / "b.html"],
        "is given twice": ["report", made.blind, made.blind / ".", "--output", tmp_path / "new.html"],
        "runs is missing: add DIR": ["report", "--output", tmp_path / "new.html"],
        "--output is missing": ["report", made.blind],
        "has 2 classes": [
            "report", made.blind, "--data", f"folder:{made.images}", "--output", tmp_path / "new.html"
        ],
    }  # fmt: skip
    for sentence, arguments in cases.items():
        assert sentence in refusal(*arguments)
    assert page.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_command_prints_the_verdicts(made: Runs, tmp_path: Path):
    page = tmp_path / "page.html"
    finished = gapssg("report", made.evaluated, made.blind, "--output", page, "--json")
    result = json.loads(finished.stdout)
    assert result["output"] == str(page)
    assert [run["evidence"] for run in result["runs"]] == ["real images", "synthetic images only"]
    shown = gapssg("report", made.blind, "--output", page, "--overwrite").stdout
    assert f"{made.blind}: FAILED: the student is not usable: the student agrees with the teacher on" in shown


def test_the_command_prints_all_failures(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    shown = gapssg("report", runs.blind, "--output", tmp_path / "page.html").stdout
    assert f"{runs.blind}: FAILED: the student is not usable: {FAILURES[0]}; {FAILURES[1]}.\n" in shown


FAILURES = ["the teacher answers all 640 synthetic images with class '<b>cat</b>'", "it is right on none"]


def test_a_failure_comes_first_in_the_verdict_and_in_the_comparison(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    change(runs.evaluated / "result.json", lambda result: result.update(failures=[]))
    page = report(tmp_path, runs.blind)
    assert (
        "FAILED: the student is not usable: the teacher answers all 640 synthetic images with class '<b>cat"
        in page.text
    )
    assert page.text.index("It is right on none.") < page.text.index("The student gave its teacher's answer on")
    assert [value["class"] for tag, value in page.tags if value.get("class", "").startswith("verdict")] == [
        "verdict failed"
    ]
    both = report(tmp_path, runs.blind, runs.evaluated)
    assert "blind FAILED" in both.text
    assert "evaluated FAILED" not in both.text


def test_a_sound_run_has_no_failure_on_the_page(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result.update(failures=[]))
    page = report(tmp_path, runs.blind)
    assert "FAILED" not in page.text
    student = json.loads((runs.blind / "result.json").read_text())["student"]
    baseline = f"{100 * student['agreement_baseline']:.1f} %"
    assert f"always giving the commonest answer would reach {baseline}" in page.text.replace("\N{NO-BREAK SPACE}", " ")


def test_a_student_at_chance_on_the_images_of_the_report_fails(runs: Runs, tmp_path: Path):
    student = runs.blind / "student.safetensors"
    loaded = load_model(student)
    with torch.no_grad():
        loaded.module.classifier.bias[3] += 1000
    save_model(student, loaded.module, loaded.card)
    with pytest.raises(InputError, match="is not the model of its run: its SHA-256 differs"):
        report(tmp_path, runs.blind, data="digits")
    change(runs.blind / "result.json", lambda result: result.update(failures=[]))
    change(runs.blind / "result.json", lambda result: result["student"].update(sha256=load_model(student).sha256))
    page = report(tmp_path, runs.blind, data="digits")
    assert "FAILED: the student is not usable: the balanced accuracy on real images is 10.0" in page.text


@pytest.fixture
def sound_on_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of a report show every student to be usable."""
    monkeypatch.setattr("gapssg.runs.failures.failures_on_real_images", lambda *_: [])
    monkeypatch.setattr("gapssg.runs.failures.passes_on_real_images", lambda _: True)


@pytest.mark.usefixtures("sound_on_real_images")
def test_synthetic_failures_are_warnings_if_real_images_show_the_student_usable(runs: Runs, tmp_path: Path):
    change(runs.blind / "result.json", lambda result: result.update(failures=FAILURES))
    assert "FAILED" in report(tmp_path, runs.blind).text
    for data in ("digits", None):  # without data, the scores that the first report kept in the run
        page = report(tmp_path, runs.blind, data=data)
        assert "FAILED" not in page.text
        assert f"It is usable on real images, in spite of what synthetic images showed: {FAILURES[1]}." in page.text
    change(runs.blind / "result.json", lambda result: result.update(failures=[], warnings=FAILURES[1:]))
    page = report(tmp_path, runs.blind)
    assert f"It is usable on real images, in spite of what synthetic images showed: {FAILURES[1]}." in page.text


@pytest.mark.usefixtures("sound_on_real_images")
def test_a_run_that_failed_on_its_real_images_stays_failed(runs: Runs, tmp_path: Path):
    change(runs.evaluated / "result.json", lambda result: result.update(failures=FAILURES[1:]))
    page = report(tmp_path, runs.evaluated, data="digits")
    assert f"FAILED: the student is not usable: {FAILURES[1]}" in page.text


def test_a_warning_is_a_failure_again_if_real_images_fail_the_student(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gapssg.runs.failures.failures_on_real_images", lambda *_: ["it has lost a class"])
    monkeypatch.setattr("gapssg.runs.failures.passes_on_real_images", lambda _: False)
    change(runs.evaluated / "result.json", lambda result: result.update(failures=[], warnings=FAILURES[1:]))
    page = report(tmp_path, runs.evaluated, data="digits")
    assert "FAILED: the student is not usable: it has lost a class (images of digits)." in page.text
    assert "It is right on none." in page.text
    assert "It is usable on real images" not in page.text


def test_runs_from_before_the_judgement_can_be_read(runs: Runs, tmp_path: Path):
    later = ["failures", "warnings", "missing_classes", "teacher_counts", "target_counts", "flops", "augmentation"]
    later += ["agreement_baseline", "after_training", "balanced_accuracy", "lowest_recall", "lowest_class"]
    later += ["better_than_chance", "fewest_images"]

    def forget(result: dict[str, Any]) -> None:
        for values in (result, result.get("student", {}), result.get("model", {})):
            for name in later:
                values.pop(name, None)

    for run in (runs.blind, runs.hostile):
        change(run / "result.json", forget)
    assert "The student gave its teacher's answer on" in report(tmp_path, runs.blind).text
    assert "The model is right on" in report(tmp_path, runs.hostile).text


def test_damaged_failures_are_refused(runs: Runs, tmp_path: Path):
    for failures in ("no list", ["x" * 6000], ["x"] * 100, [1]):
        change(runs.blind / "result.json", partial(dict.update, failures=failures))
        with pytest.raises(InputError, match="failures"):
            report(tmp_path, runs.blind)
