"""Teachers without batch norm on the digits at 32 pixels: the default method against those that never needed one.

    python -m benchmarks.no_batch_norm --cifar10 FOLDER                  every teacher and method, 3 seeds
    python -m benchmarks.no_batch_norm --teachers plain --methods zskt --seeds 1

Teachers: a small vision transformer, a ConvNeXt (also of CIFAR-10, JPEG), a plain convolutional network (also of ten
letters), and a ResNet-18 whose batch norms are folded into its convolutions. The student is a WRN-16-1. A
method runs for as many epochs as the budget of TFLOP allows, by the FLOPs that gapssg computes before a run;
`cpu_seconds` are of all threads and depend little on the load of the machine. The reported result is the top-1 on the
test images after the last epoch.
Existing cells are reused, so an interruption costs at most one cell; all cells are merged into the output.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from benchmarks.budget import parsed_settings, settings_within
from benchmarks.homemade import fold
from benchmarks.machine import describe_machine, print_table, write_rows
from benchmarks.results_page import RESULTS
from benchmarks.strangers_data import Split, letters
from benchmarks.strangers_pairs import ALPHABET, Training, train
from gapssg import distill
from gapssg.core.augment import Augmentation, Normalization
from gapssg.core.runtime import Runtime
from gapssg.data.settings import DataSettings
from gapssg.evaluation.predict import score_on
from gapssg.evaluation.real_images import read_images
from gapssg.files import write_json
from gapssg.models import create_model
from gapssg.models.description import ModelCard, Provenance
from gapssg.models.model_file import save_model
from gapssg.quality.estimate import estimate_quality
from gapssg.quality.settings import QualitySettings
from gapssg.runs.directory import SilentDisplay
from gapssg.settings.parts import RuntimeSettings

STUDENT, SIZE = "wrn16_1", 32
PREDICTED = "predicted_disagreement"
FACTORIES = ["benchmarks.homemade:plain", "benchmarks.homemade:folded_resnet18"]


@dataclass(frozen=True)
class Teacher:
    """A teacher without batch norm.

    Attributes:
        architecture: As it is trained.
        training: How it is trained.
        tflop: Budget of a student, about two to three minutes on two idle cores.
        arguments: Of the architecture.
        folded: The architecture of its file, if its batch norms are folded into the convolutions.
        data: The images that it is trained on: `digits` and `letters` are grey, `cifar10` is RGB.
        fewest: The top-1 that it must reach.
    """

    architecture: str
    training: Training
    tflop: float
    arguments: dict[str, Any] = field(default_factory=dict)
    folded: str | None = None
    data: Literal["digits", "letters", "cifar10"] = "digits"
    fewest: float = 0.98

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return (3 if self.data == "cifar10" else 1), SIZE, SIZE


VISION_TRANSFORMER = {"img_size": SIZE, "patch_size": 4, "depth": 4, "embed_dim": 96, "num_heads": 3}
TEACHERS = {
    "plain": Teacher(FACTORIES[0], Training("adamw", 2e-3, 40), 26),
    "folded-resnet18": Teacher("torchvision:resnet18", Training("adamw", 1e-3, 20), 30, folded=FACTORIES[1]),
    "convnext": Teacher("timm:convnext_atto", Training("adamw", 2e-3, 30), 30, {"patch_size": 2}),
    "vit": Teacher("timm:vit_tiny_patch16_224", Training("adamw", 1e-3, 80), 30, VISION_TRANSFORMER),
    "cifar10-convnext": Teacher(
        "timm:convnext_atto",
        Training("adamw", 2e-3, 20, batch_size=128),
        250,
        {"patch_size": 2},
        data="cifar10",
        fewest=0.65,
    ),
    "letters-vit": Teacher(
        "timm:vit_tiny_patch16_224",
        Training("adamw", 1e-3, 120),
        30,
        VISION_TRANSFORMER,
        data="letters",
        fewest=0.9,
    ),
    "letters-plain": Teacher(FACTORIES[0], Training("adamw", 1e-3, 20), 26, data="letters", fewest=0.9),
}
_ALTERNATING = {"batch_size": 64, "method.synthesis_batch_size": 64, "method.rounds": 20}
METHODS: dict[str, dict[str, Any]] = {
    "gapssg-fast": {},
    "zskt": _ALTERNATING,
    "dafl": _ALTERNATING,
    "dfad": _ALTERNATING,
}
"""Changes of the methods' defaults for complete runs within a few minutes."""


def main() -> None:
    """Run the missing cells, then write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train/ and test/ of CIFAR-10 images")
    parser.add_argument("--teachers", nargs="*", default=list(TEACHERS), choices=list(TEACHERS))
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tflop", type=float, help="budget of a student instead of the teacher's own")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of distill")
    parser.add_argument("--label", help="method name in the table for these settings")
    parser.add_argument("--directory", type=Path, default=Path("runs/no-batch-norm"))
    parser.add_argument("--output", type=Path, default=RESULTS / "no-batch-norm.csv")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for name in arguments.teachers:
        data = {"name": "digits", "image_size": SIZE}
        if TEACHERS[name].data == "letters":
            data = {"name": f"folder:{write_letters(arguments.directory / 'letters')}"}
        elif TEACHERS[name].data == "cifar10":
            if arguments.cifar10 is None:
                continue
            data = {"name": f"folder:{arguments.cifar10}"}
        for method in arguments.methods:
            changes, label = {**METHODS[method], **parsed_settings(arguments.set)}, arguments.label or method
            for seed in range(arguments.seeds):
                given = {**changes, "method.name": method, "seed": seed}
                run_cell(arguments.directory, name, data, label, arguments.tflop or TEACHERS[name].tflop, given)
    predict_disagreements(arguments.directory)
    cells = merged(arguments.directory, arguments.output)
    write_rows(arguments.output, cells)
    print_summary(cells)


def write_letters(folder: Path) -> Path:
    """Write ten letters in many fonts as a folder of images, unless that is done, and return it."""
    for split in get_args(Split):
        if not (folder / split).exists():
            images = letters(SIZE, ALPHABET[:10]).make(split, None)
            for number, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
                file = folder / f"{split}-new" / images.class_names[label] / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).save(file)
            (folder / f"{split}-new").rename(folder / split)
    return folder


def run_cell(
    directory: Path, name: str, data: dict[str, Any], method: str, tflop: float, given: dict[str, Any]
) -> None:
    """Distil a student with the given settings, unless that is done."""
    label = f"{name}-{method}-{tflop:g}-{given['seed']}"
    file = directory / f"{label}.json"
    if file.exists():
        return
    teacher = train_teacher(directory, name, DataSettings.model_validate(data))
    given = {**given, **{f"eval_data.{key}": value for key, value in data.items()}}
    given |= {"evaluate_every": 1000, "samples": False}
    settings = settings_within(tflop, teacher, STUDENT, given, FACTORIES)
    started, cpu = time.perf_counter(), time.process_time()
    result = distill(settings, directory / label, overwrite=True)
    cell = {
        "teacher": name,
        "teacher_top1": round(result.teacher.top1 or 0.0, 4),
        "method": method,
        "seed": settings.seed,
        "budget": tflop,
        "epochs": settings.epochs,
        "steps": result.distillation_steps,
        "tflop": round((result.flops or 0) / 1e12, 2),
        "top1": round(result.student.top1 or 0.0, 4),
        "agreement": round(result.student.agreement or 0.0, 4),
        "failures": "; ".join(result.failures),
        "seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(time.process_time() - cpu),
        **describe_machine(Runtime.from_settings(RuntimeSettings(), 0).device),
    }
    write_json(file, cell)
    print(f"{label}: {cell['top1']:.2%} in {cell['cpu_seconds']} CPU seconds, {cell['tflop']} TFLOP", flush=True)


def predict_disagreements(directory: Path) -> None:
    """Add to each cell of the directory what `gapssg estimate` predicts of the student, unless that is done."""
    for file in sorted(directory.glob("*.json")):
        cell = json.loads(file.read_text())
        if PREDICTED not in cell:
            teacher = directory / f"{cell['teacher']}.safetensors"
            given = {"student": file.with_suffix(""), "teacher": teacher, "model_factories": FACTORIES}
            found = estimate_quality(QualitySettings.model_validate(given)).disagreement
            write_json(file, {**cell, PREDICTED: None if found is None else round(found.value, 4)})


def train_teacher(directory: Path, name: str, data: DataSettings) -> Path:
    """Return a teacher's file, after training it if necessary.

    Raises:
        SystemExit: It is right on too few of the test images.
    """
    path, teacher = directory / f"{name}.safetensors", TEACHERS[name]
    if path.exists():
        return path
    runtime = Runtime.from_settings(RuntimeSettings(), 0)
    images, test = (read_images(data, split, SilentDisplay()).to(runtime.device) for split in ("train", "test"))
    mean, deviation = images.channel_statistics()
    module = runtime.place(
        create_model(
            teacher.architecture, num_classes=10, input_shape=teacher.shape, seed=1, arguments=teacher.arguments
        )
    )
    normalization = Normalization.from_statistics(mean, deviation, runtime.device)
    train(module, images, teacher.training, normalization, Augmentation(SIZE // 8, teacher.data == "cifar10"), seed=1)
    top1 = score_on(test, module, normalization, runtime).top1
    if top1 < teacher.fewest:
        raise SystemExit(f"the teacher {name} reaches only {top1:.2%}")
    card = ModelCard(
        architecture=teacher.folded or teacher.architecture,
        arguments=teacher.arguments,
        num_classes=10,
        input_shape=teacher.shape,
        mean=mean,
        deviation=deviation,
        crop_padding=SIZE // 8,
        flip=teacher.data == "cifar10",
        class_names=images.class_names,
        provenance=Provenance(command="benchmark", seed=1),
    )
    save_model(path, fold(module) if teacher.folded else module, card)
    return path


def merged(directory: Path, output: Path) -> list[dict[str, Any]]:
    """Return the cells of an earlier table and of the directory, sorted."""
    rows = list(csv.DictReader(output.open(newline=""))) if output.exists() else []
    rows += [json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))]
    cells = {(row["teacher"], row["method"], float(row["budget"]), int(row["seed"])): row for row in rows}
    return [cells[key] for key in sorted(cells)]


def print_summary(cells: list[dict[str, Any]]) -> None:
    """Print one row per teacher, method and budget: mean and standard deviation over the seeds."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["teacher"], cell["method"], float(cell["budget"])), []).append(cell)
    rows = []
    for (teacher, method, budget), group in groups.items():
        accuracies = [float(cell["top1"]) for cell in group]
        spread = f"{statistics.stdev(accuracies):.2%}" if len(accuracies) > 1 else "-"
        seconds = statistics.mean(float(cell["cpu_seconds"]) for cell in group)
        mean = f"{statistics.mean(accuracies):.2%}"
        rows.append((f"{teacher}, {method}", f"{budget:g}", len(group), mean, spread, f"{seconds:.0f}"))
    print_table("top-1 by teacher and method", ("student of", "TFLOP", "seeds", "mean", "std", "CPU s"), rows)


if __name__ == "__main__":
    main()
