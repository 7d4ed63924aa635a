"""The synthesis and distillation steps of `gapssg distill`, one step per call."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from benchmarks.machine import Step, write_teacher
from gapssg import DistillSettings
from gapssg.core.runtime import Runtime
from gapssg.models.model_file import load_model
from gapssg.training.distillation import Distillation

if TYPE_CHECKING:
    from gapssg.core.processes import Processes


class Size(NamedTuple):
    """Networks, image side in pixels and batch sizes; the batch sizes default to the published ones."""

    teacher: str = "wrn40_2"
    student: str = "wrn16_1"
    side: int = 32
    synthesis_batch: int = 256
    batch: int = 128


class CoreSteps(NamedTuple):
    """One call of each is one step.

    Attributes:
        precision: The precision of the networks.
    """

    synthesis: Step
    distillation: Step
    precision: str


def make_core(
    size: Size,
    device: torch.device,
    compiled: bool = False,
    precision: str = "auto",
    processes: Processes | None = None,
) -> CoreSteps:
    """Create both steps for a teacher with random weights; `processes` share every batch."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "teacher.safetensors"
        write_teacher(file, size.teacher, size.side)
        settings = DistillSettings.model_validate(
            {
                "teacher": file,
                "student": {"name": size.student},
                "batch_size": size.batch,
                "optimizer": {"algorithm": "sgd"},  # as published
                # More steps than are ever timed, so that the synthesis never ends.
                "method": {
                    "name": "gapssg",
                    "synthesis_batch_size": size.synthesis_batch,
                    "generator_steps": 100_000,
                    "passes": 1000,
                },
                "runtime": {
                    "device": str(device) if processes is None else device.type,
                    "compile": compiled,
                    "precision": precision,
                },
            }
        )
        runtime = Runtime.from_settings(settings.runtime, 0, processes)
        # Two, because a suspended synthesis still observes its teacher and freezes its student.
        synthesising, distilling = (Distillation(settings, runtime, load_model(file)) for _ in range(2))
    steps = synthesising.synthesizer.synthesis_steps(synthesising.student, 0, 0)
    pool = distilling.synthesizer.pool
    assert pool is not None
    images = torch.randint(0, 256, (2 * size.batch, 3, size.side, size.side), dtype=torch.uint8, device=device)
    pool.append(images, torch.zeros(len(images), dtype=torch.int64, device=device))
    # From the pool, as in a run; a thousand passes over two batches are more than are ever timed.
    batches = distilling.student_steps.batches(0, 0, 0)
    distilling.student.train()

    def synthesise() -> None:
        with runtime.configured():
            next(steps)

    def distil() -> None:
        with runtime.configured():
            distilling.trainee.step(*next(batches))

    return CoreSteps(synthesise, distil, runtime.precision)
