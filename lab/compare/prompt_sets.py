"""Prompts for a blind vote: those to try of a built-in dataset, rows of a dataset, or the held-out
rows of a run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from lab import paths
from lab.data import batches, catalog
from lab.data.example_reader import ExampleReader
from lab.data.formats import Example
from lab.data.prepare import reading_of
from lab.errors import LabError
from lab.evals import unlearned_rows
from lab.formatting import quantity
from lab.runs import record_reader
from lab.schema import quote
from lab.spec import DataSpec, RunSpec

TRY, HELD_OUT = "try:", "held-out:"  # before the id of a dataset, or of a run
SECONDS = 8.0  # of reading
MAX_PROMPT_CHARS = 100_000  # characters of a prompt


def prompts(source: str, most: int, seed: int = 0) -> list[str]:
    """Up to `most` different prompts, drawn by `seed` and in the order of their file: the first
    question of each row. Raises LabError where there is none."""
    if source.startswith(TRY):
        card = catalog.resolve(source.removeprefix(TRY)).card
        texts = [str(text) for text in card.get("try", [])]
    elif source.startswith(HELD_OUT):
        texts = list(_questions(_held_out(source.removeprefix(HELD_OUT))))
    else:
        data = DataSpec(dataset=source, on_invalid_row="skip")
        texts = list(_questions(_rows(data, SECONDS)))
    texts = list(
        dict.fromkeys(text for text in texts if text.strip() and len(text) <= MAX_PROMPT_CHARS)
    )
    if not texts:
        raise LabError(
            f"'{quote(source)}' has no question to ask.",
            "Choose a set of chats, or of questions and answers.",
        )
    indices = random.Random(seed).sample(range(len(texts)), min(most, len(texts)))
    return [texts[index] for index in sorted(indices)]


def _rows(data: DataSpec, seconds: float | None = None) -> list[Example]:
    """The usable rows; with `seconds` those that are read in this time."""
    dataset = catalog.resolve(data.dataset)
    reader = ExampleReader(dataset.path, reading_of(data, dataset))
    if seconds is not None:
        reader.end_after(seconds)
    return list(reader)


def _held_out(run_id: str) -> list[Example]:
    """The rows that the run did not learn from. Raises LabError if it held none out, or if its
    dataset has changed."""
    run = paths.run_dir(run_id)
    data = RunSpec.of_run(run).data
    if data.eval_dataset:
        return _rows(replace(data, dataset=data.eval_dataset))
    rows = _rows(data)  # all of them: which are held out depends on their number
    learned_from = record_reader.last_event(run, "data").get("examples", len(rows))
    if learned_from != len(rows):
        raise LabError(
            f"{quote(run_id)} used {quantity(learned_from, 'row')} of "
            f"'{quote(data.dataset)}', which has "
            f"{quantity(len(rows), 'usable row')} now: which were held out is not known.",
            "Choose another set.",
        )
    _, indices = batches.split_indices(len(rows), data.eval_fraction)
    if not indices:
        raise LabError(f"{quote(run_id)} held no rows out.", "Choose another set.")
    # what it began with, or what was mixed in, may have been trained on some of these
    unlearned = {
        each.row for each in unlearned_rows.unlearned(catalog.resolve(data.dataset), [run])
    }
    return [rows[index] for index in indices if rows[index].row in unlearned]


def _questions(rows: list[Example]) -> Iterator[str]:
    for row in rows:
        for message in row.messages:
            if message["role"] == "user":
                if isinstance(message.get("content"), str):
                    yield message["content"]
                break
