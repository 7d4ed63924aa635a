"""Runs that are killed again and again, and runs that are very long; `benchmarks/soak.py` measures more of them."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from gapssg import DistillSettings, distill
from gapssg.core.runtime import computes_bf16_natively
from gapssg.runs.directory import SilentDisplay
from gapssg.runs.events import Epoch, Event
from gapssg.synthesis import method_classes
from tests.run_fixtures import files_of
from tests.tiny import tiny_model, write_tiny_teacher

DISTILL = ["--epochs", "3", "--set", "batch_size=16", "--set", "method.synthesis_batch_size=32", "--device", "cpu"]
GAPSSG = [*DISTILL, "--method", "gapssg", "--set", "method.generator_steps=5"]
SMALL = {
    "generator_steps": 5,
    "generator_width": 8,
    "pixel_steps": 5,
    "rounds": 3,
    "distillation_steps": 5,
    "bank_size": 64,
    "negatives": 16,
}
AT_EACH_STEP = ["--checkpoint-minutes", "0.000001"]
PRETRAIN = ["--data", "digits", "--model", "wrn16_1", "--epochs", "1", "--device", "cpu", "--precision", "fp32"]
PRELOADED = [
    "gapssg.cli.app",
    "gapssg.cli.distill",
    "gapssg.cli.pretrain_teacher",
    "gapssg.training.distill",
    "gapssg.training.pretrain_teacher",
    "sklearn.datasets",
]
TINY_METHOD = {"synthesis_batch_size": 2, "generator_steps": 2, "generator_width": 4}

# Memory that may vary between two measurements: the C library keeps freed blocks of some sizes for later use.
ALLOWED_GROWTH_BYTES = 24e6


class Survival(NamedTuple):
    """The outcome of a killed run.

    Attributes:
        kills: SIGKILLs that met a living process.
        resumed: Processes that resumed from a checkpoint; the others restarted, before there was one.
        unfinished_writes: Kills that met a file half-written, under its temporary name.
        differing: Files that are not as in the run that nobody killed.
    """

    kills: int
    resumed: int
    unfinished_writes: int
    differing: int


def commands(teacher: Path) -> dict[str, list[str]]:
    """Return the command lines of the runs, without `--output`."""
    with_teacher = ["distill", "--teacher", str(teacher), "--student", "wrn16_1"]
    runs = {
        "pretrain-teacher": ["pretrain-teacher", *PRETRAIN, *AT_EACH_STEP],
        "distill": [*with_teacher, *GAPSSG, "--precision", "fp32"],
        "distill, a checkpoint at each step": [*with_teacher, *GAPSSG, *AT_EACH_STEP, "--precision", "fp32"],
    }
    for method in method_classes():
        name = method.model_fields["name"].default
        small = [f"method.{key}={value}" for key, value in SMALL.items() if key in method.model_fields]
        changes = [word for text in small for word in ("--set", text)]
        if name != "gapssg":
            runs[f"distill by {name}"] = [*with_teacher, *DISTILL, "--method", name, *changes, "--precision", "fp32"]
    if computes_bf16_natively(torch.device("cpu")):
        runs["distill in bf16"] = [*with_teacher, *GAPSSG, "--precision", "bf16"]
    return runs


def survive_kills(command: Sequence[str], folder: Path, kills: int, seed: int) -> Survival:
    """Run a command line whole and, beside it, killed at random moments; compare what they leave.

    A run that ends between two kills is compared and restarted, so that every kill hits a running process.
    """
    whole, run = folder / "whole", folder / "run"
    complete(start(["--version"]))  # the next processes need not import torch
    began = time.monotonic()
    complete(start([*command, "--output", str(whole)]))
    seconds = time.monotonic() - began
    expected = files_of(whole)
    # Every other kill comes after the first checkpoint and, if there is one at each step, hits a half-written file.
    checkpoint, awaited = run / "checkpoint" / "latest.safetensors", "*.tmp" if AT_EACH_STEP[0] in command else "*"
    draw = random.Random(seed)
    killed = resumed = unfinished = differing = 0
    while True:
        can_resume = checkpoint.exists()
        resumed += can_resume
        # Before the first checkpoint the run cannot resume and restarts.
        restart = [*command, "--output", str(run), "--overwrite"]
        process = start([command[0], "--resume", str(run)] if can_resume else restart)
        process.join(draw.uniform(0, seconds) if killed < kills else None)
        while killed % 2 and process.exitcode is None and not (checkpoint.exists() and any(run.rglob(awaited))):
            pass
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            killed += 1
            unfinished += any(run.rglob("*.tmp"))
            continue
        complete(process)
        found = files_of(run)
        differing += sum(found.get(name) != expected.get(name) for name in found | expected)
        if killed == kills:
            return Survival(killed, resumed, unfinished, differing)
        shutil.rmtree(run)


def complete(process: multiprocessing.process.BaseProcess) -> None:
    """Wait for a process.

    Raises:
        RuntimeError: It failed.
    """
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"a run that nobody killed ended with {process.exitcode}")


def start(arguments: Sequence[str]) -> multiprocessing.process.BaseProcess:
    """Start the program in a process of its own, forked from one that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run_program, args=(list(arguments),))
    process.start()
    return process


def _run_program(arguments: list[str]) -> None:
    from gapssg.__main__ import main as program

    with open(os.devnull, "w") as nowhere:
        sys.stdout = nowhere
        sys.argv = ["gapssg", *arguments]
        program()


class Look(NamedTuple):
    """The resources of a process after an epoch.

    Attributes:
        epoch: Counted from 1.
        resident_bytes: Memory of the process, without the images of the pool.
        open_files: Its file descriptors.
        threads: Its threads.
        files: Files in the run directory, without those of the pool, of which there is one an epoch.
    """

    epoch: int
    resident_bytes: int
    open_files: int
    threads: int
    files: int


class _Looking(SilentDisplay):
    def __init__(self, run: Path, every: int, bytes_an_epoch: int) -> None:
        self.run = run
        self.every = every
        self.bytes_an_epoch = bytes_an_epoch
        self.looks: list[Look] = []

    def event(self, event: Event) -> None:
        if not isinstance(event, Epoch) or event.epoch % self.every:
            return
        epoch = event.epoch
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = sum(path.is_file() and path.parent.name != "pool" for path in self.run.rglob("*"))
        handles = len(os.listdir("/proc/self/fd"))
        pool = epoch * self.bytes_an_epoch
        self.looks.append(Look(epoch, resident - pool, handles, threading.active_count(), files))


def long_run(folder: Path, epochs: int, every: int) -> list[Look]:
    """Distil a network of a few weights, whose steps take no time, for many epochs; look at the process."""
    with tiny_model():
        write_tiny_teacher(folder / "tiny.safetensors")
        settings = DistillSettings.model_validate(
            {
                "teacher": folder / "tiny.safetensors",
                "student": {"name": "tiny"},
                "epochs": epochs,
                "batch_size": 64,
                "method": {**TINY_METHOD, "name": "gapssg", "latent_size": 4, "passes": 1},
                "runtime": {"device": "cpu", "precision": "fp32", "compile": False},
            }
        )
        display = _Looking(folder / "long", every, 2 * 3 * 16 * 16)
        distill(settings, folder / "long", display=display)
    return display.looks


def growth(looks: Sequence[Look]) -> list[str]:
    """Name what grew in a long run after its first tenth."""
    first, *_, last = looks[len(looks) // 10 :]
    grown = {
        "memory": last.resident_bytes > first.resident_bytes + ALLOWED_GROWTH_BYTES,
        "open files": last.open_files > first.open_files,
        "threads": last.threads > first.threads,
        "files": last.files > 120,  # 101 sample grids and the files of every run
    }
    return [name for name, does in grown.items() if does]
