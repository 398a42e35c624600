# ruff: noqa: E501 (one case a line)
"""Files as people have them: what spreadsheets and other systems write, and names of any kind."""

from __future__ import annotations

import codecs
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from lab import json_text
from lab.atomic_files import load_json
from lab.data import catalog, encodings
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.data.readers import RecordReader
from lab.errors import LabError

PAIR = ["Wie heißt die Straße?", "Köln, „Ring“ 5"]
ROWS = [{"prompt": f"{PAIR[0]} {n}", "completion": PAIR[1]} for n in range(3)]


def pairs(path: Path, data: bytes, **options: Any) -> list[list[str]]:
    path.write_bytes(data)
    examples = ExampleReader(path, ReadOptions(**options))
    return [[message["content"] for message in example.messages] for example in examples]


def refusal(path: Path, data: bytes, **options: Any) -> str:
    with pytest.raises(LabError) as caught:
        pairs(path, data, **options)
    return str(caught.value)


# What spreadsheets write -------------------------------------------------------------------------

BOM = "\ufeff"
TABLES: list[tuple[str, str]] = [
    ("sep", "sep=;\r\nprompt;completion\r\n{};{}\r\n"),
    ("sep with a mark", BOM + "sep=;\r\nprompt;completion\r\n{};{}\r\n"),
    ("sep in quotes", '"sep=|"\nprompt|completion\n{}|{}\n'),
    ("SEP by tabs", "SEP=\t\nprompt\tcompletion\n{}\t{}\n"),
    ("sep that the header would hide", 'sep=,\na;b;c;d,prompt,completion\nw;x;y;z,{},"{}"\n'),
    ("trailing commas", "prompt,completion,,\n{},\"{}\",,\n"),
    ("trailing commas in rows only", "prompt,completion\n{},\"{}\",,\n"),
    ("trailing commas in the header only", "prompt,completion,,\n{},\"{}\"\n"),
    ("blanks and capitals", BOM + "Prompt, Completion \r\n{},\"{}\"\r\n"),
    ("capitals only", "PROMPT;COMPLETION\n{};{}\n"),
    ("empty rows", "prompt,completion\n,\n{},\"{}\"\n,,,\n\n"),
    ("a blank line before the header", "\r\n\r\nprompt,completion\r\n{},\"{}\"\r\n"),
    ("carriage returns", "prompt;completion\r{};{}\r"),
    ("an index of pandas", ",prompt,completion\n0,{},\"{}\"\n"),
    ("a mark of another kind in the header", "prompt;completion;said, by whom\n{};{};x\n"),
    ("marks of another kind in quotes", '"prompt";"completion";"a,b,c"\n{};{};x\n'),
    ("as many commas as semicolons", "prompt;completion;a,b,c\n{};{};x\n"),
]  # fmt: skip


@pytest.mark.parametrize(("text"), [case[1] for case in TABLES], ids=[case[0] for case in TABLES])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    whole = text.replace("{}", PAIR[0], 1).replace("{}", PAIR[1], 1)
    if encoding != "utf-8":
        whole = BOM + whole.removeprefix(BOM)
    assert pairs(tmp_path / "a.csv", whole.encode(encoding)) == [PAIR]


def test_a_field_of_any_length_is_read_whole(tmp_path: Path) -> None:
    long = "wort " * 60_000
    assert pairs(tmp_path / "a.csv", f'prompt,completion\n"{long}",c\n'.encode()) == [[long, "c"]]


def test_text_behind_the_last_column_is_refused_with_the_way_out(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.csv", b"prompt,completion,,\n" + b"p,one, two\n" * 4)
    assert message == (
        "4 of 4 rows of 'a.csv' cannot be used: row 2 and 3 more: has 3 fields, the first line names "
        "2 columns; a field with ',' in it has to stand in quotes. Mend these rows, or name the "
        "right columns in data.columns."
    )
    assert pairs(
        tmp_path / "a.csv", b"prompt,completion\np,c\np,one, two\n", on_invalid_row="skip"
    ) == [["p", "c"]]


def test_a_column_without_a_name_that_holds_something_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,,completion\np,odd,c\n")
    reader = ExampleReader(tmp_path / "a.csv")
    assert [message["content"] for message in next(iter(list(reader))).messages] == ["p", "c"]
    assert reader.notes() == ["'column 2' is not used (row 2)."]


def test_two_columns_that_differ_in_blanks_only_are_one_name_twice(tmp_path: Path) -> None:
    assert "not a list of column names" in refusal(
        tmp_path / "a.csv", b"prompt,completion,prompt \np,c,x\n"
    )


def test_the_index_that_pandas_writes_needs_no_note(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",prompt,completion\n0,p,c\n1,p,c\n")
    reader = ExampleReader(tmp_path / "a.csv")
    assert len(list(reader)) == 2 and reader.notes() == []


def test_a_text_of_one_column_keeps_its_marks(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"a, b; c"\nd|e\n')
    assert [example.text for example in ExampleReader(tmp_path / "a.csv")] == ["a, b; c", "d|e"]


# Encodings ---------------------------------------------------------------------------------------

FILES: list[tuple[str, str]] = [
    ("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)),
    ("a.json", json.dumps(ROWS, ensure_ascii=False, indent=1)),
    ("b.jsonl", json.dumps(ROWS, ensure_ascii=False)),
    ("b.json", "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS)),
    ("a.csv", "prompt;completion\n" + "".join(f"{row['prompt']};{row['completion']}\n" for row in ROWS)),
    ("a.tsv", "prompt\tcompletion\n" + "".join(f"{row['prompt']}\t{row['completion']}\n" for row in ROWS)),
]  # fmt: skip
WHOLE = [[row["prompt"], row["completion"]] for row in ROWS]


@pytest.mark.parametrize(("name", "text"), FILES, ids=[case[0] for case in FILES])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_with_a_byte_order_mark_are_read(
    tmp_path: Path, name: str, text: str, encoding: str, packed: bool
) -> None:
    data = (BOM + text).encode(encoding) if encoding == "utf-16-be" else text.encode(encoding)
    path = tmp_path / (f"{name}.gz" if packed else name)
    assert pairs(path, gzip.compress(data) if packed else data) == WHOLE
    reader = RecordReader(path)
    list(reader)
    told = f"'{path.name}' is UTF-16 text, and is read as such."
    assert (told in reader.notes) is encoding.startswith("utf-16")


def test_a_long_text_in_utf_16_is_read_whole(tmp_path: Path) -> None:
    rows = [{"text": f"{n} 🦊 ß " * 2000} for n in range(30)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(text.encode("utf-16"))
    assert [value for _, value in RecordReader(tmp_path / "a.jsonl")] == rows


def test_half_of_a_pair_in_utf_16_costs_its_row(tmp_path: Path) -> None:
    data = (
        codecs.BOM_UTF16_LE
        + '{"text": "a"}\n{"text": "'.encode("utf-16-le")
        + b"\x3d\xd8"
        + '"}\n{"text": "b"}\n'.encode("utf-16-le")
    )
    (tmp_path / "a.jsonl").write_bytes(data)
    reader = ExampleReader(tmp_path / "a.jsonl", ReadOptions(on_invalid_row="skip"))
    assert [example.text for example in reader] == ["a", "b"]
    assert reader.reasons.groups[0].row == 2


SPOKEN = [
    ("Windows-1252", "cp1252", "Wo wohnt Frau Müller? In der Großen Straße – „links“."),
    ("Windows-1251", "cp1251", "Где живёт Анна? На улице Мира."),
    ("Shift-JIS", "shift_jis", "こんにちは、お元気ですか。"),
    ("GB18030", "gb18030", "你好，今天天气很好。"),
    ("EUC-KR", "euc_kr", "안녕하세요 반갑습니다"),
]


@pytest.mark.parametrize(("name", "codec", "text"), SPOKEN, ids=[case[0] for case in SPOKEN])
@pytest.mark.parametrize("file", ["a.csv", "a.jsonl", "a.json"])
def test_another_encoding_is_named_once_with_how_to_convert_it(
    tmp_path: Path, name: str, codec: str, text: str, file: str
) -> None:
    rows = [{"prompt": f"{text} {n}", "completion": text} for n in range(30)]
    if file == "a.csv":
        written = "prompt;completion\n" + "".join(f"{row['prompt']};{text}\n" for row in rows)
    elif file == "a.jsonl":
        written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        written = json.dumps(rows, ensure_ascii=False)
    message = refusal(tmp_path / file, written.encode(codec))
    assert (
        message.count(f"the text seems to be {name}") == 1
        and " and 29 more: is not UTF-8" in message
    )
    assert message.endswith(f"iconv -f {name.upper()} -t UTF-8 OLD > NEW."), message
    assert str(tmp_path) not in message, "the folder is nobody's business"


def test_a_header_in_another_encoding_is_told_in_the_same_way(tmp_path: Path) -> None:
    message = refusal(tmp_path / "a.csv", "Straße,Antwort\np,c\n".encode("cp1252"))
    assert "row 1: is not UTF-8: byte 0xdf" in message and "iconv -f WINDOWS-1252" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"plain",
        b"\xe2\x82",
        b"\xc0\xaf",
        b"\xff\xfe\x00",
        bytes(range(128, 256)),
        b"\xf0\x9f\xa6",
    ],
)
def test_what_fits_nothing_is_not_named(data: bytes) -> None:
    assert encodings.guess(data) == ""


# JSON under another name -------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
def test_a_json_list_is_read_whatever_it_is_called(
    tmp_path: Path, name: str, indent: int | None
) -> None:
    rows = [{"text": "x" * 3000}, {"text": "y" * 5000}, {"text": 5}]
    data = json.dumps(rows, indent=indent).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    reader = ExampleReader(path, ReadOptions(on_invalid_row="skip"))
    assert [len(example.text) for example in reader] == [3000, 5000]
    assert reader.reasons.groups[0].row == 3
    assert reader.notes() == [
        f"'{name}' holds a JSON list, not a row in each line, and is read as such."
    ]


def test_lines_of_lists_are_rows(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]
        for n in range(3)
    ]
    data = "".join(json.dumps(row) + "\n" for row in turns).encode()
    assert pairs(tmp_path / "a.jsonl", data) == [["q0", "a"], ["q1", "a"], ["q2", "a"]]
    assert pairs(tmp_path / "b.json", json.dumps(turns).encode()) == [
        ["q0", "a"],
        ["q1", "a"],
        ["q2", "a"],
    ]


def test_rows_in_lines_under_json_are_read_and_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    reader = ExampleReader(tmp_path / "a.json")
    assert [example.text for example in reader] == ["a", "b"]
    assert reader.notes() == [
        "'a.json' holds a row in each line, not a JSON list, and is read as such."
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_spec_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "spec.json").write_text('{"name": "Größe"}', encoding=encoding)
    assert load_json(tmp_path / "spec.json", 1000) == {"name": "Größe"}
    with pytest.raises(json_text.BadJson, match="not UTF-16"):
        json_text.parse(codecs.BOM_UTF16_LE + b"{\0}")


# Names of uploads --------------------------------------------------------------------------------

NAMES = [
    ("chats (1).jsonl", "chats-1.jsonl"),
    ("Größe & Maß.csv", "Groe-Ma.csv"),
    ("данные.jsonl", "upload.jsonl"),
    ("聊天.json.gz", "upload.json.gz"),
    ("café ☕ final.CSV", "cafe-final.csv"),
    ("../../etc/x.jsonl", "x.jsonl"),
    ("C:\\Users\\me\\chats.jsonl", "chats.jsonl"),
    ("a\0b\n.jsonl", "a-b.jsonl"),
    (".jsonl", "upload.jsonl"),
    ("--rf.jsonl", "rf.jsonl"),
    (".hidden.jsonl", "hidden.jsonl"),
    ("x" * 300 + ".parquet", "x" * 88 + ".parquet"),
]


@pytest.mark.parametrize(("name", "kept"), NAMES, ids=[case[1][:20] for case in NAMES])
def test_an_upload_of_any_name_is_kept_under_a_safe_one_that_is_told(
    lab_home: Path, name: str, kept: str
) -> None:
    added = catalog.add(name, [b"x"])
    assert added.id == f"upload:{kept}" and catalog.resolve(added.id).path.read_bytes() == b"x"
    assert catalog.renamed(name, added).endswith(f" is kept as '{kept}'.")
    again = catalog.add(name, iter([b"y"]))
    stem, _, ending = kept.partition(".")
    assert again.id == f"upload:{stem}-2.{ending}", "a safe name that is taken gets a number"
    assert added.path.read_bytes() == b"x" and again.path.read_bytes() == b"y"
    assert sorted(path.name for path in catalog.uploads_folder().iterdir()) == sorted(
        [kept, again.path.name]
    )


def test_a_name_that_is_safe_already_is_kept_or_refused(lab_home: Path) -> None:
    added = catalog.add("chats.jsonl", [b"x"])
    assert catalog.renamed("chats.jsonl", added) == ""
    with pytest.raises(LabError, match="already"):
        catalog.add("chats.jsonl", [b"y"])
    assert catalog.add("dir/chats.jsonl", [b"y"]).id == "upload:chats-2.jsonl"


def test_a_csv_writer_and_the_reader_agree(tmp_path: Path) -> None:
    import csv

    rows = [["a;b", "c,d"], ['"x"', "two\nlines"], [" p ", "c\t"]]
    for mark in ",;\t|":
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=mark).writerows([["prompt", "completion"], *rows])
        assert pairs(tmp_path / "a.csv", out.getvalue().encode()) == rows, f"delimiter {mark!r}"
