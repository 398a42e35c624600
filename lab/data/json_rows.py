"""The rows of a JSON file: entries of a list, read as a stream, or what stands in an object.

A list is read through a window of text that holds one entry and what follows it. Each part of the
file is parsed at most a few times, whatever the lengths of its entries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from lab.data.lines import BLOCK, DAMAGED, InvalidRow, not_utf8, text_of
from lab.errors import LabError, first_line
from lab.schema import quote

DECODER = json.JSONDecoder()
SPACE = re.compile(r"[ \t\r\n]*")
TOP = re.compile(r'[\[{]+|[\]}]+|"|,')  # what can end an entry, or must be looked into
INSIDE = re.compile(r'[\[{]+|[\]}]+|"')
IN_TEXT = re.compile(r'["\\]')
MAX_TOKEN_CHARS = 16  # characters of -Infinity or of two escaped halves of a pair


def parse(line: str) -> Any:
    """The JSON value of a line, or the InvalidRow that says why it is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return InvalidRow(f"not JSON ({error.msg} at column {error.colno})")
    except ValueError as error:  # a number of thousands of digits
        return InvalidRow(f"not JSON ({first_line(error)})")
    except RecursionError:
        return InvalidRow("nested too deeply")


def begins_as_list(start: bytes) -> bool:
    """Whether a file that begins so is one JSON list, rather than a value in each line."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] != b"[":
        return False
    first, _, rest = text.decode("utf-8", "replace").partition("\n")
    return not rest.strip() or isinstance(parse(first), InvalidRow)


def of_lines(lines: Iterator[tuple[int, str | InvalidRow]]) -> Iterator[tuple[int, Any]]:
    """The values of JSONL; blank lines are passed over."""
    for row, line in lines:
        if isinstance(line, InvalidRow):
            yield row, line
        elif not line.isspace():
            yield row, parse(line)


def entries(file: IO[bytes], path: Path, longest: int) -> Iterator[tuple[int, Any]]:
    """(number from 1, entry or InvalidRow) of a JSON list. Raises LabError where it is not JSON:
    what stands behind cannot be told apart then."""
    window = _Window(file, longest)
    row = 0
    try:
        window.expect("[\ufeff")
        if window.mark() != "]":
            while True:
                row += 1
                yield row, window.entry()
                if window.mark() != ",":
                    break
                window.expect(",")
        window.expect("]")
        if window.mark():
            raise _Broken("text follows behind the list")
    except DAMAGED as error:
        yield row + 1, InvalidRow(f"the gzip data are damaged here ({first_line(error)})")
    except _Broken as error:
        raise LabError(
            f"'{quote(path.name)}' is not valid JSON after row {max(0, row - error.in_entry)}: "
            f"{error}.",
            "Give a JSON list of rows, or JSONL with one object a line.",
        ) from None


class _Broken(Exception):
    """What stands here is not JSON. `in_entry` is 1 within an entry, 0 between two."""

    def __init__(self, message: str, in_entry: int = 0) -> None:
        super().__init__(message)
        self.in_entry = in_entry


class _Window:
    """The part of a file that is looked at: `held` from `offset` on."""

    def __init__(self, file: IO[bytes], longest: int) -> None:
        self.text = text_of(file, "")
        self.longest = longest
        self.buffer, self.offset = "", 0
        self.is_valid = True  # what is held is UTF-8

    def more(self, size: int) -> bool:
        """Hold about `size` characters more, and forget what is behind; False at the end."""
        added = self.text.read(size)
        self.buffer, self.offset = self.buffer[self.offset :] + added, 0
        if not added.isascii() and not_utf8(added):
            self.is_valid = False
        return bool(added)

    def mark(self) -> str:
        """The next character that is not white space; "" at the end of the file."""
        while True:
            match = SPACE.match(self.buffer, self.offset)
            self.offset = match.end() if match else self.offset
            if self.offset < len(self.buffer):
                return self.buffer[self.offset]
            if not self.more(BLOCK):
                return ""

    def expect(self, characters: str) -> None:
        """Go on behind the first of `characters`; the others may stand before it."""
        while (mark := self.mark()) in characters[1:] and mark:
            self.offset += 1
        if mark != characters[0]:
            raise _Broken("Expecting ',' or ']'" if mark else "its end is missing")
        self.offset += 1

    def entry(self) -> Any:
        """The value that begins here, or InvalidRow. Raises _Broken where it is not JSON."""
        self.mark()
        while True:
            length = len(self.buffer) - self.offset
            try:
                value, end = DECODER.raw_decode(self.buffer, self.offset)
                if end == len(self.buffer) and self.more(BLOCK):
                    continue  # a number may go on
                return self._checked(value, end)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self.buffer) - MAX_TOKEN_CHARS
                if not is_cut and not error.msg.startswith("Unterminated string"):
                    raise _Broken(error.msg, 1) from None
                if length > self.longest:
                    return self._skipped(f"is longer than {self.longest:,} bytes")
                if not self.more(max(BLOCK, length)):  # twice the text each time: linear in all
                    raise _Broken(error.msg, 1) from None
            except RecursionError:
                return self._skipped("nested too deeply")
            except ValueError as error:  # a number of thousands of digits
                return self._skipped(f"not JSON ({first_line(error)})")

    def _checked(self, value: Any, end: int) -> Any:
        start, self.offset = self.offset, end
        if end - start > self.longest:
            return InvalidRow(f"is longer than {self.longest:,} bytes")
        wrong = "" if self.is_valid else not_utf8(self.buffer[start:end])
        return InvalidRow(wrong) if wrong else value

    def _skipped(self, reason: str) -> InvalidRow:
        """Go on behind the entry that begins here, without parsing it."""
        depth, in_text = 0, False
        while True:
            pattern = IN_TEXT if in_text else INSIDE if depth else TOP
            match = pattern.search(self.buffer, self.offset)
            if match is None:
                self.offset = len(self.buffer)
                if not self.more(BLOCK):
                    raise _Broken("its end is missing", 1)
                continue
            marks = match.group()
            if marks == "," or (marks[0] in "]}" and len(marks) > depth):
                self.offset = match.start() + depth
                return InvalidRow(reason)
            self.offset = match.end()
            if marks == "\\":
                if self.offset == len(self.buffer):
                    self.more(BLOCK)
                self.offset += 1
            elif marks == '"':
                in_text = not in_text
            else:
                depth += len(marks) if marks[0] in "[{" else -len(marks)


def of_object(
    lines: Iterator[tuple[int, str | InvalidRow]],
    path: Path,
    longest: int,
    say: Callable[[str], None],
) -> Iterator[tuple[int, Any]]:
    """A .json file that is not a list: rows under one key, or JSONL with the wrong name, of which
    `say` is told."""
    lines_read: list[str] = []
    size = 0
    for row, line in lines:
        value = (
            parse(line) if isinstance(line, str) and not lines_read and not line.isspace() else None
        )
        if isinstance(value, dict):
            rest = of_lines(lines)
            following = next(rest, None)
            if following is None:
                yield from enumerate(_rows_inside(value, path), start=1)
                return
            say("holds a row in each line, not a JSON list")
            yield row, value
            yield following
            yield from rest
            return
        if isinstance(line, InvalidRow):
            raise _not_json(path, str(line))
        lines_read.append(line)
        size += len(line)
        if size > longest:
            raise LabError(
                f"'{quote(path.name)}' is one JSON value of more than {longest:,} characters.",
                "Save it as JSONL, with one object a line.",
            )
    value = parse("".join(lines_read)) if "".join(lines_read).strip() else []
    if isinstance(value, InvalidRow):
        raise _not_json(path, str(value))
    if lines_read and value != []:
        yield from enumerate(_rows_inside(value, path), start=1)


def _not_json(path: Path, reason: str) -> LabError:
    return LabError(
        f"'{quote(path.name)}' is not JSON: {reason}.",
        "Give a JSON list of rows, or JSONL with one object a line.",
    )


def _rows_inside(value: Any, path: Path) -> list[Any]:
    """The list of rows inside {"data": [...]} and the like."""
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and part]
        if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            return list(lists[0])
    raise LabError(f"'{quote(path.name)}' holds {quote(value)}.", "Give a JSON list of rows.")
