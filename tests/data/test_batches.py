"""Split, order and packing: complete, repeatable, and without one row seeing another."""

from __future__ import annotations

import random

from lab.data import batches
from lab.data.batches import Stream, collate, packed_rows, single_rows
from lab.data.template import IGNORED, Tokens


def some(count: int, seed: int = 0, longest: int = 30) -> list[Tokens]:
    chance = random.Random(seed)
    made = []
    for number in range(count):
        length = chance.randint(2, longest)
        ids = [100 * number + place for place in range(length)]
        made.append(Tokens(ids, [IGNORED, *ids[1:]]))
    return made


def test_the_split_is_complete_disjoint_and_free_of_the_run_seed() -> None:
    train, held = batches.split(50, 0.2)
    assert len(held) == 10 and sorted(train + held) == list(range(50))
    assert batches.split(50, 0.2) == (train, held)
    assert batches.split(50, 0.0) == (list(range(50)), [])
    assert len(batches.split(3, 0.01)[1]) == 1, "a fraction above zero holds out at least one"
    assert batches.split(1, 0.5) == ([0], []), "the only row trains"


def test_packing_keeps_every_sequence_once_and_whole() -> None:
    tokens = some(200)
    rows = packed_rows(tokens, 64)
    assert all(row.tokens <= 64 for row in rows)
    pieces = []
    for row in rows:
        start = 0
        for length in row.lengths:
            pieces.append(tuple(row.ids[start : start + length]))
            assert row.labels[start] == IGNORED, "nobody is predicted from another sequence"
            start += length
    assert sorted(pieces) == sorted(tuple(one.ids) for one in tokens)
    assert len(rows) <= 1.1 * sum(len(one.ids) for one in tokens) / 64 + 1


def test_positions_restart_with_each_sequence() -> None:
    (row,) = packed_rows([Tokens([1, 2, 3], [-100, 2, 3]), Tokens([4, 5], [-100, 5])], 8)
    assert row.positions() == [0, 1, 2, 0, 1]
    batch = collate([row], pad=0, length=8)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]


def test_the_loss_index_points_in_front_of_each_counted_token() -> None:
    rows = single_rows([Tokens([1, 2, 3], [-100, -100, 3]), Tokens([4, 5], [-100, 5])])
    batch = collate(rows, pad=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [-100, 5, -100]]
    assert batch["loss_index"].tolist() == [1, 3] and batch["targets"].tolist() == [3, 5]


def test_each_epoch_sees_every_row_in_an_order_of_its_own() -> None:
    rows = single_rows(some(20))
    stream = Stream(rows, seed=1)
    first = [stream[place].ids for place in range(20)]
    second = [stream[place].ids for place in range(20, 40)]
    assert sorted(first) == sorted(second) == sorted(row.ids for row in rows)
    assert first != second
    again = Stream(rows, seed=1)
    assert [again[place].ids for place in range(20, 40)] == second, "no need to begin at the start"
    assert [Stream(rows, seed=2)[place].ids for place in range(20)] != first


def test_the_fingerprint_sees_order_and_labels() -> None:
    rows = single_rows(some(5))
    assert batches.fingerprint(rows) == batches.fingerprint(list(rows))
    assert batches.fingerprint(rows) != batches.fingerprint(rows[::-1])
