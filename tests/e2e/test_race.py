"""A person starts a race, watches it to its end, and reads its report without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from lab import paths
from lab.compare import race_file
from tests.e2e.conftest import Server, fill, settled, widget
from tests.e2e.offline import read_offline

pytestmark = pytest.mark.e2e


def test_a_race_is_started_watched_and_read_offline(
    page: Page, server: Server, chrome: Browser, tmp_path: Path
) -> None:
    page.get_by_role("link", name="Race").click()
    settled(page)
    widget(page, "race.own").get_by_role("button").click()
    settled(page)
    widget(page, "race.unit").get_by_text("Steps", exact=True).click()
    settled(page)
    fill(page, "race.budget.steps", "4")
    start = widget(page, "race.start").get_by_role("button")
    expect(start).to_be_enabled(timeout=120_000)
    expect(page.get_by_text("2 runs")).to_be_visible()
    start.click()
    page.wait_for_url(re.compile(r"/race\?race="), timeout=120_000)
    expect(page.get_by_text(re.compile("[01] of 2 done"))).to_be_visible()
    (race,) = race_file.all_races()
    assert race.started_by == "page" and len(race.runs) == 2
    report = widget(page, "race.report").get_by_role("button")
    expect(report).to_be_visible(timeout=200_000)  # by itself: nobody reloads
    assert all(cell.status.state == "done" for cell in race_file.cells(race))
    for each in race.runs:
        assert paths.run_dir(each.run).artifact.is_dir()
    headline = page.locator(".stMain h3").filter(has_text=re.compile("loss|difference|base")).first
    verdict = headline.inner_text()
    expect(page.locator(".st-key-race-curves .main-svg").first).to_be_visible()
    with page.expect_download() as download:
        report.click()
    file = tmp_path / "race.html"
    download.value.save_as(file)
    heading, charts = read_offline(chrome, file)
    assert plain(verdict) in plain(heading), "The report says what the page says."
    assert charts >= 2, "The curves of both runs are drawn without a network."


def plain(text: str) -> str:
    """The words, without dots in the colour of a run."""
    return " ".join(text.replace("●", "").split())
