"""The page in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gapssg import ReportSettings, write_report
from tests.browser import needs_browser, open_browser
from tests.report.conftest import CLASSES, RUNTIME, Runs

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(made: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of run, evaluated on images whose classes have hostile names."""
    paths = [made.evaluated, made.blind, made.hostile, made.landscape]
    file = tmp_path_factory.mktemp("page") / "page.html"
    write_report(ReportSettings.model_validate({"runs": paths, "runtime": RUNTIME}), file)
    return file


@pytest.fixture(scope="module")
def evaluated_page(made: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "page.html"
    values = {"runs": [made.hostile], "data": {"name": f"folder:{made.images}"}, "runtime": RUNTIME}
    write_report(ReportSettings.model_validate(values), file)
    return file


def requests_of(browser: Any, page: Path) -> list[str]:
    """The requests of the page; the browser's own first page may still be loading."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in sent if each["documentURL"] == page.as_uri()]


def show(browser: Any, page: Path, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(page.as_uri())


def test_the_page_renders_without_an_error_and_asks_for_nothing(browser: Any, page: Path):
    show(browser, page, 1280)
    asked = requests_of(browser, page)
    assert page.as_uri() in asked
    assert [url for url in asked if not url.startswith("data:") and url != page.as_uri()] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_all_sections_are_there(browser: Any, page: Path):
    show(browser, page, 1280)
    headings = browser.execute_script("return [...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings == ["Side by side", "evaluated", "blind", '<b onclick="x">']
    sections = [
        browser.execute_script(f"return [...document.querySelectorAll('#run-{n} h3')].map(h => h.textContent)")
        for n in (1, 2, 3)
    ]
    end = ["Cost", "Provenance", "Reproduce this run"]
    distilled = ["The gaps", "Losses", "Synthesis", "Samples", "On real images"]
    assert sections == [
        ["Warnings", *distilled, "Landscape", *end],  # its teacher has random weights
        [*distilled, *end],
        ["Accuracy", "Losses", "On real images", *end],
    ]
    assert browser.execute_script(
        "return [...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label'))"
    )


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", ["page", "evaluated_page"])
def test_the_page_does_not_scroll_sideways(browser: Any, request: pytest.FixtureRequest, name: str, width: int):
    show(browser, request.getfixturevalue(name), width)
    assert browser.execute_script("return window.innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    # What is wider than the page scrolls in its own frame.
    overflowing = """
        return [...document.querySelectorAll('main *')].filter(element => !element.closest('.scroll, pre, svg')
            && element.getBoundingClientRect().right > window.innerWidth + 1).map(element => element.outerHTML)
    """
    assert browser.execute_script(overflowing) == []


def test_accuracies_are_visible_on_a_phone_without_scrolling(browser: Any, page: Path):
    show(browser, page, 375)
    edges = browser.execute_script(
        "return [...document.querySelectorAll('#comparison thead th')]"
        ".map(h => [h.textContent, h.getBoundingClientRect().right])"
    )
    assert [name for name, edge in edges if edge <= 375][:4] == ["run", "top-1", "teacher", "points below"]


def test_hostile_names_are_text(browser: Any, evaluated_page: Path):
    show(browser, evaluated_page, 1280)
    text = browser.execute_script("return document.body.textContent")
    assert all(name in text for name in CLASSES)
    assert browser.execute_script("return document.querySelectorAll('img, script, b').length") == 0
    assert browser.get_log("browser") == []


def test_dark_is_dark(browser: Any, page: Path):
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        show(browser, page, 1280)
        grounds.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 28)"]
