"""What the Data page asks: rows as the model would see them, and what is odd about the set.

Reads the beginning of the file only, so that a large one answers as fast as a small one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lab.data import (
    batches,
    chat_template,
    duplicates,
    leakage,
    prepare,
    stop_tokens,
    token_view,
)
from lab.data import catalog as datasets
from lab.data.chat_template import TokenizedExample
from lab.data.example_reader import Example, ExampleReader, Sample
from lab.data.preview_types import (
    BatchRow,
    DatasetPreview,
    ExampleCounts,
    ExampleView,
    InvalidRows,
    Padding,
    SimilarPair,
    TemplateView,
)
from lab.errors import LabError, Problem, SpecError
from lab.methods import get as method_of
from lab.models import catalog as models
from lab.models import hub, weights
from lab.spec import DataSpec, RunSpec
from lab.stages import stage

MAX_SHOWN = 20  # rows that are shown
PACKED = 6  # batches that are shown
MAX_EXAMPLES = 1000  # rows that are tokenised, unless more are asked for
CHARACTERS = 4_000  # of each row that is tokenised, on average
SECONDS = 8.0  # of reading
TOKENISE_S = 15.0


def look(value: Any, most: int = MAX_EXAMPLES, *, may_fetch: bool = False) -> DatasetPreview:
    """What the rows of a spec's data look like to its model.

    Where the tokenizer is not on this machine, and it may not be fetched, only the bytes to be
    fetched. Raises LabError for problems the user can fix.
    """
    problems: list[Problem] = []
    spec = RunSpec.parse(value, problems)
    wrong = [problem for problem in problems if problem.field.startswith(("data", "model"))]
    if wrong:
        raise SpecError(wrong)
    data = spec.data
    dataset = datasets.resolve(data.dataset)
    source = models.resolve(spec.model)
    with stage("tokenizer"):
        still = None if may_fetch else hub.tokenizer_download(source)
        if still is not None:
            return DatasetPreview(dataset.id, still.bytes)
        tokenizer = weights.load_tokenizer(source)
    has_own = bool(tokenizer.chat_template)
    with stage("template"):
        chat_template.set_up_template(tokenizer, data)
    system_prompt = prepare.system_prompt_of(spec, dataset)
    with stage("rows"):
        reader = ExampleReader(dataset.path, prepare.reading_of(data, dataset))
        sample, is_whole, trouble = _read(reader, most)
    with stage("template"):
        sequences, is_cut = _tokenized(reader, sample.examples, tokenizer, system_prompt, data)
    is_whole = is_whole and not is_cut
    usable = [index for index, pieces in enumerate(sequences) if pieces]
    if not usable:
        raise LabError(
            f"No row of '{dataset.id}' can be used: {reader.invalid_summary() or trouble}.",
            "Name the right columns, or choose another template.",
        )
    # what the template refused is no example of the run, whose split is made without it
    examples = [sample.examples[index] for index in usable]
    shares = [sample.shares[index] for index in usable]
    sequences = [sequences[index] for index in usable]
    held_out_examples, held_out = _held_out(data, len(examples))
    compared = examples + held_out_examples
    flat = [sequence for pieces in sequences for sequence in pieces]
    texts = list(map(leakage.text_of, compared))
    with stage("compare"):
        # rows of an evaluation dataset come last, and change nothing but the leaks
        twins = duplicates.find_duplicates(texts, held_out)
    count = len(examples)
    exact, near = (
        [pair for pair in pairs if pair[1] < count] for pairs in (twins.exact, twins.near)
    )
    leaks = twins.exact_leaks + twins.near_leaks
    notes = chat_template.ExampleNotes()
    for example, parts in zip(examples, sequences, strict=True):
        notes.add(example, parts)
    can_pack = method_of(spec.method["name"]).can_pack
    return DatasetPreview(
        dataset=dataset.id,
        examples=len(examples),
        is_whole=is_whole,
        has_chats=reader.has_chats,
        template=TemplateView(
            has_own,
            data.template,
            _end_token(tokenizer, reader.has_chats),
            _injected(tokenizer, system_prompt) if reader.has_chats else "",
            tuple(notes.lines()),
        ),
        rows=tuple(
            _row(example, sequence, tokenizer, system_prompt, len(pieces) > 1)
            for example, pieces in zip(examples[:MAX_SHOWN], sequences[:MAX_SHOWN], strict=True)
            for sequence in (pieces if example.messages else pieces[:1])
        )[:MAX_SHOWN],
        packed=_packed(flat, data.max_length) if can_pack else (),
        lengths=tuple(_lengths(examples, shares, sequences)),
        counts=ExampleCounts(
            tokens=sum(len(sequence.ids) for sequence in flat),
            counted=sum(sequence.num_loss_tokens for sequence in flat),
            truncated=sum(sequence.truncated for sequence in flat),
            without_loss=sum(not sequence.num_loss_tokens for sequence in flat),
            invalid_rows=reader.num_invalid,
            duplicates=len(exact),
            near_duplicates=len(near),
            held_out=len(held_out),
            leaks=len(leaks),
            exact_leaks=len(twins.exact_leaks),
        ),
        similar=tuple(_pair(examples, texts, pair) for pair in (exact + near)[:20]),
        leaks=tuple(_pair(compared, texts, pair) for pair in leaks[:20]),
        held_out_dataset=data.eval_dataset or "",
        invalid=tuple(
            InvalidRows(group.text, group.count, group.row) for group in reader.reasons.groups[:50]
        ),
        notes=tuple(reader.notes()),
        padding=_padding(flat, spec),
    )


def _held_out(data: DataSpec, count: int) -> tuple[list[Example], Sequence[int]]:
    """The first examples of the evaluation dataset, and the places of what is held out among the
    `count` training examples and those."""
    if data.eval_dataset is None:
        return [], batches.split_indices(count, data.held_out_fraction)[1]
    sample = Sample(MAX_EXAMPLES, CHARACTERS * MAX_EXAMPLES)
    with stage("rows"):
        usable = replace(data, on_invalid_row="skip")
        for example in leakage.evaluation_examples(usable, MAX_EXAMPLES, SECONDS):
            sample.add(example)
            if sample.is_full:
                break
    return sample.examples, range(count, count + len(sample.examples))


def _read(reader: ExampleReader, most: int) -> tuple[Sample, bool, str]:
    """The first examples; bad rows are counted, not raised: the page shows them."""
    sample = Sample(most, CHARACTERS * most)
    reader.end_after(SECONDS)
    try:
        for example in reader:
            sample.add(example)
            if sample.is_full:
                return sample, False, ""
    except LabError as error:
        if not sample.examples:
            raise
        return sample, reader.is_whole, str(error)
    return sample, reader.is_whole, ""


def _tokenized(
    reader: ExampleReader,
    examples: list[Example],
    tokenizer: Any,
    system_prompt: str,
    data: DataSpec,
) -> tuple[list[list[TokenizedExample]], bool]:
    """The pieces of each example, and whether time ended before the last; none, and a reason in
    `reader`, for an example that cannot be rendered."""
    sequences: list[list[TokenizedExample]] = []
    end = time.monotonic() + TOKENISE_S
    for example in examples:
        if sequences and time.monotonic() > end:
            return sequences, True
        pieces = prepare.sequences_of(example, reader, tokenizer, data, system_prompt)
        sequences.append(pieces or [])
    return sequences, False


def _row(
    example: Example, first: TokenizedExample, tokenizer: Any, system_prompt: str, is_part: bool
) -> ExampleView:
    """One row, or the part of it that became an example of its own: its rendered text, and its
    tokens with the mask."""
    if example.messages and is_part:
        text = tokenizer.decode(first.ids)
    elif example.messages:
        text = chat_template.render(
            tokenizer,
            chat_template.with_system(example.messages, system_prompt),
            tools=list(getattr(example, "tools", None) or []),
        )
    else:
        text = example.text
    tokens = token_view.pieces(
        tokenizer, first.ids[: token_view.MAX_TOKENS], first.labels[: token_view.MAX_TOKENS]
    )
    return ExampleView(example.row, text[:8000], tokens, first.truncated, first.num_loss_tokens)


def _end_token(tokenizer: Any, has_chats: bool) -> str:
    """The token that an example ends with."""
    taught = stop_tokens.taught(tokenizer) if has_chats else []
    return str(tokenizer.convert_ids_to_tokens(taught[0]) if taught else tokenizer.eos_token)


def _injected(tokenizer: Any, system_prompt: str) -> str:
    """The system turn that the template writes where none is given; "" if it writes none."""
    if system_prompt:
        return ""
    try:
        text = chat_template.render(tokenizer, [{"role": "user", "content": "\ue000"}])
    except LabError:
        return ""
    before = text.partition("\ue000")[0]
    return before if "system" in before.lower() else ""


def _lengths(
    examples: list[Example], shares: list[float], tokenized: list[list[TokenizedExample]]
) -> list[int]:
    """Tokens of each row before anything is cut. Those of a row that was too long to look at as a
    whole follow from its share."""
    lengths: list[int] = []
    for example, share, sequences in zip(examples, shares, tokenized, strict=True):
        if example.messages:
            lengths.extend(round(sequence.full_length * share) for sequence in sequences)
        else:
            lengths.append(round(sum(len(sequence.ids) for sequence in sequences) * share))
    return lengths


def _packed(flat: list[TokenizedExample], length: int) -> tuple[BatchRow, ...]:
    """The first packed sequences, without their tokens."""
    rows = batches.packed_rows([sequence for sequence in flat if sequence.num_loss_tokens], length)
    return tuple(
        BatchRow((), tuple(row.lengths), tuple(row.sources), row.tokens, row.counted)
        for row in rows[:PACKED]
    )


def _padding(flat: list[TokenizedExample], spec: RunSpec) -> Padding | None:
    """Of rows in their shuffled order, grouped by length, and packed; None without any row."""
    useful = [sequence for sequence in flat if sequence.num_loss_tokens]
    if not useful:
        return None
    size, seed = spec.train.batch_size, spec.train.seed
    single = batches.single_rows(useful)
    packed = batches.packed_rows(useful, spec.data.max_length)

    def share(lengths: np.ndarray) -> float:
        groups = [lengths[start : start + size] for start in range(0, len(lengths), size)]
        room = sum(int(group.max()) * len(group) for group in groups)
        return 1 - float(lengths.sum()) / room

    def ordered(rows: batches.SequenceDataset, bucket: int) -> np.ndarray:
        stream = batches.TrainingOrder(rows, seed, bucket)
        return np.array([stream[index].tokens for index in range(len(rows))])

    return Padding(
        share(ordered(single, 0)),
        share(ordered(single, size)),
        share(ordered(packed, 0)),
        len(single),
        len(packed),
    )


def _pair(examples: list[Example], texts: list[str], pair: tuple[int, int, float]) -> SimilarPair:
    first, second, similarity = pair
    return SimilarPair(
        (examples[first].row, examples[second].row),
        (texts[first][:300], texts[second][:300]),
        similarity,
    )
