"""From a spec to the rows that train and the rows that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.data import batches, catalog, rows, template
from lab.data.batches import Row
from lab.data.rows import Example
from lab.data.template import Tokens
from lab.errors import LabError
from lab.spec import RunSpec


@dataclass(frozen=True)
class Prepared:
    train: list[Row]
    held_out: list[Row]
    system_prompt: str
    examples: int
    dropped: int
    truncated: int
    first: Example
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What the run records about its data."""
        return {
            "examples": self.examples,
            "train_rows": len(self.train),
            "held_out_rows": len(self.held_out),
            "train_tokens": sum(row.tokens for row in self.train),
            "train_loss_tokens": sum(row.counted for row in self.train),
            "held_out_loss_tokens": sum(row.counted for row in self.held_out),
            "dropped": self.dropped,
            "truncated": self.truncated,
            "train_hash": batches.fingerprint(self.train),
            "held_out_hash": batches.fingerprint(self.held_out),
        }


def prepare(
    spec: RunSpec, tokenizer: Any, progress: Callable[[int, int], None] = lambda done, total: None
) -> Prepared:
    """Read, split, render, label and pack. `progress(done, total)` counts examples.

    Raises LabError if a row cannot be used, or nothing is left to learn from.
    """
    dataset = catalog.resolve(spec.data.dataset)
    system_prompt = system_prompt_of(spec, dataset)
    examples = rows.read_examples(dataset.path, spec.data.format, spec.data.max_examples)
    notes = []
    if template.ensure_template(tokenizer) and any(one.messages for one in examples):
        notes.append(
            "The tokenizer has no chat template; the lab's plain one (### User / ### Assistant) "
            "is used and saved with the result."
        )
    tokens: list[list[Tokens]] = []
    for place, example in enumerate(examples):
        tokens.append(
            template.tokenize(
                example, tokenizer, system_prompt, spec.data.loss_on, spec.data.max_length
            )
        )
        if place % 64 == 0:
            progress(place, len(examples))
    progress(len(examples), len(examples))
    training, held = batches.split(len(examples), spec.data.eval_fraction)
    train, dropped = _useful(tokens, training)
    held_out, dropped_held = _useful(tokens, held)
    if not train:
        raise LabError(
            f"None of the {len(examples)} rows of '{dataset.id}' has a token to learn from within "
            f"{spec.data.max_length} tokens.",
            "Raise data.max_length, or set data.loss_on to all.",
        )
    if held and not held_out:
        notes.append("No held-out row has a token to score; the evaluation loss is missing.")
    truncated = sum(
        bool(example.messages) and len(parts[0].ids) == spec.data.max_length
        for example, parts in zip(examples, tokens, strict=True)
    )
    if dropped + dropped_held:
        notes.append(
            f"{dropped + dropped_held} rows have no token that the loss counts and were left out."
        )
    make = _packer(spec)
    return Prepared(
        make(train),
        batches.single_rows(held_out),
        system_prompt,
        len(examples),
        dropped + dropped_held,
        truncated,
        examples[training[0]],
        notes,
    )


def system_prompt_of(spec: RunSpec, dataset: catalog.Dataset) -> str:
    given = spec.data.system_prompt
    return dataset.system_prompt if given is None else given


def _packer(spec: RunSpec) -> Callable[[Sequence[Tokens]], list[Row]]:
    if spec.data.packing == "on":
        return lambda tokens: batches.packed_rows(tokens, spec.data.max_length)
    return batches.single_rows


def _useful(tokens: list[list[Tokens]], places: list[int]) -> tuple[list[Tokens], int]:
    """(rows with at least one counted token, how many were dropped) of these examples."""
    rows_of = [one for place in places for one in tokens[place]]
    useful = [one for one in rows_of if one.counted]
    return useful, len(rows_of) - len(useful)
