"""Views whose teacher logits are computed once: they are the teacher's, and depend on nothing but the pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gapssg.core.augment import Shifts
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.errors import InputError
from gapssg.synthesis.base import RunSize
from gapssg.synthesis.labelled_views import LabelledViews
from gapssg.synthesis.noise import NoiseSettings
from gapssg.synthesis.pool import SamplePool
from gapssg.synthesis.pool_synthesizer import PoolSynthesizer
from tests.synthesis.context import make_context, make_student


def grown(runtime: Runtime, batches: int, label_each: bool, **settings: Any) -> PoolSynthesizer:
    """Return a synthesizer after some batches of 8 images, labelled one by one or all at the end."""
    method = NoiseSettings(synthesis_batch_size=8, **{"labelled_views": 3, "mixup": 0.5, **settings})
    synthesizer = method.build(make_context(runtime))
    assert isinstance(synthesizer, PoolSynthesizer) and synthesizer.labelled is not None
    for epoch in range(batches):
        list(synthesizer.synthesis_steps(make_student(runtime), epoch, 0))
        if label_each:
            list(synthesizer.labelled.extend())
    list(synthesizer.labelled.extend())
    return synthesizer


def drawn(synthesizer: PoolSynthesizer, batches: int) -> list[tuple[Tensor, Tensor]]:
    assert synthesizer.labelled is not None
    stream = torch.Generator().manual_seed(5)
    synthesizer.start_sampling(2, 0, 0)
    return [synthesizer.labelled.batch(synthesizer.labelled.draw(8, stream)) for _ in range(batches)]


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_logits_are_those_of_the_teacher_for_the_views(runtime, mixup):
    synthesizer = grown(runtime, 3, label_each=True, mixup=mixup)
    context, pool = synthesizer.context, to_unit_range(synthesizer.pool.images)
    mixed = 0
    for views, logits in drawn(synthesizer, 6):
        # Rounding in float32: a batch of another size may sum in another order.
        torch.testing.assert_close(logits, context.teacher(context.normalization(views)), rtol=0, atol=1e-5)
        values = {tuple(image.flatten().unique().tolist()) for image in pool}
        mixed += sum(not any(set(view.unique().tolist()) <= {0.0, *each} for each in values) for view in views)
    # 48 views, half of which are mixed on average; three deviations are 10.
    assert mixed == 0 if mixup == 0 else 14 <= mixed <= 34


def test_a_mixed_view_has_the_same_view_of_an_image_of_its_own_or_an_earlier_synthesis(runtime):
    synthesizer = grown(runtime, 3, label_each=True, mixup=1.0)
    labelled, pool = synthesizer.labelled, to_unit_range(synthesizer.pool.images)
    assert labelled is not None
    views = labelled._views
    for start in (0, 8, 16):
        partners = views.partners[start : start + 8]
        assert 0 <= partners.min() < (start or 8)
        assert start <= partners.max() < start + 8
    numbers = torch.arange(24) % 3
    synthesizer.start_sampling(2, 0, 0)
    indices = torch.cat([synthesizer.sample_indices(8) for _ in range(3)])
    partners = views.partners[indices, numbers]

    def crops(of: Tensor) -> Tensor:
        shifts = Shifts(*(each[of, numbers] for each in (views.rows, views.columns, views.flips)))
        return synthesizer.context.augmentation(pool[of], shifts)

    shares = views.shares[indices, numbers].view(-1, 1, 1, 1)
    synthesizer.start_sampling(2, 0, 0)
    shown = torch.cat([labelled.batch(part)[0] for part in numbers.split(8)])
    torch.testing.assert_close(shown, (1 - shares) * crops(indices) + shares * crops(partners), rtol=0, atol=1e-6)


def test_a_pool_that_is_labelled_at_once_has_the_views_and_logits_of_one_that_grew(runtime):
    grew, at_once = drawn(grown(runtime, 3, label_each=True), 6), drawn(grown(runtime, 3, label_each=False), 6)
    assert all(
        torch.equal(a, b) for one, other in zip(grew, at_once, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_labelling_that_was_interrupted_is_repeated_in_the_reserved_memory(runtime):
    whole, synthesizer = grown(runtime, 3, label_each=True), grown(runtime, 2, label_each=True)
    labelled = synthesizer.labelled
    assert labelled is not None and labelled.passes() == 0 and labelled.passes(3 * 8) == 3
    # 8 images with 3 views of 3 int64, a bool, a float32, and the float32 logits of 5 classes.
    assert labelled.unused_bytes == 8 * 3 * (3 * 8 + 1 + 4 + 4 * 5)
    list(synthesizer.synthesis_steps(make_student(runtime), 2, 0))
    unfinished = labelled.extend()
    assert [next(unfinished), next(unfinished)] == [1, 2]
    unfinished.close()
    assert labelled.passes() == 3 and list(labelled.extend()) == [1, 2, 3]
    assert labelled.unused_bytes == 0
    for found, expected in zip(drawn(synthesizer, 6), drawn(whole, 6), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_logits_that_were_kept_replace_those_of_the_teacher(runtime):
    whole, synthesizer = grown(runtime, 3, label_each=True), grown(runtime, 1, label_each=True)
    kept, labelled = whole.labelled, synthesizer.labelled
    assert kept is not None and labelled is not None and labelled.finished == 8
    for epoch in (1, 2):
        list(synthesizer.synthesis_steps(make_student(runtime), epoch, 0))
        labelled.restore(kept.logits(8 * epoch, 8 * epoch + 8))
    assert labelled.passes() == 0
    for found, expected in zip(drawn(synthesizer, 6), drawn(whole, 6), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("shape", [(8, 2, 5), (7, 3, 5), (8, 3, 4), (8, 3)])
def test_logits_of_other_views_are_refused(runtime, shape):
    synthesizer = grown(runtime, 1, label_each=True)
    labelled = synthesizer.labelled
    assert labelled is not None
    message = "^the logits of the labelled views do not match the pool"
    with pytest.raises(InputError, match=message):  # the pool has no images without logits
        labelled.restore(torch.zeros(8, 3, 5))
    list(synthesizer.synthesis_steps(make_student(runtime), 1, 0))
    for logits in (torch.zeros(shape), torch.zeros(8, 3, 5, dtype=torch.float64)):
        with pytest.raises(InputError, match=message):
            labelled.restore(logits)
    assert labelled.finished == 8


def test_views_that_cannot_be_allocated_are_refused(runtime):
    pool = SamplePool(8, (1, 16, 16), runtime.device)
    pool.capacity = 2**50
    message = r"^labelling 3 views of each of 1,\S+ images needs 1\S+ GiB on cpu, more than is available; lower method"
    with pytest.raises(InputError, match=message):
        LabelledViews(3, 0.0, 8, make_context(runtime), pool, lambda count: torch.arange(count))


def test_an_image_has_as_many_views_as_the_setting_says(runtime):
    synthesizer = grown(runtime, 1, label_each=True, mixup=0.0)
    ((shown, _),) = drawn(synthesizer, 1)
    stream = torch.Generator().manual_seed(6)
    assert synthesizer.labelled is not None
    for _ in range(40):
        synthesizer.start_sampling(0, 0, 0)
        shown = torch.cat([shown, synthesizer.labelled.batch(synthesizer.labelled.draw(8, stream))[0]])
    # Two of the 3 views of an image may be the same crop.
    assert 16 <= len(shown.unique(dim=0)) <= 24


def test_the_work_counts_the_views_that_the_teacher_labels():
    settings = NoiseSettings(synthesis_batch_size=8, distillation_steps=5, labelled_views=3)
    teacher, student = 100, 10
    assert settings.work(RunSize(4, 16)).flops(teacher, student) == 2 * teacher * 4 * 8 * 3 + 6 * student * 4 * 5 * 16
    assert settings.work(RunSize(4, 16, 50)).flops(teacher, student) == 2 * teacher * 50 * 3 + 6 * student * 4 * 5 * 16
    each_step = settings.model_copy(update={"labelled_views": 0})
    assert each_step.work(RunSize(4, 16)).flops(teacher, student) == (2 * teacher + 6 * student) * 4 * 5 * 16
