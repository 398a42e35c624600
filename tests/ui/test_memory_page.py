"""The Memory page: any model and device in the URL, all methods, the rules, the limits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lab import methods, paths
from lab.ui import memory_charts, method_estimates
from lab.ui.charts import View
from tests.ui.conftest import Page, words


def test_the_url_opens_a_view_of_the_methods(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [methods.get("full"), methods.get("lora")]  # each more is a few seconds
    monkeypatch.setattr(methods, "all_methods", lambda: pair)
    query = {"model": "config:SmolLM2-135M", "device": "T4 16GB", "rows": "2", "length": "128"}
    at = open_page("memory", **query)
    assert at.selectbox(key="memory.model").value == "config:SmolLM2-135M"
    assert at.selectbox(key="device").value == "T4 16GB"
    settings = {
        "model": "config:SmolLM2-135M", "rows": 2, "length": 128, "rank": 16,
        "checkpointing": "auto", "loss": "fused",
    }  # fmt: skip
    job = method_estimates.job_for(settings, {"gpu": "T4 16GB"})
    deadline = time.monotonic() + 240
    while not job.is_complete and time.monotonic() < deadline:
        time.sleep(0.2)
    assert job.error is None and job.is_complete
    at.run()
    assert not at.exception
    rows = job.rows()
    assert len(rows) + len(job.refused) == 2
    assert all(row.forecast.memory.how.is_exact for row in rows)
    assert "Where it stops to fit" in words(at) and len(at.get("plotly_chart")) == 1
    longest = job.limits["lora"].longest_row
    # the whole trace says 15.760 GB at 7,961 tokens, and 15.756 GB are there
    assert longest == pytest.approx(7961, rel=0.01)

    figure = memory_charts.bars(rows, {"name": "T4", "bytes": 10**9}, View())
    peaks = {row.title: row.forecast.memory.peak_bytes / 1e9 for row in rows}
    totals: dict[str, float] = dict.fromkeys(peaks, 0.0)
    for trace in figure.data:
        if trace.type == "bar":
            for title, value in zip(trace.y, trace.x, strict=True):
                totals[title] += value
    assert all(abs(totals[title] - peak) < 1e-6 for title, peak in peaks.items())
    claims = {row["claim"]: row for row in memory_charts.held_against(rows)}
    full = next(row.forecast.memory for row in rows if row.name == "full")
    expected: Any = 14 * 134_515_008 / full.peak_bytes - 1
    assert abs(claims["B1-adamw-bf16"]["error"] - expected) < 1e-9
    assert memory_charts.as_csv(memory_charts.table(rows)).count("\n") == len(rows) + 1


def test_a_config_is_uploaded(open_page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[dict[str, Any]] = []
    monkeypatch.setattr(
        method_estimates.MethodEstimates,
        "start",
        lambda self: requests.append(self.settings) or self,
    )
    at = open_page("memory")
    shape = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}
    given = at.file_uploader(key="memory.upload")
    given.upload("config.json", json.dumps(shape).encode(), "application/json").run()
    assert not at.exception and not at.error
    folder = Path(requests[-1]["model"])
    assert folder.is_relative_to(paths.home())
    assert json.loads((folder / "config.json").read_text()) == shape
    for content, says in (
        (b"[1, 2]", "no config.json of a model"),
        (b"no JSON", "The file is not JSON"),
        (b'{"hidden_size": 64}', "no config.json of a model"),
    ):
        given = at.file_uploader(key="memory.upload")
        given.upload("config.json", content, "application/json").run()
        assert says in at.error[0].value.replace("\\", "")
    assert len(list(folder.parent.iterdir())) == 1, "what is no config is not kept"


def test_a_model_that_is_not_there(open_page: Page) -> None:
    open_page("memory", model="config:no-such-model")
    job = next(reversed(method_estimates._jobs._entries.values()))
    deadline = time.monotonic() + 30
    while not job.is_complete and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.rows() == []
    assert all("no shipped config 'no-such-model'" in why for why in job.refused.values())
