"""The guides: what they tell people to copy is run, with fewer steps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
SHORT_SYNTHESIS = ["method.generator_steps=2", "method.passes=1", "method.synthesis_batch_size=32"]


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


def run(folder: Path, *command: str) -> str:
    """Run a command in `folder` as its reader would; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(DOCS.parent)])}
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_what_the_guide_to_python_says_runs_from_start_to_end(tmp_path: Path):
    options = ", ".join(f'"{option}"' for option in SHORT_SYNTHESIS)
    changes = {
        'section="pretrain-teacher", recipe="digits"': 'section="pretrain-teacher", recipe="digits", overrides='
        '["epochs=1", "model.name=wrn16_1", "data.images=64"]',
        '"epochs=10"': f'"epochs=3", {options}',
        "epochs=10,\n": "epochs=3,\n",
    }
    (tmp_path / "guide.py").write_text(shortened("\n".join(python_blocks("python.md")), changes))
    printed = run(tmp_path, sys.executable, "guide.py")
    assert "interrupted" in printed or "terminated" in printed or "stopped" in printed
    assert (tmp_path / "runs" / "watched" / "result.json").exists()
    assert (tmp_path / "student.pt2").exists()
    assert (tmp_path / "report.html").exists()


def test_the_ten_minutes_run_as_they_are_written(tmp_path: Path):
    for block in python_blocks("ten-minutes.md"):
        name = re.match(r'"""(\w+\.py): ', block)
        assert name, "each script of the guide begins with its name"
        (tmp_path / name[1]).write_text(block)
    script = tmp_path / "train.py"
    script.write_text(shortened(script.read_text(), {"range(5)": "range(1)"}))
    short = [part for option in SHORT_SYNTHESIS for part in ("--set", option)]
    done = []
    for line in commands("ten-minutes.md"):
        program, *arguments = line.split()
        if program == "python":
            run(tmp_path, sys.executable, *arguments)
        else:
            fewer = [*short, "--epochs", "1"] if arguments[0] == "distill" else []
            run(tmp_path, sys.executable, "-m", "gapssg", *arguments, *fewer)
        done.append(arguments[0])
    assert done == [
        *("make_images.py", "train.py", "import-teacher", "distill", "eval", "report", "export", "classify.py"),
    ]
