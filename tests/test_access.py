"""The token and its cookie, and what belongs to the account that runs the lab alone."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import access, paths
from lab.atomic_files import write_atomic
from lab.data import hub

SECRET = "the-secret-of-another"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    """What is created is open to everybody unless its creator says otherwise."""
    before = os.umask(0)
    yield
    os.umask(before)


# The token


def test_a_token_is_drawn_once_for_a_home(lab_home: Path) -> None:
    first = access.load()
    assert len(first.token) >= 32
    assert access.load() == first, "the next server of the home has another token"
    (lab_home / "access.json").unlink()
    assert access.load().token != first.token


@pytest.mark.parametrize("value", ["", "   ", "\n"])
def test_an_empty_variable_is_no_token(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LAB_TOKEN", value)
    now = access.load()
    assert not now.is_fixed
    assert not now.is_token(b"")
    assert not now.is_token(value.encode())


def test_lab_token_is_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = access.load()
    monkeypatch.setenv("LAB_TOKEN", " geheim-ä\udcff ")
    fixed = access.load()
    assert fixed.is_token(b"geheim-\xc3\xa4\xff")
    assert not fixed.is_token(drawn.token)
    assert not fixed.is_cookie(drawn.cookie())
    assert fixed.cookie_name != drawn.cookie_name


def test_a_cookie_ends_after_thirty_days(monkeypatch: pytest.MonkeyPatch) -> None:
    now = access.load()
    cookie, day, began = now.cookie(), 24 * 3600, time.time()
    monkeypatch.setattr(time, "time", lambda: began + 30 * day - 60)
    assert now.is_cookie(cookie)
    monkeypatch.setattr(time, "time", lambda: began + 30 * day + 60)
    assert not now.is_cookie(cookie), "the cookie is valid for ever"


def test_tokens_and_cookies_are_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    now = access.load()

    def never(left: bytes, right: bytes) -> bool:
        compared.append((left, right))
        return False

    monkeypatch.setattr("hmac.compare_digest", never)
    assert not now.is_token(now.token)
    assert not now.is_cookie(now.cookie())
    assert len(compared) == 2
    for left, right in compared:
        assert left == right, "not what was shown is compared with what is right"
        assert now.token not in (left, right), "the time would tell the length of the token"


@pytest.mark.parametrize("damage", ["{", "[]", '{"token": "", "secret": ""}', '{"token": 5}'])
def test_a_damaged_record_is_drawn_anew(lab_home: Path, damage: str) -> None:
    first = access.load()
    (lab_home / "access.json").write_text(damage)
    again = access.load()
    assert len(again.token) >= 32
    assert again.token != first.token


@pytest.mark.parametrize("rights", [0o644, 0o640, 0o660, 0o604])
def test_a_record_that_others_could_read_or_make_does_not_count(
    lab_home: Path, tmp_path: Path, rights: int
) -> None:
    first, file = access.load(), lab_home / "access.json"
    file.chmod(rights)
    second = access.load()
    assert second.token != first.token, "a token that others could read is still the token"
    planted = tmp_path / "planted.json"
    file.rename(planted)
    file.symlink_to(planted)
    assert access.load().token != second.token, "a token behind a link is the token"
    assert not file.is_symlink()
    assert mode(file) == 0o600


def test_a_home_that_cannot_be_written_costs_no_protection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "not a folder"
    home.write_text("")
    monkeypatch.setenv("LAB_HOME", str(home))
    now = access.load()
    assert len(now.token) >= 32
    assert now.token != access.load().token
    assert "could not be kept" in now.warning


@pytest.mark.parametrize(
    ("variable", "arguments", "required"),
    [
        ("", [], True),
        ("0", [], True),
        ("no", [], True),
        ("1", [], False),
        (" True ", [], False),
        ("", ["--no-token"], False),
        ("", ["--no-tokens"], True),
    ],
)
def test_only_the_switch_switches_the_token_off(
    monkeypatch: pytest.MonkeyPatch, variable: str, arguments: list[str], required: bool
) -> None:
    monkeypatch.setenv("LAB_NO_TOKEN", variable)
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    assert access.is_required() is required


def test_a_short_token_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_TOKEN", "abc")
    assert any("LAB_TOKEN has fewer than 16" in text for text in access.warnings())
    monkeypatch.setattr(access.paths, "home_warning", lambda: "The home is open.")
    warnings = access.warnings()
    assert len(warnings) == 2 and warnings[0] == "The home is open.", "one warning hides no other"


# LAB_HOME and what is secret in it


def test_lab_home_is_its_owners_alone_whoever_creates_it(open_umask: None, lab_home: Path) -> None:
    folder = paths.make_folder(lab_home / "datasets" / "hub")
    assert folder.is_dir()
    assert mode(lab_home) == 0o700
    lab_home.chmod(0o777)
    paths.make_folder(paths.runs())
    assert mode(lab_home) == 0o700, "a home that others could look into stays open"


def test_a_home_is_never_open_in_between(
    open_umask: None, lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: None)
    paths.make_folder(lab_home)
    assert mode(lab_home) == 0o700, "the home is created open and closed afterwards"


def test_folders_that_are_more_than_a_home_keep_their_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, own = tmp_path / "shared", tmp_path / "own"
    for folder, rights in ((shared, 0o1777), (own, 0o755)):
        folder.mkdir()
        folder.chmod(rights)
    monkeypatch.setattr(Path, "home", lambda: own)
    for folder, rights in ((shared, 0o1777), (own, 0o755)):
        monkeypatch.setenv("LAB_HOME", str(folder))
        paths.make_folder(folder / "runs")
        assert mode(folder) == rights
        assert f"can look into {folder}" in paths.home_warning()
        assert any(str(folder) in text for text in access.warnings())


def test_every_folder_is_made_by_the_function_that_closes_the_home() -> None:
    makers = []
    for file in sorted((paths.ROOT / "lab").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            deep = any(word.arg == "parents" for word in node.keywords)
            if node.func.attr == "makedirs" or (node.func.attr == "mkdir" and deep):
                makers.append(str(file.relative_to(paths.ROOT)))
    assert set(makers) == {"lab/paths.py"}, "use lab.paths.make_folder, which keeps LAB_HOME closed"


def test_what_is_private_is_so_from_its_first_byte(
    open_umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    write_atomic(file, "1")
    assert mode(file) == 0o666
    for left_over in tmp_path.glob(".*"):
        left_over.unlink()
    write_atomic(file, "2", private=True)
    assert (file.read_text(), mode(file)) == ("2", 0o600)
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    write_atomic(file, "3", private=True)
    assert mode(file) == 0o600, "the file is created open and closed afterwards"


def test_an_open_file_left_by_a_crash_is_closed_before_a_secret_is_in_it(
    open_umask: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "secret", "1")
    (left,) = tmp_path.glob(".secret.*")
    assert mode(left) == 0o666
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "secret", "2", private=True)
    assert mode(left) == 0o600


def test_the_chat_process_writes_its_token_for_its_owner_only(
    open_umask: None, lab_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lab.chat import __main__ as chat

    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    assert chat.main() == 0
    file = lab_home / "chat" / "process.json"
    assert len(json.loads(file.read_text())["token"]) > 32
    assert (mode(file), mode(lab_home)) == (0o600, 0o700)


def test_the_token_of_a_fetch_goes_to_the_child_alone(
    lab_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "environment.txt"
    script = tmp_path / "python"
    script.write_text(
        f'#!/bin/sh\nenv > "{report}.part"\nread line; echo "$line" > "{report}.line"\n'
        f'mv "{report}.part" "{report}"\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setenv("HF_TOKEN", "another token, of this process")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    popen = subprocess.Popen

    def watched(*arguments: Any, **options: Any) -> Any:
        assert SECRET not in str(arguments), "everybody can read a command line"
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", watched)
    hub.start_fetch(hub.parse("org/name"), SECRET)
    end = time.monotonic() + 30
    while not report.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert "TOKEN=" not in report.read_text().replace("LAB_TOKEN=", ""), "no environment holds one"
    assert json.loads(Path(f"{report}.line").read_text())["hub"]["token"] == SECRET
    for file in lab_home.rglob("*"):
        assert not file.is_file() or SECRET not in file.read_text(), f"{file} holds the token"
