"""Names of models: built-in, of a library, or of a user factory. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from gapssg.errors import InputError, shortened
from gapssg.models.graphs.description import is_graph

Argument = bool | int | float | str
Arguments = Mapping[str, Argument]

TORCHVISION = "torchvision"
TIMM = "timm"

MODULE = "<module>"
"""In settings, a module that a Python program passes, instead of a file or a name."""

_LIBRARY_MODEL = re.compile(rf"({TORCHVISION}|{TIMM}):(\w{{1,100}})", re.ASCII)
_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_ARGUMENT = re.compile(r"[A-Za-z_]\w{0,99}", re.ASCII)
_MOST_ARGUMENTS = 50
_LARGEST_ARGUMENT = 1e6
_LONGEST_ARGUMENT = 200


def library_model(name: str) -> tuple[str, str] | None:
    """Return the library and its model name if `name` has the form `torchvision:NAME` or `timm:NAME`."""
    match = _LIBRARY_MODEL.fullmatch(name)
    return None if match is None else (match[1], match[2])


def is_factory(name: str) -> bool:
    """Tell whether `name` has the form `package.module:factory`, whose use imports and runs code."""
    is_other = name.split(":")[0] in (TORCHVISION, TIMM) or is_graph(name)
    return _FACTORY.fullmatch(name) is not None and not is_other


def is_module(name: str) -> bool:
    """Tell whether a model file names the class of a module that a Python program passed, so that no name builds it."""
    return name.startswith("<")


def check_factory_name(name: str) -> str:
    """Return `name` if it has the form `package.module:factory`; raise `InputError` if not."""
    if is_factory(name):
        return name
    raise InputError(f"{shortened(repr(name))} is not a factory; write package.module:factory")


def check_arguments(arguments: Mapping[str, object]) -> Mapping[str, object]:
    """Return the keyword arguments of a model if a settings or model file may hold them.

    Raises `InputError` if there are too many, a name is not an identifier, or a value is not a bounded scalar.
    """
    if len(arguments) > _MOST_ARGUMENTS:
        raise InputError(f"a model takes at most {_MOST_ARGUMENTS} arguments, not {len(arguments)}")
    for name, value in arguments.items():
        if not isinstance(name, str) or not _ARGUMENT.fullmatch(name):
            raise InputError(f"{shortened(repr(name))} is not a valid argument name")
        given = f"the argument {name} is {shortened(repr(value))}"
        if not isinstance(value, bool | int | float | str):
            raise InputError(f"{given}; it must be a number, a string, true or false")
        if isinstance(value, str) and len(value) > _LONGEST_ARGUMENT:
            raise InputError(f"{given}; a string may have at most {_LONGEST_ARGUMENT} characters")
        # Negated, so that NaN is refused, and without a conversion, because an integer may be larger than any float.
        if isinstance(value, int | float) and not abs(value) <= _LARGEST_ARGUMENT:
            raise InputError(f"{given}; a number must be from {-_LARGEST_ARGUMENT:,.0f} to {_LARGEST_ARGUMENT:,.0f}")
    return arguments


def check_trusted(name: str, factories: Iterable[str], source: object) -> None:
    """Raise `InputError` if `source` names a factory, whose import runs code, that is not in `factories`."""
    if is_factory(name) and name not in set(factories):
        name = shortened(name)
        raise InputError(
            f"{source} names the factory {name}, whose code would run; "
            f"if you trust that code, add --model-factory {name}"
        )
