"""What is shown to people: names without control characters, paths by their ends, shares in percent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Also what turns or breaks lines, halves of characters, which no terminal can be sent, and what is no character.
_CONTROL_CHARACTERS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)


def printable(text: str) -> str:
    """Return text without the control characters by which a file's names could steer a terminal."""
    return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)


def printable_toml(toml: str) -> str:
    """Return the same TOML with control characters written as TOML writes them in texts."""
    return "\n".join(
        _CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in toml.split("\n")
    )


def shortest_ends(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell them apart; equal paths are numbered."""
    parts = [path.parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def duration(seconds: float) -> str:
    """Return a time in its one or two largest units: seconds below 100, then minutes, hours and days."""
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
    """Return a share in [0, 1] as a percentage with one decimal, or a dash for none."""
    return "-" if share is None else f"{100 * share:.1f} %"


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return names as a sentence holds them: "a, b and c", and of many the first few and how many more there are."""
    shown = list(names) if len(names) <= most else [*names[:most], f"{len(names) - most:,} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
