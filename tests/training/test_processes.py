"""Several processes compute what one does with the same batches: every method, in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from tests.conftest import make_card
from tests.methods import METHODS
from tests.several import CPU, STEPS, in_float64, start, trace, trace_layers
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

# The processes add the same numbers in another order. A sum of at most 4,096 of them (a channel of 8 images of 16x16
# pixels, twice) changes by up to 4,096 * 2**-53 of the sum of their absolute values, in each step. Sums of gradients
# cancel to a hundredth, which is a hundred times the share of what is left. In float32, every bound would be 2**29
# times as high; a batch norm of a share changes losses by a tenth.
TOLERANCE = 100 * STEPS * 4096 * 2**-53


class Traces(NamedTuple):
    """What was computed, by the name of the method."""

    alone: dict[str, dict[str, Tensor]]
    of_ranks: list[dict[str, dict[str, Tensor]]]


@pytest.fixture(scope="module", params=[2, 4])
def traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """All methods in one process, and in one group of several: importing torch takes longer than the steps."""
    folder = tmp_path_factory.mktemp("processes")
    teacher = folder / "teacher.safetensors"
    card = make_card(architecture="tiny", flip=True)
    with tiny_model():
        model = create_model("tiny", num_classes=10, input_shape=card.input_shape, seed=1)
        with torch.no_grad():
            model.train()(torch.randn(64, *card.input_shape, generator=torch.Generator().manual_seed(0)))
        save_model(teacher, model.eval(), card)
        workers = start(request.param, "trace", teacher, folder, *METHODS)
        one = Runtime(CPU, "fp32", False, 0)
        with in_float64():
            alone = {"layers": trace_layers(one), **{name: trace(teacher, name, one) for name in METHODS}}
    for worker in workers:
        output, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, output + errors
    names = [*alone, "again"]
    ranks = range(request.param)
    return Traces(alone, [{name: load_file(folder / f"{name}-{rank}.safetensors") for name in names} for rank in ranks])


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest error in each tensor, relative to its largest entry."""
    assert found.keys() == expected.keys()
    return {
        name: ((found[name] - tensor).abs().max() / tensor.abs().max().clamp_min(1e-300)).item()
        for name, tensor in expected.items()
        if tensor.numel()
    }


@pytest.mark.parametrize("name", METHODS)
def test_ranks_have_the_losses_and_weights_of_one_process_after_20_steps(traces: Traces, name: str):
    expected = traces.alone[name]
    assert len(expected["losses"]) == STEPS
    assert expected["losses"].dtype == expected["student.convolution.weight"].dtype == torch.float64
    errors = worst(traces.of_ranks[0][name], expected)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", [*METHODS, "layers"])
def test_all_ranks_have_equal_bits(traces: Traces, name: str):
    first, *others = (rank[name] for rank in traces.of_ranks)
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[key], other[key]) for key in first)


def test_an_equal_run_of_equal_ranks_has_equal_bits(traces: Traces):
    first, again = (traces.of_ranks[0][name] for name in (next(iter(METHODS)), "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_batch_norms_and_dropout_of_any_kind_see_the_whole_batch(traces: Traces):
    errors = worst(traces.of_ranks[0]["layers"], traces.alone["layers"])
    assert max(errors.values()) < TOLERANCE, errors
