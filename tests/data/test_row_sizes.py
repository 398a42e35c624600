"""The sizes of a run's rows, known before it starts, against the batches that the worker makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.data import batches as batching
from lab.data import row_sizes as sizes
from lab.data.batches import TrainingOrder, collate
from lab.data.prepare import prepare
from lab.data.row_sizes import LargestPass, RowSizes, row_sizes
from lab.spec import RunSpec, without_packing
from tests.conftest import write_rows

Make = Callable[..., dict[str, Any]]


def shape(batches: list[Any]) -> LargestPass:
    largest = max(batches, key=lambda batch: batch["input_ids"].numel())
    return LargestPass(
        *largest["input_ids"].shape, max(batch["targets"].numel() for batch in batches)
    )


def in_batches(rows: Any, size: int) -> list[Any]:
    return [collate(rows[start : start + size], 0) for start in range(0, len(rows), size)]


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Forty chats, one of which is four times as long as the others."""
    file = tmp_path / "mixed.jsonl"
    rows = [{"prompt": f"Say {n}", "completion": "yes " * (1 + n % 5)} for n in range(40)]
    rows[17]["completion"] = "no " * 60
    write_rows(file, rows)
    return str(file)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"packing": "on"}},
        {"data": {"group_by_length": "on"}, "train": {"batch_size": 4}},
        {"data": {"max_length": 48}, "train": {"epochs": 3}},
        {"train": {"max_steps": 2, "gradient_accumulation_steps": 2}},
        {"train": {"batch_size": 64}},
        {"data": {"eval_fraction": 0.0}},
        {"data": {"packing": "on", "max_length": 4000}},
        {"data": {"packing": "on", "max_length": 4000}, "train": {"batch_size": 16}},
    ],
)
def test_the_largest_pass_is_that_of_the_run(
    changes: dict[str, Any], make_spec: Make, mixed: str, tokenizer: Any
) -> None:
    value = make_spec(
        data={"dataset": mixed, "max_length": 128, **changes.get("data", {})},
        train={"max_steps": None, "epochs": 1, **changes.get("train", {})},
    )
    spec = RunSpec.from_json(value)
    known = row_sizes(spec, tokenizer, 60.0)
    assert known is not None
    passes = known.passes(spec)
    data, train = prepare(spec, tokenizer), spec.train
    bucket = train.batch_size if spec.data.group_by_length == "on" else 0
    order = TrainingOrder(data.train, train.seed, bucket)
    count = int(train.epochs) * len(data.train)
    if train.max_steps:
        count = train.max_steps * train.batch_size * train.gradient_accumulation_steps
    taken = [order[index] for index in range(count)]
    batches = in_batches(taken, train.batch_size)
    expected = shape(batches)
    is_packed = any(len(row.lengths) > 1 for row in data.train)
    if is_packed and train.batch_size == 16:
        # more than the one packed row: for a model that does not keep its sequences apart
        expected = known.passes(without_packing(spec)).largest
        assert expected.rows == 16 and expected.length < 200
        is_packed = False
    assert passes.largest == replace(expected, packed=is_packed)
    held_out = in_batches(data.held_out, train.batch_size)
    assert passes.held_out == (shape(held_out) if held_out else None)
    assert passes.rows == len(data.train)
    assert passes.tokens == pytest.approx(np.mean([row.tokens for row in data.train]))
    padded = sum(batch["input_ids"].numel() for batch in batches) / len(taken)
    assert passes.width == pytest.approx(
        padded * passes.tokens / np.mean([r.tokens for r in taken])
    )
    assert passes.held_out_tokens == sum(batch["input_ids"].numel() for batch in held_out)


def test_the_longest_row_counts_in_the_pass_that_it_is_in() -> None:
    """Grouped by length, it is in the last pass, which may have fewer rows."""
    lengths = [30, 28, 26, 25, 24, 22, 40]
    known = RowSizes(100, np.array([[n, n // 2] for n in lengths]), np.zeros((0, 2), np.int64))
    value = {"data": {"packing": "off", "group_by_length": "on"}, "train": {"batch_size": 3}}
    for seed in range(20):
        value["train"]["seed"] = seed
        spec = RunSpec.from_json(value)
        order = TrainingOrder(batching.single_rows(sizes._Sized(known.train)), seed, 3)
        rows = [
            [lengths[order.row_index(index)] for index in range(7)][at : at + 3] for at in (0, 3, 6)
        ]
        largest = max(rows, key=lambda row: len(row) * max(row))
        assert known.passes(spec).largest == LargestPass(
            len(largest), max(largest), max(sum(n // 2 for n in row) for row in rows)
        )


def test_a_pass_that_attends_to_more_pairs_lends_its_length() -> None:
    def largest(*passes: tuple[int, int, int]) -> LargestPass:
        return sizes._maximum(np.array(passes))

    assert largest((4, 111, 236), (2, 147, 80)) == LargestPass(4, 111, 236)
    assert largest((4, 100, 50), (3, 130, 90)) == LargestPass(4, 130, 90)
    assert largest((2, 60, 9), (4, 30, 5)) == LargestPass(2, 60, 9)


def test_rows_that_were_cut_may_be_longer_in_a_longer_run() -> None:
    known = RowSizes(100, np.array([[100, 40], [60, 30]]), np.zeros((0, 2), np.int64))
    spec = RunSpec.from_json({"data": {"packing": "off"}, "train": {"batch_size": 2}})

    def largest(length: int, **train: Any) -> LargestPass:
        changed = replace(spec, data=replace(spec.data, max_length=length))
        return known.passes(replace(changed, train=replace(spec.train, **train))).largest

    assert largest(100) == LargestPass(2, 100, 70)
    assert largest(150) == LargestPass(2, 150, 120), "The first was cut at 100."
    assert largest(50) == LargestPass(2, 50, 70)
    assert largest(32) == LargestPass(2, 32, 61), "The first token of a row never counts."
    assert largest(100, compile="on") == LargestPass(2, 100, 70)
    assert largest(512, compile="on").length == 512, "Compiled layers have one shape."
    assert largest(100, batch_size=4, max_seconds=9.0) == LargestPass(4, 100, 140), "Any may meet."


def test_tokens_as_a_budget_take_rows_of_the_mean_length() -> None:
    lengths = np.array([10] * 9 + [100])
    known = RowSizes(100, np.stack([lengths, lengths // 2], 1), np.zeros((0, 2), np.int64))
    for seed in range(8):
        train = {"batch_size": 1, "max_tokens": 190, "seed": seed}
        spec = RunSpec.from_json({"data": {"packing": "off", "max_length": 100}, "train": train})
        assert known.passes(spec).largest.length == 100, "the budget lasts for all ten"


PASS_SETTINGS: list[dict[str, Any]] = [
    {"train": {"batch_size": 5}}, {"train": {"max_steps": 2}}, {"train": {"epochs": 0.4}},
    {"train": {"gradient_accumulation_steps": 3, "max_steps": 1}}, {"train": {"seed": 8}},
    {"train": {"max_tokens": 90}}, {"train": {"max_seconds": 9.0}}, {"train": {"max_flops": 1e9}},
    {"train": {"compile": "on"}}, {"data": {"max_length": 40}}, {"data": {"packing": "on"}},
    {"data": {"group_by_length": "on"}},
]  # fmt: skip


def test_each_setting_that_changes_the_passes_is_asked_anew() -> None:
    """As the search for settings asks the same rows again and again."""
    lengths = np.random.default_rng(0).integers(8, 90, 23)
    rows = np.stack([lengths, lengths // 2], 1)

    def fresh() -> RowSizes:
        return RowSizes(100, rows, rows[:5])

    def spec(changes: dict[str, Any]) -> RunSpec:
        data = {"packing": "off", "max_length": 100} | changes.get("data", {})
        train = {"batch_size": 2, "epochs": 1.0} | changes.get("train", {})
        return RunSpec.from_json({"data": data, "train": train})

    known = fresh()
    first = known.passes(spec({}))
    for changes in PASS_SETTINGS:
        expected = fresh().passes(spec(changes))
        assert known.passes(spec(changes)) == expected, changes
        assert expected != first, f"{changes} makes other passes of these rows"


def test_what_is_not_known_in_time_is_not_known(
    make_spec: Make, mixed: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec.from_json(make_spec(data={"dataset": mixed}))
    size = Path(mixed).stat().st_size
    monkeypatch.setattr(sizes, "TOKENISED_BYTES_PER_S", size / 10)
    assert row_sizes(spec, tokenizer, 1.0) is None, "Ten times what a second is for."
    assert row_sizes(spec, tokenizer, 20.0) is not None
    assert row_sizes(spec, tokenizer, 0.0) is not None, "Its tokens are stored by now."
    general = replace(spec, data=replace(spec.data, general_fraction=0.1))
    assert row_sizes(general, tokenizer, 60.0) is None, "The base's answers are not there yet."


def test_a_budget_of_tokens_ends_behind_a_whole_step() -> None:
    """Of two passes of two rows: the first one reaches fifteen tokens, the second is made, too."""
    train = {"batch_size": 2, "gradient_accumulation_steps": 2, "max_tokens": 15, "seed": 3}
    spec = RunSpec.from_json({"train": train, "data": {"packing": "off"}})
    rows = np.full((40, 2), 10)
    order = TrainingOrder(batching.single_rows(sizes._Sized(rows)), 3)
    rows[order.row_index(3)] = 90
    largest = RowSizes(spec.data.max_length, rows, rows[:0]).passes(spec).largest
    assert (largest.rows, largest.length) == (2, 90), "The row is in the second pass."
