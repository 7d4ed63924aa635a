"""User models: imports and calls a factory that the user named."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from gapssg.errors import InputError, did_you_mean
from gapssg.models.foreign import check_module, foreign_code
from gapssg.models.recognition import adapt_trainable
from gapssg.models.reference import Arguments


def build_from_factory(
    name: str, arguments: Arguments, weights_follow: bool, num_classes: int, input_shape: tuple[int, int, int]
) -> nn.Module:
    """Import `package.module:factory`, call it, and check the returned module by forward passes.

    The factory gets the user's arguments and, of `num_classes`, `input_shape` (C, H, W) and `in_channels`, those that
    its signature names. With `weights_follow` there are no forward passes, because the initial weights may be NaN.
    Raises `InputError` if it cannot be imported, is not callable, raises, or does not return a classifier of such
    images.
    """
    with _current_folder_importable():
        factory = _import(name)
        task = {"num_classes": num_classes, "input_shape": input_shape, "in_channels": input_shape[0]}
        named = {key: value for key, value in task.items() if key in _parameters(name, factory)}
        doubled = sorted(named.keys() & arguments.keys())
        if doubled:
            raise InputError(f"{name} gets {doubled[0]} from the data or the teacher; leave the argument out")
        called = ", ".join(f"{key}={value!r}" for key, value in {**named, **arguments}.items()) or "no arguments"
        with foreign_code(f"{name} cannot be called with {called}"):
            module = factory(**named, **arguments)
        if weights_follow:
            return check_module(module, name)
        return adapt_trainable(module, name, num_classes, input_shape)


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """Search modules in the current folder, too, after all others."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.reverse()  # the last of equal entries is the one that was appended
        sys.path.remove(folder)
        sys.path.reverse()


def _import(name: str) -> Callable[..., object]:
    module_name, _, path = name.partition(":")
    try:
        with foreign_code(f"importing {module_name} for {name} failed"):
            found: Any = importlib.import_module(module_name)
    except InputError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is not None and f"{module_name}.".startswith(f"{missing}."):
            raise InputError(
                f"no module {missing} for {name} in the Python path or in {os.getcwd()}; check the name"
            ) from error
        raise
    for part in path.split("."):
        place = found
        with foreign_code(f"looking up {path} in {module_name} failed"):
            found = getattr(place, part, None)
        if found is None:
            meant = did_you_mean(part, (known for known in dir(place) if not known.startswith("_")))
            raise InputError(f"{module_name} has no {path}{meant}; write package.module:factory")
    if not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}, which cannot be called; name a function or class")
    factory: Callable[..., object] = found
    return factory


def _parameters(name: str, factory: Callable[..., object]) -> frozenset[str]:
    """Return the names of the factory's keyword parameters; none if its signature is unknown."""
    with foreign_code(f"the signature of {name} cannot be read"):
        try:
            parameters = inspect.signature(factory).parameters.values()
        except ValueError:  # C code may have no signature
            return frozenset()
    return frozenset(each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
