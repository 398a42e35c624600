# ruff: noqa: E501 (one case a line)
"""Bad input: file, row and reason are named, and the good rows are usable on request."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lab.data import readers
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.errors import LabError

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
GOOD_LINE = json.dumps(GOOD).encode()
PAIR = {"prompt": "p", "completion": "c"}


def turns(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def lines(*rows: Any) -> bytes:
    """JSONL; bytes stay as they are."""
    return (
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        + b"\n"
    )


U, A = ("user", "q"), ("assistant", "a")
DEEP = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

# (file name, content, number of the bad row, reason, good rows that are left)
ROWS: list[tuple[str, str, bytes, int, str, int]] = [
    ("latin-1", "a.jsonl", lines(GOOD, b'{"text": "caf\xe9"}', GOOD), 2, "not UTF-8: byte 0xe9", 2),
    ("cut UTF-8", "a.jsonl", lines(GOOD, b'{"text": "\xe2\x82'), 2, "not UTF-8: byte 0xe2", 1),
    ("overlong UTF-8", "a.jsonl", lines(GOOD, b'{"text": "\xc0\xaf"}'), 2, "not UTF-8", 1),
    ("a long line", "a.jsonl", lines(GOOD, b"x" * 5000, GOOD), 2, "longer than 4,000 bytes", 2),
    ("a long last line", "a.jsonl", lines(GOOD, GOOD) + b"y" * 9000, 3, "longer than", 2),
    ("deep nesting", "a.jsonl", lines(GOOD, DEEP[:3900]), 2, "nested too deeply", 1),
    ("no JSON", "a.jsonl", lines(GOOD, b"hello"), 2, "not JSON (Expecting value", 1),
    ("cut JSON", "a.jsonl", lines(GOOD, b'{"messages": ['), 2, "not JSON", 1),
    ("two values", "a.jsonl", lines(GOOD, GOOD_LINE + GOOD_LINE), 2, "Extra data", 1),
    ("single quotes", "a.jsonl", lines(GOOD, b"{'text': 'x'}"), 2, "not JSON", 1),
    ("a huge number", "a.jsonl", lines(GOOD, b'{"a": ' + b"9" * 5000 + b"}"), 2, "longer", 1),
    ("an unknown role", "a.jsonl", lines(GOOD, turns(("wizard", "x"), A)), 2, "role 'wizard'", 1),
    ("a role that is none", "a.jsonl", lines(GOOD, turns((5, "x"), A)), 2, "the role 5", 1),
    ("no role", "a.jsonl", lines(GOOD, {"messages": [{"content": "x"}]}), 2, "the role null", 1),
    ("no answer", "a.jsonl", lines(GOOD, turns(U)), 2, "no assistant turn to learn from", 1),
    ("an empty turn", "a.jsonl", lines(GOOD, turns(("user", ""), A)), 2, "message 1 (user): 'c", 1),
    ("an empty answer", "a.jsonl", lines(GOOD, turns(U, ("assistant", " \n"))), 2, "has no text", 1),
    ("null content", "a.jsonl", lines(GOOD, turns(U, ("assistant", None))), 2, "null, not text", 1),
    ("parts as content", "a.jsonl", lines(GOOD, turns(U, ("assistant", [1]))), 2, "holds 1, not a part with text", 1),
    ("no content", "a.jsonl", lines(GOOD, {"messages": [{"role": "user"}]}), 2, "no 'content'", 1),
    ("no messages", "a.jsonl", lines(GOOD, {"messages": []}), 2, "has no messages", 1),
    ("messages as text", "a.jsonl", lines(GOOD, {"messages": "hello"}), 2, "'messages' is 'hello', which is not JSON", 1),
    ("null messages", "a.jsonl", lines(GOOD, {"messages": None}), 2, "has no messages", 1),
    ("a turn that is text", "a.jsonl", lines(GOOD, {"messages": ["x"]}), 2, "not an object", 1),
    ("a row that is a list", "a.jsonl", lines(GOOD, [1, 2]), 2, "is [1, 2], not an object", 1),
    ("a row that is a number", "a.jsonl", lines(GOOD, 5), 2, "is 5, not an object", 1),
    ("a row that is null", "a.jsonl", lines(GOOD, None), 2, "is null, not an object", 1),
    ("a row that is NaN", "a.jsonl", lines(GOOD, b"NaN"), 2, "is NaN, not an object", 1),
    ("an empty object", "a.jsonl", lines(GOOD, {}), 2, "keys none; expected", 1),
    ("unknown keys", "a.jsonl", lines(GOOD, {"colour": "red"}), 2, "keys colour; expected", 1),
    ("text among chats", "a.jsonl", lines(GOOD, {"text": "x"}), 2, "is plain text, and the rows", 1),
    ("a chat among texts", "a.jsonl", lines({"text": "x"}, GOOD), 2, "is a chat, and the rows be", 1),
    ("a null prompt", "a.jsonl", lines(PAIR, {**PAIR, "prompt": None}), 2, "'prompt' is null", 1),
    ("NaN for text", "a.jsonl", lines(PAIR, b'{"prompt": "p", "completion": NaN}'), 2, "NaN, not text", 1),
    ("true for text", "a.jsonl", lines(PAIR, {**PAIR, "completion": True}), 2, "is true, not t", 1),
    ("an empty completion", "a.jsonl", lines(PAIR, {**PAIR, "completion": ""}), 2, "has no text", 1),
    ("a NaN label", "a.jsonl", lines({"text": "t", "label": "l"}, b'{"text": "t", "label": NaN}'), 2, "NaN, not text", 1),
    ("a null label", "a.jsonl", lines({"text": "t", "label": 1}, {"text": "t", "label": None}), 2, "null", 1),
    ("a number as text", "a.jsonl", lines({"text": "x"}, {"text": 5}), 2, "'text' is 5, not text", 1),
    ("an object as text", "a.jsonl", lines({"text": "x"}, {"text": {"a": 1}}), 2, "not text", 1),
    ("a NUL character", "a.jsonl", lines({"text": "x"}, {"text": "a\0b"}), 2, "NUL character", 1),
    ("half a pair", "a.jsonl", lines({"text": "x"}, b'{"text": "\\ud83d"}'), 2, "half of a Unic", 1),
    ("an answer out of range", "a.jsonl", lines({"question": "q", "choices": ["a", "b"], "answer": 1}, {"question": "q", "choices": ["a", "b"], "answer": 7}), 2, "none of the 2 choices", 1),
    ("one choice", "a.jsonl", lines({"question": "q", "choices": ["a", "b"], "answer": 1}, {"question": "q", "choices": ["a"], "answer": 0}), 2, "no list of choices", 1),
    ("a tree without answers", "a.jsonl", lines({"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}}, {"prompt": {"role": "prompter", "text": "q", "replies": []}}), 2, "no assistant turn", 1),
    ("a tree with an odd role", "a.jsonl", lines({"prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}}, {"prompt": {"role": "x", "text": "q", "replies": [{"role": "assistant", "text": "a"}]}}), 2, "the role 'x'", 1),
    ("too few fields", "a.csv", b"prompt,completion\np,c\nonly\np,c\n", 3, "has 1 field, the first", 2),
    ("too many fields", "a.csv", b"prompt,completion\np,c\na,b,c\n", 3, "has 3 fields", 1),
    ("a stray quote", "a.csv", b'prompt,completion\np,c\nsay "x,c\np,c\nq,d\n', 3, "a quote is op", 3),
    ("a broken quote", "a.csv", b'prompt,completion\np,c\n"say" x,c\np,c\n', 3, "not CSV", 2),
    ("an empty field", "a.csv", b"text,label\nt,l\nt,\n", 3, "'label' has no text", 1),
    ("latin-1 in a CSV", "a.csv", b"prompt,completion\np,c\ncaf\xe9,c\np,c\n", 3, "byte 0xe9", 2),
    ("a bad entry of a list", "a.json", json.dumps([GOOD, {"text": 1}, GOOD]).encode(), 2, "1, not", 2),
    ("a long entry of a list", "a.json", json.dumps([{"text": "x"}, {"text": "y" * 5000}, {"text": "z"}]).encode(), 2, "longer than 4,000", 2),
    ("latin-1 in a text", "a.txt", b"one\n\ncaf\xe9\n\ntwo\n", 3, "byte 0xe9", 1),
    ("a cut gzip", "a.jsonl.gz", gzip.compress(lines(*[{"text": str(n) * 50} for n in range(900)]))[:-900], 0, "the gzip data are damaged", -1),
    ("a bad line in a gzip", "a.jsonl.gz", gzip.compress(lines(GOOD, b"{", GOOD)), 2, "not JSON", 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "row", "reason", "left"),
    [case[1:] for case in ROWS],
    ids=[case[0] for case in ROWS],
)
def test_a_bad_row_is_named_and_the_others_are_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    data: bytes,
    row: int,
    reason: str,
    left: int,
) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 4000)
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(LabError) as caught:
        list(ExampleReader(path))
    message = str(caught.value)
    assert path.name in message and reason in message and "data.on_invalid_row" in message
    rows = ExampleReader(path, ReadOptions(on_invalid_row="skip"))
    items = list(rows)
    assert (
        len(items) == rows.num_valid
        and rows.num_invalid == sum(g.count for g in rows.reasons.groups) >= 1
    )
    if row:
        assert (len(items), rows.reasons.groups[0].row) == (left, row)
    else:
        assert items, "what could be unpacked is there"


WHOLE: list[tuple[str, str, bytes, str]] = [
    ("empty", "a.jsonl", b"", "is empty"),
    ("blank lines", "a.jsonl", b"\n \n", "is empty"),
    ("an empty CSV", "a.csv", b"", "is empty"),
    ("only a header", "a.csv", b"prompt,completion\n", "is empty"),
    ("an empty list", "a.json", b"[]", "is empty"),
    ("an empty text", "a.txt", b" \n\n", "is empty"),
    ("UTF-32", "a.jsonl", "x".encode("utf-32"), "is UTF-32 text"),
    (
        "UTF-16 without its mark",
        "a.csv",
        "a,b\nc,d\n".encode("utf-16-le"),
        "as UTF-16 without a byte order",
    ),
    ("half a character of UTF-16", "a.jsonl", b'\xff\xfe{\0"', "is UTF-16 text that ends within"),
    ("a zip", "a.jsonl", b"PK\x03\x04....", "is a zip archive"),
    ("a zip in a gzip", "a.csv.gz", gzip.compress(b"PK\x03\x04...."), "is a zip archive"),
    ("bytes", "a.txt", b"\x7fELF\0\0\0", "holds NUL bytes"),
    ("a PDF", "a.txt", b"%PDF-1.7", "is a PDF"),
    ("no Parquet", "a.parquet", b"hello there, I am text", "is not Parquet"),
    ("half a list", "a.json", b'[{"text": "x"}, {"te', "not valid JSON after row 1"),
    ("one object", "a.json", b'{"text": "x"}', "Give a JSON list"),
    ("a number", "a.json", b"5", "Give a JSON list"),
    ("a column twice", "a.csv", b"text,text\na,b\n", "not a list of column names"),
    ("a column without a name", "a.csv", b"text,\na,b\n", "has 2 fields, the first line names 1"),
    ("no column with a name", "a.csv", b",,\na,b,c\n", "not a list of column names"),
]


@pytest.mark.parametrize(
    ("name", "data", "says"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE]
)
@pytest.mark.parametrize("on_invalid_row", ["refuse", "skip"])
def test_a_file_that_is_no_dataset(
    tmp_path: Path, name: str, data: bytes, says: str, on_invalid_row: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(LabError) as caught:
        list(ExampleReader(path, ReadOptions(on_invalid_row=on_invalid_row)))
    assert says in str(caught.value) and path.name in str(caught.value)


def test_a_gzip_bomb_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BOMB_BYTES", 200_000)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 200_000))
    with pytest.raises(LabError, match="more than 200 times its size"):
        list(ExampleReader(path, ReadOptions(on_invalid_row="skip")))
    harmless = tmp_path / "b.jsonl.gz"
    harmless.write_bytes(gzip.compress(b"".join(b'{"text": "%d"}\n' % n for n in range(15_000))))
    assert len(list(ExampleReader(harmless))) == 15_000


HARMLESS = [
    "<script>alert('x')</script> <b>bold</b> &amp; {{slot}} [link](http://x)",
    "שלום עולם \u202e abc \u202c مرحبا",
    "👩‍👩‍👧‍👦 🇪🇺 e\u0301 ﷽ 𝔘𝔫𝔦",
    "bell \x07 tab \t escape \x1b[31m return \r end",
    "a" * 20_000,
    "x",
]


@pytest.mark.parametrize("text", HARMLESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_odd_but_honest_text_comes_through_as_it_is(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    row = {"prompt": text, "completion": f"{text}!"}
    if name.endswith("csv"):
        import csv
        import io

        out = io.StringIO(newline="")
        csv.writer(out).writerows([list(row), list(row.values())])
        data = b"\xef\xbb\xbf" + out.getvalue().encode()
    else:
        data = json.dumps([row] if name == "a.json" else row, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (example,) = ExampleReader(path)
    assert [turn["content"] for turn in example.messages] == [text, f"{text}!"]
