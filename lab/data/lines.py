"""From the bytes of a file to its lines: unpacked, decoded, and bounded in size and time."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lab.data import encodings
from lab.errors import LabError, first_line
from lab.schema import quote

BLOCK = 1 << 16
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENOUGH = 200  # bytes on each side of one that is not UTF-8, to tell what it may be
MAX_BLANK_LINES = 1_000_000  # blank lines one after the other
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class InvalidRow(Exception):
    """Why one row cannot be used."""


class OutOfTime(Exception):
    """The time that the caller gave for reading is over."""


class Source(io.RawIOBase):
    """The bytes of a file. `done` counts those that were read, for progress.

    Raises OutOfTime where `until`, a value of time.monotonic(), has passed.
    """

    def __init__(self, raw: IO[bytes], until: float | None = None) -> None:
        self.raw, self.until = raw, until
        self.done = 0

    def readable(self) -> bool:
        return True

    def check_time(self) -> None:
        if self.until is not None and time.monotonic() > self.until:
            raise OutOfTime

    def readinto(self, buffer: Any) -> int:
        self.check_time()
        data = self.raw.read(len(buffer))
        buffer[: len(data)] = data
        self.done += len(data)
        return len(data)


class Unpacked(io.RawIOBase):
    """The bytes of a gzip stream. Raises LabError where they are more than `harmless` and more
    than `ratio` times what they are unpacked from."""

    def __init__(self, source: Source, path: Path, harmless: int, ratio: int) -> None:
        self.source, self.path = source, path
        self.harmless, self.ratio = harmless, ratio
        self.file = gzip.GzipFile(fileobj=io.BufferedReader(source, BLOCK))
        self.unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.source.check_time()  # a small file may unpack for minutes
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.unpacked += len(data)
        check_ratio(self.path, self.unpacked, self.source.done, self.harmless, self.ratio)
        return len(data)


class Recoded(io.RawIOBase):
    """The UTF-8 bytes of a text in UTF-16 that begins with a byte order mark. Raises LabError where
    the text ends within a character."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            block = self.file.read(BLOCK)
            try:
                text = self.decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                raise LabError(
                    f"'{quote(self.path.name)}' is UTF-16 text that ends within a character.",
                    "Check the file; it may be cut.",
                ) from None
            self.rest = text.encode("utf-8", "surrogatepass")
            if not block:
                break
        size = min(len(buffer), len(self.rest))
        buffer[:size] = self.rest[:size]
        self.rest = self.rest[size:]
        return size


def check_ratio(path: Path, unpacked: int, packed: int, harmless: int, ratio: int) -> None:
    """Raise LabError where a file unpacks to far more than honest data do."""
    if unpacked > max(harmless, ratio * packed):
        raise LabError(
            f"'{quote(path.name)}' unpacks to more than {ratio} times its size "
            f"({unpacked:,} bytes so far).",
            "This is not ordinary data; unpack it yourself if you trust it.",
        )


def text_of(file: IO[bytes], newline: str) -> io.TextIOWrapper:
    """The text of a file. Bytes that are not UTF-8 become surrogates, which `not_utf8` names."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline=newline)


def lines(
    file: IO[bytes], path: Path, longest: int, *, ends_with_cr: bool = False
) -> Iterator[tuple[int, str | InvalidRow]]:
    """(line number, line with its end, or InvalidRow). Memory is bounded by the longest line.

    Lines end with a line feed; with `ends_with_cr` also with a carriage return, as old
    spreadsheets write them. Raises LabError for a file of nothing but blank lines.
    """
    text = text_of(file, "" if ends_with_cr else "\n")
    ends = ("\n", "\r") if ends_with_cr else ("\n",)
    row = blank = 0
    while True:
        row += 1
        try:
            line = text.readline(longest + 1)
            is_long = len(line) > longest
            while is_long and line and not line.endswith(ends):
                line = text.readline(BLOCK)
        except DAMAGED as error:
            yield row, InvalidRow(f"the gzip data are damaged here ({first_line(error)})")
            return
        if is_long:
            yield row, InvalidRow(f"is longer than {longest:,} bytes")
            continue
        if not line:
            return
        blank = blank + 1 if line.isspace() else 0
        if blank > MAX_BLANK_LINES:
            raise LabError(
                f"'{quote(path.name)}' holds more than {MAX_BLANK_LINES:,} blank lines before row "
                f"{row}.",
                "This is not ordinary data; remove the blank lines.",
            )
        if row == 1:
            line = line.removeprefix("\ufeff")
            if not line:
                return
        yield row, line if line.isascii() else _checked(line, longest)


def _checked(line: str, longest: int) -> str | InvalidRow:
    """A line that is not ASCII, or why it cannot be used."""
    try:
        size = len(line.encode())
    except UnicodeEncodeError:
        return InvalidRow(not_utf8(line))
    return line if size <= longest else InvalidRow(f"is longer than {longest:,} bytes")


def not_utf8(text: str) -> str:
    """Which byte of a text that was read by `text_of` is not UTF-8; "" if all are."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        around = data[max(0, error.start - ENOUGH) : error.start + ENOUGH]
        encoding = encodings.guess(around)
        return (
            f"is not UTF-8: byte 0x{data[error.start]:02x} at place {error.start} "
            f"({f'the text seems to be {encoding}' if encoding else error.reason})"
        )
    return ""


def way_out_of(reason: str) -> str:
    """How a file is converted whose encoding `not_utf8` named; "" for other reasons."""
    seems = re.search(r"^is not UTF-8: .* seems to be ([\w-]+)", reason)
    if seems is None:
        return ""
    return (
        "Save the file as UTF-8 (in Excel: CSV UTF-8), or convert it: "
        f"iconv -f {seems[1].upper()} -t UTF-8 OLD > NEW."
    )
