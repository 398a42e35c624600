"""Reading datasets: shapes that are known, and bad rows named with file, row and reason."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lab.data import catalog
from lab.data.example_reader import ExampleReader, read_examples
from lab.errors import LabError


def file_of(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "asked", "answered"),
    [
        ({"instruction": "Add", "input": "", "output": "1"}, "Add", "1"),
        ({"instruction": "Add", "input": "2", "output": "1"}, "Add\n\n2", "1"),
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"question": "q", "answer": "a"}, "q", "a"),
        ({"text": "t", "label": "l"}, "t", "l"),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
            "h",
            "g",
        ),
    ],
)
def test_every_shape_becomes_the_same_chat(
    tmp_path: Path, row: dict[str, Any], asked: str, answered: str
) -> None:
    (example,) = read_examples(file_of(tmp_path, row))
    assert [message["role"] for message in example.messages] == ["user", "assistant"]
    assert [message["content"] for message in example.messages] == [asked, answered]


def test_bad_rows_whose_reasons_are_not_shown_are_counted(tmp_path: Path) -> None:
    reader = ExampleReader(file_of(tmp_path, {"text": "once"}))
    for row, reason in enumerate(["a", "b", "b", "c", "d", "e", "f", "f", "f", "g"], 1):
        reader.refuse(row, f"is {reason}")
    assert reader.invalid_summary() == (
        "row 1: is a; row 2 and 1 more: is b; row 4: is c; row 5: is d; row 6: is e; and 4 more"
    )


def test_text_stays_text(tmp_path: Path) -> None:
    (example,) = read_examples(file_of(tmp_path, {"text": "once upon"}))
    assert example.text == "once upon" and example.messages == ()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"messages": []}, "has no messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "the role 'wizard'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": ""}]}, "message 1 (user): 'content' has no"),
        ({"messages": [{"role": "user", "content": None}]}, "null, not text"),
        ({"messages": "hello"}, "'messages' is 'hello', which is not JSON"),
        ({"messages": ["hello"]}, "not an object"),
        ({"text": "  "}, "'text' has no text"),
        ({"text": 5}, "'text' is 5, not text"),
        ({"colour": "red"}, "keys colour; expected"),
        ([1, 2], "not an object"),
        (None, "not an object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, says: str) -> None:
    path = file_of(tmp_path, {"text": "fine"}, row)
    with pytest.raises(LabError) as caught:
        read_examples(path)
    assert f"row 2: {says}" in str(caught.value) or says in str(caught.value)
    assert "1 of 2 rows" in str(caught.value)


def test_many_bad_rows_are_counted_not_listed(tmp_path: Path) -> None:
    path = file_of(tmp_path, *[{"text": ""}] * 50)
    with pytest.raises(LabError, match=r"50 of 50 rows .*: row 1 and 49 more: 'text' has no text"):
        read_examples(path)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"text": "caf\xe9"}\n', "is not UTF-8: byte 0xe9"),
        (b'{"text": "x"\n', "not JSON"),
        (b'"' + b"[" * 50_000 + b"\n", "not JSON"),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    with pytest.raises(LabError, match=says):
        read_examples(path)


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "x"}\n')
    assert len(read_examples(path)) == 1


def test_a_json_list_and_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": str(number)} for number in range(9)]))
    assert len(read_examples(path, limit=4)) == 4
    path.write_text('{"text": "x"}')
    with pytest.raises(LabError, match="Give a JSON list"):
        read_examples(path)


def test_built_in_datasets_are_whole() -> None:
    datasets = catalog.built_in()
    assert {row.id for row in datasets} >= {
        "builtin:persona-chats",
        "builtin:everyday-instructions",
        "builtin:support-tickets",
    }
    for dataset in datasets:
        examples = read_examples(dataset.path)
        assert len(examples) == dataset.card["rows"]
        assert dataset.card["license"] == "Apache-2.0"
        asked = [example.messages[:-1] or example.text for example in examples]
        assert len({repr(request) for request in asked}) == len(asked), (
            "a prompt stands there twice"
        )


GENERATED = ["support-tickets", "text-to-shell", "order-extraction", "glossary"]


@pytest.mark.parametrize("name", [*GENERATED, "common-knowledge", "made-up-facts"])
def test_a_generated_set_comes_out_of_its_generator(name: str) -> None:
    folder = catalog.ASSETS / "datasets"
    rows = runpy.run_path(str(folder / f"make_{name.replace('-', '_')}.py"))["rows"]()
    parts = rows if isinstance(rows, tuple) else (rows,)
    for ending, part in zip(("", ".held-out"), parts, strict=False):
        stored = (folder / f"{name}{ending}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in stored] == part


def test_no_set_teaches_a_manner_instead_of_a_task() -> None:
    """Answers differ, and no opening of five words begins more than an eighth of the prompts."""
    for dataset in catalog.built_in():
        chats = [example.messages for example in read_examples(dataset.path) if example.messages]
        if not chats:
            continue
        texts = {messages[-1]["content"] for messages in chats}
        assert len(texts) >= min(12, len(chats)), dataset.id
        begins = Counter(" ".join(chat[-2]["content"].lower().split()[:5]) for chat in chats)
        assert begins.most_common(1)[0][1] <= max(2, len(chats) / 8), (dataset.id, begins)


def test_other_seeds_make_other_worlds() -> None:
    script_globals = runpy.run_path(str(catalog.ASSETS / "datasets" / "make_made_up_facts.py"))
    first, second = (script_globals["rows"](seed=seed, each=10)[0] for seed in (1, 2))
    assert first == script_globals["rows"](seed=1, each=10)[0] != second
    train, held = script_globals["rows"]()
    assert {row["fact"] for row in held} == {row["fact"] for row in train}
    assert not {row["question"] for row in held} & {row["question"] for row in train}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "builtin:nothing",
            "Choose one of: builtin:common-knowledge, builtin:everyday-instructions",
        ),
        ("nothing", "Unknown dataset 'nothing'"),
        ("/missing/file.jsonl", "does not exist"),
        ("/etc/passwd", "Unknown dataset"),
    ],
)
def test_unknown_datasets(name: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        catalog.resolve(name)
