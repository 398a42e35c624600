"""A run goes through one file and comes back the same; hostile files leave nothing behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab import paths
from lab.compare.comparison import compare
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import actions, export_import
from lab.runs.status import status


@pytest.fixture
def exported(trained: list[RunDir], tmp_path: Path) -> Path:
    return export_import.export(trained[1], tmp_path / "run.zip", checkpoints=True)


def test_there_and_back(trained: list[RunDir], exported: Path) -> None:
    run = trained[1]
    before, card = compare([run]).to_json(), (run.artifact / "README.md").read_bytes()
    again = export_import.import_run(exported)
    assert again.id != run.id, "its id is taken, so it gets another one"
    actions.delete(run)
    same = export_import.import_run(exported)
    assert same.id == run.id and status(same).state == "done"
    assert compare([same]).to_json() == before
    assert (same.checkpoints / "step-8" / "manifest.json").is_file()
    assert (same.artifact / "README.md").read_bytes() == card, "the model card travels"
    assert not same.process.exists()
    with pytest.raises(LabError, match="exists"):
        export_import.export(same, exported)


def test_an_archive_and_a_run_are_on_the_disk_before_they_have_their_names(
    trained: list[RunDir], tmp_path: Path, unsynced: dict[Path, list[str]]
) -> None:
    file = export_import.export(trained[1], tmp_path / "run.zip", checkpoints=True)
    run = export_import.import_run(file)
    assert unsynced[file] == [] and unsynced[run.path] == []


def test_only_ended_runs_are_exported(trained: list[RunDir], tmp_path: Path) -> None:
    trained[0].result.unlink()
    trained[0].process.unlink()
    with pytest.raises(LabError, match="is queued"):
        export_import.export(trained[0], tmp_path / "x.zip")


def rewrite(source: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    """A copy of the archive with something added."""
    target = source.with_name("hostile.zip")
    target.write_bytes(source.read_bytes())
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands there twice
        change(archive)
    return target


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def add(archive: zipfile.ZipFile, *names: str, **facts: int) -> None:
    """Members of which the archive's directory says something else than was written."""
    for name in names:
        archive.writestr(name, "{}")
        for fact, value in facts.items():
            setattr(archive.getinfo(name), fact, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda archive: archive.writestr("../../evil.json", "x"), "which no run has"),
        (lambda archive: archive.writestr("/etc/passwd", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact/../../x.json", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact\\..\\x.json", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact/model.bin", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact/weights.pkl", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact/run.py", "x"), "which no run has"),
        (lambda archive: archive.writestr("artifact/NOTES.md", "x"), "which no run has"),
        (lambda archive: archive.writestr("README.md", "x"), "which no run has"),
        (lambda archive: archive.writestr("process.json", "{}"), "which no run has"),
        (lambda archive: archive.writestr(link("artifact/x.json"), "/etc/passwd"), "is a link"),
        (lambda archive: archive.writestr("artifact/x.json", b"0" * 50_000_000), "suspicious size"),
        (lambda archive: archive.writestr("artifact/x.json", "{}"), "does not match"),
        (lambda archive: archive.writestr("spec.json", "{}"), "not an exported run"),
        (lambda archive: add(archive, "artifact/x.json", "artifact/X.json"), "not an exported run"),
        (lambda archive: add(archive, "artifact/x.json", flag_bits=1), "or encrypted"),
        (lambda archive: add(archive, "artifact/x.json", compress_type=12), "never uses"),
    ],
)
def test_hostile_archives(
    exported: Path, change: Callable[[zipfile.ZipFile], None], says: str
) -> None:
    before = sorted(paths.runs().iterdir())
    with pytest.raises(LabError, match=says):
        export_import.import_run(rewrite(exported, change))
    assert sorted(paths.runs().iterdir()) == before
    assert not (paths.home().parent / "evil.json").exists()


def test_a_changed_member_and_files_that_are_no_archives(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, b"{}" if name == "spec.json" else data)
    with pytest.raises(LabError, match=r"'spec\.json' is damaged"):
        export_import.import_run(target)
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():  # as large as it was, and with a sum of its own
            data = source.read(name)
            archive.writestr(name, data.replace(b"1", b"2") if name == "metrics.jsonl" else data)
    with pytest.raises(LabError, match=r"'metrics\.jsonl' is damaged"):
        export_import.import_run(target)
    target.write_bytes(exported.read_bytes()[:-500])
    with pytest.raises(LabError, match="cannot be imported"):
        export_import.import_run(target)
    for text in ("", "hello", json.dumps({})):
        target.write_text(text)
        with pytest.raises(LabError, match="cannot be imported"):
            export_import.import_run(target)
    with pytest.raises(LabError, match="cannot be imported"):
        export_import.import_run(tmp_path / "missing.zip")


def test_an_export_writes_through_no_link(trained: list[RunDir], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    target = tmp_path / "run.zip"
    (tmp_path / ".run.zip.tmp").symlink_to(victim)
    export_import.export(trained[1], target)
    assert zipfile.is_zipfile(target)
    assert victim.read_text() == "untouched", "the export went through another's link"
    (trained[1].artifact / "notes.txt").symlink_to(victim)
    again = export_import.export(trained[1], tmp_path / "again.zip")
    assert "artifact/notes.txt" not in zipfile.ZipFile(again).namelist(), "nor does it read one"


def contents(run: RunDir) -> dict[str, bytes]:
    return {
        file.relative_to(run.path).as_posix(): file.read_bytes()
        for file in run.path.rglob("*")
        if file.is_file()
    }


def test_imports_at_once_lose_nothing(trained: list[RunDir], tmp_path: Path) -> None:
    """Two different runs and one twice, in one process, as a server with several pages does it."""
    sources = [export_import.export(run, tmp_path / f"{run.id}.zip") for run in trained]
    before = {run.id: contents(run) for run in trained}
    for run in trained:
        actions.delete(run)
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            items = list(pool.map(export_import.import_run, [*sources, *sources]))
        assert len({run.id for run in items}) == 4, "each import is a run of its own"
        assert {run.id for run in items} >= set(before), "one of each pair has the run's own id"
        for source, run in zip([*trained, *trained], items, strict=True):
            wanted = before[source.id].keys() - {"process.json", "heartbeat"}
            now = contents(run)
            assert {name for name in wanted if not name.startswith("checkpoints/")} == now.keys()
            assert all(now[name] == before[source.id][name] for name in now), "every file is whole"
        assert not list(paths.runs().glob(".tmp-*"))
        for run in items:
            actions.delete(run)


def test_exports_at_once_into_one_file(trained: list[RunDir], tmp_path: Path) -> None:
    target = tmp_path / "run.zip"

    def write(run: RunDir) -> str:
        try:
            return str(export_import.export(run, target))
        except LabError as error:
            return error.message

    with ThreadPoolExecutor(4) as pool:
        items = list(pool.map(write, trained * 2))
    assert items.count(str(target)) == 1, "one of them has written the file"
    assert sum("exists" in words for words in items) == 3, "the others are told"
    assert [file.name for file in tmp_path.glob("*.zip")] == ["run.zip"]
    assert not list(tmp_path.glob(".tmp-*")) and export_import.import_run(target)


def test_an_import_looks_at_the_free_disk(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(exported) as opened:
        needed = sum(member.file_size for member in opened.infolist())
    before = sorted(paths.home().rglob("*"))
    usage = export_import.shutil.disk_usage("/")
    for free, fits in (
        (needed + export_import.RESERVE_BYTES - 1, False),
        (2 * needed + 10**9, True),
    ):
        monkeypatch.setattr(
            export_import.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free)
        )
        if fits:
            assert export_import.import_run(exported)
            continue
        with pytest.raises(LabError, match=f"needs {needed / 1e9:.2f} GB of disk"):
            export_import.import_run(exported)
        assert sorted(paths.home().rglob("*")) == before, "nothing was unpacked"


def test_an_import_that_fails_on_the_way_leaves_nothing(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(paths.home().rglob("*"))
    real = export_import._extract

    def full(opened: zipfile.ZipFile, name: str, listed: object, folder: Path) -> None:
        real(opened, name, listed, folder)
        if name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_import, "_extract", full)
    with pytest.raises(LabError, match="No space left on device"):
        export_import.import_run(exported)
    assert sorted(paths.home().rglob("*")) == before

    def forgets(opened: zipfile.ZipFile, name: str, listed: object, folder: Path) -> None:
        if name != "metrics.jsonl":
            real(opened, name, listed, folder)

    monkeypatch.setattr(export_import, "_extract", forgets)
    with pytest.raises(LabError, match="is not what the file holds"):
        export_import.import_run(exported)
    assert sorted(paths.home().rglob("*")) == before, "a run that lacks a file is never put there"


def test_what_a_killed_import_left_is_cleared_away(exported: Path) -> None:
    old, new = (paths.runs() / f".tmp-import-{name}" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
        (left / "spec.json").write_text("{}")
    os.utime(old, (time.time() - 2 * export_import.LEFT_S,) * 2)
    export_import.import_run(exported)
    assert not old.exists() and new.exists(), "another import may still be at the new one"


def test_a_result_whose_tokenizer_was_changed_is_not_exported(
    trained: list[RunDir], tmp_path: Path
) -> None:
    file = trained[1].artifact / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(LabError, match=r"tokenizer_config\.json"):
        export_import.export(trained[1], tmp_path / "changed.zip")
    assert not (tmp_path / "changed.zip").exists()


def test_an_old_file_and_a_crashed_run(trained: list[RunDir], tmp_path: Path) -> None:
    run = trained[1]
    os.utime(run.estimate, (0, 0))  # ZIP knows no time before 1980
    assert export_import.export(run, tmp_path / "old.zip").is_file()
    run.result.unlink()
    run.process.write_text('{"pid": 999999, "start": 1}')
    assert status(run).state == "crashed"
    with pytest.raises(LabError, match=r"no readable result\.json"):
        export_import.export(run, tmp_path / "crashed.zip")
    assert not (tmp_path / "crashed.zip").exists()


@pytest.mark.parametrize("name", ["spec.json", "result.json"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"method": "lora"}'])
def test_a_file_without_a_spec_or_a_result_is_no_run(
    exported: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Its manifest agrees with it: it was made so."""
    target = tmp_path / "other.zip"
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(target, "w") as archive:
        members = {member: source.read(member) for member in source.namelist()}
        manifest = json.loads(members.pop(export_import.MANIFEST))
        members.pop(name)
        members |= {} if content is None else {name: content}
        manifest["files"] = {
            member: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for member, data in members.items()
        }
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(export_import.MANIFEST, json.dumps(manifest))
    before = sorted(paths.runs().iterdir())
    with pytest.raises(LabError):
        export_import.import_run(target)
    assert sorted(paths.runs().iterdir()) == before
