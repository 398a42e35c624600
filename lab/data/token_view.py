"""Tokens as a person can look at them: each with its text, and whether the loss counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lab.atomic_files import write_json
from lab.data.batches import TokenSequence, TrainingOrder
from lab.data.chat_template import IGNORE_INDEX
from lab.data.preview_types import BatchRow, FirstBatch, Token
from lab.paths import RunDir

MAX_TOKENS = 4096  # tokens of a row that are kept in first_batch.json


def pieces(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> tuple[Token, ...]:
    """Each token with its text. A character that several tokens spell stands at the last of them;
    the others are empty."""
    shown = []
    waiting: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(waiting) < 8:
            text = ""
        else:
            waiting = []
        shown.append(Token(int(token), text, label != IGNORE_INDEX))
    return tuple(shown)


def row(tokenizer: Any, sequence: TokenSequence) -> BatchRow:
    """A row of a batch, of whose tokens the first MAX_TOKENS are shown."""
    return BatchRow(
        pieces(tokenizer, sequence.ids[:MAX_TOKENS], sequence.labels[:MAX_TOKENS]),
        tuple(sequence.lengths),
        tuple(sequence.sources),
        sequence.tokens,
        sequence.counted,
    )


def keep_first_batch(run: RunDir, stream: TrainingOrder, count: int, tokenizer: Any) -> None:
    """Write `first_batch.json`: what the model saw at its very first step."""
    if run.first_batch.exists():
        return  # a resumed run began with it, too
    rows = tuple(row(tokenizer, stream[index]) for index in range(min(count, 8)))
    write_json(run.first_batch, asdict(FirstBatch(batch_size=count, rows=rows)))
