"""The errors that users see: each one sentence with a hint."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_LONGEST_NAME = 100  # characters; a longer text is not a misspelt name, and comparing it takes time
# The messages of PyTorch on a processor and on a GPU, of CUDA's libraries, C++ and the system.
_OUT_OF_MEMORY = re.compile(
    r"MemoryError|(out of|not enough) memory|DefaultCPUAllocator|STATUS_ALLOC_FAILED|bad_?alloc|"
    r"(can't|cannot|failed to) allocate",
    re.I,
)


class GapssgError(Exception):
    """Base class of every error that is shown to the user as a sentence, in a few cases as several lines.

    Attributes:
        exit_status: Exit status of a command that fails with it.
    """

    exit_status = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The arguments, one line each; line breaks within one are those of untrusted names, and are not shown."""
        return tuple(map(str, self.args))

    def __str__(self) -> str:
        return "\n".join(self.lines)


class InputError(GapssgError):
    """An input is invalid: a file, a name, a setting. Nothing has been written."""

    exit_status = 2


class Taken(InputError):
    """Another process is writing there.

    Attributes:
        holder: The process and its host.
    """

    def __init__(self, path: object, holder: str) -> None:
        super().__init__(f"{path} is being written by {holder}; wait for it or name another directory")
        self.holder = holder


class RunError(GapssgError):
    """Something failed during the run that had passed the checks before it."""


@contextmanager
def os_errors_as(kind: type[GapssgError], problem: str, advice: str = "") -> Iterator[None]:
    """Turn an `OSError` in the block into an error of this kind: the problem, the system's reason and the advice."""
    try:
        yield
    except OSError as error:
        raise kind(f"{problem}: {error.strerror or error}{f'; {advice}' if advice else ''}") from error


@contextmanager
def reporting_out_of_memory(advise: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn out-of-memory errors of any library into a `RunError` of one sentence, which ends in the advice."""
    try:
        yield
    except Exception as error:
        if isinstance(error, GapssgError) or not says_out_of_memory(error):
            raise
        reason = shortened(str(error).split("\n")[0], 200)
        advice = advise() if advise else "use smaller batches, smaller images or another --device"
        raise RunError(f"out of memory{f' ({reason})' if reason else ''}; {advice}") from error


def says_out_of_memory(error: object) -> bool:
    """Tell whether an error of any library, or a text with its type and message, says that memory ran out."""
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return bool(_OUT_OF_MEMORY.search(f"{' '.join(kinds)} {error}"))


class NotFinite(RunError):
    """The logits of a model are not finite."""


@contextmanager
def blaming_given_files() -> Iterator[None]:
    """Turn `NotFinite` in the block, which writes nothing, into an `InputError`: a file that was given is the cause."""
    try:
        yield
    except NotFinite as error:
        raise InputError(*error.args) from error


class Diverged(RunError):
    """A loss was not finite; a lower learning rate may help.

    Attributes:
        images: The images of a step whose loss was not finite, (N, C, H, W) float32.
    """

    def __init__(self, message: str, images: Any) -> None:
        super().__init__(message)
        self.images = images


def import_extra(package: str, extra: str, what: str) -> Any:
    """Import a package of an extra of this program, which `what` needs; raise `InputError` if it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs {package}, which is not installed: pip install 'gapssg[{extra}]'") from error


def did_you_mean(given: str, valid: Iterable[str]) -> str:
    """Return " (did you mean ...?)" with the names closest to `given`, or "" if none is close.

    Only letters and digits are compared: `WRN-16-1` matches `wrn16_1` exactly.
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
    """Shorten a text from an untrusted file to `most` characters, for a message."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException, most: int = 150) -> str:
    """Return the first line of an error that says something, or else its type, of at most so many characters.

    After a traceback, such as in the errors of TorchScript, it is the last line.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    has_traceback = any(line.startswith("Traceback") for line in lines)
    return shortened(lines[-1 if has_traceback else 0] if lines else type(error).__name__, most)


def _letters_and_digits(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
