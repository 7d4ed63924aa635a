"""The version is written in three places."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from gapssg import __version__

ROOT = Path(__file__).parent.parent


def test_changelog_and_citation_have_the_version_and_its_date():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)[0]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert version == __version__ == citation["version"]
    assert date == citation["date-released"]


def test_the_changelog_has_a_place_for_the_next_changes():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
