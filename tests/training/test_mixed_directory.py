"""A run continues only in the directory that it left: what its checkpoint builds upon is known by its SHA-256."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gapssg import DistillSettings, InputError, distill
from gapssg.models.safetensors_file import read_safetensors
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Event, Note
from gapssg.settings.load import read_toml
from tests.interruptions import Interruption
from tests.methods import METHODS
from tests.run_fixtures import TINY, files_of
from tests.tiny import TINY_NOISE, tiny_model, write_tiny_teacher


class InterruptingInEpochThree(SilentDisplay):
    def progress(self, task: str, done: int, total: int) -> None:
        if task.startswith("epoch 3"):
            raise Interruption


class Listening(SilentDisplay):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def event(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.message)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run that was interrupted in its third epoch, another of another seed, and what the first one ends with."""
    folder = tmp_path_factory.mktemp("mixed")
    with tiny_model():
        teacher = write_tiny_teacher(folder / "tiny.safetensors")
        method = {**TINY_NOISE["method"], "labelled_views": 2}
        values = {**TINY, **TINY_NOISE, "method": method, "teacher": teacher, "epochs": 3, "snapshot_every": 1}
        settings = DistillSettings.model_validate(values)
        distill(settings, folder / "whole")
        for name, seed in (("run", 0), ("other", 7)):
            with pytest.raises(Interruption):
                distill(settings.model_copy(update={"seed": seed}), folder / name, display=InterruptingInEpochThree())
        assert sorted(os.listdir(folder / "run" / "pool"))[:2] == ["shard-0001.safetensors", "shard-0002.safetensors"]
        yield folder


def resume(run: Path) -> object:
    """Continue a run as the command line does, with the settings that it finds there."""
    return distill(DistillSettings.model_validate(read_toml(run / "settings.toml")), run, resume=True)


def edit(old: str, new: str) -> Callable[[Path, Path], None]:
    def change(run: Path, _: Path) -> None:
        text = (run / "settings.toml").read_text()
        assert old in text
        (run / "settings.toml").write_text(text.replace(old, new))

    return change


def take(name: str) -> Callable[[Path, Path], None]:
    def change(run: Path, other: Path) -> None:
        shutil.copy(other / name, run / name)

    return change


def lose(name: str) -> Callable[[Path, Path], None]:
    return lambda run, _: (run / name).unlink()


def link(run: Path, other: Path) -> None:
    (run / "logits" / "views-0000016.safetensors").unlink()
    (run / "logits" / "views-0000016.safetensors").symlink_to(other / "logits" / "views-0000016.safetensors")


def exchange(run: Path, _: Path) -> None:
    first, second = run / "pool" / "shard-0001.safetensors", run / "pool" / "shard-0002.safetensors"
    first.rename(run / "aside")
    second.rename(first)
    (run / "aside").rename(second)


def other_events(run: Path, _: Path) -> None:
    text = (run / "events.jsonl").read_bytes()
    (run / "events.jsonl").write_bytes(text.replace(b"distilling", b"destilling", 1))


MIXTURES = {
    "a shard of another seed": (take("pool/shard-0002.safetensors"), r"pool/shard-0002.safetensors is not the file"),
    "two shards exchanged": (exchange, r"pool/shard-0001.safetensors is not the file"),
    "a shard gone": (lose("pool/shard-0001.safetensors"), "lost pool/shard-0001.safetensors since"),
    "a link for logits": (link, r"logits/views-0000016.safetensors is a symbolic link"),
    "another seed": (edit("seed = 0", "seed = 1"), "seed was 0 and is 1"),
    "another rate": (edit("learning_rate = 0.2", "learning_rate = 0.3"), "learning_rate was 0.2 and is 0.3"),
    "fewer epochs": (edit("epochs = 3", "epochs = 2"), "epochs was 3 and is 2"),
    "another run's checkpoint": (take("checkpoint/latest.safetensors"), "seed was 7 and is 0"),
    "other events": (other_events, r"events.jsonl does not start with the events"),
    "fewer events": (lambda run, _: os.truncate(run / "events.jsonl", 20), r"events.jsonl does not start with"),
    "events gone": (lose("events.jsonl"), r"events.jsonl does not exist"),
    "a snapshot gone": (lose("snapshots/epoch-0001.safetensors"), r"snapshots/epoch-0001.safetensors has been removed"),
    "another snapshot": (take("snapshots/epoch-0002.safetensors"), r"snapshots/epoch-0002.safetensors is not the file"),
    "another grid": (take("samples/epoch-0001.png"), r"samples/epoch-0001.png is not the file"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixed_directory_is_refused_and_unchanged(world: Path, tmp_path: Path, name: str):
    mix, sentence = MIXTURES[name]
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    mix(run, world / "other")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InputError, match=sentence) as error:
        resume(run)
    assert len(str(error.value).splitlines()) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


@pytest.mark.slow
def test_files_written_after_a_checkpoint_are_removed_on_resume(world: Path, tmp_path: Path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    for name in ("pool/shard-0001.safetensors", "snapshots/epoch-0001.safetensors", "samples/epoch-0001.png"):
        shutil.copy(world / "other" / name, run / name.replace("0001", "0009"))
    logits = world / "other" / "logits" / "views-0000016.safetensors"
    shutil.copy(logits, run / "logits" / "views-0000999.safetensors")
    shutil.copy(world / "tiny.safetensors", run / "best.safetensors")
    resume(run)
    assert files_of(run) == files_of(world / "whole")


def test_a_run_resumes_without_removed_sample_grids(world: Path, tmp_path: Path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    shutil.rmtree(run / "samples")
    resume(run)
    found, expected = files_of(run), files_of(world / "whole")
    assert found == {name: expected[name] for name in found}
    assert {name for name in expected if name not in found} <= {f"samples/epoch-000{epoch}.png" for epoch in (1, 2)}


def cut(run: Path, _: Path) -> None:
    os.truncate(run / "logits" / "views-0000016.safetensors", 200)


OTHER_LOGITS = {
    "all gone": (lambda run, _: shutil.rmtree(run / "logits"), 64),
    "the first gone": (lose("logits/views-0000000.safetensors"), 64),
    "of another seed": (take("logits/views-0000016.safetensors"), 32),
    "cut off": (cut, 32),
    "a shard": (
        lambda run, _: shutil.copy(
            run / "pool" / "shard-0001.safetensors", run / "logits" / "views-0000016.safetensors"
        ),
        32,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_LOGITS)
def test_logits_that_are_lost_or_have_changed_are_computed_again(world: Path, tmp_path: Path, name: str):
    change, views = OTHER_LOGITS[name]
    run, display = Path(shutil.copytree(world / "run", tmp_path / "run")), Listening()
    change(run, world / "other")
    distill(DistillSettings.model_validate(read_toml(run / "settings.toml")), run, resume=True, display=display)
    sentence = f"{views} views are labelled again, because files of the run's logits are lost or have changed"
    assert sentence in display.notes
    assert files_of(run) == files_of(world / "whole")


@pytest.mark.slow
def test_a_checkpoint_of_another_version_is_refused_in_one_sentence(world: Path, tmp_path: Path):
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    content = read_safetensors(run / "checkpoint" / "latest.safetensors")
    header = json.loads(content.metadata["facts"])
    del header["facts"]["distillation"]["labelled_images"]  # as before logits were kept
    save_file(content.tensors, run / "checkpoint" / "latest.safetensors", {"facts": json.dumps(header)})
    before = files_of(run)
    with pytest.raises(InputError) as refused:
        distill(DistillSettings.model_validate(read_toml(run / "settings.toml")), run, resume=True)
    assert str(refused.value) == (
        "the checkpoint does not belong to this run, or is of another version of gapssg; restart with --overwrite"
    )
    assert files_of(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("left", ["of another epoch", "none"])
def test_the_best_weights_are_those_of_the_epoch_that_the_result_names(teacher_file: Path, tmp_path: Path, left: str):
    run, best = tmp_path / "run", tmp_path / "run" / "best.safetensors"
    values = {**TINY, "teacher": teacher_file, "method": TINY_NOISE["method"], "snapshot_every": 1}
    settings = DistillSettings.model_validate({**values, "eval_data": {"name": "digits", "images": 32}})
    result = distill(settings, run)
    expected, epoch = best.read_bytes(), result.student.best_epoch
    # The state after a kill between an evaluation and its checkpoint.
    best.unlink()
    if left == "of another epoch":
        shutil.copy(run / "snapshots" / f"epoch-000{3 - epoch}.safetensors", best)
        assert best.read_bytes() != expected
    again = distill(settings, run, resume=True)
    assert again.student.best_epoch == epoch
    assert best.read_bytes() == expected


def test_a_run_does_not_resume_with_another_file_of_its_method(tmp_path: Path):
    with tiny_model():
        teacher, embeddings = write_tiny_teacher(tmp_path / "tiny.safetensors"), tmp_path / "embeddings.safetensors"
        save_file({"embeddings": torch.eye(10)}, embeddings)
        method = {"name": "nayer", **METHODS["nayer"], "label_embeddings": embeddings}
        values = {**TINY, **TINY_NOISE, "teacher": teacher, "epochs": 3, "method": method}
        with pytest.raises(Interruption):
            distill(DistillSettings.model_validate(values), tmp_path / "run", display=InterruptingInEpochThree())
        before = files_of(tmp_path / "run")
        save_file({"embeddings": 2 * torch.eye(10)}, embeddings)
        with pytest.raises(InputError, match=r"the SHA-256 of method.label_embeddings was \w+\.\.\. and is"):
            resume(tmp_path / "run")
        assert files_of(tmp_path / "run") == before
        save_file({"embeddings": torch.eye(10)}, embeddings)
        resume(tmp_path / "run")
