"""The guides: what they tell people to copy is run, with fewer steps."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from gapssg import DistillResult, DistillSettings, distill, load_model
from gapssg.models import create_model
from gapssg.models.model_file import save_model
from tests.conftest import make_card, write_teacher
from tests.models.graphs.small_models import Residual, trained
from tests.models.graphs.written import write
from tests.program import gapssg, refusal
from tests.run_fixtures import TINY

pytestmark = [pytest.mark.slow, pytest.mark.documents]

DOCS = Path(__file__).parents[2] / "docs"
# Kernels may differ between processes in the last bits.
CHECK = """
import sys, torch
expected = load_file("expected.safetensors")
torch.testing.assert_close(student(expected["images"]), expected["logits"])
assert not any(name.split(".")[0] == "gapssg" for name, module in sys.modules.items() if module is not None)
"""
RUN = """
import os, sys
sys.modules["gapssg"] = None
for folder in sys.argv[1:]:
    os.chdir(folder)
    exec(open("guide.py").read(), {})
"""
SHORT = {"method": {"generator_steps": 2, "distillation_steps": 2, "synthesis_batch_size": 32}}
SHORT_SYNTHESIS = ["method.generator_steps=2", "method.distillation_steps=2", "method.synthesis_batch_size=32"]


def python_blocks(guide: str) -> list[str]:
    """Return the blocks of Python in a guide."""
    return re.findall(r"```python\n(.*?)```", (DOCS / guide).read_text(), re.DOTALL)


def commands(guide: str) -> list[str]:
    """Return the indented commands in a guide, each on one line."""
    joined = (DOCS / guide).read_text().replace("\\\n", " ")
    return [line.strip() for line in re.findall(r"^    ((?:gapssg|python) .*)$", joined, re.MULTILINE)]


def shortened(text: str, changes: dict[str, str]) -> str:
    """Replace what takes time; each change must find its place."""
    for long, short in changes.items():
        assert long in text, f"the guide no longer says {long!r}"
        text = text.replace(long, short)
    return text


def test_what_the_guide_to_python_says_runs_from_start_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    options = ", ".join(f'"{option}"' for option in SHORT_SYNTHESIS)
    changes = {
        'section="pretrain-teacher", recipe="digits"': 'section="pretrain-teacher", recipe="digits", overrides='
        '["epochs=1", "model.name=wrn10_half", "data.images=64"]',
        '"epochs=10"': f'"epochs=3", {options}',
        "epochs=10,\n": "epochs=3,\n",
        "DistillSettings(epochs=10)": "DistillSettings(epochs=1, **SHORT)",
        '"generator_steps": 30': '"generator_steps": 2, "synthesis_batch_size": 32',
    }
    (tmp_path / "guide.py").write_text(f"SHORT = {SHORT}\n" + shortened("\n".join(python_blocks("python.md")), changes))
    runpy.run_path("guide.py")
    assert "stopped by signal 15" in capsys.readouterr().out
    assert (tmp_path / "runs" / "watched" / "result.json").exists()
    assert (tmp_path / "student.pt2").exists()
    assert (tmp_path / "report.html").exists()
    assert DistillResult.load(tmp_path / "runs" / "live").teacher.file == "<module>"


def test_students_of_libraries_load_without_this_program_as_the_guide_says(tmp_path: Path):
    """In a process that cannot import it."""
    pytest.importorskip("timm")
    *students, description = python_blocks("export.md")
    models = {
        "torchvision:mobilenet_v3_small": (3, 32, 32),
        "torchvision:resnet18": (1, 32, 32),
        "timm:resnet10t": (1, 32, 32),
    }
    for number, ((name, shape), block) in enumerate(zip(models.items(), students, strict=True)):
        folder = tmp_path / str(number)
        (folder / "runs" / "student").mkdir(parents=True)
        values = {"mean": (0.3,) * shape[0], "deviation": (0.4,) * shape[0]}
        card = make_card(architecture=name, input_shape=shape, **values)
        file = folder / "runs" / "student" / "student.safetensors"
        save_model(file, create_model(name, num_classes=10, input_shape=shape, seed=number + 1), card)
        images = torch.randn(2, *shape)
        save_file(
            {"images": images, "logits": load_model(file).module(images).detach()}, folder / "expected.safetensors"
        )
        (folder / "guide.py").write_text(f"{block}\n{description}\n{CHECK}")
    command = [sys.executable, "-c", RUN, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split("]")[0] for line in done.stdout.splitlines()] == ["[0.3, 0.3, 0.3", "[0.3", "[0.3"]


def test_the_ten_minutes_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for block in python_blocks("ten-minutes.md"):
        name = re.match(r'"""(\w+\.py): ', block)
        assert name, "each script of the guide begins with its name"
        (tmp_path / name[1]).write_text(block)
    few = {"zip(digits.images, digits.target))": "zip(digits.images[1557:], digits.target[1557:]), 1557)"}
    for script, changes in {"make_images.py": few, "train.py": {"range(5)": "range(1)"}}.items():
        (tmp_path / script).write_text(shortened((tmp_path / script).read_text(), changes))
    short = [part for option in SHORT_SYNTHESIS for part in ("--set", option)]
    done = []
    for line in commands("ten-minutes.md"):
        program, *arguments = line.split()
        if program == "python":
            (path,) = arguments
            runpy.run_path(path)
        else:
            fewer = [*short, "--epochs", "1"] if arguments[0] == "distill" else []
            gapssg(*arguments, *fewer)
        done.append(arguments[0])
    assert done == [
        *("make_images.py", "train.py", "import-teacher", "distill", "eval", "report", "predict", "export"),
        "classify.py",
    ]


def test_the_guide_to_importing_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write("onnx-kept", trained(Residual), tmp_path).rename("model.onnx")
    weights = create_model("torchvision:resnet18", num_classes=7, input_shape=(3, 32, 32)).state_dict()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, "own.pth")
    small = [line.replace("3,224,224", "3,32,32").split()[1:] for line in commands("importing.md")]
    done = [" ".join(gapssg(*arguments).stdout.split()) for arguments in small]
    assert len(done) == 3
    for sentence in (
        "took the weights in 'state_dict' of own.pth",
        "the names of the weights in own.pth were taken without 'module.'",
        "real images are scaled to 256 pixels on the shorter side, bicubic, centre crop",
    ):
        assert sentence in done[0]
    assert "BatchNorm2d" in done[2]


def test_the_commands_of_the_guide_to_audits_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart/teacher").mkdir(parents=True)
    teacher = write_teacher(Path("quickstart/teacher/model.safetensors"))
    distill(DistillSettings.model_validate({"teacher": teacher, **TINY}), Path("quickstart/student"))
    short = {
        "pretrain-teacher": ["--epochs", 1],
        "distill": ["--epochs", 1, *(part for option in SHORT_SYNTHESIS for part in ("--set", option))],
        "audit": ["--shadow-epochs", 1],
    }
    done = []
    for line in commands("audit.md"):
        _, name, *arguments = shlex.split(line)
        gapssg(name, *arguments, *short[name])
        done.append(name)
    assert done == ["audit", "audit", "pretrain-teacher", "distill", "audit"]
    (block,) = python_blocks("audit.md")
    (tmp_path / "guide.py").write_text(shortened(block, {"audit.html": "from-python.html"}))
    runpy.run_path("guide.py")
    assert {"audit.html", "from-python.html", "pairs.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_errors_are_those_that_the_guide_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_what_people_have(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    weights = ("--weights", "resnet18.safetensors", "--input-shape", "3,32,32", "--num-classes", 10)
    gapssg(
        *("import-teacher", "--model", "torchvision:resnet18", *weights),
        *("--mean", 0, "--std", 1, "--output", "teacher.safetensors"),
    )
    gapssg(
        *("import-teacher", "--model", "my_models:net", "--weights", "own-weights.safetensors", "--input-shape"),
        *("3,32,32", "--class-names", "cat,dog", "--mean", 0, "--std", 1, "--output", "own.safetensors"),
    )
    guide = (DOCS / "troubleshooting.md").read_text()
    cases = re.findall(r"^    \$ gapssg (.*)\n    error: ((?:.+\n)+)", guide, re.MULTILINE)
    for command, quoted in cases:
        said = " ".join(refusal(*command.split()).split())
        assert said.removesuffix(f" (relative to {tmp_path})") == " ".join(quoted.split())
    assert len(cases) == 10


def write_what_people_have(folder: Path) -> None:
    """Write weights as they lie about, a model of one's own, and two folders of photos of many sizes."""
    model = create_model("torchvision:resnet18", num_classes=10, input_shape=(3, 32, 32))
    save_file(model.state_dict(), folder / "resnet18.safetensors")
    torch.save(model, folder / "resnet18.pth")
    (folder / "my_models.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, in_channels):\n"
        "    features = nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*features, nn.Linear(4, num_classes))\n"
    )
    own = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    save_file(own.state_dict(), folder / "own-weights.safetensors")
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            place = folder / "photos" / part / name
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (50, 40 + number)).save(place / f"{number}.jpg")
