"""A captured step reads the same memory in every call, so a test on a CPU shows what a CUDA graph would read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gapssg import PretrainSettings, pretrain_teacher
from gapssg.core.runtime import Runtime
from gapssg.core.training_step import EAGER_CALLS, Outputs, TrainingStep
from gapssg.models.model_file import load_model
from gapssg.training.distillation import Distillation
from tests.conftest import write_teacher
from tests.methods import METHODS
from tests.run_fixtures import TINY, run_epoch, settings

NEED_NO_BATCH_NORM = ("gapssg-fast", "gapssg", "zskt", "dfad")
WITHOUT_BATCH_NORM = "tests.models.factories:without_linear_layer"


class Reads(TorchDispatchMode):
    """Records the memory that operations read and none of them has made; tensors are kept, so that none is reused."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self._note(self.read, self.made, (args, kwargs))
        result = func(*args, **(kwargs or {}))
        self._note(self.made, self.read, result)
        return result

    @staticmethod
    def _note(place: dict[int, Tensor], other: dict[int, Tensor], found: Any) -> None:
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and (address := tensor.untyped_storage().data_ptr()) not in other:
                place.setdefault(address, tensor)


@pytest.fixture
def reads(monkeypatch) -> dict[TrainingStep, list[Reads]]:
    """What each call of each step reads, without its arguments, which a replay copies to one place."""
    found: dict[TrainingStep, list[Reads]] = {}
    call = TrainingStep.__call__

    def observed(self: TrainingStep, *tensors: Tensor) -> Outputs:
        with Reads() as reads:
            outputs = call(self, *tensors)
        for tensor in tensors:
            reads.made[tensor.untyped_storage().data_ptr()] = tensor
            reads.read.pop(tensor.untyped_storage().data_ptr(), None)
        found.setdefault(self, []).append(reads)
        return outputs

    monkeypatch.setattr(TrainingStep, "__call__", observed)
    return found


@pytest.mark.parametrize(
    ("method", "architecture"),
    [*((name, "wrn10_half") for name in METHODS), *((name, WITHOUT_BATCH_NORM) for name in NEED_NO_BATCH_NORM)],
)
def test_every_call_of_a_step_reads_the_same_memory(reads, runtime: Runtime, tmp_path: Path, method, architecture):
    teacher = write_teacher(tmp_path / "teacher.safetensors", architecture)
    given = settings(teacher, epochs=4, method={"name": method, **METHODS[method]})
    distillation = Distillation(given, runtime, load_model(teacher, [WITHOUT_BATCH_NORM]))
    for epoch in range(4):
        run_epoch(distillation, tmp_path / f"run-{epoch}")
    check(reads)


def test_nor_does_what_a_teacher_reads_in_its_training_move(reads, image_folder: Path, tmp_path: Path):
    given = {"data": {"name": f"folder:{image_folder}"}, "model": {"name": "wrn10_half"}, "epochs": 4, "batch_size": 16}
    pretrain_teacher(PretrainSettings.model_validate({**given, "runtime": TINY["runtime"]}), tmp_path / "run")
    check(reads)


def check(reads: dict[TrainingStep, list[Reads]]) -> None:
    assert reads
    for calls in reads.values():
        recorded = calls[EAGER_CALLS].read
        assert len(calls) > EAGER_CALLS + 1
        for later in calls[EAGER_CALLS + 1 :]:
            moved = [tuple(tensor.shape) for address, tensor in recorded.items() if address not in later.read]
            assert not moved, f"tensors of the shapes {moved} were at other addresses"
