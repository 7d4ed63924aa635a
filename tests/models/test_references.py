from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from gapssg.errors import InputError
from gapssg.models import check_model_name, create_model, empty_model
from gapssg.models.foreign import foreign_code
from gapssg.models.head import ClassifierHead
from gapssg.models.profile import last_linear_layer, profile_model

HERE = "tests.models.factories"
GREY = (1, 16, 16)


def refusal(name: str, num_classes: int = 10, input_shape: tuple[int, int, int] = GREY, **arguments: object) -> str:
    with pytest.raises(InputError) as caught:
        create_model(name, num_classes=num_classes, input_shape=input_shape, arguments=arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["torchvision:resnet18", "timm:resnet26d", "module:factory", "a.b.c:Class", "a:Class.method"]
)
def test_references_are_names_and_nothing_is_imported_to_check_them(name):
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["torchvision:", "timm:hf-hub:x", "timm:local-dir:x", "a:b:c", "a b:c", "a.:b", ":x", f"a:{'b' * 199}"]
)
def test_an_invalid_reference_is_refused_with_the_valid_forms(name):
    with pytest.raises(InputError, match=r"write torchvision:NAME, timm:NAME or package.module:factory"):
        check_model_name(name)


def test_a_timm_model_that_is_fixed_to_other_images_names_the_argument_that_changes_them():
    pytest.importorskip("timm")
    name, shape = "timm:vit_tiny_patch16_224", (3, 32, 32)
    said = refusal(name, input_shape=shape)
    assert "images of 224x224: add --set model.arguments.img_size=32, of a student --set student.arguments" in said
    empty_model(name, num_classes=10, input_shape=shape, arguments={"img_size": 32})
    assert "img_size" not in refusal(name, input_shape=(3, 32, 48))


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_a_torchvision_model_takes_any_number_of_channels_and_classes(channels):
    shape = (channels, 32, 32)
    model = create_model("torchvision:squeezenet1_1", num_classes=7, input_shape=shape).eval()
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_a_torchvision_model_with_three_channels_is_that_of_the_library():
    ours = create_model("torchvision:resnet18", num_classes=7, input_shape=(3, 32, 32), seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = torchvision.models.resnet18(weights=None, num_classes=7)
    for (name, tensor), (other, expected) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(tensor, expected)


def test_the_logits_of_a_torchvision_model_are_float32_under_autocast():
    model = create_model("torchvision:mobilenet_v3_small", num_classes=7, input_shape=(3, 32, 32)).eval()
    assert isinstance(last_linear_layer(model, (3, 32, 32), 7), ClassifierHead)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(torch.rand(2, 3, 32, 32)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["googlenet", "regnet_y_400mf", "densenet121", "vgg11_bn", "efficientnet_b0", "shufflenet_v2_x0_5", "swin_t"],
)
def test_torchvision_models_of_every_family_can_be_built_without_memory(name):
    """What their builders do beyond making layers, on a device without numbers; `create_model` checks its output."""
    model = empty_model(f"torchvision:{name}", num_classes=5, input_shape=(1, 64, 64))
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alexnet", "vgg11_bn", "googlenet", "mobilenet_v3_small", "mnasnet0_5", "convnext_tiny", "swin_t"]
)
def test_the_weights_of_a_torchvision_student_are_those_of_the_library_but_for_its_first_channels(name):
    ours = empty_model(f"torchvision:{name}", num_classes=5, input_shape=(2, 64, 64)).state_dict()
    auxiliary = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, num_classes=5, **auxiliary)
    first = next(layer for layer in theirs.modules() if isinstance(layer, torch.nn.Conv2d))
    first.weight = torch.nn.Parameter(first.weight[:, :1].expand(-1, 2, -1, -1))
    expected = theirs.state_dict()
    assert list(ours) == list(expected)
    assert all(tensor.shape == expected[key].shape for key, tensor in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", f"{HERE}:small"])
def test_initial_weights_depend_only_on_the_seed_and_the_global_state_is_restored(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    task: dict[str, Any] = {"num_classes": 4, "input_shape": (1, 32, 32)}
    first, again, other = (create_model(name, **task, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items())


def test_arguments_reach_torchvision_and_wrong_ones_are_refused():
    task: dict[str, Any] = {"num_classes": 4, "input_shape": (3, 32, 32)}
    small = empty_model("torchvision:mobilenet_v2", **task, arguments={"width_mult": 0.25})
    assert profile_model(small, (3, 32, 32)).parameters < 300_000
    sentence = refusal("torchvision:mobilenet_v2", 4, (3, 32, 32), depth=3)
    assert sentence.startswith("torchvision:mobilenet_v2 cannot be built with depth=3 (TypeError: ")
    for name in ("weights", "pretrained", "pretrained_backbone", "checkpoint_path", "in_chans"):
        assert f"does not accept the argument {name}" in refusal(
            "torchvision:mobilenet_v2", 4, (3, 32, 32), **{name: 1}
        )
    assert "without auxiliary heads" in refusal("torchvision:googlenet", aux_logits=True)


def test_only_classifiers_of_the_registry_are_torchvision_models():
    assert "has no classifier 'resnet19' (did you mean resnet18" in refusal("torchvision:resnet19")
    assert "has no classifier 'fcn_resnet50'" in refusal("torchvision:fcn_resnet50")


def test_images_that_a_library_model_refuses_give_one_sentence():
    assert "torchvision:vit_b_16 does not accept images of 3x64x64" in refusal("torchvision:vit_b_16", 4, (3, 64, 64))
    assert "torchvision:alexnet does not accept images of 3x16x16" in refusal("torchvision:alexnet", 4, (3, 16, 16))


def test_a_timm_model_takes_channels_classes_and_arguments():
    pytest.importorskip("timm")
    task: dict[str, Any] = {"num_classes": 4, "input_shape": (5, 32, 32)}
    model = create_model("timm:resnet10t", **task, arguments={"drop_rate": 0.5}).eval()
    assert model(torch.rand(2, 5, 32, 32)).shape == (2, 4)
    assert isinstance(last_linear_layer(model, (5, 32, 32), 4), ClassifierHead)
    assert "timm has no classifier 'resnet10x' (did you mean" in refusal("timm:resnet10x")
    for name in ("pretrained_cfg", "checkpoint_path", "cache_dir", "features_only"):
        argument: dict[str, Any] = {name: "x"}
        assert f"does not accept the argument {name}" in refusal("timm:resnet10t", **argument)


def test_a_missing_timm_gives_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert refusal("timm:resnet10t").endswith("which is not installed: pip install 'gapssg[timm]'")


def test_a_factory_gets_what_its_signature_names():
    model = create_model(f"{HERE}:small", num_classes=4, input_shape=(2, 16, 24), arguments={"width": 6})
    assert model[0].weight.shape == (6, 2, 3, 3)
    assert model[-1].weight.shape == (4, 6)
    assert model.training
    create_model(f"{HERE}:ten_classes", num_classes=10, input_shape=GREY)
    create_model(f"{HERE}:OutOfOrder", num_classes=3, input_shape=GREY)


def test_the_current_folder_is_searched_last_for_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "beside_the_user.py").write_text(f"from {HERE} import small\n")
    (tmp_path / "colorsys.py").write_text("raise AssertionError('imported instead of the standard library')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    path = list(sys.path)
    create_model("beside_the_user:small", num_classes=4, input_shape=GREY)
    assert "colorsys:rgb_to_hls cannot be called with no arguments" in refusal("colorsys:rgb_to_hls")
    assert sys.path == path


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no_such_package.models:net", "no module no_such_package for no_such_package.models:net in "),
        ("tests.no_such_module:net", "no module tests.no_such_module for "),
        (f"{HERE}:no_such_factory", f"{HERE} has no no_such_factory"),
        (f"{HERE}:ten_clases", f"{HERE} has no ten_clases (did you mean ten_classes"),
        (f"{HERE}:NUMBER", "is a int, which cannot be called"),
        (f"{HERE}:raising", f"{HERE}:raising cannot be called with num_classes=10 (RuntimeError: no such width)"),
        (f"{HERE}:returning_a_dictionary", "returned a dict instead of a torch.nn.Module"),
        (f"{HERE}:without_weights", "has no parameters to train"),
        (f"{HERE}:features_only", "to a float32 tensor of shape (2, 8, 14, 14) instead of floating logits of"),
        (f"{HERE}:leaving", f"{HERE}:leaving cannot be called with no arguments (SystemExit: 3)"),
        (f"{HERE}:not_finite", "to logits that are not finite"),
        (f"{HERE}:frozen", "has no trainable parameters; call requires_grad_(True) on those to train"),
        (f"{HERE}:WithoutGradients", "its logits do not depend on a trainable parameter"),
        (f"{HERE}:AlwaysDropping", "not deterministic in evaluation mode: the same images get different logits"),
        (f"{HERE}:AlwaysTraining", "has no evaluation mode: it stays in training mode; fix its train()"),
        (f"{HERE}:ByItsBatch", "an image different logits in different batches, also in evaluation mode"),
        (f"{HERE}:Squeezing", "maps 1 image of 1x16x16 to a float32 tensor of shape (10,) instead of floating logits"),
        (f"{HERE}:InPairs", f"{HERE}:InPairs does not accept a single image of 1x16x16 (RuntimeError: "),
        (f"{HERE}:WithExtraState", "has a dict under _extra_state in its state dict; a model file holds only tensors"),
        (f"{HERE}:lazy", f"{HERE}:lazy has the lazy parameter 2.weight; let the factory run it once"),
        (f"{HERE}:not_to_be_asked_for", f"looking up not_to_be_asked_for in {HERE} failed (RuntimeError: ask me not)"),
        (f"{HERE}:UNSIGNABLE", f"the signature of {HERE}:UNSIGNABLE cannot be read (RuntimeError: no signature)"),
    ],
)  # fmt: skip
def test_a_factory_that_returns_no_classifier_is_refused(name, sentence):
    assert sentence in refusal(name)


def test_a_factory_refuses_images_classes_and_arguments_in_one_sentence(tmp_path, monkeypatch):
    sentence = refusal(f"{HERE}:ten_classes", 10, (1, 20, 20))
    assert "does not accept images of 1x20x20; if it was made for images of another shape, give that (" in sentence
    sentence = refusal(f"{HERE}:ten_classes", 4)
    assert "of shape (2, 10) instead of floating logits of shape (2, 4)" in sentence
    assert sentence.endswith("one logit for each of 4 classes; if it was trained on 10 classes, name all of them")
    assert "cannot be called with num_classes=10, in_channels=1, depth=3 (TypeErr" in refusal(f"{HERE}:small", depth=3)
    assert "gets in_channels from the data" in refusal(f"{HERE}:small", in_channels=3)
    (tmp_path / "broken.py").write_text("import no_such_dependency\n")
    (tmp_path / "unreadable.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    assert "importing broken for broken:net failed (ModuleNotFoundError: No module named 'no_such" in refusal(
        "broken:net"
    )
    assert "importing unreadable for unreadable:net failed (SyntaxError" in refusal("unreadable:net")


def test_a_part_that_does_not_switch_to_evaluation_is_named():
    assert "has no evaluation mode: its part 0 stays in training mode" in refusal(f"{HERE}:partly_always_training")


@pytest.mark.parametrize("pixels", [14, 1])
def test_a_batch_norm_without_running_statistics_is_the_reason(pixels):
    sentence = refusal(f"{HERE}:without_statistics", pixels=pixels)
    assert "has a batch norm, 2, without running statistics (track_running_stats=False)" in sentence


def test_reasons_contain_no_terminal_colours():
    with pytest.raises(InputError, match=r"^it failed \(RuntimeError: red\)$"), foreign_code("it failed"):
        raise RuntimeError("\x1b[31mred\x1b[0m\nNext steps: none")


def test_the_reason_of_a_scripted_model_is_the_line_after_the_traceback():
    module = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"^it failed \(RuntimeError: mat1 and mat2 "), foreign_code("it failed"):
        module(torch.zeros(1, 3))


def test_a_model_that_changes_its_buffers_in_evaluation_mode_is_refused():
    assert "changes its buffer mean in evaluation mode" in refusal(f"{HERE}:ByItsBatch", keeps=True)


@pytest.mark.parametrize("kind", ["complex64", "float8_e5m2"])
def test_a_buffer_that_no_model_file_can_hold_is_refused(kind):
    assert f"has other of dtype {kind}, which a model file cannot hold" in refusal(f"{HERE}:WithAnother", kind=kind)


def test_initial_weights_may_be_nan_if_other_weights_follow():
    assert "logits that are not finite" in refusal(f"{HERE}:not_initialised")
    create_model(f"{HERE}:not_initialised", num_classes=10, input_shape=GREY, weights_follow=True)


def test_a_built_in_model_takes_no_arguments():
    assert refusal("wrn16_1", width=3) == "wrn16_1 takes no arguments, but was given width"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"width": [4]}, "the argument width is [4]; it must be a number, a string, true or false"),
        ({"width": 10**7}, "the argument width is 10000000; a number must be from -1,000,000 to 1,000,000"),
        ({"width": float("nan")}, "the argument width is nan; a number must be"),
        ({"width": 10**400}, "; a number must be from -1,000,000 to 1,000,000"),
        ({"width": -float("inf")}, "the argument width is -inf; a number must be"),
        ({"act": "x" * 201}, "a string may have at most 200 characters"),
        ({"a-b": 1}, "'a-b' is not a valid argument name"),
        ({f"a{number}": 1 for number in range(51)}, "at most 50 arguments, not 51"),
    ],
)
def test_arguments_are_bounded_scalars(arguments, sentence):
    assert sentence in refusal(f"{HERE}:small", **arguments)
