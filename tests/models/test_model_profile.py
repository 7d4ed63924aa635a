from dataclasses import astuple

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from gapssg.errors import InputError
from gapssg.models import create_model, empty_model
from gapssg.models.description import ModelProfile
from gapssg.models.profile import (
    batch_norm_layers,
    executed_batch_norm_layers,
    has_seen_images,
    last_linear_layer,
    profile_layers,
    profile_model,
)
from tests.models.factories import InPairs, OutOfOrder, small, without_linear_layer

# name: parameters, millions of multiply-adds at 3x32x32, batch-norm layers; 10 classes
PUBLISHED = {
    "wrn16_1": (175_066, 26.7, 13),
    "wrn16_2": (691_674, 101.1, 13),
    "wrn40_1": (563_930, 83.3, 37),
    "wrn40_2": (2_243_546, 327.6, 37),
    "resnet18": (11_173_962, 555.4, 20),
    "resnet34": (21_282_122, 1159.4, 36),
    "vgg11": (9_231_114, 209.4, 8),
    "mobilenetv2": (2_236_682, 6.1, 52),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def profiled(request) -> tuple[str, ModelProfile]:
    model = create_model(request.param, num_classes=10, input_shape=(3, 32, 32))
    return request.param, profile_model(model, (3, 32, 32))


def test_parameter_counts_are_those_of_the_published_table(profiled):
    name, profile = profiled
    assert profile.parameters == PUBLISHED[name][0]


def test_multiply_adds_are_those_of_the_published_table(profiled):
    name, profile = profiled
    assert round(profile.macs / 1e6, 1) == PUBLISHED[name][1]


def test_batch_norm_layer_counts_are_those_of_the_published_table(profiled):
    name, profile = profiled
    assert profile.batch_norm_layers == PUBLISHED[name][2]


@pytest.mark.parametrize(("name", "blocks_per_group"), [("wrn10_half", 1), ("wrn16_half", 2)])
def test_half_width_students_have_the_parameters_counted_by_hand_and_under_50_000(name, blocks_per_group):
    def block(before: int, after: int) -> int:
        shortcut = before * after if before != after else 0
        return 2 * before + 9 * before * after + 2 * after + 9 * after * after + shortcut

    expected = 3 * 16 * 9  # the stem keeps its 16 channels
    before = 16
    for after in (8, 16, 32):
        expected += block(before, after) + (blocks_per_group - 1) * block(after, after)
        before = after
    expected += 2 * 32 + 33 * 10
    model = create_model(name, num_classes=10, input_shape=(3, 32, 32))
    assert profile_model(model, (3, 32, 32)).parameters == expected < 50_000


def test_multiply_adds_of_a_small_network_are_those_counted_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    convolution = 3 * 4 * 4 * (2 * 3 * 3)
    assert profile_model(model, (2, 6, 6)).macs == convolution + 3 * 4 * 4 * 5


def test_profiling_leaves_the_module_as_it_was():
    model = create_model("wrn16_1", num_classes=10, input_shape=(3, 16, 16)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    profile_model(model, (3, 16, 16))
    assert all(layer.training for layer in model.modules())
    assert model.state_dict().keys() == before.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_batch_norm_layers_of_every_kind_are_found_in_order():
    layers = [
        nn.BatchNorm2d(1),
        nn.BatchNorm1d(1, affine=False),
        nn.SyncBatchNorm(1),
        FrozenBatchNorm2d(1),
        nn.BatchNorm3d(1),
    ]
    others = [nn.GroupNorm(1, 1), nn.BatchNorm2d(1, track_running_stats=False), nn.InstanceNorm2d(1)]
    others.append(nn.InstanceNorm2d(1, track_running_stats=True))  # whose statistics are of no batch
    model = nn.Sequential(layers[0], nn.Sequential(nn.ReLU(), layers[1]), *others, *layers[2:])
    assert batch_norm_layers(model) == layers


def test_the_executed_layers_are_those_of_a_forward_pass_in_its_order():
    model = OutOfOrder(num_classes=3, in_channels=1)
    executed = executed_batch_norm_layers(model, (1, 16, 16))
    assert executed == [model.first_norm, model.first_norm, model.second_norm]
    assert len(batch_norm_layers(model)) == 3
    assert model.training
    assert not model.first_norm._forward_pre_hooks


def test_the_last_linear_layer_is_the_one_that_makes_the_logits():
    model = OutOfOrder(num_classes=3, in_channels=1)
    assert last_linear_layer(model, (1, 16, 16), 3) is model.head
    assert last_linear_layer(without_linear_layer(3, 1), (1, 16, 16), 3) is None
    gated = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten())
    assert last_linear_layer(gated, (1, 16, 16), 3) is None


def test_the_layers_of_a_small_network_are_those_counted_by_hand():
    layers = profile_layers(small(num_classes=3, in_channels=2), (2, 16, 16))
    assert [astuple(layer) for layer in layers] == [
        ("0", "Conv2d", (4, 7, 7), 4 * 2 * 9 + 4, 49 * 4 * 2 * 9, False),
        ("1", "BatchNorm2d", (4, 7, 7), 8, 0, True),
        ("6", "Linear", (3,), 4 * 3 + 3, 4 * 3, False),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet34", "torchvision:convnext_tiny", "torchvision:vit_b_16", "torchvision:swin_t"]
)
def test_the_layers_add_up_to_the_model(name):
    shape = (3, 224, 224)
    model = empty_model(name, num_classes=10, input_shape=shape)
    whole, layers = profile_model(model, shape), profile_layers(model, shape)
    assert sum(layer.parameters for layer in layers) == whole.parameters
    assert sum(layer.macs for layer in layers) == whole.macs
    assert "(rest)" not in {layer.name for layer in layers}


def test_multiply_adds_with_the_weights_of_a_layer_that_is_never_called_count_for_the_caller():
    model = empty_model("torchvision:vit_b_16", num_classes=10, input_shape=(3, 224, 224))
    layers = {layer.name: layer for layer in profile_layers(model, (3, 224, 224))}
    attention = layers["encoder.layers.encoder_layer_0.self_attention"]
    projections, products = 4 * 197 * 768 * 768, 2 * 197 * 197 * 768
    assert (attention.macs, attention.parameters) == (projections + products, 3 * (768 * 768 + 768))
    projection = layers["encoder.layers.encoder_layer_0.self_attention.out_proj"]
    assert (projection.macs, projection.parameters, projection.output_shape) == (0, 768 * 768 + 768, None)


def test_layers_that_are_never_called_come_last_and_are_not_observed():
    layers = profile_layers(OutOfOrder(num_classes=3, in_channels=1), (1, 16, 16))
    assert [(layer.name, layer.observed) for layer in layers] == [
        ("convolution", False),
        ("first_norm", True),
        ("middle", False),
        ("second_norm", True),
        ("head", False),
        ("unused_norm", False),
        ("unused_head", False),
    ]


def test_operations_between_layers_are_a_row_and_tied_weights_count_once():
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.second(self.first(images))
            return features @ features.mT

    assert [(layer.name, layer.parameters, layer.macs) for layer in profile_layers(Between(), (4, 4))] == [
        ("first", 20, 64),
        ("second", 4, 64),
        ("(rest)", 0, 64),
    ]


def test_the_multiply_adds_of_a_parametrised_layer_are_its_own():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    assert {layer.name: layer.macs for layer in profile_layers(model, (4,))}["0"] == 12


@pytest.mark.parametrize("look", [profile_model, profile_layers, executed_batch_norm_layers])
def test_a_model_that_refuses_a_single_image_is_refused_in_one_sentence(look):
    with pytest.raises(
        InputError, match=r"the model does not accept a single image of 1x16x16 \(RuntimeError: "
    ) as caught:
        look(InPairs(), (1, 16, 16))
    assert "\n" not in str(caught.value)


def test_a_batch_norm_of_other_channels_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(5))
    with pytest.raises(InputError, match="does not accept a single image of 3x8x8"):
        profile_model(model, (3, 8, 8))


def test_new_statistics_have_seen_no_images():
    assert not has_seen_images(small(4, 3)) and not has_seen_images(nn.Linear(2, 2))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        module = small(4, 3)
        batch_norm_layers(module)[-1].get_buffer(name).view(-1)[-1] += 1
        assert has_seen_images(module), name
    module = small(4, 3)
    module(torch.randn(8, 3, 16, 16))
    assert has_seen_images(module)
