"""Read a dataset file into examples.

An example is either a chat (a list of {"role", "content"} messages) or plain text. Every row
that cannot be used is counted, with file, row and reason; nothing is skipped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lab.data import shapes
from lab.data.files import BadRow, Values
from lab.data.shapes import Example, Reading
from lab.errors import LabError
from lab.schema import show

__all__ = ["BadRow", "Example", "Reading", "Rows", "read_examples"]

SHOWN = 5  # bad rows named in a message; the rest are counted
KEPT = 200  # bad rows kept for the page


class Rows:
    """Iterates over the usable examples of a file, and keeps account of the others.

    `done` and `size` are bytes. After the last row `finish` raises LabError if rows are bad and
    the reading does not skip them, or if nothing is left.
    """

    def __init__(self, path: Path, reading: Reading | None = None) -> None:
        self.path = path
        self.reading = reading or Reading()
        self.values = Values(path)
        self.good = 0
        self.bad = 0
        self.reasons: list[tuple[int, str]] = []
        self.has_chats = False
        self._kind = ""

    @property
    def done(self) -> int:
        return self.values.done

    @property
    def size(self) -> int:
        return self.values.size

    def __iter__(self) -> Iterator[Example]:
        limit = self.reading.limit
        for row, value in self.values:
            if limit is not None and self.good >= limit:
                break
            try:
                if isinstance(value, BadRow):
                    raise value
                made = shapes.example(row, value, self.reading)
                self._compare(made)
            except BadRow as reason:
                self.refuse(row, str(reason))
                continue
            self.good += 1
            yield made
        self.finish()

    def _compare(self, made: Example) -> None:
        """Chats and plain text in one file are a mistake: they are trained in different ways."""
        kind = "a chat" if made.messages else "plain text"
        self._kind = self._kind or kind
        if kind != self._kind:
            raise BadRow(f"is {kind}, and the rows before it are {self._kind}")
        self.has_chats = kind == "a chat"

    def refuse(self, row: int, reason: str) -> None:
        """Count a row as bad."""
        self.bad += 1
        if len(self.reasons) < KEPT:
            self.reasons.append((row, reason))

    def reject(self, row: int, reason: str) -> None:
        """Count a row as bad that was handed out already: its template refuses it, say."""
        self.good -= 1
        self.refuse(row, reason)

    def finish(self) -> None:
        if self.bad and (self.reading.bad_rows != "skip" or not self.good):
            raise LabError(
                f"{self.bad} of {self.bad + self.good} rows of '{show(str(self.path))}' cannot be "
                f"used: {self.told()}.",
                "Mend or remove these rows, or set data.bad_rows to skip."
                if self.good
                else "Mend these rows, or name the right columns in data.columns.",
            )
        if not self.good:
            raise LabError(
                f"The dataset '{show(str(self.path))}' is empty.",
                "Give a file with at least one row.",
            )

    def told(self) -> str:
        """The first bad rows with their reasons, and how many more there are."""
        shown = [f"row {row}: {reason}" for row, reason in self.reasons[:SHOWN]]
        more = f"; and {self.bad - len(shown)} more" if self.bad > len(shown) else ""
        return "; ".join(shown) + more


def read_examples(path: Path, form: str = "auto", limit: int | None = None) -> list[Example]:
    """All usable examples of a file. Raises LabError that lists the rows that are not usable."""
    return list(Rows(path, Reading(form=form, limit=limit)))
