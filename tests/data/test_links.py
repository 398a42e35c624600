"""Names that lead elsewhere: a file is judged by where its name leads."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab import paths, spec
from lab.data import catalog
from lab.data.readers import RecordReader
from lab.errors import LabError
from lab.models import catalog as models
from lab.runs import export_import
from tests.conftest import write_rows

SECRET = "the-secret-of-another"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "id_key"
    file.write_text(f"{SECRET}\n")
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    write_rows(file, [{"text": "a row"}])
    return file


def lead(link: Path, target: Path) -> Path:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    return link


def test_a_dataset_is_judged_by_where_its_name_leads(
    tmp_path: Path, secret: Path, rows: Path
) -> None:
    link = lead(tmp_path / "x.txt", secret)
    further = lead(tmp_path / "y.jsonl.gz", link)
    for name in (link, further, lead(tmp_path / "p.txt", Path("/proc/self/environ"))):
        with pytest.raises(LabError, match=r"is not a (data|regular) file"):
            catalog.resolve(str(name))
        with pytest.raises(LabError, match=r"is not a (data|regular) file"):
            catalog.add_file(name)
        with pytest.raises(LabError, match=r"is (a link to|not a regular file)"):
            list(RecordReader(name))
    assert catalog.resolve(str(lead(tmp_path / "latest.txt", rows))).path == rows
    with pytest.raises(LabError, match="does not exist"):
        catalog.resolve(str(lead(tmp_path / "circle.txt", tmp_path / "circle.txt")))


def test_a_name_that_is_pointed_elsewhere_after_the_look_is_refused(
    tmp_path: Path, secret: Path
) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    for place in (folder, elsewhere):
        place.mkdir()
    write_rows(folder / "x.txt", [])
    dataset = catalog.resolve(str(folder / "x.txt"))
    lead(folder / "x.txt", secret)
    with pytest.raises(LabError, match="is a link to"):
        list(RecordReader(dataset.path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt", ".txt.gz"])
def test_a_pipe_is_no_dataset_and_nobody_waits_for_it(tmp_path: Path, suffix: str) -> None:
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    for use in (lambda: catalog.resolve(str(pipe)), lambda: list(RecordReader(pipe))):
        with pytest.raises(LabError, match="is not a regular file"):
            use()
    with pytest.raises(LabError, match="is not a regular file"):
        catalog.add_file(pipe)


def test_no_pipe_holds_a_spec_an_import_or_a_config(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    for use in (spec.load, export_import.import_run, lambda path: models.resolve_config(str(path))):
        with pytest.raises(LabError, match="is not a regular file"):
            use(pipe)
    with pytest.raises(LabError, match="is not a regular file"):
        spec.load(Path("/dev/zero"))
    with pytest.raises(LabError, match="is not a regular file"):
        export_import.import_run(tmp_path)


def test_a_link_to_a_file_that_is_there_still_works(tmp_path: Path, rows: Path) -> None:
    written = tmp_path / "real.json"
    written.write_text('{"name": "by a link"}')
    assert spec.load(lead(tmp_path / "link.json", written)) == {"name": "by a link"}
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archived:
        archived.writestr("other", "")
    with pytest.raises(LabError, match="not an exported run"):
        export_import.import_run(lead(tmp_path / "link.zip", packed))
    assert catalog.add_file(lead(tmp_path / "kept.jsonl", rows)).id == "upload:kept.jsonl"


def test_a_link_among_the_uploads_is_no_upload(lab_home: Path, secret: Path, rows: Path) -> None:
    folder = paths.make_folder(catalog.uploads_folder())
    lead(folder / "x.txt", secret)
    lead(folder / "y.jsonl", rows)
    assert catalog.uploads() == []
    for name in ("x.txt", "y.jsonl", "../rows.jsonl", "hub/x.jsonl"):
        with pytest.raises(LabError, match="no uploaded dataset"):
            catalog.resolve(f"upload:{name}")


@pytest.mark.parametrize("field", ["dataset", "held_out", "general_dataset"])
def test_every_field_that_names_a_file_is_judged(
    tmp_path: Path, secret: Path, make_spec: Callable[..., dict[str, Any]], field: str
) -> None:
    from tests.answers import check

    link = lead(tmp_path / "x.txt", secret)
    more = {"general_fraction": 0.1} if field == "general_dataset" else {}
    problems = check(make_spec(data={field: str(link), **more}))["problems"]
    assert "is a link to" in json.dumps(problems), problems
    assert SECRET not in json.dumps(problems)


def test_a_config_is_judged_by_where_its_name_leads(tmp_path: Path, secret: Path) -> None:
    secret.write_text('{"model_type": "llama", "token": "' + SECRET + '"}')
    with pytest.raises(LabError, match="not a readable model config") as error:
        models.resolve_config(str(lead(tmp_path / "config.json", secret)))
    assert SECRET not in str(error.value)


def test_a_model_folder_holds_no_links_to_something_else(
    tmp_path: Path, tiny_model: Path, secret: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        lead(folder / file.name, file)
    weights = folder / "model.safetensors"
    with pytest.raises(LabError, match="is a link that leaves the folder"):
        models.resolve(str(folder))
    weights.unlink()
    shutil.copy(tiny_model / weights.name, weights)
    assert models.resolve(str(folder)).location == str(folder), "links to the like are fine"
    for name in ("tokenizer.json", "model.safetensors", "chat_template.jinja"):
        there = (folder / name).exists()
        lead(folder / name, secret)
        with pytest.raises(LabError, match=f"'{name}' is a link to"):
            models.resolve(str(folder))
        (folder / name).unlink()
        if there:
            shutil.copy(tiny_model / name, folder / name)
    os.mkfifo(folder / "generation.json")
    with pytest.raises(LabError, match=r"'generation\.json' is not a regular file"):
        models.resolve(str(folder))


def test_a_folder_of_the_hubs_cache_is_a_model_folder(tmp_path: Path, tiny_model: Path) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_model.iterdir())):
        (blobs / f"{number:064x}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    assert models.resolve(str(snapshot)).location == str(snapshot)
