from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gapssg.errors import InputError
from gapssg.models import checkpoint_child, checkpoint_file
from gapssg.models.checkpoint_child import choose, state_dicts
from gapssg.models.checkpoint_file import answer_in, answer_of_child, read_checkpoint_weights
from gapssg.models.model_file import load_model

WEIGHTS = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(2)}
AVERAGE = {name: tensor / 2 for name, tensor in WEIGHTS.items()}


def written(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.fixture
def without_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the program of the child process in this one, without its bounds: to import torch takes a second."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", command[2:])
        with redirect_stdout(io.StringIO()) as said:
            checkpoint_child.main()
        return subprocess.CompletedProcess(command, 0, said.getvalue(), "")

    monkeypatch.setattr(checkpoint_child, "bound", lambda _: None)
    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize("key", ["", "state_dict", "model", "model_state_dict", "checkpoint.net"])
def test_the_state_dict_is_found_under_its_usual_names(key: str):
    content: Any = WEIGHTS
    for name in reversed(key.split(".") if key else []):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(1)}}}}
    found = dict(state_dicts(content))
    assert choose(found, "") == key
    assert found[key].keys() == WEIGHTS.keys()


@pytest.mark.usefixtures("without_child")
def test_weights_are_preferred_to_their_average_and_a_key_chooses(tmp_path: Path):
    path = written(tmp_path / "a.ckpt", {"ema": AVERAGE, "model": WEIGHTS})
    taken = read_checkpoint_weights(path)
    assert (taken.taken, taken.others) == ("model", ("ema",))
    assert torch.equal(taken.tensors["0.weight"], WEIGHTS["0.weight"])
    other = read_checkpoint_weights(path, "ema")
    assert (other.taken, other.others) == ("ema", ("model",))
    assert torch.equal(other.tensors["0.bias"], AVERAGE["0.bias"])
    with pytest.raises(InputError, match=r"it has no state dict 'best', but: ema, model"):
        read_checkpoint_weights(path, "best")


@pytest.mark.usefixtures("without_child")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_layouts_and_shared_tensors_are_kept(tmp_path: Path, dtype: torch.dtype):
    tensor = torch.rand(2, 3, 4, 4, dtype=torch.float64).to(dtype).to(memory_format=torch.channels_last)
    path = written(tmp_path / "a.bin", {"a": tensor, "b": tensor}, _use_new_zipfile_serialization=False)
    tensors = read_checkpoint_weights(path).tensors
    assert torch.equal(tensors["a"], tensor)
    assert torch.equal(tensors["b"], tensor)
    assert tensors["a"].dtype == dtype


def test_a_safetensors_file_is_read_as_it_is_and_has_no_keys(tmp_path: Path):
    save_file(WEIGHTS, tmp_path / "a.safetensors")
    assert read_checkpoint_weights(tmp_path / "a.safetensors").tensors.keys() == WEIGHTS.keys()
    with pytest.raises(InputError, match=r"--weights-key: .* is not a PyTorch checkpoint"):
        read_checkpoint_weights(tmp_path / "a.safetensors", "model")


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch evil",)


def test_no_code_in_a_checkpoint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.pt", _Evil())
    with pytest.raises(InputError, match=r"refers to code \(posix.system\), and reading it fully could run code"):
        read_checkpoint_weights(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.usefixtures("without_child")
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model": WEIGHTS, "args": argparse.Namespace(width=2)}, r"refers to code \(argparse.Namespace\)"),
        ([1, 2], "it holds no tensors with names"),
        ({"a": torch.ones(2).to_sparse()}, "the tensor 'a' is sparse or quantised"),
    ],
)
def test_content_other_than_weights_is_refused(tmp_path: Path, content: object, reason: str):
    with pytest.raises(InputError, match=reason):
        read_checkpoint_weights(written(tmp_path / "a.pt", content))


@pytest.mark.usefixtures("without_child")
def test_damaged_and_other_files_are_refused_in_one_sentence(tmp_path: Path):
    whole = written(tmp_path / "a.pt", WEIGHTS).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    old = written(tmp_path / "old.pt", WEIGHTS, _use_new_zipfile_serialization=False).read_bytes()
    (tmp_path / "old-cut.pt").write_bytes(old[: len(old) // 2])
    (tmp_path / "garbage.pt").write_bytes(old[:4] + b"aaa.")
    for name in ("cut", "old-cut", "garbage"):
        with pytest.raises(InputError) as caught:
            read_checkpoint_weights(tmp_path / f"{name}.pt")
        assert str(caught.value).startswith(
            f"{tmp_path / name}.pt is not a readable PyTorch checkpoint: it is damaged, incomplete or of another "
            "framework; download or save it again, or convert its model to ONNX ("
        )
    place = whole.index(WEIGHTS["0.weight"].numpy().tobytes())
    (tmp_path / "changed.pt").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(InputError, match="does not match its checksum"):
        read_checkpoint_weights(tmp_path / "changed.pt")
    torch.jit.trace(nn.Linear(1, 1), torch.ones(1, 1)).save(tmp_path / "script.pt")
    with pytest.raises(InputError, match="is a TorchScript file, not a checkpoint of weights"):
        read_checkpoint_weights(tmp_path / "script.pt")
    unknown = "not a readable safetensors file: it does not start like one; conv.*"
    for content, sentence in (
        (b"weights", unknown),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), unknown),  # Keras
        (b"", "other.h5 is empty; copy or save it again"),
    ):
        (tmp_path / "other.h5").write_bytes(content)
        for read in (read_checkpoint_weights, load_model):
            with pytest.raises(InputError, match=sentence):
                read(tmp_path / "other.h5")


class Outer(nn.Linear):
    """A model of one's own."""


@pytest.mark.usefixtures("without_child")
@pytest.mark.parametrize(
    "wrap",
    [lambda model: model, lambda model: {"model": model}, lambda model: {"model": model.state_dict(), "a": Path}],
)
def test_the_conversion_that_a_refusal_shows_makes_a_file_that_is_read(
    tmp_path: Path, wrap: Callable[[nn.Module], Any]
):
    model = Outer(2, 3)
    path = written(tmp_path / "a.pt", content := wrap(model))
    with pytest.raises(InputError) as caught:
        read_checkpoint_weights(path)
    _, first, second = caught.value.lines
    line, _, of_a_dict = second.partition("  # of a dict: ")
    if isinstance(content, dict):
        chosen = of_a_dict.split(" or ")[0 if content["model"] is model else 1]
        line = line.replace("loaded.state_dict()", chosen)
    exec(f"{first.strip()}\n{line.strip()}", {})
    weights = read_checkpoint_weights(tmp_path / "a-weights.pth").tensors
    assert torch.equal(weights["weight"], model.weight)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_read_in_time_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The limit is that of a processor, which a loop in TorchScript reaches."""
    path = written(tmp_path / "a.pt", WEIGHTS)
    loop = (
        f"import sys; sys.path.insert(0, {str(Path(checkpoint_child.__file__).parent)!r}); import checkpoint_child as c"
    )
    loop += f"\nc.LEAST_SECONDS = 1; c.bound(c.Path({str(path)!r}))\nwhile True: pass"
    sentence = (
        rf"^reading {path} reached the time limit of 60 s of processor time for a file of its size, "
        "perhaps in an endless loop; exp"
    )
    with pytest.raises(InputError, match=sentence):
        answer_of_child(checkpoint_child.Answer, ["-c", loop], path)
    monkeypatch.setattr(checkpoint_file, "seconds_for", lambda _: 0.01)
    with pytest.raises(InputError, match="reached the time limit"):
        answer_of_child(checkpoint_child.Answer, ["-c", "import time; time.sleep(9)"], path)


@pytest.mark.parametrize("printed", ["", "no JSON", "5", "[1, []]", '{"more": ""}', "[" * 100_000, "[null, [], " * 5])
def test_a_damaged_answer_of_the_child_process_is_one_sentence(printed: str):
    with pytest.raises(InputError, match=r"^a\.pt cannot be read: the answer of its reader is damaged; copy or save"):
        answer_in(f"first\n{printed}\n", checkpoint_child.Answer, Path("a.pt"))


def test_an_answer_may_name_a_path_that_is_not_in_unicode():
    said = checkpoint_child.Answer("a\udc80", ("b", "c"))
    assert answer_in(json.dumps(said), checkpoint_child.Answer, Path("a.pt")) == ("a?", ("b", "c"), "", "", "")


def test_a_tensor_larger_than_the_file_is_refused(tmp_path: Path):
    """A view of few bytes may stand for a huge tensor."""
    huge: Tensor = torch.zeros(1).expand(2**40)
    with pytest.raises(InputError, match=r"not a readable PyTorch checkpoint: it needs more memory than a checkpoint"):
        read_checkpoint_weights(written(tmp_path / "a.pt", {"a": huge}))


def test_a_checkpoint_is_read_by_the_child_process_alone(tmp_path: Path):
    path = tmp_path / "large.pth"
    path.write_bytes(b"PK\x03\x04")
    os.truncate(path, 64 * 2**20)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
            read_checkpoint_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
