"""Held-out split, order, packing and batches: the same for every method, fixed by the seed.

Legend: B rows, T tokens a row, N tokens that the loss counts in a batch.
"""

from __future__ import annotations

import bisect
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.data.template import IGNORED, Tokens

SPLIT_SEED = "finetune-lab held-out rows"


@dataclass(frozen=True)
class Row:
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
        return sum(label != IGNORED for label in self.labels)

    def positions(self) -> list[int]:
        """Position ids that restart with each sequence, which is how packing is told."""
        return [place for length in self.lengths for place in range(length)]


def split(count: int, fraction: float) -> tuple[list[int], list[int]]:
    """(training, held-out) places of `count` examples. Independent of the run's seed, so that
    runs with different seeds are measured on the same rows."""
    held = 0
    if fraction > 0 and count > 1:
        held = min(count - 1, max(1, round(count * fraction)))
    places = list(range(count))
    random.Random(f"{SPLIT_SEED} {count}").shuffle(places)
    return sorted(places[held:]), sorted(places[:held])


def single_rows(tokens: Sequence[Tokens]) -> list[Row]:
    return [Row(one.ids, one.labels, (len(one.ids),), (one.source,)) for one in tokens]


def packed_rows(tokens: Sequence[Tokens], length: int) -> list[Row]:
    """Rows of at most `length` tokens: longest first into the fullest row that still has room."""
    bins: list[list[Tokens]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for one in sorted(tokens, key=lambda item: -len(item.ids)):
        size = len(one.ids)
        place = bisect.bisect_left(room, (size, -1))
        if place == len(room):
            bins.append([one])
            bisect.insort(room, (length - size, len(bins) - 1))
            continue
        free, chosen = room.pop(place)
        bins[chosen].append(one)
        bisect.insort(room, (free - size, chosen))
    return [
        Row(
            [token for one in group for token in one.ids],
            # the first token of each sequence is never predicted from the one before it
            [label for one in group for label in (IGNORED, *one.labels[1:])],
            tuple(len(one.ids) for one in group),
            tuple(one.source for one in group),
        )
        for group in bins
    ]


class Stream:
    """The rows in training order, epoch after epoch, each epoch shuffled by seed and number."""

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.rows = rows
        self.seed = seed
        self._epoch = -1
        self._order: list[int] = []

    def __getitem__(self, place: int) -> Row:
        epoch, offset = divmod(place, len(self.rows))
        if epoch != self._epoch:
            self._order = list(range(len(self.rows)))
            random.Random(f"{self.seed} {epoch}").shuffle(self._order)
            self._epoch = epoch
        return self.rows[self._order[offset]]


def collate(rows: Sequence[Row], pad: int, length: int | None = None) -> dict[str, Any]:
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
    for number, row in enumerate(rows):
        fill = width - row.tokens
        places = row.positions()
        ids.append(row.ids + [pad] * fill)
        labels.append(row.labels + [IGNORED] * fill)
        # padding continues the last sequence: a restart would make the model build a block mask
        positions.append(places + [places[-1] + 1 + extra for extra in range(fill)])
        for place in range(1, row.tokens):
            if row.labels[place] != IGNORED:
                index.append(number * width + place - 1)
                targets.append(row.labels[place])
    return {
        "input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "position_ids": torch.tensor(positions),
        "loss_index": torch.tensor(index, dtype=torch.long),
        "targets": torch.tensor(targets, dtype=torch.long),
    }


def fingerprint(rows: Sequence[Row]) -> str:
    """Hash of tokens and labels in order: equal for two runs that train on the same data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.ids, row.labels, row.lengths)).encode())
    return digest.hexdigest()[:16]
