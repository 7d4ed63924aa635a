"""What the tests of several processes run in each of them: every method in float64, without a run directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gapssg import (
    DistillSettings,
    EvaluateSettings,
    InputError,
    PretrainSettings,
    Requests,
    Stopped,
    distill,
    evaluate,
    pretrain_teacher,
)
from gapssg.core.runtime import Runtime
from gapssg.models import create_model
from gapssg.models.model_file import load_model, save_model
from gapssg.runs.directory import UnwrittenRun
from gapssg.training.distillation import Distillation
from tests.conftest import make_card, write_images
from tests.interruptions import AskingDisplay
from tests.methods import METHODS
from tests.tiny import tiny_model

if TYPE_CHECKING:
    from gapssg.core.processes import Processes

CPU = torch.device("cpu")
STEPS = 20
"""Steps of synthesis and distillation of each method."""
TEACHER, IMAGES = "teacher.safetensors", "images"
SETTLED = "until settled"
RESUMED = ("gapssg-fast", "cmi", "mad", SETTLED)
"""The methods whose runs are stopped and resumed, and a run that may end early: they have all kinds of state."""
_ALONG = {"rounds": 2, "generator_steps": 2, "distillation_steps": 3}
_SYNTHESIS = {"generator_steps": 5, "pixel_steps": 5}


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute everything that the package computes in float32 in float64, for a tolerance of its rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    places = (
        "synthesis.labelled_views",
        "synthesis.pool_synthesizer",
        "evaluation.predict",
        "training.classifier_trainee",
    )
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
    method = method_settings("noise" if name == SETTLED else name)
    if name == SETTLED:  # as many steps, in more epochs
        values |= {"epochs": 10, "until_settled": True, "optimizer": {"schedule": "cosine"}}
        method["distillation_steps"] = 2
    return DistillSettings.model_validate({**values, "runtime": runtime, "method": method, **changes})


def trace(teacher: Path, name: str, runtime: Runtime) -> dict[str, Tensor]:
    """Make a run of a method; return the loss of every step, the student's weights and the state of the synthesis."""
    settings = make_settings(teacher, name)
    distillation = Distillation(settings, runtime, load_model(teacher))
    run = UnwrittenRun(Path("unwritten"), settings)
    losses: list[Tensor] = []
    for _ in range(settings.epochs):
        for phase in distillation.phases(run):
            for _ in phase.work:
                if phase.kind not in ("synthesis", "distillation"):
                    continue
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


def start(
    world: int, *arguments: object, module: str = "tests.several", of_the_last: Sequence[object] | None = None
) -> list[subprocess.Popen[str]]:
    """Start processes with one thread each and torchrun's variables: `python -m MODULE ARGUMENTS`."""
    common = {**os.environ, "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(world), "PYTHONPATH": os.pathsep.join(sys.path)}
    of_each = [arguments] * (world - 1) + [arguments if of_the_last is None else of_the_last]
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, own)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, own in enumerate(of_each)
    ]


def free_port() -> int:
    """Return a port that no process listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def write_inputs(folder: Path) -> None:
    """Write a teacher in float64, and images to train on."""
    card = make_card(architecture="tiny", flip=True)
    model = create_model("tiny", num_classes=10, input_shape=card.input_shape, seed=1)
    with torch.no_grad():
        model.train()(torch.randn(64, *card.input_shape, generator=torch.Generator().manual_seed(0)))
    save_model(folder / TEACHER, model.eval(), card)
    write_images(folder / IMAGES)


def trace_all(folder: Path, processes: Processes) -> None:
    """Trace the layers and the methods, the first of them twice."""
    runtime = Runtime(CPU, "fp32", False, 0, processes=processes)
    save_file(trace_layers(runtime), folder / f"layers-{processes.rank}.safetensors")
    for place, name in [*((name, name) for name in METHODS), ("again", next(iter(METHODS)))]:
        found = {key: value.contiguous() for key, value in trace(folder / TEACHER, name, runtime).items()}
        save_file(found, folder / f"{place}-{processes.rank}.safetensors")


def run_all(folder: Path, processes: Processes) -> None:
    """Make runs with directories: whole ones, and some that are stopped or resumed."""
    for name in RESUMED:
        settings = make_settings(folder / TEACHER, name)
        distill(settings, folder / f"{name}-whole", processes=processes)
        stops = 0
        while run_until(1 + (2 * stops) % 7, settings, folder / f"{name}-stopped", stops > 0, processes):
            stops += 1
        assert stops >= 3
        assert run_until(7, settings, folder / f"{name}-of-several", False, processes)
        distill(settings, folder / f"{name}-of-one", resume=True, processes=processes)
    pretrain_teacher(pretraining(folder), folder / "teacher", processes=processes)
    found = evaluate(evaluation(folder), processes=processes)
    (folder / f"evaluation-{processes.rank}.json").write_text(found.model_dump_json())


def run_until(step: int, settings: DistillSettings, run: Path, resume: bool, processes: Processes | None) -> bool:
    """Make or resume a run until it is asked to stop at its n-th step; tell whether it was."""
    requests = Requests()
    display = AskingDisplay(step, requests, "stop")
    try:
        distill(settings, run, resume=resume, display=display, requests=requests, processes=processes)
    except Stopped:
        return True
    return False


def pretraining(folder: Path) -> PretrainSettings:
    """Return the settings of a short training."""
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    data = {"name": f"folder:{folder / IMAGES}"}
    values = {"data": data, "model": {"name": "tiny"}, "epochs": 3, "batch_size": 12, "runtime": runtime}
    return PretrainSettings.model_validate(values)


def evaluation(folder: Path) -> EvaluateSettings:
    """Return the settings of an evaluation of the trained model, on a number of images that few numbers divide."""
    runtime = {"device": "cpu", "precision": "fp32", "compile": False}
    data, model = {"name": f"folder:{folder / IMAGES}", "images": 13}, folder / "teacher" / "model.safetensors"
    values = {"models": [model], "teacher": model, "data": data, "batch_size": 6, "runtime": runtime}
    return EvaluateSettings.model_validate(values)


def refuse_all(folder: Path, processes: Processes) -> None:
    """Start runs that cannot be; write the sentence of each."""
    settings, own = make_settings(folder / TEACHER, "gapssg-fast"), processes.rank
    whole, other = folder / "gapssg-fast-whole", folder / "no such run"
    odd = {"name": "mad", **METHODS["mad"]}
    cases: dict[str, Callable[[], object]] = {
        "size": lambda: distill(settings.model_copy(update={"batch_size": 9}), other, processes=processes),
        "half": lambda: distill(
            make_settings(folder / TEACHER, "mad", batch_size=6, method=odd), other, processes=processes
        ),
        "settings": lambda: distill(settings.model_copy(update={"epochs": 2 + own}), other, processes=processes),
        "directory": lambda: distill(settings, other if own else whole, resume=True, processes=processes),
        "taken": lambda: distill(settings, whole, processes=processes),
        "output": lambda: distill(settings, folder / f"no such run {own}", processes=processes),
        "compiled": lambda: distill(
            make_settings(folder / TEACHER, "gapssg-fast", runtime={"compile": True}), other, processes=processes
        ),
    }
    said = {}
    for name, run in cases.items():
        try:
            run()
        except InputError as error:
            said[name] = str(error)
    (folder / f"refusals-{own}.json").write_text(json.dumps(said))


def prepare_all(folder: Path, processes: Processes) -> None:
    """Prepare a run; the last process does not finish that."""
    # Longer than the test waits: rank 0 must not wait so long for others that know why they end.
    explaining = mock.patch("gapssg.core.processes._SECONDS_TO_EXPLAIN", 600.0)
    try:
        with explaining, processes.sharing_failures(), processes.all_or_none():
            (folder / f"prepares-{processes.rank}").touch()
            if processes.rank == processes.world - 1:
                time.sleep(600)
    finally:
        processes.leave()


_PARTS: dict[str, Callable[[Path, Processes], None]] = {
    "trace": trace_all,
    "run": run_all,
    "refuse": refuse_all,
    "prepare": prepare_all,
}


def main(folder: Path, *parts: str) -> None:
    """Run some parts in one of several processes."""
    from gapssg.core.processes import Processes

    torch.set_num_threads(1)
    processes = Processes.join(os.environ)
    answering = mock.patch("gapssg.runs.checkpoint._SECONDS_BETWEEN_AGREEMENTS", 0.0)  # after every step
    with tiny_model(), answering, in_float64():
        for part in parts:
            _PARTS[part](folder, processes)
    processes.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
