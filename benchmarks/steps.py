"""Time of a synthesis step and of a distillation step: plain, each optimisation added in turn, and the core.

    python -m benchmarks.steps                 both pairs of networks of the paper's comparison
    python -m benchmarks.steps --quick         one pair, small batches: a minute, to see that it runs

The variants are timed in turn, round after round, so that a machine that slows down slows all of them; the table
has the medians. The share of the peak is that of the convolution and matrix rates which the same process measures.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import PlainDistillation, PlainSynthesis, Switches
from gapssg import DistillSettings
from gapssg.engine.distillation import Distillation
from gapssg.models import create_model
from gapssg.models.model_file import ModelCard, Provenance, load_model, save_model
from gapssg.runtime import Runtime
from gapssg.settings import RuntimeSettings

PAIRS = {"wrn40_2-wrn16_1": ("wrn40_2", "wrn16_1"), "resnet34-mobilenetv2": ("resnet34", "mobilenetv2")}
SHAPE = (3, 32, 32)
Step = Callable[[], object]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/steps.json"))
    arguments = parser.parse_args()
    pairs = arguments.pairs[:1] if arguments.quick else arguments.pairs
    synthesis_batch, batch = (32, 16) if arguments.quick else (256, 128)
    device = Runtime.from_settings(RuntimeSettings(device=arguments.device), 0).device
    report: dict[str, Any] = {"machine": describe_machine(device), "peak_gflops": measure_peaks(device), "pairs": {}}
    print(json.dumps({key: report[key] for key in ("machine", "peak_gflops")}, indent=2))
    for pair in pairs:
        report["pairs"][pair] = measure_pair(pair, device, synthesis_batch, batch, arguments.rounds)
        print_pair(pair, report["pairs"][pair], report["peak_gflops"])
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def measure_pair(pair: str, device: torch.device, synthesis_batch: int, batch: int, rounds: int) -> dict[str, Any]:
    """Time every variant of both steps for one pair of teacher and student."""
    teacher_name, student_name = PAIRS[pair]
    teacher, student = (
        create_model(name, num_classes=10, input_shape=SHAPE).to(device) for name in (teacher_name, student_name)
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = torch.randint(0, 256, (max(4 * batch, 512), *SHAPE), dtype=torch.uint8)
        synthesis: dict[str, Step] = {}
        distillation: dict[str, Step] = {}
        for number, (label, switches) in enumerate(Switches.in_turn()):
            if not switches.pool_on_device:
                synthesis[label] = PlainSynthesis(teacher, student, SHAPE, synthesis_batch, switches).step
            if label != "+ one pass statistics":
                arguments = (teacher, student, images, batch, switches, root / str(number))
                distillation[label] = PlainDistillation(*arguments).step
        save_model(root / "teacher.safetensors", teacher, make_card(teacher_name))
        for label, compiled in (("core, eager", False), ("core, compiled", True)):
            core = make_core(root / "teacher.safetensors", student_name, device, synthesis_batch, batch, compiled)
            synthesis[label], distillation[label] = core
        measured = {}
        for name, size, variants in (("synthesis", synthesis_batch, synthesis), ("distillation", batch, distillation)):
            flops = count_flops(variants["core, eager"])
            measured[name] = {"batch": size, "flops": flops, **time_in_turn(variants, device, rounds)}
        return measured


def make_core(
    teacher: Path, student: str, device: torch.device, synthesis_batch: int, batch: int, compiled: bool
) -> tuple[Step, Step]:
    """Make the two steps of the program itself, as `gapssg distill` runs them."""
    settings = DistillSettings.model_validate(
        {
            "teacher": teacher,
            "student": {"name": student},
            "batch_size": batch,
            "method": {"synthesis_batch_size": synthesis_batch, "generator_steps": 100_000},
            "runtime": {"device": str(device), "compile": compiled},
        }
    )
    runtime = Runtime.from_settings(settings.runtime, 0)
    # Two, because a synthesis that is suspended in a step observes its teacher and freezes its student.
    synthesising, distilling = (Distillation(settings, runtime, load_model(teacher)) for _ in range(2))
    steps = synthesising.synthesizer.synthesis_steps(synthesising.student, 0)
    images = torch.rand(batch, *SHAPE, device=device)
    stream = runtime.random_stream("augmentation", 0)
    distilling.student.train()
    return lambda: next(steps), lambda: distilling.step(images, distilling.augmentation.draw(batch, stream))


def time_in_turn(variants: dict[str, Step], device: torch.device, rounds: int) -> dict[str, Any]:
    """Time each variant once a round, after two calls that are not counted; return seconds a step."""
    for step in variants.values():
        step(), step()
    seconds: dict[str, list[float]] = {label: [] for label in variants}
    for _ in range(rounds):
        for label, step in variants.items():
            synchronize(device)
            started = time.perf_counter()
            step()
            synchronize(device)
            seconds[label].append(time.perf_counter() - started)
    medians = {label: statistics.median(values) for label, values in seconds.items()}
    return {"seconds": medians, "all_seconds": seconds, "rounds": rounds}


def measure_peaks(device: torch.device) -> dict[str, float]:
    """Measure GFLOP/s of large matrix products and convolutions in this process."""
    peaks = {}
    side = 8192 if device.type == "cuda" else 2048
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        peaks[f"{name} matrix product"] = rate(lambda a=left, b=right: a @ b, 2 * side**3, device)
        channels, count = 256, 64
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device, dtype=dtype)
        layer = layer.to(memory_format=torch.channels_last)
        inputs = torch.randn(count, channels, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * count * 32 * 32
        with torch.no_grad():
            peaks[f"{name} convolution"] = rate(lambda c=layer, x=inputs: c(x), flops, device)
    return peaks


def rate(call: Step, flops: int, device: torch.device, repetitions: int = 7) -> float:
    """Return the best GFLOP/s of several calls: a peak is what the hardware can do."""
    call()
    best = float("inf")
    for _ in range(repetitions):
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        best = min(best, time.perf_counter() - started)
    return flops / best / 1e9


def count_flops(step: Step) -> int:
    """Count the floating-point operations of the convolutions and matrix products of one step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def make_card(architecture: str) -> ModelCard:
    """Describe a teacher of 32x32 colour images in 10 classes."""
    return ModelCard(
        architecture=architecture,
        num_classes=10,
        input_shape=SHAPE,
        mean=(0.5,) * 3,
        deviation=(0.25,) * 3,
        crop_padding=4,
        flip=True,
        class_names=tuple("0123456789"),
        provenance=Provenance(command="benchmark"),
    )


def print_pair(pair: str, measured: dict[str, Any], peaks: dict[str, float]) -> None:
    """Print one Markdown table for each of the two steps."""
    for name, step in measured.items():
        print(f"\n{pair}: {name}, batch {step['batch']}, {step['flops'] / 1e9:.1f} GFLOP a step\n")
        print("| variant | s a step | times plain | GFLOP/s | of the bf16 convolution peak |")
        print("| --- | ---: | ---: | ---: | ---: |")
        for label, seconds in step["seconds"].items():
            gflops = step["flops"] / seconds / 1e9
            share = gflops / peaks["bf16 convolution"]
            print(
                f"| {label} | {seconds:.3f} | {step['seconds']['plain'] / seconds:.2f} | {gflops:.0f} | {share:.0%} |"
            )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Name the machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = _values(info.read_text(), "model name")
        processor = next(lines, processor)
    return {
        "processor": processor,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _values(text: str, key: str) -> Iterator[str]:
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
