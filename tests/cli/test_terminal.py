"""What reaches the terminal cannot act on it, and what the disk refuses is told in words."""

from __future__ import annotations

import ast
import errno
import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import atomic_files, cli, paths
from lab.atomic_files import read_object
from lab.cli.console import console, print_json, say, table, write
from lab.errors import MAX_PROBLEMS, LabError, Problem, SpecError, of_the_disk
from lab.paths import ROOT, RunDir
from lab.runs import queue

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\u200f\u061c\u200b\x7f\x08[/bold][red]"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal or a reader's eye would obey."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {hex(ord(c)) for c in text if unicodedata.category(c) in kinds and c not in "\n\t"}


@pytest.fixture
def hostile_run(trained: list[RunDir]) -> RunDir:
    """A finished run in whose every text stands what a terminal obeys."""
    run = trained[1]
    stored = read_object(run.spec) or {}
    stored |= {"name": HOSTILE, "model": HOSTILE, "method": {"name": HOSTILE}, HOSTILE: HOSTILE}
    run.spec.write_text(json.dumps(stored))
    run.result.write_text(json.dumps({"state": "failed", "message": HOSTILE, "hint": HOSTILE}))
    run.labels.write_text(json.dumps({"notes": f"good\n{HOSTILE}"}))
    run.log.write_bytes(b"\xff" + f"{HOSTILE}\r50 %\r100 %\r\ndone é\n".encode())
    return run


@pytest.mark.parametrize(
    "verb", ["runs", "show", "logs", "compare", "label", "checkpoints", "rename", "resume", "start"]
)
@pytest.mark.parametrize("as_json", [False, True])
def test_stored_text_does_not_act(
    hostile_run: RunDir, capsys: pytest.CaptureFixture[str], verb: str, as_json: bool
) -> None:
    more = {"runs": [], "rename": [hostile_run.id, "\u202ex"], "start": [f"/no/{HOSTILE}"]}
    arguments = [verb, *more.get(verb, [hostile_run.id]), *(["--json"] if as_json else [])]
    assert cli.main(arguments) in (0, 2)
    captured = capsys.readouterr()
    assert captured.out or captured.err
    assert obeyed(captured.out) == set() == obeyed(captured.err)
    if as_json and captured.out:
        json.loads(captured.out)


def test_json_keeps_the_values_and_a_log_its_lines(
    hostile_run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", hostile_run.id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"][HOSTILE] == HOSTILE
    assert cli.main(["logs", hostile_run.id]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == ["50 %", "100 %", "done é"], "progress bars become lines"
    assert "⟨001b⟩" in lines[0] and "⟨202e⟩" in lines[0], "what stands there is shown"


def test_every_way_to_print(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, error=True)
    write(HOSTILE)
    print_json({HOSTILE: [HOSTILE, "\ud800", float("nan")]})
    console.print("\x1b[31m\u202ex", markup=False)
    table("t", [HOSTILE.replace("[/bold]", "")], [[HOSTILE]])
    captured = capsys.readouterr()
    assert captured.out.count("evil") >= 4 and "evil" in captured.err
    assert obeyed(captured.out) == set() == obeyed(captured.err)
    with pytest.raises(SystemExit):
        cli.main(["start", "x.json", "\u202eunknown"])
    assert obeyed(capsys.readouterr().err) == set()


def test_a_name_between_colons_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    table("upload:x: 3 rows", ["run :fire:"], [["a long cell so that nothing wraps"]])
    console.print("of :fire:")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("upload:x: 3 rows", "run :fire:", "of :fire:"))


@pytest.mark.parametrize("name", ["[red]x[/red]", "x [/b]", "[link=https://x]y[/link]", "a [1] b"])
def test_a_name_in_brackets_is_shown_as_it_is_everywhere_in_a_table(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """In its title and headers too: rich would leave the tag out, or raise for one never opened."""
    table(f"Scores on {name}", [f"run {name}"], [[f"{name} in a cell that is long enough"]])
    shown = capsys.readouterr().out
    assert all(text in shown for text in (f"on {name}", f"run {name}", f"{name} in a cell"))


def test_verbs_print_through_these_functions_only() -> None:
    others = [
        file for file in sorted((ROOT / "lab" / "cli").glob("*.py")) if file.stem != "console"
    ]
    offenders = [
        f"{file.name}:{node.lineno}"
        for file in others
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"))
            or (isinstance(node.func, ast.Attribute) and node.func.attr == "write_text")
            or ast.unparse(node.func).startswith(("sys.stdout.write", "sys.stderr.write"))
        )
    ]
    assert offenders == [], "these print past the functions on which stored text cannot act"


def test_a_terminal_that_knows_fewer_letters(lab_home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "stop", "日本\u202e"],
        env={"PYTHONIOENCODING": "ascii", "LAB_HOME": str(lab_home), "PATH": "/usr/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and "is not a run id" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


REFUSED = {
    errno.ENOSPC: "The disk is full",
    errno.EROFS: "The disk is read-only",
    errno.EACCES: "The permission is missing",
    errno.EDQUOT: "The disk quota is used up",
}


@pytest.mark.parametrize("number", REFUSED)
def test_a_disk_that_refuses(
    lab_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, number: int,
) -> None:  # fmt: skip
    queue.change(at_once=2)

    def refuse(*_: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(atomic_files.os, "fsync", refuse)
    assert cli.main(["queue", "pause"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(REFUSED[number]) and "queue/settings.json" in said, said
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n')
    assert cli.main(["datasets", "add", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("LAB_HOME", str(lab_home))
    assert queue.settings().at_once == 2 and not queue.settings().paused, "nothing half-written"
    assert not list((lab_home / "queue").glob(".*.tmp"))


@pytest.mark.parametrize("verb", [["queue", "pause"], ["runs"], ["datasets", "add", "FILE"]])
def test_a_home_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    verb: list[str],
) -> None:  # fmt: skip
    home = tmp_path / "file"
    home.write_text("x")
    monkeypatch.setenv("LAB_HOME", str(home))
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "x"}\n')
    code = cli.main([str(rows) if word == "FILE" else word for word in verb])
    said = capsys.readouterr().err
    assert code == (0 if verb == ["runs"] else 2), said
    assert code == 0 or "where a folder is needed" in said or "Not a directory" in said, said


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, lab_home: Path) -> None:
    def broken() -> None:
        raise FileNotFoundError(errno.ENOENT, "gone", "x")

    monkeypatch.setattr(paths, "all_runs", broken)
    with pytest.raises(FileNotFoundError):
        cli.main(["runs"])
    assert of_the_disk(OSError("no number")) is None


def test_a_list_of_problems_is_cut_with_a_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "spec.json"
    file.write_text(json.dumps({"data": {f"key{number}": 1 for number in range(50)}}))
    assert cli.main(["start", str(file), "--json"]) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == MAX_PROBLEMS + 2 and "the spec has 50 problems" in lines[0]
    assert lines[-1].strip() == "and 30 more."
    listed = json.loads(captured.out)["problems"]
    assert [entry["field"] for entry in listed] == [f"data.key{number}" for number in range(50)]
    error = SpecError([Problem("a", "b")] * MAX_PROBLEMS)
    assert "more" not in str(error) and isinstance(error, LabError)


@pytest.mark.parametrize("depth", [65, 500, 700, 990, 100_000])
@pytest.mark.parametrize("where", ["spec", "--set", "race"])
def test_json_that_is_nested_too_deeply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], depth: int, where: str,
    make_spec: Callable[..., dict[str, Any]],
) -> None:  # fmt: skip
    deep = "[" * depth + "]" * depth
    file = tmp_path / "spec.json"
    file.write_text(f'{{"name": {deep}}}' if where != "--set" else json.dumps(make_spec()))
    verb = (
        ["race", str(file), "--methods", "lora,full"] if where == "race" else ["start", str(file)]
    )
    assert cli.main([*verb, *(["--set", f"name={deep}"] if where == "--set" else [])]) == 2
    assert "nested too deeply" in capsys.readouterr().err


def test_one_place_decides_between_json_and_text() -> None:
    """A verb returns an Output; its data and its text come from the same values."""
    verbs = (ROOT / "lab" / "cli").glob("*.py")
    files = {file.stem: file.read_text(encoding="utf-8") for file in verbs}
    printing = [name for name, text in files.items() if "print_json" in text]
    assert sorted(printing) == ["__init__", "console"], "a verb returns its data in an Output"


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "Interrupted. Runs already started continue."),
        (LabError("It is wrong.", "Mend it."), 2, "It is wrong."),
    ],
)
def test_how_a_verb_ends_is_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException,
    code: int, says: str,
) -> None:  # fmt: skip
    def end() -> Any:
        raise error

    monkeypatch.setattr(paths, "all_runs", end)
    assert cli.main(["runs"]) == code
    assert says in capsys.readouterr().err


def test_a_reader_that_closes_its_pipe_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def end() -> Any:
        raise BrokenPipeError

    monkeypatch.setattr(paths, "all_runs", end)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["runs"]) == 0
