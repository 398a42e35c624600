"""What a preview of a dataset holds, and its JSON. Nothing here needs a tokenizer or torch.

Counts are of examples unless they say otherwise; rows are numbered as in the file, from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lab.dataclass_json import read


@dataclass(frozen=True)
class Token:
    """`counted`: whether the loss counts it."""

    id: int = 0
    text: str = ""
    counted: bool = False


@dataclass(frozen=True)
class BatchRow:
    """One sequence of a batch: the lengths of the examples that are packed in it, and their rows.

    `length` and `counted` are tokens of the whole sequence; `tokens` may be its beginning only.
    """

    tokens: tuple[Token, ...] = ()
    lengths: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    length: int = 0
    counted: int = 0


@dataclass(frozen=True)
class FirstBatch:
    """What a run's model saw at its first step: first_batch.json."""

    v: int = 1
    batch_size: int = 0
    rows: tuple[BatchRow, ...] = ()

    @staticmethod
    def from_json(stored: Any) -> FirstBatch:
        """Never raises: what is missing or damaged is left out."""
        return read(FirstBatch, stored) or FirstBatch()


@dataclass(frozen=True)
class ExampleView:
    """One example: its rendered text, and its tokens with the mask. `counted`: its tokens in the
    loss."""

    row: int = 0
    text: str = ""
    tokens: tuple[Token, ...] = ()
    truncated: bool = False
    counted: int = 0


@dataclass(frozen=True)
class Detection:
    """The format of the first rows, the column of each of its parts, and the names of all columns.

    `why` says why the format is not known; "" where it is.
    """

    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class TemplateView:
    """`inserts`: the system turn that the template writes where none is given."""

    has_own: bool = False
    name: str = ""
    end_token: str = ""
    inserts: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExampleCounts:
    """`tokens` and `counted` are tokens: all of them, and those in the loss. `held_out`: examples
    that were looked at for `leaks`, those among them that (nearly) repeat a training example, of
    which `exact_leaks` repeat it as it is."""

    tokens: int = 0
    counted: int = 0
    truncated: int = 0
    without_loss: int = 0
    invalid_rows: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    held_out: int = 0
    leaks: int = 0
    exact_leaks: int = 0


@dataclass(frozen=True)
class SimilarPair:
    """Two rows that resemble each other, with the beginnings of their texts."""

    rows: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    similarity: float = 0.0


@dataclass(frozen=True)
class InvalidRows:
    """Rows that cannot be read for the same reason."""

    reason: str = ""
    count: int = 0
    first_row: int = 0


@dataclass(frozen=True)
class Padding:
    """Share of each batch that is padding, by the order of the rows; examples and the sequences
    that they are packed into."""

    shuffled: float = 0.0
    grouped: float = 0.0
    packed: float = 0.0
    examples: int = 0
    sequences: int = 0


@dataclass(frozen=True)
class DatasetPreview:
    """`tokenizer_bytes`: what has to be fetched before there is more to see; None where the
    tokenizer is here. `is_whole`: whether the file ends with the last example looked at. `lengths`:
    tokens of each example before truncation. `padding`: None where nothing can be trained on.
    `leaks`: a training and a held-out row each; the latter is one of `held_out_dataset` where that
    is named."""

    dataset: str = ""
    tokenizer_bytes: int | None = None
    examples: int = 0
    is_whole: bool = False
    has_chats: bool = False
    template: TemplateView | None = None
    rows: tuple[ExampleView, ...] = ()
    packed: tuple[BatchRow, ...] = ()
    lengths: tuple[int, ...] = ()
    counts: ExampleCounts | None = None
    similar: tuple[SimilarPair, ...] = ()
    leaks: tuple[SimilarPair, ...] = ()
    held_out_dataset: str = ""
    invalid: tuple[InvalidRows, ...] = ()
    notes: tuple[str, ...] = ()
    padding: Padding | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(stored: Any) -> DatasetPreview:
        return read(DatasetPreview, stored) or DatasetPreview()
