"""What a look at a dataset counts, told of rows whose tokens are counted by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab.data import dataset_preview, prepare
from lab.data.dataset_preview import look
from lab.data.preview_types import DatasetPreview, ExampleCounts, Padding
from lab.errors import LabError, SpecError
from tests.conftest import write_rows
from tests.methods import tiny


@pytest.fixture(scope="module")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose tokens are words: a turn takes two more."""
    folder = tmp_path_factory.mktemp("models") / "words"
    tiny.make_model("llama").save_pretrained(folder)
    tiny.make_chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def ask(word_model: Path, tmp_path: Path) -> Any:
    """`ask(rows, most=…, train={…}, **data)`: what the page is told of these rows."""

    def answer(rows: list[Any], most: int = 1000, **settings: Any) -> DatasetPreview:
        write_rows(tmp_path / "rows.jsonl", rows)
        sections = {name: settings.pop(name) for name in ("method", "train") if name in settings}
        data = {"dataset": str(tmp_path / "rows.jsonl"), "eval_fraction": 0.0, "max_length": 128}
        return look({"model": str(word_model), "data": data | settings, **sections}, most)

    return answer


def pair(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


SIXTY = [f"w{number}" for number in range(1, 61)]
SHORT = pair("w1", "w90 w91 w92")  # 3 + 5 tokens, of which the answer's 4 count
NEAR = [pair("w2", " ".join([*SIXTY[:-1], last])) for last in ("w60", "w77")]  # 3 + 62
CUT = pair("w3 " * 150, "w4")  # 152 + 3
ROWS = [{"prompt": "w5"}, SHORT, SHORT, *NEAR, CUT]


def test_every_count_is_of_what_it_says(ask: Any) -> None:
    page = ask(ROWS)
    assert page.counts == ExampleCounts(
        tokens=8 + 8 + 65 + 65 + 128, counted=4 + 4 + 61 + 61, truncated=1, without_loss=1,
        invalid_rows=1, duplicates=1, near_duplicates=1, leaks=0,
    )  # fmt: skip
    assert page.lengths == (8, 8, 65, 65, 155), "before anything is cut"
    assert (page.examples, page.is_whole, page.has_chats) == (5, True, True)
    assert [(bad.count, bad.first_row) for bad in page.invalid] == [(1, 1)]
    same, near = page.similar
    assert (same.rows, same.similarity) == ((2, 3), 1.0), "by the rows of the file"
    assert same.texts == ("w1\nw90 w91 w92",) * 2
    assert near.rows == (4, 5) and 0.8 <= near.similarity < 1
    cut = page.rows[-1]
    assert (cut.row, cut.truncated, cut.counted, len(cut.tokens)) == (6, True, 0, 128)
    assert (page.rows[0].row, page.rows[0].counted) == (2, 4)
    part = ask(ROWS, most=2)
    assert (part.examples, part.is_whole) == (2, False)


@pytest.mark.parametrize(
    "row", [{"text": "w1 " * 30_000}, pair("w1 " * 30_000, "w4")], ids=["text", "chat"]
)
def test_the_length_of_a_row_that_is_looked_at_in_part_is_that_of_the_whole(
    ask: Any, row: dict[str, str]
) -> None:
    (tokens,) = ask([row], most=1).lengths
    assert tokens == pytest.approx(30_000, rel=0.01), "Of 90,000 characters 20,000 are read."


def test_a_leak_is_a_twin_on_the_other_side_of_the_runs_own_split(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ask([SHORT, SHORT], eval_fraction=0.5)
    assert page.counts.leaks == page.counts.exact_leaks == page.counts.held_out == 1
    assert set(page.leaks[0].rows) == {1, 2}
    sequences_of = prepare.sequences_of

    def refusing(example: Any, rows: Any, *rest: Any) -> Any:
        if example.row > 2:
            return rows.reject(example.row, "refused")
        return sequences_of(example, rows, *rest)

    monkeypatch.setattr(dataset_preview.prepare, "sequences_of", refusing)
    for refused in range(1, 4):
        page = ask([SHORT, SHORT, *[pair("w7", "w8")] * refused], eval_fraction=0.5)
        assert (page.examples, page.counts.invalid_rows) == (2, refused)
        assert page.counts.leaks == 1, "The run splits what its template takes."


def test_a_leak_is_looked_for_in_an_evaluation_dataset(ask: Any, tmp_path: Path) -> None:
    """Its own duplicates, and what it has of the split's rows, change no other figure."""
    path = tmp_path / "held_out.jsonl"
    new = pair("w8", "w9 w10")
    write_rows(path, [new, SHORT, NEAR[1], {"prompt": "w5"}, SHORT, new])
    training = [SHORT, NEAR[0], CUT]
    alone, own = ask(training), ask(training, eval_fraction=0.5, eval_dataset=str(path))
    leaks = (own.counts.held_out, own.counts.leaks, own.counts.exact_leaks)
    assert leaks == (5, 3, 2), "of the five that can be used"
    assert [each.rows for each in own.leaks] == [(1, 2), (1, 5), (2, 3)], "training, held out"
    assert own.leaks[2].texts == tuple(f"w2\n{row['completion']}" for row in NEAR)
    assert own.held_out_dataset == str(path) and alone.held_out_dataset == ""
    assert (own.counts.duplicates, own.counts.near_duplicates) == (0, 0), "of the training set"
    assert (own.examples, own.lengths, own.counts.tokens) == (
        alone.examples, alone.lengths, alone.counts.tokens,
    )  # fmt: skip
    with pytest.raises(LabError, match=r"data\.eval_dataset: .*does not exist"):
        ask(training, eval_dataset=str(tmp_path / "none.jsonl"))


def test_padding_is_that_of_each_order(ask: Any) -> None:
    """Rows of 6 and 16 tokens: two by two as they come, by length, and in rows of at most 20."""
    rows = [pair("w1", "w2"), pair("w3", "w4")]
    rows += [pair(f"w{n}", " ".join(SIXTY[:11])) for n in (5, 6)]
    mixed = {ask(rows, max_length=20, train={"batch_size": 2, "seed": n}).padding for n in range(6)}
    assert {each.grouped for each in mixed} == {0.0}, "Alike rows share a batch."
    assert {each.shuffled for each in mixed} == {0.0, 20 / 64}, "Two batches of 6 and 16, or none."
    packed = {round(each.packed, 9) for each in mixed}
    assert packed == {0.0, round(4 / 48, 9)}, "16, 16 and 6 + 6 tokens"
    assert {(each.examples, each.sequences) for each in mixed} == {(4, 3)}
    assert ask([CUT]).padding is None, "Nothing of it can be trained on."


def test_packed_rows_are_shown_for_methods_that_pack(ask: Any) -> None:
    packed = ask([SHORT, SHORT, CUT, SHORT], max_length=16).packed
    assert [(row.lengths, row.sources, row.length, row.counted) for row in packed] == [
        ((8, 8), (1, 2), 16, 8), ((8,), (4,), 8, 4),
    ]  # fmt: skip
    assert ask([SHORT, SHORT], method="prefix").packed == ()


def test_a_long_text_is_one_row_of_many_pieces(ask: Any) -> None:
    page = ask([{"text": " ".join(SIXTY)}] * 2, max_length=32, method="full")
    assert page.lengths == (61, 61) and len(page.rows) == 2 and not page.has_chats
    assert page.counts.tokens == 122 and page.counts.counted == 2 * (31 + 28)


def test_what_the_template_writes_unasked_is_shown(tiny_model: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [pair("Hi", "Hello")])

    def inserted(**data: Any) -> str:
        value = {"model": str(tiny_model), "data": {"dataset": str(tmp_path / "a.jsonl"), **data}}
        template = look(value).template
        assert template is not None
        assert template.has_own and template.end_token == "<|im_end|>"
        return template.inserts

    assert "named SmolLM" in inserted() and inserted(system_prompt="Be brief.") == ""


def test_the_token_behind_an_answer_is_named(words: Any) -> None:
    """A text ends with the tokenizer's own, a chat with what its template writes."""
    assert dataset_preview._end_token(words, True) == "<|end|>"
    words.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|over|>"]})
    words.chat_template = words.chat_template.replace("<|end|>", "<|over|>")
    assert dataset_preview._end_token(words, True) == "<|over|>"
    assert dataset_preview._end_token(words, False) == "<|end|>"


def test_only_what_the_rows_depend_on_stands_against_a_look(ask: Any) -> None:
    assert ask([SHORT], train={"batch_size": 0, "learning_rate": -1}).examples == 1
    with pytest.raises(SpecError, match=r"data\.max_length"):
        ask([SHORT], max_length=0)


def test_a_look_goes_through_json_whole(ask: Any) -> None:
    page = ask(ROWS, train={"batch_size": 2})
    assert page.padding is not None and page.padding != Padding()
    assert DatasetPreview.from_json(json.loads(json.dumps(page.to_json()))) == page
