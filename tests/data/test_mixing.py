"""From a spec to rows: what is mixed in, what is held out, and which settings hold for which."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab.data import prepare, token_cache
from lab.data.batches import TokenSequence
from lab.data.catalog import Dataset
from lab.data.chat_template import IGNORE_INDEX
from lab.spec import RunSpec
from tests.conftest import write_rows

Prepare = Callable[..., prepare.PreparedData]


def pairs(count: int, first: int, answer: str = "w90") -> list[dict[str, str]]:
    return [{"prompt": f"w{first + n}", "completion": answer} for n in range(count)]


@pytest.fixture
def ready(words: Any, tmp_path: Path) -> Prepare:
    """Prepare rows of one's own with the settings given; lists of rows become files."""

    def make(rows: Any, **data: Any) -> prepare.PreparedData:
        data["dataset"] = rows
        for key, value in data.items():
            if isinstance(value, list):
                file = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
                write_rows(file, value)
                data[key] = str(file)
        settings = {"max_length": 32, "packing": "off", "eval_fraction": 0.0, **data}
        return prepare.prepare(RunSpec.from_json({"data": settings}), words)

    return make


def texts(words: Any, rows: Sequence[TokenSequence]) -> list[str]:
    return [words.decode(row.ids) for row in rows]


@pytest.mark.parametrize(
    ("own", "share", "general"), [(20, 0.5, 20), (30, 0.25, 10), (9, 0.1, 1), (8, 0.8, 32)]
)
def test_the_share_of_general_text_is_of_all_rows(
    ready: Prepare, words: Any, own: int, share: float, general: int
) -> None:
    prepared = ready(pairs(own, 0), general_fraction=share, general_dataset=pairs(40, 40, "w91"))
    counts = Counter("w91" in text for text in texts(words, prepared.train))
    assert (counts[False], counts[True]) == (own, general) == (own, prepared.figures.general_rows)
    assert counts[True] / counts.total() == pytest.approx(share)


def test_general_rows_are_the_same_in_every_run_and_none_twice_before_all(
    ready: Prepare, words: Any
) -> None:
    settings = {"general_fraction": 0.5, "general_dataset": pairs(8, 40, "w91")}
    drawn = []
    for seed in (1, 2):
        random.seed(seed)
        prepared = ready(pairs(20, 0), **settings)
        drawn.append([text for text in texts(words, prepared.train) if "w91" in text])
    assert drawn[0] == drawn[1], "whatever the state of the process's own generator"
    counts = Counter(drawn[0])
    assert len(drawn[0]) == 20 and set(counts.values()) == {2, 3} and len(counts) == 8


def test_general_rows_follow_the_runs_terms_of_loss_and_length_only(
    ready: Prepare, words: Any, tmp_path: Path
) -> None:
    """Not its columns, slots or system prompt; bad rows of a foreign set are left out; rows that
    are nothing but question cannot be learned from."""
    general: list[Any] = [
        {"prompt": "w40 {{name}}", "completion": "w91 " * 9},
        {"prompt": "w41", "completion": {"a": 5}},
        {"prompt": "w42 " * 40, "completion": "w91"},
    ]
    own = [{"ask": f"w{n}", "say": "w90"} for n in range(4)]
    prepared = ready(
        own, columns={"prompt": "ask", "completion": "say"}, slots={"name": "w99"},
        system_prompt="w80", general_fraction=0.5, general_dataset=general, max_length=12,
    )  # fmt: skip
    rows = list(prepared.train)
    mixed = [row for row in rows if "w91" in words.decode(row.ids)]
    assert len(rows) == 8 and len(mixed) == 4, "the one row that can be used, four times"
    for row in mixed:
        text = words.decode(row.ids)
        assert "w80" not in text and row.tokens == 12
        learned = words.decode([label for label in row.labels if label != IGNORE_INDEX])
        assert set(learned.split()) == {"w91"}, "only what the assistant says counts"
    assert all("w80" in words.decode(row.ids) for row in rows if row not in mixed)
    whole = ready(pairs(4, 0), general_fraction=0.5, general_dataset=pairs(4, 40), loss_on="all")
    for row in whole.train:
        assert row.labels[1:] == row.ids[1:], "all of a general row counts as of the own ones"


def test_a_general_set_of_the_lab_keeps_its_own_system_prompt(
    ready: Prepare, words: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "general.jsonl"
    write_rows(file, pairs(4, 40, "w91"))
    resolve = prepare.catalog.resolve
    card = Dataset("builtin:general", file, {"system_prompt": "w77"})
    monkeypatch.setattr(
        prepare.catalog, "resolve", lambda name: card if name == card.id else resolve(name)
    )
    prepared = ready(
        pairs(4, 0), general_fraction=0.5, general_dataset=card.id, system_prompt="w80"
    )
    for text in texts(words, prepared.train):
        assert ("w77" in text, "w80" in text) == ("w91" in text, "w90" in text)


def test_the_pieces_of_a_long_text_are_held_out_together(ready: Prepare, words: Any) -> None:
    """By row of the file: a piece of what is measured may not be learned from."""
    rows = [{"text": " ".join(f"w{n}" for _ in range(100))} for n in range(10)]
    prepared = ready(rows, eval_fraction=0.3, loss_on="all")
    held = {row.sources[0] for row in prepared.held_out}
    trained = {row.sources[0] for row in prepared.train}
    assert len(held) == 3 and not held & trained and held | trained == set(range(1, 11))
    assert len(prepared.held_out) == 3 * 4, "101 tokens are four pieces of 32"
    assert prepared.figures.held_out_rows == 12 and prepared.figures.examples == 10


def test_a_held_out_set_of_its_own_leaves_all_rows_to_train(ready: Prepare, words: Any) -> None:
    prepared = ready(
        pairs(10, 0), eval_fraction=0.5, held_out=pairs(3, 50, "w91"), system_prompt="w80"
    )
    assert (prepared.figures.train_rows, prepared.figures.held_out_rows) == (10, 3)
    assert all("w80" in text and "w91" in text for text in texts(words, prepared.held_out)), (
        "measured on the terms of the training"
    )
    longer = ready(pairs(10, 0), held_out=pairs(3, 50, "w91 w92 w93"))
    assert longer.figures.longest_row == 8, "It is held out; those that train have 6 tokens."
    longer = ready(pairs(3, 50, "w91 w92 w93"), held_out=pairs(10, 0))
    assert longer.figures.longest_row == 8, "and here it trains"


def test_figures_are_of_what_they_say(ready: Prepare) -> None:
    """By hand: a turn token, a word, an end; a turn, the answer of three words, an end."""
    rows = pairs(6, 0, "w90 w91 w92")
    prepared = ready([*rows, {"prompt": "w1 " * 40, "completion": "w2"}], eval_fraction=0.4)
    kept = [*prepared.train, *prepared.held_out]
    assert {(row.tokens, row.counted) for row in kept} == {(8, 4)}
    figures = prepared.figures
    assert figures.examples == 7 and figures.truncated == figures.dropped == 1
    assert figures.train_rows + figures.held_out_rows == 6
    assert figures.train_tokens == 8 * figures.train_rows
    assert figures.train_loss_tokens == 4 * figures.train_rows
    assert figures.held_out_loss_tokens == 4 * figures.held_out_rows
    assert any("1 example without trained tokens" in note for note in prepared.notes)
    assert prepared.first.row == 1 and prepared.first.messages[0]["content"] == "w0"
    other = ready([*rows[:5], {"prompt": "w9", "completion": "w3"}], eval_fraction=0.4)
    assert prepared.figures.train_hash != prepared.figures.held_out_hash
    assert other.figures.train_hash != prepared.figures.train_hash


def test_held_out_rows_that_cannot_be_scored_are_told(ready: Prepare) -> None:
    prepared = ready(pairs(4, 0), eval_fraction=0.25, max_length=32)
    assert not any("there is no evaluation loss" in note for note in prepared.notes)
    rows = pairs(4, 0)
    held = prepared.held_out[0].sources[0]
    rows[held - 1]["prompt"] = "w5 " * 40
    prepared = ready(rows, eval_fraction=0.25)
    assert len(prepared.held_out) == 0
    assert any("there is no evaluation loss" in note for note in prepared.notes)


def test_another_template_than_the_tokenizers_own_is_told(ready: Prepare, words: Any) -> None:
    assert ready(pairs(2, 0)).notes == []
    replaced = "The tokenizer's own chat template is replaced by alpaca, which is saved with the"
    assert ready(pairs(2, 0), template="alpaca").notes[0].startswith(replaced)
    words.chat_template = None
    assert ready([{"text": "w1 w2"}]).notes == [], "A text needs none."
    words.chat_template = None
    (note,) = (note for note in ready(pairs(2, 0)).notes if "no chat template" in note)
    assert "the lab's plain one is used" in note and note.endswith("It ends with <|end|>.")


def test_progress_is_told_in_kilobytes_of_the_file(words: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_rows(file, [{**row, "note": "x" * 2000} for row in pairs(130, 0)])
    progress: list[tuple[int, int]] = []
    data = {"dataset": str(file), "eval_fraction": 0.0, "max_length": 32, "packing": "off"}
    prepare.prepare(RunSpec.from_json({"data": data}), words, lambda *at: progress.append(at))
    size = file.stat().st_size // 1000
    assert {total for _, total in progress} == {size} and progress[-1] == (size, size)
    assert progress == sorted(progress) and progress[0][0] < size


@pytest.mark.parametrize(
    ("given", "says"), [(None, "w60"), ("w61", "w61"), ("", None)], ids=["card", "own", "none"]
)
def test_the_system_prompt_is_the_specs_or_the_cards(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, says: str | None
) -> None:
    """Empty text is an answer: no system turn."""
    file = tmp_path / "a.jsonl"
    write_rows(file, pairs(2, 0))
    card = Dataset("builtin:x", file, {"system_prompt": "w60"})
    monkeypatch.setattr(prepare.catalog, "resolve", lambda name: card)
    data = {"system_prompt": given, "max_length": 32, "eval_fraction": 0.0, "packing": "off"}
    prepared = prepare.prepare(RunSpec.from_json({"data": data}), words)
    assert prepared.system_prompt == (says or "")
    shown = {text.split()[1] for text in texts(words, prepared.train)}
    assert shown == ({says} if says else {"w0", "w1"})


def test_the_spec_names_columns_before_the_card_does(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jsonl"
    write_rows(file, [{"a": "w1", "b": "w2", "c": "w3"}] * 2)
    card = Dataset("builtin:x", file, {"columns": {"prompt": "a", "completion": "b"}})
    monkeypatch.setattr(prepare.catalog, "resolve", lambda name: card)
    for columns, expected in (({}, "w1"), ({"prompt": "c", "completion": "b"}, "w3")):
        data = {"columns": columns, "eval_fraction": 0.0, "max_length": 32, "packing": "off"}
        prepared = prepare.prepare(RunSpec.from_json({"data": data}), words)
        assert texts(words, prepared.train)[0].split()[1] == expected


def test_only_the_first_rows_are_used_where_that_was_asked(ready: Prepare) -> None:
    prepared = ready(pairs(20, 0), max_examples=7)
    assert sorted(row.sources[0] for row in prepared.train) == list(range(1, 8))


def test_packing_joins_rows_only_where_it_is_on(ready: Prepare) -> None:
    for packing, most in (("off", 1), ("on", 5)):
        prepared = ready(pairs(20, 0), packing=packing)  # six tokens each, thirty-two a row
        assert max(len(row.lengths) for row in prepared.train) == most
        assert sorted(source for row in prepared.train for source in row.sources) == list(
            range(1, 21)
        )


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_that_goes_on_begins_once_and_ends_once(
    words: Any, tmp_path: Path, begins: bool
) -> None:
    """A tokenizer that writes a begin token itself: once, where the text begins."""
    from tokenizers.processors import TemplateProcessing

    if begins:
        words.bos_token = "<|turn|>"
        words.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|turn|> $A", special_tokens=[("<|turn|>", 1)]
        )
    parts = [[f"w{20 * part + n}" for n in range(20)] for part in range(3)]
    file = tmp_path / "a.jsonl"
    write_rows(
        file,
        [{"text": " ".join(part), "goes_on": number < 2} for number, part in enumerate(parts)],
    )
    data = {"dataset": str(file), "eval_fraction": 0.0, "max_length": 16, "packing": "off"}
    prepared = prepare.prepare(RunSpec.from_json({"data": data}), words)
    ids = [token for row in prepared.train for token in row.ids]
    expected = [2 + n for n in range(60)] + [0]
    assert ids == ([1, *expected] if begins else expected)
    assert {row.tokens for row in list(prepared.train)[:-1]} == {16}
    assert all(row.labels == [IGNORE_INDEX, *row.ids[1:]] for row in prepared.train)
    assert len(list(token_cache.folder().iterdir())) == 1


def test_other_sides_of_the_cut_are_other_tokens(
    ready: Prepare, words: Any, tmp_path: Path
) -> None:
    """The second run must not take what the first one left in the cache."""
    file = tmp_path / "a.jsonl"
    write_rows(file, [{"prompt": "w1 w2", "completion": " ".join(f"w{n}" for n in range(10, 40))}])
    ends = {}
    for side in ("right", "left"):
        prepared = ready(str(file), truncation=side, max_length=16)
        ends[side] = texts(words, prepared.train)[0].split()
    assert ends["right"][:3] == ["<|turn|>", "w1", "w2"]
    assert ends["left"][-2:] == ["w39", "<|end|>"]
