"""Held-out split, order, packing and batches: the same for every method, fixed by the seed.

Legend: B rows, T tokens a row, N tokens that the loss counts in a batch.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np

from lab.data.chat_template import IGNORE_INDEX, TokenizedExample

SPLIT_SEED = "finetune-lab held-out rows"
LENGTH_WINDOW = 50  # batches among which rows are sorted by length


@dataclass(frozen=True)
class TokenSequence:
    """One row of a batch: one sequence, or several packed ones. `lengths` are theirs, `sources`
    the rows of the dataset's file that they come from."""

    ids: list[int]
    labels: list[int]
    lengths: tuple[int, ...]
    sources: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def counted(self) -> int:
        return sum(label != IGNORE_INDEX for label in self.labels)

    @property
    def targets(self) -> int:
        """Tokens that count in the loss: a first token is predicted by none."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])

    def positions(self) -> list[int]:
        """Position ids that restart with each sequence, which is how packing is told."""
        return [index for length in self.lengths for index in range(length)]


def split_indices(count: int, fraction: float) -> tuple[list[int], list[int]]:
    """(training, held-out) places of `count` examples. Independent of the run's seed, so that
    runs with different seeds are measured on the same rows."""
    num_held_out = 0
    if fraction > 0 and count > 1:
        num_held_out = min(count - 1, max(1, round(count * fraction)))
    indices = list(range(count))
    random.Random(f"{SPLIT_SEED} {count}").shuffle(indices)
    return sorted(indices[num_held_out:]), sorted(indices[:num_held_out])


class SequenceDataset(Sequence[TokenSequence]):
    """Sequences assembled lazily from examples: `groups[k]` lists the examples in sequence k."""

    def __init__(self, tokens: Sequence[TokenizedExample], groups: Sequence[Sequence[int]]) -> None:
        self.tokens, self.groups = tokens, groups

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> TokenSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenSequence]: ...
    def __getitem__(self, index: int | slice) -> TokenSequence | list[TokenSequence]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        group = [self.tokens[i] for i in self.groups[index]]
        if len(group) == 1:
            (sequence,) = group
            return TokenSequence(
                sequence.ids, sequence.labels, (len(sequence.ids),), (sequence.record_number,)
            )
        return TokenSequence(
            [token for sequence in group for token in sequence.ids],
            # the first token of each sequence is never predicted from the one before it
            [label for sequence in group for label in (IGNORE_INDEX, *sequence.labels[1:])],
            tuple(len(sequence.ids) for sequence in group),
            tuple(sequence.record_number for sequence in group),
        )

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens of each row."""
        sizes = lengths_of(self.tokens)
        return np.array([int(sizes[list(group)].sum()) for group in self.groups], np.int64)

    def totals(self) -> tuple[int, int]:
        """(tokens, tokens that the loss counts) of all rows."""
        stored = getattr(self.tokens, "learned", None)
        learned = (
            np.array([sequence.num_loss_tokens for sequence in self.tokens])
            if stored is None
            else stored
        )
        indices = [index for group in self.groups for index in group]
        return int(lengths_of(self.tokens)[indices].sum()), int(learned[indices].sum())


def lengths_of(tokens: Sequence[TokenizedExample]) -> np.ndarray:
    """(N,) tokens of each sequence, without reading those that are stored."""
    stored = getattr(tokens, "lengths", None)
    return np.array([len(sequence.ids) for sequence in tokens]) if stored is None else stored


def single_rows(
    tokens: Sequence[TokenizedExample], indices: Sequence[int] | None = None
) -> SequenceDataset:
    chosen = range(len(tokens)) if indices is None else indices
    return SequenceDataset(tokens, [(int(index),) for index in chosen])


def packed_rows(
    tokens: Sequence[TokenizedExample], length: int, indices: Sequence[int] | None = None
) -> SequenceDataset:
    """Rows of at most `length` tokens: longest first into the fullest row that still has room."""
    sizes = lengths_of(tokens)
    chosen = np.arange(len(tokens)) if indices is None else np.asarray(indices, np.int64)
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for index in chosen[np.argsort(-sizes[chosen], kind="stable")].tolist():
        size = int(sizes[index])
        free_place = bisect.bisect_left(room, (size, -1))
        if free_place == len(room):
            bins.append([index])
            bisect.insort(room, (length - size, len(bins) - 1))
            continue
        free, chosen_bin = room.pop(free_place)
        bins[chosen_bin].append(index)
        bisect.insort(room, (free - size, chosen_bin))
    return SequenceDataset(tokens, bins)


class TrainingOrder:
    """The rows in training order, epoch after epoch, each epoch shuffled by seed and number.

    With `bucket` rows a batch, rows of similar length share a batch: the shuffled rows are sorted
    by length within windows of BUCKETS batches, and the batches shuffled again.
    """

    def __init__(self, rows: Sequence[TokenSequence], seed: int, bucket: int = 0) -> None:
        self.rows = rows
        self.seed = seed
        self.bucket = bucket
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, index: int) -> TokenSequence:
        return self.rows[self.row_index(index)]

    def row_index(self, index: int) -> int:
        """The index in the dataset of the row that comes after `index` others."""
        epoch, offset = divmod(index, len(self.rows))
        if epoch != self._epoch:
            self._order = self._shuffled(random.Random(f"{self.seed} {epoch}"))
            self._epoch = epoch
        return self._order[offset]

    def _shuffled(self, chance: random.Random) -> list[int]:
        order = list(range(len(self.rows)))
        chance.shuffle(order)
        if not self.bucket:
            return order
        size = self.bucket * LENGTH_WINDOW
        lengths = (
            self.rows.lengths.tolist()
            if isinstance(self.rows, SequenceDataset)
            else [row.tokens for row in self.rows]
        )
        groups: list[list[int]] = []
        for start in range(0, len(order), size):
            window = sorted(order[start : start + size], key=lengths.__getitem__)
            groups += [
                window[begin : begin + self.bucket] for begin in range(0, len(window), self.bucket)
            ]
        whole = [group for group in groups if len(group) == self.bucket]
        chance.shuffle(whole)
        # a group that is not full comes last, so that the others stay aligned with the batches
        rest = [group for group in groups if len(group) < self.bucket]
        return [index for group in [*whole, *rest] for index in group]


def collate(rows: Sequence[TokenSequence], pad: int, length: int | None = None) -> dict[str, Any]:
    """A batch of tensors; short rows are filled with `pad` on the right.

    input_ids, labels, position_ids: (B, T). loss_index: (N,) places in the flattened (B, T)
    whose *next* token counts; targets: (N,) those tokens. No attention mask: causal attention
    never looks to the right, where the padding is, and packing is told by position ids.
    """
    import torch

    width = length or max(row.tokens for row in rows)
    ids, labels, positions = [], [], []
    index: list[int] = []
    targets: list[int] = []
    for row_index, row in enumerate(rows):
        fill = width - row.tokens
        row_positions = row.positions()
        ids.append(row.ids + [pad] * fill)
        labels.append(row.labels + [IGNORE_INDEX] * fill)
        # padding continues the last sequence: a restart would make the model build a block mask
        positions.append(row_positions + [row_positions[-1] + 1 + extra for extra in range(fill)])
        for position in range(1, row.tokens):
            if row.labels[position] != IGNORE_INDEX:
                index.append(row_index * width + position - 1)
                targets.append(row.labels[position])
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "position_ids": torch.tensor(positions),
        "loss_index": torch.tensor(index, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
    }


def blank(row: TokenSequence) -> TokenSequence:
    """`row` without a token that counts."""
    return replace(row, labels=[IGNORE_INDEX] * row.tokens)


def fingerprint(rows: Sequence[TokenSequence]) -> str:
    """Hash of tokens and labels in order: equal for two runs that train on the same data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.ids, row.labels, row.lengths)).encode())
    return digest.hexdigest()[:16]
