"""One walk through the pages without training: a form, the picker offline, a curve, rows."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lab.data import catalog
from tests.e2e.conftest import Server, fill, settled, widget

pytestmark = pytest.mark.e2e

LOSS = "document.querySelector('[class*=st-key-chart-loss] .js-plotly-plot')"
CHECKPOINT = f"""() => {{
    const plot = {LOSS}, layout = plot._fullLayout, box = plot.getBoundingClientRect();
    const squares = plot._fullData.find(trace => trace.name === 'checkpoint');
    return [box.left + layout._size.l + layout.xaxis.l2p(squares.x[0]),
            box.top + layout._size.t + layout.yaxis.l2p(squares.y[0])];
}}"""


def test_the_pages_answer_without_a_run(page: Page, server: Server, trained_home: Path) -> None:
    shutil.copytree(trained_home / "runs", server.home / "runs")
    form_answers_at_once(page, server)
    picker_works_offline(page)
    curve_leads_to_its_checkpoints(page, server)
    rows_are_mended(page, server)


def form_answers_at_once(page: Page, server: Server) -> None:
    """Bounds are checked by the schema: no planner stands between a key and its answer."""
    page.goto(f"{server.url}/new_run")
    settled(page)
    took = []
    for value in ("5", "7", "9"):
        box = widget(page, "new.train.learning_rate").locator("input").first
        box.click()
        box.fill(value)
        began = time.monotonic()
        box.press("Enter")
        page.get_by_text(f"Learning rate is {value}").first.wait_for(timeout=10_000)
        took.append(time.monotonic() - began)
    # the planner would take many times as long; the bound leaves room for a busy machine
    assert min(took) < 5.0, f"seconds until a bound is told: {took}"
    fill(page, "new.train.learning_rate", "auto")


def picker_works_offline(page: Page) -> None:
    widget(page, "new.pick").get_by_role("button").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("Only what fits here")).to_be_visible(timeout=15_000)
    dialog.get_by_text("Hub", exact=True).click()
    dialog.locator("input").first.fill("smol")
    expect(dialog.get_by_text("HF_HUB_OFFLINE is set").first).to_be_visible(timeout=15_000)
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_be_hidden()


def curve_leads_to_its_checkpoints(page: Page, server: Server) -> None:
    run = next(path.name for path in (server.home / "runs").iterdir())
    page.goto(f"{server.url}/monitor?run={run}")
    settled(page)
    page.get_by_text("Log scale").click()
    settled(page)
    page.wait_for_function(f"() => {LOSS}._fullLayout.yaxis.type === 'log'")
    low, high = page.evaluate(f"() => {LOSS}._fullLayout.yaxis.range")
    shown = page.evaluate(
        f"() => {LOSS}._fullData.flatMap(trace => Array.from(trace.y)).filter(y => y > 0)"
    )
    assert 0.7 * min(shown) < 10**low <= min(shown), "no further than the data"
    assert max(shown) <= 10**high < 1.4 * max(shown), "and no annotation stretches the axis"
    page.locator("[class*=st-key-chart-loss] .js-plotly-plot").scroll_into_view_if_needed()
    page.mouse.click(*page.evaluate(CHECKPOINT))
    expect(page.get_by_role("link", name="Chat with step").first).to_be_visible(timeout=10_000)


def rows_are_mended(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/data?dataset=builtin:support-tickets")
    settled(page)
    page.get_by_role("tab", name="Rows", exact=True).click(timeout=60_000)
    settled(page)
    first = "hello?? i paid $60.00 extra"
    fill(page, "data.rows.search", first)
    grid = page.get_by_test_id("stDataFrame").first
    grid.scroll_into_view_if_needed()
    box = grid.bounding_box()
    assert box is not None
    page.mouse.dblclick(box["x"] + 220, box["y"] + 55)  # the first cell of text, below the header
    page.keyboard.press("Control+A")
    page.keyboard.type("My parcel is late.")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 row edited")).to_be_visible(timeout=10_000)
    fill(page, "data.rows.search", "")
    expect(page.get_by_text("1 row edited")).to_be_visible()  # another search loses nothing
    page.get_by_role("button", name="Save as a new dataset").click()
    expect(page.get_by_text("support-tickets-edited.jsonl").first).to_be_visible(timeout=20_000)
    lines = (server.home / "datasets" / "support-tickets-edited.jsonl").read_text().splitlines()
    original = catalog.resolve("builtin:support-tickets").path.read_text().splitlines()
    assert len(lines) == len(original)
    assert json.loads(lines[0])["text"] == "My parcel is late."
    assert [json.loads(line) for line in lines[1:]] == [json.loads(line) for line in original[1:]]
