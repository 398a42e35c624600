"""Downloads: sent from the disk, with what is refused said as text."""

from __future__ import annotations

import asyncio
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.routing import Match

from lab import paths
from lab.paths import RunDir
from lab.ui import downloads

RUN_ID = "20261122-101531-lora-k3f9"


def make_run(*, has_model: bool = True) -> RunDir:
    run = RunDir(paths.runs() / RUN_ID)
    run.path.mkdir(parents=True)
    if has_model:
        run.artifact.mkdir()
        (run.artifact / "adapter_config.json").write_text("{}")
        (run.artifact / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 12_000)
    return run


def ask(kind: str, run_id: str) -> Any:
    request: Any = SimpleNamespace(path_params={"kind": kind, "run": run_id})
    return downloads._answer(request)


def content(answer: Any, file: Path) -> Path:
    async def collect() -> None:
        with file.open("wb") as target:
            async for block in answer.body_iterator:
                assert len(block) <= downloads.CHUNK, "never the whole of it in memory"
                target.write(block)

    asyncio.run(collect())
    return file


def test_a_model_is_sent_in_blocks(lab_home: Path, tmp_path: Path) -> None:
    run = make_run()
    answer = ask("model", RUN_ID)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == f'attachment; filename="{RUN_ID}-model.zip"'
    file = content(answer, tmp_path / "model.zip")
    assert int(answer.headers["content-length"]) == file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        weights = archive.read("artifact/adapter_model.safetensors")
    assert weights == (run.artifact / "adapter_model.safetensors").read_bytes()
    assert list((lab_home / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "run_id", "says"),
    [
        ("model", "../../etc", "is not a run id"),
        ("model", "20990101-000000-lora-zzzz", "There is no run"),
        ("passwd", RUN_ID, "has no such file"),
        ("run", RUN_ID, "Only a run that has ended"),
    ],
)
def test_what_is_not_there_is_said(lab_home: Path, kind: str, run_id: str, says: str) -> None:
    make_run()
    answer = ask(kind, run_id)
    assert answer.status_code == 404 and says in answer.body.decode()
    assert not list((lab_home / "downloads").glob("*"))


def test_a_run_without_a_model_has_none_to_send(lab_home: Path) -> None:
    make_run(has_model=False)
    assert ask("model", RUN_ID).status_code == 404


def test_a_full_disk_is_said(lab_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    make_run()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "zip_folder", full)
    answer = ask("model", RUN_ID)
    assert answer.status_code == 507 and "disk is full" in answer.body.decode()


@pytest.mark.parametrize("prefix", ["", "/some/base"])
def test_the_address_is_found_under_a_base_path_too(prefix: str) -> None:
    scope = {"type": "http", "method": "GET", "path": f"{prefix}/download/run/{RUN_ID}"}
    assert any(route.matches(scope)[0] is Match.FULL for route in downloads.ROUTES)
    other = {**scope, "path": "/monitor"}
    assert all(route.matches(other)[0] is Match.NONE for route in downloads.ROUTES)
