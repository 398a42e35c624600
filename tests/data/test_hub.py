"""Sets of the hub: one file for each config and split, a token that is handed on and forgotten."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lab import process
from lab.data import hub
from lab.errors import LabError


class Rows(list[Any]):
    """A streamed set as the datasets library gives it."""

    info = SimpleNamespace(splits={"train": SimpleNamespace(num_examples=99)})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the hub is asked for; it answers with two rows."""
    import datasets

    calls: list[Any] = []

    def load(name: str, config: str | None, **options: Any) -> Rows:
        calls.append((name, config, options["split"]))
        return Rows([{"text": "é"}, {"text": "b", "day": SimpleNamespace(a=1)}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: True)
    return calls


def test_each_config_and_split_has_a_file_of_its_own(asked: list[Any]) -> None:
    ids = ["org/name", "org/name:de", "org/name@test", "org/name:de@test", "org/other"]
    files = [hub.fetch(hub.parse(token_id)) for token_id in ids]
    assert len(set(files)) == 5
    assert asked == [
        ("org/name", None, "train"), ("org/name", "de", "train"), ("org/name", None, "test"),
        ("org/name", "de", "test"), ("org/other", None, "train"),
    ]  # fmt: skip
    assert sorted(hub.fetched()) == sorted(ids)
    assert hub.state_of(hub.parse("org/name"))["rows"] == 2
    assert "é" in files[0].read_text(encoding="utf-8") and "namespace(a=1)" in files[0].read_text()


@pytest.mark.parametrize("value", [b"\x89PNG", bytearray(b"x"), memoryview(b"x")])
def test_a_set_of_bytes_is_refused_and_leaves_no_file(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *args, **options: Rows([{"text": "a"}, {"image": value}])
    )
    wanted = hub.parse("org/pictures")
    with pytest.raises(LabError, match="images, sound or other bytes"):
        hub.fetch(wanted)
    state = hub.state_of(wanted)
    assert state["state"] == "failed" and "Choose a set of text" in state["hint"]
    assert "images" in state["message"] and hub.fetched() == []
    left = {path.name for path in wanted.file.parent.iterdir()}
    assert left == {wanted.record.name}, "half a set is no set"


def test_the_hubs_own_words_are_passed_on(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def gated(*args: Any, **options: Any) -> Any:
        raise RuntimeError("Access to org/name is gated.\nsee the page")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(
        LabError, match=r"'org/name' cannot be fetched: Access to org/name is gated"
    ):
        hub.fetch(hub.parse("org/name"))
    assert "is gated" in hub.state_of(hub.parse("org/name"))["message"]


@pytest.mark.parametrize("before", [None, "mine"])
def test_a_token_is_the_childs_alone(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    if before is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", before)
    started: list[Any] = []

    def spawn(module: list[str], log: Path, variables: dict[str, str] | None = None) -> Any:
        started.append((module, (os.environ | (variables or {})).get("HF_TOKEN")))
        return SimpleNamespace(pid=os.getpid())

    monkeypatch.setattr(process, "spawn", spawn)
    wanted = hub.parse("org/name:de@test")
    hub.start_fetch(wanted, token="secret")
    assert started == [(["lab", "datasets", "fetch", "org/name:de@test"], "secret")]
    assert os.environ.get("HF_TOKEN") == before, "the process itself is left as it was"
    assert hub.state_of(wanted)["state"] == "fetching"
    assert "secret" not in wanted.record.read_text()
    hub.start_fetch(wanted, token="secret")
    assert len(started) == 1, "one process fetches it"
    hub.start_fetch(hub.parse("org/other"))
    assert started[1][1] == before


def test_without_a_network_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(process, "spawn", None)
    with pytest.raises(LabError, match="The hub cannot be reached"):
        hub.start_fetch(hub.parse("org/name"))
    assert hub.state_of(hub.parse("org/name"))["state"] == ""


def test_a_check_waits_for_a_fetch_only_so_long(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "WAIT_S", 0.3)
    monkeypatch.setattr(
        process, "spawn", lambda module, log, **more: SimpleNamespace(pid=os.getpid())
    )
    wanted = hub.parse("org/name")
    with pytest.raises(LabError, match=r"still being fetched \(0 rows so far\)"):
        hub.file_of(wanted)
    hub._note(wanted, "failed", message="It is gone.", hint="Look elsewhere.")
    monkeypatch.setattr(hub, "start_fetch", lambda wanted: None)
    with pytest.raises(LabError, match="It is gone"):
        hub.file_of(wanted)
    wanted.file.write_text("{}\n")
    assert hub.file_of(wanted) == wanted.file
