"""What the generators of the methods add to the work that budgets count, for the cells of `benchmarks.tenth`.

    python -m benchmarks.generator_work

A generator step costs three forward passes of the generator, a batch that the student learns from one if it is sampled.
The epochs are those of `results/tenth.csv`; CMI's second pass through the teacher is counted, its head is not. Writes
`results/tenth-generators.csv`.
"""

from __future__ import annotations

import csv

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.budget import settings_from
from benchmarks.machine import print_table, write_rows
from benchmarks.results_page import RESULTS
from benchmarks.tenth import STUDENT, settings_of
from gapssg.models import create_model
from gapssg.models.generator import Generator
from gapssg.models.profile import profile_model
from gapssg.synthesis.base import GeneratorSettings, RunSize

TEACHER = "wrn16_2"
SHAPE = (3, 32, 32)


def main() -> None:
    """Write and print the table."""
    macs = [
        profile_model(create_model(each, num_classes=10, input_shape=SHAPE), SHAPE).macs for each in (TEACHER, STUDENT)
    ]
    reported = [row for row in csv.DictReader((RESULTS / "tenth.csv").open(newline="")) if row["reported"] == "True"]
    cells = sorted({(row["method"], int(float(row["budget"])), int(row["epochs"])) for row in reported})
    rows = [row_of(method, budget, epochs, macs) for method, budget, epochs in cells]
    write_rows(RESULTS / "tenth-generators.csv", rows)
    print_table("work, TFLOP", tuple(rows[0]), [tuple(map(str, row.values())) for row in rows])


def row_of(method: str, budget: int, epochs: int, macs: list[int]) -> dict[str, str | int | float]:
    """Return the work of a cell in TFLOP, and that of its generator."""
    given = {"teacher": "teacher", "student.name": STUDENT, "epochs": epochs, **settings_of(method)}
    settings = settings_from(given)
    of_method = settings.method
    work = of_method.work(RunSize(epochs, settings.batch_size))
    passes = 3 * (work.synthesis or work.teacher_alone) + (0 if of_method.has_pool else work.distillation)
    generator = passes * forward_flops(of_method) if isinstance(of_method, GeneratorSettings) else 0
    return {
        "method": method,
        "budget": budget,
        "epochs": epochs,
        "teacher_and_student": round(work.flops(*macs) / 1e12, 1),
        "generator": round(generator / 1e12, 1),
    }


def forward_flops(settings: GeneratorSettings) -> int:
    """Return the floating-point operations of the generator's forward pass for one image."""
    generator = Generator(SHAPE, settings.latent_size, settings.generator_width, settings.synthesis_scale)
    with FlopCounterMode(display=False) as counter:
        generator(torch.zeros(2, settings.latent_size))
    return int(counter.get_total_flops()) // 2


if __name__ == "__main__":
    main()
