from __future__ import annotations

import json
import signal
import sys
import tomllib
from pathlib import Path

import pytest

from gapssg.cli.app import main
from gapssg.errors import RunError

FAST = ["--samples", "10", "--grid", "3", "--no-curvature", "--device", "cpu", "--precision", "fp32"]


@pytest.fixture
def gapssg(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """The program in this process, as a function from arguments to (status, stdout, stderr)."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gapssg", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_json_is_all_that_is_printed_to_stdout(gapssg, run_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gapssg.landscape.measure.draw", lambda *_, **__: [])
    out = tmp_path / "out"
    status, stdout, stderr = gapssg("landscape", run_folder, "--data", "digits", "--output", out, "--json", *FAST)
    assert status == 0, stderr
    assert json.loads(stdout) == json.loads((out / "result.json").read_text())
    assert "measuring 1 landscape of 3x3 points on 10 test images" in stderr
    status, stdout, _ = gapssg("landscape", "--resume", out)
    assert status == 0
    assert "Loss (cross-entropy) on 10 samples of digits" in stdout
    status, _, stderr = gapssg("landscape", run_folder, "--data", "digits", "--output", out, *FAST)
    assert status == 2
    assert "already holds a run; add --overwrite" in stderr


def test_dry_run_prints_toml_that_config_reads_back(gapssg, tmp_path: Path):
    arguments = ["a", "b", "--data", "pool", "--snapshots", "--epoch", 2, "--epoch", 5, "--no-curvature", "--dry-run"]
    _, first, _ = gapssg("landscape", *arguments)
    assert tomllib.loads(first)["epochs"] == [2, 5]
    (tmp_path / "settings.toml").write_text(first)
    assert gapssg("landscape", "--config", tmp_path / "settings.toml", "--dry-run")[1] == first


def test_bad_input_is_one_sentence_with_status_2(gapssg, run_folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    landscape = ["landscape", run_folder, "--data", "digits", "--output", out]
    cases = {
        "models is missing: add FILE|DIR": ["landscape", "--data", "digits", "--output", out],
        "data.name is missing: add --data": ["landscape", run_folder, "--output", out],
        "--output is missing": landscape[:-2],
        "grid = 1 (from --grid)": [*landscape, "--grid", 1],
        "range = 0.0 (from --range)": [*landscape, "--range", 0],
        "range = -1.0 (from --range)": [*landscape, "--range", -1],
        "epochs = 0 (from --epoch): must be greater than or equal to 1": [*landscape, "--snapshots", "--epoch", 0],
        "dimensions = 3": [*landscape, "--dimensions", 3],
        "did you mean pca": [*landscape, "--directions", "pcs"],
        "a plane takes three models, not 1": [*landscape, "--directions", "models"],
        "leave --snapshots out": [*landscape, "--directions", "pca", "--snapshots"],
        "holds neither student.safetensors nor": ["landscape", tmp_path / "run" / "pool", *landscape[2:]],
        "does not exist": ["landscape", tmp_path / "absent.safetensors", *landscape[2:]],
        "holds no run to resume": ["landscape", "--resume", tmp_path],
        "is a run of distill; use gapssg distill": ["landscape", "--resume", run_folder],
    }
    for words, arguments in cases.items():
        status, stdout, stderr = gapssg(*arguments)
        assert status == 2, (words, stderr)
        assert stdout == ""
        assert words in stderr
        assert stderr.startswith("error: ")
        assert len(stderr.strip().splitlines()) == 1, stderr
    assert not out.exists()


def test_a_truncated_surface_is_one_sentence_with_status_2(gapssg, run_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gapssg.landscape.measure.draw", lambda *_, **__: [])
    out = tmp_path / "out"
    assert gapssg("landscape", run_folder, "--data", "digits", "--output", out, *FAST)[0] == 0
    (file,) = (out / "surfaces").iterdir()
    file.write_bytes(file.read_bytes()[:200])
    status, _, stderr = gapssg("landscape", "--resume", out)
    assert status == 2
    assert "is not a readable safetensors file" in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_a_landscape_whose_curvature_failed_is_finished_without_it(
    gapssg, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise RunError("the device is gone")

    monkeypatch.setattr("gapssg.landscape.measure.draw", lambda *_, **__: [])
    monkeypatch.setattr("gapssg.landscape.measure.measure_curvature", fail)
    out = tmp_path / "out"
    options = [option for option in FAST if option != "--no-curvature"]
    assert gapssg("landscape", run_folder, "--data", "digits", "--output", out, *options)[0] == 1
    assert gapssg("landscape", "--resume", out)[0] == 1
    status, stdout, _ = gapssg("landscape", "--resume", out, "--no-curvature", "--json")
    assert status == 0
    assert json.loads(stdout)["surfaces"][0]["curvature"] is None


def test_a_table_stands_for_the_students_of_one_of_its_lines(gapssg, tmp_path: Path, monkeypatch):
    table, runs = tmp_path / "table", (tmp_path / "table" / "a", tmp_path / "table" / "b")
    table.mkdir()
    (table / "table.json").write_text("{}")
    monkeypatch.setattr("gapssg.table.students.students_of", lambda *given: {(table, "digits"): runs}[given])
    _, printed, _ = gapssg("landscape", table, "x.safetensors", "--data", "pool", "--row", "digits", "--dry-run")
    assert tomllib.loads(printed)["models"][:2] == [str(run) for run in runs]
    status, _, stderr = gapssg("landscape", "x.safetensors", "--data", "pool", "--row", "digits", "--dry-run")
    assert (status, "--row chooses a line of a table" in stderr) == (2, True)


def test_an_untrusted_directory_cannot_cause_a_download(gapssg, run_folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("gapssg.landscape.measure.draw", lambda *_, **__: [])
    out = tmp_path / "out"
    assert gapssg("landscape", run_folder, "--data", "digits", "--output", out, *FAST, "--download")[0] == 0
    assert tomllib.loads((out / "settings.toml").read_text())["data"]["download"]
    assert not tomllib.loads(gapssg("landscape", "--resume", out, "--dry-run")[1])["data"]["download"]
    assert tomllib.loads(gapssg("landscape", "--resume", out, "--download", "--dry-run")[1])["data"]["download"]
