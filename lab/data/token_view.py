"""Tokens as a person can look at them: each with its text, and whether the loss counts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lab.atomic_files import write_json
from lab.data.batches import TokenSequence, TrainingOrder
from lab.data.chat_template import IGNORE_INDEX
from lab.paths import RunDir

MAX_TOKENS = 4096  # tokens of a row that are kept in first_batch.json


def pieces(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[dict[str, Any]]:
    """[{"id", "text", "counted"}] of each token. A character that several tokens spell stands at
    the last of them; the others are empty."""
    shown = []
    waiting: list[int] = []
    for token, label in zip(ids, labels, strict=True):
        waiting.append(token)
        text = tokenizer.decode(waiting, clean_up_tokenization_spaces=False)
        if text.endswith("\ufffd") and len(waiting) < 8:
            text = ""
        else:
            waiting = []
        shown.append({"id": int(token), "text": text, "counted": label != IGNORE_INDEX})
    return shown


def row(tokenizer: Any, sequence: TokenSequence) -> dict[str, Any]:
    """A row of a batch: its tokens, the lengths of what is packed in it, and where it is from."""
    return {
        "tokens": pieces(tokenizer, sequence.ids[:MAX_TOKENS], sequence.labels[:MAX_TOKENS]),
        "lengths": list(sequence.lengths),
        "sources": list(sequence.sources),
        "length": sequence.tokens,
        "counted": sequence.counted,
    }


def keep_first_batch(run: RunDir, stream: TrainingOrder, count: int, tokenizer: Any) -> None:
    """Write `first_batch.json`: what the model saw at its very first step."""
    if run.first_batch.exists():
        return  # a resumed run began with it, too
    rows = [row(tokenizer, stream[place]) for place in range(min(count, 8))]
    write_json(run.first_batch, {"v": 1, "batch_size": count, "rows": rows})
