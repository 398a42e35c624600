"""A blind vote in a real browser, with models that answer."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from lab.compare import votes
from lab.paths import RunDir
from lab.runs import index
from tests.e2e.conftest import Server, fill, settled, widget

pytestmark = pytest.mark.e2e


def test_a_blind_vote_from_the_first_prompt_to_the_verdict(
    page: Page, server: Server, work_here: Callable[..., RunDir]
) -> None:
    """Vote by key and by button, change a vote, reload in the middle, see the names at the end."""
    run = work_here("lora", train={"learning_rate": 0.03})  # so that it answers otherwise
    name = index.entry(run).name
    page.goto(f"{server.url}/chat?models=base:{index.entry(run).model},run:{run.id}")
    settled(page)
    page.get_by_role("button", name="Settings").click()
    fill(page, "chat.max_tokens", "6")
    page.keyboard.press("Escape")
    page.get_by_text("Blind vote", exact=True).click()
    fill(page, "vote.planned", "2")
    widget(page, "vote.start").get_by_role("button").click()
    box = page.get_by_placeholder("Message both models")
    for number, question in enumerate(("What is 2 plus 2?", "Who made you?"), 1):
        box.fill(question)
        box.press("Enter")
        expect(page.get_by_text("Answer B")).to_be_visible()
        expect(page.get_by_text(re.compile(f"Vote {number} of 2"))).to_be_visible()
        page.reload()
        settled(page)
        expect(page.get_by_text("Answer B")).to_be_visible()
        main = page.locator("[data-testid=stMain]").inner_text()
        assert name not in main and "/s" not in main, "Neither name nor speed is told."
        assert run.id not in page.url, "The address names nobody."
        assert run.id not in page.content(), "Nor does what is drawn."
        page.get_by_role("heading", name="Chat").click()
        page.keyboard.press("4")
        expect(widget(page, "vote.4").locator("[data-testid*=primary]")).to_be_visible()
        changed = widget(page, "vote.2" if number == 2 else "vote.1")
        changed.get_by_role("button").click()
        expect(changed.locator("[data-testid*=primary]")).to_be_visible()
        settled(page)
    widget(page, "vote.names").get_by_role("button").click()
    expect(page.get_by_text("1 tie, 0 both bad, 0 identical.")).to_be_visible()
    expect(page.get_by_text(re.compile("preferred in 1 of 1 decided vote"))).to_be_visible()
    expect(page.get_by_text(re.compile(name)).first).to_be_visible()
    session = votes.all_sessions()[0]
    first, second = (prompt.votes["me"] for prompt in session.prompts)
    assert (first, second) == (session.prompts[0].order[0], votes.TIE), "The last press counts."
