"""The rows of a Parquet file, a few hundred in memory at a time.

Text stays dictionary-encoded until a row is handed out, since a few hundred bytes of Parquet can
stand for gigabytes of it; what a row expands to is counted before it is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lab.data.lines import InvalidRow, check_ratio
from lab.errors import LabError, first_line
from lab.schema import quote

BATCH = 256  # rows
BATCH_BYTES = 32_000_000  # of a batch that is expanded as a whole
BATCH_VALUES = 1_000_000
HARMLESS_VALUES = 10_000_000  # rows, or entries of lists, in a file of any size


def rows(
    file: IO[bytes], path: Path, size: int, longest: int, harmless: int, ratio: int
) -> Iterator[tuple[float, Any]]:
    """(share of the file that was read, row or InvalidRow). `size` are the bytes of the file; what
    they may expand to is bounded as in `lab.data.lines.check_ratio`. Raises LabError."""
    import pyarrow.parquet

    try:
        plain = pyarrow.parquet.ParquetFile(file).metadata
        names = _checked(plain, path, size, harmless, ratio)
        texts = _texts(plain)
        table = pyarrow.parquet.ParquetFile(file, read_dictionary=texts)
        count = max(1, min(BATCH, BATCH_VALUES // max(1, len(names))))
        done = expanded = 0
        for batch in table.iter_batches(batch_size=count):
            for value, length in _values(batch, longest):
                done, expanded = done + 1, expanded + length
                check_ratio(path, expanded, size, harmless, ratio)
                yield done / plain.num_rows, value
    except (LabError, GeneratorExit, MemoryError):
        raise
    except Exception as error:  # a stranger's bytes: Arrow's readers have errors of every kind
        raise LabError(
            f"'{quote(path.name)}' is not Parquet, or is damaged: {quote(first_line(error))}.",
            "Check the file.",
        ) from None


def _checked(metadata: Any, path: Path, size: int, harmless: int, ratio: int) -> list[str]:
    """The names of the columns, if what the file says of itself can be true."""
    names = list(metadata.schema.to_arrow_schema().names)
    if len(set(names)) < len(names):
        raise LabError(
            f"'{quote(path.name)}' names a column twice.",
            "Name each column once, and save it again.",
        )
    parts = _parts(metadata)
    check_ratio(path, sum(part.total_uncompressed_size for part in parts), size, harmless, ratio)
    values = max([metadata.num_rows, *(part.num_values for part in parts)])
    if values > max(HARMLESS_VALUES, ratio * size):
        raise LabError(
            f"'{quote(path.name)}' holds {values:,} values in {size:,} bytes.",
            "This is not ordinary data; check how it was made.",
        )
    return names


def _parts(metadata: Any) -> list[Any]:
    """What the file says of each column in each group of rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return [group.column(i) for group in groups for i in range(group.num_columns)]


def _texts(metadata: Any) -> list[str]:
    """The paths of columns that hold text or bytes."""
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _values(batch: Any, longest: int) -> Iterator[tuple[Any, int]]:
    """(row or InvalidRow, its bytes) of a batch."""
    if (size := _expanded(batch)) <= BATCH_BYTES:
        try:
            values = batch.to_pylist()
        except Exception:  # a cell that Python cannot hold: told below, with its column
            values = [_by_cell(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for value in values:
            yield value, size // batch.num_rows
        return
    for i in range(batch.num_rows):
        row = batch.slice(i, 1)
        size = _expanded(row)
        if size > longest:
            yield InvalidRow(f"is longer than {longest:,} bytes"), 0
        else:
            yield _by_cell(row), size


def _expanded(batch: Any) -> int:
    return sum(_bytes(column) for column in batch.columns)


def _bytes(column: Any) -> int:
    """The bytes of a column when each text stands for itself."""
    import pyarrow
    from pyarrow import compute

    kind = column.type
    if pyarrow.types.is_dictionary(kind):
        lengths = compute.binary_length(column.dictionary)
        total = compute.sum(lengths.take(column.indices)).as_py()
        return int(total or 0) + int(column.indices.nbytes)
    if pyarrow.types.is_map(kind):
        return int(_bytes(column.keys) + _bytes(column.items))
    if pyarrow.types.is_struct(kind):
        return sum(_bytes(part) for part in column.flatten())
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return int(_bytes(column.flatten())) + 8 * len(column)
    return int(column.nbytes)


def _by_cell(row: Any) -> dict[str, Any]:
    """A row of which a cell may hold what Python cannot: a date after the year 9999, bytes that
    are not UTF-8. Such a cell holds a InvalidRow, which is told where the cell is needed."""
    value: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            value[name] = column[0].as_py()
        except Exception as error:  # Arrow's, pandas' or Python's own
            value[name] = InvalidRow(f"cannot be read ({first_line(error)})")
    return value
