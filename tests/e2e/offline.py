"""An exported report, opened by a browser that has no network."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser

from tests.e2e.conftest import other_browser


def read_offline(chrome: Browser, file: Path) -> tuple[str, int]:
    """(its heading, the number of charts that are drawn). Fails if it asks for anything."""
    requests: list[str] = []
    report = other_browser(chrome, offline=True)
    report.on("request", lambda request: requests.append(request.url))
    report.goto(file.as_uri())
    report.locator(".js-plotly-plot .main-svg .scatterlayer path").first.wait_for(state="attached")
    charts = report.locator(".js-plotly-plot:has(.main-svg)").count()
    heading = report.inner_text("h1")
    report.context.close()
    outside = [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
    assert outside == [], "the report asks for something"
    return heading, charts
