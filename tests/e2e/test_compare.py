"""A person reads the verdict on two runs and opens their report without a network."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.compare.recorded import record
from tests.e2e.conftest import Server, settled, widget
from tests.e2e.offline import read_offline


def test_the_report_of_a_comparison_opens_offline(
    page: Page, server: Server, chrome: Browser, tmp_path: Path
) -> None:
    runs = [
        record("aaaa", "wren lora", losses=(3.0, 2.41), rise=0.06),
        record("bbbb", "wren full", "full", losses=(2.9, 2.52), rise=0.31),
    ]
    page.goto(f"{server.url}/compare?runs={','.join(run.id for run in runs)}")
    settled(page)
    verdict = widget(page, "compare-verdict")
    verdict.get_by_text("wren lora has the lowest evaluation loss: 2.41").wait_for()
    assert "another seed may turn it" in verdict.inner_text()
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Report (HTML)").first.click()
    file = tmp_path / "report.html"
    download.value.save_as(file)
    heading, charts = read_offline(chrome, file)
    assert charts >= 4
    assert "wren lora has the lowest evaluation loss: 2.41" in heading


def test_two_runs_are_selected_compared_and_the_verdict_is_read(page: Page, server: Server) -> None:
    """From the list: two rows, one click, one sentence."""
    record("aaaa", "wren lora", losses=(3.0, 2.41))
    record("bbbb", "wren <b>full", "full", losses=(2.9, 2.52), labels={"colour": "orange"})
    record("cccc", "left out", losses=(3.2, 3.1), labels={"colour": "violet"})
    page.get_by_role("link", name="Runs").click()
    settled(page)
    table = page.locator("[data-testid=stDataFrame]").first
    table.wait_for()
    box = table.bounding_box()
    assert box is not None
    for row in (1, 2):  # the newest is left out; at the left end of each line is its box
        page.mouse.click(box["x"] + 16, box["y"] + 35 * (row + 1) + 17)
        settled(page)
    widget(page, "runs.compare").get_by_role("button").click()
    page.wait_for_url(re.compile(r"/compare\?.*runs="))
    verdict = widget(page, "compare-verdict")
    verdict.get_by_text("wren lora has the lowest evaluation loss: 2.41").wait_for()
    words = verdict.inner_text()
    assert "0.11" in words and "below" in words and "wren <b>full" in words, words
    assert "left out" not in words, "Only what was selected is compared."
