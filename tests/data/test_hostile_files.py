# ruff: noqa: E501 (one case a line)
"""Files that were made to stall or fill the lab: read in linear time, bounded, told clearly."""

from __future__ import annotations

import gzip
import io
import json
import time
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from lab.data import example_reader, format_detection, formats, placeholders, readers
from lab.data.example_reader import ExampleReader, ReadOptions, Sample
from lab.errors import LabError

SECONDS = 6.0  # of processor time; each of these took over ten, or gigabytes
PAIRS = b"prompt,completion\n"
SKIP: dict[str, Any] = {"on_invalid_row": "skip"}


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out, **options)
    return out.getvalue()


def repeated(text: str, count: int) -> Any:
    """A column that stores `text` once."""
    places = pyarrow.array([0] * count, pyarrow.int32())
    return pyarrow.DictionaryArray.from_arrays(places, pyarrow.array([text]))


def read(path: Path, data: bytes, **reading: Any) -> tuple[int, ExampleReader]:
    """(usable rows, the account of all)."""
    path.write_bytes(data)
    reader = ExampleReader(path, ReadOptions(**reading))
    return sum(1 for _ in reader), reader


# (name, file, content, reading, what the refusal says)
BOMBS: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("blank lines", "a.jsonl.gz", lambda: gzip.compress(b"\n" * 5_000_000), {}, "more than 1,000,000 blank lines"),
    ("blank lines of a CSV", "a.csv.gz", lambda: gzip.compress(PAIRS + b"\n" * 5_000_000), {}, "blank lines"),
    ("blank lines of a text", "a.txt.gz", lambda: gzip.compress(b"\n" * 5_000_000), {}, "blank lines"),
    ("blank lines of a JSON", "a.json.gz", lambda: gzip.compress(b"\n" * 5_000_000), {}, "blank lines"),
    ("bad rows", "a.jsonl.gz", lambda: gzip.compress(b"1\n" * 3_000_000), {}, "More than 100,000 of 100,000 rows"),
    ("bad rows that are skipped", "a.jsonl.gz", lambda: gzip.compress(b"1\n\n" * 3_000_000), SKIP, "More than 100,000 of 100,000"),
    ("bad rows of a list", "a.json.gz", lambda: gzip.compress(b"[" + b"[]," * 3_000_000), SKIP, "More than 100,000"),
    ("white space", "a.json.gz", lambda: gzip.compress(b"[" + b" " * 9_000_000), {}, "not valid JSON after row 0"),
    ("gzip in gzip", "a.jsonl.gz", lambda: gzip.compress(gzip.compress(b'{"text": "x"}\n')), {}, "is gzipped twice"),
    ("quotes that never close", "a.csv", lambda: PAIRS + b'x","y\n' * 100_000, SKIP, "opens quotes that are never closed"),
    ("columns", "a.csv", lambda: ",".join(map(str, range(300_000))).encode() + b"\n", {}, "names 300,000 columns"),
    ("fields", "a.csv", lambda: PAIRS + b"," * 5_000_000 + b"\n", {}, "has 5,000,001 fields"),
    ("nesting of a list", "a.json", lambda: b"[" * 1_000_000 + b"]" * 1_000_000, {}, "row 1: nested too deeply"),
    ("nesting of a row", "a.jsonl", lambda: b"[" * 1_000_000 + b"]" * 1_000_000, {}, "row 1: nested too deeply"),
    ("keys", "a.jsonl", lambda: json.dumps(dict.fromkeys(map(str, range(100_000)))).encode() * 1, {}, "and 99988 more; expected"),
    ("empty Parquet cells", "a.parquet", lambda: parquet({"text": pyarrow.nulls(20_000_000, pyarrow.string())}), SKIP, "holds 20,000,000 values in"),
    ("a long Parquet cell", "a.parquet", lambda: parquet({"text": ["x" * 12_000_000]}, compression="zstd"), SKIP, "unpacks to more than 200 times"),
    ("repeated Parquet text", "a.parquet", lambda: parquet({"text": repeated("x" * 1_000_000, 300)}, compression="zstd"), SKIP, "unpacks to more than 200 times"),
    ("slots in slots", "a.jsonl", lambda: b'{"text": "' + b"{{a}}" * 20_000 + b'"}\n', {"slots": {"a": "x" * 4000}}, "longer than 32,000,000 characters with its slots"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "reading", "says"),
    [case[1:] for case in BOMBS],
    ids=[case[0] for case in BOMBS],
)
def test_a_bomb_is_refused_in_bounded_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    make: Any,
    reading: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr(readers, "BOMB_BYTES", 10_000_000)
    data = make()
    began = time.process_time()
    with pytest.raises(LabError) as caught:
        read(tmp_path / name, data, **reading)
    took = time.process_time() - began
    assert says in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 3000, "a message is for a person to read"
    assert took < SECONDS, f"reading took {took:.1f} s"


# (name, file, content, usable rows, first bad row or 0, its reason)
MENDED: list[tuple[str, str, Any, int, int, str]] = [
    ("one stray quote", "a.csv", lambda: PAIRS + b"p,c\n" * 9 + b'"open,c\n' + (b"x" * 10_000 + b",c\n") * 2_500, 2509, 11, "a quote is opened and never closed"),
    ("a quote in every row", "a.csv", lambda: PAIRS + b'"x,y\n' * 30_000 + b"p,c\n", 1, 2, "not CSV"),
    ("one row of 9 MB", "a.json", lambda: b'[{"text": "' + b"x" * 9_000_000 + b'"}' + b', {"text": "y"}' * 150_000 + b"]", 150_001, 0, ""),
    ("one entry of 40 MB", "a.json", lambda: b'[{"text": "' + b"x" * 40_000_000 + b'"}, {"text": "y"}]', 1, 1, "is longer than 32,000,000 bytes"),
    ("one line of 40 MB", "a.jsonl", lambda: b'{"text": "' + b"x" * 40_000_000 + b'"}\n{"text": "y"}\n', 1, 1, "is longer than 32,000,000 bytes"),
    ("a deep entry", "a.json", lambda: b'[{"text": "x"}, ' + b"[" * 9000 + b'"]\\"]"' + b"]" * 9000 + b', {"text": "y"}]', 2, 2, "nested too deeply"),
    ("a number of 5,000 digits", "a.json", lambda: b'[{"text": "x"}, {"a": [' + b"9" * 5000 + b']}, {"text": "y"}]', 2, 2, "not JSON (Exceeds the limit"),
    ("latin-1 in an entry", "a.json", lambda: b'[{"text": "x"}, {"text": "caf\xe9"}, {"text": "y"}]', 2, 2, "is not UTF-8: byte 0xe9"),
    ("carriage returns", "a.csv", lambda: b'prompt,completion\rp,c\r"two\nlines",c\r', 2, 0, ""),
    ("carriage returns and line feeds", "a.csv", lambda: b'prompt,completion\r\np,c\r\n"two\r\nlines",c\r\n', 2, 0, ""),
    ("carriage returns in JSONL", "a.jsonl", lambda: b'{"text": "a"}\r{"text": "b"}\r', 2, 0, ""),
    ("a long field", "a.csv", lambda: PAIRS + b'"' + b"word\n" * 200_000 + b'",c\n', 1, 0, ""),
    ("100,000 columns", "a.csv", lambda: (",".join(map(str, range(99_998))) + ",prompt,completion\n" + "x," * 99_999 + "y\n").encode(), 1, 0, ""),
    ("durations", "a.parquet", lambda: parquet({"text": ["a"] * 2, "t": pyarrow.array([1, 2], pyarrow.duration("ns"))}), 2, 0, ""),
    ("a date far away", "a.parquet", lambda: parquet({"text": ["a"] * 2, "t": pyarrow.array([10**9] * 2, pyarrow.date32())}), 2, 0, ""),
    ("a time far away", "a.parquet", lambda: parquet({"text": ["a"] * 2, "t": pyarrow.array([2**62] * 2, pyarrow.timestamp("us"))}), 2, 0, ""),
    ("a zone that is none", "a.parquet", lambda: parquet({"text": ["a"], "t": pyarrow.array([1], pyarrow.timestamp("us", "Mars/X"))}), 1, 0, ""),
    ("latin-1 in Parquet", "a.parquet", lambda: parquet({"text": pyarrow.array([b"a", b"caf\xe9", b"b"]).view(pyarrow.string())}), 2, 2, "'text' cannot be read ('utf-8' codec can't decode byte 0xe9"),
    ("replies that are a number", "a.jsonl", lambda: b'{"text": "t"}\n{"prompt": {"role": "prompter", "text": "q", "replies": 5}}\n', 1, 2, "'replies' is 5, not a list"),
    ("an answer of 5,000 digits", "a.jsonl", lambda: b'{"question": "q", "choices": ["a", "b"], "answer": 1}\n{"question": "q", "choices": ["a", "b"], "answer": "' + b"9" * 5000 + b'"}\n', 1, 2, "is none of the 2 choices"),
    ("a rank of 400 digits", "a.jsonl", lambda: b'{"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a", "rank": ' + b"9" * 400 + b"}]}}\n", 1, 0, ""),
    ("an Infinity for text", "a.jsonl", lambda: b'{"text": "x"}\n{"text": Infinity}\n', 1, 2, "is Infinity, not text"),
    ("ten thousand blank lines", "a.txt", lambda: b"one\n" + b"\n" * 20_000 + b"two\n", 2, 0, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "make", "good", "row", "reason"),
    [case[1:] for case in MENDED],
    ids=[case[0] for case in MENDED],
)
def test_only_the_row_at_fault_is_lost_and_time_is_linear(
    tmp_path: Path, name: str, make: Any, good: int, row: int, reason: str
) -> None:
    data = make()
    began = time.process_time()
    count, reader = read(tmp_path / name, data, on_invalid_row="skip")
    took = time.process_time() - began
    assert count == good, reader.invalid_summary()
    if row:
        first = reader.reasons.groups[0]
        assert first.row == row and reason in first.text, reader.invalid_summary()
    else:
        assert reader.num_invalid == 0, reader.invalid_summary()
    assert took < SECONDS, f"reading took {took:.1f} s"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'[{"text": "x"} {"text": "y"}]', "after row 1: Expecting ',' or ']'"),
        (b'[{"text": "x"}, {"text": "y"}] [{"text": "z"}]', "text follows behind the list"),
        (b'[{"text": "x"}, ]', "after row 1: Expecting value"),
        (b'[{"text": "x"}', "after row 1: its end is missing"),
    ],
)
def test_a_list_that_goes_on_wrongly_is_not_read_in_part(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(LabError, match="is not valid JSON") as caught:
        read(tmp_path / "a.json", data, on_invalid_row="skip")
    assert says in str(caught.value)


def test_a_stray_quote_is_told_with_the_row_that_it_opens_in(tmp_path: Path) -> None:
    data = PAIRS + b"p,c\n" * 3 + b'"open,c\n' + b"p,c\n" * 3000
    with pytest.raises(LabError, match=r"1 of 3,004 rows .* row 5: a quote is opened and never"):
        read(tmp_path / "a.csv", data)


def test_a_field_of_any_length_that_a_row_may_have_is_read(tmp_path: Path) -> None:
    long = "word " * 60_000
    (example,) = _examples(tmp_path / "a.csv", PAIRS + f'"{long}",c\n'.encode())
    assert example.messages[0]["content"] == long


def test_a_carriage_return_within_a_field_stays(tmp_path: Path) -> None:
    (first, second) = _examples(
        tmp_path / "a.csv", b'prompt,completion\r"a\nb\rc",d\rquestion,answer\r'
    )
    assert [turn["content"] for turn in first.messages] == ["a\nb\rc", "d"]
    assert [turn["content"] for turn in second.messages] == ["question", "answer"]


def _examples(path: Path, data: bytes, **reading: Any) -> list[formats.Example]:
    path.write_bytes(data)
    return list(ExampleReader(path, ReadOptions(**reading)))


def test_slots_are_filled_once_and_what_fills_them_stays(tmp_path: Path) -> None:
    slots = {"a": "{{b}}{{a}}", "b": "{{a}}", "c": ""}
    (example,) = _examples(
        tmp_path / "a.jsonl", b'{"text": "{{a}} {{b}} {{c}}{{d}} {{{b}}}"}\n', slots=slots
    )
    assert example.text == "{{b}}{{a}} {{a}} {{d}} {{{a}}}"
    with pytest.raises(LabError, match="has no text once its slots are filled"):
        _examples(tmp_path / "a.jsonl", b'{"text": "{{c}}"}\n', slots=slots)
    with pytest.raises(LabError, match="NUL"):
        _examples(tmp_path / "a.jsonl", b'{"text": "{{c}}"}\n', slots={"c": "a\0"})


def test_the_slots_of_a_whole_row_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placeholders, "MAX_ROW_CHARS", 1000)
    turns = [{"role": role, "content": "{{a}}"} for role in ("user", "assistant") * 4]
    row = json.dumps({"messages": turns}).encode()
    assert len(_examples(tmp_path / "a.jsonl", row, slots={"a": "x" * 100})) == 1
    with pytest.raises(LabError, match="longer than 1,000 characters with its slots filled"):
        _examples(tmp_path / "a.jsonl", row, slots={"a": "x" * 200})


def test_reading_ends_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n' * 100_000)
    reader = ExampleReader(path)
    reader.end_after(60)
    counted = 0
    for _ in reader:
        counted += 1
        if counted == 10:
            reader.end_after(-1)
    assert not reader.is_whole and 10 <= reader.num_valid < 100_000
    assert 0 < reader.bytes_read < reader.size, "progress tells how far it came"
    path.write_bytes(b"1\n" * 50_000)
    slow = ExampleReader(path, ReadOptions(on_invalid_row="skip"))
    slow.end_after(-1)
    with pytest.raises(LabError, match="No row was found in the first"):
        list(slow)
    monkeypatch.setattr(format_detection, "MAX_INVALID", 100)
    assert format_detection.detected(str(path)).format == ""


def test_a_bad_row_is_told_briefly(tmp_path: Path) -> None:
    row = json.dumps({"x" * 5000 + str(number): 1 for number in range(50)})
    with pytest.raises(LabError) as caught:
        _examples(tmp_path / "a.jsonl", row.encode() + b"\n")
    assert "and 38 more" in str(caught.value) or "…" in str(caught.value)
    assert len(str(caught.value)) < 3 * example_reader.MAX_REASON_CHARS


def test_a_sample_holds_the_beginning_of_long_rows() -> None:
    sample = Sample(100, 400_000)
    text = formats.Example(1, text="word " * 200_000)
    chat = formats.Example(
        2,
        messages=tuple(
            {"role": role, "content": "hello " * 100} for role in ("user", "assistant") * 2000
        ),
    )
    sample.add(text)
    sample.add(chat)
    assert formats.length(sample.examples[0]) == 100_000 and sample.shares[0] == 10.0
    assert formats.length(sample.examples[1]) <= 101_000
    assert sample.examples[1].messages[-1]["role"] == "assistant"
    assert sample.examples[1].messages[:3] == chat.messages[:3]
    while not sample.is_full:
        sample.add(text)
    assert len(sample.examples) < 30, "the sample is bounded by its characters"
    short = Sample(3, 400_000)
    for number in range(3):
        short.add(formats.Example(number, text="short"))
    assert short.is_full and short.shares == [1.0] * 3


def test_a_file_that_is_another_format_says_which(tmp_path: Path) -> None:
    for start, kind in ((b"PAR1", "is Parquet"), (b"SQLite format 3\0", "an SQLite database")):
        with pytest.raises(LabError, match=kind):
            _examples(tmp_path / "a.jsonl", start + b"....")
    assert readers.suffix_of(tmp_path / "a.PARQUET.gz") == ".parquet"
    cut = gzip.compress(parquet({"text": ["a"] * 1000}))[:-20]
    with pytest.raises(LabError, match=r"a\.parquet\.gz' is damaged"):
        _examples(tmp_path / "a.parquet.gz", cut)
    twice = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    out = io.BytesIO()
    pyarrow.parquet.write_table(twice, out)
    with pytest.raises(LabError, match="names a column twice"):
        _examples(tmp_path / "a.parquet", out.getvalue())
