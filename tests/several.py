"""What the tests of several processes run in each of them: every method in float64, without a run directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gapssg import DistillSettings
from gapssg.core.runtime import Runtime
from gapssg.models.model_file import load_model
from gapssg.runs.directory import UnwrittenRun
from gapssg.training.distillation import Distillation
from tests.methods import METHODS
from tests.tiny import tiny_model

CPU = torch.device("cpu")
STEPS = 20
"""Steps of synthesis and distillation of each method."""
_ALONG = {"rounds": 2, "generator_steps": 2, "distillation_steps": 3}
_SYNTHESIS = {"generator_steps": 5, "pixel_steps": 5}


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute everything that the package computes in float32 in float64, for a tolerance of its rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    places = ("synthesis.pool_synthesizer", "evaluation.predict", "training.pretrain_teacher")
    patches = [mock.patch(f"gapssg.{place}.to_unit_range", lambda images: images.double() / 255) for place in places]
    patches.append(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        mock.patch.stopall()
        torch.set_default_dtype(before)


def method_settings(name: str) -> dict[str, Any]:
    """Return the settings of a method for `STEPS` steps in two epochs."""
    values = METHODS[name]
    if "rounds" in values:
        return {"name": name, **values, **_ALONG}
    # Without a warm-up, whose epochs only synthesise. Noise takes one step.
    steps = {key: value for key, value in _SYNTHESIS.items() if key in values}
    fixed = {"distillation_steps": 5 if steps else 9, **({"warm_up": 0.0} if "warm_up" in values else {})}
    return {"name": name, **values, **steps, **fixed}


def make_settings(teacher: Path, name: str, **changes: Any) -> DistillSettings:
    """Return the settings of a run of a method with a tiny student."""
    values = {"student": {"name": "tiny"}, "epochs": 2, "batch_size": 8, "teacher": teacher}
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    method = method_settings(name)
    return DistillSettings.model_validate({**values, "runtime": runtime, "method": method, **changes})


def trace(teacher: Path, name: str, runtime: Runtime) -> dict[str, Tensor]:
    """Make a run of a method; return the loss of every step, the student's weights and the state of the synthesis."""
    settings = make_settings(teacher, name)
    torch.set_default_dtype(torch.float32)  # in which the file is
    loaded = load_model(teacher)
    loaded.module.double()
    torch.set_default_dtype(torch.float64)
    distillation = Distillation(settings, runtime, loaded)
    run = UnwrittenRun(Path("unwritten"), settings)
    losses: list[Tensor] = []
    for _ in range(settings.epochs):
        for phase in distillation.phases(run):
            for _ in phase.work:
                synthesis = distillation._terms.get("synthesis_loss")
                losses.append((distillation.trainee.loss_sum if synthesis is None else synthesis).clone())
        distillation.end_epoch(run, None)
    weights = {f"student.{key}": value for key, value in distillation.student.state_dict().items()}
    state = {f"synthesis.{key}": value for key, value in distillation.synthesizer.state_dict().items()}
    fresh = {"fresh": distillation.synthesizer.fresh}
    return {key: value.clone() for key, value in {"losses": torch.stack(losses), **weights, **state, **fresh}.items()}


class Layered(nn.Module):
    """Batch norms of several kinds, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 3)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, momentum=0.3)]
        )
        self.untracked = nn.BatchNorm2d(6, track_running_stats=False)
        self.dropouts = nn.Sequential(nn.Dropout(0.3), nn.Dropout2d(0.3))
        self.flat = nn.BatchNorm1d(6)

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolution(images)
        for norm in self.norms:
            features = norm(features.tanh() + 0.1 * features)
        features = self.dropouts(features)
        found: Tensor = self.flat(features.mean((2, 3))).sin()
        return found


def trace_layers(runtime: Runtime) -> dict[str, Tensor]:
    """Return what the layers that see the whole batch compute, with gradients."""
    draw = torch.Generator().manual_seed(0)
    network, images = Layered(), torch.randn(8, 3, 6, 6, generator=draw)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.5, 0.5, generator=draw)
    images.requires_grad_()
    with runtime.seeded_globals("modules"), runtime.whole_batch_layers():
        (outputs,) = runtime.whole(network(runtime.share(images)))
    (outputs.square() * torch.arange(6) + outputs.exp()).mean().backward()
    runtime.average_gradients([images, *network.parameters()])
    state = {f"layers.{key}": value for key, value in network.state_dict().items()}
    gradients = {f"layers.{key}.gradient": each.grad for key, each in network.named_parameters()}
    found = {"layers.outputs": outputs, "layers.images.gradient": images.grad, **gradients, **state}
    return {key: value.detach() for key, value in found.items() if value is not None}


def start(world: int, *arguments: object) -> list[subprocess.Popen[str]]:
    """Start workers with one thread each and torchrun's variables: `python -m tests.several ARGUMENTS`."""
    port = str(free_port())
    common = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(world), "PYTHONPATH": os.pathsep.join(sys.path)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.several", *map(str, arguments)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def free_port() -> int:
    """Return a port that no process listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def trace_all(teacher: str, output: str, *names: str) -> None:
    """Trace the methods in one of several processes, the first of them twice; write a file for each."""
    from gapssg.core.processes import Processes

    torch.set_num_threads(1)
    processes = Processes.join(os.environ)
    runtime = Runtime(CPU, "fp32", False, 0, processes=processes)
    with tiny_model(), in_float64():
        save_file(trace_layers(runtime), Path(output) / f"layers-{processes.rank}.safetensors")
        for place, name in [*((name, name) for name in names), ("again", names[0])]:
            found = {key: value.contiguous() for key, value in trace(Path(teacher), name, runtime).items()}
            save_file(found, Path(output) / f"{place}-{processes.rank}.safetensors")
    processes.leave()


if __name__ == "__main__":
    {"trace": trace_all}[sys.argv[1]](*sys.argv[2:])
