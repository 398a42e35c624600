"""A trained model is taken away from the Results page, and loads without the lab."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect

from lab.export import exports
from lab.formatting import size
from lab.paths import all_runs
from tests.e2e.conftest import Server, settled, widget

pytestmark = pytest.mark.e2e

IDS = torch.arange(5, 25)[None]


def test_a_result_is_merged_proven_downloaded_and_loads_without_the_lab(
    page: Page, server: Server, trained_home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Sizes of adapter, merged and whole model; the merge with its proof; both downloads."""
    shutil.copytree(trained_home / "runs", server.home / "runs")
    full, lora = all_runs()[::-1]
    page.goto(f"{server.url}/results?run={full.id}")
    settled(page)
    whole = size(sum(file.stat().st_size for file in full.artifact.rglob("*")))
    expect(page.get_by_role("heading", name=whole, exact=True)).to_be_visible()
    page.goto(f"{server.url}/results?run={lora.id}")
    settled(page)
    adapter = size(sum(file.stat().st_size for file in lora.artifact.rglob("*")))
    about = size(exports.predicted_bytes(lora, "merged", "bfloat16"))
    for text in (adapter, f"about {about}"):
        expect(page.get_by_role("heading", name=text, exact=True)).to_be_visible()
    widget(page, "results.merged").get_by_role("button").click()
    expect(page.get_by_text("Equal within bounds")).to_be_visible()
    expect(page.get_by_text(re.compile("Largest logit difference")).first).to_be_visible()
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    links = page.get_by_role("link", name="Download ZIP")
    with torch.inference_mode():
        alone = base(IDS).logits
        tuned = PeftModel.from_pretrained(
            base, downloaded(page, links.nth(0), tmp_path / "adapter")
        )
        logits = tuned.eval()(IDS).logits
        folder = downloaded(page, links.nth(1), tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        rounded = float((merged(IDS).logits - logits).abs().max())
    effect = float((logits - alone).abs().max())
    assert rounded < 0.1 * effect, "What was merged is what was trained, in 16 bits."


def downloaded(page: Page, link: object, folder: Path) -> Path:
    """The folder in a ZIP that a click on `link` gives."""
    with page.expect_download() as download:
        link.click()  # type: ignore[attr-defined]
    file = folder.with_suffix(".zip")
    download.value.save_as(file)
    zipfile.ZipFile(file).extractall(folder)
    return next(folder.iterdir())
