"""Untrusted files are used or refused with a sentence, within the stated memory."""

from __future__ import annotations

import json
import os
import re
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

import gapssg
from gapssg import DistillSettings, InputError, distill, load_model
from gapssg.cli.app import main
from gapssg.data import decode, load_split
from gapssg.models import create_model, empty_model
from gapssg.models.model_file import save_model
from gapssg.models.safetensors_file import read_safetensors
from gapssg.models.safetensors_header import LARGEST_HEADER
from gapssg.runs.directory import RunDirectory, SilentDisplay, Written, check_output, check_same_settings
from gapssg.settings.load import load_settings
from tests.conftest import make_card
from tests.hostile.targets import TARGETS, World, join, png_bomb, run_target, split
from tests.program import refusal

CASES = {"checkpoint": 30, "shard of a run": 10, "finished run": 15}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def work(world: World) -> Path:
    return world.copy_of_run(0)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_untrusted_input_is_used_or_refused_with_a_sentence(world: World, target: str):
    world.work.mkdir(exist_ok=True)
    report = run_target(target, world, CASES.get(target, 50))
    assert report.refused + report.accepted >= 10


# What a message suggests to users who trust a file, the restricted unpickler, which runs in child processes, and arrays
# of numbers.
SAFE_LINES = {
    "f\"    import torch; loaded = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\",",
    "f\"    torch.save(loaded.state_dict(), {str(path.with_name(f'{path.stem}-weights.pth'))!r})\"",
    'content = torch.load(checkpoint, map_location="cpu", weights_only=True)',
    "array: NDArray[Any] = npy.read_array(opened, allow_pickle=False)",
    'state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)',
}


def test_no_source_has_a_call_by_which_data_could_run_code():
    words = re.compile(
        r"(import|from) \w*(pickle|yaml|marshal|shelve|dill)|\w*(pickle|yaml|marshal)\.|torch\.(load|save)\b"
    )
    calls = re.compile(r"\b(eval|exec)\(|shell=True|allow_pickle|weights_only")
    root = Path(gapssg.__file__).parent.parent
    files = [*(root / "gapssg").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    assert len(files) > 50
    for path in files:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            # `module.eval()` only sets a mode.
            rest = line.replace(".eval()", "")
            if line.strip() in SAFE_LINES or (path.name == "teacher_files.py" and "torch.save(" in line):
                continue  # that benchmark writes files as other programs do
            assert not words.search(rest) and not calls.search(rest), f"{path}:{number}: {line}"


# Safetensors files


def entry(shape: list[Any], length: int, dtype: str = "F32") -> str:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, length]}})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (join(entry([10**12], 4 * 10**12), b""), ""),
        (join(entry([10**12], 4), b"1234"), ""),
        (join(entry([2**62, 4], 4), b"1234"), ""),
        (join(entry([0, 2**40, 2**40], 0), b""), "an impossible shape"),
        (join(entry([1] * 9, 4), b"1234"), "an impossible shape"),
        (join(entry([-1], 4), b"1234"), ""),
        (join(entry([1.0], 4), b"1234"), ""),
        (join(entry([1], 4, "F8_E9" * 1000), b"1234"), ""),
        (join(entry([4], 4, "F8_E4M3"), b"1234"), "unknown dtype F8_E4M3"),
        (join(entry([1], 4), b"12345678"), ""),
        (join(entry([1], 4), b"123"), ""),
        (b"123", ""),
        (struct.pack("<Q", 64) + b"{}", ""),
        (struct.pack("<Q", 2**63) + b"{}", "its header has 9,223,372,036,854,775,808 bytes, more than"),
        (join(f"{{{entry([1], 4)[1:-1]}, {entry([1], 4)[1:-1]}}}", b"1234"), "duplicate tensor name"),
        (join(f"{{{entry([1], 4)[1:-1]}, {entry([2], 8)[1:-1]}}}", b"1234"), ""),
        (join("[" * 100_000, b""), ""),
        (join('{"__metadata__": null}', b""), "metadata is not a map of strings"),
        (join('{"__metadata__": {"x": 1}}', b""), ""),
        (join('{"__metadata__": {"x": "1", "x": "2"}}', b""), "duplicate tensor name"),
        (join("{}" + " " * LARGEST_HEADER, b""), "its header has 4,194,306 bytes, more than"),
    ],
)
def test_a_header_is_checked_before_anything_is_allocated(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=f"is not a readable safetensors file: .*{reason}") as caught:
        read_safetensors(tmp_path / "a")
    assert len(str(caught.value)) < 500


def test_tensors_may_neither_overlap_nor_leave_gaps(tmp_path: Path):
    for second in ([2, 6], [8, 12]):
        header = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
        header["b"] = {**header["a"], "data_offsets": second}
        (tmp_path / "a").write_bytes(join(json.dumps(header), bytes(second[1])))
        with pytest.raises(InputError, match="is not a readable safetensors file: "):
            read_safetensors(tmp_path / "a")


def test_files_of_the_safetensors_library_are_read_like_there(tmp_path: Path):
    tensors = {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "number": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "half": torch.randn(5).half(),
        "double": torch.randn(2, 3).double(),
        "whole": torch.arange(4),
    }
    save_file(tensors, tmp_path / "a", metadata={"x": "y"})
    read = read_safetensors(tmp_path / "a")
    assert read.metadata == {"x": "y"}
    assert read.tensors.keys() == tensors.keys()
    for name, tensor in load_file(tmp_path / "a").items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_tensors_that_are_not_aligned_are_read(tmp_path: Path):
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    (tmp_path / "a").write_bytes(join(json.dumps(header), b"\7" + struct.pack("<f", 1.5)))
    assert read_safetensors(tmp_path / "a").tensors["b"].tolist() == [1.5]


def test_a_description_of_a_million_values_is_refused_before_each_becomes_an_error(teacher_file: Path):
    header, tensors = split(teacher_file.read_bytes())
    header["__metadata__"]["gapssg"] = '{"class_names":[' + "0," * 1_000_000 + "0]}"
    teacher_file.write_bytes(join(json.dumps(header), tensors))
    with pytest.raises(InputError, match="more values than any model needs"):
        load_model(teacher_file)


def test_a_small_file_makes_no_large_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = tuple(map(str, range(100_000)))
    card = make_card(architecture="resnet34", num_classes=100_000, class_names=names)
    save_model(tmp_path / "model.safetensors", torch.nn.Linear(1, 1), card)

    def build(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("gapssg.models.model_file.create_model", build)
    with pytest.raises(InputError, match="the weights do not fit the model"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", gapssg.models.MODELS)
def test_an_empty_model_has_the_shapes_of_the_model_and_no_memory(name: str):
    task: dict[str, Any] = {"num_classes": 3, "input_shape": (1, 16, 16)}
    empty = empty_model(name, **task).state_dict()
    full = create_model(name, **task).state_dict()
    assert {key: (t.shape, t.dtype) for key, t in empty.items()} == {key: (t.shape, t.dtype) for key, t in full.items()}
    assert all(tensor.is_meta for tensor in empty.values())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a file"):
        load_model(tmp_path / "pipe")
    with pytest.raises(InputError, match="is not a file"):
        load_settings(DistillSettings, section="distill", config=tmp_path / "pipe")


# Settings


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 20_000, "is not valid TOML"),
        ("a = " + "9" * 5000, "is not valid TOML"),
        (".".join("a" * 30_000) + " = 1", "more than 100 dots"),
        ("# " + "x" * 200_000, "more than the 131,072"),
    ],
)
def test_settings_that_would_cost_much_to_parse_are_refused(tmp_path: Path, text: str, reason: str):
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(InputError, match=reason):
        load_settings(DistillSettings, section="distill", config=tmp_path / "settings.toml")


def test_at_most_twenty_wrong_settings_are_named(tmp_path: Path):
    (tmp_path / "settings.toml").write_text("".join(f"{'x' * 500}{number} = 1\n" for number in range(200)))
    with pytest.raises(InputError) as caught:
        load_settings(DistillSettings, section="distill", config=tmp_path / "settings.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) <= 21
    assert lines[-1].startswith("and 18")
    assert all(len(line) < 500 for line in lines)


# Run directories


@pytest.mark.parametrize(
    "name", [".lock", "events.jsonl", "settings.toml", "result.json", "pool", "checkpoint", "samples"]
)
def test_a_run_does_not_write_through_links(world: World, work: Path, name: str):
    is_folder = name in ("pool", "checkpoint", "samples")
    path = work / name
    if path.exists():
        path.rename(world.root / f"moved-{name}-{os.urandom(4).hex()}")
    path.symlink_to(world.outside / ("folder" if is_folder else "file"))
    for use in (
        lambda: check_output(work, overwrite=True),
        lambda: check_same_settings(work, world.settings),
        lambda: RunDirectory(work, world.settings, SilentDisplay()),
        lambda: RunDirectory(work, world.settings, SilentDisplay(), resume_from=Written()),
    ):
        with pytest.raises(InputError, match=rf"{re.escape(name)} is a symbolic link where a f"):
            use()
    assert world.state_of_outside() == world.outside_before


def test_a_shard_with_another_number_of_images_is_refused(world: World, work: Path):
    shard = work / "pool" / "shard-0001.safetensors"
    header, _ = split(shard.read_bytes())
    read = read_safetensors(shard)
    save_file({name: t[:3].clone() for name, t in read.tensors.items()}, shard, metadata=header["__metadata__"])
    with pytest.raises(InputError, match="holds 3 images, not the number that this run synthesises"):
        distill(world.settings, work, resume=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs_done", 3),
        ("epochs_done", 10**15),
        ("learning_epochs", 2),
        ("synthesis_rollbacks", 10**15),
        ("epoch", {"round": 1}),
        ("epoch", {"round": 10**15}),
    ],
)
def test_a_checkpoint_with_impossible_counters_is_refused(world: World, work: Path, field: str, value: Any):
    file = work / "checkpoint" / "latest.safetensors"
    header, tensors = split(file.read_bytes())
    facts = json.loads(header["__metadata__"]["facts"])
    facts["facts"]["distillation"][field] = value
    header["__metadata__"]["facts"] = json.dumps(facts)
    file.write_bytes(join(json.dumps(header), tensors))
    before = (work / "events.jsonl").read_bytes()
    with pytest.raises(InputError, match="the checkpoint does not belong to this run"):
        distill(world.settings, work, resume=True)
    assert (work / "events.jsonl").read_bytes() == before


@pytest.mark.parametrize("tensor", ["model.stem.weight", "skipped"])
def test_a_checkpoint_with_weights_or_counts_that_are_not_finite_is_refused(world: World, work: Path, tensor: str):
    file = work / "checkpoint" / "latest.safetensors"
    header, tensors = split(file.read_bytes())
    content = bytearray(tensors)
    name = f"distillation.trainee.{tensor}"
    start, end = header[name]["data_offsets"]
    content[start:end] = b"\0\0\xc0\x7f" * ((end - start) // 4)
    file.write_bytes(join(json.dumps(header), bytes(content)))
    with pytest.raises(InputError, match="weights are not finite"):
        distill(world.settings, work, resume=True)


def test_a_resumed_run_downloads_only_if_asked_again(work: Path, gapssg_command: Callable[..., Shown]):
    settings = work / "settings.toml"
    settings.write_text(settings.read_text() + '\n[eval_data]\nname = "cifar10"\ndownload = true\nroot = "/nowhere"\n')
    shown = gapssg_command("distill", "--resume", work, "--dry-run", "--json")
    assert json.loads(shown.stdout)["eval_data"]["download"] is False
    shown = gapssg_command("distill", "--resume", work, "--dry-run", "--json", "--download")
    assert json.loads(shown.stdout)["eval_data"]["download"] is True


# Image folders


@pytest.mark.parametrize("size", [(9000, 9000), (2**31 - 1, 1), (65_535, 65_535)])
def test_an_image_bomb_is_refused_before_it_is_decoded(image_folder: Path, size: tuple[int, int]):
    (image_folder / "train" / "dark" / "bomb.png").write_bytes(png_bomb(*size, 0, 8, 1))
    with pytest.raises(InputError, match=r"bomb\.png has more pixels than are read"):
        load_split(f"folder:{image_folder}", "train", image_size=16)


def test_a_result_beyond_its_bound_is_refused(image_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode, "_LARGEST_RESULT", 1000)
    with pytest.raises(InputError, match="48 images of 16x16 pixels need 0 GiB of memory, more than"):
        load_split(f"folder:{image_folder}", "train")


def test_links_to_links_do_not_multiply(image_folder: Path):
    for level in range(18):
        place = image_folder / "train" / "dark" / f"{level:02}"
        place.mkdir()
        for twin in range(2 if level < 17 else 0):
            (place / f"{twin}").symlink_to(image_folder / "train" / "dark" / f"{level + 1:02}")
    with pytest.raises(InputError, match="leads back to a folder that is already read"):
        load_split(f"folder:{image_folder}", "train")


def test_folders_in_folders_have_a_bound(image_folder: Path):
    deep = image_folder.joinpath("train", "dark", *("d" * 30))
    deep.mkdir(parents=True)
    with pytest.raises(InputError, match="is more than 20 folders"):
        load_split(f"folder:{image_folder}", "train")


@pytest.mark.parametrize("command", [["eval", "--data"], ["landscape", "--resume"]])
def test_a_line_break_in_a_name_makes_no_line_of_its_own(teacher_file: Path, image_folder: Path, command: list[str]):
    name = "x\nerror: all is fine.png"
    (image_folder / "test" / "dark" / name).write_text("no image")
    path = f"folder:{image_folder}" if command[0] == "eval" else image_folder / name
    said = refusal(command[0], *([teacher_file] if command[0] == "eval" else []), command[1], path)
    assert "all is fine" in said
    assert "\n" not in said


def test_a_class_whose_name_is_not_utf8_is_refused(image_folder: Path):
    (image_folder / "train" / "dark").rename(image_folder / "train" / os.fsdecode(b"\xff"))
    with pytest.raises(InputError, match="whose name is not UTF-8"):
        load_split(f"folder:{image_folder}", "train")


# The terminal


class Shown(NamedTuple):
    """The outcome of a command."""

    status: object
    stdout: str
    stderr: str


@pytest.fixture
def gapssg_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Shown]]:
    """Run the program in this process."""
    handler = signal.getsignal(signal.SIGTERM)

    def command(*arguments: object) -> Shown:
        monkeypatch.setattr(sys, "argv", ["gapssg", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        return Shown(caught.value.code, *capsys.readouterr())

    yield command
    signal.signal(signal.SIGTERM, handler)


def test_control_characters_in_names_do_not_reach_the_terminal(
    image_folder: Path, tmp_path: Path, gapssg_command: Callable[..., Shown]
):
    names = ("\x1b[2Jcat", "[red]dog")
    for split_name in ("train", "test"):
        for old, new in zip(("dark", "bright"), names, strict=True):
            (image_folder / split_name / old).rename(image_folder / split_name / new)
    card = make_card(num_classes=2, class_names=names)
    model = tmp_path / "\x1b[2J[bold]model.safetensors"
    save_model(model, create_model("wrn10_half", num_classes=2, input_shape=(1, 16, 16)).eval(), card)
    arguments = [
        "eval",
        model,
        "--data",
        f"folder:{image_folder}",
        "--teacher",
        model,
        "--device",
        "cpu",
        "--no-compile",
    ]
    shown = gapssg_command(*arguments, "--per-class")
    assert shown.status == 0, shown.stderr
    assert "\x1b" not in shown.stdout + shown.stderr
    for text in ("\ufffd[2Jcat", "[red]dog", "\ufffd[2J[bold]model.safetensors"):
        assert text in shown.stdout
    as_json = gapssg_command(*arguments, "--json")
    assert "\x1b" not in as_json.stdout + as_json.stderr
    assert json.loads(as_json.stdout)["class_names"] == list(names)
    refused = gapssg_command("eval", tmp_path / "\x1b[2J[red]\nabsent", "--data", "digits")
    assert refused.status == 2
    assert "\x1b" not in refused.stderr
