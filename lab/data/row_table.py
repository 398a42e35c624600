"""A dataset's rows as a table of text to search and edit, and the edited rows as records again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import json_text
from lab.data.readers import InvalidRow, RecordReader

MAX_ROWS = 2000
MAX_CHARACTERS = 8_000_000
SECONDS = 3.0
MESSAGES, SYSTEM = "messages", "system"
TURNS = ("user", "assistant")
MAX_TURNS = 8  # a chat with more is one cell of JSON

Record = dict[str, Any]
Cells = dict[str, str | None]


@dataclass(frozen=True)
class RowTable:
    """`numbers`: the rows as the file counts them. `is_whole`: whether these are all rows of the
    file, so that they can be stored as another one."""

    columns: tuple[str, ...]
    numbers: tuple[int, ...]
    cells: tuple[Cells, ...]
    records: tuple[Record, ...]
    has_turns: bool  # chats have a column for each turn
    is_whole: bool

    def matching(self, query: str) -> list[int]:
        """The indices of the rows that hold every word of the query."""
        words = query.lower().split()
        return [
            index
            for index, cells in enumerate(self.cells)
            if all(word in "\n".join(filter(None, cells.values())).lower() for word in words)
        ]


def read_table(path: Path) -> RowTable:
    """The first rows of a file, 2,000 at most. What is no record (`InvalidRow`, a bare value) is
    left out, and the table is not whole then. Raises LabError."""
    reader = RecordReader(path, time.monotonic() + SECONDS)
    numbers: list[int] = []
    records: list[Record] = []
    characters, is_whole = 0, True
    for record_number, value in reader:
        if len(records) == MAX_ROWS or characters > MAX_CHARACTERS:
            is_whole = False
            break
        if isinstance(value, InvalidRow) or not isinstance(value, dict):
            is_whole = False
            continue
        numbers.append(record_number)
        records.append(value)
        characters += len(json.dumps(value, ensure_ascii=False, default=str))
    has_turns = bool(records) and all(_turns(record) is not None for record in records)
    cells = tuple(_cells(record, has_turns) for record in records)
    columns = tuple(dict.fromkeys(name for row in cells for name in row))
    if has_turns:
        columns = tuple(sorted(columns, key=_turn_order))
    return RowTable(
        columns, tuple(numbers), cells, tuple(records), has_turns, is_whole and reader.is_whole
    )


def _turns(record: Record) -> list[tuple[str, str]] | None:
    """(column, text) of a chat of plain turns: a system prompt perhaps, then user and assistant in
    turn. None for any other record."""
    messages = record.get(MESSAGES)
    if not isinstance(messages, list) or not messages:
        return None
    turns = []
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            return None
        if not isinstance(message["content"], str):
            return None
        turns.append((message["role"], message["content"]))
    system = turns[:1] if turns[0][0] == SYSTEM else []
    rest = turns[len(system) :]
    if len(rest) > MAX_TURNS:
        return None
    if any(role != TURNS[index % 2] for index, (role, _) in enumerate(rest)):
        return None
    named = [(f"{role} {index // 2 + 1}", text) for index, (role, text) in enumerate(rest)]
    return system + named


def _turn_order(column: str) -> tuple[int, int, int]:
    """System, user 1, assistant 1, user 2 …, then the other columns as they came."""
    role, _, position = column.partition(" ")
    if column == SYSTEM:
        return 0, 0, 0
    if role in TURNS and position.isdecimal():
        return 1, int(position), TURNS.index(role)
    return 2, 0, 0


def _cells(record: Record, has_turns: bool) -> Cells:
    turns = dict(_turns(record) or []) if has_turns else {}
    others = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in record.items()
        if not (has_turns and name == MESSAGES)
    }
    return {**turns, **others}


def edited_records(
    table: RowTable, changes: Mapping[int, Cells], dropped: Iterable[int]
) -> tuple[list[Record], list[str]]:
    """(the records without those `dropped`, with the changed cells; what is wrong with a change).

    Rows are indices of the table. A cell that held text stays text; one that held another value
    (a number, a list) is read as JSON. An emptied cell loses its key.
    """
    left_out = set(dropped)
    records, problems = [], []
    for index, record in enumerate(table.records):
        if index in left_out:
            continue
        cells = {
            name: text
            for name, text in changes.get(index, {}).items()
            if text != table.cells[index].get(name)
        }
        if cells:
            record_number = table.numbers[index]
            record, wrong = _edited(record, table.cells[index], cells, table.has_turns)
            problems += [f"Row {record_number}, {message}" for message in wrong]
        records.append(record)
    return records, problems


def _edited(
    record: Record, before: Cells, changed: Cells, has_turns: bool
) -> tuple[Record, list[str]]:
    edited, problems = dict(record), []
    if has_turns:
        cells = before | changed
        columns = sorted((name for name in cells if _turn_order(name)[0] < 2), key=_turn_order)
        turns = [(name.partition(" ")[0], cells[name] or "") for name in columns]
        while turns and not turns[-1][1].strip() and len(turns) > 1:
            turns.pop()  # an emptied end
        problems += [
            f"{name}: the turn is empty. Fill it in, or drop the row."
            for name, (role, text) in zip(columns, turns, strict=False)
            if not text.strip() and role != SYSTEM
        ]
        edited[MESSAGES] = [
            {"role": role, "content": text} for role, text in turns if text or role != SYSTEM
        ]
        changed = {name: text for name, text in changed.items() if name not in columns}
    for name, text in changed.items():
        old = record.get(name)
        if text is None or text == "":
            edited.pop(name, None)
        elif old is None or isinstance(old, str):
            edited[name] = text
        else:
            try:
                edited[name] = json_text.parse(text)
            except json_text.BadJson as error:
                problems.append(f"{name}: not valid JSON ({error}).")
    return edited, problems


def as_lines(records: list[Record]) -> Iterable[bytes]:
    """The records as a JSONL file."""
    for record in records:
        yield (json.dumps(record, ensure_ascii=False) + "\n").encode()
