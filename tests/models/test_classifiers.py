import pytest
import torch
import torch.nn.functional as F

from gapssg.models import MODELS, create_model, model_names
from gapssg.models.profile import batch_norm_layers

SIZES = (8, 16, 28, 32, 64)
CHANNELS = (1, 3, 5)
ONE_OF_EACH_FAMILY = ("wrn10_half", "wrn16_1", "resnet18", "vgg11", "mobilenetv2")


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_logits_have_one_row_per_image_at_every_size_and_number_of_channels(name):
    build = MODELS[name].load_builder()
    for size in SIZES:
        for channels in CHANNELS:
            with torch.device("meta"):
                model = build(7, (channels, size, size)).eval()
            with torch.no_grad():
                logits = model(torch.empty(4, channels, size, size, device="meta"))
            assert logits.shape == (4, 7), f"{channels}x{size}x{size}"


@pytest.mark.slow
@pytest.mark.parametrize("name", model_names())
def test_gradients_of_the_images_are_finite_and_non_zero_in_training_mode(name):
    for size, channels in zip(SIZES, (1, 5, 1, 3, 3), strict=True):
        model = create_model(name, num_classes=7, input_shape=(channels, size, size)).train()
        images = torch.rand(2, channels, size, size, requires_grad=True)
        logits = model(images)
        assert logits.shape == (2, 7)
        F.cross_entropy(logits, torch.tensor([0, 5])).backward()
        assert images.grad.isfinite().all()
        for image_gradient in images.grad:
            assert image_gradient.abs().max() > 0


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_images_need_not_be_square(name):
    with torch.device("meta"):
        model = MODELS[name].load_builder()(3, (2, 64, 16))
    assert model(torch.empty(2, 2, 64, 16, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_forward_changes_neither_the_images_nor_what_hooks_see_before_a_batch_norm(name):
    model = create_model(name, num_classes=10, input_shape=(3, 16, 16))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in batch_norm_layers(model):
        layer.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[0].clone())))
    images = torch.rand(2, 3, 16, 16)
    images_before = images.clone()

    model(images)

    assert len(seen) == len(batch_norm_layers(model))
    assert torch.equal(images, images_before)
    assert all(torch.equal(now, then) for now, then in seen)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(name):
    torch.manual_seed(1)
    first = create_model(name, num_classes=10, input_shape=(3, 32, 32), seed=5)
    torch.manual_seed(2)
    second = create_model(name, num_classes=10, input_shape=(3, 32, 32), seed=5)
    assert first.state_dict().keys() == second.state_dict().keys()
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_another_seed_gives_other_weights_in_every_matrix_and_convolution(name):
    first = create_model(name, num_classes=10, input_shape=(1, 16, 16), seed=0)
    second = create_model(name, num_classes=10, input_shape=(1, 16, 16), seed=1)
    for (key, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        if one.ndim > 1:
            assert not torch.equal(one, other), key


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_creating_a_model_leaves_the_global_random_state_as_it_was(name):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    create_model(name, num_classes=10, input_shape=(1, 16, 16), seed=9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_creating_a_model_leaves_the_random_state_of_the_accelerator_as_it_was():
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    with torch.device("cuda"):
        model = create_model("wrn16_1", num_classes=10, input_shape=(3, 32, 32), seed=9)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert next(model.parameters()).device.type == "cpu"


@pytest.mark.parametrize(("size", "max_pools"), [(16, 3), (32, 3), (60, 3), (64, 4)])
def test_vgg_pools_after_the_fourth_block_only_from_64_pixels(size, max_pools):
    model = create_model("vgg11", num_classes=10, input_shape=(1, size, size))
    assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in model.modules()) == max_pools


def test_wide_resnet_traces_as_one_graph():
    model = create_model("wrn16_1", num_classes=10, input_shape=(3, 16, 16))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    images = torch.rand(2, 3, 16, 16)
    model.eval()
    assert torch.equal(compiled(images), model(images))
