"""A Hub, a proxy or a card that answers what nobody has asked for."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.data import hub as dataset_hub
from lab.data import hub_fetch
from lab.errors import LabError
from lab.hub import cache, credentials, download, repository
from lab.hub.problems import HubError
from lab.hub.repository import Repository
from tests.hub.conftest import NAME
from tests.hub.stand_in import StandIn

FILE = "model.safetensors"
CONTENT = os.urandom(20_000)
SET = "org/rows"
TOKEN = "hf_ofATest"
ROW = b'{"text": "a"}\n'


@pytest.fixture
def repo(stand_in: StandIn) -> Repository:
    stand_in.commit(NAME, {FILE: CONTENT})
    return repository.resolve("models", NAME)


def fetch(repo: Repository) -> Path:
    return download.fetch(repo, repository.files(repo).values())


def test_a_login_page_in_place_of_a_file_is_told_and_not_kept(
    stand_in: StandIn, repo: Repository
) -> None:
    stand_in.faults[NAME] = {"page": True}
    with pytest.raises(HubError, match="does not answer as a Hub does") as raised:
        fetch(repo)
    assert "asks for a login first" in raised.value.hint
    assert list((repository.folder_of("models", NAME) / "blobs").iterdir()) == []
    stand_in.faults.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[StandIn]:
    """Another host, to which a Hub may send for the bytes of a file."""
    other = StandIn(tmp_path / "another host")
    other.commit(NAME, {FILE: CONTENT})
    yield other
    other.close()


def test_another_host_gives_the_bytes_and_never_sees_the_token(
    stand_in: StandIn, repo: Repository, elsewhere: StandIn
) -> None:
    credentials.give(TOKEN)
    address = elsewhere.address.replace("127.0.0.1", "localhost")
    stand_in.faults[NAME] = {"elsewhere": address, "tokens": [TOKEN]}
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    assert [line.auth for line in elsewhere.log] == [""]
    assert {line.auth for line in stand_in.requests("GET", "/resolve/")} == {TOKEN}


def test_a_disk_that_fills_on_the_way_is_told_and_what_came_is_kept(
    stand_in: StandIn, repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, counted = download.Digest.update, 0

    def until_full(self: Any, data: bytes) -> None:
        nonlocal counted
        counted += len(data)
        if counted > 9_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        update(self, data)

    stand_in.faults[NAME] = {"rate": 200_000}
    with monkeypatch.context() as patch:
        patch.setattr(download.Digest, "update", until_full)
        with pytest.raises(
            LabError, match=r"disk is full.*files of the Hub were written"
        ) as raised:
            fetch(repo)
    assert "set HF_HOME" in raised.value.hint and "is kept" in raised.value.hint
    stand_in.faults.clear()
    assert (fetch(repo) / FILE).read_bytes() == CONTENT
    assert stand_in.sent(FILE) < 2 * len(CONTENT), "it went on with what had come"


@pytest.mark.parametrize(
    "path",
    ["../x.json", "a/../../x.json", "/etc/x.json", "a\n/../../x.json", "a\r/../x", "a//b", "a\\b",
     "..", "a/..", "a\0b", ""],
)  # fmt: skip
def test_a_listing_leads_out_of_no_folder(path: str) -> None:
    entry = {"path": path, "size": 1, "blob": "a" * 40}
    assert repository._remote_file(entry) is None
    assert repository._remote_file(entry | {"path": "a/..b/c..json"}) is not None


@pytest.mark.parametrize(
    "where",
    ["http://another-host.test/x.jsonl", "hf://datasets/org/other/x.jsonl", "/etc/*.conf",
     "../../**", "zip://x.jsonl::http://another-host.test/x.zip", "~/x.jsonl"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["data_files", "data_dir"])
def test_a_card_leads_to_no_other_place(stand_in: StandIn, key: str, where: str) -> None:
    """The datasets library would look there, on this disk and at any address."""
    files: Any = (
        {"split": "train", "path": ["train.jsonl", where]} if key == "data_files" else where
    )
    card = json.dumps({"configs": [{"config_name": "default", key: files}]})
    stand_in.commit(
        SET, {"README.md": f"---\n{card}\n---\n".encode(), "train.jsonl": ROW}, "datasets"
    )
    with pytest.raises(LabError, match="names data outside its repository"):
        hub_fetch.fetch(dataset_hub.parse(SET))


def test_a_description_of_former_times_does_no_harm(stand_in: StandIn) -> None:
    infos = json.dumps({"default": {"features": {"text": {"dtype": "string", "_type": "Value"}}}})
    files = {"dataset_infos.json": infos.encode(), "train.jsonl": ROW}
    stand_in.commit(SET, files, "datasets")
    assert hub_fetch.fetch(dataset_hub.parse(SET)).read_bytes() == ROW


def test_every_config_of_three_hundred_is_named(stand_in: StandIn) -> None:
    configs = [{"config_name": f"c{n}", "data_files": f"{n}.jsonl"} for n in range(300)]
    card = f"---\n{json.dumps({'configs': configs})}\n---\n".encode()
    files = {"README.md": card} | {f"{n}.jsonl": ROW for n in range(300)}
    stand_in.commit(SET, files, "datasets")
    with pytest.raises(LabError, match="has several configs") as raised:
        hub_fetch.fetch(dataset_hub.parse(SET))
    assert "one of its 300 configs" in raised.value.hint and raised.value.hint.endswith(", c299.")


def test_a_slash_in_a_branch_is_no_other_character(stand_in: StandIn) -> None:
    for branch, row in (("a/b", ROW), ("a_b", ROW * 2)):
        stand_in.commit(SET, {"train.jsonl": row}, "datasets", ref=branch)
        assert hub_fetch.fetch(dataset_hub.parse(f"{SET}#{branch}")).read_bytes() == row
    assert dataset_hub.parse(f"{SET}#a/b").file.read_bytes() == ROW
    names = [f"{SET}#{branch}" for branch in ("a/b", "a_b", "a.b", "a-b")]
    assert len({dataset_hub.parse(name).stem for name in names}) == 4
    longest = dataset_hub.parse(f"{'o' * 96}/{'n' * 96}:{'c' * 64}@{'s' * 64}#{'r' * 200}")
    assert not longest.file.is_file(), "a name that is longer than a disk takes is no error"
    other = dataset_hub.parse(f"{'o' * 96}/{'n' * 96}:{'c' * 64}@{'s' * 64}#{'r' * 199}s")
    assert longest.stem != other.stem


@pytest.mark.parametrize("branches", [("a", "a/b"), ("a/b", "a")])
def test_a_branch_where_another_needs_a_folder_is_not_noted(
    lab_home: Path, stand_in: StandIn, branches: tuple[str, str]
) -> None:
    repo = Repository("models", NAME, "a" * 40)
    for branch in branches:
        cache.note_reference(repo, branch)
    known = [repository.cached_commit("models", NAME, branch) for branch in branches]
    assert known == [repo.commit, None]


@pytest.mark.parametrize(
    "fields",
    [{"size": -1}, {"size": True}, {"size": "1"}, {"blob": "../" + "a" * 37}, {"blob": "a" * 39}],
)
def test_a_listing_holds_sizes_and_hashes(fields: dict[str, Any]) -> None:
    entry = {"path": "x.json", "size": 1, "blob": "a" * 40}
    assert repository._remote_file(entry) is not None
    assert repository._remote_file(entry | fields) is None


def test_what_the_hub_takes_away_is_not_answered_by_the_cache(
    stand_in: StandIn, repo: Repository
) -> None:
    cache.note_reference(repo, "main")
    stand_in.faults[NAME] = {"missing": True}
    with pytest.raises(HubError, match="is not on the Hub"):
        repository.resolve("models", NAME)
    stand_in.faults[NAME] = {"status": 503}
    assert repository.resolve("models", NAME) == repo, "A Hub that fails says nothing of it."


def test_a_listing_of_one_hub_is_not_that_of_another(
    stand_in: StandIn, repo: Repository, elsewhere: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = repository.files(repo)
    monkeypatch.setenv("HF_ENDPOINT", elsewhere.address)
    assert repository.files(repo) == listed
    assert len(elsewhere.requests("GET", "/tree/")) == 1, "The other one is asked itself."


def test_only_a_branch_can_move_on() -> None:
    old, new = "a" * 40, "b" * 40
    words = repository.moved_on("org/name", "", old, new)
    assert words == (
        f"The branch main of 'org/name' has moved on to {'b' * 12} on the Hub; {'a' * 12} is used."
    )
    for revision, now in ((old, new), ("main", old), ("main", None)):
        assert repository.moved_on("org/name", revision, old, now) == ""


def test_an_id_is_taken_to_a_commit_once() -> None:
    commit = "a" * 40
    assert repository.at_commit("org/name", commit) == f"org/name#{commit}"
    for text, now in (("org/name#v1", commit), ("org/name", "main"), ("org/name", None),
                      ("/models/base", commit)):  # fmt: skip
        assert repository.at_commit(text, now) == text


def test_a_damaged_note_of_a_branch_is_none(stand_in: StandIn, repo: Repository) -> None:
    cache.note_reference(repo, "main")
    note = repository.folder_of("models", NAME) / "refs" / "main"
    assert repository.cached_commit("models", NAME, "") == repo.commit
    for text in (b"../../elsewhere", b"", b"\xff\xfe"):
        note.write_bytes(text)
        assert repository.cached_commit("models", NAME, "main") is None
