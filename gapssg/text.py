"""Formatting for people: names without control characters, shortened paths, durations, percentages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Also characters that reverse or break lines, lone surrogates, which a terminal cannot be sent, and non-characters.
_CONTROL_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)
# What a spreadsheet takes for the start of a formula; the last four are full-width.
_FORMULAS = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_CLASSES_OF_TOP5 = 5


def printable(text: str) -> str:
    """Replace the control characters by which names in a file could control the terminal."""
    return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)


def printable_toml(toml: str) -> str:
    """Return the same TOML with control characters escaped."""
    return "\n".join(
        _CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in toml.split("\n")
    )


def no_formula(text: str) -> str:
    """Put an apostrophe before an untrusted text that a spreadsheet would take for a formula."""
    return f"'{text}" if text.startswith(_FORMULAS) else text


def shortest_ends(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct suffixes of paths; equal paths are numbered."""
    parts = [path.parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def has_top5(num_classes: int) -> bool:
    """Return whether a top-5 accuracy says anything: of five classes or fewer it is always 100 %."""
    return num_classes > _CLASSES_OF_TOP5


def duration(seconds: float) -> str:
    """Format a duration in one or two units: seconds below 100 s, then minutes, hours and days."""
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(whole / 3600)
    return f"{hours // 24} d {hours % 24} h"


def percent(share: float | None) -> str:
    """Format a share in [0, 1] as a percentage with one decimal, None as a dash."""
    return "-" if share is None else f"{100 * share:.1f} %"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Join names as "a, b and c"; of more than `most`, the first ones and the number of the others."""
    shown = list(names) if len(names) <= most else [*names[:most], f"{len(names) - most:,} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
