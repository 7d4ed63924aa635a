from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import gapssg.export.formats
from gapssg.export.formats import Format, load_format
from gapssg.export.settings import FORMAT_NAMES


def test_openvino_is_imported_without_telemetry_and_nothing_else_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "openvino_telemetry.py").write_text("SENDS = True\n")
    (tmp_path / "imports_telemetry.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    openvino_telemetry = None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for known in (False, True):
        before = dict(sys.modules)
        target = load_format("openvino")
        assert sys.modules.get("openvino_telemetry") is before.get("openvino_telemetry")
        with target.importing():
            assert importlib.import_module("imports_telemetry").openvino_telemetry is None
        monkeypatch.delitem(sys.modules, "imports_telemetry")
        assert sys.modules.get("openvino_telemetry") is before.get("openvino_telemetry")
        assert importlib.import_module("openvino_telemetry").SENDS  # known to this process the second time
        assert known == ("openvino_telemetry" in before)
    monkeypatch.delitem(sys.modules, "openvino_telemetry")


def test_every_format_has_a_name_and_every_name_a_format():
    folder = Path(gapssg.export.formats.__file__).parent
    assert {path.stem.replace("_", "-") for path in folder.glob("*.py")} == {*FORMAT_NAMES, "--init--"}
    for name in FORMAT_NAMES:
        assert isinstance(load_format(name), Format)
