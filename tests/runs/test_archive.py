"""A run goes through one file and comes back the same; hostile files leave nothing behind."""

from __future__ import annotations

import json
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import paths
from lab.compare.table import row
from lab.errors import LabError
from lab.paths import RunDir
from lab.runs import archive, launch
from lab.runs.status import status


@pytest.fixture
def exported(trained: list[RunDir], tmp_path: Path) -> Path:
    return archive.export(trained[1], tmp_path / "run.zip", checkpoints=True)


def test_there_and_back(trained: list[RunDir], exported: Path) -> None:
    run = trained[1]
    before = row(run)
    again = archive.import_run(exported)
    assert again.id != run.id, "its id is taken, so it gets another one"
    launch.delete(run)
    same = archive.import_run(exported)
    assert same.id == run.id and status(same).state == "done"
    assert row(same) == before
    assert (same.checkpoints / "step-8" / "manifest.json").is_file()
    assert not same.process.exists()
    with pytest.raises(LabError, match="exists"):
        archive.export(same, exported)


def test_only_ended_runs_are_exported(trained: list[RunDir], tmp_path: Path) -> None:
    trained[0].result.unlink()
    trained[0].process.unlink()
    with pytest.raises(LabError, match="is queued"):
        archive.export(trained[0], tmp_path / "x.zip")


def rewrite(source: Path, change: Callable[[zipfile.ZipFile], None]) -> Path:
    """A copy of the archive with something added."""
    target = source.with_name("hostile.zip")
    target.write_bytes(source.read_bytes())
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands there twice
        change(made)
    return target


def link(name: str) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = (stat.S_IFLNK | 0o777) << 16
    return made


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda made: made.writestr("../../evil.json", "x"), "which no run has"),
        (lambda made: made.writestr("/etc/passwd", "x"), "which no run has"),
        (lambda made: made.writestr("artifact/../../x.json", "x"), "which no run has"),
        (lambda made: made.writestr("artifact\\..\\x.json", "x"), "which no run has"),
        (lambda made: made.writestr("artifact/model.bin", "x"), "which no run has"),
        (lambda made: made.writestr("artifact/weights.pkl", "x"), "which no run has"),
        (lambda made: made.writestr("artifact/run.py", "x"), "which no run has"),
        (lambda made: made.writestr("process.json", "{}"), "which no run has"),
        (lambda made: made.writestr(link("artifact/x.json"), "/etc/passwd"), "is a link"),
        (lambda made: made.writestr("artifact/x.json", b"0" * 50_000_000), "suspicious size"),
        (lambda made: made.writestr("artifact/x.json", "{}"), "does not match"),
        (lambda made: made.writestr("spec.json", "{}"), "not an exported run"),
    ],
)
def test_hostile_archives(
    exported: Path, change: Callable[[zipfile.ZipFile], None], says: str
) -> None:
    before = sorted(paths.runs().iterdir())
    with pytest.raises(LabError, match=says):
        archive.import_run(rewrite(exported, change))
    assert sorted(paths.runs().iterdir()) == before
    assert not (paths.home().parent / "evil.json").exists()


def test_a_changed_member_and_files_that_are_no_archives(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "changed.zip"
    with zipfile.ZipFile(exported) as source, zipfile.ZipFile(target, "w") as made:
        for name in source.namelist():
            data = source.read(name)
            made.writestr(name, b"{}" if name == "spec.json" else data)
    with pytest.raises(LabError, match=r"'spec\.json' is damaged"):
        archive.import_run(target)
    target.write_bytes(exported.read_bytes()[:-500])
    with pytest.raises(LabError, match="cannot be imported"):
        archive.import_run(target)
    for text in ("", "hello", json.dumps({})):
        target.write_text(text)
        with pytest.raises(LabError, match="cannot be imported"):
            archive.import_run(target)
    with pytest.raises(LabError, match="cannot be imported"):
        archive.import_run(tmp_path / "missing.zip")


def test_an_export_writes_through_no_link(trained: list[RunDir], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    target = tmp_path / "run.zip"
    (tmp_path / ".run.zip.tmp").symlink_to(victim)
    archive.export(trained[1], target)
    assert zipfile.is_zipfile(target)
    assert victim.read_text() == "untouched", "the export went through another's link"
