"""Sets of the hub: the commit that was fetched, configs and splits in full, a token that is handed
on and forgotten, nothing fetched because an id was typed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import process
from lab.data import catalog, hub, hub_fetch
from lab.data.dataset_stats import dataset_stats
from lab.errors import LabError
from lab.hub import credentials
from lab.spec import RunSpec
from tests.answers import check, checked, estimate
from tests.hub.stand_in import StandIn

NAME = "org/chats"
CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/*.jsonl
  - split: test
    path: test.jsonl
- config_name: de
  data_files: de.jsonl
---
"""


def rows(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def several(stand_in: StandIn) -> StandIn:
    """A set with two configs, one of them with two splits."""
    files = {"README.md": CARD, "en/a.jsonl": rows("a"), "en/b.jsonl": rows("b", "c")}
    stand_in.commit(NAME, files | {"test.jsonl": rows("t"), "de.jsonl": rows("ä")}, "datasets")
    return stand_in


def test_each_config_and_split_has_a_file_of_its_own(
    several: StandIn, unsynced: dict[Path, list[str]]
) -> None:
    found = {
        name: texts(hub_fetch.fetch(hub.parse(name)))
        for name in (f"{NAME}:en", f"{NAME}:en@test", f"{NAME}:de")
    }
    assert found == {
        f"{NAME}:en": ["a", "b", "c"], f"{NAME}:en@test": ["t"], f"{NAME}:de": ["ä"]
    }  # fmt: skip
    assert sorted(hub.fetched()) == sorted(found)
    assert hub.state_of(hub.parse(f"{NAME}:en")).rows == 3
    written = [names for file, names in unsynced.items() if file.suffix == ".jsonl"]
    assert written == [[], [], []], "Each is on the disk before it has its name."
    left = {file.suffix for file in hub.folder().iterdir() if file.is_file()}
    assert left == {".jsonl", ".json"}, "the downloaded files are removed"
    asked = {line.path.rpartition("/")[2] for line in several.requests("GET", "/cdn/")}
    assert asked == {"README.md", "a.jsonl", "b.jsonl", "test.jsonl", "de.jsonl"}


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        (NAME, "has several configs, none 'default'", f"2 configs, as {NAME}:en: en, de."),
        (f"{NAME}:fr", "has no config 'fr'", f"2 configs, as {NAME}:en: en, de."),
        (f"{NAME}:en@dev", "has no split 'dev'", f"2 splits, as {NAME}:en@train: train, test."),
    ],
)
def test_configs_and_splits_are_listed_in_full(
    several: StandIn, name: str, message: str, hint: str
) -> None:
    with pytest.raises(LabError, match=message) as raised:
        hub_fetch.fetch(hub.parse(name))
    assert hint in raised.value.hint
    assert message in hub.state_of(hub.parse(name)).message, "pages read it from the record"
    assert not several.requests("GET", ".jsonl"), "no rows are fetched for a choice"


@pytest.mark.parametrize("name", [NAME, f"{NAME}@train"])
def test_the_only_split_is_taken_and_told_where_it_is_not_train(
    stand_in: StandIn, name: str, lab_json: Callable[..., Any]
) -> None:
    stand_in.commit(NAME, {"test.jsonl": rows("only", "two")}, "datasets")
    fetched = lab_json("datasets", "fetch", name)
    assert texts(hub.file_of(hub.parse(name))) == ["only", "two"]
    says = "has no split 'train': its only split, 'test', is used"
    assert says in fetched["note"] and says in hub.split_note(hub.parse(name))
    assert says in lab_json("datasets", "fetch", name)["note"], "With the rows at hand, too."
    spec = {"data": {"dataset": name, "eval_fraction": 0.0, "max_length": 64, "packing": "off"}}
    warnings = dataset_stats(RunSpec.from_json(spec), None).warnings
    assert says in warnings[0]
    assert hub.split_note(hub.parse(f"{NAME}@test")) == "", "It was named."


def test_a_split_that_is_named_needs_no_word(stand_in: StandIn) -> None:
    stand_in.commit(NAME, {"train.jsonl": rows("a"), "test.jsonl": rows("b")}, "datasets")
    for name in (NAME, f"{NAME}@train", f"{NAME}@test"):
        hub_fetch.fetch(hub.parse(name))
        assert hub.split_note(hub.parse(name)) == ""


@pytest.mark.parametrize(
    ("file", "content"), [("train.jsonl", b""), ("train.json", b"[]"), ("train.csv", b"text\n")]
)
def test_zero_rows_are_told(stand_in: StandIn, file: str, content: bytes) -> None:
    stand_in.commit(NAME, {file: content}, "datasets")
    with pytest.raises(LabError, match="has no rows"):
        hub_fetch.fetch(hub.parse(NAME))
    assert hub.fetched() == []


def test_a_set_is_read_at_the_commit_that_was_fetched(stand_in: StandIn) -> None:
    first = stand_in.commit(NAME, {"train.jsonl": rows("old")}, "datasets")
    hub_fetch.fetch(hub.parse(NAME))
    pinned = catalog.resolve(NAME)
    assert pinned.id == f"{NAME}#{first}" and texts(pinned.path) == ["old"]
    second = stand_in.commit(NAME, {"train.jsonl": rows("new")}, "datasets")
    assert texts(catalog.resolve(NAME).path) == ["old"], "nothing is fetched unasked"
    told = hub.moved_on(hub.parse(pinned.id), NAME)
    assert second[:12] in told and first[:12] in told and "Fetch the dataset again" in told
    assert hub.moved_on(hub.parse(pinned.id), pinned.id) == "", "a commit does not move"
    hub_fetch.fetch(hub.parse(NAME))
    assert catalog.resolve(NAME).id == f"{NAME}#{second}"
    assert texts(catalog.resolve(pinned.id).path) == ["old"], "the pinned rows are still there"
    pinned.path.unlink()
    assert texts(hub_fetch.fetch(hub.parse(pinned.id))) == ["old"], "and come back as they were"
    assert hub.fetched() == [NAME]


def test_each_set_of_a_run_is_named_with_the_commit_of_its_rows(
    stand_in: StandIn, make_spec: Callable[..., dict[str, Any]]
) -> None:
    """A branch moves on: the spec of a run names the rows that it was checked with."""
    commits = {}
    for field in ("dataset", "eval_dataset", "general_dataset"):
        pairs = [{"prompt": f"{field} {n}", "completion": "yes"} for n in range(9)]
        lines = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
        name = f"org/{field}"
        commits[field] = f"{name}#{stand_in.commit(name, {'train.jsonl': lines}, 'datasets')}"
        hub_fetch.fetch(hub.parse(name))
    names = {field: f"org/{field}" for field in commits}
    spec = make_spec(data=names | {"general_fraction": 0.1, "eval_fraction": 0.0})
    data = checked(spec).spec.data
    assert {field: getattr(data, field) for field in commits} == commits


def test_a_download_goes_on_and_is_stopped(stand_in: StandIn) -> None:
    content = rows(*(f"row {number} " + "x" * 90 for number in range(2_000)))
    stand_in.commit(NAME, {"train.jsonl": content}, "datasets")
    stand_in.faults[NAME] = {"rate": 400_000, "file": "train.jsonl"}
    wanted, seen = hub.parse(NAME), 0

    def check() -> None:
        nonlocal seen
        seen = hub.state_of(wanted).total_bytes or 0
        if stand_in.sent("train.jsonl", so_far=True) > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub_fetch.fetch(wanted, check)
    assert seen == len(content), "the record says how far it is"
    stand_in.faults.clear()
    assert len(texts(hub_fetch.fetch(wanted))) == 2_000
    assert stand_in.sent("train.jsonl") < len(content) + 100_000, "it went on where it was"


@pytest.mark.parametrize("value", [b"\x89PNG", bytearray(b"x"), memoryview(b"x")])
def test_a_set_of_bytes_is_refused_and_leaves_no_file(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    stand_in.commit("org/pictures", {"train.jsonl": rows("a")}, "datasets")
    pictures = [({"text": "a"}, None), ({"image": value}, None)]
    monkeypatch.setattr(hub_fetch, "_rows", lambda *_: iter(pictures))
    wanted = hub.parse("org/pictures")
    with pytest.raises(LabError, match="images, audio or other binary data"):
        hub_fetch.fetch(wanted)
    state = hub.state_of(wanted)
    assert state.state == "failed" and "Choose a set of text" in state.hint
    left = {file.name for file in wanted.file.parent.iterdir() if file.is_file()}
    assert left == {wanted.record.name}, "half a set is no set"


def test_files_of_no_known_format_are_told(stand_in: StandIn) -> None:
    stand_in.commit(NAME, {"model.xyz": b"?", "loader.py": b"print(1)"}, "datasets")
    with pytest.raises(LabError, match=f"'{NAME}' cannot be read") as raised:
        hub_fetch.fetch(hub.parse(NAME))
    assert "without code of its own" in raised.value.hint
    assert str(hub.folder()) not in raised.value.message, "no folder of this machine"


def test_typing_an_id_fetches_nothing(
    several: StandIn, make_spec: Callable[..., dict[str, Any]]
) -> None:
    spec = make_spec("lora", data={"dataset": f"{NAME}:en"})
    (problem,) = check(spec)["problems"]
    assert problem["field"] == "data.dataset" and "is not on this machine yet" in problem["message"]
    assert f"datasets fetch {NAME}:en" in problem["message"], "the way out can be copied"
    assert "peak_bytes" in estimate(spec, how={"time": True, "shadow": False})
    assert several.log == [], "neither a check nor a forecast asks for a dataset"


@pytest.mark.parametrize("before", [None, "mine"])
def test_a_token_is_the_childs_alone(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is not None:
        monkeypatch.setenv("HF_TOKEN", before)
    started: list[Any] = []

    def spawn(module: list[str], log: Path, access: bytes | None = None) -> Any:
        started.append((module, json.loads(access or b"{}").get("hub")))
        return SimpleNamespace(pid=os.getpid())

    monkeypatch.setattr(process, "spawn", spawn)
    wanted = hub.parse("org/name:de@test")
    hub.start_fetch(wanted, token="secret")
    given = {"token": "secret", "origin": credentials.PAGE}
    assert started == [(["lab", "datasets", "fetch", "org/name:de@test"], given)]
    assert os.environ.get("HF_TOKEN") == before, "the process itself is left as it was"
    assert hub.state_of(wanted).state == "fetching"
    assert "secret" not in wanted.record.read_text()
    hub.start_fetch(wanted, token="secret")
    assert len(started) == 1, "one process fetches it"
    hub.start_fetch(hub.parse("org/other"))
    own = before and {"token": before, "origin": "the token in HF_TOKEN"}
    assert started[1][1] == own


def test_an_id_says_what_it_names() -> None:
    for text in ("org/name", "org/name:de", "org/name@test", "org/name:de@test#refs/pr/1"):
        assert str(hub.parse(text)) == text
    assert str(hub.parse("org/name@train")) == "org/name"
    for text in ("org", "org/na--me", "org/name#", "../name", "org/name@a b"):
        with pytest.raises(LabError, match="is not a Hub dataset ID"):
            hub.parse(text)


def test_a_set_is_removed(several: StandIn) -> None:
    wanted = hub.parse(f"{NAME}:de")
    file = hub_fetch.fetch(wanted)
    hub.remove(wanted)
    assert not file.exists() and hub.fetched() == []
    with pytest.raises(LabError, match="is not on this machine"):
        hub.remove(wanted)
