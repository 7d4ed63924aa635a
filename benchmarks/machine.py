"""Helpers of all benchmarks: machine description, peak rates, timing, tables, CSV, a random teacher."""

from __future__ import annotations

import csv
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gapssg.core.runtime import computes_bf16_natively, synchronize
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.model_file import save_model

Step = Callable[[], object]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return machine, versions and commit, which every row of a CSV file has."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "machine": f"{name}, {'with' if computes_bf16_natively(device) else 'without'} bfloat16 instructions",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str:
    """Return the checked-out commit; empty without a repository, as in an unpacked sdist."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()


def print_machine(machine: dict[str, Any]) -> None:
    """Print the machine in one line."""
    print(f"{machine['machine']}, {machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}")


def measure_peaks(device: torch.device) -> dict[str, float]:
    """Measure GFLOP/s of large matrix products and convolutions in this process; bf16 where it is native."""
    peaks = {}
    side = 8192 if device.type == "cuda" else 2048
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for name, dtype in list(types.items())[: 2 if computes_bf16_natively(device) else 1]:
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        peaks[f"{name} matrix product"] = _rate(partial(torch.matmul, left, right), 2 * side**3, device)
        channels, count = 256, 64
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        layer = layer.to(memory_format=torch.channels_last)
        inputs = torch.randn(count, channels, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * count * 32 * 32
        with torch.no_grad():
            peaks[f"{name} convolution"] = _rate(partial(layer, inputs), flops, device)
    return peaks


def _rate(call: Step, flops: int, device: torch.device) -> float:
    """Return the best GFLOP/s of several calls."""
    time_calls(call, device)
    return flops / min(time_calls(call, device) for _ in range(7)) / 1e9


def time_in_turn(variants: dict[str, Step], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Time each variant once per round, after warm-up calls; return seconds per call.

    A round is one call on a CPU, and twenty on a GPU, where synchronising after each call would distort the time. On a
    GPU six warm-up calls capture the graphs.
    """
    on_gpu = device.type == "cuda"
    for step in variants.values():
        time_calls(step, device, 6 if on_gpu else 2)
    seconds: dict[str, list[float]] = {label: [] for label in variants}
    for _ in range(rounds):
        for label, step in variants.items():
            seconds[label].append(time_calls(step, device, 20 if on_gpu else 1))
    return seconds


def time_calls(step: Step, device: torch.device, calls: int = 1) -> float:
    """Return the mean seconds per call."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        step()
    synchronize(device)
    return (time.perf_counter() - started) / calls


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table; the first column is text, the others are numbers."""
    print(f"\n{title}\n")
    print("| " + " | ".join(headings) + " |")
    print("| --- |" + " ---: |" * (len(headings) - 1))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> None:
    """Write results as CSV, to 6 digits; `benchmarks.results_page` makes tables of these files."""
    write_rows(path, [{**row, **machine} for row in rows], lambda figure: float(f"{figure:.6g}"))


def write_rows(
    path: Path, rows: Iterable[Mapping[str, Any]], rounded: Callable[[float], float] = lambda figure: round(figure, 4)
) -> None:
    """Write rows, whose columns may differ, as CSV."""
    rows = [{key: rounded(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(chain.from_iterable(rows))), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_teacher(path: Path, architecture: str, side: int = 32) -> None:
    """Write a teacher with random weights for `side` x `side` colour images in 10 classes."""
    shape = (3, side, side)
    card = ModelCard(
        architecture=architecture,
        num_classes=10,
        input_shape=shape,
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        crop_padding=side // 8,
        flip=True,
        class_names=tuple("0123456789"),
        provenance=Provenance(command="benchmark"),
    )
    save_model(path, create_model(architecture, num_classes=10, input_shape=shape), card)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [
        value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == "model name"
    ]
    return names[0] if names else platform.processor() or platform.machine()
