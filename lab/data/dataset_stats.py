"""What a spec's data is, and what a person should know of it before the run starts."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import numpy as np

from lab import methods
from lab.data import catalog as datasets
from lab.data import chat_template, example_reader, hub, leakage, prepare
from lab.data.row_sizes import RowSizes
from lab.errors import LabError
from lab.forecasts import DatasetStats
from lab.formatting import quantity
from lab.schema import quote
from lab.spec import RunSpec, without_packing
from lab.spec_sections import DataSpec
from lab.stages import stage

PREVIEW_EXAMPLES = 200  # examples that are rendered and tokenised here; the worker does all
SLOT = re.compile(r"\{\{\s*([\w ]{1,40}?)\s*\}\}")
CHARACTERS = 2_000_000  # of the sample
MAX_READ_S = 4.0  # reading of rows
TOKENISE_S = 4.0
SECOND = 20  # rows that are read of a further file
MAX_EVALUATED = 5_000  # rows of an evaluation dataset that are compared with those that train


def dataset_stats(spec: RunSpec, tokenizer: Any) -> DatasetStats:
    """Whether the data can be used, and what it is. Rows are read for MAX_READ_S seconds at most, a
    sample is rendered; the worker reads all of them."""
    data = spec.data
    dataset = datasets.resolve(data.dataset)
    with stage("rows"):
        reader = example_reader.ExampleReader(dataset.path, prepare.reading_of(data, dataset))
        sample, fingerprints = _read(reader)
    prepare.check_objective(data, reader.has_chats, dataset)
    if data.general_fraction and data.general_dataset != "base":
        _check_further("data.general_dataset", data.general_dataset, prepare.plainly(data))
    held_out = None if data.eval_dataset is None else _fingerprints_of_evaluation(data)
    system_prompt = prepare.system_prompt_of(spec, dataset)
    size = reader.size
    count = (
        reader.num_valid
        if reader.is_whole
        else round(reader.num_valid * size / max(1, reader.bytes_read))
    )
    leak = leakage.note(data, fingerprints, held_out, is_whole=reader.is_whole)
    stats = DatasetStats(
        dataset=dataset.id,
        system_prompt=system_prompt,
        examples=count,
        examples_read=reader.num_valid,
        bytes=size,
        has_chats=reader.has_chats,
        warnings=(
            *_of_other_splits(data),
            *_warnings(spec, reader, sample.examples),
            *filter(None, [leak]),
        ),
    )
    if tokenizer is None:
        return stats
    with stage("template"):
        chat_template.set_up_template(tokenizer, data)
        pieces, sequences = _tokenised(reader, sample, tokenizer, data, system_prompt)
    if not any(piece.num_loss_tokens for piece in pieces):
        raise LabError(
            f"None of the first {quantity(len(sequences), 'row')} of '{dataset.id}' has a "
            "token to learn from "
            f"within {data.max_length} tokens.",
            "Raise data.max_length, or set data.loss_on to all.",
        )
    sizes = np.array([(len(piece.ids), piece.num_loss_tokens) for piece in pieces])
    passes = RowSizes(data.max_length, sizes, sizes[:0]).passes(without_packing(spec))
    return replace(
        stats,
        padding=passes.width / passes.tokens,
        tokens_per_row=sum(len(piece.ids) for piece in pieces) / len(pieces),
        sequences_per_example=sum(sequences) / len(sequences),
        loss_tokens_per_row=sum(piece.num_loss_tokens for piece in pieces) / len(pieces),
    )


def _read(reader: example_reader.ExampleReader) -> tuple[example_reader.Sample, list[int]]:
    """The first examples, and the fingerprints of all, as far as MAX_READ_S seconds reach."""
    sample = example_reader.Sample(PREVIEW_EXAMPLES, CHARACTERS)
    fingerprints = []
    reader.end_after(MAX_READ_S)
    for example in reader:
        fingerprints.append(leakage.fingerprint(example))
        if not sample.is_full:
            sample.add(example)
    return sample, fingerprints


def _fingerprints_of_evaluation(data: DataSpec) -> list[int]:
    """Those of the first rows of the evaluation dataset. Raises LabError if it cannot be read."""
    with stage("rows"):
        examples = leakage.evaluation_examples(data, MAX_EVALUATED, MAX_READ_S / 2)
        return list(map(leakage.fingerprint, examples))


def _check_further(field: str, dataset_id: str, data: DataSpec) -> None:
    """Raise LabError if a further file of the run cannot be read, or its first rows not be used."""
    try:
        dataset = datasets.resolve(dataset_id)
        reader = example_reader.ExampleReader(
            dataset.path, replace(prepare.reading_of(data, dataset), limit=SECOND)
        )
        reader.end_after(MAX_READ_S)
        for _ in reader:
            pass
    except LabError as error:
        raise LabError(f"{field}: {error.message}", error.hint) from None


def _tokenised(
    reader: example_reader.ExampleReader,
    sample: example_reader.Sample,
    tokenizer: Any,
    data: DataSpec,
    system_prompt: str,
) -> tuple[list[chat_template.TokenizedExample], list[float]]:
    """The sequences of the sample, and how many each of its examples becomes. Raises LabError as
    the worker will: for a row that the template refuses, unless bad rows are skipped."""
    pieces: list[chat_template.TokenizedExample] = []
    counts: list[float] = []
    end = time.monotonic() + TOKENISE_S
    for example, share in zip(sample.examples, sample.shares, strict=True):
        sequences = prepare.sequences_of(example, reader, tokenizer, data, system_prompt)
        if sequences is None:
            continue
        pieces.extend(sequences)
        counts.append(len(sequences) if example.messages else len(sequences) * share)
        if time.monotonic() > end:
            break
    reader.finish()
    if not counts:
        raise LabError(
            f"None of the first {quantity(len(sample.examples), 'row')} of "
            f"'{quote(str(reader.path))}' can be "
            f"used: {reader.invalid_summary()}.",
            "Choose another template, or correct these rows.",
        )
    return pieces, counts


def _of_other_splits(data: DataSpec) -> list[str]:
    """A sentence for each set of the Hub whose rows are of another split than was named."""
    ids = (data.dataset, data.eval_dataset or "", data.general_dataset)
    on_hub = dict.fromkeys(name for name in ids if datasets.is_on_hub(name))
    return list(filter(None, (hub.split_note(hub.parse(name)) for name in on_hub)))


def _warnings(
    spec: RunSpec, reader: example_reader.ExampleReader, sample: list[example_reader.Example]
) -> list[str]:
    """What a person should know before the run starts, and may well want."""
    warnings = reader.notes()
    if reader.num_invalid:
        rows, are = quantity(reader.num_invalid, "row"), "is" if reader.num_invalid == 1 else "are"
        warnings.append(f"{rows} cannot be used and {are} skipped: {reader.invalid_summary()}.")
    open_slots = _open_slots(sample)
    if open_slots:
        warnings.append(
            f"Rows hold slots such as {{{{{open_slots[0]}}}}}. Fill them in "
            "data.placeholders, unless the model is to write them."
        )
    method = methods.get(spec.method["name"])
    if not reader.has_chats and not method.saves_whole_model:
        warnings.append(
            f"{method.title} for continued pretraining: adapters learn little new knowledge from "
            "raw text. Full fine-tuning works better, if it fits."
        )
    if not reader.has_chats and not spec.data.general_fraction:
        warnings.append(
            "Continued pretraining without general data risks catastrophic forgetting. Set "
            "data.general_fraction to 0.05 or 0.1."
        )
    return warnings


def _open_slots(sample: list[example_reader.Example]) -> list[str]:
    """Names of {{slots}} that stand in a tenth of the answers or more."""
    answers = [example.messages[-1]["content"] for example in sample if example.messages]
    slots = [SLOT.findall(answer) for answer in answers]
    if sum(map(bool, slots)) < max(1, len(answers) / 10):
        return []
    return sorted({name for names in slots for name in names})
