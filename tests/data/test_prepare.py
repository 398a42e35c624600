"""From files to rows: formats, the cache, mixing, held-out sets, buckets, and what a run keeps."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths
from lab.atomic_files import read_object
from lab.data import batches, catalog, duplicates, hub, prepare, token_cache, token_view
from lab.data.chat_template import IGNORE_INDEX
from lab.data.example_reader import ExampleReader, ReadOptions
from lab.errors import LabError
from lab.spec import RunSpec
from lab.train import forgetting
from tests.conftest import write_rows

PAIRS = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(40)]


def spec_of(dataset: object, **data: Any) -> RunSpec:
    given = {"dataset": str(dataset), "max_length": 64, "packing": "off", **data}
    return RunSpec.from_json({"data": given})


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    """The rows in the format that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        out = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        data = out.getvalue()
    elif name.endswith((".csv", ".tsv")):
        text = io.StringIO(newline="")
        table = csv.writer(text, delimiter="\t" if name.endswith(".tsv") else ",")
        table.writerows([list(rows[0]), *[list(row.values()) for row in rows]])
        data = text.getvalue().encode()
    elif name.endswith(".json"):
        data = json.dumps(rows, indent=1).encode()
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_examples(tmp_path: Path, suffix: str, packed: str) -> None:
    rows = [{**row, "completion": f'{row["completion"]},\n"quoted"\té'} for row in PAIRS]
    path = write(tmp_path / f"rows.{suffix}{packed}", rows)
    messages = [example.messages for example in ExampleReader(path)]
    plain = [example.messages for example in ExampleReader(write(tmp_path / "plain.jsonl", rows))]
    assert messages == plain and len(messages) == 40
    assert len(list(ExampleReader(path, ReadOptions(limit=7)))) == 7


@pytest.mark.parametrize("side", [0, 1], ids=["of training", "held out"])
def test_the_longest_row_may_be_one_of_either_side(
    tmp_path: Path, tokenizer: Any, side: int
) -> None:
    """The memory is predicted for it, and evaluations take some, too."""
    place = batches.split_indices(len(PAIRS), 0.1)[side][0]
    rows = [row | {"completion": "it " * 30} if row is PAIRS[place] else row for row in PAIRS]
    spec = spec_of(write(tmp_path / "rows.jsonl", rows), eval_fraction=0.1)
    prepared = prepare.prepare(spec, tokenizer)
    other = (prepared.held_out, prepared.train)[side]
    most = max(row.tokens for row in (prepared.train, prepared.held_out)[side])
    assert prepared.figures.longest_row == most > max(row.tokens for row in other)


def test_plain_text_is_cut_at_blank_lines_and_joined_again(tmp_path: Path, tokenizer: Any) -> None:
    text = "".join(f"Paragraph {n} goes on for a while.\n" * 40 + "\n" for n in range(12))
    path = tmp_path / "book.txt.gz"
    path.write_bytes(gzip.compress(text.encode()))
    items = list(ExampleReader(path))
    assert "".join(row.text for row in items) == text and len(items) > 3
    spec = spec_of(path, eval_fraction=0.0)
    made = prepare.prepare(spec, tokenizer).train
    ids = [token for row in made for token in row.ids]
    assert tokenizer.decode(ids[:-1]) == text and ids[-1] == tokenizer.eos_token_id
    assert {row.tokens for row in list(made)[:-1]} == {64}, "no piece is shorter but the last"


def test_tokens_are_made_once_and_shared(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    messages: list[tuple[int, int]] = []
    first = prepare.prepare(spec_of(path), tokenizer, lambda *at: messages.append(at))
    assert messages and len(list(token_cache.folder().iterdir())) == 1
    shutil.copy(path, tmp_path / "copy.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr(prepare.chat_template, "tokenize", None)  # would fail if it were called
        again = prepare.prepare(spec_of(tmp_path / "copy.jsonl"), tokenizer)
    assert again.figures == first.figures and list(again.train) == list(first.train)
    before = first.figures.train_hash
    for change in (
        {"max_length": 48},
        {"loss_on": "all"},
        {"system_prompt": "x"},
        {"template": "plain"},
    ):
        import copy

        other = prepare.prepare(spec_of(path, **change), copy.deepcopy(tokenizer))
        assert other.figures.train_hash != before or "max_length" in change
    assert len(list(token_cache.folder().iterdir())) == 5
    with path.open("a") as file:
        file.write(json.dumps(PAIRS[0]) + "\n")
    prepare.prepare(spec_of(path), tokenizer)
    assert len(list(token_cache.folder().iterdir())) == 6, "another content, other tokens"


def test_an_interrupted_cache_leaves_nothing(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS * 20)

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(spec_of(path), tokenizer, stop)
    assert list(token_cache.folder().iterdir()) == []


def test_bad_rows_are_skipped_and_told(tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [*PAIRS, {"prompt": "x", "completion": [5]}])
    with pytest.raises(LabError, match=r"row 41: 'completion' is \[5\], not text"):
        prepare.prepare(spec_of(path), tokenizer)
    prepared = prepare.prepare(spec_of(path, on_invalid_row="skip"), tokenizer)
    assert prepared.figures.bad == 1 and prepared.figures.examples == 40
    assert any("row 41" in note for note in prepared.notes)


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path, tokenizer: Any) -> None:
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = (
        "{% if messages[0].content == 'say 3' %}{{ raise_exception('not three') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    path = write(tmp_path / "a.jsonl", PAIRS)
    with pytest.raises(LabError, match=r"1 of 40 rows .* row 4: The chat template refuses"):
        prepare.prepare(spec_of(path), strict)
    prepared = prepare.prepare(spec_of(path, on_invalid_row="skip"), strict)
    assert (prepared.figures.examples, prepared.figures.bad) == (39, 1)


def test_rows_longer_than_the_window_and_without_a_loss_token(
    tmp_path: Path, tokenizer: Any
) -> None:
    path = write(tmp_path / "a.jsonl", [*PAIRS, {"prompt": "so " * 200, "completion": "yes"}])
    right = prepare.prepare(spec_of(path), tokenizer)
    assert (right.figures.truncated, right.figures.dropped) == (1, 1)
    left = prepare.prepare(spec_of(path, truncation="left"), tokenizer)
    assert (left.figures.truncated, left.figures.dropped) == (1, 0)
    (one,) = [row for row in [*left.train, *left.held_out] if row.tokens == 64]
    learned = [label for label in one.labels if label != IGNORE_INDEX]
    assert tokenizer.decode(learned) == "yes<|im_end|>"


def test_general_text_is_mixed_in_by_its_share(tmp_path: Path, tokenizer: Any) -> None:
    path = write(tmp_path / "a.jsonl", PAIRS)
    other = write(
        tmp_path / "general.jsonl",
        [{"prompt": f"why {n}", "completion": f"because {n}"} for n in range(3)],
    )
    spec = spec_of(path, general_fraction=0.1, general_dataset=str(other), eval_fraction=0.1)
    prepared = prepare.prepare(spec, tokenizer)
    texts = [tokenizer.decode(row.ids) for row in prepared.train]
    assert sum("because" in text for text in texts) == prepared.figures.general_rows == 4
    assert len(texts) == 40 and not any(
        "because" in tokenizer.decode(r.ids) for r in prepared.held_out
    )
    assert any("they are repeated" in note for note in prepared.notes)
    assert len({text for text in texts if "because" in text}) == 3, "each once before any twice"


def test_columns_slots_and_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_rows(path, [{"ask": "who?", "say": [{"text": "I am {{name}}"}]}])
    reading = ReadOptions(
        columns={"prompt": "ask", "completion": "say.0.text"}, slots={"name": "Wren"}
    )
    (example,) = ExampleReader(path, reading)
    assert [turn["content"] for turn in example.messages] == ["who?", "I am Wren"]
    with pytest.raises(LabError, match=r"row 1: has no 'say\.1\.text'"):
        list(
            ExampleReader(path, ReadOptions(columns={"prompt": "ask", "completion": "say.1.text"}))
        )


def test_a_set_with_its_own_held_out_part(tokenizer: Any) -> None:
    name = "builtin:made-up-facts"
    prepared = prepare.prepare(spec_of(name, held_out=f"{name}@held-out"), tokenizer)
    card = catalog.resolve(name).card
    assert prepared.figures.train_rows == card["rows"]
    assert prepared.figures.held_out_rows == card["held_out_rows"]


@pytest.mark.parametrize(
    ("dataset", "objective", "says"),
    [
        ("builtin:persona-chats", "pretraining", "holds chats, and data.objective is pretraining"),
        ("builtin:tide-clock-story", "chat", "holds plain text, and data.objective is chat"),
    ],
)
def test_an_objective_that_does_not_fit(
    tokenizer: Any, dataset: str, objective: str, says: str
) -> None:
    with pytest.raises(LabError, match=says):
        prepare.prepare(spec_of(dataset, objective=objective), tokenizer)


def test_buckets_hold_every_row_once_and_waste_less(whole_tokenizer: Any) -> None:
    rows = prepare.prepare(spec_of("builtin:everyday-instructions"), whole_tokenizer).train

    def padding(stream: batches.TrainingOrder) -> int:
        sizes = [stream[place].tokens for place in range(len(rows))]
        groups = [sizes[start : start + 4] for start in range(0, len(sizes), 4)]
        return sum(max(group) * len(group) - sum(group) for group in groups)

    plain, bucketed = batches.TrainingOrder(rows, 0), batches.TrainingOrder(rows, 0, bucket=4)
    order = [bucketed[place].sources for place in range(len(rows))]
    assert sorted(order) == sorted(row.sources for row in rows)
    assert order == [
        batches.TrainingOrder(rows, 0, bucket=4)[place].sources for place in range(len(rows))
    ]
    assert order != [bucketed[place].sources for place in range(len(rows), 2 * len(rows))]
    assert padding(bucketed) < 0.5 * padding(plain)


def test_twins_and_leaks_are_found() -> None:
    long = "The harbour clock of the town told the water and not the time of day. " * 4
    texts = ["one two three", long, long.upper(), long + "Almost.", "something else entirely"]
    twins = duplicates.find_duplicates(texts, {3})
    assert [pair[:2] for pair in twins.exact] == [(1, 2)]
    assert [pair[:2] for pair in twins.near] == [(1, 3)]
    assert [pair[:2] for pair in twins.near_leaks] == [(1, 3)] and twins.exact_leaks == []
    assert duplicates.find_duplicates([]).exact == [] == duplicates.find_duplicates(["a"]).near


def test_tokens_spell_their_text_whole(tokenizer: Any) -> None:
    text = "é 👩‍👩‍👧 <b>&amp;</b> שלום"
    ids = tokenizer(text)["input_ids"]
    shown = token_view.pieces(tokenizer, ids, [IGNORE_INDEX, *ids[1:]])
    assert "".join(piece.text for piece in shown) == text
    assert [piece.counted for piece in shown] == [False] + [True] * (len(ids) - 1)


def test_uploads_are_kept_under_plain_names(tmp_path: Path) -> None:
    path = write(tmp_path / "my-chats.jsonl", PAIRS)
    added = catalog.add_file(path)
    assert added.id == "upload:my-chats.jsonl" == catalog.uploads()[0].id
    assert catalog.resolve(added.id).path.read_bytes() == path.read_bytes()
    with pytest.raises(LabError, match="already"):
        catalog.add_file(path)
    for name in ("x", "x.exe", "x.jsonl/", "x" * 200):
        with pytest.raises(LabError, match="cannot be the name"):
            catalog.add(name, [b"x"])
    for name in ("../x.jsonl", ".x.jsonl", "a/b.jsonl", "a\0.jsonl", "x"):
        with pytest.raises(LabError):
            catalog.resolve(f"upload:{name}")
    (catalog.uploads_folder() / "link.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(LabError, match="There is no uploaded"):
        catalog.resolve("upload:link.jsonl")
    catalog.remove("my-chats.jsonl")
    assert not added.path.exists()


def test_hub_ids() -> None:
    wanted = hub.parse("org/name:config@test")
    assert (wanted.name, wanted.config, wanted.split) == ("org/name", "config", "test")
    assert str(wanted) == "org/name:config@test" and str(hub.parse("org/name")) == "org/name"
    assert wanted.file.is_relative_to(paths.home())
    for text in ("org", "org/../name", "a/b/c", "org/na--me", "org/name@", "../x", "org/name\n"):
        assert not hub.is_id(text), text
    for dataset in hub.known():
        assert hub.is_id(dataset.id) and dataset.license and dataset.rows and dataset.summary


def test_a_fetch_that_was_killed_is_no_fetch() -> None:
    wanted = hub.parse("org/name")
    wanted.record.parent.mkdir(parents=True)
    wanted.record.write_text(
        json.dumps({"state": "fetching", "process": {"pid": 2**22 - 3, "start": 1}})
    )
    assert hub.state_of(wanted).state == "failed"


def test_a_run_keeps_its_first_batch_and_its_cost(
    work_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(forgetting.prompts())) == 100
    few = forgetting.prompts()[:12]
    monkeypatch.setattr(forgetting, "prompts", lambda: few)
    monkeypatch.setattr(forgetting, "MAX_NEW_TOKENS", 8)
    run = work_here(
        train={"max_steps": 3, "forgetting_probe": "on", "sample_steps": 0, "save_steps": 0},
        data={"general_fraction": 0.2, "group_by_length": "on"},
    )
    stored = read_object(run.first_batch)
    assert stored is not None and len(stored["rows"]) == stored["batch_size"] == 2
    assert all(any(token["counted"] for token in row["tokens"]) for row in stored["rows"])
    summary = (read_object(run.result) or {})["summary"]
    assert summary["probe/rise"] == pytest.approx(
        summary["probe/loss"] - summary["probe/base_loss"]
    )
    assert 0 <= summary["probe/kl"] < 1 and summary["probe/base_loss"] > 5
    answers = list((paths.home() / "cache" / "general").glob("*.jsonl"))
    assert len(answers) == 1 and len(answers[0].read_text().splitlines()) > 8
    lock = (read_object(run.artifact / "receipt.json") or {})["lock"]
    assert lock["end_token"] == "<|im_end|>" and lock["hash"]
    stamp = os.stat(answers[0]).st_mtime_ns
    again = work_here(
        train={"max_steps": 1, "forgetting_probe": "on", "sample_steps": 0, "save_steps": 0}
    )
    assert os.stat(answers[0]).st_mtime_ns == stamp, "sampled once for each base"
    assert (read_object(again.result) or {})["state"] == "done"
