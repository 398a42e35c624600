"""A person reads the verdict on two runs and opens their report without a network."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.compare.recorded import record
from tests.e2e.conftest import Server, settled, widget


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
    verdict.get_by_text("wren lora has the lowest evaluation loss: 2.41").wait_for(timeout=20_000)
    assert "another seed may turn it" in verdict.inner_text()
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Report (HTML)").first.click()
    file = tmp_path / "report.html"
    download.value.save_as(file)
    context = chrome.new_context(offline=True)
    requests: list[str] = []
    report = context.new_page()
    report.on("request", lambda request: requests.append(request.url))
    report.goto(file.as_uri())
    report.locator(".js-plotly-plot .main-svg").first.wait_for(timeout=20_000)
    assert report.locator(".js-plotly-plot").count() >= 4
    assert "wren lora has the lowest evaluation loss: 2.41" in report.inner_text("h1")
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [], "the report asks for nothing"
    context.close()
