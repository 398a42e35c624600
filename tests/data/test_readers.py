"""From bytes to values: delimiters, rows that are counted, and progress that ends at the end."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lab.data import readers
from lab.data.readers import InvalidRow, RecordReader
from lab.errors import LabError


def values(path: Path, data: bytes) -> list[tuple[int, Any]]:
    path.write_bytes(data)
    return list(RecordReader(path))


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_table_is_read_by_the_mark_of_its_header(tmp_path: Path, name: str, mark: str) -> None:
    lines = [["prompt", "completion"], ["a b", "c"], [f'"x{mark}y"', "z"]]
    data = "".join(mark.join(line) + "\n" for line in lines).encode()
    found = values(tmp_path / name, gzip.compress(data) if name.endswith("gz") else data)
    assert found == [
        (2, {"prompt": "a b", "completion": "c"}), (3, {"prompt": f"x{mark}y", "completion": "z"}),
    ]  # fmt: skip


def test_a_tsv_has_tabs_whatever_else_its_header_holds(tmp_path: Path) -> None:
    found = values(tmp_path / "a.tsv", b"a,b,c\td\n1,2\t3\n")
    assert found == [(2, {"a,b,c": "1,2", "d": "3"})]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path, name: str) -> None:
    rows = {"a.jsonl": b'{"text": "x"}\n', "a.json": b'[{"text": "x"}]', "a.csv": b"text\nx\n"}
    ((_, value),) = values(tmp_path / name, b"\xef\xbb\xbf" + rows.get(name, b"x"))
    assert value == {"text": "x"}


def test_packed_is_what_begins_as_gzip_does_whatever_it_is_called(tmp_path: Path) -> None:
    line = b'{"text": "x"}\n'
    assert values(tmp_path / "a.jsonl", gzip.compress(line)) == [(1, {"text": "x"})]
    assert values(tmp_path / "b.jsonl.gz", line) == [(1, {"text": "x"})]


def test_pieces_of_a_text_say_where_they_begin_and_that_they_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TEXT_CHUNK_CHARS", 10)
    found = values(tmp_path / "a.txt", b"one one one\n\ntwo two two\n\nthree\n")
    assert found == [
        (1, {"text": "one one one\n\n", "goes_on": True}),
        (3, {"text": "two two two\n\n", "goes_on": True}),
        (5, {"text": "three\n"}),
    ]


def test_rows_may_lie_under_one_key_but_not_under_two(tmp_path: Path) -> None:
    rows = [{"text": "x"}, {"text": "y"}]
    data = json.dumps({"version": 1, "data": rows}, indent=1).encode()
    assert values(tmp_path / "a.json", data) == [(1, rows[0]), (2, rows[1])]
    with pytest.raises(LabError, match="Give a JSON list"):
        values(tmp_path / "a.json", json.dumps({"data": rows, "more": rows}, indent=1).encode())


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.jsonl.gz"])
def test_progress_ends_with_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"row {number} " * 20} for number in range(2000)]
    path = tmp_path / name
    if name == "a.parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == "a.json":
        path.write_text(json.dumps(rows))
    elif name == "a.csv":
        path.write_text("text\n" + "".join(row["text"] + "\n" for row in rows))
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    reader = RecordReader(path)
    seen = []
    numbers = []
    for row, _ in reader:
        seen.append(reader.done)
        numbers.append(row)
    assert seen == sorted(seen) and reader.done == reader.size == path.stat().st_size
    if not name.endswith(("gz", "parquet")):  # those are read at once: a few kilobytes
        assert seen[len(seen) // 2] < reader.size, "half way it is not at its end"
    if name != "a.txt":
        first = 2 if name == "a.csv" else 1
        assert numbers == list(range(first, first + 2000)), "rows are numbered as in the file"


def test_a_bad_line_hides_no_other(tmp_path: Path) -> None:
    found = values(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": \n\n{"a": 3}\n')
    assert [row for row, _ in found] == [1, 2, 4]
    assert isinstance(found[1][1], InvalidRow) and found[2][1] == {"a": 3}
