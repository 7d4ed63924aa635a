"""Rules for imports between packages, and code that is forbidden everywhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gapssg

PACKAGE = Path(gapssg.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOT = Path(__file__).parent.parent
TESTS = sorted(Path(__file__).parent.rglob("*.py"))

# Each package may import those after it.
ORDER = [
    "cli",
    "audit",
    "report",
    "table",
    "export",
    "landscape",
    "training",
    "quality",
    "evaluation",
    "runs",
    "synthesis",
    "data",
    "models",
    "core",
    "settings",
    "figures",
    "files",
    "safe_paths",
    "text",
    "intervals",
    "stored",
    "errors",
]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, direct_only: bool = False) -> set[str]:
    """Every gapssg module that a file imports anywhere, with the packages that importing it runs.

    Direct imports are those that stand there, without modules that are imported by name when they are needed.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif not direct_only and (match := re.fullmatch(r"(gapssg(\.\w+)+)(:\w+)?", str(getattr(node, "value", "")))):
            # Modules that are imported by name, such as "gapssg.models.vgg:vgg11".
            found.add(match[1])
    names = {module_name(path) for path in FILES}
    if direct_only:
        return found & names
    packages = {name.rsplit(".", depth)[0] for name in found for depth in range(1, name.count("."))}
    return (found | packages) & names


GRAPH = {module_name(path): imports_of(path) for path in FILES}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def reachable_from(start: set[str]) -> set[str]:
    seen: set[str] = set()
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += GRAPH[module] - {"gapssg"}
    return seen


def test_synthesis_cannot_reach_real_images():
    rooms = {room(module) for module in reachable_from({m for m in GRAPH if room(m) == "synthesis"})}
    assert "synthesis" in rooms
    assert "models" in rooms
    assert "data" not in rooms
    assert "training" not in rooms


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_one_way(module):
    if room(module) not in ORDER:
        return
    for imported in GRAPH[module]:
        if room(imported) in ORDER:
            assert ORDER.index(room(imported)) >= ORDER.index(room(module)), f"{module} imports {imported}"


def test_no_two_test_files_have_the_same_name():
    """Pytest imports them by their names alone."""
    names = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_every_room_has_a_place_in_the_order():
    assert {room(module) for module in GRAPH if module.count(".") > 1} <= set(ORDER)


def test_there_are_no_import_circles():
    graph = {module_name(path): imports_of(path, direct_only=True) for path in FILES}
    for start, first in graph.items():
        seen: set[str] = set()
        waiting = list(first - {"gapssg"})
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module] - {"gapssg"}
        assert start not in seen, f"{start} imports itself by way of others"


def test_nothing_that_is_loaded_can_run_code():
    modules = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    calls = {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None) or ""}
                assert not modules & {name.split(".")[0] for name in names}, f"{path}:{node.lineno}"
            elif isinstance(node, ast.Call):
                in_child = path.name in ("checkpoint_child.py", "exported_reader.py")
                restricted = ast.unparse(node).endswith("weights_only=True)") and in_child
                assert restricted or ast.unparse(node.func) not in calls, f"{path}:{node.lineno}"


def test_nothing_below_the_command_line_prints():
    for path in FILES:
        if "cli" in path.relative_to(PACKAGE).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not is_print, f"{path} prints"


@pytest.mark.parametrize(
    "code",
    [
        "import gapssg",
        "import gapssg.cli.app",
        "import gapssg.training.settings, gapssg.landscape.settings, gapssg.report.settings, gapssg.table.plan",
        "import gapssg.audit.settings",
        "import gapssg.runs.pictures, gapssg.runs.events, gapssg.export.settings",
        "import " + ", ".join(module for module in sorted(GRAPH) if module.startswith("gapssg.runs.results.")),
        "import gapssg.data, gapssg.models",
    ],
)
def test_importing_does_no_work(code):
    check = f"import sys; {code}; sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'PIL', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_public_name_can_be_imported():
    for name in gapssg.__all__:
        assert getattr(gapssg, name) is not None


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_import_neither_other_test_modules_nor_benchmarks(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for parts in ((prefix + alias.name).split(".") for alias in node.names):
                assert parts[0] != "benchmarks", f"{path}:{node.lineno}"
                imports_test = parts[0] == "tests" and any(part.startswith("test_") for part in parts)
                assert not imports_test, f"{path}:{node.lineno}"


def test_no_function_has_more_than_60_lines():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                assert node.end_lineno - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def prose_of(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines of Markdown that can be wrapped: no tables, code blocks, HTML or lone addresses."""
    lines, fenced = [], False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith(("|", "    ", "<")) and " " in line.strip():
            lines.append((number, line))
    return lines


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_prose_has_at_most_120_columns(path):
    long = [number for number, line in prose_of(path.read_text(encoding="utf-8")) if len(line) > 120]
    assert not long, f"{path} has longer lines: {long}"


def test_tables_code_and_addresses_are_not_prose():
    text = "prose here\n\n| a | table |\n\n    an indented command\n\n```\nfenced code\n```\n\nhttps://example.org\n"
    assert prose_of(text) == [(1, "prose here")]


def test_documents_have_no_placeholder_for_an_address():
    for path in documents():
        assert not re.search(r"\b(REPOSITORY|OWNER/|YOUR-ORG|TODO|FIXME)", path.read_text(encoding="utf-8")), path
