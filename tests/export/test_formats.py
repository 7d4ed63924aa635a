from __future__ import annotations

from pathlib import Path

import gapssg.export.formats
from gapssg.export.formats import Format, load_format
from gapssg.export.settings import FORMAT_NAMES


def test_every_format_has_a_name_and_every_name_a_format():
    folder = Path(gapssg.export.formats.__file__).parent
    assert {path.stem.replace("_", "-") for path in folder.glob("*.py")} == {*FORMAT_NAMES, "--init--"}
    for name in FORMAT_NAMES:
        assert isinstance(load_format(name), Format)
