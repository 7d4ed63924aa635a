"""How cost grows with the pool, the image size and the batch size, and the cost of checkpoints and whole runs.

    python -m benchmarks.growth
    python -m benchmarks.growth --quick    small sizes, as a smoke test: a minute

An exponent is the slope of the least-squares line through log cost against log size: 0 is constant, 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import Size, make_core
from benchmarks.machine import (
    describe_machine,
    print_machine,
    print_table,
    time_calls,
    time_in_turn,
    write_results,
    write_teacher,
)
from benchmarks.results_page import RESULTS, fit_exponent
from gapssg import DistillSettings, PretrainSettings, distill, pretrain_teacher
from gapssg.core.runtime import Runtime, to_unit_range
from gapssg.models.model_file import load_model
from gapssg.runs.checkpoint import Checkpoints
from gapssg.runs.directory import RunDirectory, SilentDisplay
from gapssg.runs.events import Started
from gapssg.runs.requests import Requests
from gapssg.settings.parts import RuntimeSettings
from gapssg.synthesis.pool import SamplePool
from gapssg.training.distillation import Distillation
from gapssg.training.estimate import peak_memory

Report = dict[str, Any]


def main() -> None:
    """Measure each part in its own process, which gives its peak memory; print tables, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="folder for growth-PART.csv; not written with --quick"
    )
    arguments = parser.parse_args()
    where = alone(machine, arguments.device)
    print_machine(where)
    for name in arguments.parts:
        found = alone(PARTS[name], arguments.device, arguments.quick, arguments.rounds)
        print_part(name, found)
        if not arguments.quick:
            write_results(arguments.output / f"growth-{name}.csv", rows_of(found), where)


def rows_of(found: Report) -> list[Report]:
    """Return the results of one part as rows."""
    if "costs" in found:
        return [
            {"pool": pool, **cost, "epoch_seconds": found["epoch_seconds"]} for pool, cost in found["costs"].items()
        ]
    if "exponents" in found:
        columns = [key for key in found if key != "exponents"]
        return [dict(zip(columns, row, strict=True)) for row in zip(*(found[key] for key in columns), strict=True)]
    return [{"what": what, "measured": value} for what, value in found.items()]


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def machine(device: str) -> Report:
    """Describe the machine."""
    return describe_machine(_runtime(device).device)


def run(device: str, quick: bool, rounds: int) -> Report:
    """Distil for two epochs of ten generator steps at the published batch sizes; report images/s of the second."""
    size = Size("wrn16_1", "wrn16_1", 16, 32, 16) if quick else Size()
    with tempfile.TemporaryDirectory() as folder:
        settings = _settings(Path(folder), size, device, epochs=2, generator_steps=10, passes=20)
        result = distill(settings, Path(folder) / "run")
        lines = (Path(folder) / "run" / "events.jsonl").read_text().splitlines()
        epoch = [event for event in map(json.loads, lines) if event["event"] == "epoch"][-1]
    seconds = epoch["timing"]
    return {
        "networks": f"{size.teacher} to {size.student}, {size.side} pixels",
        "precision": result.precision,
        "synthesis, images/s of a step": size.synthesis_batch * 10 / seconds["synthesis"],
        "distillation, images/s": seconds["images_per_second"],
        "peak memory, MB": peak_memory(_runtime(device)) / 1e6,
    }


def pretraining(device: str, quick: bool, rounds: int) -> Report:
    """Train WRN-40-2 on random images of 32 pixels for two epochs; report images/s of the second."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", 128 if quick else 1024), ("test", 16)):
            pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8).numpy()
            for index, image in enumerate(pixels):
                file = Path(folder) / "data" / split / str(index % 2) / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(file)
        settings = PretrainSettings.model_validate(
            {
                "data": {"name": f"folder:{folder}/data"},
                "model": {"name": "wrn16_1" if quick else "wrn40_2"},
                "epochs": 2,
                "batch_size": 128,
                "runtime": {"device": device},
            }
        )
        result = pretrain_teacher(settings, Path(folder) / "run")
        lines = (Path(folder) / "run" / "events.jsonl").read_text().splitlines()
        epoch = [event for event in map(json.loads, lines) if event["event"] == "epoch"][-1]
    return {
        "network": f"{settings.model.name}, 32 pixels, batch 128",
        "precision": result.precision,
        "images/s": epoch["timing"]["images_per_second"],
    }


def checkpoint(device: str, quick: bool, rounds: int) -> Report:
    """Compare the cost of a checkpoint with the first, shortest epoch of the published settings.

    That epoch has 200 synthesis steps and 4 distillation steps; one of each is timed. A checkpoint is timed until it is
    durable, although the run continues while it is written: after an epoch with pools of 1, 10 and 100 epochs, to show
    that it does not grow, and in the middle of a synthesis, where it is largest.
    """
    size = Size("wrn16_1", "wrn16_1", 16, 32, 16) if quick else Size()
    runtime = _runtime(device)
    core = make_core(size, runtime.device)
    steps = {"synthesis": core.synthesis, "distillation": core.distillation}
    step_seconds = {name: median(times) for name, times in time_in_turn(steps, runtime.device, rounds).items()}
    epoch_seconds = 200 * step_seconds["synthesis"] + 4 * step_seconds["distillation"]
    costs = {}
    stages: dict[str, int] = {"1 epoch": 1, "10 epochs": 10, "100 epochs": 100, "in a synthesis": 100}
    with tempfile.TemporaryDirectory(dir=os.environ.get("GAPSSG_BENCHMARK_DIRECTORY")) as folder:
        settings = _settings(Path(folder), size, device, epochs=200)
        distillation = Distillation(settings, runtime, load_model(settings.teacher))
        images = torch.zeros(size.synthesis_batch, 3, size.side, size.side, dtype=torch.uint8)
        pool = distillation.synthesizer.pool
        assert pool is not None
        for stage, epochs in stages.items():
            while len(pool) < epochs * size.synthesis_batch:
                pool.append(images, torch.zeros(size.synthesis_batch, dtype=torch.int64))
            if stage == "1 epoch":
                distillation.student.train()
                inputs = next(distillation.student_steps.batches(0, 0, 0))
                distillation.trainee.step(*inputs)  # creates the momentum buffers
            if stage == "in a synthesis":
                synthesis = distillation.synthesizer.synthesis_steps(distillation.student, 0, 0)
                next(synthesis)
            directory = RunDirectory(Path(folder) / stage, settings, SilentDisplay())
            directory.record(Started(message="a benchmark"))
            checkpoints = Checkpoints(directory, {}, distillation.state, Requests(), 1, 10.0)
            with directory, checkpoints:
                checkpoints.write()
                checkpoints.finish()
                pairs = [_time_checkpoint(checkpoints, runtime) for _ in range(rounds)]
                blocked, durable = (median(seconds) for seconds in zip(*pairs, strict=True))
            written = sum(file.stat().st_size for file in (directory.path / "checkpoint").iterdir())
            costs[stage] = {"blocked_seconds": blocked, "durable_seconds": durable, "bytes": written}
    largest = max(cost["durable_seconds"] for cost in costs.values())
    return {
        "step_seconds": step_seconds,
        "epoch_seconds": epoch_seconds,
        "costs": costs,
        "share": largest / epoch_seconds,
    }


def _time_checkpoint(checkpoints: Checkpoints, runtime: Runtime) -> tuple[float, float]:
    blocked = time_calls(checkpoints.write, runtime.device)
    return blocked, blocked + time_calls(checkpoints.finish, runtime.device)


def pool(device: str, quick: bool, rounds: int) -> Report:
    """Time appending 256 images to a pool and sampling 128 from it, for pools of 1 to 100 epochs."""
    where = _runtime(device).device
    fresh = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8, device=where)
    targets = torch.zeros(256, dtype=torch.int64, device=where)
    found: Report = {"epochs": [1, 10, 100], "sample_seconds": [], "append_seconds": [], "megabytes": []}
    for epochs in found["epochs"]:
        filled = SamplePool((epochs + 1 + 25) * 256, (3, 32, 32), where)
        for _ in range(epochs):
            filled.append(fresh, targets)
        indices = torch.randint(0, len(filled), (128,), device=where)
        # Many calls in a row, because one takes only tens of microseconds.
        draws = [time_calls(partial(_sample, filled, indices), where, 200) for _ in range(9)]
        appends = [time_calls(partial(filled.append, fresh, targets), where, 5) for _ in range(5)]
        found["sample_seconds"].append(median(draws))
        found["append_seconds"].append(median(appends))
        found["megabytes"].append(epochs * fresh.numel() / 1e6)
    return _with_exponents(found, "epochs", ("sample_seconds", "append_seconds", "megabytes"))


def image_size(device: str, quick: bool, rounds: int) -> Report:
    """Time both steps for WRN-16-2 to WRN-16-1 on images of 16 to 224 pixels, in batches of 8."""
    return _over_sizes(device, rounds, "side", [16, 32] if quick else [16, 32, 64, 128, 224])


def batch_size(device: str, quick: bool, rounds: int) -> Report:
    """Time both steps for WRN-16-2 to WRN-16-1 on images of 32 pixels, in batches of 16 to 256."""
    return _over_sizes(device, rounds, "batch", [8, 16] if quick else [16, 32, 64, 128, 256])


def large_images(device: str, quick: bool, rounds: int) -> Report:
    """Time both steps for torchvision's ResNet-18 to MobileNetV3-small on images of 224 pixels; on a GPU by batch."""
    if _runtime(device).device.type == "cpu":
        return dict(alone(_large_batch, device, quick, rounds, 2 if quick else 8))
    found: Report = {"batch": [32, 128, 512]}
    for batch in found["batch"]:
        for name, value in alone(_large_batch, device, quick, rounds, batch).items():
            found.setdefault(name, []).append(value)
    return _with_exponents(found, "batch", ("peak memory, MB",))


def _large_batch(device: str, quick: bool, rounds: int, batch: int) -> Report:
    runtime = _runtime(device)
    size = Size("torchvision:resnet18", "torchvision:mobilenet_v3_small", 32 if quick else 224, batch, batch)
    core = make_core(size, runtime.device)
    times = time_in_turn(
        {"synthesis": core.synthesis, "distillation": core.distillation}, runtime.device, max(rounds, 3)
    )
    rates = {f"{name}, images/s of a step": batch / median(seconds) for name, seconds in times.items()}
    return {
        "networks": f"{size.teacher} to {size.student}, {size.side} pixels, batch {batch}",
        "precision": core.precision,
        **rates,
        "peak memory, MB": peak_memory(runtime) / 1e6,
    }


def _over_sizes(device: str, rounds: int, what: str, sizes: list[int]) -> Report:
    found: Report = {what: sizes, "synthesis_seconds": [], "distillation_seconds": [], "peak_megabytes": []}
    for value in sizes:
        side, batch = (value, 8) if what == "side" else (32, value)
        measured = alone(_one_size, device, rounds, side, batch)
        for name, number in measured.items():
            found[name].append(number)
    return _with_exponents(found, what, ("synthesis_seconds", "distillation_seconds", "peak_megabytes"))


def _one_size(device: str, rounds: int, side: int, batch: int) -> Report:
    runtime = _runtime(device)
    core = make_core(Size("wrn16_2", "wrn16_1", side, batch, batch), runtime.device)
    steps = {"synthesis_seconds": core.synthesis, "distillation_seconds": core.distillation}
    medians = {name: median(times) for name, times in time_in_turn(steps, runtime.device, max(rounds, 3)).items()}
    return {**medians, "peak_megabytes": peak_memory(runtime) / 1e6}


def _sample(pool: SamplePool, indices: Tensor) -> Tensor:
    return to_unit_range(pool.images[indices])


def _with_exponents(found: Report, size: str, costs: tuple[str, ...]) -> Report:
    return found | {"exponents": {cost: fit_exponent(found[size], found[cost]) for cost in costs}}


def _settings(folder: Path, size: Size, device: str, epochs: int, **method: int) -> DistillSettings:
    write_teacher(folder / "teacher.safetensors", size.teacher, size.side)
    return DistillSettings.model_validate(
        {
            "teacher": folder / "teacher.safetensors",
            "student": {"name": size.student},
            "epochs": epochs,
            "batch_size": size.batch,
            "method": {"name": "gapssg", "synthesis_batch_size": size.synthesis_batch, **method},
            "runtime": {"device": device, "compile": False},
        }
    )


def _runtime(device: str) -> Runtime:
    return Runtime.from_settings(RuntimeSettings(device=device), 0)


def print_part(name: str, found: Report) -> None:
    """Print one part as a Markdown table."""
    rows: list[tuple[object, ...]] = []
    title = name.replace("_", " ")
    if name == "checkpoint":
        rows = [
            (
                epochs,
                f"{1e3 * cost['blocked_seconds']:.1f}",
                f"{1e3 * cost['durable_seconds']:.1f}",
                f"{cost['bytes'] / 1e6:.2f}",
            )
            for epochs, cost in found["costs"].items()
        ]
        print_table(title, ("pool", "run blocked, ms", "until durable, ms", "MB"), rows)
        print(f"\nThe first epoch takes {found['epoch_seconds']:.1f} s; a checkpoint is {found['share']:.2%} of it.")
    elif "exponents" in found:
        size, *measures = [key for key in found if key != "exponents"]
        rows = [tuple(f"{found[key][i]:.4g}" for key in (size, *measures)) for i in range(len(found[size]))]
        rows.append(("exponent", *(f"{found['exponents'][measure]:.2f}" for measure in measures)))
        print_table(title, (size, *(measure.replace("_", " ") for measure in measures)), rows)
    else:
        rows = [(key, f"{value:,.0f}" if isinstance(value, float) else value) for key, value in found.items()]
        print_table(title, ("what", "measured"), rows)


PARTS: dict[str, Callable[[str, bool, int], Report]] = {
    "run": run,
    "pretraining": pretraining,
    "checkpoint": checkpoint,
    "pool": pool,
    "image_size": image_size,
    "batch_size": batch_size,
    "large_images": large_images,
}

if __name__ == "__main__":
    main()
