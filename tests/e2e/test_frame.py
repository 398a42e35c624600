"""The frame of all pages: contrast, what axe finds, the style sheet, Start in sight, colours."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page

from lab.paths import ASSETS
from lab.runs import colours as run_colours
from lab.ui import colours
from tests.e2e.conftest import Server, settled, widget

pytestmark = pytest.mark.e2e

PAGES = ("", *"new_run monitor runs data memory chat results advisor claims".split())
# Streamlit's own, on every app: its grids have no accessible rows while they are canvases
NOT_OURS = "[data-testid=stDataFrame], [data-testid=stToolbar], .js-plotly-plot"


OWN = (".lab-", '[class*="st-key-')  # names that the lab gives itself, seen in some states only


def find_violations(page: Page) -> list[str]:
    """What axe finds against WCAG 2 A and AA, as "rule: selector: why"."""
    page.evaluate(AXE_SCRIPT)
    result: dict[str, Any] = page.evaluate(
        """async leave => await axe.run({exclude: [leave.split(", ")].flat().map(s => [s])}, {
            runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], resultTypes: ["violations"],
            // Streamlit's navigation puts a div between its list and the items
            rules: {list: {enabled: false}, listitem: {enabled: false}}})""",
        NOT_OURS,
    )
    return [
        f"{violation['id']}: {node['target']}: {node['failureSummary'].splitlines()[-1].strip()}"
        for violation in result["violations"]
        for node in violation["nodes"]
    ]


def selectors() -> list[str]:
    """Every selector of the style sheet."""
    text = re.sub(r"/\*.*?\*/", "", (ASSETS / "lab.css").read_text(), flags=re.S)
    text = re.sub(r"@media[^{]*\{", "", text)
    groups = re.findall(r"([^{}]+)\{[^{}]*\}", text)
    # commas inside of :is() and :not() do not part selectors
    parts = [part.strip() for group in groups for part in re.split(r",(?![^(]*\))", group)]
    return [part for part in parts if not part.startswith(OWN)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_can_be_read_by_everybody(
    chrome: Browser, server: Server, trained_home: Path, theme: Any
) -> None:
    shutil.copytree(trained_home / "runs", server.home / "runs")
    context = chrome.new_context(viewport={"width": 1440, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.goto(server.address)
    violations, unused = [], set(selectors())
    for name in PAGES:
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(f"{server.url}/{name}")
        settled(page)
        violations += [f"{name or 'home'}: {text}" for text in find_violations(page)]
        for width in (850, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(300)
            matched = "all => all.filter(one => document.querySelector(one))"
            unused -= set(page.evaluate(matched, sorted(unused)))
    context.close()
    assert not violations, "\n".join(violations)
    assert not unused, "a selector that nothing matches: Streamlit names it otherwise now"


def test_start_is_in_sight_wherever_the_page_is_scrolled(chrome: Browser, server: Server) -> None:
    context = chrome.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(server.address)
    page.goto(f"{server.url}/new_run")
    settled(page)
    for width in (1440, 800, 400):
        page.set_viewport_size({"width": width, "height": 800})
        for share in (0.0, 0.5, 1.0):
            page.evaluate(
                "share => { const main = document.querySelector('[data-testid=stMain]');"
                " main.scrollTo(0, share * main.scrollHeight); }",
                share,
            )
            page.wait_for_timeout(200)
            box = widget(page, "start").bounding_box()
            assert box is not None and 0 <= box["y"] <= 800 - box["height"], f"{width}, {share}"
            assert 0 <= box["x"] and box["x"] + box["width"] <= width, f"{width}, {share}"
    context.close()


def test_a_curve_has_the_colour_of_its_run_and_a_log_axis_of_its_data(
    chrome: Browser, server: Server, trained_home: Path
) -> None:
    shutil.copytree(trained_home / "runs", server.home / "runs")
    run = next((server.home / "runs").iterdir()).name
    context = chrome.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark")
    page = context.new_page()
    page.goto(server.address)
    page.goto(f"{server.url}/monitor?run={run}")
    settled(page)
    page.wait_for_selector("[class*=st-key-chart-loss] .js-plotly-plot .scatterlayer")
    curve = page.evaluate(
        """() => document.querySelector('[class*=st-key-chart-loss] .js-plotly-plot')
            ._fullData.find(trace => trace.name === 'evaluation').line.color"""
    )
    dot = page.evaluate(
        """() => getComputedStyle(document.querySelector('h3 .stMarkdownColoredText')).color"""
    )
    widget(page, "monitor.log").locator("label").first.click()
    plot = "document.querySelector('[class*=st-key-chart-loss] .js-plotly-plot')"
    page.wait_for_function(f"{plot}._fullLayout.yaxis.type === 'log'")
    low, high = page.evaluate(f"{plot}._fullLayout.yaxis.range.map(exponent => 10 ** exponent)")
    names = page.evaluate(f"{plot}._fullLayout.annotations.map(name => 10 ** name.y)")
    losses = page.evaluate(f"{plot}._fullData.flatMap(trace => Array.from(trace.y))")
    context.close()
    assert min(losses) / 2 < low < min(losses) and max(losses) < high < 2 * max(losses)
    assert names and all(low <= name <= high for name in names), "Names stand at their lines."
    from lab.paths import RunDir

    expected = colours.hex_of(run_colours.colour_of(RunDir(server.home / "runs" / run)), True)
    assert curve == expected
    red, green, blue = (int(expected[i : i + 2], 16) for i in (1, 3, 5))
    assert dot == f"rgb({red}, {green}, {blue})"
