"""The values that stand in a file, one after the other, whatever its format.

JSONL, JSON, CSV, TSV, Parquet and plain text, each also gzipped, are read as a stream: memory does
not grow with the file. A row that cannot be read becomes a BadRow in its place, so that the rows
behind it still come. What makes the whole file unreadable raises LabError.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lab.errors import LabError
from lab.files import open_regular
from lab.schema import show

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
SUFFIXES = (*FORMATS, *(f"{suffix}.gz" for suffix in FORMATS))
LONGEST_LINE = 32_000_000  # bytes of one row
PIECE = 4000  # characters of plain text that make a row
BOMB_BYTES = 100_000_000  # unpacked; below it, any ratio is harmless
BOMB_RATIO = 200
CSV_LINES = 2000  # of one record; a stray quote would swallow the rest of the file
BLOCK = 1 << 16
SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
}


class BadRow(Exception):
    """Why one row cannot be used."""


def suffix_of(path: Path) -> str:
    """ ".csv" of "a.csv" and of "a.CSV.gz"; "" for a file of no known format."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), "")


class Values:
    """Iterates over (row, value or BadRow) of a file; `row` counts lines or entries from 1.

    `done` and `size` are bytes of the file, for progress. Raises LabError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done = 0
        self.size = 0
        self._raw: IO[bytes] | None = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        try:
            raw, opened = open_regular(self.path)
            with raw:
                if suffix_of(opened) != suffix_of(self.path):
                    raise LabError(
                        f"'{show(str(self.path))}' is a link to '{show(str(opened))}'.",
                        "Give the file itself.",
                    )
                self._raw, self.size = raw, os.fstat(raw.fileno()).st_size
                yield from self._of(raw)
                self.done = self.size
        except OSError as error:
            raise LabError(
                f"'{show(str(self.path))}' cannot be read: {error.strerror or error}.",
                "Check the file.",
            ) from None

    def _of(self, raw: IO[bytes]) -> Iterator[tuple[int, Any]]:
        suffix = suffix_of(self.path)
        is_packed = raw.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        file: Any = io.BufferedReader(_Unpacked(raw, self.path), BLOCK) if is_packed else raw
        start = _peek(file)
        for signature, kind in SIGNATURES.items():
            if start.startswith(signature):
                raise LabError(
                    f"'{show(str(self.path))}' is {kind}.",
                    f"Unpack or save it as UTF-8 text: one of {', '.join(FORMATS)}.",
                )
        if suffix == ".parquet":
            yield from self._parquet(file, is_packed)
            return
        if b"\0" in start:
            raise LabError(
                f"'{show(str(self.path))}' is not text: it holds NUL bytes.", "Check the file."
            )
        if suffix == ".json" and start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            yield from self._list(file)
        elif suffix == ".json":
            yield from self._object(file)
        elif suffix in (".csv", ".tsv"):
            yield from self._table(file)
        elif suffix == ".txt":
            yield from self._text(file)
        else:
            for row, line in self._lines(file):
                if isinstance(line, BadRow) or line.strip():
                    yield row, line if isinstance(line, BadRow) else parse(line)

    def _lines(self, file: IO[bytes]) -> Iterator[tuple[int, str | BadRow]]:
        """(line number, decoded line or BadRow), with memory bounded by the longest line."""
        row = 0
        while True:
            row += 1
            try:
                line = file.readline(LONGEST_LINE + 1)
                if len(line) > LONGEST_LINE:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(BLOCK)
                    yield row, BadRow(f"is longer than {LONGEST_LINE:,} bytes")
                    continue
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                yield row, BadRow(f"the gzip data are damaged here ({_first(error)})")
                return
            if not line:
                return
            self._advance()
            yield row, decode(line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line)

    def _advance(self) -> None:
        if self._raw is not None:
            self.done = min(self._raw.tell(), self.size)

    def _list(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """The entries of a JSON list, decoded one at a time from a window of text."""
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="strict")
        decoder = json.JSONDecoder()
        window, row, wanted = "", 0, BLOCK
        try:
            window = text.read(wanted).lstrip().removeprefix("[")
            while True:
                window = window.lstrip().removeprefix(",").lstrip() if row else window.lstrip()
                if window.startswith("]"):
                    return
                try:
                    value, end = decoder.raw_decode(window)
                    if end == len(window):  # a number may go on behind the window
                        raise json.JSONDecodeError("cut", window, end)
                except json.JSONDecodeError as error:
                    more = text.read(wanted)
                    self._advance()
                    if not more or len(window) > LONGEST_LINE:
                        raise LabError(
                            f"'{show(str(self.path))}' is not JSON behind row {row}: {error.msg}.",
                            "Give a JSON list of rows, or JSONL with one object a line.",
                        ) from None
                    window += more
                    wanted = min(2 * wanted, 1 << 24)  # a long entry is not parsed a hundred times
                    continue
                row, window = row + 1, window[end:]
                yield row, value
        except UnicodeDecodeError as error:
            yield row + 1, BadRow(_not_utf8(error))
        except RecursionError:
            yield row + 1, BadRow("nested too deeply")
        except ValueError as error:  # a number of thousands of digits
            yield row + 1, BadRow(f"not JSON ({error})")
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            yield row + 1, BadRow(f"the gzip data are damaged here ({_first(error)})")
        finally:
            text.detach()

    def _object(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """A .json file that is no list: rows under one key, or JSONL with the wrong name."""
        lines = self._lines(file)
        first = next(lines, None)
        second = next(lines, None) if first else None
        if first and second and not isinstance(first[1], BadRow):
            one = parse(first[1]) if first[1].strip() else None
            if isinstance(one, dict):
                yield first[0], one
                for row, line in [second, *lines]:
                    if isinstance(line, BadRow) or line.strip():
                        yield row, line if isinstance(line, BadRow) else parse(line)
                return
        parts = [line for _, line in [*filter(None, (first, second)), *lines]]
        bad = next((part for part in parts if isinstance(part, BadRow)), None)
        value = bad or parse("".join(str(part) for part in parts)) if parts else None
        if parts and isinstance(value, BadRow):
            raise LabError(
                f"'{show(str(self.path))}' is not JSON: {value}.",
                "Give a JSON list of rows, or JSONL with one object a line.",
            )
        if parts:
            yield from enumerate(_rows_inside(value, self.path), start=1)

    def _table(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """Records of a CSV as {column: text}; the first line names the columns."""
        lines = self._lines(file)
        header = next(lines, None)
        if header is None:
            return
        if isinstance(header[1], BadRow):
            raise LabError(f"'{show(str(self.path))}', row 1: {header[1]}.", "Check the file.")
        mark = "\t" if suffix_of(self.path) == ".tsv" else _delimiter(header[1])
        names = next(csv.reader([header[1]], delimiter=mark), [])
        if len(set(names)) < len(names) or not all(name.strip() for name in names):
            raise LabError(
                f"The first line of '{show(str(self.path))}' is no list of column names: "
                f"{show(header[1].strip())}.",
                "Name each column once in the first line.",
            )
        waiting: list[tuple[int, str | BadRow]] = []
        while True:
            record: list[str] = []
            start, used, problem = 0, 0, ""
            is_open = True
            while is_open:
                if used == len(waiting):
                    following = next(lines, None)
                    if following is None:
                        break
                    waiting.append(following)
                row, line = waiting[used]
                start = start or row
                used += 1
                if isinstance(line, BadRow):
                    problem = str(line)
                    break
                record.append(line)
                is_open = "".join(record).count('"') % 2 == 1 if '"' in line or used > 1 else False
                if used >= CSV_LINES:
                    break
            if not used:
                return
            value: Any = BadRow(problem) if problem and used == 1 else None
            if value is None and (is_open or problem):
                value = BadRow("a quote is opened and never closed")
            elif value is None:
                value = _record("".join(record), names, mark)
            if isinstance(value, BadRow):
                used = 1  # go on with the very next line: only this record is lost
            del waiting[:used]
            if value is not None:
                yield start, value

    def _text(self, file: IO[bytes]) -> Iterator[tuple[int, Any]]:
        """Plain text in pieces of about PIECE characters, cut at blank lines where there are."""
        piece: list[str] = []
        length, start, blank = 0, 1, False
        for row, line in self._lines(file):
            if isinstance(line, BadRow):
                yield row, line
                continue
            if piece and (length > 2 * PIECE or (length > PIECE and blank)):
                yield start, {"text": "".join(piece), "goes_on": True}
                piece, length, start = [], 0, row
            piece.append(line)
            length += len(line)
            blank = not line.strip()
        if "".join(piece).strip():
            yield start, {"text": "".join(piece)}

    def _parquet(self, file: Any, is_packed: bool) -> Iterator[tuple[int, Any]]:
        import pyarrow
        import pyarrow.parquet

        with tempfile.TemporaryFile() as plain:
            if is_packed:
                while block := file.read(BLOCK):
                    plain.write(block)
                plain.seek(0)
            try:
                table = pyarrow.parquet.ParquetFile(plain if is_packed else file)
                total, row = max(1, table.metadata.num_rows), 0
                for batch in table.iter_batches(batch_size=256):
                    for value in batch.to_pylist():
                        row += 1
                        yield row, value
                    self.done = self.size * row // total
            except pyarrow.ArrowException as error:
                raise LabError(
                    f"'{show(str(self.path))}' is not Parquet: {_first(error)}.", "Check the file."
                ) from None


class _Unpacked(io.RawIOBase):
    """The bytes of a gzip stream; one that unpacks to hundreds of times its size is refused."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        self.raw, self.path = raw, path
        self.file = gzip.GzipFile(fileobj=raw)
        self.unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.unpacked += len(data)
        if self.unpacked > max(BOMB_BYTES, BOMB_RATIO * self.raw.tell()):
            raise LabError(
                f"'{show(str(self.path))}' unpacks to more than {BOMB_RATIO} times its size "
                f"({self.unpacked:,} bytes so far).",
                "This is no ordinary data; unpack it yourself if you trust it.",
            )
        return len(data)


def parse(line: str) -> Any:
    """The JSON value of a line, or the BadRow that says why it is none."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(f"not JSON ({error.msg} at column {error.colno})")
    except ValueError as error:  # a number of thousands of digits
        return BadRow(f"not JSON ({error})")
    except RecursionError:
        return BadRow("nested too deeply")


def decode(line: bytes) -> str | BadRow:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(_not_utf8(error))


def _not_utf8(error: UnicodeDecodeError) -> str:
    return (
        f"is not UTF-8: byte 0x{error.object[error.start]:02x} at place {error.start} "
        f"({error.reason})"
    )


def _peek(file: Any) -> bytes:
    try:
        return bytes(file.peek(4096)[:4096])
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""  # said again, with its row, by whoever reads on


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _delimiter(header: str) -> str:
    return max(",;\t|", key=header.count)


def _record(text: str, names: list[str], mark: str) -> dict[str, str] | BadRow | None:
    """One record as {column: text}; None for a blank line."""
    if not text.strip():
        return None
    try:
        (fields,) = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    except (csv.Error, ValueError) as error:
        return BadRow(f"not CSV ({error})")
    if len(fields) != len(names):
        return BadRow(f"has {len(fields)} fields, the first line names {len(names)}")
    return dict(zip(names, fields, strict=True))


def _rows_inside(value: Any, path: Path) -> list[Any]:
    """The list of rows inside {"data": [...]} and the like."""
    if isinstance(value, dict):
        lists = [part for part in value.values() if isinstance(part, list) and part]
        if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]):
            return list(lists[0])
    raise LabError(f"'{show(str(path))}' holds {show(value)}.", "Give a JSON list of rows.")
