import copy
import math

import pytest
import torch
from torch import nn

from gapssg.errors import InputError
from gapssg.models.generator import Generator, doubled, reset_layers, reset_layers_to_torch_default


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_drawn_from(values: torch.Tensor, mean: float, deviation: float) -> None:
    # Within five standard errors of the estimates of mean and standard deviation.
    count = values.numel()
    assert abs(values.mean().item() - mean) < 5 * deviation / math.sqrt(count)
    assert abs(values.std().item() - deviation) < 5 * deviation / math.sqrt(2 * (count - 1))


def test_parameter_count_is_that_of_the_published_generator():
    generator = Generator((3, 32, 32), latent_size=256, width=64)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 2_328_899


@pytest.mark.parametrize(
    ("side", "first"),
    [
        *((16, 4), (28, 7), (32, 8), (48, 12), (52, 13), (56, 7), (60, 8), (64, 8), (68, 9), (96, 12), (100, 13)),
        *((108, 14), (120, 8), (128, 8), (192, 12), (212, 14), (223, 7), (224, 7)),
    ],
)
def test_first_maps_of_large_images_have_at_least_seven_pixels(side, first):
    generator = Generator((3, side, side), latent_size=2, width=4)
    assert generator.linear.out_features == 2 * 4 * first**2


def test_no_size_makes_the_first_layer_large():
    for side in range(53, 1025, 3):
        generator = Generator((3, side, side), latent_size=2, width=1)
        first = math.isqrt(generator.linear.out_features // 2)
        upsamplings = sum(isinstance(layer, nn.Upsample) for layer in generator.upsampling)
        assert 7 <= first <= 14
        assert 0 <= first * 2**upsamplings - side < 2**upsamplings


def test_the_shorter_side_sets_the_upsamplings():
    generator = Generator((3, 224, 100), latent_size=2, width=4)
    assert generator.linear.out_features == 2 * 4 * 28 * 13


@pytest.mark.parametrize(
    ("image_shape", "scale"),
    [
        *(((1, 4, 4), 1), ((3, 32, 32), 1), ((5, 64, 64), 1), ((2, 28, 12), 1), ((1, 224, 96), 1), ((3, 17, 30), 1)),
        *(((1, 100, 68), 1), ((1, 8, 8), 1), ((3, 9, 13), 1), ((64, 33, 65), 1), ((2, 33, 65), 2), ((1, 48, 40), 3)),
    ],
)
def test_images_have_the_asked_shape_and_lie_in_the_unit_interval(image_shape, scale):
    generator = Generator(image_shape, latent_size=8, width=4, scale=scale)
    with torch.no_grad():
        # Large weights of the last convolution drive the images to both ends of the interval.
        generator.upsampling[-1].weight.mul_(1e4)
        images = generator(torch.randn(6, 8, generator=seeded(0)))
    assert images.shape == (6, *image_shape)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.max() - images.min() > 0.9


def test_the_latent_and_every_parameter_get_a_finite_non_zero_gradient():
    generator = Generator((3, 16, 16), latent_size=8, width=4)
    latent = torch.randn(6, 8, generator=seeded(0)).requires_grad_()
    images = generator(latent)
    weights = torch.randn(images.shape, generator=seeded(1))
    (images * weights).sum().backward()
    gradients = {"latent": latent.grad} | {key: value.grad for key, value in generator.named_parameters()}
    for key, gradient in gradients.items():
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key


@pytest.mark.parametrize("image_shape", [(3, 0, 32), (3, 3, 4)])
def test_sizes_of_less_than_four_pixels_are_refused(image_shape):
    _, height, width = image_shape
    with pytest.raises(InputError, match=f"{height}x{width} pixels; at least 4x4 are needed"):
        Generator(image_shape)


def test_a_scale_upsamples_the_images_of_a_smaller_generator_bilinearly():
    small, scaled = Generator((3, 17, 33), 8, 4), Generator((3, 33, 65), 8, 4, scale=2)
    scaled.load_state_dict(small.state_dict())
    latent = torch.randn(6, 8, generator=seeded(0))
    expected = torch.nn.functional.interpolate(small(latent).double(), (33, 65), mode="bilinear")
    # The weighted sum of four numbers in [0, 1] has three roundings of float32 at most.
    assert (scaled(latent) - expected).abs().max() <= 3 * torch.finfo(torch.float32).eps


def test_without_a_scale_images_are_cropped_and_not_interpolated():
    generator = Generator((3, 20, 32), 8, 4)
    latent = torch.randn(6, 8, generator=seeded(0))
    generator.eval()
    first_maps = generator.first_norm(generator.linear(latent).view(6, 8, 5, 8))
    assert torch.equal(generator(latent), torch.sigmoid(generator.upsampling(first_maps)))


def test_a_scale_that_leaves_less_than_four_pixels_is_refused():
    with pytest.raises(InputError, match=r"images of 3x4 pixels; at least 4x4 are needed, at 1/4 .*synthesis_scale"):
        Generator((3, 12, 16), scale=4)


def test_images_without_a_channel_are_refused():
    with pytest.raises(InputError, match="at least 1 channel, not 0"):
        Generator((0, 32, 32))


def test_a_new_generator_is_always_the_same_and_leaves_the_global_random_state_as_it_was():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = Generator((3, 16, 16)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    second = Generator((3, 16, 16)).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_reset_draws_weights_from_the_published_distributions():
    generator = Generator((3, 32, 32))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.fill_(7.0)
    generator.reset_parameters(seeded(11))
    for layer in generator.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert_drawn_from(layer.weight, mean=1.0, deviation=0.02)
            assert not layer.bias.any()
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            assert_drawn_from(layer.weight, mean=0.0, deviation=0.02)
            assert layer.bias is None or not layer.bias.any()


def test_reset_clears_the_running_statistics():
    generator = Generator((3, 16, 16), latent_size=8, width=4).train()
    generator(torch.randn(6, 8, generator=seeded(0)))
    norms = [layer for layer in generator.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert all(norm.running_mean.any() for norm in norms)
    generator.reset_parameters(seeded(0))
    for norm in norms:
        assert not norm.running_mean.any()
        assert norm.running_var is not None
        assert torch.equal(norm.running_var, torch.ones_like(norm.running_var))
        assert norm.num_batches_tracked == 0


def test_reset_with_the_same_seed_is_identical_and_with_another_is_not():
    generator = Generator((3, 16, 16), latent_size=8, width=4)
    weights = {}
    for run, seed in {"first": 1, "other": 2, "again": 1}.items():
        generator.reset_parameters(seeded(seed))
        weights[run] = torch.cat([parameter.detach().flatten() for parameter in generator.parameters()])
    assert torch.equal(weights["first"], weights["again"])
    assert not torch.equal(weights["first"], weights["other"])


def test_reset_happens_in_place():
    generator = Generator((3, 16, 16), latent_size=8, width=4)
    before = {key: value.data_ptr() for key, value in generator.state_dict().items()}
    parameters = list(generator.parameters())
    generator.reset_parameters(seeded(1))
    assert {key: value.data_ptr() for key, value in generator.state_dict().items()} == before
    assert all(now is then and now.requires_grad for now, then in zip(generator.parameters(), parameters, strict=True))


def test_reset_of_single_layers_leaves_the_others_as_they_were():
    generator = Generator((3, 16, 16), latent_size=8, width=4)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    reset_layers(generator.linear, seeded(1))
    reset_layers(generator.first_norm, seeded(1))
    changed = {key for key, value in generator.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"linear.weight", "first_norm.weight"}


def test_reset_to_torchs_default_draws_what_the_constructors_draw():
    generator = Generator((3, 16, 16), latent_size=8, width=4)
    reset_layers_to_torch_default(generator, seeded(1))
    torch.manual_seed(1)
    layers = [layer for layer in generator.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.BatchNorm2d)]
    for layer in layers:
        ours = copy.deepcopy(layer.state_dict())
        layer.reset_parameters()
        # The bound of the draws is rounded differently.
        torch.testing.assert_close(ours, layer.state_dict(), rtol=1e-6, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_reset_takes_a_generator_on_the_device_of_the_parameters():
    generator = Generator((3, 16, 16), latent_size=8, width=4).to("cuda")
    generator.reset_parameters(torch.Generator(device="cuda").manual_seed(1))
    assert_drawn_from(generator.linear.weight.cpu(), mean=0.0, deviation=0.02)


def test_pixels_are_doubled_as_by_nearest_upsampling():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=seeded(0), requires_grad=True)
    weights = torch.randn(2, 3, 8, 10, dtype=torch.float64, generator=seeded(1))
    outputs = [doubled(maps), nn.Upsample(scale_factor=2, mode="nearest")(maps)]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad((output * weights).sum(), maps)[0] for output in outputs]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)  # sums of four numbers
