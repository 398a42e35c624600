"""How long the rows of a run are, known before it starts: its largest passes, and its padding.

Everything follows from the tokens of each sequence, in the order in which the run takes them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lab.data import batches, catalog, chat_template, prepare
from lab.recent import Recent
from lab.spec import RunSpec, without_packing

MAX_ROWS_FOLLOWED = (
    100_000  # of a run whose order is followed; beyond, each pass may hold the longest
)
TOKENISED_BYTES_PER_S = 400_000  # of a file of chats, that are tokenised on one core
MAX_FILE_BYTES = 500_000_000  # bytes; to find the tokens of a file, it is hashed


class TooSlow(Exception):
    """Tokenising takes longer than the asker waits."""


@dataclass(frozen=True)
class LargestPass:
    """`rows` padded to `length` tokens, of which the loss counts at most `counted`. `packed`:
    several sequences in a row."""

    rows: int
    length: int
    counted: int
    packed: bool = False


@dataclass(frozen=True)
class RunPasses:
    """The passes of a run. `held_out`: of its evaluations, None without any. Means are of a row;
    `width` is that of a pass, to which its rows are padded."""

    largest: LargestPass
    held_out: LargestPass | None
    rows: int  # of an epoch
    tokens: float
    counted: float
    width: float
    sequence: float  # tokens of one of those that are packed into a row
    held_out_tokens: float  # of all held-out rows, with their padding


@dataclass(frozen=True, eq=False)
class RowSizes:
    """(N, 2) tokens and counted tokens of each sequence, cut at `max_length`."""

    max_length: int
    train: np.ndarray
    held_out: np.ndarray
    _known: Recent[Any, RunPasses] = field(default_factory=lambda: Recent(64), repr=False)

    def passes(self, spec: RunSpec) -> RunPasses:
        """Those of `spec`, which may differ from the spec of these sizes in its `train`, packing,
        grouping and length."""
        train, data = spec.train, spec.data
        key = (
            train.batch_size, train.gradient_accumulation_steps, train.seed, train.epochs,
            train.max_steps, train.max_tokens, train.max_seconds, train.max_flops,
            train.compile, data.max_length, data.packing, data.group_by_length,
        )  # fmt: skip
        return self._known.get_or(key, lambda: self._passes(spec))

    def _passes(self, spec: RunSpec) -> RunPasses:
        sequences = self._cut(self.train, spec)
        if spec.data.packing == "on":
            groups = batches.packed_rows(_Sized(sequences), spec.data.max_length).groups
            rows = np.array([sequences[list(group)].sum(0) for group in groups])
        else:
            rows = sequences
        held_out = self._cut(self.held_out, spec)
        size = spec.train.batch_size
        largest, width = _largest(rows, spec)
        largest = replace(largest, packed=len(rows) < len(sequences))
        if largest.rows < size and spec.data.packing == "on":
            # where the model turns out not to keep packed sequences apart, there are more rows
            single, _ = _largest(sequences, without_packing(spec))
            if single.rows * single.length > largest.rows * largest.length:
                largest = single
        evaluation_passes = _in_passes(held_out, size) if len(held_out) else None
        tokens, counted = rows.mean(0).tolist()
        return RunPasses(
            largest,
            None if evaluation_passes is None else _maximum(evaluation_passes),
            len(rows),
            tokens,
            counted,
            width,
            float(sequences[:, 0].mean()),
            0.0
            if evaluation_passes is None
            else float((evaluation_passes[:, 0] * evaluation_passes[:, 1]).sum()),
        )

    def _cut(self, sequences: np.ndarray, spec: RunSpec) -> np.ndarray:
        """Cut at the length of `spec`; what was cut before may be longer by as much."""
        length = spec.data.max_length
        if length == self.max_length or not len(sequences):
            return sequences
        tokens, counted = sequences.T
        if length > self.max_length:
            more = np.where(tokens >= self.max_length, length - tokens, 0)
            return np.stack([tokens + more, counted + more], 1)
        return np.stack([np.minimum(tokens, length), np.minimum(counted, length - 1)], 1)


class _Sized(Sequence[Any]):
    """Sequences of which only the sizes are known."""

    def __init__(self, sequences: np.ndarray) -> None:
        self.lengths = sequences[:, 0]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("only the sizes are known")


def _largest(rows: np.ndarray, spec: RunSpec) -> tuple[LargestPass, float]:
    """(the largest micro-batch of a run over `rows`, the mean tokens of a row with its padding)."""
    train, size = spec.train, spec.train.batch_size
    count = _rows_of_run(rows, spec)
    bucket = size if spec.data.group_by_length == "on" else 0
    order = batches.TrainingOrder(batches.single_rows(_Sized(rows)), train.seed, bucket)
    seen = MAX_ROWS_FOLLOWED if count is None else min(count, MAX_ROWS_FOLLOWED)
    taken = [order.row_index(index) for index in range(seen)]
    passes = _in_passes(rows[taken], size)
    largest = _maximum(passes)
    if count is None or count > seen:  # any rows may meet in a pass
        counted = np.sort(np.tile(rows[:, 1], -(-size // len(rows))))[-size:].sum()
        largest = LargestPass(size, int(rows[:, 0].max()), int(counted))
    tokens = rows[:, 0].mean()
    width = float((passes[:, 0] * passes[:, 1]).sum() / rows[taken, 0].sum() * tokens)
    if train.compile == "on":  # for one shape
        width = float(spec.data.max_length)
        largest = replace(largest, length=spec.data.max_length)
    return largest, width


def _rows_of_run(rows: np.ndarray, spec: RunSpec) -> int | None:
    """How many rows the run takes; None where seconds or operations end it."""
    train = spec.train
    per_step = train.batch_size * train.gradient_accumulation_steps
    if train.max_steps:
        return train.max_steps * per_step
    if train.max_tokens:
        return math.ceil(train.max_tokens / float(rows[:, 0].mean())) + per_step
    if train.max_seconds or train.max_flops:
        return None
    return max(1, math.ceil(train.epochs * len(rows)))


def _in_passes(rows: np.ndarray, size: int) -> np.ndarray:
    """(P, 3) rows, tokens of the longest, and counted tokens of each pass of `size` rows."""
    starts = np.arange(0, len(rows), size)
    return np.stack(
        [
            np.minimum(size, len(rows) - starts),
            np.maximum.reduceat(rows[:, 0], starts),
            np.add.reduceat(rows[:, 1], starts),
        ],
        1,
    )


def _maximum(passes: np.ndarray) -> LargestPass:
    """The pass with the most tokens, and the most counted tokens of any. Where the rows of a
    smaller one are so long that more pairs of tokens attend to each other, its length is taken."""
    rows, length, counted = passes.T
    largest = int(np.lexsort((length, rows * length))[-1])
    pairs = rows * length**2
    longest = length[largest] if pairs[largest] == pairs.max() else length.max()
    return LargestPass(int(rows[largest]), int(longest), int(counted.max()))


def row_sizes(spec: RunSpec, tokenizer: Any, seconds: float) -> RowSizes | None:
    """The sizes of the rows of `spec`, whose tokens are stored for its worker, too; None where
    tokenising takes longer than `seconds`, or where the base's own answers are mixed in, which are
    not known yet. The tokenizer's template is set. Raises LabError as the worker will."""
    data = spec.data
    if data.general_fraction and data.general_dataset == "base":
        return None
    ends = time.monotonic() + seconds

    def watch(done: int, total: int) -> None:
        """Called while tokens are made, with kB: never where they are stored already."""
        if 1000 * total > seconds * TOKENISED_BYTES_PER_S or time.monotonic() > ends:
            raise TooSlow

    dataset = catalog.resolve(data.dataset)
    if dataset.path.stat().st_size > MAX_FILE_BYTES:
        return None
    chat_template.set_up_template(tokenizer, data)
    try:
        tokens = prepare.tokenised(
            dataset, tokenizer, data, prepare.system_prompt_of(spec, dataset), watch
        )
        rows = prepare.choose_rows(spec, tokenizer, tokens, watch)
    except TooSlow:
        return None

    def sizes(tokens: Any, indices: Any) -> np.ndarray:
        return np.stack([tokens.lengths[indices], tokens.learned[indices]], 1)

    return RowSizes(
        data.max_length,
        sizes(rows.train, rows.train_indices),
        sizes(rows.held_out, rows.held_out_indices),
    )
