"""Time per step of one and several processes of one thread each, their traffic, and a model of many GPUs.

    python -m benchmarks.scaling                      processes 1 and 2 of one thread each, then the model
    python -m benchmarks.scaling --quick              small networks and batches, as a smoke test: a minute
    python -m benchmarks.scaling --device cuda        up to 8 processes with a GPU each (NCCL), as many as there are

The processes share batches of the same size (strong scaling): the published ones and, with few rounds, those of which
each process has `--images`, which tell from how many on it is worth starting another process. The model of W devices
adds two things. The step of one device is measured with the share of a batch, 1/W of it, so that it includes everything
that does not become shorter with the share. Each collective operation costs a latency, and its bytes at the stated
bandwidth of the slowest link, in a ring: 2 (W - 1) / W of summed and (W - 1) / W of gathered bytes. Nothing overlaps,
and all devices are equally fast. The bytes are those of two processes; gathered statistics, a small part, grow with W.
The model has not been compared with many GPUs.

It also compares a pool that every process holds whole, as in the program, with one of which each holds a share: the
seconds to get a process's share of a batch drawn from 51,200 images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks.core import Size, make_core
from benchmarks.machine import describe_machine, print_machine, print_table, time_in_turn, write_results
from benchmarks.results_page import RESULTS
from gapssg.core.runtime import Runtime
from gapssg.settings.parts import RuntimeSettings

if TYPE_CHECKING:
    from torch import Tensor

    from gapssg.core.processes import Processes

STEPS = ("synthesis", "distillation")
POOL = 51_200
"""Images in the pool of a published run at its end."""
_ROUNDS_OF_OTHER_BATCHES = 3


class Links(NamedTuple):
    """Devices and the slowest link between them.

    Attributes:
        name: The machines.
        devices: Number of devices.
        bandwidth: Bytes per second that a device sends and receives.
        latency: Seconds of a collective operation of a few bytes.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float


# Stated by the vendors: 900 GB/s of NVLink 4 for a GPU, half in each direction, and 400 Gbit/s of InfiniBand for a GPU.
# The latencies are usual ones of NCCL.
MODELLED = (
    Links("8 GPUs of one machine, NVLink", 8, 450e9, 20e-6),
    Links("4 machines of 8 GPUs, InfiniBand", 32, 50e9, 40e-6),
    Links("4 machines of 8 GPUs, 100 Gbit/s Ethernet each", 32, 100e9 / 8 / 8, 100e-6),
)


def main() -> None:
    """Measure, print tables, write CSV; results of --quick are not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", help="1 2, or on GPUs 1 2 4 8 as far as there are so many")
    parser.add_argument("--images", type=int, nargs="*", default=[16, 32, 64, 128, 256], help="of each process")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="scaling.csv, on GPUs scaling-gpu.csv")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = Size("wrn16_1", "wrn16_1", 16, 64, 64) if arguments.quick else Size(batch=256)
    if arguments.worker is not None:
        measure(arguments, size)
        return
    device = Runtime.from_settings(RuntimeSettings(device=arguments.device), 0).device
    machine = {**describe_machine(device), "threads": 1} if device.type == "cpu" else describe_machine(device)
    print_machine(machine)
    gpus = torch.cuda.device_count() if device.type == "cuda" else 2
    worlds = arguments.processes or [each for each in (1, 2, 4, 8) if each <= gpus]
    rows = scaling(worlds, arguments, size)
    print_scaling(rows)
    shares = measure_shares(size, device, arguments.rounds)
    rows += model(shares, rows, size)
    if not arguments.quick:
        name = "scaling.csv" if device.type == "cpu" else "scaling-gpu.csv"
        write_results(arguments.output or RESULTS / name, rows, machine)


def scaling(worlds: list[int], arguments: argparse.Namespace, size: Size) -> list[dict[str, Any]]:
    """Measure the steps of groups of processes; one process makes those of all groups."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for world in worlds:
            file = Path(folder) / f"{world}.json"
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] * (world > 1)
            several = [each for each in worlds if each > 1] if world == 1 else [world]
            others = {images * each for images in arguments.images for each in several} - {size.batch}
            own = ["-m", "benchmarks.scaling", "--worker", str(file), "--rounds", str(arguments.rounds)]
            own += ["--device", arguments.device, *["--quick"] * arguments.quick]
            own += ["--batches", *map(str, [size.batch, *sorted(others)])]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([sys.executable, *launcher, *own], check=True, env=environment)
            rows += json.loads(file.read_text())
    return rows


def measure(arguments: argparse.Namespace, size: Size) -> None:
    """Measure the steps of this process, which torchrun may have started as one of several; rank 0 writes them."""
    torch.set_num_threads(1)
    processes = None
    if "RANK" in os.environ:
        from gapssg.core.processes import Processes

        processes = Processes.join(os.environ)
    device = Runtime.from_settings(RuntimeSettings(device=arguments.device), 0, processes).device
    found = []
    for batch in arguments.batches:
        rounds = arguments.rounds if batch == size.batch else min(arguments.rounds, _ROUNDS_OF_OTHER_BATCHES)
        found += measure_batch(size._replace(synthesis_batch=batch, batch=batch), device, rounds, processes)
    if processes is not None:
        found += measure_pools(size, device, arguments.rounds, processes)
    if processes is None or processes.rank == 0:
        arguments.worker.write_text(json.dumps(found))
    if processes is not None:
        processes.leave()


def measure_batch(size: Size, device: torch.device, rounds: int, processes: Processes | None) -> list[dict[str, Any]]:
    """Measure the steps of this process."""
    precision = "fp32" if device.type == "cpu" else "auto"
    core = make_core(size, device, precision=precision, processes=processes)
    found = []
    for name in STEPS:
        step = getattr(core, name)
        traffic = {"operations": 0, "gathered": 0, "summed": 0}
        if processes is not None:
            step()
            before = dict(vars(processes.traffic))
            step()
            traffic = {key: value - before[key] for key, value in vars(processes.traffic).items()}
        seconds = median(time_in_turn({name: step}, device, rounds)[name])
        world = 1 if processes is None else processes.world
        found.append(row_of("measured", f"{world} processes", world, name, size.batch, seconds, **traffic))
    return found


def measure_pools(size: Size, device: torch.device, rounds: int, processes: Processes) -> list[dict[str, Any]]:
    """Measure how long a process needs for its share of a batch if it holds the whole pool, and if it holds a share.

    All processes draw the same indices for the whole batch, so that their number changes no random number. Of a shared
    pool, image i is in process i mod W, and each process sends the others what they need of its own.
    """
    world, rank = processes.world, processes.rank
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(256, (POOL, 3, size.side, size.side), dtype=torch.uint8, generator=generator).to(device)
    own = pool[rank::world].clone()
    found: dict[str, Tensor] = {}

    def whole() -> None:
        indices = torch.randint(POOL, (size.batch,), generator=generator).to(device)
        found["images"] = pool[processes.share(indices)]

    def shared() -> None:
        needed = torch.randint(POOL, (size.batch,), generator=generator).view(world, -1)  # by process
        sent = [row[row % world == rank] // world for row in needed]
        origins = needed[rank] % world
        counts = torch.bincount(origins, minlength=world).tolist()
        received = pool.new_empty((size.batch // world, *pool.shape[1:]))
        torch.distributed.all_to_all_single(
            received, own[torch.cat(sent).to(device)], counts, [len(each) for each in sent]
        )
        found["images"] = received[origins.argsort(stable=True).argsort().to(device)]

    for variant in (whole, shared):  # the same images, or the comparison says nothing
        generator.manual_seed(1)
        variant()
        generator.manual_seed(1)
        expected = pool[processes.share(torch.randint(POOL, (size.batch,), generator=generator).to(device))]
        if not torch.equal(found["images"], expected):
            raise SystemExit(f"{variant.__name__} pools return other images")
    seconds = {
        name: median(times)
        for name, times in time_in_turn({"whole": whole, "shared": shared}, device, 20 * rounds).items()
    }
    received = pool[0].nbytes * size.batch // world * (world - 1) // world  # from the others
    return [
        row_of("pool", f"{world} processes", world, "whole", size.batch, seconds["whole"]),
        row_of("pool", f"{world} processes", world, "shared", size.batch, seconds["shared"], 1, received),
    ]


def row_of(
    kind: str,
    machines: str,
    world: int,
    step: str,
    batch: int,
    seconds: float,
    operations: int = 0,
    gathered: int = 0,
    summed: int = 0,
) -> dict[str, Any]:
    """Return a row of the CSV file; traffic is that of one step in one process, in bytes."""
    return {
        "kind": kind,
        "machines": machines,
        "processes": world,
        "step": step,
        "batch": batch,
        "seconds": seconds,
        "operations": operations,
        "gathered_bytes": gathered,
        "summed_bytes": summed,
    }


def print_scaling(rows: list[dict[str, Any]]) -> None:
    """Print the measured steps; efficiency is the speedup over one process divided by the number of processes."""
    shown = []
    for row in (each for each in rows if each["kind"] == "measured"):
        same = (each for each in rows if (each["step"], each["batch"]) == (row["step"], row["batch"]))
        alone = next((each["seconds"] for each in same if each["processes"] == 1), None)
        efficiency = "-" if alone is None else f"{alone / row['seconds'] / row['processes']:.0%}"
        traffic = f"{row['summed_bytes'] / 1e6:.2f}", f"{row['gathered_bytes'] / 1e6:.2f}", row["operations"]
        images = f"{row['batch'] / row['seconds']:,.0f}"
        shown.append(
            (row["step"], row["batch"], row["processes"], f"{row['seconds']:.4f}", images, efficiency, *traffic)
        )
    traffic_headings = ("MB summed", "MB gathered", "operations")
    headings = ("step", "batch", "processes", "s/step", "images/s", "efficiency", *traffic_headings)
    print_table("Processes that share a batch, on processors with one thread each", headings, shown)
    pools = [(row["step"], row["processes"], f"{1000 * row['seconds']:.2f}") for row in rows if row["kind"] == "pool"]
    if pools:
        print_table(f"A process's share of a batch from a pool of {POOL:,} images", ("pool", "processes", "ms"), pools)


def measure_shares(size: Size, device: torch.device, rounds: int) -> dict[int, dict[str, float]]:
    """Measure the steps of one device by the number of devices that share the batches."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    found: dict[int, dict[str, float]] = {}
    for devices in sorted({1, *(links.devices for links in MODELLED)}):
        shares = (max(2, batch // devices) for batch in (size.synthesis_batch, size.batch))
        core = make_core(Size(*size[:3], *shares), device)
        variants = {name: getattr(core, name) for name in STEPS}
        found[devices] = {name: median(times) for name, times in time_in_turn(variants, device, rounds).items()}
    return found


def model(shares: dict[int, dict[str, float]], rows: list[dict[str, Any]], size: Size) -> list[dict[str, Any]]:
    """Print and return the modelled steps of many devices."""
    found, shown = [], []
    for links in MODELLED:
        world = links.devices
        for name, batch in zip(STEPS, (size.synthesis_batch, size.batch), strict=True):
            own = (row for row in rows if (row["step"], row["batch"]) == (name, batch))
            measured = next((row for row in own if row["operations"]), None)
            if measured is None:
                continue
            traffic = {key: measured[f"{key}_bytes"] for key in ("gathered", "summed")}
            sent = (world - 1) / world * (2 * traffic["summed"] + traffic["gathered"])
            exchange = sent / links.bandwidth + measured["operations"] * links.latency
            seconds = shares[world][name] + exchange
            speedup = shares[1][name] / seconds
            shown.append((links.name, name, f"{shares[world][name]:.4f}", f"{exchange:.4f}", f"{speedup:.1f}"))
            operations = measured["operations"]
            found.append(row_of("modelled", links.name, world, name, batch, seconds, operations, **traffic))
    for links in MODELLED:
        print(f"{links.name}: {links.bandwidth / 1e9:.3g} GB/s for a device, {links.latency * 1e6:.0f} us an operation")
    print_table(
        "Model, not measured: a batch shared by many such devices",
        ("machines", "step", "s of the share (measured)", "s of exchange (model)", "speedup over one device"),
        shown,
    )
    alone = [row_of("measured", "1 device", 1, name, 0, shares[1][name]) for name in STEPS]
    return [*alone, *found]


if __name__ == "__main__":
    main()
