"""Figures as text, as a table of a spreadsheet, and in the report: each with its unit and sense."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from lab.compare import notes, report
from lab.compare.contestants import Contestant, contestants
from lab.compare.figures import BY_KEY, as_csv, figure_rows, interval, text, trainable_text
from lab.compare.settings_diff import setting_text
from lab.errors import LabError
from tests.compare.recorded import change_event, record


def name(contestant: Contestant) -> str:
    return contestant.name


@pytest.fixture
def pair() -> list[Contestant]:
    """A is quicker and better, B smaller in memory."""
    return contestants(
        [
            record("aaaa", "A", losses=(3.0, 2.41), peak=3e9, seconds=50, power=72.0, rise=0.06),
            record("bbbb", "B", "full", losses=(3.0, 2.52), seconds=100, power=72.0, rise=0.31),
        ]
    )


@pytest.mark.parametrize(
    ("key", "value", "half", "words"),
    [
        ("loss", 2.4116, 0.0184, "2.412 ± 0.018"), ("loss", 2.4116, None, "2.412"),
        ("perplexity", 11.152, None, "11.2"), ("perplexity", 2.5e5, None, "2.5e+05"),
        ("forgetting", 0.061, None, "+0.06"), ("forgetting", -0.061, 0.02, "−0.06 ± 0.02"),
        ("kl", 0.0613, None, "0.061"), ("ended", 0.5, None, "50 %"),
        ("answer_tokens", 33.4, None, "33 tokens"), ("peak_bytes", 2.18e9, None, "2.18 GB"),
        ("seconds", 250.0, None, "4 min 10 s"), ("tokens_per_s", 1234.5, None, "1,234"),
        ("tokens_per_s", 2.34, None, "2.3"), ("energy_wh", 2.0, None, "2.0 Wh"),
        ("energy_wh", 999.4, None, "999.4 Wh"), ("energy_wh", 2500.0, None, "2.5 kWh"),
        ("cost", 0.1, None, "0.10 USD"), ("cost", 0.0012, None, "0.0012 USD"),
        ("flops", 4e12, None, "4e12"), ("trainable", 4_900_000.0, None, "4.9 M"),
        ("needed_rank", 6.0, None, "6"), ("effective_rank", 6.25, 0.5, "6.2 ± 0.5"),
        ("loss", None, None, "–"), ("loss", float("nan"), None, "–"),
    ],
)  # fmt: skip
def test_a_figure_reads_in_its_unit(
    key: str, value: float | None, half: float | None, words: str
) -> None:
    assert text(BY_KEY[key], value, half) == words


@pytest.mark.parametrize(
    ("trainable", "parameters", "words"),
    [
        (4_900_000, 140_000_000, "4.9 M (3.5 %)"), (140, 1000, "140 (14 %)"),
        (7, 10_000, "7 (0.070 %)"), (4_900_000, None, "4.9 M"), (None, 1000, "–"),
    ],
)  # fmt: skip
def test_what_trains_is_told_with_its_share(
    trainable: int | None, parameters: int | None, words: str
) -> None:
    run = record("aaaa")
    change_event(run, "model", trainable=trainable, parameters=parameters)
    assert trainable_text(contestants([run])[0]) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "none"), ("", "none"), ([], "none"), (True, "on"), (False, "off"), (0, "0"),
        (2e-4, "2e-4"), (20_000, "20,000"), (4096, "4096"), (["a", "b"], "a, b"),
        ({"a": 1, "b": 2}, "a: 1, b: 2"), (1e6, "1,000,000"), ("auto", "auto"),
    ],
)  # fmt: skip
def test_a_setting_reads_as_a_person_says_it(value: Any, words: str) -> None:
    assert setting_text(value) == words


def test_a_table_for_spreadsheets_has_units_senses_and_both_sides(pair: list[Contestant]) -> None:
    head, *lines = csv.reader(io.StringIO(as_csv(pair, name, price=3.6)))
    assert head == ["figure", "unit", "better", "base", "A", "A ± (95 % interval)", "B",
                    "B ± (95 % interval)"]  # fmt: skip
    rows = {line[0]: line[1:] for line in lines}
    assert rows["Evaluation loss"][:3] == ["nats per token", "lower", "3.59"]
    assert [float(rows["Evaluation loss"][at]) for at in (3, 5)] == pytest.approx([2.41, 2.52])
    assert rows["Tokens per second"][:3] == ["tokens/s", "higher", ""]
    assert rows["Energy"] == ["Wh", "lower", "", "1.0", "", "2.0", ""], "72 W for 50 and 100 s"
    assert [float(rows["Cost"][at]) for at in (3, 5)] == pytest.approx([0.05, 0.1])
    assert rows["Forgetting (rise on the base's own answers)"][2] == "0.0", "the base's own"


def test_the_interval_of_a_cost_is_in_its_currency() -> None:
    """Of an hour and of two, at 3 USD each: the half interval is in USD as well."""
    hours = (("aaaa", 1), ("bbbb", 2))
    runs = [record(each, "A", seed=count, seconds=3600.0 * count) for each, count in hours]
    (both,) = contestants(runs)
    value, half = interval(both, "seconds", 3.0)
    assert value == pytest.approx(5400.0) and half is not None and half > 1800
    assert interval(both, "cost", 3.0) == pytest.approx((4.5, half / 1200))
    assert interval(both, "cost", 0.0) == (None, None), "Without a price nothing costs anything."


def test_the_report_shows_the_sense_the_base_and_the_best_of_each_figure(
    pair: list[Contestant],
) -> None:
    page = report.as_html(pair, name, {}, price=3.6)
    cells = {
        row[0]: row[1:]
        for line in re.findall("<tr>(.*?)</tr>", page)
        if (row := re.findall("<t[dh][^>]*>(.*?)</t[dh]>", line))
    }
    assert cells["Figure"] == ["base", "A", "B"]
    assert cells["Evaluation loss ↓"] == ["3.590", "2.410 ✓", "2.520"]
    assert cells["Tokens per second ↑"] == ["–", "20 ✓", "10"]
    assert cells["Peak memory ↓"] == ["–", "3.00 GB", "2.00 GB ✓"]
    assert cells["Cost ↓"] == ["–", "0.05 USD ✓", "0.10 USD"]
    assert cells["Method"] == ["LoRA", "Full fine-tuning"] and "Seed" not in cells
    assert "Equal terms: " in page and "The same for all: " in page


def test_the_report_as_json_has_fronts_and_curves_of_each(pair: list[Contestant]) -> None:
    stored = report.as_json(pair, name, price=3.6)
    assert [(each["name"], each["runs"][0]["seed"]) for each in stored["contestants"]] == [
        ("A", 0), ("B", 0),
    ]  # fmt: skip
    fronts = {(front["x"], front["y"]): front["ids"] for front in stored["fronts"]}
    first, second = (each.id for each in pair)
    assert fronts == {
        ("forgetting", "loss"): [first], ("peak_bytes", "loss"): [second, first],
    }, "B needs less memory; in nothing else is it better."  # fmt: skip
    assert {line["by"] for line in stored["curves"]} == {
        "step", "tokens", "seconds", "flops", "energy", "cost",
    }  # fmt: skip
    assert stored["price_usd_per_hour"] == 3.6
    assert report.as_json(pair, name)["price_usd_per_hour"] is None


def test_notes_go_out_with_the_report_as_text(pair: list[Contestant]) -> None:
    ids = report.ids_of(pair)
    notes.write(ids[::-1], "A <b>wins</b>\nfor now")
    assert notes.read(ids) == "A <b>wins</b>\nfor now" and notes.read(ids[:1]) == ""
    assert "A &lt;b&gt;wins&lt;/b&gt;<br>for now" in report.as_html(pair, name, {})
    assert report.as_json(pair, name)["notes"].startswith("A <b>")
    with pytest.raises(LabError, match="have 20,001 characters"):
        notes.write(ids, "x" * 20_001)
    assert notes.read(ids).startswith("A <b>"), "What was there stays."


def test_what_the_probe_says_of_answers_stands_beside_that_of_the_base() -> None:
    run = record("aaaa", rise=0.1)
    probe = {
        "kind": "probe", "attempt": 1, "step": 2, "probe/rise": 0.1, "probe/kl": 0.2,
        "probe/ended": 0.25, "probe/base_ended": 0.75, "probe/answer_tokens": 31.0,
        "probe/base_answer_tokens": 22.0,
    }  # fmt: skip
    with run.metrics.open("a") as file:
        file.write(json.dumps(probe) + "\n")
    rows = {row.figure.key: row for row in figure_rows(contestants([run]))}
    shown = {key: (row.cells[0].value, row.base) for key, row in rows.items()}
    assert shown["ended"] == (0.25, 0.75) and shown["answer_tokens"] == (31.0, 22.0)
    assert shown["forgetting"] == (0.1, 0.0) and shown["kl"] == (0.2, 0.0), "of the base itself"
