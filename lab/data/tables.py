"""The records of a CSV or TSV file as {column: text}.

A record is one line, or several where a quoted field holds line ends. Each line is read at most a
few times: a quote that is never closed costs the record that it opens in, not the file.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.data.lines import BadRow
from lab.errors import LabError
from lab.schema import quote

MOST_COLUMNS = 100_000
REREAD = 1_000_000  # characters, and twice those of the file, that may be read again behind quotes
NEVER_CLOSED = "a quote is opened and never closed"

# The length of a field is bounded by that of its record, in `_Feed`.
csv.field_size_limit(2**31 - 1)


def records(
    lines: Iterator[tuple[int, str | BadRow]], path: Path, longest: int
) -> Iterator[tuple[int, dict[str, str] | BadRow]]:
    """(number of its first line, record or BadRow); the first record names the columns."""
    feed = _Feed(lines, longest)
    first = feed.peek()
    if first is None:
        return
    if isinstance(first[1], BadRow):
        raise LabError(f"'{quote(str(path))}', row 1: {first[1]}.", "Check the file.")
    mark = "\t" if ".tsv" in path.suffixes[-2:] else _delimiter(first[1])
    reader = csv.reader(feed, delimiter=mark, strict=True)
    names = _names(feed, reader, path)
    while (following := feed.peek()) is not None:
        row, line = following
        feed.begin()
        if isinstance(line, BadRow) or line.isspace():
            feed.drop()
            if isinstance(line, BadRow):
                yield row, line
            continue
        try:
            fields = next(reader)
        except (csv.Error, StopIteration) as error:
            problem = NEVER_CLOSED if feed.is_short else f"not CSV ({error})"
            feed.go_back()
            if feed.reread > REREAD + 2 * feed.read:
                raise LabError(
                    f"'{quote(str(path))}' opens quotes that are never closed; the last in row "
                    f"{row}.",
                    'Close them, or write each quote inside a field twice: "".',
                ) from None
            yield row, BadRow(problem)
            continue
        if feed.lines_taken == 1 and line.count('"') % 2:
            yield row, BadRow(NEVER_CLOSED)
        elif len(fields) != len(names):
            yield row, BadRow(f"has {len(fields)} fields, the first line names {len(names)}")
        else:
            yield row, dict(zip(names, fields, strict=True))


def _names(feed: _Feed, reader: Any, path: Path) -> list[str]:
    """The names of the columns. Raises LabError where the first record gives none."""
    feed.begin()
    try:
        names: list[str] = next(reader)
        problem = ""
    except (csv.Error, StopIteration) as error:
        names, problem = [], f" ({NEVER_CLOSED if feed.is_short else error})"
    shown = quote("".join(line for _, line in feed.taken if isinstance(line, str)).strip())
    if len(names) > MOST_COLUMNS:
        raise LabError(
            f"'{quote(str(path))}' names {len(names):,} columns; at most {MOST_COLUMNS:,} are "
            "possible.",
            "Keep the columns that hold text.",
        )
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise LabError(
            f"The first line of '{quote(str(path))}' is no list of column names: {shown}{problem}.",
            "Name each column once in the first line.",
        )
    return names


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


class _Feed:
    """Gives lines to csv.reader, and takes those back that turn out to belong to no record."""

    def __init__(self, lines: Iterator[tuple[int, str | BadRow]], longest: int) -> None:
        self.lines, self.longest = lines, longest
        self.ahead: deque[tuple[int, str | BadRow]] = deque()
        self.taken: list[tuple[int, str | BadRow]] = []
        self.size = 0  # characters of the record
        self.is_short = False  # the record ended before its quotes did
        self.read = self.reread = 0  # characters of the file, and those that were given again

    def peek(self) -> tuple[int, str | BadRow] | None:
        """The next line, which stays."""
        if not self.ahead:
            following = next(self.lines, None)
            if following is None:
                return None
            self.read += _length(following[1])
            self.ahead.append(following)
        return self.ahead[0]

    def begin(self) -> None:
        """The next line begins a record."""
        self.taken, self.size, self.is_short = [], 0, False

    def drop(self) -> None:
        self.ahead.popleft()

    @property
    def lines_taken(self) -> int:
        return len(self.taken)

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        following = self.peek()
        if following is None or isinstance(following[1], BadRow):
            self.is_short = True
            raise StopIteration
        if self.taken and self.size + len(following[1]) > self.longest:
            self.is_short = True
            raise StopIteration
        self.taken.append(self.ahead.popleft())
        self.size += len(following[1])
        return following[1]

    def go_back(self) -> None:
        """Only the first line of this record is lost; the others are given again."""
        again = self.taken[1:]
        self.reread += sum(_length(line) for _, line in again)
        self.ahead.extendleft(reversed(again))


def _length(line: str | BadRow) -> int:
    return len(line) if isinstance(line, str) else 0
