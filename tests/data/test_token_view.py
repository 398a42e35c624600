"""What a person is shown of tokens is what the model sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lab.atomic_files import read_object
from lab.data import format_detection, token_view
from lab.data.batches import TokenSequence, TrainingOrder, packed_rows, single_rows
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample
from lab.data.preview_types import Detection
from lab.paths import RunDir
from tests.conftest import write_rows

TOKENS = [
    TokenizedExample(
        [10 + n, 20 + n, 30 + n][: 2 + n % 2],
        [IGNORE_INDEX, 20 + n, 30 + n][: 2 + n % 2],
        record_number=n,
    )
    for n in range(12)
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def test_the_first_batch_is_the_first_of_the_stream(run: RunDir, words: Any) -> None:
    stream = TrainingOrder(single_rows(TOKENS), seed=3)
    token_view.keep_first_batch(run, stream, 3, words)
    kept = read_object(run.first_batch) or {}
    assert kept["batch_size"] == 3 and len(kept["rows"]) == 3
    for place, shown in enumerate(kept["rows"]):
        row = stream[place]
        assert [token["id"] for token in shown["tokens"]] == row.ids
        assert [token["text"] for token in shown["tokens"]] == [
            f"w{token_id - 2}" for token_id in row.ids
        ]
        counted = [label != IGNORE_INDEX for label in row.labels]
        assert [token["counted"] for token in shown["tokens"]] == counted
        assert (shown["length"], shown["counted"]) == (len(row.ids), sum(counted))
        assert (shown["lengths"], shown["sources"]) == ([len(row.ids)], list(row.sources))


def test_eight_rows_are_kept_at_most_and_only_once(run: RunDir, words: Any) -> None:
    token_view.keep_first_batch(run, TrainingOrder(single_rows(TOKENS), 0), 12, words)
    content = run.first_batch.read_bytes()
    found = read_object(run.first_batch) or {}
    assert found["batch_size"] == 12 and len(found["rows"]) == 8
    token_view.keep_first_batch(run, TrainingOrder(single_rows(TOKENS), 1), 12, words)
    assert run.first_batch.read_bytes() == content, "a resumed run began with it, too"


def test_a_packed_row_says_what_is_packed_in_it(words: Any) -> None:
    (row,) = packed_rows(TOKENS[:3], 16)
    shown = token_view.row(words, row)
    assert shown.lengths == (3, 2, 2) and shown.sources == (1, 0, 2)
    assert [token.counted for token in shown.tokens] == [
        False, True, True, False, True, False, True,
    ]  # fmt: skip


def test_of_a_long_row_the_beginning_is_kept(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_view, "MAX_TOKENS", 2)
    shown = token_view.row(
        words, TokenSequence([5, 6, 7], [IGNORE_INDEX, IGNORE_INDEX, 7], (3,), (1,))
    )
    assert [token.id for token in shown.tokens] == [5, 6]
    assert (shown.length, shown.counted) == (3, 1), "of the whole row"


def test_letters_of_several_tokens_stand_at_the_last(tokenizer: Any) -> None:
    ids = tokenizer("🙂a")["input_ids"]
    shown = [piece.text for piece in token_view.pieces(tokenizer, ids, ids)]
    assert len(ids) > 2 and shown == [""] * (len(ids) - 2) + ["🙂", "a"]


def test_a_preview_looks_at_the_first_good_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"ask": "a", "say": "b"}, {"ask": "a", "more": "c"}, *[{"ask": "x"}] * 3, {"late": 1}]
    write_rows(file, rows)
    file.write_text("no JSON\n" + file.read_text())
    detection = format_detection.detected(str(file))
    assert detection.names == ("ask", "more", "say"), "of the first five that can be read"
    assert detection.format == "" and "keys ask, say" in detection.why
    write_rows(file, [{"question": "q", "answer": "a", "id": 1}])
    assert format_detection.detected(str(file)) == Detection(
        "question-answer",
        {"prompt": "question", "completion": "answer"},
        ("answer", "id", "question"),
    )
