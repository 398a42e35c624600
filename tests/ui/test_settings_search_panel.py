"""The fastest settings on the pages, and the time of a run while its form is filled in."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lab import formatting
from lab.ui import estimate_panel
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


def number(at: Any, key: str, value: int) -> None:
    at.number_input(key=key).set_value(value)


def test_the_form_takes_over_the_fastest_settings(open_page: Page) -> None:
    """Sixteen bits are planned for this processor where there is no GPU."""
    at = open_page("new_run")
    at.session_state["new.train.precision"] = "bfloat16"
    number(at, "new.train.batch_size", 1)
    number(at, "new.train.gradient_accumulation_steps", 2)
    at.run()
    assert at.session_state["new.train.precision"] == "bfloat16"
    at.button(key="plan").click().run()
    assert not at.exception and not at.error, words(at)
    text = words(at).replace("\\", "")
    assert "tokens/s**" in text and "torch.compile: off: only worthwhile on a GPU" in text
    at.button(key="plan.take").click().run()
    assert not at.exception
    assert at.session_state["new.train.batch_size"] == 2, "all rows of a step in one pass"
    assert at.session_state["new.train.gradient_accumulation_steps"] == 1
    assert not [button for button in at.button if button.key == "plan.take"], "of another form"


def test_a_form_with_problems_has_no_fastest_settings(open_page: Page) -> None:
    at = open_page("new_run")
    number(at, "new.data.max_length", 10**7)
    at.run()
    assert at.button(key="plan").disabled and "Sequence length" in words(at)
    assert "new.choices" not in at.session_state


def test_the_memory_page_plans_for_any_device(open_page: Page) -> None:
    at = open_page("memory", model="config:Llama-3.2-1B", rows="1")
    at.session_state["memory.tab"] = "Fastest settings"
    at.selectbox(key="device").set_value("RTX 3060 12GB").run()
    at.button(key="memory.plan").click().run()
    assert not at.exception and not at.error
    (table,) = [table.value for table in at.dataframe if "batch × accumulation" in table.value]
    assert "fastest that fits" in table["note"][0] and table["peak memory (GB)"][0] < 12
    assert "a typical MFU" in words(at)


@pytest.mark.usefixtures("forecasts")
def test_the_time_is_said_with_what_it_is_for(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("lora", train={"max_steps": 1})
    job = estimate_panel.job_for(spec)
    deadline = time.monotonic() + 60
    while not job.is_complete and time.monotonic() < deadline:
        time.sleep(0.1)
    assert job.estimate is not None and job.estimate.runtime is not None
    runtime, disk = job.estimate.runtime, job.estimate.disk
    assert runtime.steps == 1 and disk is not None
    screen = Screen()
    monkeypatch.setattr(estimate_panel, "st", screen)
    estimate_panel._time(runtime, disk)
    metrics = {args[0]: args[1] for kind, args, _ in screen.calls if kind == "metric"}
    assert metrics["Run time"] == formatting.duration(runtime.whole_s)
    assert metrics["Disk"] == formatting.size(disk.total)
    (sentence,) = screen.texts("caption")
    assert sentence.startswith(f"1 step, training {formatting.duration(runtime.seconds)}")
    assert sentence.endswith("rough: no finished run on this machine to calibrate it")
