"""What a GPU does in a synthesis and a distillation step of the published method, and what the host does meanwhile.

    python -m benchmarks.gpu_profile --pairs wrn40_2-wrn16_1 --compile

Kernel time by kind, kernels per step, and calls of the CUDA runtime per step: a captured step launches one graph and
synchronises never. The milliseconds per step are measured without the profiler.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.core import Size, make_core
from benchmarks.machine import Step, describe_machine, print_machine, print_table, time_in_turn, write_results
from benchmarks.results_page import RESULTS
from benchmarks.steps import PAIRS
from gapssg.core.training_step import EAGER_CALLS

STEPS = 10
KINDS = {
    "convolution": r"conv|xmma|implicit|dgrad|wgrad|fprop|cudnn_infer|sm\d+_|cutlass|gemm|gemv",
    "batch norm": r"batch_norm|bn_",
    "fused by the compiler": r"^triton_",
    "optimizer": r"adam|sgd|multi_tensor",
    "copy or layout": r"copy|memcpy|memset|nchw|nhwc|transpose|direct_copy|cat",
    "reduction": r"reduce|norm",
    "element by element": r"elementwise|vectorized|pool|gather|index|upsample",
}
"""Kinds of kernels by a pattern of their names; the first that fits."""


def main() -> None:
    """Profile, print tables, write CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--compile", action="store_true", help="also profile the compiled steps")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu-profile.csv")
    arguments = parser.parse_args()
    device = torch.device("cuda", 0)
    machine = describe_machine(device)
    print_machine(machine)
    rows: list[dict[str, Any]] = []
    for pair in arguments.pairs:
        for compiled in (False, True)[: 1 + arguments.compile]:
            core = make_core(Size(*PAIRS[pair]), device, compiled)
            for name, step in (("synthesis", core.synthesis), ("distillation", core.distillation)):
                about = {"pair": pair, "step": name, "compiled": compiled}
                found = profile_step(step, device)
                rows += [about | row for row in found]
                headings = tuple(found[0])
                print_table(
                    f"{pair}, {name}, {'compiled' if compiled else 'eager'}",
                    headings,
                    [tuple(row.values()) for row in found],
                )
            write_results(arguments.output, rows, machine)


def profile_step(step: Step, device: torch.device) -> list[dict[str, Any]]:
    """Return a row for each kind of kernel and each function of the CUDA runtime; all figures are per step."""
    for _ in range(EAGER_CALLS + 2):
        step()
    wall = median(time_in_turn({"step": step}, device, 15)["step"]) * 1e3
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize(device)
    spent, kernels, calls, longest = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            kind = kind_of(event.name)
            spent[kind] += event.device_time / 1e3
            kernels[kind] += 1
            longest[event.name] += event.device_time
        elif re.match(r"cu(da)?[A-Z]", event.name):
            calls[event.name] += 1
    for name, time in longest.most_common(25):
        print(f"{time / STEPS:9.1f} us  {kind_of(name):22} {name[:140]}")
    rows = [
        {"what": kind, "ms": round(ms / STEPS, 4), "calls": kernels[kind] / STEPS} for kind, ms in spent.most_common()
    ]
    rows += [{"what": name, "ms": "", "calls": count / STEPS} for name, count in calls.most_common()]
    total = {"what": "all kernels", "ms": round(sum(spent.values()) / STEPS, 4), "calls": sum(kernels.values()) / STEPS}
    return [{"what": "step", "ms": round(wall, 4), "calls": 1.0}, total, *rows]


def kind_of(name: str) -> str:
    """Return the kind of a kernel."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


if __name__ == "__main__":
    main()
