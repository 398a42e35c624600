"""Disks that refuse, uploads at once, and records, caches and tokenizer files that are damaged."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.data import catalog, chat_template, dataset_stats, hub, prepare, template_lock, token_cache
from lab.data.dataset_preview import look
from lab.errors import LabError, Problem
from lab.forecasts import DatasetStats
from lab.models import weights
from lab.models.catalog import ModelSource
from lab.spec import RunSpec
from tests.conftest import SHARED_MODELS, write_rows

PAIRS = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(20)]


def test_uploads_at_once_lose_and_mix_nothing(lab_home: Path) -> None:
    together = threading.Barrier(6)
    remaining: list[str] = []
    refused: list[str] = []

    def add(number: int, name: str) -> None:
        def blocks() -> Iterator[bytes]:
            yield f"{number}".encode() * 50_000
            together.wait(timeout=30)  # all have begun, none has ended
            yield f"{number}".encode() * 50_000

        try:
            remaining.append(catalog.add(name, blocks()).id)
        except LabError as error:
            refused.append(str(error))

    names = ["a.txt", "b.txt", "c.txt", "same.txt", "same.txt", "same.txt"]
    threads = [threading.Thread(target=add, args=pair) for pair in enumerate(names)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(remaining) == ["upload:a.txt", "upload:b.txt", "upload:c.txt", "upload:same.txt"]
    assert len(refused) == 2 and all("already" in message for message in refused)
    for path in catalog.uploads_folder().iterdir():
        content = path.read_bytes()
        assert len(content) == 100_000 and len(set(content)) == 1, f"{path.name} is mixed"
    assert len(list(catalog.uploads_folder().iterdir())) == 4, "nothing is left aside"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "mkstemp", "fsync"])
def test_a_disk_that_refuses_an_upload_is_told(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    owner = {"mkdir": Path, "mkstemp": catalog.tempfile, "fsync": os}[call]
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, refuse)
        with pytest.raises(LabError) as caught:
            catalog.add("a.txt", [b"x"])
    assert os.strerror(number) in str(caught.value) and "LAB_HOME" in str(caught.value)
    assert catalog.uploads() == []
    assert catalog.add("a.txt", [b"x"]).path.read_bytes() == b"x", "the name is still free"
    assert [path.name for path in catalog.uploads_folder().iterdir()] == ["a.txt"]


def test_a_disk_without_links_keeps_uploads_too(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert catalog.add("a.txt", [b"first"]).path.read_bytes() == b"first"
    with pytest.raises(LabError, match="already"):
        catalog.add("a.txt", [b"second"])
    assert catalog.resolve("upload:a.txt").path.read_bytes() == b"first"


def test_what_a_killed_upload_left_is_cleared_after_a_day(lab_home: Path) -> None:
    folder = catalog.uploads_folder()
    folder.mkdir(parents=True)
    ages = {"old": 25 * 3600, "slow": 23 * 3600, "new": 0}
    for name, age in ages.items():
        path = folder / f"{catalog.ASIDE}{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    catalog.add("a.txt", [b"x"])
    left = {path.name.removeprefix(catalog.ASIDE) for path in folder.glob(f"{catalog.ASIDE}*")}
    assert left == {"slow", "new"}, "another upload may still be going on"


@pytest.mark.parametrize(
    "record",
    ["[]", "5", "{", '{"state": 5}', '{"state": "done"}', '{"state": "fetching", "rows": "x"}',
     '{"state": "fetching", "process": 5, "total": []}', '{"state": "failed", "message": [5]}',
     '{"state": ["done"], "id": 5}', '{"state": "done", "id": "../x"}'],
)  # fmt: skip
def test_a_damaged_record_of_a_fetch_is_no_traceback(lab_home: Path, record: str) -> None:
    wanted = hub.parse("org/name")
    wanted.record.parent.mkdir(parents=True)
    wanted.record.write_text(record)
    state = hub.state_of(wanted)
    assert state.state in ("", "failed") and isinstance(state.rows, int)
    assert isinstance(state.message, str) and state.total is None
    assert hub.fetched() == []


def test_a_fetched_file_that_vanished_is_not_listed(lab_home: Path) -> None:
    wanted = hub.parse("org/name")
    wanted.file.parent.mkdir(parents=True)
    wanted.record.write_text(json.dumps({"state": "done", "id": "org/name", "rows": 1}))
    assert hub.fetched() == [] and hub.state_of(wanted).state == ""
    wanted.file.write_text('{"text": "x"}\n')
    assert hub.fetched() == ["org/name"] and hub.state_of(wanted).state == "done"


@pytest.mark.parametrize("damage", ["meta", "wrong meta", "cut", "gone", "order", "shape"])
def test_damaged_tokens_are_made_again(lab_home: Path, tokenizer: Any, damage: str) -> None:
    file = lab_home.parent / "pairs.jsonl"
    write_rows(file, PAIRS)
    spec = RunSpec.from_json({"data": {"dataset": str(file), "max_length": 64}})
    before = prepare.prepare(spec, tokenizer).facts()
    (folder,) = token_cache.folder().iterdir()
    if damage == "meta":
        (folder / "meta.json").write_text("{}")
    elif damage == "wrong meta":
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"examples": "many"}))
    elif damage == "gone":
        (folder / "counted.bin").unlink()
    elif damage == "order":
        index = (folder / "index.bin").read_bytes()
        (folder / "index.bin").write_bytes(index[40:80] + index[:40] + index[80:])
    else:
        ids = folder / ("ids.bin" if damage == "cut" else "index.bin")
        ids.write_bytes(ids.read_bytes()[:-4])
    assert prepare.prepare(spec, tokenizer).facts() == before
    assert [path.name for path in token_cache.folder().iterdir()] == [folder.name]


def test_a_full_disk_is_told_where_tokens_are_written(
    lab_home: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lab_home.parent / "pairs.jsonl"
    write_rows(file, PAIRS)
    spec = RunSpec.from_json({"data": {"dataset": str(file), "max_length": 64}})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_cache, "write_json", full)
    with pytest.raises(LabError, match=r"tokens cannot be written .* No space left"):
        prepare.prepare(spec, tokenizer)
    assert list(token_cache.folder().iterdir()) == [], "nothing is left half-written"
    file.unlink()
    with pytest.raises(LabError, match="No such file"):
        token_cache.content_hash(file)


DAMAGED_LOCKS: list[Any] = [
    5, "x", [1], {"hash": 5}, {"hash": "x", "probe_ids": [10**30, -1, "x"]},
    {"hash": "x", "probe_ids": 5, "template": []}, {"system_prompt": [5]},
]  # fmt: skip


@pytest.mark.parametrize("damaged", DAMAGED_LOCKS, ids=str)
def test_a_damaged_lock_is_told(tokenizer: Any, damaged: Any) -> None:
    with pytest.raises(LabError):
        template_lock.check_tokenizer(damaged, tokenizer)
    with pytest.raises(LabError):
        template_lock.check_settings(damaged, tokenizer, "Be kind.", "assistant", "run")
    assert isinstance(template_lock.warning(damaged, tokenizer, "Be kind."), str)


SPOILED = [
    ("tokenizer.json", "[]"),
    ("tokenizer.json", "{}"),
    ("tokenizer_config.json", "[]"),
    ("tokenizer_config.json", "5"),
    ("special_tokens_map.json", "[]"),
    ("config.json", "null"),
]
SETTINGS = [
    {"eos_token": 5},
    {"eos_token": []},
    {"eos_token": ""},
    {"eos_token": None},
    {"pad_token": {"content": 5}},
    {"model_max_length": "long"},
    {"model_max_length": []},
    {"tokenizer_class": 5},
    {"added_tokens_decoder": {"0": {"content": 5}}},
    {"added_tokens_decoder": [5]},
]


@pytest.mark.parametrize("spoiled", [*SPOILED, *SETTINGS], ids=str)
def test_nonsense_in_tokenizer_files_is_told(tmp_path: Path, spoiled: Any) -> None:
    source = SHARED_MODELS / "smollm2-135m-instruct"
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, tmp_path)
    if isinstance(spoiled, dict):
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | spoiled))
    else:
        (tmp_path / spoiled[0]).write_text(spoiled[1])
    with pytest.raises(LabError, match="'mine'"):
        weights.load_tokenizer(ModelSource("mine", str(tmp_path), local_only=True))


@pytest.mark.parametrize("key", ["eval_dataset", "dataset", "general_dataset"])
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_name_of_a_dataset_is_a_problem(key: str, value: str) -> None:
    problems: list[Problem] = []
    RunSpec.parse({"data": {key: value}}, problems)
    assert [problem.field for problem in problems] == [f"data.{key}"]
    assert "is empty" in problems[0].message


def test_a_held_out_file_is_looked_into_before_the_run(tmp_path: Path, tokenizer: Any) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_rows(good, PAIRS)
    write_rows(bad, [{"colour": "red"}])
    spec = RunSpec.from_json({"data": {"dataset": str(good), "eval_dataset": str(good)}})
    assert dataset_stats.dataset_stats(spec, tokenizer).examples == len(PAIRS)
    for key in ("eval_dataset", "general_dataset"):
        data = {"dataset": str(good), "general_fraction": 0.1, key: str(bad)}
        spec = RunSpec.from_json({"data": data})
        with pytest.raises(LabError, match=rf"data\.{key}: 1 of 1 row of"):
            dataset_stats.dataset_stats(spec, tokenizer)


def test_a_row_that_the_template_refuses_is_named_or_skipped(
    tmp_path: Path, tokenizer: Any
) -> None:
    file = tmp_path / "pairs.jsonl"
    write_rows(file, [*PAIRS, {"prompt": "odd", "completion": "x"}])
    other = copy.copy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}{{ 1 / 0 if m.content == 'odd' else m.content }}</s>{% endfor %}"
    )
    data = {"dataset": str(file), "max_length": 64, "loss_on": "all"}
    for reader in (dataset_stats.dataset_stats, prepare.prepare):
        with pytest.raises(LabError, match=r"row 21: The chat template fails .* ZeroDivisionError"):
            reader(RunSpec.from_json({"data": data}), other)
        skipping = RunSpec.from_json({"data": data | {"on_invalid_row": "skip"}})
        seen: Any = reader(skipping, other)
        count = seen.examples if isinstance(seen, DatasetStats) else seen.facts()["examples"]
        assert count in (20, 21)
    other.chat_template = "{% for m in messages %}{{ 'a' * 10**9 }}{% endfor %}"
    with pytest.raises(chat_template.TemplateUnusable):
        prepare.prepare(RunSpec.from_json({"data": data | {"on_invalid_row": "skip"}}), other)


def test_rows_of_millions_of_characters_are_looked_at_in_part(
    tmp_path: Path, tiny_model: Path, tokenizer: Any
) -> None:
    file = tmp_path / "long.jsonl"
    write_rows(file, [{"text": "word " * 1_000_000} for _ in range(4)])
    data = {"dataset": str(file), "max_length": 512}
    spec = RunSpec.from_json({"data": data})
    began = time.process_time()
    seen = dataset_stats.dataset_stats(spec, tokenizer)
    assert seen.examples == 4
    # a word is a token: a million in each row, of which the sample holds a tenth
    assert seen.sequences_per_example == pytest.approx(1_000_000 / 512, rel=0.05)
    page = look({"model": str(tiny_model), "data": data}, most=20)
    assert page.lengths[0] == pytest.approx(1_000_000, rel=0.05)
    assert all(len(row.tokens) <= 512 for row in page.rows)
    assert time.process_time() - began < 60, "all of it would take minutes"
