"""The verdict: the first case that holds, in the words that pages and the command line show."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lab.atomic_files import read_object, write_json
from lab.compare import verdict as verdicts
from lab.compare.contestants import Contestant, contestants, difference_to_base
from lab.compare.equal_terms import equal_terms
from lab.compare.figures import as_csv, figure_rows
from lab.compare.verdict import (
    ComparisonVerdict,
    compare_badges,
    loss_difference,
    share,
    verdict,
)
from lab.paths import RunDir
from lab.runs.held_out_losses import held_out_losses
from lab.runs.status import ENDED
from tests.compare.recorded import BASE_LOSS, TOKENS, change_event, record, write_lines

NOISE = np.array([0.1, -0.1, 0.05, -0.05, 0.0, 0.02, -0.02, 0.1, -0.1, 0.0])
NOISE -= (TOKENS * NOISE).sum() / TOKENS.sum()  # the mean loss stays what it is


def name(contestant: Contestant) -> str:
    return contestant.name


def judge(*runs: RunDir) -> ComparisonVerdict:
    those = contestants(runs)
    return verdict(those, equal_terms(those, name), name)


def test_a_difference_over_several_seeds_is_shown_with_its_interval() -> None:
    runs = [
        record(f"l{seed}aa", f"wren lora · seed {seed}", losses=(3.0, 2.41 + 0.001 * seed),
               seed=seed, peak=2e9, seconds=60, rise=0.06)
        for seed in range(3)
    ] + [
        record(f"f{seed}aa", f"wren full · seed {seed}", "full", losses=(2.9, 2.52),
               noise=NOISE / 9, seed=seed, peak=3e9, seconds=100, rise=0.31)
        for seed in range(3)
    ]  # fmt: skip
    result = judge(*runs)
    assert result.case == "shown"
    assert result.headline == "wren lora has the lowest evaluation loss: 2.41"
    assert result.detail.startswith("0.11 ± 0.0")
    assert (
        "below wren full (95 % interval, paired by example; better on 10 of 10)." in result.detail
    )
    assert [badge.text for badge in result.badges] == [
        "Difference shown", "33 % less memory", "40 % less time",
        "Forgets less: +0.06 against +0.31",
    ]  # fmt: skip


def test_one_seed_each_is_said_to_be_one_seed() -> None:
    result = judge(
        record("aaaa", "wren lora", losses=(3.0, 2.41)),
        record("bbbb", "wren full", "full", losses=(3.0, 2.52), noise=NOISE),
        record("cccc", "wren ia3", "ia3", losses=(3.0, 2.96)),
    )
    assert result.case == "one seed"
    assert result.headline == "wren lora has the lowest evaluation loss: 2.41"
    assert "below wren full by example. One seed each: another seed may turn it." in result.detail
    assert result.detail.endswith("wren ia3 is 0.55 above it.")
    difference = result.difference
    assert difference is not None
    assert difference.mean == pytest.approx(-0.11)
    assert "Difference shown" not in [badge.text for badge in result.badges]


def test_an_interval_over_zero_shows_no_difference() -> None:
    result = judge(
        record("aaaa", "A", losses=(3.0, 2.41)),
        record("bbbb", "B", losses=(3.0, 2.42), noise=3 * NOISE, learning_rate=0.5),
    )
    assert result.case == "no difference"
    assert result.headline == "No difference shown between A and B: 0.01 ± 0.14."
    assert result.detail == "One seed each: another seed may turn it."


def test_no_run_below_the_base_is_said() -> None:
    result = judge(
        record("aaaa", losses=(3.7, 3.6)), record("bbbb", losses=(4.0, 3.8), max_tokens=9)
    )
    assert result.case == "base" and result.headline == "None is better than the base (3.59)."


def test_unequal_runs_get_no_verdict() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", losses=(2.0, 1.0), tokens=2000)
    result = judge(first, second)
    assert result.headline == "No verdict: the runs are not comparable."
    assert result.detail == "They trained on different numbers of tokens: 1,000, 2,000."
    assert result.best is None and result.badges == ()


@pytest.mark.parametrize(
    ("tokens", "limit", "is_comparable"),
    [
        ((1010, 1090), 1000, True),
        ((1010, 1090), 1050, False),  # the first ended before its budget
        ((1010, 1110), 1000, False),  # a step that is too large to be fair
        ((1010, 1090), None, False),
    ],
)
def test_runs_that_end_with_the_step_that_reaches_their_budget_are_comparable(
    tokens: tuple[int, int], limit: int | None, is_comparable: bool
) -> None:
    first, second = (
        record(letters, letters, losses=(3.0, 2.4 + part), tokens=each, max_tokens=limit, **train)
        for letters, each, part, train in zip(
            ("aaaa", "bbbb"), tokens, (0.0, 0.5), ({}, {"batch_size": 16}), strict=True
        )
    )
    terms = equal_terms(contestants([first, second]), name)
    assert (terms.unequal == ()) == is_comparable, terms
    remark = "A budget ends with a whole step: 1,010 to 1,090 tokens."
    assert (remark in terms.remarks) == is_comparable
    assert judge(first, second).best == (first.id if is_comparable else None)


def test_while_one_trains_they_are_compared_at_the_same_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """B has had half of the tokens: A counts with what it had there, although it is lower now."""
    first = record("aaaa", "A", losses=(2.59, 2.2), tokens=1000)
    second = record("bbbb", "B", losses=(3.0, 2.49), tokens=500, state=None, learning_rate=0.5)
    third = record("cccc", "C", losses=(3.1, 2.9), state=None, learning_rate=0.1)
    for run in (second, third):
        write_json(run.process, {"pid": 1})
        write_json(run.heartbeat, {"phase": "training"})
    monkeypatch.setattr("lab.runs.status.process.is_alive", lambda record: True)
    left = {second: 180.0, third: 60.0}  # the last one decides
    monkeypatch.setattr(verdicts, "run_progress", lambda run: SimpleNamespace(left_s=left[run]))
    result = judge(first, second, third)
    assert result.case == "training"
    assert result.headline == "B leads at the same tokens so far: 2.49 against 2.59."
    assert result.detail == "About 3 min 00 s left."


@pytest.mark.parametrize("first_state", [None, "done"])
def test_a_run_that_waits_is_not_blamed_for_what_it_has_not_read_yet(
    first_state: str | None,
) -> None:
    runs = [
        record("aaaa", "A", losses=(3.0, 2.41), seconds=60, state=first_state, learning_rate=0.5),
        record("bbbb", "B", "ia3", state=None, learning_rate=0.5),
    ]
    if first_state == "done":
        write_json(runs[0].environment, {"device": "cpu"})
    for run, state in zip(runs, (first_state, None), strict=True):
        if state is None:
            for file in (run.metrics, run.events, run.held_out):
                file.unlink()
    those = contestants(runs)
    terms = equal_terms(those, name)
    assert terms.unequal == () and terms.remarks == ()
    assert "examples" not in terms.same and "base" in terms.same
    result = verdict(those, terms, name)
    assert result.headline == "Fewer than two runs have been evaluated so far."
    waiting = "All of them wait" if first_state is None else "The others wait"
    assert result.detail == f"{waiting} in the queue."
    seconds = [cell.value for row in figure_rows(those) if row.figure.key == "seconds"
               for cell in row.cells]  # fmt: skip
    assert seconds == ([] if first_state is None else [60.0, None]), "no time is not 0 s"


def test_without_row_losses_the_means_decide_and_that_is_said() -> None:
    result = judge(
        record("aaaa", "A", losses=(3.0, 2.41), with_rows=False),
        record("bbbb", "B", losses=(3.0, 2.52), max_flops=1e20),
    )
    assert result.case == "means"
    assert result.detail.startswith("0.11 below B by the means. How sure that is cannot be said")


def test_without_row_losses_several_seeds_still_give_an_interval() -> None:
    runs = [
        record(f"{letter}{seed}aa", letter, losses=(3.0, level + 0.01 * seed), seed=seed,
               with_rows=False, learning_rate=rate)
        for letter, level, rate in (("a", 2.4, 0.1), ("b", 2.8, 0.2))
        for seed in range(3)
    ]  # fmt: skip
    result = judge(*runs)
    assert result.case == "shown" and "(95 % interval, by seed)." in result.detail


def test_one_run_is_compared_with_its_base() -> None:
    result = judge(record("aaaa", "A", losses=(3.0, 2.41), noise=NOISE))
    assert result.headline == "A is better than the base: 2.41 against 3.59"
    assert "(95 % interval, paired by example; better on 10 of 10)." in result.detail


def test_nothing_evaluated_is_no_verdict() -> None:
    assert judge(record("aaaa", losses=())).case == "unmeasured"
    assert judge(record("bbbb", losses=()), record("cccc", losses=())).headline == (
        "Nothing has been evaluated yet."
    )


def test_small_differences_of_single_runs_get_no_badge() -> None:
    first = record("aaaa", "A", losses=(3.0, 2.41), peak=2.00e9, seconds=100, size=1000)
    second = record("bbbb", "B", "full", losses=(3.0, 2.52), peak=2.03e9, seconds=104, size=1000)
    assert judge(first, second).badges == (), "2 % of memory and 5 % of time are noise"


@pytest.mark.parametrize(
    ("halves", "apart", "is_shown"),
    [
        ((0.03, 0.04), 0.06, True),  # the two intervals together are 0.05
        ((0.05, 0.04), 0.06, False),  # 0.064
        ((None, None), 0.06, True),  # nothing was drawn again: 0.02
        ((0.07, None), 0.06, True),
        ((0.0, 0.0), 0.01, False),  # of a single prompt each nothing can be drawn again: 0.02
    ],
)
def test_forgetting_differs_by_more_than_the_intervals_that_were_measured(
    halves: tuple[float | None, float | None], apart: float, is_shown: bool
) -> None:
    those = contestants(
        [
            record("aaaa", "A", losses=(3.0, 2.41), rise=0.06, rise_half=halves[0]),
            record("bbbb", "B", "full", losses=(3.0, 2.52), rise=0.06 + apart, rise_half=halves[1]),
        ]
    )
    badges = [badge.key for badge in compare_badges(*those)]
    assert badges == (["forgetting"] if is_shown else [])
    rows = {row.figure.key: row for row in figure_rows(those)}
    for key in ("forgetting", "kl"):
        if key in rows and None not in [cell.value for cell in rows[key].cells]:
            assert rows[key].cells[0].is_best is is_shown, key
    assert ("kl" in rows) is (halves[0] is not None)


def test_runs_that_differ_in_their_seed_alone_are_one_contestant() -> None:
    runs = [
        record("aaaa", "x · seed 0", seed=0),
        record("bbbb", "x · seed 1", seed=1),
        record("cccc", "again", seed=1),
        record("dddd", "y", seed=2, learning_rate=0.5),
    ]
    assert [(each.name, each.seeds) for each in contestants(runs)] == [
        ("x", (0, 1)), ("again", (1,)), ("y", (2,)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        {"method": {"name": "lora", "rank": 4}}, {"data": {"max_length": 64}},
        {"learning_rate": 0.5}, {"batch_size": 2}, {"method": "full"},
    ],
)  # fmt: skip
def test_runs_that_differ_in_more_than_their_seed_are_apart(other: dict[str, Any]) -> None:
    runs = [record("aaaa", "x", seed=0), record("bbbb", "x", seed=1, **other)]
    assert [each.seeds for each in contestants(runs)] == [(0,), (1,)]


def test_a_run_that_began_elsewhere_is_no_other_seed_of_the_same_settings() -> None:
    first, second = record("aaaa", "x", seed=0), record("bbbb", "x", seed=1)
    spec = read_object(second.spec) or {}
    write_json(second.spec, spec | {"init_from_run": "run:of-yesterday"})
    assert len(contestants([first, second])) == 2, "its weights come from another run"


def test_a_run_without_a_step_has_no_time_and_no_flops_to_compare() -> None:
    (each,) = contestants([record("aaaa", losses=())])
    values = {key: each.value(key) for key in ("seconds", "flops")}
    assert values == {"seconds": None, "flops": None}, "nothing beats a run that has not begun"


def test_other_held_out_rows_are_never_paired() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", losses=(3.0, 2.52))
    write_lines(
        second.held_out,
        [
            {"kind": "rows", "hash": "other", "sources": list(range(10)), "tokens": [5] * 10},
            {"kind": "losses", "step": 2, "sums": [1.0] * 10},
        ],
    )
    pair = contestants([first]) + contestants([second])
    assert loss_difference(*pair) is None


def test_a_damaged_file_of_row_losses_is_no_file() -> None:
    run = record("aaaa", "A")
    assert held_out_losses(run) is not None
    for text in ("", "{}\n", '{"kind": "rows", "sources": [1], "tokens": [true]}\n', "[1]\n"):
        run.held_out.write_text(text)
        assert held_out_losses(run) is None
    write_lines(
        run.held_out,
        [
            {"kind": "rows", "hash": "h", "sources": [0, 1], "tokens": [3, 4]},
            {"kind": "losses", "attempt": 1, "step": 1, "sums": [1.0, 2.0, 3.0]},
            {"kind": "losses", "attempt": 1, "step": 2, "sums": [9.0, 9.0]},
            {"kind": "losses", "attempt": 2, "step": 2, "sums": [1.5, 2.5]},
        ],
    )
    losses = held_out_losses(run)
    assert losses is not None and losses.base is None
    assert losses.sums.tolist() == [[1.5, 2.5]], "a later attempt takes back what it does again"


def test_the_gain_over_the_base_is_paired_too() -> None:
    (alone,) = contestants([record("aaaa", losses=(3.0, 2.41))])
    difference = difference_to_base(alone)
    assert difference is not None
    assert difference.mean == pytest.approx(2.41 - 3.59) and difference.half < 1e-9


TERMS: list[tuple[dict[str, Any], str]] = [
    ({"base": {"weights": "other"}}, "They start from different base models: "),
    ({"data": {"held_out_hash": "other"}}, "They are measured on different held-out examples."),
]


@pytest.mark.parametrize(("changes", "says"), TERMS)
def test_what_a_worker_recorded_makes_runs_unequal(changes: Any, says: str) -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", learning_rate=0.5)
    assert equal_terms(contestants([first, second]), name).unequal == ()
    for kind, values in changes.items():
        change_event(second, kind, **values)
    (reason,) = equal_terms(contestants([first, second]), name).unequal
    assert reason.startswith(says)


def test_other_examples_another_template_and_an_early_end_are_reasons() -> None:
    first = record("aaaa", "A", data={"dataset": "builtin:persona-chats"})
    second = record(
        "bbbb", "B", data={"dataset": "builtin:support-tickets", "system_prompt": "Be brief."},
        state="stopped",
    )  # fmt: skip
    change_event(second, "data", train_hash="other", held_out_hash="other")
    reasons = equal_terms(contestants([first, second]), name).unequal
    assert reasons == (
        "They use different chat templates or system prompts.",
        "They trained on different examples: builtin:persona-chats, builtin:support-tickets.",
        "They are measured on different held-out examples.",
        "B was stopped before its end.",
    )


@pytest.mark.parametrize("state", sorted(set(ENDED) - {"done"}))
def test_every_end_before_the_plan_forbids_a_verdict(state: str) -> None:
    runs = [record("aaaa", "A"), record("bbbb", "B", learning_rate=0.5, state=state)]
    (reason,) = equal_terms(contestants(runs), name).unequal
    assert reason.startswith("B ") and (state in reason or state == "stopped"), reason


def test_arguments_of_the_template_and_a_run_that_held_nothing_out_are_reasons() -> None:
    data = {"template_args": {"enable_thinking": False}}
    runs = [record("aaaa", "A"), record("bbbb", "B", data=data, learning_rate=0.5)]
    for run in runs:
        change_event(run, "data", held_out_hash="")
    assert equal_terms(contestants(runs), name).unequal == (
        "They use different chat templates or system prompts.", "They held no examples out.",
    )  # fmt: skip


def test_examples_a_step_and_the_device_are_remarks() -> None:
    sizes = [(8, 1), (2, 4), (4, 1)]
    runs = [
        record(letter * 4, letter, batch_size=rows, gradient_accumulation_steps=passes,
               learning_rate=rate)
        for letter, rate, (rows, passes) in zip("abc", (0.1, 0.2, 0.3), sizes, strict=True)
    ]  # fmt: skip
    for run, device in zip(runs, ("cpu", "cpu", "Card"), strict=True):
        write_json(run.environment, {"device": device})
    assert equal_terms(contestants(runs[:2]), name).remarks == (), "8 x 1 and 2 x 4 are equal"
    assert equal_terms(contestants(runs[1:]), name).remarks == (
        "Batch sizes differ: 8, 4.",
        "They ran on different devices: time, memory and energy do not compare.",
    )


def test_a_run_that_goes_on_from_another_one_begins_elsewhere() -> None:
    first, second = record("aaaa", "A"), record("bbbb", "B", learning_rate=0.5)
    spec = read_object(second.spec) or {}
    write_json(second.spec, spec | {"init_from_run": f"run:{first.id}"})
    (reason,) = equal_terms(contestants([first, second]), name).unequal
    assert reason == "One of them continues from the weights of another run."


def test_packing_and_mixed_in_text_are_remarks() -> None:
    first = record("aaaa", "A", data={"packing": "off"})
    second = record("bbbb", "B", data={"packing": "on", "general_fraction": 0.2})
    change_event(second, "data", train_hash="other")
    terms = equal_terms(contestants([first, second]), name)
    assert terms.unequal == () and terms.title == "Comparable with a remark"
    assert terms.remarks == ("Some mix general text in.", "Some pack several examples into a row.")
    assert "data order" not in terms.same and "held-out examples" in terms.same


def test_other_seeds_are_a_remark_and_another_order_of_the_data() -> None:
    runs = [record("aaaa", "A", seed=0), record("bbbb", "B", seed=1, learning_rate=0.5)]
    terms = equal_terms(contestants(runs), name)
    assert terms.remarks[0] == "Their seeds differ, and with them the order of the data."
    assert "data order" not in terms.same, "the seed decides it"
    more = contestants([*runs, record("cccc", "A", seed=1)])
    assert [each.seeds for each in more] == [(0, 1), (1,)]
    assert "Some have more seeds than others." in equal_terms(more, name).remarks


def test_default_rates_of_different_methods_are_a_remark() -> None:
    def terms(second: RunDir) -> Any:
        return equal_terms(contestants([record(f"a{second.id[-3:]}", "A"), second]), name)

    defaults = terms(record("bbbb", "B", "full"))
    assert defaults.title == "Comparable with a remark" and not defaults.is_tuned
    assert defaults.remarks == ("Learning rates are defaults, not tuned.",)
    assert defaults.same == (
        "Same base, training and held-out examples, data order, precision and 1,000 tokens."
    )
    assert terms(record("bccc", "B", {"name": "lora", "rank": 4})).title == "Comparable"


@pytest.mark.parametrize(("tokens", "is_equal"), [(1000, True), (1019, True), (1021, False)])
def test_a_budget_that_ends_between_two_steps_is_the_same(tokens: int, is_equal: bool) -> None:
    runs = [record("aaaa", "A", tokens=1000), record("bbbb", "B", "full", tokens=tokens)]
    assert (equal_terms(contestants(runs), name).unequal == ()) == is_equal, "2 % is the most"


def test_a_budget_of_seconds_makes_other_tokens_fair() -> None:
    runs = [
        record("aaaa", "A", tokens=1000, max_seconds=60.0),
        record("bbbb", "B", "full", tokens=3000, max_seconds=60.0),
    ]
    terms = equal_terms(contestants(runs), name)
    assert terms.unequal == () and "1 min 00 s of training" in terms.same
    runs = [
        record("cccc", "A", tokens=1000, max_flops=4e12),
        record("dddd", "B", "full", tokens=3000, max_flops=4e12),
    ]
    terms = equal_terms(contestants(runs), name)
    assert terms.unequal == () and terms.same.endswith("and 4e12 FLOPs.")


@pytest.mark.parametrize("mark", "=+-@")
def test_a_name_is_no_formula_of_a_spreadsheet(mark: str) -> None:
    text = as_csv(contestants([record("aaaa")]), lambda each: f" {mark}1+1")
    assert f"' {mark}1+1" in text.splitlines()[0].split(",")


@pytest.mark.parametrize(
    ("change", "says"),
    [(-0.333, "33 % less"), (0.52, "52 % more"), (-0.035, "3.5 % less"), (26.0, "27 times the")],
)
def test_shares_read_as_a_person_says_them(change: float, says: str) -> None:
    assert share(change) == says


def test_the_best_figure_is_marked_where_it_exceeds_its_uncertainty() -> None:
    those = contestants(
        [
            record("aaaa", "A", losses=(3.0, 2.41), peak=2.00e9, seconds=50, size=1000),
            record("bbbb", "B", "full", losses=(3.0, 2.52), peak=2.03e9, seconds=100, size=9000),
        ]
    )
    rows = {row.figure.key: row for row in figure_rows(those, price=3.6)}
    marks = {key: [cell.is_best for cell in row.cells] for key, row in rows.items()}
    assert marks["loss"] == marks["perplexity"] == [True, False]
    assert marks["peak_bytes"] == [False, False], "1.5 % apart"
    assert marks["seconds"] == marks["artifact_bytes"] == [True, False]
    assert marks["tokens_per_s"] == [True, False], "higher is better"
    assert marks["trainable"] == [False, False], "neither direction is better"
    assert rows["perplexity"].cells[0].value == pytest.approx(np.exp(2.41))
    assert rows["perplexity"].base == pytest.approx(np.exp(3.59)) and rows["seconds"].base is None
    assert rows["cost"].cells[1].value == pytest.approx(0.1), "100 s at 3.60 USD an hour"
    assert "energy_wh" not in rows, "no row without any value"


def test_what_is_worse_than_the_base_is_not_marked_as_the_best() -> None:
    those = contestants(
        [record("aaaa", "A", losses=(3.7, 3.62)), record("bbbb", "B", "full", losses=(4.0, 3.9))]
    )
    rows = {row.figure.key: row for row in figure_rows(those)}
    for key in ("loss", "perplexity"):
        assert not any(cell.is_best for cell in rows[key].cells), key


def test_precisions_are_a_remark_and_a_setting_from_before_it_was_there_is_none() -> None:
    first = record("aaaa", "A")
    second = record("bbbb", "B", precision="bfloat16", learning_rate=0.5)
    spec = read_object(second.spec) or {}
    del spec["data"]["general_fraction"]  # as runs of an earlier version have it
    write_json(second.spec, spec)
    terms = equal_terms(contestants([first, second]), name)
    assert terms.remarks == ("Precisions differ: float32, bfloat16.",)
    assert "precision" not in terms.same


def test_runs_that_ended_without_reading_data_held_no_examples_out() -> None:
    runs = [record("aaaa", "A"), record("bbbb", "B", learning_rate=0.5)]
    for run in runs:
        change_event(run, "data", train_hash="", held_out_hash="")
    assert equal_terms(contestants(runs), name).unequal == ("They held no examples out.",)


@pytest.mark.parametrize(
    ("tokens", "says"), [(20_000, "20,000 tokens"), (999_999, "999,999 tokens"),
                         (2_000_000, "2.0 M tokens")],
)  # fmt: skip
def test_equal_tokens_are_written_out_below_a_million(tokens: int, says: str) -> None:
    runs = [record("aaaa", "A", tokens=tokens), record("bbbb", "B", "full", tokens=tokens)]
    assert equal_terms(contestants(runs), name).same.endswith(f"precision and {says}.")


def test_a_loss_equal_to_the_base_is_not_better() -> None:
    result = judge(
        record("aaaa", "A", losses=(3.7, BASE_LOSS)),
        record("bbbb", "B", losses=(4.0, 3.8), learning_rate=0.5),
    )
    assert (result.case, result.best) == ("base", None)


def test_the_third_and_the_fourth_are_told_by_their_distance_to_the_best() -> None:
    losses = {"A": 2.41, "B": 2.42, "C": 2.91, "D": 3.01, "E": 3.21}
    runs = [
        record(letter.lower() * 4, letter, losses=(3.3, loss), noise=3 * NOISE * (letter == "B"),
               learning_rate=0.1 + position / 10)
        for position, (letter, loss) in enumerate(losses.items())
    ]  # fmt: skip
    unsure = judge(*runs)
    assert unsure.case == "no difference"
    assert unsure.detail.startswith("C is 0.50 above A. D is 0.60 above A."), "A leads by the mean"
    assert "E is" not in unsure.detail
    shown = judge(runs[0], *runs[2:])
    assert shown.detail.endswith(" D is 0.60 above it. E is 0.80 above it.")


def test_the_noise_of_single_runs_is_a_share_of_the_larger_figure() -> None:
    pair = contestants(
        [
            record("aaaa", "A", losses=(3.0, 2.41), seconds=95.2),
            record("bbbb", "B", "full", losses=(3.0, 2.52), seconds=100),
        ]
    )
    assert compare_badges(*pair) == [], "4.8 s of 100 s are below 5 %"
