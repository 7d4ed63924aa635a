from __future__ import annotations

from typing import get_args

from gapssg.export.formats import FORMATS
from gapssg.export.settings import ExportSettings


def test_the_settings_name_all_formats():
    assert get_args(ExportSettings.model_fields["to"].annotation) == tuple(FORMATS)
