"""Read a dataset file into examples.

An example is either a chat (a list of {"role", "content"} messages) or plain text. Every row
that cannot be used is counted, with its reason, and so is everything in a row that is not used.
What many rows share is told once, with their number and the first of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lab.data import examples, formats
from lab.data.formats import Example, ReadOptions
from lab.data.lines import way_out_of
from lab.data.readers import InvalidRow, RecordReader
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

__all__ = ["Example", "ExampleReader", "InvalidRow", "ReadOptions", "Sample", "read_examples"]

MAX_SHOWN = 5  # reasons in a message, and notes; the rest are counted
MAX_REASONS = 200  # different reasons or notes that are kept
FIGURES = re.compile(r"0x[0-9a-f]+|\d+(?:,\d{3})*")  # in which reasons may differ and be the same
MAX_NOTES = 12
MAX_REASON_CHARS = 400  # characters
MIN_SAMPLED_CHARS = 20_000  # characters of a row that a sample holds
MAX_INVALID = 100_000  # bad rows; a file with more of them, and few good ones, is no dataset
FEW = 100  # bad rows for each good one, of which a file with MAX_INVALID is given up


class ExampleReader:
    """Iterates over the usable examples of a file, and keeps account of the others.

    `done` and `size` are bytes. After the last row `finish` raises LabError if rows are bad and
    the reading does not skip them, or if nothing is left.
    """

    def __init__(self, path: Path, reading: ReadOptions | None = None) -> None:
        self.path = path
        self.reading = reading or ReadOptions()
        self.values = RecordReader(path)
        self.num_valid = 0
        self.num_invalid = 0
        self.reasons = Tally()
        self.noted = Tally()
        self.has_chats = False
        self._kind = ""

    @property
    def bytes_read(self) -> int:
        return self.values.done

    @property
    def size(self) -> int:
        return self.values.size

    def end_after(self, seconds: float) -> None:
        """Read for so long from now on; the iteration may end early, and `is_whole` tells."""
        self.values.end_at(time.monotonic() + seconds)

    @property
    def is_whole(self) -> bool:
        """Whether the time was enough to read the file to its end."""
        return self.values.is_whole

    def __iter__(self) -> Iterator[Example]:
        limit = self.reading.limit
        for row, value in self.values:
            if limit is not None and self.num_valid >= limit:
                break
            try:
                if isinstance(value, InvalidRow):
                    raise value
                example = examples.example(row, value, self.reading)
                self._compare(example)
            except InvalidRow as reason:
                self.refuse(row, str(reason))
                continue
            self.num_valid += 1
            for note in example.notes:
                self.noted.add(row, note)
            yield example
        self.finish()

    def _compare(self, example: Example) -> None:
        """Chats and plain text in one file are a mistake: they are trained in different ways."""
        kind = "a chat" if example.messages else "plain text"
        self._kind = self._kind or kind
        if kind != self._kind:
            raise InvalidRow(f"is {kind}, and the rows before it are {self._kind}")
        self.has_chats = kind == "a chat"

    def refuse(self, row: int, reason: str) -> None:
        """Count a row as bad. Raises LabError where it is time to give up."""
        self.num_invalid += 1
        self.reasons.add(row, reason)
        if self.num_invalid > MAX_INVALID and (
            self.reading.on_invalid_row != "skip" or self._are_few_good()
        ):
            self._give_up("More than ")

    def _are_few_good(self) -> bool:
        return self.num_valid * FEW < self.num_invalid

    def reject(self, row: int, reason: str) -> None:
        """Count a row as bad that was handed out already: its template refuses it, say."""
        self.num_valid -= 1
        self.refuse(row, reason)

    def finish(self) -> None:
        if self.num_invalid and (self.reading.on_invalid_row != "skip" or not self.num_valid):
            self._give_up()
        if not self.num_valid and not self.is_whole:
            raise LabError(
                f"No row was found in the first {self.bytes_read:,} bytes of "
                f"'{quote(self.path.name)}' in "
                "the time there is.",
                "Check whether it is a dataset.",
            )
        if not self.num_valid:
            raise LabError(
                f"The dataset '{quote(self.path.name)}' is empty.",
                "Give a file with at least one row.",
            )

    def _give_up(self, before: str = "") -> NoReturn:
        count = MAX_INVALID if before else self.num_invalid
        seen = self.num_invalid + self.num_valid - (1 if before else 0)
        raise LabError(
            f"{before}{count:,} of {quantity(seen, 'row')} of '{quote(self.path.name)}' cannot "
            "be used: "
            f"{self.invalid_summary()}.",
            self._way_out(),
        )

    def _way_out(self) -> str:
        first = self.reasons.groups[0].text if self.reasons.groups else ""
        if conversion := way_out_of(first):
            return conversion + (" Or set data.on_invalid_row to skip." if self.num_valid else "")
        if self.num_valid:
            return "Mend or remove these rows, or set data.on_invalid_row to skip."
        return "Mend these rows, or name the right columns in data.columns."

    def invalid_summary(self) -> str:
        """The reasons of bad rows, each once, and how many more there are."""
        shown = self.reasons.groups[:MAX_SHOWN]
        texts = [
            f"row {group.row}: {group.text}"
            if group.count == 1
            else f"row {group.row} and {group.count - 1} more: {group.text}"
            for group in shown
        ]
        more = self.num_invalid - sum(group.count for group in shown)
        return "; ".join(texts) + (f"; and {more} more" if more else "")

    def notes(self) -> list[str]:
        """What a person should know of the file and its rows, each once."""
        shown = self.noted.groups[:MAX_NOTES]
        notes = [
            f"{group.text[:1].upper()}{group.text[1:]} ({group.count} rows, the first is row "
            f"{group.row})."
            if group.count > 1
            else f"{group.text[:1].upper()}{group.text[1:]} (row {group.row})."
            for group in shown
        ]
        if more := len(self.noted.groups) - len(shown):
            notes.append(f"{quantity(more, 'more note')} on rows of '{quote(self.path.name)}'.")
        return [*self.values.notes, *notes]


@dataclass
class Group:
    """What several rows share: the first of them, what is said of it, and how many they are."""

    row: int
    text: str
    count: int = 0


class Tally:
    """Sentences about rows. Those that differ in figures only are counted together."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._known: dict[str, Group] = {}

    def add(self, row: int, text: str) -> None:
        text = text.rstrip(".")
        if len(text) > MAX_REASON_CHARS:
            text = f"{text[: MAX_REASON_CHARS - 1]}…"
        kind = FIGURES.sub("#", text)
        group = self._known.get(kind)
        if group is None and len(self.groups) < MAX_REASONS:
            group = self._known[kind] = Group(row, text)
            self.groups.append(group)
        if group is not None:
            group.count += 1


class Sample:
    """The first examples of a file: `most` at most, and about `characters` in all.

    A row may be millions of characters long, which would take minutes to tokenise: such a row is
    shortened, and `shares` says how many times longer it is in the file.
    """

    def __init__(self, most: int, characters: int) -> None:
        self.most, self.room = most, characters
        self.longest = max(MIN_SAMPLED_CHARS, characters // 4)
        self.examples: list[Example] = []
        self.shares: list[float] = []

    @property
    def is_full(self) -> bool:
        return len(self.examples) >= self.most or self.room <= 0

    def add(self, example: Example) -> None:
        part = formats.shortened(example, min(self.longest, max(MIN_SAMPLED_CHARS, self.room)))
        size = formats.length(part)
        self.examples.append(part)
        self.shares.append(formats.length(example) / max(1, size))
        self.room -= size


def read_examples(path: Path, form: str = "auto", limit: int | None = None) -> list[Example]:
    """All usable examples of a file. Raises LabError that lists the rows that are not usable."""
    return list(ExampleReader(path, ReadOptions(form=form, limit=limit)))
