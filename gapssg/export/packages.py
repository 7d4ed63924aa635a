"""The packages of the extra `export`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from gapssg.errors import InputError


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Import packages and return their versions by name.

    Raises:
        InputError: One is not installed.
    """
    try:
        return {name: importlib.import_module(name).__version__ for name in names}
    except ModuleNotFoundError as error:
        raise InputError(
            f"this export needs the package {error.name}, which is not installed: pip install 'gapssg[export]'"
        ) from error
