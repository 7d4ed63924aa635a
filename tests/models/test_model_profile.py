import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from gapssg.models import create_model
from gapssg.models.profile import (
    ModelProfile,
    batch_norm_layers,
    executed_batch_norm_layers,
    last_linear_layer,
    profile_layers,
    profile_model,
)
from tests.models.factories import OutOfOrder, small, without_linear_layer

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
    assert [tuple(layer.to_dict().values()) for layer in layers] == [
        ("0", "Conv2d", (4, 7, 7), 4 * 2 * 9 + 4, 49 * 4 * 2 * 9, False),
        ("1", "BatchNorm2d", (4, 7, 7), 8, 0, True),
        ("6", "Linear", (3,), 4 * 3 + 3, 4 * 3, False),
    ]


@pytest.mark.parametrize("name", ["resnet34", "torchvision:convnext_tiny"])
def test_the_layers_add_up_to_the_model(name):
    model = create_model(name, num_classes=10, input_shape=(3, 32, 32))
    whole, layers = profile_model(model, (3, 32, 32)), profile_layers(model, (3, 32, 32))
    assert sum(layer.parameters for layer in layers) == whole.parameters
    assert sum(layer.macs for layer in layers) == whole.macs
