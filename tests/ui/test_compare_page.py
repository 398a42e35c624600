"""The Compare page: what it says of recorded runs, what it draws, and what it reads."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
from typing import Any

import numpy as np
import pytest

from lab import gpu_table, process
from lab.advise import prices
from lab.atomic_files import write_json
from lab.background_job import JobRecord
from lab.compare import notes
from lab.compare.contestants import contestants
from lab.compare.curves import MAX_POINTS, Curve, lead_changes, standings
from lab.compare.equal_terms import equal_terms
from lab.paths import RunDir
from lab.rank import convert, measure, repair
from lab.rank.repair import Quality
from lab.rank.spectrum import spectrum
from lab.runs import index
from lab.ui import (
    compare_curves,
    compare_examples,
    compare_export,
    compare_plots,
    compare_price,
    compare_rank,
    compare_runs,
    compare_verdict,
    end_card,
)
from lab.ui.chart_style import View
from tests.compare.recorded import record
from tests.compare.test_curves import A, B
from tests.compare.test_verdict import NOISE
from tests.ui.conftest import Page, words
from tests.ui.screen import Screen


def three() -> list[Any]:
    return [
        record("aaaa", "wren lora", losses=(3.0, 2.6, 2.41), seconds=250, peak=2.18e9, rise=0.06),
        record("bbbb", "wren full", "full", losses=(2.7, 2.49, 2.52), noise=NOISE, seconds=411,
               peak=3.24e9, size=9000, rise=0.31, labels={"colour": "orange"}),
        record("cccc", "wren ia3", "ia3", losses=(3.3, 3.1, 2.96), seconds=222, peak=1.92e9,
               size=100, labels={"colour": "orange"}),
    ]  # fmt: skip


def test_the_page_says_the_verdict_the_terms_and_who_leads(open_page: Page) -> None:
    runs = three()
    at = open_page("compare", runs=",".join(run.id for run in runs), by="seconds", at="2.1")
    said = words(at).replace("\\", "")
    assert "wren lora has the lowest evaluation loss: 2.41" in said
    assert "One seed each: another seed may turn it. :orange[●] wren ia3 is 0.55 above it." in said
    assert "Comparable with a remark" in said and "Learning rates are defaults" in said
    assert "VERDICT · 10 held-out examples" in said
    assert "**At 2.1 min :orange[●] wren full leads with 2.77**" in said
    assert "the lead changes at 1.9 min and 2.5 min, then :blue[●] wren lora stays ahead" in said
    assert (at.query_params["by"], at.query_params["y"]) == ("seconds", "eval/loss")
    table = at.table[0].value
    figures = {row.iloc[0]: row.iloc[1:].tolist() for _, row in table.iterrows()}
    assert figures["Evaluation loss ↓"][0] == "3.590"
    assert figures["Evaluation loss ↓"][1].startswith("**2.410** :material/check_circle:")
    assert figures["Peak memory ↓"] == [
        "–", "2.18 GB", "3.24 GB", "**1.92 GB** :material/check_circle:",
    ]  # fmt: skip


@pytest.mark.parametrize("other", ["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "cpu"])
def test_an_hour_has_the_price_of_the_one_card_that_all_used(other: str) -> None:
    card = "NVIDIA H100 80GB HBM3"
    runs = [record("aaaa"), record("bbbb", "B", "full")]
    for run, device in zip(runs, (card, other), strict=True):
        write_json(run.environment, {"device": device})
    known = gpu_table.known(card)
    assert known is not None and (price := prices.current().of_card(known)) is not None
    shown = compare_price.current(contestants(runs))
    assert shown == (price.usd if other == card else 0.0), "two cards have no one price"


def test_a_price_of_zero_shows_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    run = record("aaaa")
    write_json(run.environment, {"device": "NVIDIA H100 80GB HBM3"})
    monkeypatch.setattr(compare_price.st, "session_state", {compare_price.PRICE: 0.0})
    assert compare_price.current(contestants([run])) == 0.0, "a person has set it to zero"


@pytest.mark.parametrize(
    ("order", "rows"),
    [
        ("Largest difference", [4, 2, 1, 0, 3, 5, 6, 7, 8, 9]),
        ("First lower", [4, 2, 0]),  # by how much, the most first
        ("Second lower", [1, 3]),
    ],
)
def test_held_out_examples_are_ordered_by_their_loss_a_token(order: str, rows: list[int]) -> None:
    noise = np.array([0.1, -0.2, 0.3, -0.05, 0.4, 0, 0, 0, 0, 0])
    runs = [record("aaaa", "A", losses=(2.0,)), record("bbbb", "B", losses=(2.0,), noise=noise)]
    frame = compare_examples.example_rows(*contestants(runs), order)
    assert list(frame["Row"]) == rows
    assert list(frame["A"]) == pytest.approx([2.0] * len(rows)), "in nats a token"
    assert list(frame["B"]) == pytest.approx([2.0 + noise[row] for row in rows])
    assert list(frame["Difference"]) == pytest.approx([-noise[row] for row in rows], abs=1e-9)


def test_seeds_are_counted_where_all_have_as_many() -> None:
    runs = [
        record(f"{letter}{seed}aa", letter, method, seed=seed)
        for letter, method in (("a", "lora"), ("b", "full"))
        for seed in range(2)
    ]
    assert "2 seeds each" in compare_verdict.about(contestants(runs), False)
    assert "seeds" not in compare_verdict.about(contestants(runs[:3]), False), "2 and 1"
    assert "seeds" not in compare_verdict.about(contestants(runs[::2]), False)


@pytest.mark.parametrize(
    ("key", "with_base", "shows_base"),
    [("eval/loss", True, True), ("eval/loss", False, False), ("train/loss", True, False)],
)
def test_the_base_stands_beside_evaluation_losses_alone(
    monkeypatch: pytest.MonkeyPatch, key: str, with_base: bool, shows_base: bool
) -> None:
    screen = Screen(**{compare_curves.BY: "step", "compare.at.steps": 1.0})
    screen.session_state |= {compare_curves.Y: key, compare_curves.BY: "step"}
    charts: list[Any] = []
    monkeypatch.setattr(compare_curves, "st", screen)
    monkeypatch.setattr(compare_curves, "is_dark", lambda: False)
    monkeypatch.setattr(
        compare_curves.chart_style, "show", lambda chart, *rest, **named: charts.append(chart)
    )
    compare_curves._curves(contestants(three()), with_base)
    names = [text.text for text in charts[0].layout.annotations]
    assert ("base 3.59" in names) == shows_base and "wren lora" in names


@pytest.mark.parametrize(
    ("x", "y", "corner"),
    [
        ("peak_bytes", "loss", (0.01, 0.01)),
        ("tokens_per_s", "loss", (0.99, 0.01)),
        ("loss", "tokens_per_s", (0.01, 0.99)),
    ],
)
def test_the_good_corner_is_where_both_figures_are_better(
    x: str, y: str, corner: tuple[float, float]
) -> None:
    chart = compare_plots.draw(contestants(three()), x, y, 0.0, dark=False)
    (better,) = [text for text in chart.layout.annotations if text.text == "better"]
    assert (better.x, better.y) == corner


@pytest.mark.parametrize(
    ("count", "rest"), [(6, []), (7, ["and 1 more reason"]), (9, ["and 3 more reasons"])]
)
def test_reasons_beyond_six_are_counted(
    monkeypatch: pytest.MonkeyPatch, count: int, rest: list[str]
) -> None:
    screen = Screen()
    monkeypatch.setattr(compare_verdict, "st", screen)
    shown = contestants(three())
    terms = dataclasses.replace(
        equal_terms(shown, compare_runs.name_of, str),
        unequal=tuple(f"reason {number}" for number in range(count)),
    )
    compare_verdict._terms(terms, shown)
    assert screen.texts("caption") == ["EQUAL TERMS", *rest]
    assert sum(":red[" in text for text in screen.texts("markdown")) == 6


def test_runs_are_compared_once_each_and_as_many_as_can_be_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, screen = three(), Screen()
    monkeypatch.setattr(compare_runs, "st", screen)
    monkeypatch.setattr(compare_runs, "MAX_RUNS", 2)
    named = [runs[0].id, runs[0].id, "20200101-000000-lora-*gone*", runs[2].id, runs[1].id]
    screen.query_params["runs"] = ",".join(named)
    assert compare_runs.chosen() == [runs[0], runs[2]]
    assert "~~20200101-000000-lora-*gone*~~ no longer exists" in screen.texts("markdown")[0]
    assert screen.texts("warning") == ["3 runs are named; the first 2 are shown."]


def test_a_chat_needs_a_run_with_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = three()
    for run in runs[1:]:
        shutil.rmtree(run.artifact)
    switched: list[dict[str, str]] = []
    monkeypatch.setattr(compare_runs.links, "switch", lambda name, query: switched.append(query))
    for those, is_disabled in ((runs[:2], False), (runs[1:], True)):
        screen = Screen("compare.chat", **{"compare.runs": []})
        monkeypatch.setattr(compare_runs, "st", screen)
        compare_runs.actions(screen, runs, contestants(those))  # type: ignore[arg-type]
        (button,) = [named for named in screen.named("button") if named["key"] == "compare.chat"]
        assert button["disabled"] == is_disabled
    (base,) = {index.entry(run).model for run in runs}
    assert switched[0] == {"models": f"base:{base},run:{runs[0].id}"}, "what has a result"


def test_a_hidden_run_is_out_of_everything(open_page: Page) -> None:
    runs = three()
    at = open_page("compare", runs=",".join(run.id for run in runs))
    at.pills(key="compare.seen").set_value([runs[1].id, runs[2].id]).run()
    assert not at.exception
    said = words(at).replace("\\", "")
    assert "wren full has the lowest evaluation loss" in said and "of the runs shown" in said
    assert "wren lora" not in said
    at.query_params["runs"] = f"{runs[0].id},{runs[1].id}"
    at.run()
    assert "wren lora has the lowest" in words(at).replace("\\", ""), "other runs hide nothing"


@pytest.mark.parametrize(
    ("tab", "says"),
    [
        ("Scores", "None of these runs has been scored."),
        ("Settings that differ", "The same for all: "),
        ("Trade-offs", ""),
        ("Answers", "These runs have no samples."),
        ("By example", ""),
        ("Rank", "show which rank the run needed"),
        ("Notes", ""),
    ],
)
def test_every_tab_opens(open_page: Page, tab: str, says: str) -> None:
    at = open_page("compare", runs=",".join(run.id for run in three()), tab=tab)
    assert says in words(at)


def test_without_runs_there_are_pairs_on_equal_terms(open_page: Page) -> None:
    at = open_page("compare")
    assert "No runs yet" in words(at)
    runs = three()
    at = open_page("compare")
    (pair,) = [button for button in at.button if (button.key or "").startswith("compare.pair")]
    pair.click().run()
    assert not at.exception and at.query_params["runs"] == f"{runs[2].id},{runs[1].id}"


def test_a_deleted_run_and_hostile_names_harm_nothing(open_page: Page) -> None:
    first = record("aaaa", "<b>x [y](http:z) :red[w]")
    second = record("bbbb", "$a$ `b`", "full", losses=(3.0, 2.5))
    at = open_page("compare", runs=f"{first.id},{second.id},../../etc,20261122-101530-lora-zzzz")
    said = words(at)
    assert "no longer exists" in said
    assert "\\[y\\]" in said and "[y](http" not in said and ":red[w]" not in said
    page = compare_export.html_report(contestants([first, second]))
    assert "<b>x" not in page and "&lt;b&gt;x" in page


def test_a_setting_is_text_and_no_markup(open_page: Page) -> None:
    runs = [record("aaaa", "A", data={"system_prompt": "[x](http:y)"}), record("bbbb", "B")]
    ids = ",".join(run.id for run in runs)
    table = open_page("compare", runs=ids, tab="Settings that differ").table[0].value
    (row,) = [each for _, each in table.iterrows() if each["Setting"] == "System prompt"]
    assert row.iloc[1].startswith("\\[x\\]") and "](http" not in row.iloc[1]


def test_one_run_is_compared_with_its_base(open_page: Page) -> None:
    at = open_page("compare", runs=record("aaaa", "alone").id)
    assert "alone is better than the base: 2.41 against 3.59" in words(at).replace("\\", "")


def test_the_sentence_names_four_and_every_change() -> None:
    runs = contestants([record("aaaa", "A"), record("bbbb", "B", "full")])
    by_id = {each.id: each for each in runs}
    curves = {runs[0].id: A, runs[1].id: B}
    changes = lead_changes(curves)
    said = compare_curves.sentence(standings(curves, 1.0), by_id, 1.0, "min", changes, 1.0)
    assert said == (
        "**At 1.0 min :blue[●] B leads with 2.50** · :blue[●] A +0.60 · "
        "the lead changes at 3.0 min, then :blue[●] A stays ahead"
    )
    ended = compare_curves.sentence(standings(curves, 5.0), by_id, 5.0, "min", [], 1.0)
    assert ended.endswith(":blue[●] A ended at 4.0 min with 2.40")
    seconds = {name: Curve(line.x * 60, line.y) for name, line in curves.items()}
    ended = compare_curves.sentence(standings(seconds, 300.0), by_id, 5.0, "min", [], 60.0)
    assert ended.endswith(":blue[●] A ended at 4.0 min with 2.40"), "as the axis is drawn"
    neither = compare_curves.sentence(standings(curves, 1.0), by_id, 1.0, "min", None, 1.0)
    assert neither == "**At 1.0 min :blue[●] B is at 2.50** · :blue[●] A is at 3.10"


def test_nobody_leads_in_rank(open_page: Page) -> None:
    runs = [record("aaaa", "A", rank=7.25), record("bbbb", "B", rank=3.5, learning_rate=0.5)]
    at = open_page(
        "compare", runs=",".join(run.id for run in runs), y="rank/effective", tab="Trade-offs",
        x1="effective_rank",
    )  # fmt: skip
    text = words(at)
    assert "A is at 7.25" in text and "B is at 3.50" in text and "leads" not in text
    assert at.selectbox(key="compare.x1").value == "effective_rank"


def test_the_slider_stops_at_whole_steps(open_page: Page) -> None:
    run = record("aaaa", "wren lora", losses=(3.0, 2.6, 2.41))
    slider = open_page("compare", runs=run.id, by="step").slider(key="compare.at.steps")
    assert (slider.value, slider.step, slider.proto.format) == (3.0, 1.0, "%.0f steps")


def test_the_slider_begins_where_the_shortest_run_ended(open_page: Page) -> None:
    at = open_page("compare", runs=",".join(run.id for run in three()), by="seconds")
    assert at.slider(key="compare.at.min").value == 3.7, "222 s on an axis of minutes"


def test_runs_of_one_colour_are_told_apart_by_the_dash() -> None:
    runs = contestants(three())
    assert list(compare_curves.dashes(runs).values()) == ["solid", "solid", "dash"]
    chart = compare_export.charts(runs, 0.0)["Evaluation loss by steps"]
    names = [note.text for note in chart.layout.annotations]
    assert names == ["wren lora", "wren full", "wren ia3", "base 3.59"]
    inks = [note.font.color for note in chart.layout.annotations]
    assert inks[:3] == ["#146ed5", "#b65400", "#b65400"]


def test_twelve_runs_of_ten_thousand_steps_are_thinned(open_page: Page) -> None:
    """What is drawn is bounded, however long the runs are."""
    losses = tuple(np.linspace(3.5, 2.0, 1000))
    runs = [
        record(f"a{letter}aa", f"run {letter}", losses=losses, with_rows=False,
               learning_rate=0.1 + position / 100)
        for position, letter in enumerate("abcdefghijkm")
    ]  # fmt: skip
    those = contestants(runs)
    chart = compare_export.charts(those, 0.0)["Evaluation loss by steps"]
    sizes = [len(trace.x) for trace in chart.data if trace.mode == "lines"]
    assert sizes == [MAX_POINTS] * 12
    at = open_page("compare", runs=",".join(run.id for run in runs))
    assert len(at.dataframe) == 1 and not at.table, "above six runs the table is turned round"


def test_exports_hold_the_figures_and_need_no_network() -> None:
    runs = contestants(three())
    page = compare_export.html_report(runs)
    assert "wren lora has the lowest evaluation loss: 2.41" in page
    assert page.count("<script") >= 3 and not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    everything = json.loads(compare_export.json_report(runs, 0.0))
    assert everything["verdict"]["case"] == "one seed"
    assert [row["key"] for row in everything["figures"]][:2] == ["loss", "perplexity"]
    (curve,) = [
        line for line in everything["curves"]
        if (line["id"], line["measure"], line["by"]) == (runs[0].id, "eval/loss", "step")
    ]  # fmt: skip
    assert curve["x"] == [0, 1, 2, 3] and curve["y"] == pytest.approx([3.59, 3.0, 2.6, 2.41])
    from lab.compare.figures import as_csv

    table = list(csv.reader(io.StringIO(as_csv(runs, compare_runs.plain_name))))
    assert table[0][:5] == ["figure", "unit", "better", "base", "wren lora"]
    assert float(table[1][4]) == pytest.approx(2.41)


def test_notes_belong_to_the_runs_in_any_order() -> None:
    notes.write(["b", "a"], "LoRA wins.")
    assert notes.read(["a", "b"]) == "LoRA wins." and notes.read(["a"]) == ""


def test_a_run_is_compared_with_the_newest_of_the_same_data() -> None:
    own, same = record("aaaa", "own"), record("bbbb", "same", "full")
    record("cccc", "other", data={"dataset": "builtin:support-tickets"})
    record("dddd", "failed", state="failed")
    record("eeee", "put away", labels={"archived": True})
    assert end_card.partner(index.entry(own)) == [same.id]


def test_the_scale_of_the_axis_follows_its_width() -> None:
    assert compare_curves.x_scale("seconds", 250.0)[:2] == (60.0, "min")
    assert compare_curves.x_scale("seconds", 100.0)[:2] == (1.0, "s")
    assert compare_curves.x_scale("flops", 3e12)[:2] == (1e12, "TFLOPs")
    assert View().by == "step"


def write_rank(run: RunDir) -> measure.RankReport:
    """A measured rank of four matrices in two layers."""
    names = [f"model.layers.{n}.self_attn.{k}_proj.weight" for n in (0, 1) for k in "qv"]
    matrices = tuple(
        spectrum(name, (8, 8), 4, np.array([4.0, 2.0, 1.0, 0.5][: 4 - position % 2]))
        for position, name in enumerate(names)
    )
    report = measure.RankReport(run.id, "", 2, 4, (0.75, 0.95, 1.0, 1.0), matrices)
    file = measure.file_of(run)
    file.parent.mkdir(parents=True)
    write_json(file, dataclasses.asdict(report))
    return report


def test_a_measured_rank_is_drawn_by_layer_and_matrix(open_page: Page) -> None:
    run = record("aaaa", "wren lora")
    report = write_rank(run)
    assert compare_rank.cells(report)[2].tolist() == [[3.0, 2.0], [3.0, 2.0]]
    apart = [
        dataclasses.replace(each, name=each.name.replace(".1.", ".5.")) for each in report.matrices
    ]
    layers, _, table = compare_rank.cells(dataclasses.replace(report, matrices=tuple(apart)))
    assert layers == [0, 5] and table.tolist() == [[3.0, 2.0], [3.0, 2.0]], "1 to 4 have none"
    assert compare_rank.heat_map(report, dark=False).layout.yaxis.dtick == 1, "no layer 0.5"
    said = words(open_page("compare", runs=run.id, tab="Rank")).replace("\\", "")
    assert "wren lora needed r ≈ 2 of 4" in said and "4 matrices" in said
    assert "effective rank" in said


def test_a_conversion_shows_its_ranks_and_what_it_cost(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("aaaa", "wren loha", "prefix")
    write_rank(run)
    text = words(open_page("compare", runs=run.id, tab="Rank"))
    assert "No conversion: Prefix tuning leaves no adapter" in text, "It changes no matrix."
    monkeypatch.setattr(convert, "why_not", lambda run: "")
    outcome = convert.Conversion(
        run.id, 0.9, {"a": 1, "b": 3, "c": 7}, 7, 0.96, 9_800_000, 1_200_000, 0.25, 0.013, 0.998,
        1e-4, 8, 2.41, 2.43, "No [rows].", "The base of [run] was not checked.",
    )  # fmt: skip
    record_of_job = JobRecord(finish="done", result=dataclasses.asdict(outcome))
    write_json(convert.job_file(run), dataclasses.asdict(record_of_job))
    at = open_page("compare", runs=run.id, tab="Rank")
    text = words(at).replace("\\", "")
    assert "90 % of the energy: rank 1 to 7, median 3, in 3 layers; 9.80 MB → 1.20 MB." in text
    assert "Evaluation loss 2.410 → **2.430**. Largest logit difference 0.25, 1.3 %" in text
    assert "same top token 99.8 %" in text and "No [rows]." in text
    assert "The base of [run] was not checked." in text
    assert "of the length of all updates" not in text, "It holds what 90 % of the energy is."
    of_full = dataclasses.replace(outcome, fidelity=0.92)  # its square is of the energy
    write_json(convert.job_file(run), dataclasses.asdict(JobRecord(finish="done",
               result=dataclasses.asdict(of_full))))  # fmt: skip
    at = open_page("compare", runs=run.id, tab="Rank")
    assert "The LoRA holds 92 % of the length of all updates: embeddings" in words(at)
    started: list[tuple[str, float]] = []
    monkeypatch.setattr(convert, "start", lambda run, energy: started.append((run.id, energy)))
    at.number_input(key="compare.rank.energy").set_value(0.8)
    at.button(key="compare.rank.convert").click().run()
    assert started == [(run.id, 0.8)]
    failed = JobRecord(finish="failed", error="PEFT cannot <b>.", hint="Merge it.")
    write_json(convert.job_file(run), dataclasses.asdict(failed))
    at = open_page("compare", runs=run.id, tab="Rank")
    assert "PEFT cannot \\<b\\>" in words(at), "Escaped."
    active = JobRecord(phase="decomposing", process=process.identity(os.getpid()) or {})
    write_json(convert.job_file(run), dataclasses.asdict(active))
    at = open_page("compare", runs=run.id, tab="Rank")
    keys = {button.key for button in at.button}
    assert "compare.rank.convert.stop" in keys and "compare.rank.convert" not in keys
    assert "decomposing" in words(at)


def test_a_repair_shows_what_it_won_and_cost(
    open_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = record("aaaa", "wren lora")
    write_rank(run)
    said = words(open_page("compare", runs=run.id, tab="Rank"))
    assert "only the update of a LoRA can be repaired" in said
    monkeypatch.setattr(repair, "why_not", lambda run: "")
    outcome = repair.Repair(run.id, 7, 3, Quality(2.41, 0.31), Quality(2.44, None), "No [rows].")
    record_of_job = JobRecord(finish="done", result=dataclasses.asdict(outcome))
    write_json(repair.job_file(run), dataclasses.asdict(record_of_job))
    at = open_page("compare", runs=run.id, tab="Rank")
    said = words(at).replace("\\", "")
    assert "7 intruder dimensions in 3 matrices reduced" in said
    assert "evaluation loss 2.410 → **2.440**, forgetting 0.310 → **–**" in said
    assert "The evaluation loss was not measured. No [rows]." in said
    asked_for: list[str] = []
    monkeypatch.setattr(repair, "start", lambda run: asked_for.append(run.id))
    at.button(key="compare.rank.repair").click().run()
    assert asked_for == [run.id]
