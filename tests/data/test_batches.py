"""Split, order and packing: complete, repeatable, and without one row seeing another."""

from __future__ import annotations

import itertools
import random

from lab.data import batches
from lab.data.batches import TrainingOrder, collate, packed_rows, single_rows
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample


def some(count: int, seed: int = 0, longest: int = 30) -> list[TokenizedExample]:
    chance = random.Random(seed)
    created = []
    for number in range(count):
        length = chance.randint(2, longest)
        ids = [100 * number + place for place in range(length)]
        created.append(TokenizedExample(ids, [IGNORE_INDEX, *ids[1:]]))
    return created


def test_the_split_is_complete_disjoint_and_free_of_the_run_seed() -> None:
    train, held = batches.split_indices(50, 0.2)
    assert len(held) == 10 and sorted(train + held) == list(range(50))
    assert batches.split_indices(50, 0.2) == (train, held)
    assert batches.split_indices(50, 0.0) == (list(range(50)), [])
    assert len(batches.split_indices(3, 0.01)[1]) == 1, (
        "a fraction above zero holds out at least one"
    )
    assert batches.split_indices(1, 0.5) == ([0], []), "the only row trains"


def test_packing_keeps_every_sequence_once_and_whole() -> None:
    tokens = some(200)
    rows = packed_rows(tokens, 64)
    assert all(row.tokens <= 64 for row in rows)
    pieces = []
    for row in rows:
        start = 0
        for length in row.lengths:
            pieces.append(tuple(row.ids[start : start + length]))
            assert row.labels[start] == IGNORE_INDEX, "nobody is predicted from another sequence"
            start += length
    assert sorted(pieces) == sorted(tuple(token.ids) for token in tokens)
    assert len(rows) <= 1.1 * sum(len(token.ids) for token in tokens) / 64 + 1


def test_positions_restart_with_each_sequence() -> None:
    (row,) = packed_rows(
        [TokenizedExample([1, 2, 3], [-100, 2, 3]), TokenizedExample([4, 5], [-100, 5])], 8
    )
    assert row.positions() == [0, 1, 2, 0, 1]
    batch = collate([row], pad=0, length=8)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]


def test_the_loss_index_points_in_front_of_each_counted_token() -> None:
    rows = single_rows(
        [TokenizedExample([1, 2, 3], [-100, -100, 3]), TokenizedExample([4, 5], [-100, 5])]
    )
    batch = collate(rows, pad=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [-100, 5, -100]]
    assert batch["loss_index"].tolist() == [1, 3] and batch["targets"].tolist() == [3, 5]


def test_what_counts_of_a_row_is_told_with_and_without_its_first_token() -> None:
    """A label for the first token is no target: nothing stands before it to predict it from."""
    row = batches.TokenSequence([1, 2, 3], [1, IGNORE_INDEX, 3], (3,), (7,))
    assert (row.tokens, row.counted, row.targets) == (3, 2, 1)
    assert batches.blank(row) == batches.TokenSequence([1, 2, 3], [IGNORE_INDEX] * 3, (3,), (7,))


def test_each_epoch_sees_every_row_in_an_order_of_its_own() -> None:
    rows = single_rows(some(20))
    stream = TrainingOrder(rows, seed=1)
    first = [stream[place].ids for place in range(20)]
    second = [stream[place].ids for place in range(20, 40)]
    assert sorted(first) == sorted(second) == sorted(row.ids for row in rows)
    assert first != second
    again = TrainingOrder(rows, seed=1)
    assert [again[place].ids for place in range(20, 40)] == second, "no need to begin at the start"
    assert [TrainingOrder(rows, seed=2)[place].ids for place in range(20)] != first


def test_the_fingerprint_sees_order_and_labels() -> None:
    rows = single_rows(some(5))
    assert batches.fingerprint(rows) == batches.fingerprint(list(rows))
    assert batches.fingerprint(rows) != batches.fingerprint(rows[::-1])


def test_a_batch_of_a_fixed_length_is_filled_on_the_right() -> None:
    """Compiled layers see one length; nothing that counts may move by it."""
    rows = single_rows(
        [TokenizedExample([1, 2, 3], [-100, -100, 3]), TokenizedExample([4, 5], [-100, 5])]
    )
    batch = collate(rows, pad=9, length=5)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 9, 9], [4, 5, 9, 9, 9]]
    assert batch["labels"].tolist() == [[-100, -100, 3, -100, -100], [-100, 5, *[-100] * 3]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert batch["loss_index"].tolist() == [1, 5] and batch["targets"].tolist() == [3, 5]


def test_a_packed_row_predicts_no_sequence_from_another() -> None:
    """Also where a sequence brings a label for its own first token."""
    packed = packed_rows(
        [
            TokenizedExample([1, 2, 3], [1, 2, 3], record_number=4),
            TokenizedExample([4, 5], [4, 5], record_number=9),
        ],
        8,
    )
    assert packed[0].labels == [IGNORE_INDEX, 2, 3, IGNORE_INDEX, 5]
    assert packed[0].sources == (4, 9) and packed[0].lengths == (3, 2)
    assert collate(packed, pad=0)["loss_index"].tolist() == [0, 1, 3]


def test_rows_are_packed_as_full_as_they_can_be() -> None:
    sizes = [10, 6, 6, 5, 4, 4, 3, 2]
    tokens = [TokenizedExample(list(range(size)), list(range(size))) for size in sizes]
    rows = packed_rows(tokens, 10)
    assert sorted(row.tokens for row in rows) == [10, 10, 10, 10], "forty tokens, four rows"


def test_totals_are_of_the_chosen_rows_only() -> None:
    tokens = [TokenizedExample([1] * n, [IGNORE_INDEX] * (n - 1) + [1]) for n in (3, 5, 7, 9)]
    for rows in (single_rows(tokens, [1, 3]), packed_rows(tokens, 32, [1, 3])):
        assert rows.totals() == (14, 2) and sum(rows.lengths.tolist()) == 14
    assert single_rows(tokens).totals() == (24, 4)


def test_the_fingerprint_sees_where_packed_sequences_end() -> None:
    whole, cut = (
        batches.TokenSequence([1, 2, 3, 4], [IGNORE_INDEX, 2, 3, 4], lengths)
        for lengths in ((4,), (2, 2))
    )
    assert batches.fingerprint([whole]) != batches.fingerprint([cut])


def test_buckets_are_whole_batches_of_similar_rows_in_mixed_order() -> None:
    """Lengths within a batch are near, but batches do not come short to long; a batch that is
    not full comes last, so that the others stay batches."""
    tokens = some(203, longest=60)
    stream = TrainingOrder(single_rows(tokens), seed=1, bucket=4)
    sizes = [stream[place].tokens for place in range(203)]
    parts = [sizes[start : start + 4] for start in range(0, 203, 4)]
    assert max(max(part) - min(part) for part in parts[:50]) <= 12, "of sixty"
    assert len(parts[-1]) == 3
    means = [sum(part) / len(part) for part in parts[:50]]
    assert means != sorted(means) and means != sorted(means, reverse=True)
    rises = sum(one < other for one, other in itertools.pairwise(means))
    assert 10 < rises < 40, "long and short batches take turns"


def test_windows_of_buckets_are_large_enough_to_sort_in() -> None:
    stream = TrainingOrder(single_rows(some(400, longest=60)), seed=2, bucket=2)
    sizes = [stream[place].tokens for place in range(400)]
    wasted = sum(abs(size - other) for size, other in zip(sizes[::2], sizes[1::2], strict=True))
    assert wasted < 400, "less than two tokens a batch; unsorted it is about four thousand"


def test_an_epoch_of_a_seed_is_the_same_everywhere() -> None:
    """Held-out rows and orders must not depend on the machine or the process."""
    assert (
        batches.split_indices(10, 0.3)[1]
        == batches.split_indices(10, 0.3)[1]
        != batches.split_indices(11, 0.3)[1]
    )
    rows = single_rows([TokenizedExample([n, n], [IGNORE_INDEX, n]) for n in range(8)])
    order = [TrainingOrder(rows, seed=0)[place].ids[0] for place in range(16)]
    random.seed(5)
    assert order == [TrainingOrder(rows, seed=0)[place].ids[0] for place in range(16)]
    assert order[:8] != order[8:], "each epoch in an order of its own"
