"""The two kinds of failure that a user may see, each one sentence with a hint."""

import difflib
import re
from collections.abc import Iterable

_LONGEST_NAME = 100  # what is longer is no misspelt name, and comparing it takes time


class GapssgError(Exception):
    """Base class of every error that is shown to the user as a sentence.

    Attributes:
        exit_status: Exit status of the command that ends with this error.
    """

    exit_status = 1


class InputError(GapssgError):
    """What was given cannot be used: a file, a name, a setting. Nothing has been written."""

    exit_status = 2


class Taken(InputError):
    """Another process is at work there.

    Attributes:
        holder: The process and its host.
    """

    def __init__(self, path: object, holder: str) -> None:
        """Say who writes to `path`."""
        super().__init__(f"{path} is being written by {holder}; wait for it or name another directory")
        self.holder = holder


class RunError(GapssgError):
    """Something that was sound when the run began failed while it ran."""


class Diverged(RunError):
    """A loss was not finite; a lower learning rate may help."""


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the names nearest to `given`, or nothing where none is near.

    Letters and digits are compared: `WRN-16-1` is as near to `wrn16_1` as can be.
    """
    if len(given) > _LONGEST_NAME:
        return ""
    by_letters = {_letters_and_digits(name): name for name in valid}
    wanted = _letters_and_digits(given)
    if wanted in by_letters:
        nearest = [by_letters[wanted]]
    else:
        nearest = [by_letters[close] for close in difflib.get_close_matches(wanted, by_letters, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(nearest)}?)" if nearest else ""


def shortened(text: object, most: int = 100) -> str:
    """Return a text of a stranger's file as a message can hold it, however long it is."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _letters_and_digits(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
