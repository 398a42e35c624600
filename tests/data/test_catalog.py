"""What an id means, and that a file that is given to the lab is kept whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.data import catalog
from lab.errors import LabError


def test_the_held_out_part_is_a_file_of_its_own() -> None:
    whole = catalog.resolve("builtin:made-up-facts")
    part = catalog.resolve("builtin:made-up-facts@held-out")
    assert part.path != whole.path and part.path.name.endswith("held-out.jsonl")
    rows = [len(one.path.read_text().splitlines()) for one in (whole, part)]
    assert rows == [whole.card["rows"], whole.card["held_out_rows"]]
    with pytest.raises(LabError, match="Unknown dataset"):
        catalog.resolve("builtin:persona-chats@held-out")


def test_a_card_brings_its_system_prompt_and_a_file_brings_none(tmp_path: Path) -> None:
    assert catalog.resolve("builtin:persona-chats").system_prompt == "You are a helpful assistant."
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    assert catalog.resolve(str(file)).system_prompt == ""


def test_a_path_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert catalog.resolve("~/mine.jsonl").path == tmp_path / "mine.jsonl"
    monkeypatch.chdir(tmp_path)
    assert catalog.resolve("mine.jsonl").id == str(tmp_path / "mine.jsonl"), "from anywhere"


def test_an_upload_that_breaks_off_leaves_nothing() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"half"
        raise OSError(28, "No space left on device")

    with pytest.raises(LabError, match=r"could not be kept in .*: No space left.*GB are free"):
        catalog.add("a.jsonl", blocks())
    assert list(catalog.uploads_folder().iterdir()) == []


def test_of_two_uploads_of_a_name_the_first_to_end_stays() -> None:
    def slow() -> Iterator[bytes]:
        yield b"slow"
        aside = catalog.uploads_folder() / "a.jsonl"
        aside.write_bytes(b"fast")

    with pytest.raises(LabError, match="already"):
        catalog.add("a.jsonl", slow())
    assert catalog.resolve("upload:a.jsonl").path.read_bytes() == b"fast"
    assert [path.name for path in catalog.uploads_folder().iterdir()] == ["a.jsonl"]


def test_an_upload_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, link = os.fsync, os.link

    def note_sync(descriptor: int) -> None:
        done.append("fsync")
        sync(descriptor)

    def note_link(source: Path, target: Path) -> None:
        done.append(target.name)
        link(source, target)

    monkeypatch.setattr(catalog.os, "fsync", note_sync)
    monkeypatch.setattr(catalog.os, "link", note_link)
    catalog.add("a.jsonl", [b"one\n", b"two\n"])
    assert done[:2] == ["fsync", "a.jsonl"]
    assert catalog.resolve("upload:a.jsonl").path.read_bytes() == b"one\ntwo\n"


def test_only_datasets_are_listed_and_removed() -> None:
    added = catalog.add("b.csv.gz", [b"x"])
    catalog.add("a.jsonl", [b"x"])
    folder = catalog.uploads_folder()
    for name in (".tmp-a.jsonl-1", "notes.pdf", "with space.jsonl"):
        (folder / name).write_text("x")
    (folder / "folder.jsonl").mkdir()
    assert [upload.id for upload in catalog.uploads()] == ["upload:a.jsonl", "upload:b.csv.gz"]
    for name in ("notes.pdf", "../home", "folder.jsonl", ".tmp-a.jsonl-1"):
        with pytest.raises(LabError, match=r"upload:a\.jsonl, upload:b\.csv\.gz"):
            catalog.remove(name)
    catalog.remove("b.csv.gz")
    assert not added.path.exists() and [upload.id for upload in catalog.uploads()] == [
        "upload:a.jsonl"
    ]
