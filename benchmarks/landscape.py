"""Landscape points per second: a plain loop, stacked weights under vmap, and gapssg's own evaluation.

    python -m benchmarks.landscape                 WRN-16-1 on the 450 test digits, the rate of each method
    python -m benchmarks.landscape --grid 25       also the time of a whole grid

The methods are timed in turn in every round, so that a slowdown of the machine affects all of them. The table has the
median wall-clock time, and the CPU time of all threads, which is more reliable on a busy machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from benchmarks.machine import describe_machine, print_machine, print_table, write_results
from benchmarks.results_page import RESULTS
from gapssg.core.augment import Normalization
from gapssg.core.runtime import Runtime, computes_bf16_natively, synchronize
from gapssg.data import load_split
from gapssg.landscape.directions import random_directions
from gapssg.landscape.layout import Layout
from gapssg.landscape.points import Plane, PointEvaluator
from gapssg.landscape.samples import Samples
from gapssg.models import create_model
from gapssg.models.model_file import load_model
from gapssg.settings.parts import RuntimeSettings

Points = list[tuple[float, float]]
Measure = Callable[[Points], Tensor]


def main() -> None:
    """Measure, print a table, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model file for the digits (default: random weights)")
    parser.add_argument("--points", type=int, default=8, help="points per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--grid", type=int, help="also measure a whole grid of this side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=RESULTS / "landscape.csv")
    arguments = parser.parse_args()
    runtime = Runtime.from_settings(RuntimeSettings(device=arguments.device, precision="fp32"), 0)
    module, normalization = load(arguments.model, runtime)
    images = load_split("digits", "test").to(runtime.device)
    samples = Samples(images.images, images.labels)
    plane = plane_around(module)
    ways = make_ways(module, normalization, samples, plane, runtime)
    points = grid(5)[: arguments.points]
    exact = ways["plain loop"](points)
    medians = time_in_turn(ways, points, runtime.device, arguments.rounds)
    machine = describe_machine(runtime.device)
    print_machine(machine)
    plain = medians["plain loop"]["seconds"]
    rows, shown = [], []
    for way, row in medians.items():
        rate, processor = 1 / row["seconds"], row["processor"]
        error = ((ways[way](points) - exact) / exact).abs().max().item()
        rows.append({"way": way, "points_per_second": rate, "processor_seconds": processor, "error": error})
        shown.append((way, f"{rate:.1f}", f"{plain * rate:.2f}", f"{processor:.3f}", f"{error:.1e}"))
    headings = ("method", "points/s", "speedup", "CPU s per point", "largest relative error of a loss")
    print_table("points of a landscape", headings, shown)
    write_results(arguments.output, rows, machine)
    if arguments.grid:
        chosen = grid(arguments.grid)
        started = time.perf_counter()
        ways["gapssg, fp32"](chosen)
        runtime.synchronize()
        seconds = time.perf_counter() - started
        print(f"\n{len(chosen)} points in fp32: {seconds:.1f} s, {len(chosen) / seconds:.1f} points/s")


def load(file: Path | None, runtime: Runtime) -> tuple[nn.Module, Normalization]:
    """Return a WRN-16-1, or the model of a file, on the device, and its normalisation."""
    if file is None:
        module, mean, deviation = create_model("wrn16_1", num_classes=10, input_shape=(1, 16, 16)), (0.3,), (0.4,)
        return module.eval().to(runtime.device), Normalization.from_statistics(mean, deviation, runtime.device)
    model = load_model(file)
    normalization = Normalization.from_statistics(model.card.mean, model.card.deviation, runtime.device)
    return model.module.to(runtime.device), normalization


def plane_around(module: nn.Module) -> Plane:
    """Return a plane of two filter-normalised random directions."""
    layout = Layout.of(module)
    origin = layout.flatten(module.state_dict()).cpu()
    directions = random_directions(origin, layout, [0, 1], biases_and_norms=False)
    return Plane(origin, directions, layout).to(next(module.parameters()).device)


def grid(side: int) -> Points:
    """Return the points of a grid from -1 to 1."""
    axis = torch.linspace(-1, 1, side).tolist()
    return [(first, second) for first in axis for second in axis]


def make_ways(
    module: nn.Module, normalization: Normalization, samples: Samples, plane: Plane, runtime: Runtime
) -> dict[str, Measure]:
    """Return each method of measuring the losses at points."""

    def plain(points: Points) -> Tensor:
        """Load a state dict and evaluate batch by batch, synchronising after each, as published scripts do."""
        network, losses = copy.deepcopy(module), []
        with torch.no_grad():
            for first, second in points:
                weights = plane.layout.split(plane.origin + first * plane.directions[0] + second * plane.directions[1])
                network.load_state_dict({**module.state_dict(), **weights})
                total = 0.0
                for start in range(0, len(samples), 128):
                    batch = samples.take(slice(start, start + 128))
                    logits = network(((batch.images / 255) - normalization.mean) / normalization.deviation)
                    total += F.cross_entropy(logits, batch.labels, reduction="sum").item()
                losses.append(total / len(samples))
        return torch.tensor(losses)

    pixels = normalization(samples.images / 255)
    buffers = dict(module.named_buffers())

    def stacked(points: Points) -> Tensor:
        """Compute all points at once with stacked weights."""
        where = torch.tensor(points, device=pixels.device)
        stack = plane.origin + where @ plane.directions
        rows = [plane.layout.split(row) for row in stack]
        weights = {name: torch.stack([row[name] for row in rows]) for name in plane.layout.shapes}
        total = torch.zeros(len(points), device=pixels.device)
        with torch.inference_mode():
            for start in range(0, len(samples), 64):
                images, labels = pixels[start : start + 64], samples.labels[start : start + 64]

                def loss(one: dict[str, Tensor], images: Tensor = images, labels: Tensor = labels) -> Tensor:
                    logits = functional_call(module, {**one, **buffers}, (images,))
                    return F.cross_entropy(logits, labels, reduction="sum")

                total += vmap(loss)(weights)
        return (total / len(samples)).cpu()

    def own(evaluator: PointEvaluator) -> Measure:
        return lambda points: evaluator.measure(plane, points)[0]

    ways: dict[str, Measure] = {"plain loop": plain, "torch.func.vmap, stacked weights": stacked}
    for size in (16, 150, 450):
        ways[f"gapssg, fp32, {size} images at a time"] = own(
            PointEvaluator(module, normalization, samples, runtime, batch_size=size)
        )
    ways["gapssg, fp32"] = own(PointEvaluator(module, normalization, samples, runtime))
    if computes_bf16_natively(runtime.device):
        coarse = replace(runtime, precision="bf16")
        ways["gapssg, bf16"] = own(PointEvaluator(module, normalization, samples, coarse))
    return ways


def time_in_turn(
    ways: dict[str, Measure], points: Points, device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Time each method once per round, after a warm-up call; return the median seconds per point."""
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, measure in ways.items():
            started, processor = time.perf_counter(), time.process_time()
            measure(points)
            synchronize(device)
            if number:
                seconds[way].append((time.perf_counter() - started, time.process_time() - processor))
    return {
        way: {
            "seconds": statistics.median(wall for wall, _ in pairs) / len(points),
            "processor": statistics.median(processor for _, processor in pairs) / len(points),
        }
        for way, pairs in seconds.items()
    }


if __name__ == "__main__":
    main()
