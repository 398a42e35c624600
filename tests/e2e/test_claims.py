"""A claim is put to the test in the browser, and its verdict turns."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from lab.paths import all_runs
from tests.e2e.conftest import Server, settled, widget

pytestmark = pytest.mark.e2e


def test_a_claim_is_tested_and_its_verdict_turns(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/claims?id=C11")
    # while the page is drawn anew, the old heading may stand below the new one for a moment
    verdict = page.get_by_role("heading", level=4).first
    expect(verdict).to_contain_text("Open", timeout=120_000)
    widget(page, "claims.test.C11").get_by_role("button").click()
    expect(page.get_by_text(re.compile("Both runs take about"))).to_be_visible(timeout=120_000)
    widget(page, "claims.queue").get_by_role("button").dblclick()
    expect(widget(page, "claims.stop")).to_be_visible(timeout=120_000)
    assert len(all_runs()) == 2, "two clicks start it once"
    expect(verdict).to_contain_text("testing …")
    turned = re.compile("Confirmed|Off|no difference shown")
    expect(verdict).to_contain_text(turned, timeout=180_000)
    losses = re.compile(r"rank 8 on all linear layers \d+\.\d{3}, rank 64 on q and v")
    expect(page.get_by_role("paragraph").filter(has_text=losses)).to_be_visible()
    seen = verdict.text_content() or ""
    page.reload()
    settled(page)
    expect(verdict).to_have_text(seen)
    expect(page.get_by_text(re.compile("Tested 20.* with torch"))).to_be_visible()
