"""From a result to a file in one's hand, and from a curve to a chat, in a real browser."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lab.chat import client
from lab.paths import all_runs
from lab.runs import checkpoints
from tests.e2e.conftest import Server, settled, widget

pytestmark = pytest.mark.e2e


def test_merge_prove_download_then_chat_with_a_checkpoint_and_free_the_memory(
    page: Page, server: Server, trained_home: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained_home / "runs", server.home / "runs")
    run = all_runs()[0]
    page.goto(f"{server.url}/results?run={run.id}")
    settled(page)
    widget(page, "results.merged").get_by_role("button").click()
    begun = re.compile("starting|loading the result|merging|proving|PROOF OF THE MERGE")
    expect(page.get_by_text(begun).first).to_be_visible(timeout=30_000)
    page.reload()  # the work goes on
    expect(page.get_by_text("PROOF OF THE MERGE")).to_be_visible(timeout=90_000)
    link = widget(page, f"download.merged-bfloat16.{run.id}").get_by_role("link")
    with page.expect_download() as event:
        link.click()
    file = tmp_path / "merged.zip"
    event.value.save_as(file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert any(name.endswith("/model.safetensors") for name in archive.namelist())
    page.goto(f"{server.url}/monitor?run={run.id}")
    settled(page)
    point = page.locator("[class*=st-key-chart-loss] .scatterlayer .trace .point").first
    point.click(force=True)
    step = checkpoints.step_of(checkpoints.listing(run.checkpoints)[0])
    chat = page.locator("[class*=st-key-monitor-point-chat]").get_by_role("button")
    expect(chat).to_be_visible(timeout=15_000)
    chat.click()
    page.wait_for_url(re.compile(rf"/chat\?.*{run.id}(@|%40){step}"), timeout=30_000)
    settled(page)
    box = page.get_by_placeholder("Ask all of them the same")
    box.fill("Hi")
    box.press("Enter")
    expect(page.get_by_text(re.compile("first after")).first).to_be_visible(timeout=90_000)
    settled(page)
    assert client.record() is not None
    page.get_by_role("button", name="Settings").click()
    widget(page, "chat.free").get_by_role("button").click()
    expect(page.get_by_text("No model is in memory")).to_be_visible(timeout=15_000)
    assert client.record() is None, "The process is gone."
