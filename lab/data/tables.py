"""The records of a CSV or TSV file as {column: text}.

A record is one line, or several where a quoted field holds line ends. Each line is read at most a
few times: a quote that is never closed costs the record that it opens in, not the file.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab.data.lines import InvalidRow, way_out_of
from lab.errors import LabError
from lab.formatting import quantity
from lab.schema import quote

MAX_COLUMNS = 100_000
REREAD = 1_000_000  # characters, and twice those of the file, that may be read again behind quotes
MARKS = ",;\t|"
SNIFFED = 30  # lines that are looked at to tell the delimiter
SNIFFED_CHARACTERS = 1_000_000
SEPARATOR = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
NEVER_CLOSED = "a quote is opened and never closed"

# The length of a field is bounded by that of its record, in `_Feed`.
csv.field_size_limit(2**31 - 1)


def records(
    lines: Iterator[tuple[int, str | InvalidRow]], path: Path, longest: int
) -> Iterator[tuple[int, dict[str, str] | InvalidRow]]:
    """(number of its first line, record or InvalidRow); the first record names the columns, behind
    the `sep=;` that Excel may write. Rows without any text are passed over."""
    feed = _Feed(lines, longest)
    mark = "\t" if ".tsv" in path.suffixes[-2:] else ""
    while (first := feed.peek()) is not None:
        if isinstance(first[1], InvalidRow):
            raise LabError(
                f"'{quote(path.name)}', row {first[0]}: {first[1]}.",
                way_out_of(str(first[1])) or "Check the file.",
            )
        named = SEPARATOR.fullmatch(first[1])
        if not named and not first[1].isspace():
            break
        mark = named[1] if named else mark
        feed.drop()
    if first is None:
        return
    mark = mark or _delimiter([line for _, line in feed.look(SNIFFED) if isinstance(line, str)])
    reader = csv.reader(feed, delimiter=mark, strict=True)
    names = _names(feed, reader, path)
    while (following := feed.peek()) is not None:
        row, line = following
        feed.begin()
        if isinstance(line, InvalidRow) or line.isspace():
            feed.drop()
            if isinstance(line, InvalidRow):
                yield row, line
            continue
        try:
            fields = next(reader)
        except (csv.Error, StopIteration) as error:
            problem = NEVER_CLOSED if feed.is_short else f"not CSV ({error})"
            feed.go_back()
            if feed.reread > REREAD + 2 * feed.read:
                raise LabError(
                    f"'{quote(path.name)}' opens quotes that are never closed; the last in row "
                    f"{row}.",
                    'Close them, or write each quote inside a field twice: "".',
                ) from None
            yield row, InvalidRow(problem)
            continue
        if feed.lines_taken == 1 and line.count('"') % 2:
            yield row, InvalidRow(NEVER_CLOSED)
        elif (record := _record(names, fields)) is None or record:
            yield (
                row,
                record
                or InvalidRow(
                    f"has {quantity(len(fields), 'field')}, the first line names "
                    f"{quantity(len(names), 'column')}; a field with '{mark}' in it has to "
                    "stand in quotes"
                ),
            )


def _record(names: list[str], fields: list[str]) -> dict[str, str] | None:
    """{column: text}; {} for a row without any text, None for one with another number of fields.

    Empty fields behind the last column are what spreadsheets leave there. A first column without a
    name that holds a number is the index that pandas writes."""
    while len(fields) > len(names) and not fields[-1].strip() and len(fields) <= MAX_COLUMNS:
        fields.pop()
    if len(fields) != len(names):
        return {} if len(fields) <= MAX_COLUMNS and not any(map(str.strip, fields)) else None
    if not any(map(str.strip, fields)):
        return {}
    return {
        name or f"column {position}": field
        for position, (name, field) in enumerate(zip(names, fields, strict=True), start=1)
        if name or not (field.isspace() or not field or (position == 1 and field.isdecimal()))
    }


def _names(feed: _Feed, reader: Any, path: Path) -> list[str]:
    """The names of the columns without the blanks around them, "" for one that has none. Raises
    LabError where the first record gives none, or one twice."""
    feed.begin()
    try:
        names: list[str] = [name.strip() for name in next(reader)]
        problem = ""
    except (csv.Error, StopIteration) as error:
        names, problem = [], f" ({NEVER_CLOSED if feed.is_short else error})"
    shown = quote("".join(line for _, line in feed.taken if isinstance(line, str)).strip())
    if len(names) > MAX_COLUMNS:
        raise LabError(
            f"'{quote(path.name)}' names {quantity(len(names), 'column')}; at most "
            f"{MAX_COLUMNS:,} are "
            "possible.",
            "Keep the columns that hold text.",
        )
    while names and not names[-1]:
        names.pop()
    filled = [name for name in names if name]
    if not filled or len(set(filled)) < len(filled):
        raise LabError(
            (
                f"The first line of '{quote(path.name)}' is not a list of column names: {shown}"
                f"{problem}."
            ),
            "Name each column once in the first line.",
        )
    return names


def _delimiter(lines: list[str]) -> str:
    """What separates the fields: of the marks in the header, the one by which most of the lines
    behind it have as many fields as the header; of equals, the one that stands there most often."""
    bare = re.sub(r'"[^"]*"', "", lines[0])

    def fit(mark: str) -> tuple[float, int]:
        try:
            header, *records = csv.reader(lines, delimiter=mark)
        except csv.Error:
            return 0.0, bare.count(mark)
        alike = sum(len(fields) == len(header) for fields in records if fields)
        return (alike / len(records) if records else 1.0, bare.count(mark))

    marks = [mark for mark in MARKS if mark in bare]
    return max(marks, key=fit) if len(marks) > 1 else "".join(marks) or ","


class _Feed:
    """Gives lines to csv.reader, and takes those back that turn out to belong to no record."""

    def __init__(self, lines: Iterator[tuple[int, str | InvalidRow]], longest: int) -> None:
        self.lines, self.longest = lines, longest
        self.ahead: deque[tuple[int, str | InvalidRow]] = deque()
        self.taken: list[tuple[int, str | InvalidRow]] = []
        self.size = 0  # characters of the record
        self.is_short = False  # the record ended before its quotes did
        self.read = self.reread = 0  # characters of the file, and those that were given again

    def peek(self) -> tuple[int, str | InvalidRow] | None:
        """The next line, which stays."""
        if not self.ahead:
            following = next(self.lines, None)
            if following is None:
                return None
            self.read += _length(following[1])
            self.ahead.append(following)
        return self.ahead[0]

    def look(self, most: int) -> list[tuple[int, str | InvalidRow]]:
        """The next lines, which stay: `most` of them, and not many characters."""
        size = 0
        while len(self.ahead) < most and size < SNIFFED_CHARACTERS:
            following = next(self.lines, None)
            if following is None:
                break
            size += _length(following[1])
            self.read += _length(following[1])
            self.ahead.append(following)
        return list(self.ahead)

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
        if following is None or isinstance(following[1], InvalidRow):
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


def _length(line: str | InvalidRow) -> int:
    return len(line) if isinstance(line, str) else 0
