"""From a spec to the rows that train and the rows that are held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from lab.data import batches, catalog, chat_template, token_cache
from lab.data.batches import TokenSequence
from lab.data.catalog import Dataset
from lab.data.chat_template import TokenizedExample
from lab.data.example_reader import Example, ExampleReader, ReadOptions
from lab.data.token_cache import TokenizedDataset
from lab.errors import LabError
from lab.formatting import quantity
from lab.spec import RunSpec
from lab.spec_sections import DataSpec

Progress = Callable[[int, int], None]
MIX_SEED = "finetune-lab general rows"


@dataclass(frozen=True)
class DataFigures:
    """What the run records about its data. Rows, tokens and hashes are of what trains and of what
    is held out; `examples`, `bad` and `truncated` of the file; `dropped`: without a token to learn
    from; `general_rows`: those mixed in."""

    train_rows: int = 0
    longest_row: int = 0
    held_out_rows: int = 0
    train_tokens: int = 0
    train_loss_tokens: int = 0
    held_out_loss_tokens: int = 0
    train_hash: str = ""
    held_out_hash: str = ""
    examples: int = 0
    bad: int = 0
    dropped: int = 0
    truncated: int = 0
    general_rows: int = 0


@dataclass(frozen=True)
class PreparedData:
    train: Sequence[TokenSequence]
    held_out: Sequence[TokenSequence]
    system_prompt: str
    first: Example
    figures: DataFigures
    notes: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """The figures as an event of the run keeps them."""
        return asdict(self.figures)


def prepare(
    spec: RunSpec,
    tokenizer: Any,
    progress: Progress = lambda done, total: None,
    general: Path | None = None,
) -> PreparedData:
    """Read, render, label, split, mix and pack. `progress(done, total)` counts kB of the file.

    `general` is the file of the base's own answers, if spec.data mixes them in. The tokens come
    from the cache if this file was tokenised before with the same settings. Raises LabError if a
    row cannot be used, or nothing is left to learn from.
    """
    data = spec.data
    dataset = catalog.resolve(data.dataset)
    system_prompt = system_prompt_of(spec, dataset)
    has_own = bool(tokenizer.chat_template)
    is_new = chat_template.set_up_template(tokenizer, data)
    tokens = tokenised(dataset, tokenizer, data, system_prompt, progress)
    meta = tokens.meta
    notes = []
    if is_new and meta["has_chats"]:
        name = "plain" if data.template == "auto" else data.template
        notes.append(
            f"The tokenizer's own chat template is replaced by {name}, which is saved with the "
            "result."
            if has_own
            else "The tokenizer has no chat template; the lab's "
            f"{name} one is used and saved with the result. It ends with {tokenizer.eos_token}."
        )
    notes.extend(meta.get("notes", []))
    check_objective(data, meta["has_chats"], dataset)
    notes += meta["record_notes"]
    if meta["bad"]:
        notes.append(f"{quantity(meta['bad'], 'invalid row')} skipped: {meta['told']}.")
    chosen = choose_rows(spec, tokenizer, tokens, progress, general)
    notes += chosen.notes
    rows = (
        batches.packed_rows(chosen.train, data.max_length, chosen.train_indices.tolist())
        if data.packing == "on"
        else batches.single_rows(chosen.train, chosen.train_indices.tolist())
    )
    held_rows = batches.single_rows(chosen.held_out, chosen.held_out_indices.tolist())
    num_tokens, num_learned = rows.totals()
    figures = DataFigures(
        train_rows=len(rows),
        longest_row=int(max(rows.lengths.max(), max(held_rows.lengths, default=0))),
        held_out_rows=len(held_rows),
        train_tokens=num_tokens,
        train_loss_tokens=num_learned,
        held_out_loss_tokens=held_rows.totals()[1],
        train_hash=batches.fingerprint(rows),
        held_out_hash=batches.fingerprint(held_rows),
        examples=meta["examples"],
        bad=meta["bad"],
        dropped=chosen.dropped,
        truncated=int(tokens.cut.sum()),
        general_rows=chosen.added,
    )
    first = Example(**{**meta["first"], "messages": tuple(meta["first"]["messages"]), "notes": ()})
    return PreparedData(rows, held_rows, system_prompt, first, figures, notes)


@dataclass(frozen=True)
class ChosenRows:
    """The places of the sequences that train and of those that are held out, each in the set that
    they are in. `added`: general ones among those that train; `dropped`: without a counted token.
    """

    train: Any
    train_indices: np.ndarray
    held_out: Any
    held_out_indices: np.ndarray
    dropped: int = 0
    added: int = 0
    notes: tuple[str, ...] = ()


def choose_rows(
    spec: RunSpec,
    tokenizer: Any,
    tokens: TokenizedDataset,
    progress: Progress = lambda done, total: None,
    general: Path | None = None,
) -> ChosenRows:
    """Split, drop and mix `tokens`, those of the spec's dataset, as `prepare` says. Raises LabError
    if nothing is left to learn from."""
    data = spec.data
    dataset = catalog.resolve(data.dataset)
    meta, notes = tokens.meta, []
    _, held_examples = batches.split_indices(meta["examples"], data.held_out_fraction)
    is_held = np.isin(tokens.examples, held_examples)
    useful = tokens.learned > 0
    train = np.flatnonzero(useful & ~is_held)
    held_out = np.flatnonzero(useful & is_held)
    if not len(train):
        raise LabError(
            f"None of the {quantity(meta['examples'], 'row')} of '{dataset.id}' has a token "
            "to learn from "
            f"within {data.max_length} tokens.",
            "Raise data.max_length, or set data.loss_on to all.",
        )
    if held_examples and not len(held_out):
        notes.append("No held-out example has a trained token, so there is no evaluation loss.")
    dropped = int((~useful).sum())
    if dropped:
        were = "was" if dropped == 1 else "were"
        notes.append(f"{quantity(dropped, 'example')} without trained tokens {were} dropped.")
    mixed: TokenizedDataset | ConcatSequences = tokens
    added = 0
    if data.general_fraction:
        chosen = _general(data, general)
        extra = tokenised(chosen, tokenizer, plainly(data), chosen.system_prompt, progress)
        added = round(data.general_fraction / (1 - data.general_fraction) * len(train))
        usable = np.flatnonzero(extra.learned > 0).tolist()
        if not usable:
            raise LabError("The general text has no token to learn from.", "Choose another set.")
        if added > len(usable):
            notes.append(
                f"{quantity(added, 'general example')} requested, {len(usable):,} available; "
                "they are repeated."
            )
        mixed = ConcatSequences(tokens, extra)
        train = np.concatenate([train, len(tokens) + _drawn(usable, added)])
    measured = tokens
    if data.eval_dataset:
        measured = tokenised(
            catalog.resolve(data.eval_dataset),
            tokenizer,
            data,
            system_prompt_of(spec, dataset),
            progress,
        )
        held_out = np.flatnonzero(measured.learned > 0)
    return ChosenRows(mixed, train, measured, held_out, dropped, added, tuple(notes))


def tokenised(
    dataset: Dataset,
    tokenizer: Any,
    data: DataSpec,
    system_prompt: str,
    progress: Progress = lambda done, total: None,
) -> TokenizedDataset:
    """The file's sequences, from the cache or made now. The tokenizer's template is chosen."""
    reading = reading_of(data, dataset)
    settings = {
        "reading": asdict(reading),
        "system_prompt": system_prompt,
        "loss_on": data.loss_on,
        "max_length": data.max_length,
        "truncation": data.truncation,
    }
    key = token_cache.key(dataset.path, tokenizer, settings)
    stored = token_cache.find(key)
    if stored is not None:
        return stored
    rows = ExampleReader(dataset.path, reading)
    meta: dict[str, Any] = {"settings": settings, "source": dataset.id}
    return token_cache.write(
        key, _sequences(rows, tokenizer, data, system_prompt, progress, meta), meta
    )


def _sequences(
    rows: ExampleReader,
    tokenizer: Any,
    data: DataSpec,
    system_prompt: str,
    progress: Progress,
    meta: dict[str, Any],
) -> Iterator[tuple[int, TokenizedExample]]:
    """(number of the example, tokens) in the order of the file; `meta` is filled at its end."""
    example_index = 0
    notes = chat_template.ExampleNotes()
    rest: list[int] = []  # of a text that goes on in the next row: its pieces shall be full
    for example in rows:
        if example_index % 64 == 0:
            progress(rows.bytes_read // 1000, rows.size // 1000)
        if example.messages:
            chat_sequences = sequences_of(example, rows, tokenizer, data, system_prompt)
            if chat_sequences is None:
                continue
            sequences = chat_sequences
        else:
            sequences, rest = _pieces(example, rest, tokenizer, data.max_length)
        if example_index == 0:
            meta["first"] = asdict(example)
        for sequence in sequences:
            yield example_index, sequence
        notes.add(example, sequences)
        example_index += 1
    rows.finish()  # again, for the rows that their template refused
    progress(rows.size // 1000, rows.size // 1000)
    meta |= {
        "examples": example_index,
        "bad": rows.num_invalid,
        "told": rows.invalid_summary(),
        "record_notes": rows.notes(),
        "has_chats": rows.has_chats,
        "notes": notes.lines(),
    }


def sequences_of(
    example: Example, rows: ExampleReader, tokenizer: Any, data: DataSpec, system_prompt: str
) -> list[TokenizedExample] | None:
    """The sequences of one of `rows`; None where its template refuses it, which `rows` keeps count
    of. Raises TemplateUnusable where no row can be rendered."""
    try:
        return chat_template.tokenize(
            example, tokenizer, system_prompt, data.loss_on, data.max_length, data.truncation
        )
    except chat_template.TemplateUnusable:
        raise
    except LabError as error:
        rows.reject(example.row, str(error))
        return None


def _pieces(
    example: Example, rest: list[int], tokenizer: Any, length: int
) -> tuple[list[TokenizedExample], list[int]]:
    """A text in pieces of `length` tokens, and what is left for the row that goes on with it."""
    ids = chat_template.text_ids(example, tokenizer)
    if rest:
        begin = 1 if ids[:1] == [tokenizer.bos_token_id] else 0  # only where the text begins
        ids = rest + ids[begin:]
    end = len(ids) // length * length if example.goes_on else len(ids)
    return chat_template.text_pieces(ids[:end], example.row, length), ids[end:]


def reading_of(data: DataSpec, dataset: Dataset) -> ReadOptions:
    """How the dataset is read: as the spec says, else as its card says."""
    columns = data.columns or dict(dataset.card.get("columns") or {})
    ignored = tuple(dataset.card.get("metadata") or ())
    return ReadOptions(
        data.format, columns, data.placeholders, data.on_invalid_row, data.max_examples, ignored,
        learns_all=data.loss_on == "all",
    )  # fmt: skip


def check_objective(data: DataSpec, has_chats: bool, dataset: Dataset) -> None:
    """Raise LabError if the rows are not what the objective learns from."""
    if data.objective == "pretraining" and has_chats:
        raise LabError(
            f"'{dataset.id}' holds chats, and data.objective is pretraining, which takes plain "
            "text.",
            'Name the column of the text, such as data.columns={"text": "output"}, or set '
            "data.objective to chat.",
        )
    if data.objective == "chat" and not has_chats:
        raise LabError(
            f"'{dataset.id}' holds plain text, and data.objective is chat.",
            "Name the columns of prompt and completion in data.columns, or set data.objective to "
            "pretraining.",
        )


def system_prompt_of(spec: RunSpec, dataset: Dataset) -> str:
    requested = spec.data.system_prompt
    return dataset.system_prompt if requested is None else requested


def _general(data: DataSpec, answers: Path | None) -> Dataset:
    """The general text to mix in: the base's own answers, or the set that the spec names."""
    if data.general_dataset != "base":
        return catalog.resolve(data.general_dataset)
    assert answers is not None, "the caller samples the base's answers first"
    return Dataset("the base's own answers", answers, {})


def plainly(data: DataSpec) -> DataSpec:
    """The settings of length and loss, without what belongs to the run's own file."""
    return DataSpec(
        loss_on=data.loss_on, max_length=data.max_length, truncation=data.truncation,
        on_invalid_row="skip",
    )  # fmt: skip


def _drawn(usable: list[int], count: int) -> np.ndarray:
    """`count` of the general rows: the same for every run, each once before any twice."""
    order = usable.copy()
    random.Random(MIX_SEED).shuffle(order)
    return np.array([order[index % len(order)] for index in range(count)], np.int64)


class ConcatSequences(Sequence[TokenizedExample]):
    """Two stored sets one behind the other."""

    def __init__(self, first: TokenizedDataset, second: TokenizedDataset) -> None:
        self.first, self.second = first, second
        self.lengths = np.concatenate([first.lengths, second.lengths])
        self.learned = np.concatenate([first.learned, second.learned])

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self.first)
        return self.first[index] if index < size else self.second[index - size]
