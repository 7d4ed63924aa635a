"""The documentation site and its notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

import gapssg
from gapssg.cli.app import COMMANDS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
LARGEST_OUTPUT = 100_000  # bytes


@pytest.mark.slow
@pytest.mark.documents
def test_the_site_builds_without_a_warning_and_has_every_command_and_public_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    build = pytest.importorskip("sphinx.cmd.build")
    pytest.importorskip("myst_nb")
    folders = ("-c", str(ROOT / "docs"), "-d", str(tmp_path / "doctrees"), str(ROOT), str(tmp_path / "site"))
    assert build.main(["-W", "--keep-going", "--quiet", *folders]) == 0, capsys.readouterr().err
    site = tmp_path / "site"
    assert 'url=docs/index.html"' in (site / "index.html").read_text()
    commands = (site / "docs" / "commands.html").read_text()
    assert all(f'id="gapssg-{name}"' in commands for name in COMMANDS)
    reference = (site / "docs" / "api.html").read_text()
    names = [name for name in gapssg.__all__ if name != "__version__"]
    assert [name for name in names if f'id="gapssg.{name}"' not in reference] == []
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} | {path.stem for path in NOTEBOOKS}
    assert pages == {path.stem for path in (site / "docs").glob("*.html")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_of_notebooks_are_small(path: Path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert all(len(output) <= LARGEST_OUTPUT for output in outputs)


@pytest.mark.slow
@pytest.mark.documents
def test_the_notebook_runs_from_start_to_end(tmp_path: Path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    (path,) = NOTEBOOKS
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "options = []" in cell.source]
    cell.source = cell.source.replace("options = []", 'options = ["epochs=1"]')
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    )
    assert "wrn16_2: " in printed
    assert "wrn16_1: " in printed
