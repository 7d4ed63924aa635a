from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from gapssg.audit.attacks import margins
from gapssg.audit.predictions import features_of, predictions_of
from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from tests.audit.factories import mlp
from tests.conftest import make_card


def random_images(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 10, tuple("0123456789"))


def test_predictions_are_in_float32_whatever_the_precision_of_the_run(runtime: Runtime):
    card, images = make_card(), random_images(25)
    module = mlp(10, card.input_shape).eval()
    normalization = Normalization.from_statistics(card.mean, card.deviation, runtime.device)
    found = predictions_of(module, normalization, images, replace(runtime, precision="bf16"), 10, "a model")
    with torch.no_grad():
        logits = module((images.images / 255 - 0.3) / 0.4)
    # Batches change the order of float32 sums of 256 terms; bfloat16 would be off by 1e-2.
    torch.testing.assert_close(found.margins, margins(logits, images.labels), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.is_right, logits.argmax(dim=1) == images.labels)


def test_features_are_the_inputs_of_the_last_linear_layer(runtime: Runtime):
    card, images = make_card(), random_images(25)
    module = mlp(10, card.input_shape).eval()
    assert isinstance(module, nn.Sequential)
    features = features_of(module, card, images.images, runtime, 10)
    assert features is not None
    with torch.no_grad():
        expected = module[:-1]((images.images / 255 - 0.3) / 0.4)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert not module[-1]._forward_pre_hooks


def test_a_model_whose_logits_come_from_no_linear_layer_has_no_features(runtime: Runtime):
    module = nn.Sequential(nn.Conv2d(1, 10, 16), nn.Flatten())
    assert features_of(module, make_card(), random_images(3).images, runtime, 2) is None
