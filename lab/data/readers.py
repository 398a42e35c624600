"""Streams the records of a file, whatever its format.

JSONL, JSON, CSV, TSV, Parquet and plain text, each also gzipped, are read as a stream: memory does
not grow with the file, and time grows with its length only. A row that cannot be read becomes a
InvalidRow in its place, so that the rows behind it still come. What makes the whole file unreadable
raises LabError.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lab.atomic_files import open_regular
from lab.data import json_rows, parquet, tables
from lab.data.lines import (
    BLOCK,
    DAMAGED,
    UTF16_MARKS,
    InvalidRow,
    OutOfTime,
    Recoded,
    Source,
    Unpacked,
    lines,
)
from lab.errors import LabError, first_line
from lab.schema import quote

__all__ = ["FORMATS", "SUFFIXES", "InvalidRow", "RecordReader", "suffix_of"]

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
JSON = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS))
MAX_LINE_BYTES = 32_000_000  # bytes of one row
MAX_OBJECT_CHARS = 200_000_000  # characters of a JSON file that is not a list
TEXT_CHUNK_CHARS = 4000  # characters of plain text that make a row
BOMB_BYTES = 100_000_000  # unpacked; below it, any ratio is harmless
BOMB_RATIO = 200
GZIP = b"\x1f\x8b"
SIGNATURES = {
    GZIP: "gzipped twice",
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\xff\xfe\0\0": "UTF-32 text",
    b"\0\0\xfe\xff": "UTF-32 text",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"SQLite format 3": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"PAR1": "Parquet",
}


def suffix_of(path: Path) -> str:
    """ ".csv" of "a.csv" and of "a.CSV.gz"; "" for a file of no known format."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


class RecordReader:
    """Iterates over (row, value or InvalidRow) of a file; `row` counts lines or entries from 1.

    `done` and `size` are bytes of the file, for progress. Where `until`, a value of
    time.monotonic(), passes first, the iteration ends and `is_whole` is False. Raises LabError.
    """

    def __init__(self, path: Path, until: float | None = None) -> None:
        self.path = path
        self.until = until
        self.size = 0
        self.is_whole = True
        self.notes: list[str] = []  # of the file as a whole
        self._source: Source | None = None
        self._share = 0.0  # of a Parquet file

    def end_at(self, until: float) -> None:
        """Read until then at most, from now on."""
        self.until = until
        if self._source is not None:
            self._source.until = until

    @property
    def done(self) -> int:
        read = self._source.done if self._source else 0
        return min(self.size, max(read, round(self._share * self.size)))

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            raw, opened = open_regular(self.path)
            with raw:
                if suffix_of(opened) != suffix_of(self.path):
                    raise LabError(
                        f"'{quote(str(self.path))}' is a link to '{quote(str(opened))}'.",
                        "Give the file itself.",
                    )
                self.size = os.fstat(raw.fileno()).st_size
                yield from self._of(raw)
        except OutOfTime:
            self.is_whole = False
        except OSError as error:
            raise LabError(
                f"'{quote(self.path.name)}' cannot be read: {error.strerror or first_line(error)}.",
                "Check the file.",
            ) from None

    def _of(self, raw: IO[bytes]) -> Iterator[tuple[int, Any]]:
        self._source = Source(raw, self.until)
        is_packed = raw.read(2) == GZIP
        raw.seek(0)
        packed = Unpacked(self._source, self.path, BOMB_BYTES, BOMB_RATIO)
        file: Any = io.BufferedReader(packed if is_packed else self._source, BLOCK)
        start = _peek(file)
        suffix = suffix_of(self.path)
        for signature, kind in SIGNATURES.items():
            if start.startswith(signature) and not (kind == "Parquet" and suffix == ".parquet"):
                raise LabError(
                    f"'{quote(self.path.name)}' is {kind}.",
                    f"Unpack or save it as UTF-8 text: one of {', '.join(FORMATS)}."
                    if kind != "Parquet"
                    else "Let its name end in .parquet.",
                )
        if suffix == ".parquet":
            yield from self._parquet(file if is_packed else raw, is_packed)
            return
        if start.startswith(UTF16_MARKS):
            file = io.BufferedReader(Recoded(file, self.path), BLOCK)
            start = _peek(file)
            self._say("is UTF-16 text")
        if b"\0" in start:
            is_wide = start.count(b"\0") > len(start) // 4
            raise LabError(
                f"'{quote(self.path.name)}' is not text: it holds NUL bytes"
                + (", as UTF-16 without a byte order mark does." if is_wide else "."),
                "Save it as UTF-8 text.",
            )
        if suffix in JSON and json_rows.begins_as_list(start):
            if suffix != ".json":
                self._say("holds a JSON list, not a row in each line")
            yield from json_rows.entries(file, self.path, MAX_LINE_BYTES)
            return
        is_table = suffix in (".csv", ".tsv")
        # Old spreadsheets end lines with a carriage return alone, and may have line feeds in cells.
        has_cr = is_table or (b"\r" in start and b"\n" not in start)
        numbered = lines(file, self.path, MAX_LINE_BYTES, ends_with_cr=has_cr)
        if is_table:
            yield from tables.records(numbered, self.path, MAX_LINE_BYTES)
        elif suffix == ".json":
            yield from json_rows.of_object(numbered, self.path, MAX_OBJECT_CHARS, self._say)
        elif suffix == ".txt":
            yield from _pieces(numbered)
        else:
            yield from json_rows.of_lines(numbered)

    def _say(self, reason: str) -> None:
        self.notes.append(f"'{quote(self.path.name)}' {reason}, and is read as such.")

    def _parquet(self, file: IO[bytes], is_packed: bool) -> Iterator[tuple[int, Any]]:
        assert self._source is not None
        with tempfile.TemporaryFile() as plain:
            size = self.size
            if is_packed:
                try:
                    while block := file.read(BLOCK):
                        plain.write(block)
                except DAMAGED as error:
                    raise LabError(
                        f"'{quote(self.path.name)}' is damaged: {first_line(error)}.",
                        "Check the file.",
                    ) from None
                size = plain.tell()
                plain.seek(0)
            numbered = parquet.rows(
                plain if is_packed else file,
                self.path,
                size,
                MAX_LINE_BYTES,
                BOMB_BYTES,
                BOMB_RATIO,
            )
            for row, (share, value) in enumerate(numbered, start=1):
                self._share = share
                self._source.check_time()
                yield row, value


def _pieces(numbered: Iterator[tuple[int, str | InvalidRow]]) -> Iterator[tuple[int, Any]]:
    """Plain text in pieces of about TEXT_CHUNK_CHARS characters, cut at blank lines."""
    piece: list[str] = []
    length, start = 0, 1
    is_blank, has_text = False, False
    for row, line in numbered:
        if isinstance(line, InvalidRow):
            yield row, line
            continue
        if has_text and (length > 2 * TEXT_CHUNK_CHARS or (length > TEXT_CHUNK_CHARS and is_blank)):
            yield start, {"text": "".join(piece), "goes_on": True}
            piece, length, start, has_text = [], 0, row, False
        is_blank = line.isspace()
        if is_blank and not has_text and length > TEXT_CHUNK_CHARS:
            continue  # thousands of blank lines are no text of their own
        piece.append(line)
        length += len(line)
        has_text = has_text or not is_blank
    if has_text:
        yield start, {"text": "".join(piece)}


def _peek(file: Any) -> bytes:
    """The beginning of a file."""
    try:
        return bytes(file.peek(4096)[:4096])
    except DAMAGED:
        return b""  # said again, with its row, by whoever reads on
