"""Stored tokens are what was stored, and only the same content under the same terms finds them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.atomic_files import read_object, size_of
from lab.data import rendering, token_cache
from lab.data.chat_template import IGNORE_INDEX, TokenizedExample

META: dict[str, Any] = {
    "examples": 2, "bad": 0, "told": "", "has_chats": True, "first": {}, "notes": [],
    "record_notes": [],
}  # fmt: skip
SEQUENCES = [
    (
        0,
        TokenizedExample(
            [5, 70_000, 4_000_000_000], [IGNORE_INDEX, 70_000, IGNORE_INDEX], record_number=1
        ),
    ),
    (0, TokenizedExample([9], [IGNORE_INDEX], record_number=1, truncated=True)),
    (1, TokenizedExample([3, 4], [IGNORE_INDEX, 4], record_number=7)),
]


def test_what_was_stored_comes_back(unsynced: dict[Path, list[str]]) -> None:
    written = token_cache.write("k", iter(SEQUENCES), META)
    again = token_cache.find("k")
    assert again is not None
    for found in (written, again):
        assert list(found) == [one for _, one in SEQUENCES], "ids, labels, rows and cuts"
        assert found[1:] == [one for _, one in SEQUENCES[1:]]
        assert found.lengths.tolist() == [3, 1, 2] and found.learned.tolist() == [1, 0, 1]
        assert found.examples.tolist() == [0, 0, 1] and found.rows.tolist() == [1, 1, 7]
        assert found.cut.tolist() == [False, True, False]
        assert found.meta == META
    assert unsynced[token_cache.folder() / "k"] == [], "It is on the disk before it has its name."


def test_nothing_to_store_is_stored_too() -> None:
    assert len(token_cache.write("none", iter([]), META)) == 0
    cached = token_cache.find("none")
    assert cached is not None and list(cached) == [] and cached.lengths.tolist() == []


def test_a_set_is_there_when_its_meta_is(lab_home: Path) -> None:
    """meta.json is written last: a folder without it is no set."""
    assert token_cache.find("k") is None
    (token_cache.folder() / "k").mkdir(parents=True)
    assert token_cache.find("k") is None


@pytest.mark.parametrize("name", ["ids.bin", "counted.bin", "index.bin", "meta.json"])
def test_a_set_whose_files_do_not_belong_together_is_made_anew(name: str) -> None:
    token_cache.write("k", iter(SEQUENCES), META)
    file = token_cache.folder() / "k" / name
    size = {"ids.bin": 4, "counted.bin": 1, "index.bin": 40}.get(name, 1)
    file.write_bytes(file.read_bytes()[:-size] if name != "meta.json" else b"{}")
    assert token_cache.find("k") is None, f"{name} is cut short"
    assert not file.parent.exists(), "so that it is written again"


def test_meta_may_be_filled_while_the_rows_come() -> None:
    meta: dict[str, Any] = {}

    def rows() -> Iterator[tuple[int, TokenizedExample]]:
        yield SEQUENCES[0]
        meta["examples"] = 41

    assert token_cache.write("k", rows(), meta).meta["examples"] == 41
    assert (read_object(token_cache.folder() / "k" / "meta.json") or {})["examples"] == 41


def test_the_faster_of_two_runs_wins_and_the_other_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def slow() -> Iterator[tuple[int, TokenizedExample]]:
        yield SEQUENCES[0]
        with monkeypatch.context() as patch:
            patch.setattr(token_cache.os, "getpid", lambda: 1)
            token_cache.write("k", iter(SEQUENCES), META | {"by": "the other"})

    written = token_cache.write("k", slow(), META | {"by": "this"})
    assert written.meta["by"] == "the other" and len(written) == 3
    assert [path.name for path in token_cache.folder().iterdir()] == ["k"]


def test_a_failure_leaves_nothing() -> None:
    def broken() -> Iterator[tuple[int, TokenizedExample]]:
        yield SEQUENCES[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        token_cache.write("k", broken(), {})
    assert list(token_cache.folder().iterdir()) == []


def test_use_is_noted() -> None:
    """What has not been of use for long may be deleted first."""
    token_cache.write("k", iter(SEQUENCES), META)
    meta = token_cache.folder() / "k" / "meta.json"
    os.utime(meta, (1_000_000, 1_000_000))
    token_cache.find("k")
    assert meta.stat().st_mtime > 1_700_000_000


def stored_at(name: str, used_at: int) -> Path:
    """A set that was last of use at `used_at`."""
    token_cache.write(name, iter(SEQUENCES), META)
    path = token_cache.folder() / name
    os.utime(path / "meta.json", (used_at, used_at))
    return path


def names() -> list[str]:
    return sorted(path.name for path in token_cache.folder().iterdir())


def test_sets_beyond_the_bound_go_the_one_used_least_recently_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(token_cache, "MAX_SETS", 3)
    for number, name in enumerate("abc"):
        stored_at(name, 1_000 + number)
    assert token_cache.find("a") is not None, "which makes it the newest"
    token_cache.write("d", iter(SEQUENCES), META)
    assert names() == ["a", "c", "d"]


def test_bytes_are_bounded_too_and_the_newest_set_always_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = size_of(stored_at("a", 1_000))
    stored_at("b", 1_001)
    monkeypatch.setattr(token_cache, "MAX_BYTES", 2 * size)
    token_cache.write("c", iter(SEQUENCES), META)
    assert names() == ["b", "c"]
    monkeypatch.setattr(token_cache, "MAX_BYTES", 1)
    token_cache.write("d", iter(SEQUENCES), META)
    token_cache.prune()
    assert names() == ["d"], "A set larger than the bound can be trained on."


def test_no_set_goes_under_a_run_that_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stored_at("a", 1_000)
    reader = token_cache.TokenizedDataset(token_cache.folder() / "a")
    monkeypatch.setattr(token_cache, "MAX_SETS", 1)
    token_cache.write("b", iter(SEQUENCES), META)
    assert names() == ["a", "b"] and list(reader) == [tokens for _, tokens in SEQUENCES]
    del reader
    token_cache.prune()
    assert names() == ["b"], "It goes when nobody reads it any more."


def test_what_killed_writers_left_goes_after_a_day(lab_home: Path) -> None:
    stored_at("a", 1_000)
    for name, age_s in (("old", 2 * token_cache.ABANDONED_S), ("new", 60.0)):
        aside = token_cache.folder() / f".tmp-{name}"
        aside.mkdir()
        (aside / "ids.bin").write_bytes(b"x")
        for path in (aside / "ids.bin", aside):
            os.utime(path, (time.time() - age_s, time.time() - age_s))
    os.utime(token_cache.folder() / ".tmp-new", (1_000, 1_000))  # its file is still being written
    token_cache.prune()
    assert names() == [".tmp-new", "a"]


def other_vocabulary(words: Any) -> None:
    """The same words under other numbers, as another model's tokenizer has them."""
    from tokenizers import models

    known = words.get_vocab()
    turned = {word: number for number, word in enumerate(sorted(known, key=known.get)[::-1])}
    words.backend_tokenizer.model = models.WordLevel(turned, unk_token="<|end|>")


CHANGES: dict[str, Callable[[Any], Any]] = {
    "vocabulary": other_vocabulary,
    "template": lambda words: setattr(words, "chat_template", "{{ messages }}"),
    "end token": lambda words: setattr(words, "eos_token", "w3"),
    "begin token": lambda words: setattr(words, "bos_token", "w3"),
    "added token": lambda words: words.add_tokens(["w1 w2"]),
    "template argument": lambda words: rendering.configure(words, args={"thinking": True}),
    "date": lambda words: rendering.configure(words, date="2026-01-02"),
    "stop token": lambda words: rendering.configure(words, stop_ids=(5,)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tokenizer_has_other_tokens(words: Any, tmp_path: Path, change: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("rows")
    before = token_cache.key(file, words, {"max_length": 8})
    assert token_cache.key(file, words, {"max_length": 8}) == before, "the same terms, the same key"
    CHANGES[change](words)
    assert token_cache.key(file, words, {"max_length": 8}) != before


def test_which_of_the_stop_tokens_ends_a_text_makes_other_tokens(
    words: Any, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("rows")
    both = ("w3", words.eos_token)
    rendering.configure(words, stop_ids=tuple(words.convert_tokens_to_ids(list(both))))
    keys = set()
    for words.eos_token in both:
        keys.add(token_cache.key(file, words, {}))
    assert len(keys) == 2


def test_the_key_follows_content_and_settings_not_the_name(words: Any, tmp_path: Path) -> None:
    keys = set()
    for name, content, settings in (
        ("a", "rows", {"max_length": 8}),
        ("b", "rows", {"max_length": 8}),
        ("a", "rows!", {"max_length": 8}),
        ("a", "rows", {"max_length": 9}),
        ("a", "rows", {"max_length": 8, "loss_on": "all"}),
    ):
        file = tmp_path / name
        file.write_text(content)
        keys.add(token_cache.key(file, words, settings))
    assert len(keys) == 4


def test_tokens_of_another_model_are_never_taken(words: Any, tmp_path: Path) -> None:
    """The whole way: one file, two tokenizers with the same template."""
    from lab.data import prepare
    from lab.spec import RunSpec
    from tests.conftest import write_rows
    from tests.methods import tiny

    file = tmp_path / "a.jsonl"
    write_rows(file, [{"prompt": "w1", "completion": "w2"}] * 4)
    data = {"dataset": str(file), "eval_fraction": 0.0, "max_length": 16, "packing": "off"}
    spec = RunSpec.from_json({"data": data})
    other = tiny.make_chat_tokenizer()
    other_vocabulary(other)
    ours, theirs = (prepare.prepare(spec, one).train[0].ids for one in (words, other))
    assert ours == [1, 3, 0, 1, 4, 0] and ours != theirs
    assert np.array_equal(theirs, other("<|turn|> w1 <|end|> <|turn|> w2 <|end|>")["input_ids"])
