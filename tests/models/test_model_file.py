from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gapssg.errors import InputError
from gapssg.models import create_model
from gapssg.models.model_file import load_model, load_weights, save_model, save_verified_model
from tests.conftest import make_card
from tests.models.headers import rewrite_header


def with_field(name: str, value: object, description: dict[str, Any]) -> str:
    return json.dumps({**description, name: value})


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_saved_model_is_loaded_unchanged(teacher_file: Path):
    loaded = load_model(teacher_file)
    assert loaded.card == make_card()
    assert not loaded.module.training
    again = teacher_file.with_name("again.safetensors")
    assert save_model(again, loaded.module, loaded.card) == loaded.sha256
    assert again.read_bytes() == teacher_file.read_bytes()


@pytest.mark.parametrize(
    "name",
    [pytest.param("torchvision:mnasnet0_5", marks=pytest.mark.slow), "tests.models.factories:versioned"],
)
def test_a_model_whose_modules_read_state_dict_versions_is_loaded(tmp_path: Path, name: str):
    module = create_model(name, num_classes=10, input_shape=(1, 16, 16)).eval()
    save_verified_model(tmp_path / "a.safetensors", module, make_card(architecture=name))
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(load_model(tmp_path / "a.safetensors", [name]).module(images), module(images))


def test_the_header_holds_one_canonical_json_object(teacher_file: Path):
    content = teacher_file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    text = json.loads(content[8 : 8 + size])["__metadata__"]["gapssg"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert json.loads(text)["architecture"] == "wrn10_half"


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    assert "does not exist" in refusal(tmp_path / "absent.safetensors")
    assert "holds neither student.safetensors nor model.safetensors" in refusal(tmp_path)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_refused(teacher_file: Path, keep):
    teacher_file.write_bytes(teacher_file.read_bytes()[:keep])
    assert "not a readable safetensors file" in refusal(teacher_file)


def test_an_empty_file_is_called_empty(teacher_file: Path):
    teacher_file.write_bytes(b"")
    assert refusal(teacher_file) == f"{teacher_file} is empty; copy or save it again"


def test_a_flipped_bit_in_the_weights_is_detected(teacher_file: Path):
    content = bytearray(teacher_file.read_bytes())
    content[-1000] ^= 1
    teacher_file.write_bytes(content)
    assert "checksum" in refusal(teacher_file)


def test_a_changed_description_is_detected(teacher_file: Path):
    change = {"mean": [0.9], "class_names": list("1023456789"), "flip": True}
    for field, value in change.items():
        original = teacher_file.read_bytes()
        rewrite_header(teacher_file, partial(with_field, field, value))
        assert "checksum" in refusal(teacher_file)
        teacher_file.write_bytes(original)


def test_a_file_without_our_description_is_refused(teacher_file: Path):
    save_file(load_file(teacher_file), teacher_file)
    assert "no gapssg description" in refusal(teacher_file)


def test_a_description_that_is_not_json_is_refused(teacher_file: Path):
    rewrite_header(teacher_file, lambda _: "{")
    assert "not valid JSON" in refusal(teacher_file)
    rewrite_header_to_list = "[" * 100_000
    save_file({"a": torch.zeros(1)}, teacher_file, metadata={"gapssg": rewrite_header_to_list})
    assert "not valid JSON" in refusal(teacher_file)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "no_such_model"),
        ("num_classes", 1),
        ("num_classes", 10**12),
        ("input_shape", [1, 16, 10**9]),
        ("deviation", [0.0]),
        ("class_names", ["a"]),
        ("format_version", 2),
        ("surprise", 1),
        ("flip", "\ud800"),
        ("resize", 15),
        ("resize", "zoom"),
        ("resize", True),
        ("interpolation", "cubic"),
    ],
)
def test_a_description_out_of_bounds_is_refused(teacher_file: Path, field, value):
    rewrite_header(teacher_file, lambda description: json.dumps({**description, field: value}))
    refusal(teacher_file)


def test_weights_that_do_not_fit_are_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    save_model(path, create_model("wrn16_2", num_classes=10, input_shape=(1, 16, 16)), make_card())
    text = refusal(path)
    assert "do not fit the model" in text
    assert " instead of " in text


def wrong(expected: list[str], given: list[str]) -> str:
    """Load tensors of some names into a module of others; return the refusal."""
    module: Any = nn.ParameterDict()
    for name in expected:
        module[name.replace(".", "_")] = nn.Parameter(torch.zeros(1))
    module.state_dict = lambda **_: {name: torch.zeros(1) for name in expected}
    with pytest.raises(InputError) as caught:
        load_weights(module, {name: torch.zeros(1) for name in given}, "a.safetensors")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("a.safetensors: the weights do not fit the model: ")


def test_the_first_missing_and_the_first_unknown_weight_are_named_in_their_order():
    assert wrong(["z.weight", "b.weight", "a.weight"], ["y.weight", "b.weight", "c.weight"]) == (
        "z.weight is missing; y.weight is unknown; a.weight is missing and 1 more"
    )


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    model = create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16))
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    path = tmp_path / "model.safetensors"
    save_model(path, model, make_card())
    assert "not finite" in refusal(path)
