"""What was forgotten, on Monitor and on Compare: behaviour against the base, and lost answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lab.compare import figures
from lab.compare.contestants import contestants
from lab.paths import RunDir
from lab.runs.metric_series import series_of
from lab.ui import forgotten
from tests.compare.recorded import record
from tests.ui.conftest import Page, words

PROBE = {
    "probe/rise": 0.31, "probe/ended": 0.5, "probe/base_ended": 4 / 6, "probe/answer_tokens": 33.4,
    "probe/base_answer_tokens": 27.0, "probe/seconds": 10.0,
}  # fmt: skip
LOST = [
    {"prompt": "Why?", "before": "Because.", "now": "ls -a", "rise": 0.4},
    {"prompt": "<b>Who</b> [x](http:y)?", "before": "I.", "now": "", "rise": 1.25},
]


def probed(letters: str, name: str, lost: list[Any] | None = None, **figures: float) -> RunDir:
    """A run of 100 s that measured forgetting twice."""
    run = record(letters, name, seconds=100.0)
    with run.metrics.open("a") as file:
        for step in (1, 2):
            at = {"kind": "probe", "attempt": 1, "step": step, "tokens": 500 * step,
                  "seconds": 50.0 * step}  # fmt: skip
            file.write(json.dumps(at | PROBE | figures) + "\n")
    with run.events.open("a") as file:
        examples = LOST if lost is None else lost
        file.write(json.dumps({"kind": "forgotten", "step": 2, "examples": examples}) + "\n")
    return run


def test_behaviour_and_its_share_of_the_time_in_words() -> None:
    series = series_of(probed("aaaa", "A"))
    assert forgotten.behaviour_in_words(series) == (
        "Answers to six general prompts that end by themselves: **50 %** (base 67 %); mean length "
        "**33 tokens** (base 27)."
    )
    assert forgotten.share_of_time(series) == (
        "Measuring forgetting took 20 s, 17 % of the time of training and measuring together."
    )
    older = series_of(record("bbbb", "B", rise=0.1))
    assert forgotten.behaviour_in_words(older) == "" == forgotten.share_of_time(older)


def test_the_largest_rise_comes_first_and_damaged_examples_are_left_out() -> None:
    damaged: list[Any] = [{"prompt": "p"}, "x", {**LOST[0], "rise": float("nan")}]
    run = probed("aaaa", "A", [LOST[0], *damaged, LOST[1]])
    assert [each["rise"] for each in forgotten.examples(run)] == [1.25, 0.4]
    assert forgotten.examples(record("bbbb", "B")) == []


def test_monitor_shows_it_after_the_end(open_page: Page) -> None:
    at = open_page("monitor", run=probed("aaaa", "A").id)
    assert "how it answers now" in words(at)
    lost = at.table[0].value
    assert lost["Loss, nats per token"].tolist() == ["+1.25", "+0.40"]
    assert lost["Now"].tolist() == ["*(empty answer)*", "ls \\-a"]
    assert "](http" not in lost["Prompt"].iloc[0] and "\\[x\\]" in lost["Prompt"].iloc[0]
    assert "17 % of the time" in words(at)
    assert "how it answers now" not in words(open_page("monitor", run=record("bbbb", "B").id))


def test_compare_shows_it_for_each_run(open_page: Page) -> None:
    runs = [probed("aaaa", "wren lora"), record("bbbb", "plain", "full")]
    at = open_page("compare", runs=",".join(run.id for run in runs), tab="By example")
    at.toggle(key="compare.forgotten").set_value(True).run()
    assert not at.exception
    assert [row["Base"] for _, row in at.table[0].value.iterrows()] == ["I\\.", "Because\\."]
    assert "Trained without the forgetting probe" in words(at)
    at = open_page("compare", runs=runs[1].id, tab="By example")
    assert [toggle.key for toggle in at.toggle if toggle.key == "compare.forgotten"] == []


def test_the_noise_of_forgetting_stands_beside_it_for_a_single_seed() -> None:
    run = contestants([probed("aaaa", "A", **{"probe/rise_half": 0.044, "probe/kl": 0.2})])
    rows = {row.figure.key: row for row in figures.figure_rows(run)}
    forgetting = rows["forgetting"]
    assert figures.text(forgetting.figure, *_value(forgetting)) == "+0.31 ± 0.04"
    assert _value(rows["kl"])[1] is None, "an older run did not draw them again"


def _value(row: figures.Row) -> tuple[float | None, float | None]:
    return row.cells[0].value, row.cells[0].half


def test_figures_and_curves_hold_behaviour_against_the_base() -> None:
    runs = contestants([probed("aaaa", "A"), probed("bbbb", "B", **{"probe/ended": 1.0})])
    rows = {row.figure.key: row for row in figures.figure_rows(runs)}
    ended, length = rows["ended"], rows["answer_tokens"]
    assert ended.base == pytest.approx(4 / 6) and length.base == 27.0
    assert [figures.text(ended.figure, cell.value) for cell in ended.cells] == ["50 %", "100 %"]
    assert figures.text(length.figure, length.cells[0].value) == "33 tokens"
    assert not any(cell.is_best for cell in ended.cells), "the base is the measure, not the most"
