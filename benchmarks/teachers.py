"""Kinds of teachers, as people have them: trained, written as another program would, imported by a command, distilled.

    python -m benchmarks.teachers                                    every kind, one after the other
    python -m benchmarks.teachers --jobs 8                           eight at once, for a GPU and many cores
    python -m benchmarks.teachers --kinds pth swin --epochs 2        a trial

The networks are trained on the digits (at 32 pixels, unless the row says otherwise) by a plain training loop, and
written in the form of the row; kinds that share a network share its training. Then `gapssg import-teacher` and `gapssg
distill` (a WRN-16-1, default settings) are run as commands; `command` is the import as typed. `before` is the top-1 on
the test images of the network in PyTorch, `imported` that of the imported file, `top1` the student's after the last
epoch. `seconds` are of the distillation, beside `jobs` - 1 others. Existing cells are reused, so an interruption costs
at most one of each job; all cells are merged into the output. Needs timm, transformers, onnx, onnxscript, onnxruntime.
What gapssg itself needs must be installed for this Python: files are read by processes that ignore PYTHONPATH.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import teacher_files as files
from benchmarks.machine import describe_machine, print_table, write_rows
from benchmarks.results_page import RESULTS
from benchmarks.strangers_pairs import train
from benchmarks.teacher_kinds import KINDS, NETWORKS, Kind, Network
from gapssg.core.augment import Augmentation, Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.image_set import ImageSet
from gapssg.evaluation.predict import score_on
from gapssg.files import write_json
from gapssg.models import create_model
from gapssg.settings.parts import RuntimeSettings

_TOP1 = "benchmark.top1"
STUDENT, ROOT = "wrn16_1", Path(__file__).parents[1]
WEIGHTS = {".pth", ".ckpt", ".bin", ".safetensors"}


def main() -> None:
    """Run the missing cells, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=1, help="students of each teacher")
    parser.add_argument("--epochs", type=int, help="of a distillation; by default gapssg's")
    parser.add_argument("--jobs", type=int, default=1, help="kinds at once")
    parser.add_argument("--directory", type=Path, default=Path("runs/teachers"))
    parser.add_argument("--output", type=Path, default=RESULTS / "teachers.csv")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))
    arguments.directory.mkdir(parents=True, exist_ok=True)
    run = partial(run_kind, arguments.directory.absolute(), arguments.seeds, arguments.epochs, arguments.jobs)
    cells, failed = [], []
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        for done in as_completed([pool.submit(run, name) for name in arguments.kinds]):
            failed += [said] if (said := done.result()) else []
            if cells := merged(arguments.directory, arguments.output):
                write_rows(arguments.output, cells)
    print_summary(cells)
    if failed:
        raise SystemExit("\n".join(failed))


def run_kind(directory: Path, seeds: int, epochs: int | None, jobs: int, name: str) -> str:
    """Import a kind of teacher and distil its students, unless that is done; return why it failed, or nothing."""
    try:
        teacher = imported(directory, name)
        for seed in range(seeds):
            run_cell(directory, teacher, epochs, jobs, seed)
    except subprocess.CalledProcessError as error:
        return f"{name}: {shlex.join(error.cmd[2:])}: {error.stderr.strip()}"
    except Exception as error:  # of any library; the other kinds go on
        return f"{name}: {type(error).__name__}: {error}"
    return ""


def imported(directory: Path, name: str) -> dict[str, Any]:
    """Write and import a teacher, unless that is done; return its part of a cell."""
    kind, folder = KINDS[name], directory / name
    done = folder / "imported.json"
    if done.exists():
        return dict(json.loads(done.read_text()))
    folder.mkdir(exist_ok=True)
    module, top1 = trained(directory, kind.network)
    network = NETWORKS[kind.network]
    images = network.images("train")
    kind.write(module, images, folder / kind.file)
    if network.change:
        files.write_folder(images, folder / "images" / "train")
        files.write_folder(network.images("test"), folder / "images" / "test")
    command = import_command(kind, images)
    started = time.perf_counter()
    result, said = gapssg(command, folder)
    teacher = {
        "kind": name,
        "what": kind.what,
        "network": network.name,
        "file": kind.file,
        "command": f"gapssg {command}",
        "recognised": "; ".join(said.splitlines()),
        "before": round(top1, 4),
        "imported": round(result["top1"], 4),
        "import_seconds": round(time.perf_counter() - started, 1),
    }
    write_json(done, teacher)
    return teacher


def trained(directory: Path, name: str) -> tuple[nn.Module, float]:
    """Return a network on the CPU, in evaluation mode, and its top-1, after training it if necessary."""
    network, path = NETWORKS[name], directory / f"{name}.safetensors"
    images, runtime = network.images("train"), Runtime.from_settings(RuntimeSettings(), 0)
    shape = images.input_shape
    module = create_model(
        network.name, num_classes=images.num_classes, input_shape=shape, seed=1, arguments=network.arguments
    )
    if path.exists():
        stored = load_file(path)
        top1 = stored.pop(_TOP1).item()
        module.load_state_dict(stored)
        return module.eval(), top1
    module.to(runtime.device).to(memory_format=torch.channels_last)
    normalization = Normalization.from_statistics(*files.statistics_of(images), runtime.device)
    train(module, images.to(runtime.device), network.training, normalization, Augmentation(4, False), seed=1)
    top1 = score_on(network.images("test").to(runtime.device), module, normalization, runtime).top1
    module.to("cpu").to(memory_format=torch.contiguous_format)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file({**module.state_dict(), _TOP1: torch.tensor(top1, dtype=torch.float64)}, unfinished)
    unfinished.replace(path)
    print(f"trained {name}: {top1:.2%}", flush=True)
    return module.eval(), top1


def data_options(network: Network, option: str) -> str:
    """Return the options that name the images."""
    height, width = network.size
    size = height if height == width else f"{height},{width}"
    return f"{option} folder:images" if network.change else f"{option} digits --image-size {size}"


def import_command(kind: Kind, images: ImageSet) -> str:
    """Return the import as it is typed in the folder of the file."""
    network, suffix, options = NETWORKS[kind.network], Path(kind.file).suffix, []
    if suffix in WEIGHTS:
        arguments = [f"--set model.arguments.{key}={value}" for key, value in network.arguments.items()]
        options += [f"--model {network.name}", *arguments, f"--num-classes {images.num_classes}"]
    options.append(f"--weights {kind.file}")
    if suffix in {*WEIGHTS, ".pt"}:
        options.append(f"--input-shape {','.join(map(str, images.input_shape))}")
    if images.num_classes == 2:
        options.append(f"--class-names {','.join(images.class_names)}")
    if "--input-range" not in kind.options:
        mean, deviation = (",".join(map(str, each)) for each in files.statistics_of(images))
        options.append(f"--mean {mean} --std {deviation}")
    options += [kind.options] if kind.options else []
    return " ".join(["import-teacher", *options, data_options(network, "--data"), "--output teacher.safetensors"])


def gapssg(command: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Run a command of gapssg in a folder; return its JSON, and what it printed beside that."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    argv = [sys.executable, "-m", "gapssg", *shlex.split(command), "--json", "--overwrite"]
    done = subprocess.run(argv, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout)), done.stderr


def run_cell(directory: Path, teacher: dict[str, Any], epochs: int | None, jobs: int, seed: int) -> None:
    """Distil a student, unless that is done."""
    name = teacher["kind"]
    network, label = NETWORKS[KINDS[name].network], f"{name}-{epochs or 'default'}-{seed}"
    file = directory / f"{label}.json"
    if file.exists():
        return
    budget = f" --epochs {epochs}" if epochs else ""
    trusted = f" --model-factory {network.name}" if "--model benchmarks." in teacher["command"] else ""
    data = data_options(network, "--eval-data")
    command = f"distill --teacher teacher.safetensors --student {STUDENT} {data} --seed {seed}{trusted}{budget}"
    started = time.perf_counter()
    result, _ = gapssg(f"{command} --output students/{label}", directory / name)
    cell = {
        **teacher,
        "seed": seed,
        "epochs": result["epochs"],
        "steps": result["distillation_steps"],
        "tflop": round((result["flops"] or 0) / 1e12, 2),
        "top1": round(result["student"]["top1"], 4),
        "agreement": round(result["student"]["agreement"], 4),
        "failures": "; ".join(result["failures"]),
        "seconds": round(time.perf_counter() - started),
        "jobs": jobs,
        "device": result["device"],
        **describe_machine(torch.device(result["device"])),
    }
    write_json(file, cell)
    print(
        f"{label}: {cell['before']:.2%} before, {cell['imported']:.2%} imported, student {cell['top1']:.2%} "
        f"in {cell['seconds']} s",
        flush=True,
    )


def merged(directory: Path, output: Path) -> list[dict[str, Any]]:
    """Return the cells of an earlier table and of the directory, in the order of `KINDS`."""
    rows = list(csv.DictReader(output.open(newline=""))) if output.exists() else []
    rows += [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    cells = {(list(KINDS).index(row["kind"]), int(row["epochs"]), int(row["seed"])): row for row in rows}
    return [cells[key] for key in sorted(cells)]


def print_summary(cells: list[dict[str, Any]]) -> None:
    """Print a row for each student."""
    rows = [
        (
            cell["kind"],
            cell["epochs"],
            *(f"{float(cell[key]):.2%}" for key in ("before", "imported", "top1")),
            cell["seconds"],
            cell["failures"] or "none",
        )
        for cell in cells
    ]
    print_table("kinds of teachers", ("kind", "epochs", "before", "imported", "student", "s", "failures"), rows)


if __name__ == "__main__":
    main()
