"""Held-out examples that also occur in training: what the check of a run counts of them.

The texts themselves are compared, whatever their tokens: case and whitespace make no difference.
Near duplicates are left to the preview (`dataset_preview.py`), which has the time for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lab.data import batches, catalog, duplicates, prepare
from lab.data.conversations import words
from lab.data.example_reader import Example, ExampleReader
from lab.errors import LabError
from lab.formatting import quantity
from lab.spec_sections import DataSpec


def text_of(example: Example) -> str:
    """All that an example says."""
    return example.text or "\n".join(map(words, example.messages))


def fingerprint(example: Example) -> int:
    """The same for examples with the same text, within this process."""
    return hash(duplicates.normal(text_of(example)))


def evaluation_examples(data: DataSpec, most: int, seconds: float) -> Iterator[Example]:
    """The first examples of the evaluation dataset: `most` at most, read for `seconds` at most.
    Raises LabError, with the field's name, where they cannot be used."""
    assert data.eval_dataset is not None
    try:
        dataset = catalog.resolve(data.eval_dataset)
        reading = prepare.reading_of(data, dataset)
        limit = most if reading.limit is None else min(most, reading.limit)
        reader = ExampleReader(dataset.path, replace(reading, limit=limit))
        reader.end_after(seconds)
        yield from reader
    except LabError as error:
        raise LabError(f"data.eval_dataset: {error.message}", error.hint) from None


def note(
    data: DataSpec, training: Sequence[int], held_out: Sequence[int] | None, *, is_whole: bool
) -> str:
    """A sentence on what of the evaluation occurs in training, by fingerprints; "" for nothing.

    `training`: of all examples if `is_whole`. `held_out`: of the evaluation dataset; None without
    one, where the split of the run is made, which only the whole file has.
    """
    if held_out is None:
        if not is_whole:
            return ""
        trained, evaluated = batches.split_indices(len(training), data.held_out_fraction)
        held_out = [training[row] for row in evaluated]
        training = [training[row] for row in trained]
    known = set(training)
    leaks = sum(each in known for each in held_out)
    if not leaks:
        return ""
    least = "" if is_whole else "at least "
    occur = "occurs" if leaks == 1 else "occur"
    return (
        f"Leakage: {least}{leaks:,} of {quantity(len(held_out), 'held-out example')} also {occur} "
        "in training, so the evaluation loss is lower than on new examples. The page Data lists "
        "them."
    )
