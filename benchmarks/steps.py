"""Time per synthesis and distillation step: plain, each optimisation added in turn, and the core.

    python -m benchmarks.steps                 both pairs of networks from the paper
    python -m benchmarks.steps --quick         one pair, small batches, as a smoke test: a minute

The variants are timed in turn in every round, so that a slowdown of the machine affects all of them; the table has the
medians. The peak is that of a large convolution measured in the same process.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core import Size, make_core
from benchmarks.machine import (
    Step,
    describe_machine,
    measure_peaks,
    print_machine,
    print_table,
    time_in_turn,
    write_results,
)
from benchmarks.plain import PlainDistillation, PlainSynthesis, Switches
from benchmarks.results_page import RESULTS
from gapssg.core.runtime import Runtime, computes_bf16_natively
from gapssg.models import create_model
from gapssg.settings.parts import RuntimeSettings

PUBLISHED_STEPS = {"synthesis": 200 * 200, "distillation": 2 * 256 // 128 * sum(range(1, 201))}
"""For 200 epochs: 200 generator steps each, and two passes over all samples so far."""
PAIRS = {"wrn40_2-wrn16_1": ("wrn40_2", "wrn16_1"), "resnet34-mobilenetv2": ("resnet34", "mobilenetv2")}


def main() -> None:
    """Measure, print a table, write CSV; results of --quick are not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=("synthesis", "distillation"), help="measure only this step")
    parser.add_argument("--no-compile", action="store_true", help="skip the compiled steps")
    parser.add_argument("--output", type=Path, default=RESULTS / "steps.csv")
    arguments = parser.parse_args()
    pairs = arguments.pairs[:1] if arguments.quick else arguments.pairs
    batches = (32, 16) if arguments.quick else (256, 128)
    device = Runtime.from_settings(RuntimeSettings(device=arguments.device), 0).device
    machine, peaks = describe_machine(device), measure_peaks(device)
    print_machine(machine)
    print(", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in peaks.items()))
    rows: list[dict[str, Any]] = []
    for pair in pairs:
        size = Size(*PAIRS[pair], 32, *batches)
        measured = measure_pair(size, device, arguments.rounds, not arguments.no_compile, arguments.only)
        rows += rows_of(pair, measured, peaks)
        print_pair(pair, measured, rows)
        if not arguments.quick:
            write_results(arguments.output, rows, machine)


def measure_pair(
    size: Size, device: torch.device, rounds: int, compiled: bool, only: str | None = None
) -> dict[str, Any]:
    """Time every variant of both steps for one pair of teacher and student."""
    shape = (3, size.side, size.side)
    teacher, student = (
        create_model(name, num_classes=10, input_shape=shape).to(device) for name in (size.teacher, size.student)
    )
    with tempfile.TemporaryDirectory() as folder:
        images = torch.randint(0, 256, (max(4 * size.batch, 512), *shape), dtype=torch.uint8)
        synthesis: dict[str, Step] = {}
        distillation: dict[str, Step] = {}
        for number, (label, switches) in enumerate(Switches.in_turn(computes_bf16_natively(device))):
            if not switches.pool_on_device:
                synthesis[label] = PlainSynthesis(teacher, student, shape, size.synthesis_batch, switches).step
            # These two have no effect on distillation.
            if label not in ("+ frozen", "+ one pass statistics"):
                arguments = (teacher, student, images, size.batch, switches, Path(folder) / str(number))
                distillation[label] = PlainDistillation(*arguments).step
        for name, compile_it in (("eager", False), ("compiled", True))[: 2 if compiled else 1]:
            core = make_core(size, device, compile_it)
            label = f"core, {name}, {core.precision}"
            synthesis[label], distillation[label] = core.synthesis, core.distillation
        measured = {}
        variants_of = {
            "synthesis": (size.synthesis_batch, synthesis),
            "distillation": (size.batch, distillation),
        }
        for name, (batch, variants) in variants_of.items():
            if only not in (None, name):
                continue
            flops = count_flops(next(step for label, step in variants.items() if label.startswith("core, eager")))
            medians = {label: median(times) for label, times in time_in_turn(variants, device, rounds).items()}
            measured[name] = {"batch": batch, "flops": flops, "seconds": medians}
        return measured


def count_flops(step: Step) -> int:
    """Count the floating-point operations of the convolutions and matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def rows_of(pair: str, measured: dict[str, Any], peaks: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row for each variant of each step."""
    rows = []
    for name, step in measured.items():
        for label, seconds in step["seconds"].items():
            is_bf16 = "bf16" in label or (label.startswith(("+ no", "+ pool")) and "+ bf16" in step["seconds"])
            precision = "bf16" if is_bf16 else "fp32"
            rows.append(
                {
                    "pair": pair,
                    "step": name,
                    "batch": step["batch"],
                    "gflop": step["flops"] / 1e9,
                    "variant": label,
                    "seconds": seconds,
                    "precision": precision,
                    "peak_gflops": peaks[f"{precision} convolution"],
                }
            )
    return rows


def print_pair(pair: str, measured: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print one Markdown table for each of the two steps."""
    headings = ("variant", "s/step", "images/s", "speedup", "GFLOP/s", "share of the convolution peak")
    for name, step in measured.items():
        shown = []
        for row in rows:
            if (row["pair"], row["step"]) == (pair, name):
                rate, seconds = row["gflop"] / row["seconds"], row["seconds"]
                share = f"{rate / row['peak_gflops']:.0%} {row['precision']}"
                speed, ratio = f"{row['batch'] / seconds:,.0f}", f"{step['seconds']['plain'] / seconds:.2f}"
                shown.append((row["variant"], f"{seconds:.4f}", speed, ratio, f"{rate:,.0f}", share))
        print_table(f"{pair}: {name}, batch {step['batch']}, {step['flops'] / 1e9:.1f} GFLOP per step", headings, shown)
    if measured.keys() == PUBLISHED_STEPS.keys():
        print_run(pair, measured)


def print_run(pair: str, measured: dict[str, Any]) -> None:
    """Print the total time of all steps of a run with the published settings, without its other costs."""
    labels = [label for label in measured["synthesis"]["seconds"] if label == "plain" or label.startswith("core")]
    hours = {
        label: sum(count * measured[name]["seconds"][label] for name, count in PUBLISHED_STEPS.items()) / 3600
        for label in labels
    }
    counts = " and ".join(f"{count:,} of {name}" for name, count in PUBLISHED_STEPS.items())
    rows = [(label, f"{hours[label]:.2f}", f"{hours['plain'] / hours[label]:.2f}") for label in labels]
    print_table(f"{pair}: the steps of a published run, {counts}", ("variant", "hours", "speedup"), rows)


if __name__ == "__main__":
    main()
