"""Model files of models that are not built in: what may be imported, and what may be allocated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gapssg.errors import InputError
from gapssg.landscape.planes import check_same_architecture
from gapssg.models import create_model
from gapssg.models.description import ModelCard
from gapssg.models.model_file import load_model, load_weights, save_model
from gapssg.models.profile import profile_model
from gapssg.models.safetensors_file import read_safetensors
from tests.conftest import make_card
from tests.models.factories import WithAnother, WithExtraState, ten_classes
from tests.models.headers import rewrite_header

FACTORY = "tests.models.factories:small"


def write(path: Path, architecture: str, **arguments: object) -> ModelCard:
    card = make_card(architecture=architecture, arguments=arguments)
    module = create_model(architecture, num_classes=10, input_shape=card.input_shape, seed=1, arguments=card.arguments)
    save_model(path, module, card)
    return card


def test_a_file_from_before_arguments_existed_is_read(teacher_file: Path):
    """Its checksum covers the description in the file, so that no key may be added."""
    description = json.loads(read_safetensors(teacher_file).metadata["gapssg"])
    assert description.keys() == {
        *("format_version", "architecture", "num_classes", "input_shape", "mean", "deviation", "crop_padding", "flip"),
        *("class_names", "provenance", "content_sha256"),
    }
    card = load_model(teacher_file).card
    assert (card.arguments, card.resize, card.interpolation) == ({}, "crop", "bilinear")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("torchvision:mobilenet_v2", {"width_mult": 0.25}), (FACTORY, {"width": 6})],
)
def test_a_model_that_is_not_built_in_is_loaded_with_its_arguments(tmp_path: Path, architecture, arguments):
    card = write(tmp_path / "a.safetensors", architecture, **arguments)
    loaded = load_model(tmp_path / "a.safetensors", factories=[FACTORY])
    assert loaded.card == card
    assert loaded.card.arguments == arguments
    expected = read_safetensors(tmp_path / "a.safetensors").tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.module.state_dict().items())


@pytest.mark.parametrize("factories", [(), ("tests.models.factories:ten_classes",), ("evil:run",)])
def test_a_factory_that_the_user_did_not_name_is_not_imported(tmp_path: Path, monkeypatch, factories):
    traces = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(traces)!r}, 'w').close()\ndef make(): raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_model(tmp_path / "a.safetensors", nn.Linear(1, 1), make_card(architecture="evil:make"))
    with pytest.raises(InputError, match=r"names the factory evil:make, whose code would run; .* --model-factory evil"):
        load_model(tmp_path / "a.safetensors", factories)
    assert not traces.exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:resnet18", {"pretrained": True}),
        ("timm:resnet10t", {"checkpoint_path": "a.pth"}),
        ("timm:resnet10t", {"pretrained_cfg": "hf-hub:a/b"}),
        ("torchvision:no_such_model", {}),
        ("timm:hf-hub:a/b", {}),
        ("timm:local-dir:a", {}),
        ("torchvision:resnet18", {"width_per_group": [1]}),
        ("torchvision:resnet18", {"width_per_group": 10**9}),
        ("torchvision:resnet18", {"width_per_group": 10**400}),
        ("wrn10_half", {"width": 2}),
    ],
)
def test_loading_a_file_neither_fetches_nor_reads_anything_else(tmp_path: Path, monkeypatch, architecture, arguments):
    def fetch(*_: object, **__: object) -> None:
        raise AssertionError("something was fetched or read")

    monkeypatch.setattr("urllib.request.urlopen", fetch)
    monkeypatch.setattr("torch.load", fetch)
    path = tmp_path / "a.safetensors"
    save_model(path, nn.Linear(1, 1), make_card())
    rewrite_header(path, lambda card: json.dumps({**card, "architecture": architecture, "arguments": arguments}))
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.slow
def test_a_small_file_builds_no_wide_or_deep_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("timm")
    monkeypatch.setattr("gapssg.models.model_file.create_model", None)
    path = tmp_path / "a.safetensors"
    wide = make_card(
        architecture="torchvision:resnet50", arguments={"width_per_group": 500_000}, input_shape=(1, 32, 32)
    )
    save_model(path, nn.Linear(1, 1), wide)
    with pytest.raises(InputError, match="the weights do not fit the model"):
        load_model(path)
    deep = make_card(
        architecture="timm:vit_tiny_patch16_224", arguments={"depth": 999_999, "img_size": 32}, input_shape=(1, 32, 32)
    )
    save_model(path, nn.Linear(1, 1), deep)
    with pytest.raises(InputError, match="many more layers than the file has tensors"):
        load_model(path)


def test_a_small_file_allocates_no_large_buffers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def with_a_large_mask(*_: object, **__: object) -> nn.Module:
        with torch.device("meta"):
            module = nn.Linear(1, 1)
            module.register_buffer("mask", torch.empty(5000, 5000), persistent=False)
        return module

    monkeypatch.setattr("gapssg.models.model_file.empty_model", with_a_large_mask)
    monkeypatch.setattr("gapssg.models.model_file.create_model", None)
    save_model(tmp_path / "a.safetensors", nn.Linear(1, 1), make_card())
    with pytest.raises(InputError, match="allocates 25,000,000 numbers that are not in the file"):
        load_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("kind", ["bool", "float64", "bfloat16"])
def test_buffers_of_other_dtypes_are_loaded(tmp_path: Path, kind):
    name = "tests.models.factories:WithAnother"
    write(tmp_path / "a.safetensors", name, kind=kind)
    module: Any = load_model(tmp_path / "a.safetensors", [name]).module
    assert torch.equal(module.other, torch.ones(3).to(getattr(torch, kind)))


def test_booleans_other_than_0_and_1_are_refused(tmp_path: Path):
    save_model(tmp_path / "a.safetensors", WithAnother("bool"), make_card())
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-1] + b"\x02")
    with pytest.raises(InputError, match="the tensor other has booleans that are neither 0 nor 1"):
        read_safetensors(tmp_path / "a.safetensors")


def test_state_that_is_not_a_tensor_is_refused_on_save_and_on_load(tmp_path: Path):
    with pytest.raises(InputError, match="wrn10_half has a dict under _extra_state in its state dict"):
        save_model(tmp_path / "a.safetensors", WithExtraState(), make_card())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="the model has a dict under _extra_state in its state dict"):
        load_weights(WithExtraState(), {}, "a")


def test_a_factory_with_nan_initial_weights_is_checked_with_the_weights_of_the_file(tmp_path: Path):
    name = "tests.models.factories:not_initialised"
    card, path = make_card(architecture=name), tmp_path / "a.safetensors"
    save_model(path, ten_classes(), card)
    assert load_model(path, [name]).module[1].weight.isfinite().all()
    module = ten_classes()
    torch.nn.init.constant_(module[1].weight, 3e38)
    save_model(path, module, card)
    with pytest.raises(InputError, match=f"{path}: {name} maps images of 1x16x16 to logits that are not finite"):
        load_model(path, [name])


@pytest.mark.parametrize("name", ["torchvision:resnet18", "wrn10_half", "my.models:net"])
def test_an_architecture_instead_of_a_file_gives_the_import_command(tmp_path: Path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        load_model(name)
    assert f"{name} is the name of an architecture, not an existing model file" in str(caught.value)
    assert f"gapssg import-teacher --model {name} --weights FILE --input-shape C,H,W" in str(caught.value)
    assert "\n" not in str(caught.value)
    save_model(tmp_path / name, create_model("wrn10_half", num_classes=10, input_shape=(1, 16, 16)), make_card())
    assert load_model(name).card == make_card()


def test_tied_weights_are_saved_and_loaded(tmp_path: Path):
    write(tmp_path / "a.safetensors", "tests.models.factories:Tied")
    module: Any = load_model(tmp_path / "a.safetensors", ["tests.models.factories:Tied"]).module
    assert torch.equal(module.first.weight, module.second.weight)


def test_a_model_whose_forward_pass_depends_on_values_is_profiled(tmp_path: Path):
    module = create_model("tests.models.factories:Looking", num_classes=10, input_shape=(1, 16, 16))
    assert profile_model(module, (1, 16, 16)).macs == 2560


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_in_place_of_a_model_file_is_refused_with_the_command_that_reads_it(tmp_path: Path, legacy):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"is a PyTorch checkpoint, .*: gapssg import-teacher --weights .*a\.pt"):
        load_model(path)


def test_models_that_differ_only_in_their_arguments_differ_in_architecture(tmp_path: Path):
    paths = [tmp_path / f"{width}.safetensors" for width in (3, 4)]
    for path, width in zip(paths, (3, 4), strict=True):
        write(path, FACTORY, width=width)
    first, second = (load_model(path, [FACTORY]) for path in paths)
    check_same_architecture(first, first)
    with pytest.raises(InputError, match=r"small with width=3\) and .* with width=4\) differ in architecture"):
        check_same_architecture(first, second)
